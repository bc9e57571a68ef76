# Each target makes its own environment in $(VENV): a fresh machine needs Python 3.10 or later and make, nothing else.
VENV ?= .venv
PYTHON ?= python3

BIN := $(VENV)/bin
METADATA := setup.cfg pyproject.toml
RECIPES := $(wildcard recipes/*.py)

.DEFAULT_GOAL := help
.PHONY: help demo test slow check clean

help:  ## say what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1|/' | awk -F '|' '{printf "%-12s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## fine-tune the embedded model on drawn pets into runs/demo
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml recipes/vit_lora.py --preset demo \
		--output_dir runs/demo --overwrite_output_dir

test: $(VENV)/.installed-test  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

slow: $(VENV)/.installed-test  ## run the tests that take more than a minute
	$(BIN)/python -m pytest -q -m slow --timeout 3600

check: $(VENV)/.installed-dev  ## lint, types, and the help of every recipe
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@for recipe in $(RECIPES); do \
		$(BIN)/python $$recipe --help > /dev/null || { echo "$$recipe --help fails" >&2; exit 1; }; \
	done; echo "--help of $(words $(RECIPES)) recipes: passed"

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +

# a stamp for each set of extras; they are made anew when the metadata changes
$(VENV)/.installed: $(METADATA) | $(BIN)/pip
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-test: $(METADATA) | $(BIN)/pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(METADATA) | $(BIN)/pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

# pip is the last thing that venv makes
$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no '$(PYTHON)'; name yours: make PYTHON=/path/to/python3.10" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "make: $$($(PYTHON) --version) is too old, Python 3.10 or later is needed; name another: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make an environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
