# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
# torch is asked for exactly, since a plain `torch` is a CUDA build of several GB; .ci/run and a GPU machine set their own.
TORCH ?= torch>=2.11,<3
DEMO_CONTEXT ?= 32k

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs bench gpu clean

demo: $(INSTALLED)
	$(BIN)/kvcalc estimate deepseek-v3 --gpu h200-sxm-141gb --tp 8 --context $(DEMO_CONTEXT)
	$(BIN)/kvcalc compare deepseek-v3 --what-if mha,gqa:8,mqa,mla --context $(DEMO_CONTEXT)

test: $(INSTALLED) lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[profile,plot,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
