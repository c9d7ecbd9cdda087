# Every target makes its own environment in .venv on first use. Needs Python 3.11 or newer and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin

# llama.cpp is compiled for test-slow and for bench, which compare with it.
.PHONY: demo test test-browser test-slow lint bench pocket clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

test: .venv/installed
	$(BIN)/python -m pytest

test-browser: .venv/installed
	$(BIN)/python -m pytest -m browser

test-slow: .venv/peers
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/peers
	$(BIN)/python benchmarks/run.py

pocket: .venv/installed
	$(BIN)/python tools/build_pocket.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "perplab needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/peers: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[peers]'
	touch $@
