"""The ablation: its record is of what its script trains; quoted numbers are in the record."""

import ast
import json
import sys
from statistics import mean

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same_picture, code_cells, published
from scipy.stats import ttest_1samp, ttest_rel

from mnist_lab.figures import heat_map
from mnist_lab.research import ablation, robustness
from mnist_lab.research.calibration import calibration, with_temperature
from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.corruptions import CORRUPTIONS, corrupt
from mnist_lab.research.sweep import sweep
from mnist_mlp import EnhancedNet, evaluate, load_weights, notebook, plots

PATH = ROOT / "notebooks" / "How-Far-Can-It-Go.ipynb"
FOLDER = ROOT / "benchmarks" / "accuracy"
RECORD = json.loads((FOLDER / "ablation.json").read_bytes())
IDEAS = json.loads((FOLDER / "ideas.json").read_bytes())
CONFIGURATIONS = RECORD["configurations"]
PUBLISHED = {
    "enhanced_model_best.pth": EnhancedNet,
    "enhanced_model_robust.pth": EnhancedNet,
    "conv_net.pth": ConvNet,
}


@pytest.fixture(autouse=True)
def as_published():
    """These tests are about published files, not about a user's own `make ablation`."""
    weights = [f"models/{path}" for path in PUBLISHED]
    cards = [path.replace(".pth", ".json") for path in weights]
    records = ("benchmarks/accuracy/ablation.json", "benchmarks/accuracy/ideas.json")
    published(*records, *weights, *cards)


