# The two commands: `make notebook` runs the main job, `make test` checks everything.
# Each sets up what it needs in .venv by itself.
# Another Python: make PYTHON=python3.12 notebook
# Further options of pip, say another index, with wheels for the CPU alone: make PIP_ARGS=... notebook

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
NOTEBOOK := notebooks/Handwritten-Digits-Classifier.ipynb

# This environment's kernel, not one of the user's own.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: setup notebook lab test test-all lint page seeds ladder bench calibrate profile scaling \
	figures mutants

# The pinned versions have wheels for these.
SUPPORTED := import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 15) else \
	"Python 3.11 to 3.14 is needed, found %d.%d. Try: make PYTHON=python3.13 ..." % v[:2])

# $(call INSTALL,folder,what): an environment that was moved, or is of another Python, is made anew.
define INSTALL
@test -w . || { echo "This folder cannot be written to: copy the repository to one that can."; exit 1; }
@$(PYTHON) -c '$(SUPPORTED)'
@[ "$$(cat $(1)/folder 2>/dev/null)" = "$$PWD" ] && $(1)/bin/python -c '$(SUPPORTED)' 2>/dev/null \
	|| { $(PYTHON) -m venv --clear $(1) && pwd > $(1)/folder; }
@echo "Installing into $(1) (about 2 minutes, 6 GB on Linux with CUDA) ..."
@$(1)/bin/python -m pip install -q --no-compile $(PIP_ARGS) -c requirements.txt $(2) || { echo "pip could not \
	install what is needed. It takes a network once, or PIP_ARGS='--no-index --find-links FOLDER'."; \
	exit 1; }
@touch $@
endef

# Where there is no such environment the stamps in it do not count.
ifneq "$(shell .venv/bin/python -c '' 2>&1; cat .venv/folder 2>/dev/null)" "$(shell pwd)"
.PHONY: .venv/notebook.installed .venv/test.installed
endif

.venv/notebook.installed: requirements.txt pyproject.toml
	$(call INSTALL,.venv,-e '.[notebook]')

.venv/test.installed: requirements.txt pyproject.toml
	$(call INSTALL,.venv,-e '.[test]')
	@touch .venv/notebook.installed

setup: .venv/test.installed  ## all that any command but `make bench` needs

notebook: .venv/notebook.installed  ## execute the notebook: weights, figures and outputs anew
	$(BIN)/python notebooks/execute.py $(NOTEBOOK)

lab: .venv/notebook.installed  ## open the notebook to play with
	$(BIN)/jupyter lab $(NOTEBOOK)

test: .venv/test.installed  ## the tests, and the notebooks' committed outputs against a fresh run
	$(BIN)/python -m pytest

test-all: .venv/test.installed  ## the same, and the campaigns: hundreds of kills, thousands of files
	$(BIN)/python -m pytest -m ""

lint: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

page: .venv/notebook.installed  ## web/index.html from the best weights
	$(BIN)/python web/build.py

seeds: .venv/notebook.installed  ## the README's accuracy: five seeds of the default recipe, into a record
	$(BIN)/python benchmarks/seeds.py

ladder: .venv/notebook.installed  ## every step from the course project's recipe to the best, into a record: two hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ladder.py

profile: .venv/notebook.installed  ## where an epoch's time goes, beside the floor: a minute
	$(BIN)/python benchmarks/where_time_goes.py

mutants: .venv/test.installed  ## does a test notice each small break of the core? into a record: 20 minutes
	$(BIN)/python -m pip install -q $(PIP_ARGS) mutmut==3.8.1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/mutants.py

scaling: .venv/notebook.installed  ## seconds and memory against data, width, batch size, threads: two minutes
	$(BIN)/python benchmarks/scaling.py && $(BIN)/python benchmarks/draw.py

figures: .venv/notebook.installed  ## draw the records of `make bench` and `make scaling` anew
	$(BIN)/python benchmarks/draw.py

# The peers have an environment of their own, so that nobody else has to install them.
.venv-bench/bench.installed: requirements.txt benchmarks/requirements.txt pyproject.toml
	$(call INSTALL,.venv-bench,-r benchmarks/requirements.txt -e .)

bench: .venv-bench/bench.installed  ## everyone's way to 98.21%, side by side: half an hour
	.venv-bench/bin/python benchmarks/bench.py && .venv-bench/bin/python benchmarks/draw.py

calibrate: .venv-bench/bench.installed  ## before `make bench`: how many epochs each needs
	.venv-bench/bin/python benchmarks/bench.py calibrate
