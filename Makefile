# `make notebook` runs the main notebook, `make test` checks everything. Both set up .venv on first use.
# Another Python: make PYTHON=python3.12 notebook
# More options for pip, such as PyTorch's index with wheels for the CPU alone:
#     make PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" notebook

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
NOTEBOOK := notebooks/Handwritten-Digits-Classifier.ipynb

# This environment's kernel, not one of the user's own.
export JUPYTER_PREFER_ENV_PATH := 1

# Threads that wait for others soon sleep, so that two trainings at once do not disturb each other.
# mnist_mlp sets this too, but a script may import torch before.
export GOMP_SPINCOUNT ?= 1000

# Containers often set this, and then every process compiles all modules again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup notebook lab test test-all lint wheels address page site exercises slides \
	seeds ideas ablation handwriting generalisation read-folder labels profile \
	scaling figures speedrun speedrun-ideas bench tune tune-baselines

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

# The pinned versions have wheels for these.
SUPPORTED := import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 15) else \
	"Python 3.11 to 3.14 is needed, found %d.%d. Try: make PYTHON=python3.13 ..." % v[:2])

# $(call INSTALL,folder,what): makes the environment anew if it was moved or is of another Python.
define INSTALL
@test -w . || { echo "This folder cannot be written to: copy the repository to one that can."; exit 1; }
@"$(PYTHON)" -c '$(SUPPORTED)'
@[ "$$(cat $(1)/folder 2>/dev/null)" = "$$PWD" ] && $(1)/bin/python -c '$(SUPPORTED)' 2>/dev/null \
	|| { "$(PYTHON)" -m venv --clear $(1) && pwd > $(1)/folder; }
@echo "Installing into $(1) (about 2 minutes, 6 GB on Linux with CUDA) ..."
@$(1)/bin/python -m pip install -q --no-compile $(PIP_ARGS) -c requirements.txt $(2) || { echo "pip could not \
	install what is needed. It takes a network once, or PIP_ARGS='--no-index --find-links wheels' \
	with the folder that \`make wheels\` fills."; \
	exit 1; }
@touch $@
endef

# What few commands need beyond the notebooks' packages.
EXTRAS := .venv/class.installed .venv/site.installed .venv/understand.installed

# Without a valid environment the stamps in it do not count.
ifneq "$(shell .venv/bin/python -c '' 2>&1; cat .venv/folder 2>/dev/null)" "$(shell pwd)"
.PHONY: $(EXTRAS) .venv/notebook.installed .venv/test.installed
endif

.venv/notebook.installed: requirements.txt pyproject.toml
	$(call INSTALL,.venv,-e '.[notebook]')

$(EXTRAS): .venv/%.installed: .venv/notebook.installed
	$(call INSTALL,.venv,-e '.[$*]')

.venv/test.installed: requirements.txt pyproject.toml
	$(call INSTALL,.venv,-e '.[test]')
	@touch .venv/notebook.installed $(EXTRAS)

notebook: .venv/notebook.installed  ## execute the main notebook: weights, figures and outputs
	$(BIN)/python notebooks/execute.py $(NOTEBOOK)

lab: .venv/notebook.installed  ## open the main notebook in JupyterLab, beside the code
	$(BIN)/jupyter lab --ServerApp.root_dir=. $(NOTEBOOK)

test: .venv/test.installed  ## run the tests and compare the notebooks' outputs with a fresh run
	$(BIN)/python -m pytest

test-all: .venv/test.installed  ## the same with all long fault-injection tests: half an hour
	$(BIN)/python -m pytest -m ""

lint: .venv/test.installed  ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: .venv/test.installed  ## install everything that these commands need, except for bench

# hatchling and editables build this package: pip installs them, too.
wheels:  ## download what setup installs into wheels/, for machines without network: 3 minutes
	@"$(PYTHON)" -c '$(SUPPORTED)'
	"$(PYTHON)" -m venv --clear wheels/pip
	wheels/pip/bin/python -m pip wheel -q -w wheels $(PIP_ARGS) -c requirements.txt '.[test]' hatchling editables
	rm -r wheels/pip && du -sh wheels

