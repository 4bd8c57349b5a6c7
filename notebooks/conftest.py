"""How `make test` compares the notebooks' committed outputs with a fresh run (nbval)."""

import os
import tempfile
from functools import partial

import pytest
from helpers import changed
from nbval.plugin import IPyNbFile

from mnist_mlp import load

# Notebooks that were executed on other data, or with other parameters; and the students' notebook,
# which has no outputs to compare: tests/test_exercises.py executes it.
collect_ignore_glob = ["*-digits.ipynb", "*-Classifier-*.ipynb", "Exercises.ipynb"]

# The published files that a notebook reads and that its compared outputs depend on.
INPUTS = {
    "How-Far-Can-It-Go.ipynb": [
        "benchmarks/accuracy/ablation.json",
        "models/enhanced_model_best.pth",
        "models/conv_net.pth",
    ],
    "What-Has-It-Learned.ipynb": [
        "benchmarks/accuracy/labels.json",
        "models/enhanced_model_best.pth",
        "models/enhanced_model_robust.pth",
    ],
    "Your-Own-Digits.ipynb": [
        "benchmarks/accuracy/handwriting.json",
        "models/enhanced_model_best.pth",
        "models/enhanced_model_handwriting.pth",
    ],
}

# A check must not overwrite the files that it checks.
os.environ["MNIST_MLP_OUTPUT"] = tempfile.mkdtemp(prefix="mnist-mlp-")


def pytest_collectstart(collector):
    """Compare everything but stderr, and only where the outputs can be compared."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)
        collector.collect = partial(collect_if_comparable, collector.path.name, collector.collect)


def collect_if_comparable(name, collect):
    """Collect a notebook's cells; skip it, or fail, if its outputs cannot be compared here."""
    reason = reason_not_to_compare(name)
    if reason:
        pytest.skip(reason)

    try:
        load("mnist", download=False)
    except FileNotFoundError as error:
        if os.environ.get("REQUIRE_MNIST"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"the notebook's outputs are NOT checked: {error}")
    except (OSError, ValueError) as error:  # MNIST is there, but it is damaged
        pytest.fail(str(error), pytrace=False)

    return collect()


def reason_not_to_compare(name):
    """Return why the outputs do not belong to the files that the notebook reads, or ""."""
    if name not in INPUTS:
        return ""

    changed_inputs = changed(*INPUTS[name])
    notebook_is_changed = changed(f"notebooks/{name}")
    if not changed_inputs or notebook_is_changed:
        return ""

    return (
        f"{', '.join(changed_inputs)} differ from what is published, the outputs of {name} do not: "
        f"`make notebook NOTEBOOK=notebooks/{name}` makes them anew"
    )
