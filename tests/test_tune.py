"""The search for a better default recipe: a budget for each trial, and a rule set beforehand."""

import json
import sys
from dataclasses import replace
from statistics import mean

import pytest
import torch
from helpers import ROOT, fit_with, published

from mnist_lab.research.trials import describe_space
from mnist_lab.research.tuning import tuning_plot
from mnist_mlp import EnhancedNet, load

pytest.importorskip("optuna")
ACCURACY = ROOT / "benchmarks" / "accuracy"


@pytest.fixture
def tune(monkeypatch):
    """The module of `make tune`."""
    monkeypatch.syspath_prepend(ACCURACY)
    import tune

    threads = torch.get_num_threads()
    yield tune
    torch.set_num_threads(threads)


@pytest.fixture
def digits(tune, monkeypatch):
    """Digits whose test set nobody can read; an epoch takes 0.07 processor seconds."""
    monkeypatch.setattr(tune, "epoch_seconds", lambda splits, recipe: 0.07)
    return replace(load("digits"), test=None)


def test_search_trains_the_default_first_for_its_budget(tune, digits):
    (trial,) = tune.search(digits, trials=1, seconds=0.3).trials
    torch.manual_seed(tune.SEED)
    history = fit_with(
        EnhancedNet(),
        digits.train,
        digits.validation,
        **{**tune.DEFAULT, "epochs": 4, "seed": tune.SEED, "precision": "auto"},
    )
    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert trial.params == tune.DEFAULT
    assert trial.user_attrs["epochs"] == 4
    assert list(trial.intermediate_values.values()) == losses
    assert trial.value == losses[history.best_epoch - 1]


def test_search_records_a_diverging_trial_and_goes_on(tune, digits, monkeypatch):
    monkeypatch.setitem(tune.DEFAULT, "learning_rate", 1e6)
    study = tune.search(digits, trials=2, seconds=0.3)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


def results(*pairs: tuple[float, float]) -> list[dict]:
    return [{"validation_loss": loss, "validation_accuracy": share} for loss, share in pairs]


@pytest.mark.parametrize(
    ("best", "is_replaced"),
    [
        ([(0.021, 0.992), (0.022, 0.993), (0.023, 0.994)], True),
        ([(0.021, 0.992), (0.022, 0.993), (0.023, 0.993)], False),  # less accurate
        ([(0.005, 0.992), (0.029, 0.993), (0.035, 0.994)], False),  # within two standard errors
        ([(0.041, 0.999), (0.042, 0.999), (0.043, 0.999)], False),
        ([(0.030, 0.992), (0.031, 0.993), (0.032, 0.994)], False),  # equal
    ],
)
def test_judge_replaces_the_default_only_by_a_clearly_better_one(tune, best, is_replaced):
    default = results((0.030, 0.992), (0.031, 0.993), (0.032, 0.994))
    verdict = tune.judge(default, results(*best))
    assert verdict["replace"] is is_replaced
    assert verdict["loss_difference"] == pytest.approx(mean(loss for loss, _ in best) - 0.031)


@pytest.mark.parametrize(
    ("differences", "error", "is_replaced"),
    [
        ((-0.001, -0.002, -0.003), 0.000577, True),  # 0.002 is above 2 * 0.58
        ((-0.001, -0.002, -0.007), 0.001856, False),  # 0.0033 is below 2 * 1.86
    ],
)
def test_judge_pairs_the_seeds(tune, differences, error, is_replaced):
    losses = (0.010, 0.050, 0.090)
    default = results(*((loss, 0.99) for loss in losses))
    best = results(*((x + d, 0.99) for x, d in zip(losses, differences, strict=True)))
    verdict = tune.judge(default, best)
    assert verdict["replace"] is is_replaced
    assert verdict["loss_standard_error"] == pytest.approx(error, abs=1e-6)


@pytest.fixture
def record():
    published("benchmarks/accuracy/tune.json")
    return json.loads((ACCURACY / "tune.json").read_bytes())


def test_record_is_of_its_script_and_follows_the_rule(tune, record):
    assert record["comparison"] == tune.judge(**record["confirmation"])
    assert not record["comparison"]["replace"]
    assert record["trials"][0]["params"] == tune.DEFAULT
    assert record["space"] == describe_space(tune.SPACE)
    assert len(record["trials"]) == 40
    for runs in record["confirmation"].values():
        assert [run["seed"] for run in runs] == list(tune.CONFIRMATION_SEEDS)

    losses = {trial["number"]: trial["validation_loss"] for trial in record["trials"]}
    complete = {number: loss for number, loss in losses.items() if loss is not None}
    assert record["best"] == min(complete, key=complete.get)


def test_tuning_plot_says_what_the_record_has_found(record):
    figure = tuning_plot(record)
    assert "stays" in figure.get_suptitle()
    titles = [ax.get_title() or ax.get_title("left") for ax in figure.axes]
    name, share = max(record["importance"].items(), key=lambda item: item[1])
    assert titles[0] == f"{name}: {share:.0%}"
    seconds = [trial["seconds"] for trial in record["trials"]]
    spent = sum(seconds[: record["best"] + 1]) / sum(seconds)
    assert f"{spent:.0%}" in titles[1]
    best = record["trials"][record["best"]]
    assert f"{best['params']['learning_rate']:.3g}" in titles[2]
    assert str(best["params"]["batch_size"]) in titles[3]
    assert list(figure.axes[1].lines[0].get_ydata())[-1] == best["validation_loss"]


@pytest.mark.campaign
def test_make_tune_searches_confirms_records_and_draws(tune, tmp_path, monkeypatch):
    options = ["--trials", "5", "--seconds", "0.2", "--seeds", "2", "--dataset", "digits"]
    monkeypatch.setattr(sys, "argv", ["tune.py", *options, "--folder", str(tmp_path)])
    tune.main()
    record = json.loads((tmp_path / "tune.json").read_bytes())
    assert (tmp_path / "tuning.png").exists()
    assert len(record["trials"]) == 5
    assert sum(record["importance"].values()) == pytest.approx(1)
    assert record["comparison"] == tune.judge(**record["confirmation"])
    for runs in record["confirmation"].values():
        assert [run["seed"] for run in runs] == [30, 31]
    assert [run["epochs"] for run in record["confirmation"]["default"]] == [45, 45]
