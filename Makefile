# Everything here sets itself up on first use: it needs Python 3.11 or newer with venv, and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup setup-dev sdks demo up test check format lock bench clean
.DEFAULT_GOAL := help

help:  ## show this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.setup  ## make .venv from requirements.lock

.venv/.setup: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Almoner needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Almoner into .venv ..."
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup-dev: .venv/.setup-dev

.venv/.setup-dev: .venv/.setup requirements-dev.lock
	@echo "Installing what the tests need into .venv ..."
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

sdks: .sdk/py032/.setup tests/node/node_modules/.package-lock.json  ## install Polar's other clients, which the tests then play; needs npm

.sdk/py032/.setup: tests/sdk/requirements-0.32.txt
	@test -x .sdk/py032/bin/python || $(PYTHON) -m venv .sdk/py032
	@.sdk/py032/bin/pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

tests/node/node_modules/.package-lock.json: tests/node/package-lock.json
	@npm ci --no-audit --no-fund --prefix tests/node
	@touch $@

demo: setup  ## run the service on its embedded default and play signed purchases against it
	@$(BIN)/almoner demo

up: setup  ## run the sidecar
	@$(BIN)/almoner up

test: setup-dev  ## pass the whole suite: tests, types, lint, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports
	@$(BIN)/mypy
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest --cov --cov-report=term  # bytecode halves the start of each process

check: test

format: setup-dev  ## put the code into its form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup-dev  ## print every figure of the README anew
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lock:  ## resolve the dependencies anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --extra build -o requirements.lock pyproject.toml
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --extra build --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	echo polar-sdk==0.32.0 | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url -o tests/sdk/requirements-0.32.txt -

clean:  ## remove what was made here, but no data
	rm -rf .venv .sdk tests/node/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
