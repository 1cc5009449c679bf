# make demo: everything a newcomer needs to see it work.  make test: lint and tests, as CI runs them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# fastreid's published pins would replace torch by an old one, so it goes in by itself.
FASTREID := fastreid==1.4.0

.PHONY: help install install-dev demo test lint format bench clean

help:
	@echo "make demo     install into $(VENV), build data, train, evaluate and print one table"
	@echo "make test     install, lint and run the tests"
	@echo "make install  install only;  make lint, make format, make bench, make clean"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	$(BIN)/python -m pip install --quiet --no-deps $(FASTREID)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

demo: install
	$(BIN)/python tools/demo.py

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One process for each processor, each with one thread; a file's tests share what they set up.
test: install-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/lrreid bench

clean:
	rm -rf $(VENV) logs build *.egg-info
