"""`make tune` keeps its budget and its rule; the figures show its record."""

import ast
import importlib
import json
import sys
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, skip_unless_published
from scipy.stats import sem
from torch import nn

from mnist_lab.research import trials, tuning
from mnist_mlp import EnhancedNet, Recipe, fit, load
from mnist_mlp.data import epoch_generator
from mnist_mlp.optim import Muon
from mnist_mlp.plots import BLUE, GREY, ORANGE

pytest.importorskip("optuna")
FOLDER = ROOT / "benchmarks" / "accuracy"
NOTEBOOK = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"


@pytest.fixture
def tune_script(monkeypatch):
    """The module of `make tune`."""
    monkeypatch.syspath_prepend(FOLDER)
    n_threads = torch.get_num_threads()
    yield importlib.import_module("tune")
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def digits():
    """Digits without a test set, which a search must not read."""
    return replace(load("digits"), test=None)


@pytest.fixture
def record():
    skip_unless_published("benchmarks/accuracy/tune.json")
    return tuning.read_record()


# The search


def test_search_trains_the_default_first_for_its_budget(tune_script, digits, monkeypatch):
    monkeypatch.setattr(tune_script, "epoch_seconds", lambda splits, recipe: 0.07)
    (trial,) = tune_script.search(digits, trials=1, seconds=0.3).trials

    recipe = Recipe(**tune_script.DEFAULT, epochs=4, seed=tune_script.SEED)
    torch.manual_seed(tune_script.SEED)
    history = fit(EnhancedNet(), digits.train, digits.validation, recipe, progress=False)

    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert trial.params == tune_script.DEFAULT
    assert trial.user_attrs["epochs"] == 4
    assert list(trial.intermediate_values.values()) == losses
    assert trial.value == losses[history.best_epoch - 1]


def test_search_records_a_diverging_trial_and_goes_on(tune_script, digits, monkeypatch):
    monkeypatch.setitem(tune_script.DEFAULT, "learning_rate", 1e6)
    study = tune_script.search(digits, trials=2, seconds=0.01)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


# The rule


def results(losses: np.ndarray, accuracies: np.ndarray) -> list[dict]:
    pairs = zip(losses.tolist(), accuracies.tolist(), strict=True)
    return [{"validation_loss": loss, "validation_accuracy": accuracy} for loss, accuracy in pairs]


@pytest.mark.parametrize(
    ("loss_differences", "accuracy_differences", "is_replaced"),
    [
        ((-0.001, -0.002, -0.003), (0.001, -0.001, 0), True),
        ((-0.001, -0.002, -0.003), (0.001, -0.001, -0.001), False),  # less accurate
        ((-0.001, -0.002, -0.007), (0.001, 0.001, 0.001), False),  # within two standard errors
        ((0.001, 0.002, 0.003), (0.001, 0.001, 0.001), False),  # a higher loss
        ((0, 0, 0), (0, 0, 0), False),  # equal
    ],
)
def test_judge_replaces_the_default_only_by_a_clearly_better_one(
    tune_script, loss_differences, accuracy_differences, is_replaced
):
    losses = np.array([0.010, 0.050, 0.090])
    accuracies = np.array([0.992, 0.993, 0.994])
    default = results(losses, accuracies)
    best = results(losses + loss_differences, accuracies + accuracy_differences)

    verdict = tune_script.judge(default, best)

    assert verdict["replace"] is is_replaced
    assert verdict["loss_difference"] == pytest.approx(np.mean(loss_differences))
    assert verdict["loss_standard_error"] == pytest.approx(sem(loss_differences))


# The record and its figures


def test_record_matches_the_script_and_follows_the_rule(tune_script, record):
    assert record["comparison"] == tune_script.judge(**record["confirmation"])
    assert record["trials"][0]["params"] == tune_script.DEFAULT
    assert record["space"] == trials.describe_space(tune_script.SPACE)
    assert len(record["trials"]) == 40
    for runs in record["confirmation"].values():
        assert [run["seed"] for run in runs] == list(tune_script.CONFIRMATION_SEEDS)

    complete = [trial for trial in record["trials"] if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["validation_loss"])
    assert record["best"] == best["number"]


def test_tuning_plot_shows_the_record(record):
    figure = tuning.tuning_plot(record)

    assert "stays" in figure.get_suptitle()
    titles = [ax.get_title() or ax.get_title("left") for ax in figure.axes]
    field, importance = max(record["importance"].items(), key=lambda item: item[1])
    assert titles[0] == f"{field}: {importance:.0%}"
    seconds = [trial["seconds"] for trial in record["trials"]]
    budget_share = sum(seconds[: record["best"] + 1]) / sum(seconds)
    assert f"{budget_share:.0%}" in titles[1]
    best = record["trials"][record["best"]]
    assert f"{best['params']['learning_rate']:.3g}" in titles[2]
    assert str(best["params"]["batch_size"]) in titles[3]
    assert list(figure.axes[1].lines[0].get_ydata())[-1] == best["validation_loss"]

    batch_size_ticks = [text.get_text() for text in figure.axes[3].get_xticklabels()]
    assert batch_size_ticks == ["128", "256", "512", "1024"]


