# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.11 and make.

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
export UV_PYTHON_DOWNLOADS := never
READY := .venv/.ready
BIN := .venv/bin

.PHONY: demo test test-all check bench docs clean

demo: $(READY)
	$(BIN)/penult demo

test: $(READY)
	$(BIN)/pytest

test-all: $(READY)
	$(BIN)/pytest -m "slow or not slow"

check: $(READY)
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py tests/test_docs.py

bench: $(READY)
	$(BIN)/python scripts/bench.py

docs: $(READY)
	$(BIN)/python scripts/make_docs.py

$(READY): pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --all-extras --compile-bytecode --python $(PYTHON)
	@touch $@

.uv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit("Penult needs Python 3.11 or newer; say make PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

clean:
	rm -rf .venv .uv
