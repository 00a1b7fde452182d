# Works right after a clone, with Python 3.11 or later and GNU make.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# setuptools warns that an editable install is one.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --progress-bar off --disable-pip-version-check \
	--constraint constraints.txt
SOURCES := rlrate envs agents experiments tests
# One thread per worker: two workers with two threads each only get in each other's way. Dozens of tests start
# processes: what these import is compiled once, also where the environment says otherwise.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest
WORKERS ?= 2
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.use ## Train, export, apply and compare a small controller (minutes, 2 cores)
	@$(BIN)/python -m rlrate.experiments.demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## Everything a change must pass: lint and the tests, side by side (ARGS="-k word")
	@$(MAKE) --jobs=2 lint tests

# Tests often wait for processes of their own, so lint beside them costs little.
.PHONY: tests
tests: $(VENV)/.dev
	@echo "tests, $(WORKERS) workers"
	@$(PYTEST) -q -n $(WORKERS) --dist worksteal $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev style types imports ## Style, types and import contracts

.PHONY: style
style: $(VENV)/.dev
	@echo "style"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check || { echo "run: make format"; exit 1; }

.PHONY: types
types: $(VENV)/.dev farm
	@echo "types"
	@$(BIN)/mypy --no-error-summary build/farm/rlrate tests \
		| sed -E 's#^build/farm/(rlrate/(envs|agents|experiments)/)#\1#; s#^rlrate/(envs|agents|experiments)/#\1/#; s#^build/farm/##'

.PHONY: imports
imports: $(VENV)/.dev farm
	@echo "import contracts"
	@cd build/farm; ../../$(BIN)/lint-imports --no-cache --no-logo ../../pyproject.toml \
		> ../imports.txt || { cat ../imports.txt; exit 1; }

# The package as it looks when installed, made of links: see [tool.mypy] in pyproject.toml.
.PHONY: farm
farm:
	@mkdir -p build/farm/rlrate
	@cd build/farm/rlrate; find . -xtype l -delete; ln -sfn ../../../rlrate/[!_]* \
		../../../rlrate/__init__.py ../../../envs ../../../agents ../../../experiments .

.PHONY: format
format: $(VENV)/.dev ## Format the code and mend what can be mended
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# What the scoreboard's rows are measured by: its own tests, and earlier ones that are rows as well.
RELIABILITY := tests/reliability tests/rlrate/test_conformance.py tests/rlrate/test_faults.py \
	tests/rlrate/test_resume.py tests/envs/test_env.py

.PHONY: soak
soak: $(VENV)/.dev ## The long share of the reliability tests, then the scoreboard (some five minutes, 2 cores)
	@RLRATE_SOAK=$(or $(RLRATE_SOAK),1) PYTHONPATH=tests/support $(PYTEST) -q -n $(WORKERS) -p recorder $(RELIABILITY) $(ARGS)
	@$(BIN)/python tests/support/scoreboard.py

.PHONY: scoreboard
scoreboard: $(VENV)/.dev ## Write RELIABILITY.md from what was recorded
	@$(BIN)/python tests/support/scoreboard.py

.PHONY: golden
golden: $(VENV)/.dev ## Write the files of this version in tests/golden anew: only when old ones are to break
	@OMP_NUM_THREADS=1 $(BIN)/python tests/support/golden.py

.PHONY: mutants
mutants: $(VENV)/.dev ## Count the changes of the core that its tests notice (ARGS="--count 5")
	@$(BIN)/python tests/support/mutants.py $(ARGS)

.PHONY: branches
branches: $(VENV)/.dev ## Branch coverage of the core by its own tests
	@$(BIN)/python tests/support/branches.py $(ARGS)

.PHONY: orders
orders: $(VENV)/.dev ## The tests in random orders (ARGS="--orders 3 tests/rlrate")
	@$(BIN)/python tests/support/shuffle.py $(ARGS)

.PHONY: public
public: $(VENV)/.dev ## The runtime's tests against the wheel, outside of the repository
	@$(BIN)/python tests/support/away.py wheel

.PHONY: dependencies
dependencies: $(VENV)/.dev ## The same with the lowest and the highest dependencies, in fresh environments (downloads)
	@$(BIN)/python tests/support/away.py dependencies

.PHONY: bench
bench: $(VENV)/.use ## Measure the speed of the environment
	@$(BIN)/rlrate bench environment $(ARGS)

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the wheel in dist/
	@rm -rf build/lib dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

.PHONY: clean
clean: ## Remove build products and caches (keeps .venv and runs)
	@rm -rf build dist *.egg-info .coverage .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps: what the demo needs, and that with the tools of development.
$(VENV)/.use: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rlrate[all] into $(VENV) (minutes the first time)"
	@$(INSTALL) --editable '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rlrate[all,dev] into $(VENV) (minutes the first time)"
	@$(INSTALL) --editable '.[all,dev]'
	@touch $@ $(VENV)/.use

$(VENV)/bin/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
		if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then \
			echo "creating $(VENV) with $$("$$python" --version)"; \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "no Python 3.11 or later with venv was found: install one, or name it: make PYTHON=..."; \
	exit 1
