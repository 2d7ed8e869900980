# make lab    opens JupyterLab on your own copy of the first notebook
# make test   runs the suite, notebooks included
# Both make .venv and install into it first, once; `make help` lists the rest.

VENV ?= .venv
PYTHON ?=
# The exact versions that CI runs; `make test CONSTRAINTS=` takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
TORCH_INDEX ?=
PORT ?= 8888
BROWSER ?= yes
WORK ?= work
PARTS ?=

setup = VENV='$(VENV)' PYTHON='$(PYTHON)' CONSTRAINTS='$(CONSTRAINTS)' TORCH_INDEX='$(TORCH_INDEX)' sh .ci/setup
# JupyterLab refuses root unless told; in a container root is the usual user.
as_root = $(if $(filter 0,$(shell id -u)),--allow-root)
no_browser = $(if $(filter no,$(BROWSER)),--no-browser)

.PHONY: help lab test test-all lint format refresh release-check clean
.DEFAULT_GOAL := help

help:
	@echo "make lab      set up once, then open JupyterLab on your own copies of the notebooks (work/)"
	@echo "make test     set up once, then run the suite, notebooks included; PARTS='unit notebooks' only those"
	@echo "make test-all the same with what a week runs: every layout, every suspect, and coverage"
	@echo "make lint     ruff and the import contract"
	@echo "make format   put code and notebooks into the house format"
	@echo "make refresh  draw the pictures, the cheat sheet and the index of questions again (needs Chromium)"
	@echo "make release-check  what may wait until a release: translations that are older than their English"
	@echo "make clean    remove .venv and caches; never work/"
	@echo
	@echo "options: TORCH_INDEX=<url> a CPU-only torch; PYTHON=<path>; VENV=<folder> ($(VENV));"
	@echo "         PORT=<number> ($(PORT)); BROWSER=no do not open one; WORK=<folder> ($(WORK));"
	@echo "         CONSTRAINTS= the newest versions that are allowed"

lab:
	@$(setup) lab
	@'$(VENV)/bin/python' -m picolab.lab.workcopy --work '$(WORK)'
	@exec '$(VENV)/bin/python' -m jupyterlab --ServerApp.root_dir='$(WORK)' --port=$(PORT) --log-level=WARN \
		--LabApp.default_url=/lab/tree/00_start_here.ipynb $(as_root) $(no_browser)

test:
	@$(setup) test
	@'$(VENV)/bin/python' .ci/suite.py $(PARTS)

test-all:
	@$(setup) test
	@'$(VENV)/bin/python' .ci/suite.py --all $(PARTS)

lint:
	@$(setup) test
	'$(VENV)/bin/ruff' check .
	'$(VENV)/bin/ruff' format --check .
	'$(VENV)/bin/lint-imports'

format:
	@$(setup) test
	'$(VENV)/bin/ruff' check --fix .
	'$(VENV)/bin/ruff' format .
	'$(VENV)/bin/python' tests/notebooks/test_format.py --fix
	'$(VENV)/bin/python' tests/unit/test_where_is.py --fix

refresh:
	@$(setup) test
	'$(VENV)/bin/python' tests/browser/refresh_pictures.py

release-check:
	@$(setup) test
	'$(VENV)/bin/picolab' quiz lint --strict

clean:
	rm -rf .venv build dist htmlcov .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find picolab tests -name __pycache__ -type d -prune -exec rm -rf {} +
