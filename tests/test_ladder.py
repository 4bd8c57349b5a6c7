"""The ladder: its record is of what its script runs, and everything quoted is in the record."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import matplotlib
from helpers import assert_same_picture, published

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from scipy.stats import ttest_rel

from mnist_mlp import checkpoint, plots
from mnist_mlp import notebook as nb
from mnist_mlp.corrupt import CORRUPTIONS, corrupt
from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import ConvNet, EnhancedNet
from mnist_mlp.train import default_settings

ROOT = Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "How-Far-Can-It-Go.ipynb"
RECORD = json.loads((ROOT / "benchmarks" / "ladder.json").read_bytes())
PUBLISHED = {"enhanced_model_best.pth": EnhancedNet, "conv_net.pth": ConvNet}


@pytest.fixture(autouse=True)
def as_published():
    """All here is about what is published: not about a user's own `make ladder`."""
    weights = [f"models/{path}" for path in PUBLISHED]
    cards = [path.replace(".pth", ".json") for path in weights]
    published("benchmarks/ladder.json", *weights, *cards)


@pytest.fixture
def ladder(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ladder

    return ladder


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_record_is_of_the_rungs_that_the_script_would_train(ladder):
    assert {name: rung["recipe"] for name, rung in RECORD["rungs"].items()} == ladder.RUNGS
    for rung in RECORD["rungs"].values():
        assert [run["seed"] for run in rung["runs"]] == list(ladder.SEEDS) == [0, 1, 2, 3, 4]
        for run in rung["runs"]:
            assert len(run["test_wrong"]) == RECORD["test_images"] - run["test_correct"]
            assert list(run["corrupted"]) == list(CORRUPTIONS)
    assert ladder.RUNGS["elastic warps"] == {}  # the published recipe


def test_the_best_recipe_was_chosen_on_validation(ladder):
    validation = {
        name: mean(run["validation_accuracy"] for run in rung["runs"])
        for name, rung in RECORD["rungs"].items()
        if rung["recipe"].get("model") != "ConvNet"
    }
    assert RECORD["best"] == ladder.BEST
    assert validation[ladder.BEST] >= max(validation.values()) - 1e-9  # level with "long"
    assert ladder.PUBLISHED == {ladder.BEST: "enhanced_model_best.pth", "ConvNet": "conv_net.pth"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_are_those_of_seed_0_and_score_what_the_record_says(mnist, name):
    path = ROOT / "models" / name
    card = json.loads(path.with_suffix(".json").read_bytes())
    run = RECORD["rungs"][card["rung"]]["runs"][0]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert card["recipe"] == RECORD["rungs"][card["rung"]]["recipe"] | {"seed": 0}
    model = checkpoint.load(PUBLISHED[name](), path)
    test = evaluate(model, mnist.test)
    assert test.n_correct == run["test_correct"] == card["test_correct"]
    assert (~test.correct).nonzero()[:, 0].tolist() == run["test_wrong"]
    assert not nb.right(run, len(mnist.test))[run["test_wrong"]].any()
    assert nb.right(run, len(mnist.test)).sum() == test.n_correct
    found = evaluate(model, corrupt(mnist.test, "stripe")).n_correct
    assert found == run["corrupted"]["stripe"]
    temperature = evaluate(model, mnist.validation).temperature()
    assert temperature == pytest.approx(run["temperature"], rel=1e-3)
    scaled = test.scaled(temperature).calibration()["ece"]
    assert scaled == pytest.approx(run["test_ece_scaled"], abs=1e-4)


def test_the_table_compares_with_the_rung_that_is_named(capsys):
    rows = {
        cells[0]: cells
        for cells in (row.strip("| ").split(" | ") for row in nb.ladder_table(RECORD).splitlines())
    }
    counts = {
        name: np.array([run["test_correct"] for run in rung["runs"]])
        for name, rung in RECORD["rungs"].items()
    }
    for name, rung in RECORD["rungs"].items():
        assert (
            rows[name][1]
            == f"{counts[name].mean() / 1e4:.2%} ± {counts[name].std(ddof=1) / 100:.2f}"
        )
        if before := rung["step_from"]:
            assert rows[name][4] == before
            points = (counts[name].mean() - counts[before].mean()) / 100
            assert rows[name][5] == f"{points:+.2f}"
            assert rows[name][6] == f"{ttest_rel(counts[name], counts[before]).pvalue:.1g}"


def test_readmes_quote_the_record():
    table = nb.ladder_table(RECORD)
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for line in table.splitlines():
        assert line in readme
    accuracy = table[table.index(f"| {RECORD['best']} |") :].split(" | ")[1]
    assert f"**{accuracy}**" in (ROOT / "README.md").read_text(encoding="utf-8")
    correct = RECORD["rungs"][RECORD["best"]]["runs"][0]["test_correct"]
    assert f"{correct:,} of 10,000" in (ROOT / "README.md").read_text(encoding="utf-8")


# The notebook


def test_every_output_is_compared(committed):
    for cell in code_cells(committed):
        assert set(cell.metadata.get("tags", [])) <= {"parameters"}


def test_the_published_notebook_reads_records_and_recomputes_nothing(committed):
    (cell,) = [c for c in code_cells(committed) if "parameters" in c.metadata.get("tags", [])]
    found = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert found == {"dataset": "mnist", "recompute": ""}


@pytest.mark.parametrize("name", ["ladder", "corruptions"])
def test_the_committed_figure_is_of_the_record(committed, name, tmp_path, monkeypatch):
    published(f"figures/{name}.png")
    monkeypatch.chdir(PATH.parent)
    (cell,) = [c for c in code_cells(committed) if f"figures/{name}.png" in c.source]
    names = {"plots": plots, "plt": plt, "np": np, "mean": mean, "CORRUPTIONS": CORRUPTIONS}
    names |= {"rungs": RECORD["rungs"], "images": RECORD["test_images"]}
    names |= {"output": lambda *_: tmp_path / "new.png"}
    plots.use_style()
    exec(cell.source, names)
    plt.close("all")
    assert_same_picture(tmp_path / "new.png", ROOT / f"figures/{name}.png")


@pytest.mark.campaign
def test_recompute_trains_a_rung_anew(tmp_path, mnist):
    """The cell itself, on a record whose rung is one short run of two seeds."""
    cell = next(c for c in nbformat.read(PATH, 4).cells if "if recompute:" in c.source)
    from mnist_mlp.sweep import sweep

    recipe = {"epochs": 1, "augment": 0.0, "batch_size": 2048}
    runs = sweep([recipe | {"seed": seed} for seed in (0, 1)], tmp_path / "first")
    rung = {"recipe": recipe, "runs": [{"seed": s} | run for s, run in enumerate(runs)]}
    names = {"rungs": {"short": rung}, "recompute": "short", "mean": mean, "sweep": sweep}
    exec(cell.source, names | {"output": lambda name: tmp_path / name})
    assert len(list(tmp_path.glob("benchmarks/again/*.json"))) == 2
    for run in rung["runs"]:
        run["validation_accuracy"] += 0.01
    with pytest.raises(AssertionError):
        exec(cell.source, names | {"output": lambda name: tmp_path / name})


def test_an_unknown_rung_stops_with_one_sentence(tmp_path, mnist):
    command = [sys.executable, "-m", "papermill", PATH, tmp_path / "out.ipynb"]
    command += ["--no-progress-bar", "-p", "recompute", "longest"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MNIST_MLP_OUTPUT": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode
    assert re.search(
        r"recompute must be one of \['plain Adam', ", done.stderr.strip().splitlines()[-1]
    )


def test_the_default_recipe_is_a_rung():
    """So that the main notebook's network has its place on the ladder."""
    assert {} in [rung["recipe"] for rung in RECORD["rungs"].values()]
    assert default_settings()["augment"] == 1.0
