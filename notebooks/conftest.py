"""How `make test` holds the notebooks' committed outputs against a fresh run (nbval)."""

import os
import tempfile

import pytest
from nbval.plugin import IPyNbFile

from mnist_mlp.data import load

collect_ignore_glob = ["*-digits.ipynb"]  # a run without MNIST, not ours to check

# What a check writes goes here, and not over the files that it is there to check.
os.environ["MNIST_MLP_OUTPUT"] = tempfile.mkdtemp(prefix="mnist-mlp-")


def pytest_collectstart(collector):
    """Compare everything but stderr, and run MNIST's notebooks only where there is MNIST."""
    if not isinstance(collector, IPyNbFile):
        return
    collector.skip_compare += ("stderr",)
    try:
        load("mnist", download=False)
    except FileNotFoundError as error:
        collector.collect = lambda reason=str(error): skip_or_fail(reason)


def skip_or_fail(reason):
    """Skip the notebook, or fail if `$REQUIRE_MNIST` says that there must be MNIST."""
    if os.environ.get("REQUIRE_MNIST"):
        pytest.fail(f"REQUIRE_MNIST is set, but {reason}", pytrace=False)
    pytest.skip(f"the notebook's outputs are NOT checked: {reason}")
