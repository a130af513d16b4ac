# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
# torch is asked for by itself, first: a plain `torch` is a CUDA build of several GB where a CPU build would do.
# .ci/run and machines with a build of their own say which.
TORCH ?= torch>=2.11,<3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs gpu clean

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

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[profile,predict,plot,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
