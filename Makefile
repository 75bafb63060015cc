# Two promises: `make demo` and `make test` work after a clone, with Python ≥ 3.11 and make.
# The first Python on the path that is new enough; set PYTHON to choose another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest
WORKERS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-scale test-notebooks tutorials docs faults lint format bench bench-regression bench-training bench-trak bench-scale clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "datamodels needs Python 3.11 or newer; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/installed.stamp
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(PIP) -e '.[dev]'
	@touch $@

install: $(VENV)/installed.stamp  ## Install into .venv

demo: install  ## Thousands of networks on digits, datamodels, proof, and a page
	$(BIN)/datamodels demo --out runs/demo

test: $(VENV)/test.stamp  ## Run the tests
	$(PYTEST) -m 'not slow and not browser and not faults and not slurm and not ray and not notebooks' -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/test.stamp  ## Run the slow and the browser tests (needs chromium and parallel)
	$(PYTEST) -m 'slow or browser'

test-scale: $(VENV)/test.stamp  ## Run the tests of faults, Ray and SLURM (needs munge, mariadb-server, slurm-wlm, slurmdbd, and root)
	$(PYTEST) -m 'faults or ray or slurm'

$(VENV)/notebooks.stamp: $(VENV)/test.stamp
	$(PIP) -e '.[notebooks]'
	@touch $@

test-notebooks: $(VENV)/notebooks.stamp  ## Execute the tutorials at a quick size
	$(PYTEST) -m notebooks

tutorials: $(VENV)/notebooks.stamp  ## Execute the tutorials at full size and keep their pictures
	$(BIN)/python -m tests.tutorials

docs: $(VENV)/notebooks.stamp  ## Build the documentation into site/
	$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

faults: $(VENV)/test.stamp  ## 1,000 random kills over a local store, 100 over S3, Ray and SLURM each (needs what test-scale does)
	$(BIN)/python -m tests.fault_campaign

lint: $(VENV)/dev.stamp  ## ruff, mypy, import layers
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## Format the code
	$(BIN)/ruff check --fix src tests benchmarks examples docs
	$(BIN)/ruff format src tests benchmarks examples docs

bench: install  ## Measure speed; see benchmarks/RESULTS.md
	$(BIN)/python benchmarks/spine.py

$(VENV)/bench.stamp: $(VENV)/installed.stamp
	$(PIP) -e '.[bench]'
	@touch $@

bench-regression: $(VENV)/bench.stamp  ## Measure the regression against its peers and its floor
	$(BIN)/python benchmarks/regression.py

bench-training: $(VENV)/test.stamp  ## Measure the training of many models against plain PyTorch
	$(BIN)/python benchmarks/training.py

bench-trak: $(VENV)/test.stamp  ## Measure TRAK against traker and dattri
	$(PIP) -e '.[bench-trak]'
	$(BIN)/python benchmarks/trak.py

bench-scale: install  ## One fit of 50,000 examples, 100,000 models, 1,000 targets
	$(BIN)/python benchmarks/scale.py

clean:  ## Remove what was built; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
