"""README, records, weights and model cards agree, and the packages keep their import rules."""

import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
import tomllib

import nbformat
import pytest
import torch
import torchvision
from helpers import ROOT, skip_unless_published
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from mnist_mlp import EnhancedNet, Recipe, evaluate, load_weights
from mnist_mlp.checkpoint import read_card

README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS = ROOT / "models" / "enhanced_model.pth"


@pytest.fixture
def seeds():
    skip_unless_published("benchmarks/accuracy/seeds.json")
    return json.loads((ROOT / "benchmarks" / "accuracy" / "seeds.json").read_bytes())


# Accuracy


def test_seeds_record_summarises_the_default_recipe(seeds):
    assert Recipe(**seeds["recipe"]) == Recipe()
    assert [run["seed"] for run in seeds["runs"]] == [0, 1, 2, 3, 4]
    for name in ("test_accuracy", "validation_accuracy", "training_seconds"):
        values = [run[name] for run in seeds["runs"]]
        assert seeds["summary"][f"{name}_mean"] == pytest.approx(statistics.mean(values))
        assert seeds["summary"][f"{name}_stdev"] == pytest.approx(statistics.stdev(values))


def test_readme_and_notebook_quote_the_seeds_record(seeds):
    notebook = nbformat.read(ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb", 4)
    summary = seeds["summary"]
    accuracy = f"{summary['test_accuracy_mean']:.2%} ± {100 * summary['test_accuracy_stdev']:.2f}"

    assert accuracy in README
    assert accuracy in notebook.cells[0].source
    assert f"{summary['training_seconds_mean']:.0f} s" in README


def test_weights_are_as_accurate_as_their_card_says(mnist):
    """The weights may be the published ones or those of a user's own run."""
    card = read_card(WEIGHTS)
    test = evaluate(load_weights(EnhancedNet(), WEIGHTS), mnist.test)

    assert card["dataset"] == "mnist"
    # Another processor or thread count rounds differently, which can flip a borderline image.
    assert abs(test.n_correct - card["test_correct"]) <= 1


def test_published_weights_are_as_accurate_as_readme_says(mnist, seeds):
    skip_unless_published("models/enhanced_model.pth", "models/enhanced_model.json")
    card = read_card(WEIGHTS)
    test = evaluate(load_weights(EnhancedNet(), WEIGHTS), mnist.test)

    assert Recipe(**card["recipe"]) == Recipe()
    assert test.n_correct == card["test_correct"] == seeds["runs"][0]["test_correct"]
    assert f"{test.n_correct:,} of 10,000" in README


def test_readme_plain_pytorch_gives_the_models_probabilities(monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", README, re.S)
    code = next(snippet for snippet in snippets if "torch.load" in snippet)
    images = torch.randint(256, (1, 28, 28), dtype=torch.uint8)
    monkeypatch.chdir(ROOT)
    # The snippet's example image is torch.zeros(...)
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype: images)
    names = {}
    exec(code, names)

    model = load_weights(EnhancedNet(), WEIGHTS)
    expected = model.predict_proba((images / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(names["probabilities"], expected)


# Fields that are newer than some of the cards. Their defaults change nothing.
NEWER_FIELDS = {"clip_norm"}


def test_model_cards_hold_current_recipes():
    names = set(Recipe().asdict())
    for path in (ROOT / "models").glob("*.json"):
        recipe = json.loads(path.read_bytes())["recipe"]
        assert set(recipe) >= names - NEWER_FIELDS, path
        Recipe(**{name: value for name, value in recipe.items() if name in names})


# What the documents name


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 3
    for link in links:
        # Teachers remove this folder from the copies that they give to a class.
        if link.startswith("notebooks/teacher/") and not (ROOT / "notebooks/teacher").exists():
            continue
        # On GitHub, a workflow's runs have an address outside the repository's files.
        path = link.replace("../../actions/", ".github/").removesuffix("/badge.svg")
        assert (ROOT / path).exists(), link


def test_readmes_name_commands_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set()
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        commands.update(re.findall(r"`make ([a-z-]+)", text))

    assert {"notebook", "test", "bench", "ablation"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:.*##", makefile, re.M), command


# The packages


def pins() -> dict[str, str]:
    """The version of each package in requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))


def test_the_pins_are_what_is_installed_and_torch_and_torchvision_are_a_pair():
    # Without GPU support, the version of torch ends in "+cpu".
    installed = {name: Version(importlib.metadata.version(name)).public for name in pins()}
    assert installed == pins()

    # torchvision's compiled operations load only beside the matching torch.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([1.0]), 0.5).tolist() == [0]


def project() -> dict:
    """What pyproject.toml says about the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needs_of(requirement: Requirement) -> list[Requirement]:
    """What a package needs itself, and what the extras need that the requirement names."""
    if requirement.name == "mnist-mlp":
        lines = list(project()["dependencies"])
        for extra in requirement.extras:
            lines += project()["optional-dependencies"][extra]
        return [Requirement(line) for line in lines]

    needs = []
    for line in importlib.metadata.requires(requirement.name) or []:
        need = Requirement(line)
        for extra in {"", *requirement.extras}:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                needs.append(need)
    return needs


def test_everything_that_pyproject_names_is_pinned():
    extras = ",".join(project()["optional-dependencies"])
    names = {need.name for need in needs_of(Requirement(f"mnist-mlp[{extras}]"))}
    assert names - {"mnist-mlp"} <= set(pins())


def test_everything_that_is_pinned_is_downloaded_by_make_wheels():
    """It downloads what the extra `test` needs, directly or not."""
    assert "'.[test]' hatchling editables" in (ROOT / "Makefile").read_text(encoding="utf-8")

    waiting = [Requirement("mnist-mlp[test]")]
    downloaded = {}
    while waiting:
        requirement = waiting.pop()
        if str(requirement) not in downloaded:
            downloaded[str(requirement)] = canonicalize_name(requirement.name)
            waiting += needs_of(requirement)
    assert {canonicalize_name(name) for name in pins()} <= set(downloaded.values())


def test_citation_has_the_version_and_licence_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project()['version']}\n" in citation
    assert f"\nlicense: {project()['license']}\n" in citation


def test_packages_keep_the_import_rules():
    """Among others, mnist_mlp never imports mnist_lab."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 broken" in process.stdout
