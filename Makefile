# `make demo` and `make test` need Python 3.9 or newer and make; the rest is fetched into this directory.
# make test PYTHON=python3.11 TESTS="tests/core -x" JOBS=0   (JOBS=0: one after the other, in one process)

PYTHON3 ?= python3
PYTHON ?=
TESTS ?=
CELLS ?=
# A good half of what the tests take is to wait: for two cores these are not too many.
JOBS ?= 6
export JOBS
# With it each of the many processes that the tests start compiles the SDK anew: a third of their time.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv/bin
SETUP = $(PYTHON3) scripts/environment.py $(if $(PYTHON),--python $(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help demo test lint types contract states wheel matrix bench check pins format clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Cancel real calls in every phase, against a server that keeps its own record
	@$(SETUP) test
	$(VENV)/deadstop demo

test: ## Run the tests
	@$(SETUP) test
	$(VENV)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(TESTS)

lint: ## Lint, and check the format
	@$(SETUP) dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: ## Check the types
	@$(SETUP) dev
	$(VENV)/mypy --strict

contract: ## Check that imports run downward only
	@$(SETUP) dev
	$(VENV)/lint-imports --no-cache

states: ## Check that the diagram in the docs is the one that the transition table gives
	@$(SETUP) test
	$(VENV)/python scripts/states.py --check

wheel: ## Run the tests against the built wheel on the newest Python and openai, which `make test` covers from the tree
	@$(PYTHON3) scripts/matrix.py newest $(if $(TESTS),-- $(TESTS))

matrix: ## Run the tests against the built wheel, on every other supported pair of Python and openai
	@$(PYTHON3) scripts/matrix.py $(CELLS) $(if $(TESTS),-- $(TESTS))

bench: ## Measure side by side: plain SDK, deadstop, a bare socket.shutdown
	@$(SETUP) test
	$(VENV)/python -m bench

check: lint types contract states matrix test ## Every gate

format: ## Format the code and mend what the linter can mend
	@$(SETUP) dev
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

pins: ## Compile requirements/**/*.in (UPGRADE=1: to the newest of everything)
	@$(PYTHON3) scripts/pins.py $(if $(UPGRADE),--upgrade)

clean: ## Remove everything that the other targets made
	rm -rf .venv .venv-matrix .tools dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