address:  ## write the repository's address into all files that need it: URL=https://github.com/you/mnist
	@"$(PYTHON)" notebooks/address.py "$(URL)"

page: .venv/notebook.installed  ## build web/index.html from the published weights
	$(BIN)/python web/build.py

site: .venv/site.installed  ## build site/: the page, the notebooks and the API reference as HTML
	rm -rf site && $(BIN)/python web/build_site.py site

exercises: .venv/class.installed  ## make notebooks/Exercises.ipynb from the notebook with the solutions
	$(BIN)/python notebooks/teacher/make_exercises.py

# A browser loads reveal.js and require.js from the network when it shows the slides, unless they are in slides/:
# npm install --prefix slides reveal.js@4.0.2 requirejs@2.3.7 jquery@2.2.4
LOCAL_REVEAL := $(if $(wildcard slides/node_modules/reveal.js),--SlidesExporter.reveal_url_prefix=node_modules/reveal.js \
	--SlidesExporter.require_js_url=node_modules/requirejs/require.js \
	--SlidesExporter.jquery_url=node_modules/jquery/dist/jquery.min.js)

slides: .venv/notebook.installed  ## build slides/ for a talk; to show them, the browser needs a network, or reveal.js in slides/
	$(BIN)/jupyter nbconvert --to slides --output-dir slides notebooks/What-Can-Go-Wrong.ipynb \
		--no-prompt --SlidesExporter.reveal_scroll=True --SlidesExporter.reveal_transition=none \
		--SlidesExporter.reveal_width=1200 --SlidesExporter.reveal_height=750 $(LOCAL_REVEAL) \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=slides-hide-code

seeds: .venv/notebook.installed  ## accuracy of the default recipe over five seeds: 5 minutes
	$(BIN)/python benchmarks/accuracy/seeds.py

ideas: .venv/notebook.installed  ## what each idea gives on short trainings, on validation: 40 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy/ideas.py

tune: .venv/notebook.installed  ## search for a better default recipe, on validation: 12 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy/tune.py

ablation: ideas  ## from the course project's recipe to the best and the most robust: 3 hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy/ablation.py

handwriting: .venv/notebook.installed  ## a network for the handwriting of many countries: 15 minutes
	$(BIN)/python benchmarks/accuracy/handwriting.py

generalisation: .venv/notebook.installed  ## read pictures of many kinds, beside the usual tutorial: 3 minutes
	$(BIN)/python benchmarks/accuracy/generalisation.py

read-folder: .venv/notebook.installed  ## the same for your pictures: FOLDER=folder with labels.csv
	$(BIN)/python benchmarks/accuracy/generalisation.py "$(FOLDER)"

labels: .venv/understand.installed  ## MNIST's training labels that are probably wrong: 2 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy/labels.py

profile: .venv/notebook.installed  ## the parts of an epoch, compared with its floor: 1 minute
	$(BIN)/python benchmarks/speed/epoch_profile.py

scaling: .venv/notebook.installed  ## time and memory against data, width, batch size, threads: 2 minutes
	$(BIN)/python benchmarks/speed/scaling.py && $(BIN)/python benchmarks/speed/figures.py

speedrun: .venv/notebook.installed  ## train to more than 98.21% in under a second
	$(BIN)/python benchmarks/speed/speedrun.py

speedrun-ideas: .venv/notebook.installed  ## what each idea of the speedrun gives: 2 minutes
	$(BIN)/python benchmarks/speed/speedrun_ideas.py

figures: .venv/notebook.installed  ## draw the records of bench and scaling again
	$(BIN)/python benchmarks/speed/figures.py

# The baselines have an environment of their own, so that nobody else has to install them.
.venv-bench/bench.installed: requirements.txt benchmarks/speed/requirements.txt pyproject.toml
	$(call INSTALL,.venv-bench,-r benchmarks/speed/requirements.txt -e .)

bench: .venv-bench/bench.installed  ## time to 98.21% against other libraries: 24 minutes
	.venv-bench/bin/python benchmarks/speed/bench.py && .venv-bench/bin/python benchmarks/speed/figures.py

tune-baselines: .venv-bench/bench.installed  ## before bench: how many epochs each library needs
	.venv-bench/bin/python benchmarks/speed/bench.py tune
