# Two commands do everything: `make demo` and `make test`. Variables: PYTHON, VENV, TORCH, PYTEST.
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTEST ?=
BIN = $(VENV)/bin

.PHONY: help demo test parity lint format wheel clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

demo: ## train a grouped and an ordinary mixture of experts on real text, compare, report
	@tools/make_venv.sh $(VENV) ""
	$(BIN)/python experiments/pangu_pro_moe/run.py --preset demo

test: ## run the tests and the import contracts (no torch needed)
	@tools/make_venv.sh $(VENV) "test"
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(PYTEST)

parity: ## compare live with torch and transformers
	@tools/make_venv.sh $(VENV) "test,parity" $(TORCH)
	$(BIN)/python -m pytest -m parity $(PYTEST)

lint: ## ruff, formatting, types, import contracts
	@tools/make_venv.sh $(VENV) "test"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: ## let ruff rewrite what it can
	@tools/make_venv.sh $(VENV) "test"
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: ## build the wheel into dist/
	@tools/make_venv.sh $(VENV) "test"
	$(BIN)/python -m build --wheel

clean: ## remove environments and build results; runs/ stays
	rm -rf .venv* dist build .pytest_cache .ruff_cache .import_linter_cache
