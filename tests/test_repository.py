"""What the repository says of itself is what it holds."""

import importlib.metadata
import json
import re
import statistics
import subprocess
import sys

import nbformat
import pytest
import torch
import torchvision
from helpers import ROOT, published

from mnist_mlp import EnhancedNet, Recipe, evaluate, load_weights
from mnist_mlp.checkpoint import read_card

README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS = ROOT / "models" / "enhanced_model.pth"


@pytest.fixture
def seeds():
    published("benchmarks/accuracy/seeds.json")
    return json.loads((ROOT / "benchmarks" / "accuracy" / "seeds.json").read_bytes())


def test_the_record_is_of_the_default_recipe_over_five_seeds(seeds):
    assert Recipe(**seeds["recipe"]) == Recipe()
    assert [run["seed"] for run in seeds["runs"]] == [0, 1, 2, 3, 4]
    for name in ("test_accuracy", "validation_accuracy", "training_seconds"):
        values = [run[name] for run in seeds["runs"]]
        assert seeds["summary"][f"{name}_mean"] == pytest.approx(statistics.mean(values))
        assert seeds["summary"][f"{name}_stdev"] == pytest.approx(statistics.stdev(values))


def test_readme_and_notebook_quote_the_record(seeds):
    summary = seeds["summary"]
    quoted = f"{summary['test_accuracy_mean']:.2%} ± {100 * summary['test_accuracy_stdev']:.2f}"
    assert quoted in README
    notebook = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"
    assert quoted in nbformat.read(notebook, as_version=4).cells[0].source
    assert f"{summary['training_seconds_mean']:.0f} s" in README


def test_the_weights_are_those_of_their_card(mnist):
    """The published ones, or those of a user's own run."""
    card = read_card(WEIGHTS)
    assert card["dataset"] == "mnist"
    test = evaluate(load_weights(EnhancedNet(), WEIGHTS), mnist.test)
    # Another processor or thread count rounds differently: one image may lie on the border.
    assert abs(test.n_correct - card["test_correct"]) <= 1


def test_the_published_weights_have_right_what_readme_says(mnist, seeds):
    published("models/enhanced_model.pth", "models/enhanced_model.json")
    card = read_card(WEIGHTS)
    assert Recipe(**card["recipe"]) == Recipe()
    test = evaluate(load_weights(EnhancedNet(), WEIGHTS), mnist.test)
    assert test.n_correct == card["test_correct"] == seeds["runs"][0]["test_correct"]
    assert f"{test.n_correct:,} of 10,000" in README


def test_the_readmes_plain_pytorch_gives_the_models_probabilities(monkeypatch):
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "torch.load" in c)
    images = torch.randint(256, (20, 28, 28), dtype=torch.uint8)
    monkeypatch.chdir(ROOT)
    example = "torch.zeros(1, 28, 28, dtype=torch.uint8)"
    assert example in code
    names = {"given": images}
    exec(code.replace(example, "given"), names)
    model = load_weights(EnhancedNet(), WEIGHTS)
    expected = model.predict_proba((images / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(names["probabilities"], expected)


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 3
    for link in links:  # on GitHub a workflow's runs have the address of the repository
        workflow = re.match(r"\.\./\.\./actions/(workflows/[\w-]+\.yml)", link)
        assert (ROOT / (f".github/{workflow[1]}" if workflow else link)).exists(), link


def test_the_pins_are_what_is_installed_and_torch_and_torchvision_are_a_pair():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
    assert tuple(map(int, pins["torch"].split(".")[:2])) >= (2, 14)
    assert {name: importlib.metadata.version(name) for name in pins} == pins
    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [0]  # needs torchvision's C++ side


# The house


def test_nothing_imports_against_the_rules():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_lab_is_never_needed_by_the_core():
    code = "import sys, mnist_mlp, mnist_mlp.notebook, mnist_mlp.plots; "
    code += "sys.exit(any(name.startswith('mnist_lab') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cards_hold_recipes_of_today():
    for path in (ROOT / "models").glob("*.json"):
        recipe = json.loads(path.read_bytes())["recipe"]
        assert set(recipe) >= set(Recipe().asdict()), path
        Recipe(**{name: recipe[name] for name in Recipe().asdict()})


def test_the_readmes_own_names_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
    documents = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    named = set(re.findall(r"`make ([a-z-]+)", documents))
    assert {"notebook", "test", "bench", "ablation"} <= named
    for target in named:
        assert re.search(rf"^{target}:.*##", makefile, re.M), target
