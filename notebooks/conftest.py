"""How `make test` compares the notebooks' committed outputs with a fresh run (nbval)."""

import os
import tempfile

import pytest
from helpers import changed
from nbval.plugin import IPyNbFile

from mnist_mlp import load

collect_ignore_glob = ["*-digits.ipynb", "*-Classifier-*.ipynb"]  # on other data, not ours

# Published files that outputs which are compared exactly depend on.
READS = {
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

# What a check writes goes here, and not over the files that it is there to check.
os.environ["MNIST_MLP_OUTPUT"] = tempfile.mkdtemp(prefix="mnist-mlp-")


def pytest_collectstart(collector):
    """Compare everything but stderr, and run MNIST's notebooks only where there is MNIST."""
    if not isinstance(collector, IPyNbFile):
        return
    collector.skip_compare += ("stderr",)
    try:
        load("mnist", download=False)
    except (OSError, ValueError) as error:
        collector.collect = lambda error=error: skip_or_fail(error)

    stale = outputs_of_others(collector.path.name)
    if stale:
        collector.collect = lambda: pytest.skip(stale)


def skip_or_fail(error):
    """Skip the notebook if MNIST is missing; fail if it is damaged or `$REQUIRE_MNIST` is set."""
    if os.environ.get("REQUIRE_MNIST") or not isinstance(error, FileNotFoundError):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(f"the notebook's outputs are NOT checked: {error}")


def outputs_of_others(name):
    """Return why a notebook's outputs cannot be compared, if they are of others than it reads."""
    if name not in READS:
        return ""
    changed_files = changed(*READS[name])
    if not changed_files or changed(f"notebooks/{name}"):
        return ""
    return (
        f"{', '.join(changed_files)} differ from what is published, the outputs of {name} do not: "
        f"`make notebook NOTEBOOK=notebooks/{name}` makes them anew"
    )
