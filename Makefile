# The two commands: `make notebook` runs the main job, `make test` checks everything.
# Each sets up .venv by itself. Another Python: make PYTHON=python3.12 notebook

PYTHON ?= python3
BIN := .venv/bin
NOTEBOOK := notebooks/Handwritten-Digits-Classifier.ipynb

# This environment's kernel, not one of the user's own.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: setup notebook lab test lint page seeds ladder bench calibrate profile scaling figures mutants

setup: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	"Python 3.11 or newer is needed, found %d.%d. Try: make PYTHON=python3.12 setup" % v[:2])'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (about 2 minutes, 6 GB on Linux) ..."
	$(BIN)/python -m pip install -q -r requirements.txt -e .
	@touch $@

notebook: setup  ## execute the notebook: weights, figures and outputs anew
	$(BIN)/python notebooks/execute.py $(NOTEBOOK)

lab: setup  ## open the notebook to play with
	$(BIN)/jupyter lab $(NOTEBOOK)

# Waiting threads sleep: two that spin on a busy machine can cost tenfold.
test: setup  ## unit tests, and the notebook's committed outputs against a fresh run
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

page: setup  ## web/index.html from the best weights
	$(BIN)/python web/build.py

seeds: setup  ## the README's accuracy: five seeds of the default recipe, into a record
	$(BIN)/python benchmarks/seeds.py

ladder: setup  ## every step from the course project's recipe to the best, into a record: two hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ladder.py

profile: setup  ## where an epoch's time goes, beside the floor: a minute
	$(BIN)/python benchmarks/where_time_goes.py

mutants: setup  ## does a test notice each small break of the core? into a record: 20 minutes
	$(BIN)/python -m pip install -q mutmut==3.8.1
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/mutants.py

scaling: setup  ## seconds and memory against data, width, batch size, threads: two minutes
	$(BIN)/python benchmarks/scaling.py && $(BIN)/python benchmarks/draw.py

figures: setup  ## draw the records of `make bench` and `make scaling` anew
	$(BIN)/python benchmarks/draw.py

# The peers have an environment of their own, so that nobody else has to install them.
.venv-bench/.installed: requirements.txt benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	@echo "Installing into .venv-bench (about 2 minutes, 7 GB on Linux) ..."
	.venv-bench/bin/python -m pip install -q -c requirements.txt -r benchmarks/requirements.txt -e .
	@touch $@

bench: .venv-bench/.installed  ## everyone's way to 98.21%, side by side: half an hour
	.venv-bench/bin/python benchmarks/bench.py && .venv-bench/bin/python benchmarks/draw.py

calibrate: .venv-bench/.installed  ## before `make bench`: how many epochs each needs
	.venv-bench/bin/python benchmarks/bench.py calibrate
