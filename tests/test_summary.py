"""A summary of records agrees with SciPy's tests, with enumeration, and with hand calculation."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from scipy import stats

from mnist_lab.research import summary
from mnist_lab.research.summary import read_cards, read_records, seeds_needed, summarise, verdicts
from mnist_mlp import EnhancedNet, Recipe, save_weights
from mnist_mlp.files import write_json

RUN = {"dataset": "digits", "model": "EnhancedNet", "all_images": False, "optimizer": "adamw"}


def record(name: str, seed: int, accuracy: float, **fields) -> dict:
    """Return a record of a sweep with an accuracy; without a name if it is empty."""
    entry = {
        "run": {**RUN, "seed": seed, **fields},
        "version": {},
        "validation_accuracy": accuracy,
    }
    if name:
        entry["name"] = name
    return entry


def records_of(accuracies: dict[str, list[float]], **fields) -> list[dict]:
    """Return records of configurations, the first accuracy of each with seed 0, and so on."""
    records = []
    for position, (name, values) in enumerate(accuracies.items()):
        for seed, value in enumerate(values):
            records.append(record(name, seed, value, batch_size=position, **fields))
    return records


RANDOM = np.random.default_rng(0)
BASE = list(RANDOM.normal(0.95, 0.01, 6))
BETTER = [value + change for value, change in zip(BASE, RANDOM.normal(0.01, 0.004, 6), strict=True)]
SIMILAR = [value + change for value, change in zip(BASE, RANDOM.normal(0, 0.004, 6), strict=True)]


@pytest.fixture
def table() -> pd.DataFrame:
    accuracies = {"base": BASE, "better": BETTER, "similar": SIMILAR}
    return summarise(records_of(accuracies), baseline="base")


# The statistics


def test_summarise_has_mean_deviation_and_t_interval(table):
    row = table.loc["digits", "base"]
    half_width = 2.570582 * np.std(BASE, ddof=1) / math.sqrt(6)  # the quantile of t, 5 degrees

    assert row["n"] == 6
    assert row["mean"] == pytest.approx(sum(BASE) / 6)
    assert row["std"] == pytest.approx(math.sqrt(sum((x - sum(BASE) / 6) ** 2 for x in BASE) / 5))
    assert (row["low"], row["high"]) == pytest.approx(
        (row["mean"] - half_width, row["mean"] + half_width)
    )


@pytest.mark.parametrize(("name", "values"), [("better", BETTER), ("similar", SIMILAR)])
def test_summarise_agrees_with_the_paired_t_test_of_scipy(table, name, values):
    row = table.loc["digits", name]
    test = stats.ttest_rel(values, BASE)
    interval = test.confidence_interval(0.95)

    assert row["p"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx(np.mean(values) - np.mean(BASE))
    assert row["difference low"] == pytest.approx(interval.low)
    assert row["difference high"] == pytest.approx(interval.high)


def test_summarise_agrees_with_a_t_test_by_hand():
    """With two degrees of freedom, p is 1 - t / sqrt(2 + t^2), here with t = 2 sqrt(3)."""
    accuracies = {"base": [0.5, 0.5, 0.5], "idea": [0.51, 0.52, 0.53]}
    row = summarise(records_of(accuracies), baseline="base").loc["digits", "idea"]

    assert row["p"] == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))
    assert row["p, sign flips"] == pytest.approx(2 / 8)


@pytest.mark.parametrize(("name", "values"), [("better", BETTER), ("similar", SIMILAR)])
def test_summarise_flips_all_signs(table, name, values):
    differences = np.array(values) - np.array(BASE)
    flipped = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=6)]
    as_extreme = sum(abs(total) >= abs(differences.sum()) - 1e-12 for total in flipped)

    assert table.loc[("digits", name), "p, sign flips"] == pytest.approx(as_extreme / 64)


def test_holm_agrees_with_the_steps_by_hand():
    """Times 4, 3, 2, 1 in ascending order, never below the one before, at most 1."""
    p_values = pd.Series([0.01, math.nan, 0.04, 0.03, 0.6])

    corrected = summary.holm(p_values)

    assert list(corrected.dropna()) == pytest.approx([0.04, 0.09, 0.09, 0.6])
    assert math.isnan(corrected[1])
    assert list(summary.holm(pd.Series([0.6, 0.7]))) == [1, 1]


def test_verdict_is_that_of_the_corrected_p(monkeypatch):
    """Alone the difference is significant; among five comparisons it is not."""
    changes = [0.004, 0.001, 0.006, 0.002, 0.007, 0.001]
    idea = [value + change for value, change in zip(BASE, changes, strict=True)]
    others = {f"other {i}": SIMILAR for i in range(4)}

    alone = summarise(records_of({"base": BASE, "idea": idea}), "base")
    among = summarise(records_of({"base": BASE, "idea": idea, **others}), "base")

    assert 0.01 < alone.loc[("digits", "idea"), "p"] < 0.05
    assert alone.loc[("digits", "idea"), "verdict"] == "better"
    assert among.loc[("digits", "idea"), "verdict"] == "no significant difference"
    assert among.loc[("digits", "base"), "verdict"] == "baseline"


def test_summarise_pairs_the_seeds_that_both_have():
    records = records_of({"base": BASE, "idea": BETTER})
    shuffled = [records[i] for i in RANDOM.permutation(len(records))]
    extra = record("idea", 99, 0.1, batch_size=1)

    row = summarise([*shuffled, extra], "base").loc["digits", "idea"]

    assert row["n"] == 7
    assert row["pairs"] == 6
    assert row["p"] == pytest.approx(stats.ttest_rel(BETTER, BASE).pvalue)


def test_summarise_makes_no_certainty_of_equal_differences():
    """The t-test would say p = 0, because the differences have no deviation."""
    accuracies = {"base": [0.5, 0.75], "idea": [0.625, 0.875], "same": [0.5, 0.75]}
    table = summarise(records_of(accuracies), "base")

    assert table.loc[("digits", "idea"), "p"] == 0.5
    assert table.loc[("digits", "same"), "p"] == 1
    assert set(table["verdict"]) == {"baseline", "no significant difference"}


def test_summarise_of_single_runs_has_no_verdict():
    table = summarise(records_of({"base": [0.5], "idea": [0.6]}), "base")

    assert table.loc[("digits", "idea"), "verdict"] == "too few seeds"
    assert table.loc[("digits", "idea"), "difference"] == pytest.approx(0.1)
    assert "nan" not in verdicts(table)[0]
    assert math.isnan(table.loc[("digits", "idea"), "std"])


@pytest.mark.parametrize(
    ("effect", "power", "expected"),
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (1.0, 0.8, 10), (0.5, 0.9, 44)],
)
def test_seeds_needed_agrees_with_published_tables(effect, power, expected):
    """The values of G*Power 3 and of R's power.t.test for paired samples, two-sided."""
    assert seeds_needed(effect, 1.0, power) == expected
    assert seeds_needed(-effect / 100, 0.01, power) == expected