@pytest.fixture
def script(monkeypatch):
    """The module of `make ablation`."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "ablation", raising=False)
    import ablation as script

    return script


@pytest.fixture
def ideas(script):
    """The module of `make ideas`."""
    import ideas

    return ideas


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


def test_record_is_of_the_configurations_of_its_script(script):
    assert list(CONFIGURATIONS) == list(script.CONFIGURATIONS)
    for name, configuration in CONFIGURATIONS.items():
        runs = configuration["runs"]
        assert configuration["recipe"] == script.recipe(name)
        assert configuration["compared_with"] == script.COMPARED_WITH.get(name)
        assert [run["seed"] for run in runs] == list(range(10 if name == script.BEST else 5))
        assert all(list(run["corrupted"]) == list(CORRUPTIONS) for run in runs)
        assert len(runs[0]["test_wrong"]) == RECORD["test_images"] - runs[0]["test_correct"]
    assert (RECORD["best"], RECORD["robust"]) == (script.BEST, script.ROBUST)


def test_no_idea_was_better_on_validation_than_the_recipe(script, ideas):
    """On warped validation images; what is chosen between clean and disturbed ones is a balance."""
    recipes = {name: recipe for name, (recipe, _) in ideas.IDEAS.items()}
    assert IDEAS["recipes"] == recipes
    for name, group in script.GROUPS.items():
        recipe = script.CONFIGURATIONS[name]
        changed = {field for field in recipe if recipe[field] != recipes[group].get(field)}
        assert changed <= {"all_images", "epochs", "teacher_logits"}
        assert list(IDEAS["groups"][group]) == list(ideas.variants(group))
        for idea, result in IDEAS["groups"][group].items():
            points, half_width = result["warped_difference"]
            assert points - half_width <= 0 or group == "robust student", idea


def test_difference_is_the_mean_with_its_t_interval(ideas):
    random = np.random.default_rng(0)
    one = torch.from_numpy(random.integers(0, 11, 5000) / 10)
    other = torch.from_numpy(random.integers(0, 11, 5000) / 10)
    mean_difference, half_width = ideas.difference(one, other)
    interval = ttest_1samp((one - other).numpy(), 0).confidence_interval()
    assert mean_difference == pytest.approx(float((one - other).mean()))
    assert half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_score_what_the_record_says(mnist, name):
    path = ROOT / "models" / name
    card = json.loads(path.with_suffix(".json").read_bytes())
    configuration = CONFIGURATIONS[card["configuration"]]
    run = configuration["runs"][0]
    assert card["recipe"] == {**configuration["recipe"], "seed": 0}

    model = load_weights(PUBLISHED[name](), path)
    test = evaluate(model, mnist.test)
    assert test.n_correct == run["test_correct"] == card["test_correct"]
    assert torch.equal(test.correct, ablation.correct_mask(run, len(mnist.test)))
    striped = evaluate(model, corrupt(mnist.test, "stripe"))
    assert striped.n_correct == run["corrupted"]["stripe"]
    scaled = calibration(with_temperature(test, run["temperature"]))["ece"]
    assert scaled == pytest.approx(run["test_ece_scaled"], abs=1e-4)


# Tables and figures


def test_ideas_table_is_the_record():
    table = ablation.ideas_table(IDEAS)
    results = [result for group in IDEAS["groups"].values() for result in group.values()]
    assert list(table["accuracy"]) == [f"{r['validation_accuracy']:.2%}" for r in results]
    assert list(table["warped copies"]) == [f"{r['warped_accuracy']:.2%}" for r in results]


def test_ablation_table_compares_with_the_named_configuration():
    table = ablation.ablation_table(RECORD)
    counts = {
        name: np.array([run["test_correct"] for run in configuration["runs"]])
        for name, configuration in CONFIGURATIONS.items()
    }
    assert list(table.index) == list(counts)
    for name, count in counts.items():
        row = table.loc[name]
        assert row["test accuracy"] == f"{count.mean() / 1e4:.2%} ± {count.std(ddof=1) / 100:.2f}"
        earlier_name = CONFIGURATIONS[name]["compared_with"]
        if earlier_name:
            earlier = counts[earlier_name]
            n = min(len(count), len(earlier))  # the seeds that both have
            assert row["compared with"] == earlier_name
            assert row["points"] == f"{(count.mean() - earlier.mean()) / 100:+.2f}"
            assert row["p, seeds"] == f"{ttest_rel(count[:n], earlier[:n]).pvalue:.1g}"


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
        expected = [
            f"{100 * mean(run['test_ece'] for run in runs):.2f}",
            f"{mean(run['temperature'] for run in runs):.2f}",
            f"{100 * mean(run['test_ece_scaled'] for run in runs):.2f}",
        ]
        assert list(table.loc[name]) == expected


def test_pareto_plot_has_a_point_for_each_network():
    ax = robustness.pareto_plot(RECORD, {"others": (0.99, 0.8)})
    points = [tuple(line.get_xydata()[0]) for line in ax.lines]
    assert points[-1] == pytest.approx((1, 20))
    assert [text.get_text() for text in ax.texts] == [*CONFIGURATIONS, "others"]
    for name, (clean, corrupted) in zip(CONFIGURATIONS, points, strict=False):
        runs = CONFIGURATIONS[name]["runs"]
        assert clean == pytest.approx(100 - np.mean([run["test_correct"] for run in runs]) / 100)
        mean_count = np.mean([list(run["corrupted"].values()) for run in runs])
        assert corrupted == pytest.approx(100 - mean_count / 100)


def test_readme_quotes_the_record():
    table = ablation.ablation_table(RECORD)
    errors = robustness.corruption_errors(RECORD)
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in CONFIGURATIONS:
        if name not in ("one-cycle AdamW", "averaged weights"):
            clean = table.loc[name, "test accuracy"]
            assert f"| {clean} | {1 - mean(errors[name].values()):.1%} |" in front
    for name in (RECORD["best"], RECORD["robust"]):
        correct = CONFIGURATIONS[name]["runs"][0]["test_correct"]
        assert f"{correct:,} of 10,000" in front


# The notebook


def test_notebook_is_published_without_recomputing(committed):
    (cell,) = [c for c in code_cells(committed) if "parameters" in c.metadata.get("tags", [])]
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert values == {"dataset": "mnist", "recompute": ""}


@pytest.mark.parametrize("name", ["ablation", "corruptions", "pareto"])
def test_committed_figure_is_of_the_record(committed, name, tmp_path, monkeypatch):
    published(f"figures/{name}.png")
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (cell,) = [c for c in code_cells(committed) if f'save_figure("{name}")' in c.source]
    names = {
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
    exec(cell.source, names)
    plt.close("all")
    assert_same_picture(tmp_path / f"figures/{name}.png", ROOT / f"figures/{name}.png")


def test_recompute_trains_a_configuration_again(tmp_path):
    recipe = {"dataset": "digits", "epochs": 2, "batch_size": 64}
    runs = sweep([{**recipe, "seed": seed} for seed in (0, 1)], tmp_path / "first")
    results = [
        {"seed": seed, "validation_accuracy": run["validation_accuracy"]}
        for seed, run in enumerate(runs)
    ]
    record = {"configurations": {"short": {"recipe": recipe, "runs": results}}}
    again, recorded = ablation.recompute(record, "short", tmp_path / "again")
    assert again == recorded == mean(run["validation_accuracy"] for run in runs)
    assert len(list((tmp_path / "again").glob("*.pth"))) == 2


def test_read_record_refuses_an_unknown_configuration():
    with pytest.raises(ValueError, match="'longest': expected one of plain Adam"):
        ablation.read_record("longest")
