# Everything below needs Python >= 3.11 with venv, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FAULTS ?= fault or slow

.PHONY: help install demo test test-faults lint docs format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## create .venv and install vae_lab with all it needs

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## train the default experiment on the bundled digits, less than a minute; it ends with what to try next
	$(BIN)/vae-lab

test: $(STAMP)  ## run the tests, a few minutes
	$(BIN)/python -m pytest -n 2 -q --dist worksteal -m 'not slow'

test-faults: $(STAMP)  ## kill, corrupt and starve real runs in every way we know (docs/reliability.md), some minutes
	$(BIN)/python -m pytest -n 3 -q --dist worksteal -m '$(FAULTS)' # one more than cores, because they often wait

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## make the documentation, docs/_build/index.html; a broken link is an error
	$(BIN)/python -m sphinx --fresh-env --nitpicky --fail-on-warning --keep-going --quiet docs docs/_build

format: $(STAMP)  ## apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist docs/_build docs/groups docs/notebooks *.egg-info
