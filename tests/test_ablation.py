"""The ablation: its record matches its scripts and weights; tables and README quote the record."""

import ast
import importlib
import json
import sys
from statistics import mean

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same_picture, code_cells, skip_unless_published, texts
from joblib import parallel_config
from scipy.stats import binomtest, ttest_1samp, ttest_rel

from mnist_lab.figures import heat_map
from mnist_lab.research import ablation, robustness
from mnist_lab.research.calibration import calibration, with_temperature
from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.corruptions import CORRUPTIONS, corrupt
from mnist_lab.research.sweep import sweep, with_defaults
from mnist_mlp import EnhancedNet, evaluate, load_weights, notebook, plots

FOLDER = ROOT / "benchmarks" / "accuracy"
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "How-Far-Can-It-Go.ipynb", as_version=4)
RECORD = json.loads((FOLDER / "ablation.json").read_bytes())
IDEAS = json.loads((FOLDER / "ideas.json").read_bytes())
CONFIGURATIONS = RECORD["configurations"]
ENHANCED_NETS = ["enhanced_model_best.pth", "enhanced_model_robust.pth"]


@pytest.fixture(autouse=True, scope="module")
def published_files():
    """Skip these tests if `make ablation` has replaced the published files."""
    paths = ["benchmarks/accuracy/ablation.json", "benchmarks/accuracy/ideas.json"]
    for name in ("enhanced_model_best", "enhanced_model_robust", "conv_net"):
        paths += [f"models/{name}.pth", f"models/{name}.json"]
    skip_unless_published(*paths)


