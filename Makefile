# make help        what there is
# Every target sets the environment up first; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 5000
STAMP := $(VENV)/.installed
NEXT := .venv-hydra14
NEXT_STAMP := $(NEXT)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-thorough test-engines test-hydra-next campaign lint format docs notebook images ui clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP)  ## make the environment in .venv with the tested versions

# uv installs the 6 GB in half a minute; bytecode is compiled now, since a machine may forbid
# writing it later and every start would then compile torch anew.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode \
		--constraints constraints.txt --editable '.[all,dev,docs]'
	touch $@

demo: $(STAMP)  ## train and test a small U-T&T on the synthetic sample (no GPU, no data set)
	$(BIN)/python -m flair2_exp preset=tiny name=demo

# By file: what a module has computed once serves all its tests. In their own order: xdist's puts files
# of few tests last, which are those of long ones, and one of the two workers waits for the other.
BY_FILE := --dist loadfile --no-loadscope-reorder
test: $(STAMP)  ## every check but the thorough ones
	$(BIN)/python -m pytest -n 2 $(BY_FILE) -m 'not thorough and not engines and not campaign'

test-thorough: $(STAMP)  ## simulations, kills of whole sweeps, every option against what it changes
	$(BIN)/python -m pytest -n 2 $(BY_FILE) -m 'thorough and not engines'

# One at a time: the jobs of these tests want the machine for themselves.
test-engines: $(STAMP)  ## sweeps and searches on a real SLURM (as root, with slurm-wlm), on Ray, on slots
	$(BIN)/python -m pytest -n 0 -m engines tests/engines

test-fast: $(STAMP)  ## the checks without the slow ones
	$(BIN)/python -m pytest -n 2 -m 'not slow and not thorough and not engines and not campaign'

# Hydra's release candidate and the omegaconf it needs in place of the tested ones, all else the same;
# uv links what is in its cache, so the second environment takes seconds and little room.
$(NEXT_STAMP): pyproject.toml constraints.txt Makefile
	test -x $(NEXT)/bin/python || $(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check uv
	sed -e 's/^hydra-core==.*/hydra-core==1.4.0rc3/' -e 's/^omegaconf==.*/omegaconf>=2.4.1rc1,<2.5/' \
		-e '/^antlr4-python3-runtime==/d' constraints.txt >$(NEXT)/constraints.txt
	$(NEXT)/bin/uv pip install --quiet --python $(NEXT)/bin/python --compile-bytecode \
		--prerelease=allow --constraints $(NEXT)/constraints.txt --editable '.[all,dev]'
	touch $@

test-hydra-next: $(NEXT_STAMP)  ## config, sweeps and tuning with Hydra 1.4's release candidate
	$(NEXT)/bin/python -m pytest -n 2 $(BY_FILE) -m 'not slow and not thorough and not engines and not campaign' \
		tests/config tests/cli tests/sweeps tests/optuna_sweeper tests/test_compat.py \
		tests/test_registry.py tests/test_projects.py
	$(NEXT)/bin/python -m pytest -n 2 $(BY_FILE) -m 'not thorough and not campaign' tests/extension

campaign: $(STAMP)  ## what a suite has no time for: 100 kills of sweeps and searches, 350 bad inputs, 4 GiB
	$(BIN)/python -m pytest -n 0 -m campaign
	$(BIN)/python -m tests.campaign.bad_inputs
	$(BIN)/python -m tests.campaign.kills --kills 100

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the site, in docs/_build/html: offline, the notebook executed, warnings are errors
	GOMP_SPINCOUNT=20000 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

notebook: $(STAMP)  ## docs/notebooks/flair2.ipynb from the page of its name
	$(BIN)/jupytext --update --to ipynb docs/notebooks/flair2.md

images: $(STAMP)  ## the images of README and site anew, of one run and one sweep (a quarter of an hour)
	$(BIN)/python scripts/images.py --work outputs/images

ui: $(STAMP)  ## MLflow on 127.0.0.1:5000 (make ui PORT=5001)
	@$(BIN)/python -m flair2_exp ui --port $(PORT)

clean:  ## remove the environment and all caches; runs and data stay
	rm -rf $(VENV) $(NEXT) build dist docs/_build docs/reference/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
