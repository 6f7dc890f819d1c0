# Everything here works on a machine that has only Python (3.11 or newer) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := torch,graphsurgeon,tensorrt,cli,train,test,bench

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all fuzz check format bench docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv and install xrt with what development needs

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]" --group dev
	@touch $(READY)

demo: $(READY) ## Compile ResNet-50 and BERT-base, run them on real input, compare with PyTorch
	$(BIN)/python -m examples.demo

test: $(READY) ## Run the tests (under 20 minutes on two cores)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-all: $(READY) ## Run every test, the long ones too
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not gpu"

fuzz: SECONDS ?= 600
fuzz: $(READY) ## Compare XLA, host and onnx.reference on random nodes: `make fuzz SECONDS=600`
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

check: $(READY) ## Lint, check formatting, types and that generated docs are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m docs.generate --check

format: $(READY) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## Regenerate the generated pages of docs/reference
	$(BIN)/python -m docs.generate

bench: $(READY) ## Measure what docs/reference/benchmarks.md reports; writes benchmarks/results
	$(BIN)/python -m benchmarks.spine

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
