# make demo | up | down | test | check | stress | bench | lock | clean
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(shell cat requirements/dev.lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)

.PHONY: help setup packages-test packages-bench check lint types test stress demo up down bench lock clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(READY) ## Install what running Dovecote needs
	@$(BIN)/python deploy/web.py

$(READY): requirements/dev.lock pyproject.toml
	@deploy/install.sh run
	@[ -x $(BIN)/python ] || { echo "Making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.8,<1'
	@echo "Installing Python packages from requirements/dev.lock"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --require-hashes -r requirements/dev.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install -q --no-deps -e .
	@rm -f $(VENV)/ready-*; touch $@

packages-test: setup
	@deploy/install.sh run test
	@tests/e2e/clients/install.sh $(BIN)/uv >/dev/null

packages-bench:
	@deploy/install.sh run test bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m dovecote.sdk.generate --check

types: setup
	$(BIN)/mypy

check: lint types ## Style, imports, types, and that the generated client is current

test: setup packages-test ## Every test, with real parts
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

stress: setup packages-test ## Kill everything at random instants and compare what comes back; STRESS="--rounds 20 --seed 7"
	DOVECOTE_MODEL_EXAMPLES=1000 $(BIN)/pytest --timeout 0 tests/unit/test_affinity_model.py
	$(BIN)/python -m stress.guest --minutes 5
	$(BIN)/python -m stress.affinity --minutes 10
	$(BIN)/python -m stress $(STRESS)

demo: setup ## Start Dovecote, do its main job and show it
	@running=0; $(BIN)/dovecote status >/dev/null 2>&1 && running=1; \
	$(BIN)/dovecote up && $(BIN)/dovecote demo; status=$$?; \
	[ $$running = 1 ] || $(BIN)/dovecote down; \
	exit $$status

up: setup ## Start Dovecote and keep it running
	@$(BIN)/dovecote up

down: setup ## Stop it and leave nothing behind; files stay
	@$(BIN)/dovecote down

bench: setup packages-bench ## Measure, print a table, write build/bench.json
	$(BIN)/python -m bench

lock: ## Resolve requirements again
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-annotate -q -o requirements/run.lock
	$(BIN)/uv pip compile pyproject.toml --universal --group dev --generate-hashes --no-header --no-annotate -q -o requirements/dev.lock
	for of in 2.45 2.63; do $(BIN)/uv pip compile tests/e2e/clients/python-$$of.in --universal --generate-hashes --no-header --no-annotate -q -o tests/e2e/clients/python-$$of.txt; done

clean: ## Remove what was built in this checkout
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/dovecote/host/guest/bin src/dovecote/api/pages/npm