def test_seeds_needed_give_the_power_in_a_simulation():
    seeds = seeds_needed(0.8, 1.0)
    samples = np.random.default_rng(0).normal(0.8, 1.0, (20_000, seeds))
    found = (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean()

    assert 0.79 < found < 0.86  # with a seed less, it is below 0.8
    assert (stats.ttest_1samp(samples[:, 1:], 0, axis=1).pvalue < 0.05).mean() < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "difference"),
        ((math.nan, 1), "difference"),
        ((1, 0), "standard_deviation"),
        ((1, 1, 1.0), "power"),
        ((1e-6, 1), "more than a million|1,000,000"),
    ],
)
def test_seeds_needed_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        seeds_needed(*arguments)


# The rows


def test_summarise_compares_on_the_same_data_set():
    digits = records_of({"base": BASE, "idea": BETTER}, epochs=20)
    mnist = records_of({"base": BETTER, "idea": BASE}, epochs=5, dataset="mnist (0a1b2c)")

    table = summarise([*digits, *mnist], "base")

    assert list(table.index) == [
        ("digits", "base"),
        ("digits", "idea"),
        ("mnist", "base"),
        ("mnist", "idea"),
    ]
    assert table.loc[("digits", "idea"), "verdict"] == "better"
    assert table.loc[("mnist", "idea"), "verdict"] == "worse"


def test_summarise_calls_configurations_by_what_differs():
    lion = {"optimizer": "__main__.Lion (629d88c127a1)", "learning_rate": 0.001}
    records = [record("", seed, 0.5 + seed / 10, epochs=3) for seed in (0, 1)]
    records += [record("", seed, 0.6, epochs=3, **lion) for seed in (0, 1)]

    table = summarise(records, baseline="default")

    names = [name for _, name in table.index]
    assert names == ["default", "optimizer=Lion, learning_rate=0.001"]


