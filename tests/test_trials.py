"""The small study of the main notebook: what it trains, stops, records and says."""

import ast
import statistics
import sys
from dataclasses import replace

import nbformat
import pytest
import torch
from helpers import ROOT, fit_with

from mnist_lab.research import trials, tuning
from mnist_mlp import EnhancedNet, Recipe, load

pytest.importorskip("optuna")
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb", as_version=4)
RECIPE = Recipe(batch_size=64, precision="float32")
SPACE = {"learning_rate": (0.0001, 0.1, "log"), "batch_size": (32, 128), "optimizer": ["adamw"]}


@pytest.fixture(scope="module")
def digits():
    """Digits whose test set nobody can read."""
    return replace(load("digits"), test=None)


def study(digits, space=SPACE, number=8, images=500) -> dict:
    return trials.small_study(digits, RECIPE, space, number, images=images)


def test_small_study_begins_with_the_recipe(digits):
    first = study(digits, number=1, images=len(digits.train) // 3)["trials"][0]
    torch.manual_seed(RECIPE.seed)
    every_third = digits.train.subset(torch.arange(0, len(digits.train), 3))
    history = fit_with(EnhancedNet(), every_third, digits.validation, epochs=3, batch_size=64)
    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert first["params"] == {"learning_rate": 0.005, "batch_size": 64, "optimizer": "adamw"}
    assert first["losses"] == dict(zip((1, 2, 3), losses, strict=True))
    assert first["validation_loss"] == losses[history.best_epoch - 1]


def test_small_study_stops_trials_above_the_median(digits):
    records = study(digits)["trials"]
    states = [record["state"] for record in records]
    assert set(states) == {"complete", "pruned"}
    for i, record in enumerate(records):
        n_complete = states[:i].count("complete")
        for epoch, loss in record["losses"].items():
            earlier = [r["losses"][epoch] for r in records[:i] if r["state"] == "complete"]
            is_above = n_complete >= 3 and epoch < 3 and loss > statistics.median(earlier)
            is_last_of_pruned = record["state"] == "pruned" and epoch == max(record["losses"])
            assert is_above == is_last_of_pruned


def test_small_study_is_reproducible_and_its_best_is_the_minimum(digits):
    one = study(digits)
    other = study(digits)
    for record in [*one["trials"], *other["trials"]]:
        assert record.pop("seconds") > 0
    assert one == other

    losses = {t["number"]: t["validation_loss"] for t in one["trials"] if t["state"] == "complete"}
    assert one["best"] == min(losses, key=losses.get)
    assert f"{min(losses.values()):.3f}" in tuning.finding(one)


def test_small_study_records_diverging_trials_and_goes_on(digits):
    record = study(digits, {"learning_rate": [0.005, 1e6], "label_smoothing": (0.0, 0.1)})
    for trial in record["trials"]:
        assert (trial["state"] == "failed") == (trial["params"]["learning_rate"] == 1e6)
    n_failed = sum(trial["state"] == "failed" for trial in record["trials"])
    assert 0 < n_failed < len(record["trials"])
    assert f"{n_failed} diverged" in tuning.finding(record)
    tuning.study_plot(record, tuning.read_record(), "DIGITS")


def test_small_study_of_diverging_trials_has_no_best(digits):
    record = study(digits, {"learning_rate": [1e6]}, number=2)
    assert [trial["state"] for trial in record["trials"]] == ["failed", "failed"]
    assert record["best"] is None
    assert "no trial of 2" in tuning.finding(record)


@pytest.mark.parametrize(
    "space",
    [
        {"learning_rte": (0.1, 1)},
        {"learning_rate": 0.1},
        {"learning_rate": (0.1, 1, "lin")},
        {"learning_rate": (0.0, 1)},
        {"learning_rate": (1, 0.1)},
        {"weight_decay": (0.0, 1, "log")},
        {"optimizer": ["adam"]},
        {"optimizer": []},
    ],
)
def test_small_study_refuses_an_invalid_space(digits, space, monkeypatch):
    monkeypatch.setattr(trials, "fit", None)  # nothing may be trained
    with pytest.raises((TypeError, ValueError), match=next(iter(space))):
        trials.small_study(digits, RECIPE, space)


def test_small_study_without_optuna_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        study(digits)


def test_try_learning_rates_normalises_as_told(digits):
    """With the usual normalisation it is the usual training, but for rounding."""
    recipe = Recipe(epochs=3, batch_size=64, precision="float32", augment_strength=0.0)
    rates = (0.001, 0.01)
    usual = {}
    for rate in rates:
        torch.manual_seed(recipe.seed)
        trial = replace(recipe, learning_rate=rate)
        history = fit_with(EnhancedNet(), digits.train, digits.validation, **trial.asdict())
        usual[rate] = history.validation_accuracy
    assert tuning.try_learning_rates(digits, recipe, rates) == pytest.approx(usual, abs=0.05)

    network = tuning.OtherNormalisation(10, mean=0.5, std=0.25)
    pixels, _, _ = digits.train.get_batch(torch.arange(7))
    expected = network.network((digits.train.images[:7].flatten(1) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(network(pixels), expected, rtol=1e-4, atol=1e-5)


def section() -> list:
    """The cells of the notebook's section about tuning."""
    cells = NOTEBOOK.cells
    first = next(i for i, c in enumerate(cells) if c.source.startswith("## 6. "))
    last = next(i for i, c in enumerate(cells) if c.source.startswith("## 7. "))
    return cells[first:last]


def test_notebook_quotes_the_record_of_the_study_and_has_its_space():
    record = tuning.read_record()
    text = " ".join(" ".join(c.source.split()) for c in section() if c.cell_type == "markdown")
    comparison = record["comparison"]
    loss = comparison["loss_difference"]
    error = 2 * comparison["loss_standard_error"]
    assert f"{loss:.4f} ± {error:.4f}" in text
    assert f"{len(record['trials'])} trials of about {record['seconds']} seconds" in text
    assert not comparison["replace"]

    (cell,) = [c for c in section() if c.source.startswith("space = ")]
    space = trials.describe_space(ast.literal_eval(ast.parse(cell.source).body[0].value))
    for name, domain in record["space"].items():
        if "choices" in domain:
            assert set(space[name]["choices"]) <= set(domain["choices"])
        else:
            assert space[name] == domain
