"""The log of a notebook's runs: any recipe, any data set, each compared with the first."""

from dataclasses import replace

import torch
from torch import nn

from mnist_mlp import Recipe, compare
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.notebook import RunLog, comparison_table
from mnist_mlp.recipe import History

ONE_EPOCH = [{"seconds": 1.0}]


def evaluation(correct: int) -> Evaluation:
    """An evaluation of 1,000 images, so many of them correct."""
    predicted = torch.cat([torch.zeros(correct), torch.ones(1000 - correct)]).long()
    return Evaluation(torch.eye(2)[predicted], torch.zeros(1000).long(), ("0", "1"))


def invert(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - images


def test_any_field_of_the_recipe_may_be_changed_and_names_the_run():
    others = {
        "epochs": 2, "batch_size": 64, "seed": 1, "optimizer": "muon", "schedule": "constant",
        "precision": "float32", "device": "cpu", "keep": "last", "loss_fn": nn.MultiMarginLoss(),
        "augment": invert,
    }  # fmt: skip
    first = Recipe(precision="bfloat16")
    log, published = RunLog(), first.asdict()
    log.add("mnist", History(first, ONE_EPOCH), evaluation(950))
    for name, value in published.items():
        other = others.get(name, 0.5)
        assert other != value
        log.add("mnist", History(replace(first, **{name: other}), ONE_EPOCH), evaluation(950))
    names = list(log.histories())
    assert [name.partition("=")[0] for name in names] == [
        "run 1", *(f"run {i} ({field}" for i, field in enumerate(published, 2))
    ]  # fmt: skip
    assert any(name.endswith("(schedule=constant)") for name in names)
    assert any(name.endswith("test_run_log.invert)") for name in names)
    assert len(log.table().splitlines()) == 2 + len(names) == 2 + 1 + len(published)


def test_the_log_can_be_emptied_and_each_data_set_is_compared_with_its_own_first_run():
    log = RunLog()
    log.add("digits", History(Recipe(), ONE_EPOCH), evaluation(900))
    log.add("mnist", History(Recipe(), ONE_EPOCH), evaluation(950))
    log.add("mnist", History(Recipe(seed=1), ONE_EPOCH), evaluation(990))
    verdicts = [row.split("|")[-2].strip() for row in log.table().splitlines()[2:]]
    assert verdicts == ["", "", "better"]
    log.clear()
    assert log.histories() == {}


def test_the_log_compares_each_run_with_the_first():
    log, one, epochs = RunLog(), Recipe(epochs=1), [{"seconds": 2.0}]
    log.add("mnist", History(one, epochs), evaluation(950))
    log.add("mnist", History(replace(one, epochs=2), epochs), evaluation(980))
    log.add("mnist", History(replace(one, seed=1), epochs), evaluation(951))
    log.add("mnist", History(replace(one, seed=2), epochs), evaluation(900))
    log.add("digits", History(one, epochs), evaluation(999))
    log.add("mnist", History(replace(one, seed=2), epochs), evaluation(900))  # no new row
    stopped = History(replace(one, epochs=9), epochs, stopped="after step 1 of epoch 2 of 9")
    log.add("mnist", stopped, evaluation(940))
    assert list(log.histories()) == [
        "run 1", "run 2 (epochs=2)", "run 3 (seed=1)", "run 4 (seed=2)", "run 5 (dataset=digits)",
        "run 6 (epochs=1 of 9)",
    ]  # fmt: skip
    rows = [row.strip("| ").split(" | ") for row in log.table().splitlines()[2:]]
    assert [row[-1] for row in rows[1:]] == [
        "better", "no significant difference", "worse", "99.90%", "worse",
    ]  # fmt: skip
    assert rows[1][3] == "98.00%"
    assert rows[1][4].startswith("+3.00 [+")


def test_two_models_are_compared_on_each_data_set_in_a_table():
    before = {"a": evaluation(900), "b": evaluation(950)}
    after = {"a": evaluation(950), "b": evaluation(949)}
    rows = [row.strip("| ").split(" | ") for row in comparison_table(before, after).splitlines()]
    assert rows[2][:3] == ["a", "900 of 1,000", "950 of 1,000"]
    assert rows[2][3] == str(compare(before["a"].correct, after["a"].correct))
    assert rows[2][3].startswith("+5.00 [")
    assert rows[3][3].startswith("-0.10 [")
