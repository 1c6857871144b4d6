# Two commands do everything: `make demo` and `make test`. Variables: PYTHON (which interpreter),
# VENV and DOCS_VENV (which folders), PYTEST (more arguments to pytest), TORCH (what `make parity`
# asks pip for).
VENV ?= .venv
DOCS_VENV ?= .venv-docs
PYTEST ?=
# The live comparison computes on the CPU; CONTRIBUTING.md says how to get the small build.
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin
CHECK = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && \
	$(BIN)/pyright --pythonpath $(BIN)/python

# Bytecode that is kept saves every process that tests start a third of a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test tests checks parity long slow mutants lint format docs wheel clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

demo: ## train a grouped and an ordinary mixture of experts on real text, compare, report
	@tools/make_venv.sh $(VENV) ""
	$(BIN)/python experiments/pangu_pro_moe/run.py --preset demo

test: ## lint, formatting, import contracts, types, tests (no torch needed)
	@tools/make_venv.sh $(VENV) test
	@$(MAKE) --no-print-directory -k -j 2 checks tests

checks: # beside the tests, as they use one core
	$(CHECK)

tests:
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST)

# Torch has one thread a worker, as there is a worker for every core, which takes file by file: real
# models first, of tests/system, as they take longest. Files that PYTEST names are taken alone.
parity: ## compare live with torch and transformers
	@tools/make_venv.sh $(VENV) parity $(TORCH)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile \
		--no-loadscope-reorder -m parity $(PYTEST) $(if $(filter tests tests/% ./tests/%,$(PYTEST)),,\
		$$(grep -rl --include='test_*.py' mark.parity tests | LC_ALL=C sort -r))

long: ## the tests that `make test` leaves to .ci/run: whole programs, and the longest of the rest
	@tools/make_venv.sh $(VENV) test
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "long and not slow" $(PYTEST)

slow: ## the tests that take minutes: long kills, learning, times, more layouts, a local Ray
	@tools/make_venv.sh $(VENV) test,ray
	$(BIN)/python -m pytest -m slow $(PYTEST)

mutants: ## break the library in a hundred places, see which the tests notice (an hour or more)
	@tools/make_venv.sh $(VENV) mutants
	$(BIN)/python tools/mutants.py --sample 100 --out runs/mutants.jsonl

lint: ## what `make test` checks before it runs the tests
	@tools/make_venv.sh $(VENV) test
	$(CHECK)

format: ## let ruff rewrite what it can
	@tools/make_venv.sh $(VENV) test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: ## build the documentation site into site/, warnings and broken links being errors
	@tools/make_venv.sh $(DOCS_VENV) group:docs
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

wheel: ## build the wheel into dist/
	@tools/make_venv.sh $(VENV) test
	$(BIN)/python -m build --wheel

clean: ## remove environments and build results; runs/ stays
	rm -rf .venv* .jax_cache dist build site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