def trial(number: int, rate: float, losses: dict[int, float]) -> dict:
    """Return the record of a trial of two epochs, which was stopped if it has only one."""
    return {
        "number": number,
        "state": "complete" if 2 in losses else "pruned",
        "params": {"learning_rate": rate},
        "validation_loss": losses.get(2),
        "losses": losses,
    }


def test_study_plot_draws_a_study_over_the_recorded_one():
    space = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    recorded = {
        "dataset": "fashion",
        "space": space,
        "best": 0,
        "trials": [trial(0, 0.03, {2: 0.1})],
    }
    recipe = trial(0, 0.005, {1: 0.9, 2: 0.5})
    best = trial(1, 0.01, {1: 0.8, 2: 0.4})
    stopped = trial(2, 0.09, {1: 1.5})
    study = {"space": space, "best": 1, "trials": [recipe, best, stopped]}

    figure = tuning.study_plot(study, recorded, "DIGITS")

    epoch_axes, rate_axes, unused_axes = figure.axes
    curves = [line.get_xydata().tolist() for line in epoch_axes.lines]
    assert curves == [[[1, 0.9], [2, 0.5]], [[1, 0.8], [2, 0.4]], [[1, 1.5]], [[1, 1.5]]]
    colours = [line.get_color() for line in epoch_axes.lines[:3]]
    assert colours == ["black", ORANGE, BLUE]
    points = [(*line.get_xydata()[0], line.get_marker()) for line in rate_axes.lines]
    assert points == [(0.03, 0.1, "o"), (0.005, 0.5, "o"), (0.01, 0.4, "o"), (0.09, 1.5, "x")]
    colours = [line.get_color() for line in rate_axes.lines]
    assert colours == [GREY, BLUE, ORANGE, BLUE]
    assert not unused_axes.axison
    assert any("FASHION" in text.get_text() for text in figure.legends[0].get_texts())


def test_finding_compares_the_best_trial_with_the_recipe():
    better = [
        {"state": "complete", "validation_loss": 0.5},
        {"state": "complete", "validation_loss": 0.25},
    ]
    study = {"trials": better, "best": 1, "starts_with_recipe": True}
    first_is_best = {"trials": better[::-1], "best": 0, "starts_with_recipe": True}

    assert "0.250, the recipe's 0.500" in tuning.finding(study)
    assert "0.250 is the recipe's" in tuning.finding(first_is_best)


# The learning-rate finder


def finder_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 10))


PLAIN = Recipe(batch_size=64, augment_strength=0.0, weight_decay=0.02, label_smoothing=0.1)


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_find_learning_rate_takes_steps_at_geometric_rates(toy, clip_norm):
    """AdamW and the losses of torch, at the rates of NumPy. An epoch has three steps."""
    train, _ = toy
    rates = np.geomspace(1e-4, 1e-2, 7).tolist()
    model = finder_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.02)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = []
    for epoch in (1, 2, 3):
        order = torch.randperm(130, generator=epoch_generator(PLAIN.seed, epoch))
        for chosen in order.split(64):
            inputs = (train.images[chosen].flatten(1) / 255 - 0.1307) / 0.3081
            loss = criterion(model(inputs), train.labels[chosen])
            expected.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            if clip_norm:
                gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
                for weight in model.parameters():
                    weight.grad *= min(1, clip_norm / gradient.norm().item())
            optimizer.param_groups[0]["lr"] = rates[min(len(expected), 7) - 1]
            optimizer.step()

    recipe = replace(PLAIN, clip_norm=clip_norm)
    losses = tuning.find_learning_rate(finder_net(), train, recipe, 1e-4, 1e-2, steps=7)

    assert list(losses) == pytest.approx(rates)
    assert list(losses.values()) == pytest.approx(expected[:7], rel=1e-4)
    assert losses[max(losses)] < 0.95 * losses[min(losses)]


def test_find_learning_rate_multiplies_both_rates_of_muon(toy, monkeypatch):
    """AdamW, for the last matrix and the biases, has a sixteenth of Muon's rate."""
    seen = []

    class RecordedMuon(Muon):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            super().step()

    monkeypatch.setattr("mnist_mlp.train.Muon", RecordedMuon)
    recipe = replace(PLAIN, optimizer="muon")

    losses = tuning.find_learning_rate(finder_net(), toy[0], recipe, 1e-4, 1e-2, steps=5)

    expected = [[rate, rate / 16] for rate in list(losses)[:-1]]
    np.testing.assert_allclose(seen, expected)


def test_find_learning_rate_leaves_the_model_and_the_random_numbers(toy):
    model = nn.Sequential(nn.BatchNorm1d(784), finder_net(), nn.Dropout()).eval()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    random_state = torch.get_rng_state()

    tuning.find_learning_rate(model, toy[0], replace(PLAIN, augment_strength=1.0))

    assert all(map(torch.equal, model.state_dict().values(), before))
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), random_state)


