"""`make notebook`, then `make test`, on another machine than the published files were made on.

Another instruction set and number of threads stand in for it: they round differently.
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
RECIPE, SEEDS = "src/mnist_mlp/recipe.py", "benchmarks/accuracy/seeds.json"
NOTEBOOK = "notebooks/Handwritten-Digits-Classifier.ipynb"
CHECKS = [
    "notebooks/How-Far-Can-It-Go.ipynb", "notebooks/What-Has-It-Learned.ipynb",
    "notebooks/Your-Own-Digits.ipynb", "tests/notebooks", "tests/test_repository.py",
    "tests/test_ablation.py", "tests/test_pad.py",
]  # fmt: skip
# What a run of the notebook can change; the other checks have been made with other weights.
AFTER_A_RUN = [NOTEBOOK, "tests/notebooks", "tests/test_repository.py"]
SLOW = "not papermill and not run_again and not followed and not execute_py and not recompute"

pytestmark = pytest.mark.campaign


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, in a folder whose name is as awkward as a user's may be."""
    folder = tmp_path / "a copy, été"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / ".git", folder / ".git")
    return folder


def run(copy, *command) -> str:
    """Run a Python command in the copy as on the other machine; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MNIST_MLP"))}
    environment |= {
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(copy / "src"),
        "MNIST_ROOT": str(default_root().resolve()),
        "REQUIRE_MNIST": "1",
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def check(copy, *checks) -> None:
    printed = run(copy, "-m", "pytest", "-n", "0", "-q", "-k", SLOW, *checks)
    assert "the notebook's outputs are NOT checked" not in printed
    print(printed.splitlines()[-1])


def test_every_check_holds_with_other_weights_in_the_place_of_the_published_ones(copy, mnist):
    """Of another seed and of a short training, with their card: as a tweaked run might leave."""
    torch.manual_seed(1)
    model = EnhancedNet()
    recipe = Recipe(epochs=2, seed=1)
    fit(model, mnist.train, mnist.validation, recipe, progress=False)
    test = evaluate(model, mnist.test)
    card = {"dataset": "mnist", "recipe": recipe.asdict(), "test_correct": test.n_correct}
    save_weights(model, copy / WEIGHTS, **card, test_images=len(mnist.test))
    check(copy, *CHECKS)


def test_every_check_holds_for_what_make_notebook_makes_there(copy, mnist):
    """With a default recipe of fewer epochs, so that it takes a minute and not four."""
    places = {NOTEBOOK: "epochs = {}", RECIPE: "epochs: int = {}", SEEDS: '"epochs": {},'}
    for path, epochs in places.items():
        text = (copy / path).read_text(encoding="utf-8")
        assert text.count(epochs.format(45)) == 1
        changed = text.replace(epochs.format(45), epochs.format(16))
        (copy / path).write_text(changed, encoding="utf-8")
    run(copy, "notebooks/execute.py", NOTEBOOK)
    show = ["git", "show", f"HEAD:{WEIGHTS}"]
    published = subprocess.run(show, cwd=ROOT, capture_output=True, check=True).stdout
    assert (copy / WEIGHTS).read_bytes() != published  # else this would check nothing
    check(copy, *AFTER_A_RUN)
