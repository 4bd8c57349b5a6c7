"""`make test` passes after `make notebook` on another machine, whose weights have other bits.

Another instruction set and one thread stand in for the other machine, because they round
differently.
"""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, save_weights
from mnist_mlp.datasets import default_root

WEIGHTS = "models/enhanced_model.pth"
NOTEBOOK = "notebooks/Handwritten-Digits-Classifier.ipynb"
AFTER_A_RUN = (NOTEBOOK, "tests/test_notebooks.py", "tests/test_repository.py")
WITH_OTHER_WEIGHTS = (
    "notebooks/How-Far-Can-It-Go.ipynb",
    "notebooks/What-Can-Go-Wrong.ipynb",
    "notebooks/Try-An-Idea.ipynb",
    "notebooks/What-Has-It-Learned.ipynb",
    "notebooks/Your-Own-Digits.ipynb",
    "notebooks/teacher/Exercises-with-solutions.ipynb",
    "tests/test_ablation.py",
    "tests/test_notebooks.py",
    "tests/test_pad.py",
    "tests/test_repository.py",
)
NOT_COPIED = (
    ".venv*",
    ".*cache",
    "__pycache__",
    ".hypothesis",
    "data",
    "site",
    "wheels",
    "*.egg-info",
)

pytestmark = pytest.mark.campaign  # both take minutes: `make test-all`


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, in a folder whose name has spaces and an accent."""
    folder = tmp_path / "a copy, été"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


def run(copy, *command) -> str:
    """Run a Python command in the copy as on the other machine; return what it printed."""
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(copy / "src"),
        "MNIST_ROOT": str(default_root().resolve()),
    }
    # These would tell the inner pytest and the notebook about the outer run.
    for name in os.environ:
        if name.startswith(("PYTEST", "MNIST_MLP")):
            del environment[name]

    command = [sys.executable, *command]
    process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_checks_pass_with_other_weights(copy, mnist):
    """The weights are those of a short training with another seed, as a modified run may leave."""
    torch.manual_seed(1)
    model = EnhancedNet()
    train = mnist.train.subset(torch.arange(5_000))
    recipe = Recipe(epochs=2, seed=1)
    fit(model, train, mnist.validation, recipe, progress=False)
    test = evaluate(model, mnist.test)
    card = {"dataset": "mnist", "recipe": recipe.asdict(), "test_correct": test.n_correct}
    save_weights(model, copy / WEIGHTS, **card, test_images=len(mnist.test))

    printed = run(copy, "-m", "pytest", "-n", "0", "-q", *WITH_OTHER_WEIGHTS)
    assert "enhanced_model.pth differ from what is published" in printed


def test_checks_pass_after_make_notebook(copy, mnist):
    """The training takes four minutes on two cores, and the checks repeat it."""
    published = (copy / WEIGHTS).read_bytes()
    run(copy, "notebooks/execute.py", NOTEBOOK)
    assert (copy / WEIGHTS).read_bytes() != published

    run(copy, "-m", "pytest", "-n", "0", "-q", *AFTER_A_RUN)
