"""The small study of the main notebook: what it trains, stops, records and says."""

import ast
import json
import statistics
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import ROOT, code_cells, fit_with

from mnist_mlp import EnhancedNet, Recipe, load
from mnist_mlp.research import trials, tuning

NOTEBOOK = nbformat.read(ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb", as_version=4)
RECIPE = Recipe(batch_size=64, precision="float32")
SPACE = {"learning_rate": (0.0001, 0.1, "log"), "batch_size": (32, 128), "optimizer": ["adamw"]}


@pytest.fixture(scope="module")
def digits():
    """Digits whose test set nobody can read."""
    return replace(load("digits"), test=None)


def studied(digits, space=SPACE, recipe=RECIPE, number=8, images=500):
    pytest.importorskip("optuna")
    return trials.small_study(digits, recipe, space, number, images=images)


def test_the_first_trial_is_the_recipe_on_every_nth_image(digits):
    first = studied(digits, number=1, images=len(digits.train) // 3)["trials"][0]
    torch.manual_seed(RECIPE.seed)
    every = digits.train.subset(torch.arange(0, len(digits.train), 3))
    history = fit_with(EnhancedNet(), every, digits.validation, epochs=3, batch_size=64)
    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert first["params"] == {"learning_rate": 0.005, "batch_size": 64, "optimizer": "adamw"}
    assert first["losses"] == dict(zip((1, 2, 3), losses, strict=True))
    assert first["validation_loss"] == losses[history.best_epoch - 1]


def test_a_trial_is_stopped_exactly_where_its_loss_is_above_the_median(digits):
    found = studied(digits)["trials"]
    states = [trial["state"] for trial in found]
    assert {"complete", "pruned"} == set(states)
    for i, trial in enumerate(found):
        complete = states[:i].count("complete")
        for epoch, loss in trial["losses"].items():
            earlier = [t["losses"][epoch] for t in found[:i] if t["state"] == "complete"]
            above = complete >= 3 and epoch < 3 and loss > statistics.median(earlier)
            assert above == (trial["state"] == "pruned" and epoch == max(trial["losses"]))


def test_the_best_is_the_minimum_and_a_second_study_is_the_same(digits):
    one, other = studied(digits), studied(digits)
    for record in (one, other):
        for trial in record["trials"]:
            del trial["seconds"]
    assert one == other
    losses = {t["number"]: t["validation_loss"] for t in one["trials"] if t["state"] == "complete"}
    assert one["best"] == min(losses, key=losses.get)
    assert f"{len(one['trials'])} trials, " in tuning.finding(one)
    assert f"the best validation loss {min(losses.values()):.3f}" in tuning.finding(one)


def test_a_trial_that_diverges_is_recorded_and_the_study_goes_on(digits):
    space = {"learning_rate": [0.005, 1e6], "label_smoothing": (0.0, 0.1)}
    record = studied(digits, space)
    for trial in record["trials"]:
        assert (trial["state"] == "failed") == (trial["params"]["learning_rate"] == 1e6)
    failed = [trial for trial in record["trials"] if trial["state"] == "failed"]
    assert 0 < len(failed) < len(record["trials"])
    assert all("try a tenth" in trial["failed"] for trial in failed)
    assert f", {len(failed)} diverged; the best validation loss" in tuning.finding(record)
    tuning.study_plot(record, tuning.read_record(), "DIGITS")


def test_a_study_of_which_every_trial_diverges_says_so(digits):
    record = studied(digits, {"learning_rate": [1e6]}, number=2)
    assert [trial["state"] for trial in record["trials"]] == ["failed", "failed"]
    assert record["best"] is None
    assert tuning.finding(record).startswith("no trial of 2 was completed")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rte": (0.1, 1)}, "no field 'learning_rte': did you mean 'learning_rate'?"),
        ({"learning_rate": 0.1}, r"learning_rate must have \(low, high\), .*, found 0.1"),
        ({"learning_rate": (0.1, 1, "lin")}, "learning_rate must have"),
        ({"learning_rate": (0.0, 1)}, "learning_rate must be a number above 0, found 0.0"),
        ({"learning_rate": (1, 0.1)}, "learning_rate must have a low value below the high one"),
        ({"weight_decay": (0.0, 1, "log")}, "weight_decay has a logarithmic range"),
        ({"optimizer": ["adam"]}, "optimizer must be"),
        ({"optimizer": []}, "optimizer must have"),
    ],
)
def test_an_invalid_space_is_one_sentence_before_anything_is_trained(digits, space, words):
    with pytest.raises((TypeError, ValueError), match=words):
        trials.small_study(digits, RECIPE, space)


# The section of the notebook


def section():
    cells = NOTEBOOK.cells
    first = next(i for i, c in enumerate(cells) if c.source.startswith("## 6. "))
    last = next(i for i, c in enumerate(cells) if c.source.startswith("## 7. "))
    return cells[first:last]


def test_without_optuna_the_section_is_one_sentence_and_the_rest_runs(digits, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    known = {"splits": digits, "recipe": Recipe(), "epochs": 45, "data_name": "DIGITS"}
    known |= {"trials": trials, "tuning": tuning, "plt": plt}
    for cell in code_cells(nbformat.from_dict({"cells": section()})):
        exec(cell.source, known)
    (printed,) = capsys.readouterr().out.splitlines()
    assert "pip install -e '.[tune]'" in printed
    (claim,) = [
        line for c in code_cells(NOTEBOOK) for line in c.source.splitlines()
        if line.startswith("print") and "small[" in line
    ]  # fmt: skip
    exec(claim, known)
    assert capsys.readouterr().out.endswith(": None\n")


def test_the_section_quotes_the_record_and_searches_its_space():
    record = tuning.read_record()
    text = " ".join(" ".join(c.source.split()) for c in section() if c.cell_type == "markdown")
    found, seeds = record["comparison"], record["confirmation"]["default"]
    loss, error = found["loss_difference"], 2 * found["loss_standard_error"]
    assert f"higher by {loss:.4f} ± {error:.4f} (two standard errors)" in text
    assert f"ran {len(record['trials'])} trials of about {record['seconds']} seconds each" in text
    assert ("on five fresh seeds" in text, len(seeds)) == (True, 5)
    assert not found["replace"]
    (cell,) = [c for c in section() if c.source.startswith("space = ")]
    space = ast.literal_eval(ast.parse(cell.source).body[0].value)
    assert list(space) == list(record["space"])
    for name, domain in json.loads(json.dumps(record["space"])).items():
        if "choices" in domain:
            assert set(space[name]) <= set(domain["choices"])
        else:
            assert space[name] == (domain["low"], domain["high"], "log")[: 2 + domain["log"]]
