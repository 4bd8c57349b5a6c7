"""The log of a notebook's runs: any recipe, any data set, each compared with the first."""

from dataclasses import replace

import torch

from mnist_mlp import Recipe, compare
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.notebook import RunLog, comparison_table
from mnist_mlp.recipe import History

DIFFERENCE = "difference to the first run, in points [95%]"


def evaluation(correct: int) -> Evaluation:
    """An evaluation of 1,000 images, so many of them correct."""
    predicted = torch.zeros(1000, dtype=torch.int64)
    predicted[correct:] = 1
    return Evaluation(torch.eye(2)[predicted], torch.zeros_like(predicted), ("0", "1"))


def add(log: RunLog, recipe: Recipe, correct: int, dataset: str = "mnist", stopped: str = ""):
    history = History(recipe, epochs=[{"seconds": 2.0}], stopped=stopped)
    log.add(dataset, history, evaluation(correct))


def test_run_log_names_a_run_by_any_changed_field():
    other_values = {
        "epochs": 2,
        "batch_size": 64,
        "seed": 1,
        "optimizer": "muon",
        "schedule": "constant",
        "select": "last epoch",
        "precision": "float32",
        "device": "cpu",
    }
    log = RunLog()
    add(log, Recipe(), 950)
    expected = ["run 1"]
    for number, (field, value) in enumerate(Recipe().asdict().items(), start=2):
        other_value = other_values.get(field, 0.5)
        assert other_value != value
        add(log, replace(Recipe(), **{field: other_value}), 950)
        expected.append(f"run {number} ({field}={other_value})")
    assert list(log.histories()) == expected
    assert list(log.table().index) == expected


def test_run_log_compares_each_run_with_the_first_on_its_data():
    log = RunLog()
    add(log, Recipe(epochs=1), 950)
    add(log, Recipe(epochs=2), 980)
    add(log, Recipe(epochs=1, seed=1), 951)
    add(log, Recipe(epochs=1, seed=2), 900)
    add(log, Recipe(epochs=1), 900, dataset="digits")
    add(log, Recipe(epochs=1, seed=1), 990, dataset="digits")

    table = log.table()
    verdicts = ["", "better", "no significant difference", "worse", "", "better"]
    assert list(table["verdict"]) == verdicts
    assert table["validation accuracy"].iloc[1] == "98.00%"
    expected = compare(evaluation(950).correct, evaluation(980).correct)
    assert table[DIFFERENCE].iloc[1] == str(expected)


def test_run_log_replaces_an_equal_run_and_shows_a_stopped_one():
    log = RunLog()
    add(log, Recipe(epochs=9), 950)
    add(log, Recipe(epochs=9), 960)
    add(log, Recipe(epochs=9), 940, stopped="after epoch 1 of 9")
    assert list(log.histories()) == ["run 1", "run 2 (epochs=1 of 9)"]
    assert list(log.table()["validation accuracy"]) == ["96.00%", "94.00%"]
    log.clear()
    assert log.histories() == {}


def test_comparison_table_compares_two_models_on_each_data_set():
    before = {"a": evaluation(900), "b": evaluation(950)}
    after = {"a": evaluation(950), "b": evaluation(949)}
    table = comparison_table(before, after)
    expected = str(compare(before["a"].correct, after["a"].correct))
    assert list(table.loc["a"]) == ["900 of 1,000", "950 of 1,000", expected]
    assert expected.startswith("+5.00 [")
    assert table.loc["b"].iloc[-1].startswith("-0.10 [")