def test_summarise_tells_an_edited_idea_from_the_one_before():
    before = [record("Lion", seed, 0.5, optimizer="Lion (1)") for seed in (0, 1)]
    after = [record("Lion", seed, 0.6, optimizer="Lion (2)") for seed in (0, 1)]

    table = summarise(before + after)

    names = [name for _, name in table.index]
    assert len(set(names)) == 2
    assert all(name.startswith("Lion [") for name in names)


def test_summarise_without_baseline_compares_nothing():
    table = summarise(records_of({"base": BASE}))
    assert list(table.columns) == ["n", "mean", "std", "low", "high"]


def test_summarise_leaves_failed_runs_out():
    failed = {"run": {}, "version": {}, "failed": "FloatingPointError"}
    table = summarise([failed, *records_of({"base": BASE})])
    assert table.loc[("digits", "base"), "n"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "bsae"}, "baseline='bsae' has no run on digits"),
        ({"metric": "loss"}, "metric must be"),
        ({"metric": "test_accuracy"}, "test=True"),
    ],
)
def test_summarise_says_what_is_missing(arguments, message):
    with pytest.raises(ValueError, match=message):
        summarise(records_of({"base": BASE}), **arguments)


def test_summarise_refuses_accuracies_on_training_images():
    with pytest.raises(ValueError, match="trained on the validation images"):
        summarise([record("base", 0, 0.5, all_images=True)])


def test_summarise_names_failed_runs():
    failed = {"run": {"seed": 0}, "version": {}, "name": "focal", "failed": "ValueError: no"}
    with pytest.warns(UserWarning, match="1 of 7 runs failed .* focal: ValueError: no"):
        summarise([*records_of({"base": BASE}), failed])


def test_summary_table_can_be_exported(table):
    assert "| better" in table.reset_index().to_markdown()
    assert "better" in table.to_latex()


def test_verdicts_need_a_comparison():
    with pytest.raises(ValueError, match="baseline"):
        verdicts(summarise(records_of({"base": BASE})))


def test_summarise_refuses_an_empty_list():
    with pytest.raises(ValueError, match="at least one run"):
        summarise([])


def test_verdicts_are_sentences_in_points(table):
    sentences = verdicts(table)

    assert len(sentences) == 2
    row = table.loc["digits", "better"]
    assert sentences[0] == (
        f"digits, better: {100 * row['difference']:+.2f} points "
        f"[{100 * row['difference low']:+.2f}, {100 * row['difference high']:+.2f}], "
        f"p after Holm = {row['p, Holm']:.2g}: better."
    )


@pytest.mark.parametrize("damage", [b"", b"{", b'{"run": 3}', b"\xff\xfe", b"[" * 100_000])
def test_read_records_names_a_damaged_one_and_goes_on(tmp_path, capsys, damage):
    for i, entry in enumerate(records_of({"base": BASE})):
        write_json(tmp_path / f"{i}.json", entry)
    (tmp_path / "3.json").write_bytes(damage)

    records = read_records(tmp_path)

    assert len(records) == 5
    assert summarise(records).loc[("digits", "base"), "n"] == 5
    assert "3.json is left out" in capsys.readouterr().out


def test_configurations_plot_shows_every_seed_and_the_interval():
    digits = records_of({"base": BASE, "idea": BETTER})
    mnist = records_of({"base": SIMILAR}, dataset="mnist")

    axes = summary.configurations_plot(digits + mnist)

    assert [ax.get_title() + ax.get_title("left") for ax in axes] == ["digits", "mnist"]
    dots, interval, mean = axes[0].lines[3:]
    assert list(dots.get_xdata()) == BETTER
    row = summarise(digits).loc["digits", "idea"]
    assert list(interval.get_xdata()) == [row["low"], row["high"]]
    assert mean.get_xdata()[0] == pytest.approx(np.mean(BETTER))
    assert len(axes[1].lines) == 3


# The cards of a class


