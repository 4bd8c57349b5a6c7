"""A small study trains what it says, stops bad trials early, and records every trial."""

import statistics
import sys
from dataclasses import replace

import pytest
import torch

from mnist_lab.research import trials, tuning
from mnist_mlp import EnhancedNet, Recipe, fit, load

pytest.importorskip("optuna")
RECIPE = Recipe(batch_size=64, precision="float32")
SPACE = {"learning_rate": (0.0001, 0.1, "log"), "batch_size": (32, 128), "optimizer": ["adamw"]}


@pytest.fixture(scope="module")
def digits():
    """Digits without a test set, which a study must not read."""
    return replace(load("digits"), test=None)


def small_study(digits, space, number=8, images=500) -> dict:
    return trials.small_study(digits, RECIPE, space, number, images=images)


@pytest.fixture(scope="module")
def study(digits) -> dict:
    return small_study(digits, SPACE)


def test_small_study_begins_with_the_recipe(digits, study):
    torch.manual_seed(RECIPE.seed)
    generator = torch.Generator().manual_seed(RECIPE.seed)
    chosen = torch.randperm(len(digits.train), generator=generator)[:500]
    some_images = digits.train.subset(chosen.sort().values)
    recipe = replace(RECIPE, epochs=3)
    history = fit(EnhancedNet(), some_images, digits.validation, recipe, progress=False)

    first = study["trials"][0]
    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert first["params"] == {"learning_rate": 0.005, "batch_size": 64, "optimizer": "adamw"}
    assert first["losses"] == dict(zip((1, 2, 3), losses, strict=True))
    assert first["validation_loss"] == losses[history.best_epoch - 1]


def test_small_study_searches_the_whole_space(study):
    rates = [trial["params"]["learning_rate"] for trial in study["trials"]]
    assert 0.0001 <= min(rates) < max(rates) <= 0.1
    assert sum(rate < 0.01 for rate in rates) >= 4  # the range is logarithmic
    assert all(isinstance(trial["params"]["batch_size"], int) for trial in study["trials"])
    assert study["space"] == {
        "learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
        "batch_size": {"low": 32, "high": 128, "log": False},
        "optimizer": {"choices": ["adamw"]},
    }


def test_small_study_stops_trials_above_the_median(study):
    """After three complete trials, one stops in epoch 1 or 2 if its loss is above the median."""
    records = study["trials"]
    assert {record["state"] for record in records} == {"complete", "pruned"}

    for i, record in enumerate(records):
        complete = [earlier for earlier in records[:i] if earlier["state"] == "complete"]
        last_epoch = max(record["losses"])
        for epoch, loss in record["losses"].items():
            may_stop = len(complete) >= 3 and epoch < 3
            must_stop = may_stop and loss > statistics.median(c["losses"][epoch] for c in complete)
            stopped = record["state"] == "pruned" and epoch == last_epoch
            assert stopped == must_stop


@pytest.mark.filterwarnings("ignore:after epoch")  # so few images teach nothing
def test_train_trial_is_not_stopped_after_its_last_epoch(digits):
    from optuna import create_study, pruners

    splits = replace(digits, train=digits.train.subset(torch.arange(100)))
    recipe = replace(RECIPE, epochs=8)
    study = create_study(pruner=pruners.ThresholdPruner(upper=0.0, n_warmup_steps=4))

    study.optimize(lambda trial: trials.train_trial(trial, splits, recipe), n_trials=1)

    assert study.trials[0].state.name == "COMPLETE"
    assert list(study.trials[0].intermediate_values) == [1, 2, 3, 4]  # the quarters


def test_small_study_is_reproducible(digits, study):
    again = small_study(digits, SPACE)

    without_seconds = [{**trial, "seconds": 0} for trial in study["trials"]]
    assert [{**trial, "seconds": 0} for trial in again["trials"]] == without_seconds
    assert again["best"] == study["best"]


def test_small_study_finds_the_complete_trial_with_the_lowest_loss(study):
    complete = [trial for trial in study["trials"] if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["validation_loss"])

    assert study["best"] == best["number"]
    n_pruned = len(study["trials"]) - len(complete)
    line = tuning.finding(study)
    assert f"8 trials, {n_pruned} stopped early" in line
    assert f"{best['validation_loss']:.3f}" in line


def test_small_study_records_diverging_trials_and_goes_on(digits):
    study = small_study(digits, {"learning_rate": [0.005, 1e6], "label_smoothing": (0.0, 0.1)}, 4)

    for trial in study["trials"]:
        assert (trial["state"] == "failed") == (trial["params"]["learning_rate"] == 1e6)
    n_failed = sum(trial["state"] == "failed" for trial in study["trials"])
    assert 0 < n_failed < 4
    assert f"{n_failed} diverged" in tuning.finding(study)
    tuning.study_plot(study, tuning.read_record(), "DIGITS")  # can be drawn


def test_small_study_of_diverging_trials_has_no_best(digits):
    study = small_study(digits, {"learning_rate": [1e6]}, number=2)

    assert [trial["state"] for trial in study["trials"]] == ["failed", "failed"]
    assert study["best"] is None
    assert "none of the 2 trials" in tuning.finding(study)


@pytest.mark.parametrize(
    "space",
    [
        {"learning_rte": (0.1, 1)},
        {"learning_rate": 0.1},
        {"learning_rate": (0.1, 1, "lin")},
        {"learning_rate": (0.0, 1)},
        {"learning_rate": (1, 0.1)},
        {"learning_rate": (0.1, 0.1)},
        {"weight_decay": (0.0, 1, "log")},
        {"optimizer": ["adam"]},
        {"optimizer": []},
        {"distillation_temperature": (2.0, 8.0)},
        {"elastic_strength": (0.0, 1.0), "augment_strength": [0.0, 1.0]},
    ],
)
def test_small_study_refuses_an_invalid_space_before_it_trains(space):
    with pytest.raises((TypeError, ValueError), match=next(iter(space))):
        trials.small_study(None, RECIPE, space)  # without data, which training would need


def test_small_study_without_optuna_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        small_study(digits, SPACE)


def test_small_study_searches_decimal_fields_even_if_the_recipe_has_a_whole_number(digits):
    study = trials.small_study(
        digits, Recipe(batch_size=64, ema_decay=0), {"ema_decay": (0.5, 0.9)}, trials=3, epochs=1
    )
    values = [trial["params"]["ema_decay"] for trial in study["trials"]]

    assert all(0.5 < value < 0.9 for value in values)
    assert not study["starts_with_recipe"]
    assert "the recipe's" not in tuning.finding(study)


def test_small_study_trains_on_every_class(digits, monkeypatch):
    """Also if the images are in an order in which every tenth is of the same class."""
    order = torch.arange(1000) % 10
    by_turns = torch.stack([(digits.train.labels == label).nonzero()[0, 0] for label in range(10)])
    splits = replace(digits, train=digits.train.subset(by_turns[order]))
    counts = []

    def record_counts(trial, splits, recipe):
        counts.append(torch.bincount(splits.train.labels, minlength=10))
        return 1.0

    monkeypatch.setattr(trials, "train_trial", record_counts)
    trials.small_study(splits, Recipe(), {"seed": [0, 1]}, trials=1, images=100)

    assert counts[0].sum() == 100
    assert counts[0].min() > 0
