# What a person types here; `make help` lists it. Everything happens inside .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test trt check lint types clean

help: ## show this list
	@echo "ltdeploy: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

quickstart: $(STAMP) ## draw species, train, fix, export and verify: under 5 minutes, no data to download
	@echo "Drawing species, training, fixing the tail, exporting, verifying: under 5 minutes on two cores."
	@$(BIN)/ltdeploy quickstart --out $(OUT)

test: $(STAMP) ## run every test
	@# A file's tests stay together: they share what is slow to make. In the order of the folders:
	@# by their number of tests, the few slow ones would come last.
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

trt: $(STAMP) ## fetch NVIDIA's builder, 150 MB: it builds every graph we export, no GPU needed
	@$(BIN)/python tests/trt_build/trt_assemble.py

check: lint types test ## lint, types and tests: what must pass before a change goes in

lint: $(STAMP) ## style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

clean: ## remove what was built and cached; .venv stays
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache $(OUT)
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "Clean. The installed packages stay in $(VENV); rm -rf $(VENV) removes them too."

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "ltdeploy needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)."; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "'$(PYTHON)' cannot make a virtual environment; install its venv module (on Debian: python3-venv)."; \
		exit 1; }
	@echo "Installing into $(VENV), once: torch is the most of it, about 6 GB on disk. This takes 2 to 10 minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Judges our metrics in tests. What it asks for beside, OpenCV above all, only draws.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps lvis==0.5.3
	@touch $@
	@echo "Installed."
