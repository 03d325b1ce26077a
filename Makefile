# Two commands for a newcomer: `make demo` and `make test`. `make check` is what a change must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
RUNS ?= runs

.PHONY: help demo test check lint bench architecture docs notebooks dist test-wheel test-bare test-oldest test-newest clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train, prune and export a small network on bundled data (installs into .venv first)"
	@echo "make test   all tests"
	@echo "make check  format, lint, types, import layers, tests"
	@echo "make bench  benchmarks against the peers, hours of them; python -m benchmarks NAME runs a single benchmark"
	@echo "make docs   the site, in site/index.html; nothing of it is loaded from the network"
	@echo "make notebooks  runs the notebooks in examples/ anew and keeps what they print"
	@echo "make architecture  the picture of the rooms in docs/"
	@echo "make dist         the files of a release in dist/, checked"
	@echo "make test-wheel   the wheel alone in a fresh environment: import, plan, a fit, the command line"
	@echo "make test-bare    all tests that need no extra, without any"
	@echo "make test-oldest  all tests with the oldest versions that pyproject.toml allows"
	@echo "make test-newest  all tests with the newest"

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

dist: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_dist.py dist $(TAG)

test-wheel: dist
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	$(VENV)-wheel/bin/python -I tools/try_wheel.py

# The doctests of exports, which need their packages, are left out.
test-bare:
	$(PYTHON) -m venv --clear $(VENV)-bare
	$(VENV)-bare/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(VENV)-bare/bin/python -m pytest -n 2 --ignore lightning_prune/export

# Old packages warn of each other's deprecations; those of this library are errors in `make test`.
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest:
	$(PYTHON) -m venv --clear $(VENV)-$(RESOLUTION)
	$(VENV)-$(RESOLUTION)/bin/python -m pip install --quiet uv
	$(VENV)-$(RESOLUTION)/bin/uv pip install --quiet --python $(VENV)-$(RESOLUTION) --resolution $(RESOLUTION) --editable ".[dev]"
	$(VENV)-$(RESOLUTION)/bin/python -m pytest -n 2 -W ignore::DeprecationWarning

notebooks: $(DOCS_READY)
	$(BIN)/python docs/run_notebooks.py

clean:
	rm -rf $(VENV) $(VENV)-* $(RUNS) dist site