def test_find_learning_rate_stops_when_the_loss_diverges(toy):
    losses = tuning.find_learning_rate(finder_net(), toy[0], PLAIN, 1e-4, 1e4, steps=200)

    *earlier, last = losses.values()
    assert 10 < len(losses) < 200
    assert last > 4 * min(earlier)
    for i, loss in enumerate(earlier):
        assert loss <= 4 * min(earlier[: i + 1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_find_learning_rate_stops_at_a_loss_that_is_not_finite(toy, value):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)
            self.calls = 0

        def forward(self, images):
            self.calls += 1
            return self.layer(images) * (value if self.calls == 4 else 1.0)

    losses = tuning.find_learning_rate(Breaks(), toy[0], PLAIN)

    assert len(losses) == 4
    assert not np.isfinite(list(losses.values())[-1])


@pytest.mark.parametrize("wrong", [{"lowest": 0.0}, {"lowest": 0.1, "highest": 0.1}, {"steps": 1}])
def test_find_learning_rate_refuses_rates_that_do_not_rise(toy, wrong):
    with pytest.raises(ValueError, match="rates must rise"):
        tuning.find_learning_rate(finder_net(), toy[0], PLAIN, **wrong)


def test_learning_rate_finder_plot_draws_the_losses_and_marks_rates():
    losses = {0.001: 2.0, 0.01: 1.0, 0.1: 5.0}

    ax = tuning.learning_rate_finder_plot(losses, {"the recipe": 0.005, "the study": 0.0077})

    curve, recipe, study = ax.lines
    assert curve.get_xydata().tolist() == [[0.001, 2.0], [0.01, 1.0], [0.1, 5.0]]
    assert (list(recipe.get_xdata()), list(study.get_xdata())) == ([0.005] * 2, [0.0077] * 2)
    labels = [text.get_text() for text in ax.get_legend().texts]
    assert labels == ["the recipe: 0.005", "the study: 0.0077"]
    assert ax.get_xscale() == "log"
    assert 2.0 < ax.get_ylim()[1] < 5.0
    assert tuning.learning_rate_finder_plot(losses, ax=ax) is ax


# The notebook


def test_try_learning_rates_trains_with_each_rate(digits):
    """With the usual normalisation, this is the usual training, except for rounding."""
    splits = replace(digits, train=digits.train.subset(torch.arange(400)))
    recipe = Recipe(epochs=3, batch_size=32, precision="float32", augment_strength=0.0)
    expected = {}
    for rate in (0.0005, 0.01):
        torch.manual_seed(recipe.seed)
        with_rate = replace(recipe, learning_rate=rate)
        history = fit(EnhancedNet(), splits.train, splits.validation, with_rate, progress=False)
        expected[rate] = history.validation_accuracy

    accuracies = tuning.try_learning_rates(splits, recipe, (0.0005, 0.01))

    assert accuracies == pytest.approx(expected, abs=0.05)
    assert expected[0.01] > expected[0.0005] + 0.1


def test_other_normalisation_normalises_the_pixels(digits):
    model = tuning.OtherNormalisation(10, mean=0.5, std=0.25)
    images, _, _ = digits.train.get_batch(torch.arange(7))

    logits = model(images)

    pixels = digits.train.images[:7].flatten(1) / 255
    expected = model.network((pixels - 0.5) / 0.25)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_notebook_quotes_the_record_and_searches_its_space(record):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    first = next(i for i, cell in enumerate(cells) if cell.source.startswith("## 8. "))
    last = next(i for i, cell in enumerate(cells) if cell.source.startswith("## 9. "))
    section = cells[first:last]

    text = " ".join(cell.source for cell in section if cell.cell_type == "markdown")
    text = " ".join(text.split())
    comparison = record["comparison"]
    two_errors = 2 * comparison["loss_standard_error"]
    assert f"{comparison['loss_difference']:.4f} ± {two_errors:.4f}" in text
    assert f"{len(record['trials'])} trials of about {record['seconds']} seconds" in text
    assert not comparison["replace"]

    cell = next(cell for cell in section if "space = {" in cell.source)
    assignment = ast.parse(cell.source).body[0]
    space = trials.describe_space(ast.literal_eval(assignment.value))
    for name, domain in record["space"].items():
        if "choices" in domain:
            assert set(space[name]["choices"]) <= set(domain["choices"])
        else:
            assert space[name] == domain


@pytest.mark.campaign
def test_make_tune_searches_confirms_records_and_draws(tune_script, tmp_path, monkeypatch):
    options = ["--trials", "5", "--seconds", "0.2", "--seeds", "2", "--dataset", "digits"]
    monkeypatch.setattr(sys, "argv", ["tune.py", *options, "--folder", str(tmp_path)])

    tune_script.main()

    record = json.loads((tmp_path / "tune.json").read_bytes())
    assert (tmp_path / "tuning.png").exists()
    assert len(record["trials"]) == 5
    assert sum(record["importance"].values()) == pytest.approx(1)
    assert record["comparison"] == tune_script.judge(**record["confirmation"])
    for runs in record["confirmation"].values():
        assert [run["seed"] for run in runs] == [30, 31]
    assert [run["epochs"] for run in record["confirmation"]["default"]] == [45, 45]
