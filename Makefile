# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
# torch is asked for by itself, first: a plain `torch` is a CUDA build of several GB where a CPU build would do.
# .ci/run and machines with a build of their own say which.
TORCH ?= torch>=2.11,<3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs gpu cpu clean

demo: $(INSTALLED)
	$(BIN)/kvcalc estimate deepseek-v3 --context 128k --gpu h200-sxm-141gb --tp 8
	$(BIN)/kvcalc compare deepseek-v3 --what-if mha,gqa:8,mqa --context 128k
	$(BIN)/kvcalc profile deepseek-v2-lite --quick

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# What is made from the code: the README's blocks, the schemas, the checksums of the packaged specs.
docs: $(INSTALLED)
	$(BIN)/python tests/docs.py

# On a machine with an NVIDIA GPU: builds, checks and measures the kernels, and writes benchmarks/results/<gpu>/.
gpu:
	$(PYTHON) benchmarks/gpu.py

# MLA on this machine's cores, by heads a rank; the README tells the results.
cpu: $(INSTALLED)
	for tp in 128 16 8 4 1; do \
		$(BIN)/kvcalc profile deepseek-v3 --device cpu --context 64k --batch 1 --tp $$tp --dtype fp32 --what-if none \
			--kernel torch-sdpa,torch-absorbed,native-decode --repeat-process 6 --json \
			--output benchmarks/results/cpu/deepseek-v3-h$$((128 / tp))-fp32.json || exit; \
	done

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[profile,predict,plot,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