@pytest.fixture
def scripts(monkeypatch):
    """The modules of `make ablation` and `make ideas`."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "ablation", raising=False)
    return importlib.import_module("ablation"), importlib.import_module("ideas")


def load_published(name: str):
    """Return a published model, the card of its weights, and its run in the record."""
    path = ROOT / "models" / name
    card = json.loads(path.with_suffix(".json").read_bytes())
    model = load_weights(ConvNet() if name == "conv_net.pth" else EnhancedNet(), path)
    return model, card, CONFIGURATIONS[card["configuration"]]["runs"][0]


# The records


def test_record_has_the_configurations_of_the_script(scripts):
    script, _ = scripts

    assert list(CONFIGURATIONS) == list(script.CONFIGURATIONS)
    assert (RECORD["best"], RECORD["robust"]) == (script.BEST, script.ROBUST)
    for name, configuration in CONFIGURATIONS.items():
        runs = configuration["runs"]
        expected = with_defaults(script.CONFIGURATIONS[name])
        assert with_defaults(configuration["recipe"]) == expected
        assert configuration["compared_with"] == script.COMPARED_WITH.get(name)
        assert [run["seed"] for run in runs] == [run["seed"] for run in script.runs(name)]
        assert len(runs) == (10 if name == script.BEST else 5)
        assert all(list(run["corrupted"]) == list(CORRUPTIONS) for run in runs)
        assert len(runs[0]["test_wrong"]) == RECORD["test_images"] - runs[0]["test_correct"]


def test_ablation_takes_the_best_recipe_of_each_group(scripts):
    """No idea is clearly better on the warped validation images than the recipe that it changes."""
    script, ideas = scripts
    assert IDEAS["recipes"] == {group: recipe for group, (recipe, _) in ideas.IDEAS.items()}

    for name, group in script.GROUPS.items():
        configuration = script.CONFIGURATIONS[name]
        recipe = IDEAS["recipes"][group]
        keys = {*configuration, *recipe}
        changed = {key for key in keys if configuration.get(key) != recipe.get(key)}
        may_differ = {"all_images", "epochs", "teacher_logits"}
        assert changed <= may_differ

        assert list(IDEAS["groups"][group]) == list(ideas.variants(group))
        for idea, result in IDEAS["groups"][group].items():
            difference, half_width = result["warped_difference"]
            # The robust student is a compromise between clean and disturbed images.
            assert difference <= half_width or group == "robust student", idea


def test_difference_is_the_mean_with_its_t_interval(scripts):
    _, ideas = scripts
    random = np.random.default_rng(0)
    shares = torch.from_numpy(random.integers(0, 11, 5000) / 10)
    base = torch.from_numpy(random.integers(0, 11, 5000) / 10)

    difference, half_width = ideas.mean_and_half_width(shares, base)

    interval = ttest_1samp((shares - base).numpy(), 0).confidence_interval()
    assert difference == pytest.approx((interval.high + interval.low) / 2)
    assert half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)


@pytest.mark.parametrize(
    "name", [*ENHANCED_NETS, pytest.param("conv_net.pth", marks=pytest.mark.campaign)]
)
def test_published_weights_score_as_recorded(mnist, name):
    model, card, run = load_published(name)

    test = evaluate(model, mnist.test)
    striped = evaluate(model, corrupt(mnist.test, "stripe"))
    scaled = with_temperature(test, run["temperature"])

    assert card["recipe"] == {**CONFIGURATIONS[card["configuration"]]["recipe"], "seed": 0}
    assert test.n_correct == run["test_correct"] == card["test_correct"]
    assert torch.equal(test.correct, ablation.correct_mask(run, len(mnist.test)))
    assert striped.n_correct == run["corrupted"]["stripe"]
    assert calibration(scaled)["ece"] == pytest.approx(run["test_ece_scaled"], abs=1e-4)


def test_published_convnet_classifies_a_sample_as_recorded(mnist):
    model, card, run = load_published("conv_net.pth")
    test = evaluate(model, mnist.test.subset(torch.arange(1000)))
    assert torch.equal(test.correct, ablation.correct_mask(run, len(mnist.test))[:1000])
    assert card["test_correct"] == run["test_correct"]


def test_ablation_keeps_no_results_of_a_changed_recipe(scripts, tmp_path, monkeypatch):
    script, _ = scripts
    monkeypatch.setattr(script, "RECORD", tmp_path / "ablation.json")
    assert script.read_others(["ConvNet"]) == {}

    record = json.loads(json.dumps(RECORD))
    script.RECORD.write_text(json.dumps(record))
    assert list(script.read_others(["ConvNet"])) == [
        name for name in CONFIGURATIONS if name != "ConvNet"
    ]

    record["configurations"]["plain Adam"]["recipe"]["epochs"] = 11
    script.RECORD.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="plain Adam"):
        script.read_others(["ConvNet"])


# Tables and figures


def test_ideas_table_quotes_the_record():
    table = ablation.ideas_table(IDEAS)

    results = [result for group in IDEAS["groups"].values() for result in group.values()]
    assert list(table["accuracy"]) == [f"{r['validation_accuracy']:.2%}" for r in results]
    assert list(table["warped copies"]) == [f"{r['warped_accuracy']:.2%}" for r in results]
    row = table.loc["ConvNet: AdamW"]
    difference, half_width = IDEAS["groups"]["ConvNet"]["AdamW"]["disturbed_difference"]
    assert row["disturbed, points"] == f"{100 * difference:+.2f} ± {100 * half_width:.2f}"
    assert table.loc["ConvNet: the recipe", "warped, points"] == ""


def test_ablation_table_compares_with_the_named_configuration():
    table = ablation.ablation_table(RECORD)

    assert list(table.index) == list(CONFIGURATIONS)
    for name, configuration in CONFIGURATIONS.items():
        row = table.loc[name]
        count = np.array([run["test_correct"] for run in configuration["runs"]])
        assert row["test accuracy"] == f"{count.mean() / 1e4:.2%} ± {count.std(ddof=1) / 100:.2f}"

        earlier_name = configuration["compared_with"]
        if not earlier_name:
            continue
        earlier_runs = CONFIGURATIONS[earlier_name]["runs"]
        earlier = np.array([run["test_correct"] for run in earlier_runs])
        n_seeds = min(len(count), len(earlier))
        wrong = set(configuration["runs"][0]["test_wrong"])
        earlier_wrong = set(earlier_runs[0]["test_wrong"])
        p_images = binomtest(len(wrong - earlier_wrong), len(wrong ^ earlier_wrong)).pvalue
        assert row["p, images of seed 0"] == f"{p_images:.1g}"
        assert row["compared with"] == earlier_name
        gain = count[:n_seeds].mean() - earlier[:n_seeds].mean()
        assert row["points"] == f"{gain / 100:+.2f}"
        assert row["p, seeds"] == f"{ttest_rel(count[:n_seeds], earlier[:n_seeds]).pvalue:.1g}"


def test_robustness_table_and_errors_are_means_of_the_counts():
    table = robustness.robustness_table(RECORD)
    errors = robustness.corruption_errors(RECORD)

    for name, configuration in CONFIGURATIONS.items():
        counts = np.array([list(run["corrupted"].values()) for run in configuration["runs"]])
        accuracies = counts.mean(0) / 10_000
        assert list(errors[name]) == list(CORRUPTIONS)
        assert list(errors[name].values()) == pytest.approx(list(1 - accuracies))
        if name in (RECORD["best"], RECORD["robust"]):
            expected = [*accuracies, accuracies.mean()]
            assert list(table[name])[1:] == [f"{accuracy:.1%}" for accuracy in expected]


def test_calibration_table_has_the_means_over_the_seeds():
    table = ablation.calibration_table(RECORD)

    for name, configuration in CONFIGURATIONS.items():
        runs = configuration["runs"]
        assert list(table.loc[name]) == [
            f"{100 * mean(run['test_ece'] for run in runs):.2f}",
            f"{mean(run['temperature'] for run in runs):.2f}",
            f"{100 * mean(run['test_ece_scaled'] for run in runs):.2f}",
        ]


def test_pareto_plot_has_a_point_for_each_network():
    ax = robustness.pareto_plot(RECORD, {"others": (0.99, 0.8)})

    points = [tuple(line.get_xydata()[0]) for line in ax.lines]
    assert points[-1] == pytest.approx((1, 20))
    assert [text.get_text() for text in ax.texts] == [*CONFIGURATIONS, "others"]
    for name, (clean_error, corrupted_error) in zip(CONFIGURATIONS, points, strict=False):
        runs = CONFIGURATIONS[name]["runs"]
        count = np.mean([run["test_correct"] for run in runs])
        corrupted_count = np.mean([list(run["corrupted"].values()) for run in runs])
        assert clean_error == pytest.approx(100 - count / 100)
        assert corrupted_error == pytest.approx(100 - corrupted_count / 100)


def test_readme_quotes_the_record():
    table = ablation.ablation_table(RECORD)
    errors = robustness.corruption_errors(RECORD)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    for name in set(CONFIGURATIONS) - {"one-cycle AdamW", "averaged weights"}:
        clean = table.loc[name, "test accuracy"]
        assert f"| {clean} | {1 - mean(errors[name].values()):.1%} |" in readme
    for name in (RECORD["best"], RECORD["robust"]):
        correct = CONFIGURATIONS[name]["runs"][0]["test_correct"]
        assert f"{correct:,} of 10,000" in readme


# The notebook


def test_notebook_is_published_without_recomputing():
    cell = next(c for c in code_cells(NOTEBOOK) if "parameters" in c.metadata.get("tags", []))
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert values == {"dataset": "mnist", "recompute": ""}


@pytest.mark.parametrize("name", ["ablation", "corruptions", "pareto"])
def test_committed_figure_shows_the_record(name, tmp_path, monkeypatch):
    skip_unless_published(f"figures/{name}.png")
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    cell = next(c for c in code_cells(NOTEBOOK) if f'save_figure("{name}")' in c.source)
    variables = {
        "plots": plots,
        "plt": plt,
        "np": np,
        "notebook": notebook,
        "heat_map": heat_map,
        "ablation": ablation,
        "robustness": robustness,
        "record": RECORD,
        "best": RECORD["best"],
        "accuracies": ablation.test_accuracies(RECORD),
        "errors": robustness.corruption_errors(RECORD),
    }

    plots.use_style()
    exec(cell.source, variables)

    assert_same_picture(tmp_path / f"figures/{name}.png", ROOT / f"figures/{name}.png")


def test_recompute_trains_a_configuration_again(tmp_path):
    recipe = {"dataset": "digits", "epochs": 1, "batch_size": 64}
    with parallel_config(backend="sequential"):
        runs = sweep([{**recipe, "seed": seed} for seed in (0, 1)], tmp_path / "first")
        recorded_runs = [
            {"seed": seed, "validation_accuracy": run["validation_accuracy"]}
            for seed, run in enumerate(runs)
        ]
        record = {"configurations": {"short": {"recipe": recipe, "runs": recorded_runs}}}

        new, recorded = ablation.recompute(record, "short", tmp_path / "again")

    assert new == recorded == mean(run["validation_accuracy"] for run in runs)
    assert len(list((tmp_path / "again").glob("*.pth"))) == 2


@pytest.mark.parametrize("name", ["longest", "distilled"])
def test_read_record_refuses_what_cannot_be_recomputed(name):
    """There is no such configuration, or it has no validation accuracy."""
    with pytest.raises(ValueError, match=f"'{name}': expected one of plain Adam"):
        ablation.read_record(name)


def test_ablation_plot_writes_mean_and_sample_deviation():
    axes = ablation.ablation_plot({"net": [0.99, 0.992, 0.997]})

    assert "99.30% ± 0.36" in texts(axes)
