# `make serve` and `make test` do all their own set-up in a fresh clone.
# PYTHON: the newest of 3.11 and up that is found; JAX 0.11 and later (Python 3.12+) are twice as fast on CPU in int8.
PYTHON ?= $(shell scripts/find_python.sh)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Each process of a test would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test lint wheel protos clean

serve: $(VENV)/.installed
	@$(BIN)/jaxinfer serve $(ARGS)

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: $(VENV)/.installed
	scripts/check_wheel.sh $(PYTHON)

protos: $(VENV)/.installed-test
	$(BIN)/python scripts/generate_protos.py

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "jaxinfer needs Python 3.11 or newer; none was found" >&2; exit 2; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@scripts/install.sh $(BIN)/python "."
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed pyproject.toml constraints.txt
	@scripts/install.sh $(BIN)/python ".[test]"
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test pyproject.toml constraints.txt
	@scripts/install.sh $(BIN)/python ".[test,lint]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
