"""How `make test` holds the notebooks' committed outputs against a fresh run (nbval)."""

import os
import tempfile

import pytest
from nbval.plugin import IPyNbFile

from mnist_mlp.data import load

collect_ignore_glob = ["*-digits.ipynb", "*-Classifier-*.ipynb"]  # on other data, not ours

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
        collector.collect = lambda found=error: skip_or_fail(found)


def skip_or_fail(error):
    """Skip the notebook if MNIST is missing; fail if it is damaged or `$REQUIRE_MNIST` is set."""
    if os.environ.get("REQUIRE_MNIST") or not isinstance(error, FileNotFoundError):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(f"the notebook's outputs are NOT checked: {error}")