@pytest.fixture
def cards(tmp_path):
    """Cards of three students, of whom one handed in no weights, and one of the repository."""
    torch.manual_seed(0)
    model = EnhancedNet()
    accuracies = {"Ada": 0.95, "Zoë Öz": 0.97, "class b/Bo": 0.96}
    for name, accuracy in accuracies.items():
        save_weights(
            model,
            tmp_path / f"{name}.pth",
            student=name.split("/")[-1],
            exercises_right=[1, 3],
            dataset="mnist",
            recipe=Recipe(epochs=7, learning_rate=0.002).asdict(),
            epochs_done=7,
            validation_accuracy=accuracy,
            training_seconds=12.5,
        )
    (tmp_path / "Ada.pth").unlink()
    save_weights(model, tmp_path / "other.pth", test_correct=99, test_images=100)
    return tmp_path


def test_read_cards_has_a_row_for_each_card_the_best_first(cards):
    table = read_cards(cards)

    assert list(table.index) == ["other", "Zoë Öz", "class b/Bo", "Ada"]
    row = table.loc["class b/Bo"]
    assert row["student"] == "Bo"
    assert row["exercises right"] == "1, 3"
    assert row["recipe"] == "epochs=7, learning_rate=0.002"
    assert row["validation accuracy"] == 0.96
    assert (row["epochs"], row["seconds"]) == (7, 12.5)
    assert table.loc["other", "test accuracy"] == 0.99
    assert math.isnan(table.loc["other", "validation accuracy"])
    assert set(table["problem"]) == {""}


def test_read_cards_reads_the_published_cards():
    names = {path.stem for path in (ROOT / "models").glob("*.json")}
    table = read_cards(ROOT / "models")

    published = table.loc[[name for name in table.index if "-" not in name]]
    assert set(published.index) <= names
    assert (published["test accuracy"] > 0.99).all()
    assert (published["problem"] == "").all()


def damage(path, change) -> None:
    card = json.loads(path.read_bytes())
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize(
    "damage_card",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_text('{"cells": [], "nbformat": 4}'),
        lambda path: damage(path, lambda card: card.pop("sha256")),
        lambda path: damage(path, lambda card: card.update(sha256="0" * 64)),
        lambda path: damage(path, lambda card: card.update(validation_accuracy="all")),
        lambda path: damage(path, lambda card: card.update(validation_accuracy=97.1)),
        lambda path: damage(path, lambda card: card.update(training_seconds=None)),
        lambda path: damage(path, lambda card: card.update(test_correct=9, test_images=3)),
    ],
    ids=[
        "truncated",
        "empty",
        "no text",
        "a list",
        "foreign",
        "no digest",
        "of other weights",
        "accuracy in words",
        "accuracy in percent",
        "no seconds",
        "more correct than images",
    ],
)
def test_read_cards_names_a_damaged_card_and_goes_on(damage_card, cards):
    damage_card(cards / "Zoë Öz.json")

    with pytest.warns(UserWarning, match="no cards, or damaged ones: Zoë Öz") as caught:
        table = read_cards(cards)

    assert len(caught) == 1
    assert list(table.index) == ["other", "class b/Bo", "Ada", "Zoë Öz"]
    assert table.loc["Zoë Öz", "problem"]
    assert table.loc["Ada", "problem"] == ""


def test_read_cards_leaves_out_hidden_files(cards):
    (cards / "._Ada.json").write_bytes(b"\x00")  # macOS puts such files into archives

    assert len(read_cards(cards)) == 4


def test_read_cards_without_a_card_raises(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"no \.json file"):
            read_cards(folder)


def test_read_cards_names_all_damaged_cards_in_one_warning(cards):
    (cards / "Ada.json").write_bytes(b"")
    (cards / "Bo.json").write_text("[1, 2]")

    with pytest.warns(UserWarning, match="damaged ones: Ada, Bo") as caught:
        table = read_cards(cards)

    assert len(caught) == 1
    assert table.loc["Ada", "problem"].startswith("the file is empty, cut off, or not a card")


def test_read_cards_takes_a_card_without_a_network_beside_an_older_network(cards):
    card = {"student": "Zoë Öz", "exercises_right": [1, 2], "dataset": "mnist"}
    (cards / "Zoë Öz.json").write_text(json.dumps(card), encoding="utf-8")

    row = read_cards(cards).loc["Zoë Öz"]

    assert row["problem"] == ""
    assert row["exercises right"] == "1, 2"
    assert math.isnan(row["validation accuracy"])
