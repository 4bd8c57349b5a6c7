"""The ablation: its record is of what its script trains; quoted numbers are in the record."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from statistics import mean

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same_picture, code_cells, published
from scipy.stats import ttest_1samp, ttest_rel

from mnist_mlp import EnhancedNet, Recipe, evaluate, load_weights, notebook, plots
from mnist_mlp.notebook.figures import heat_map
from mnist_mlp.research import ablation, robustness
from mnist_mlp.research.calibration import calibration, with_temperature
from mnist_mlp.research.convnet import ConvNet
from mnist_mlp.research.corruptions import CORRUPTIONS, corrupt
from mnist_mlp.research.sweep import sweep

PATH = ROOT / "notebooks" / "How-Far-Can-It-Go.ipynb"
FOLDER = ROOT / "benchmarks" / "accuracy"
RECORD, IDEAS = (json.loads((FOLDER / f"{n}.json").read_bytes()) for n in ("ablation", "ideas"))
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
    for name in ("ablation", "ideas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import ablation as script

    return script


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


def test_the_record_is_of_the_configurations_that_the_script_would_train(script):
    assert list(CONFIGURATIONS) == list(script.CONFIGURATIONS)
    seeds = {RECORD["best"]: 10}
    for name, configuration in CONFIGURATIONS.items():
        assert configuration["recipe"] == script.recipe(name)
        assert configuration["compared_with"] == script.COMPARED_WITH.get(name)
        assert [run["seed"] for run in configuration["runs"]] == list(range(seeds.get(name, 5)))
        for run in configuration["runs"]:
            assert len(run["test_wrong"]) == RECORD["test_images"] - run["test_correct"]
            assert list(run["corrupted"]) == list(CORRUPTIONS)
    assert (RECORD["best"], RECORD["robust"]) == (script.BEST, script.ROBUST_ONE)


def test_the_default_recipe_is_a_configuration():
    """So that the main notebook's network has its place in the ablation."""
    recipe = CONFIGURATIONS["elastic warps"]["recipe"]
    default = {"dataset": "mnist", "model": "EnhancedNet", "teacher_logits": ""}
    default |= {"all_images": False, "disturbed_share": 0.0}
    assert recipe | {"seed": 0} == default | Recipe(precision="float32").asdict()


def test_the_recipes_are_those_that_no_idea_was_better_than_on_validation(script):
    """On warped validation images; what is chosen between clean and disturbed ones is a balance."""
    import ideas

    groups = {name: recipe for name, (recipe, _) in ideas.IDEAS.items()}
    assert IDEAS["recipes"] == groups
    for name, group in script.GROUPS.items():
        recipe = script.CONFIGURATIONS[name]
        changed = {k for k in recipe if recipe[k] != groups[group].get(k)}
        assert changed <= {"all_images", "epochs", "teacher_logits"}
        assert list(IDEAS["groups"][group]) == list(ideas.variants(group))
        for idea, found in IDEAS["groups"][group].items():
            points, half = found["warped_difference"]
            assert points - half <= 0 or group == "robust student", idea
    published = {script.BEST: "best", script.ROBUST_ONE: "robust"}
    expected = {name: f"enhanced_model_{word}.pth" for name, word in published.items()}
    assert expected | {"ConvNet": "conv_net.pth"} == script.PUBLISHED


def test_the_table_of_ideas_is_the_record():
    rows = ablation.ideas_table(IDEAS).splitlines()[2:]
    found = [idea for group in IDEAS["groups"].values() for idea in group.values()]
    assert len(rows) == len(found)
    for row, idea in zip(rows, found, strict=True):
        assert f"| {idea['validation_accuracy']:.2%} | {idea['warped_accuracy']:.2%} |" in row


def test_the_differences_of_ideas_are_those_of_the_mean_over_the_images(script):
    import ideas

    random = np.random.default_rng(0)
    one, other = (torch.from_numpy(random.integers(0, 11, 5000) / 10) for _ in range(2))
    mean_difference, half = ideas.difference(one, other)
    interval = ttest_1samp((one - other).numpy(), 0).confidence_interval()
    assert mean_difference == pytest.approx(float((one - other).mean()))
    assert half == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_are_those_of_seed_0_and_score_what_the_record_says(mnist, name):
    path = ROOT / "models" / name
    card = json.loads(path.with_suffix(".json").read_bytes())
    configuration = CONFIGURATIONS[card["configuration"]]
    run = configuration["runs"][0]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert card["recipe"] == configuration["recipe"] | {"seed": 0}
    model = load_weights(PUBLISHED[name](), path)
    test = evaluate(model, mnist.test)
    assert test.n_correct == run["test_correct"] == card["test_correct"]
    assert (~test.correct).nonzero()[:, 0].tolist() == run["test_wrong"]
    correct = ablation.correct_mask(run, len(mnist.test))
    assert not correct[run["test_wrong"]].any()
    assert correct.sum() == test.n_correct
    found = evaluate(model, corrupt(mnist.test, "stripe")).n_correct
    assert found == run["corrupted"]["stripe"]
    scaled = calibration(with_temperature(test, run["temperature"]))["ece"]
    assert scaled == pytest.approx(run["test_ece_scaled"], abs=1e-4)


def test_the_table_compares_with_the_configuration_that_is_named():
    lines = ablation.ablation_table(RECORD).splitlines()
    rows = {cells[0]: cells for cells in (row.strip("| ").split(" | ") for row in lines)}
    counts = {
        name: np.array([run["test_correct"] for run in configuration["runs"]])
        for name, configuration in CONFIGURATIONS.items()
    }
    for name, count in counts.items():
        assert rows[name][1] == f"{count.mean() / 1e4:.2%} ± {count.std(ddof=1) / 100:.2f}"
        if before := CONFIGURATIONS[name]["compared_with"]:
            assert rows[name][4] == before
            assert rows[name][5] == f"{(count.mean() - counts[before].mean()) / 100:+.2f}"
            n = min(len(count), len(counts[before]))  # the seeds that both have
            p_value = ttest_rel(count[:n], counts[before][:n]).pvalue
            assert rows[name][6] == f"{p_value:.1g}"


def test_the_errors_over_the_corruptions_are_those_of_the_counts():
    errors = robustness.corruption_errors(RECORD)
    for name, configuration in CONFIGURATIONS.items():
        for corruption in CORRUPTIONS:
            counts = [run["corrupted"][corruption] for run in configuration["runs"]]
            assert errors[name][corruption] == pytest.approx(1 - np.mean(counts) / 10_000)


def test_the_robustness_table_names_every_corruption_and_has_the_mean_of_the_fifteen():
    lines = robustness.robustness_table(RECORD).splitlines()
    rows = {cells[0]: cells[1:3] for cells in (row.strip("| ").split(" | ") for row in lines)}
    names = RECORD["best"], RECORD["robust"]
    counts = {
        name: np.array([[*run["corrupted"].values()] for run in CONFIGURATIONS[name]["runs"]])
        for name in names
    }
    for i, corruption in enumerate(CORRUPTIONS):
        expected = [f"{counts[name][:, i].mean() / 1e4:.1%}" for name in names]
        assert rows[corruption.replace("_", " ")] == expected
    expected = [f"{counts[name].mean() / 1e4:.1%}" for name in names]
    assert rows["**mean of the fifteen**"] == expected


def test_the_pareto_figure_has_a_point_for_each_configuration_and_each_published_network():
    ax = robustness.pareto_plot(RECORD, {"others": (0.99, 0.8)})
    points = [tuple(line.get_xydata()[0]) for line in ax.lines]
    assert points[-1] == pytest.approx((1, 20))
    assert [text.get_text() for text in ax.texts] == [*CONFIGURATIONS, "others"]
    for name, (clean, corrupted) in zip(CONFIGURATIONS, points, strict=False):
        runs = CONFIGURATIONS[name]["runs"]
        assert clean == pytest.approx(100 - np.mean([run["test_correct"] for run in runs]) / 100)
        mean_count = np.mean([[*run["corrupted"].values()] for run in runs])
        assert corrupted == pytest.approx(100 - mean_count / 100)


def test_the_calibration_table_has_the_means_over_the_seeds():
    lines = ablation.calibration_table(RECORD).splitlines()
    rows = {cells[0]: cells for cells in (row.strip("| ").split(" | ") for row in lines)}
    for name, configuration in CONFIGURATIONS.items():
        runs = configuration["runs"]
        keys = ("test_ece", "temperature", "test_ece_scaled")
        ece, temperature, scaled = (mean(run[key] for run in runs) for key in keys)
        assert rows[name][1:] == [f"{100 * ece:.2f}", f"{temperature:.2f}", f"{100 * scaled:.2f}"]


def test_the_readme_quotes_the_record():
    table = ablation.ablation_table(RECORD)
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    errors = robustness.corruption_errors(RECORD)
    for name in [n for n in CONFIGURATIONS if n not in ("one-cycle AdamW", "averaged weights")]:
        clean = table[table.index(f"| {name} |") :].split(" | ")[1]
        assert f"| {clean} | {1 - mean(errors[name].values()):.1%} |" in front
    for name in (RECORD["best"], RECORD["robust"]):
        correct = CONFIGURATIONS[name]["runs"][0]["test_correct"]
        assert f"{correct:,} of 10,000" in front


# The notebook


def test_every_output_is_compared(committed):
    for cell in code_cells(committed):
        assert set(cell.metadata.get("tags", [])) <= {"parameters"}


def test_the_published_notebook_reads_records_and_recomputes_nothing(committed):
    (cell,) = [c for c in code_cells(committed) if "parameters" in c.metadata.get("tags", [])]
    found = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert found == {"dataset": "mnist", "recompute": ""}


@pytest.mark.parametrize("name", ["ablation", "corruptions", "pareto"])
def test_the_committed_figure_is_of_the_record(committed, name, tmp_path, monkeypatch):
    published(f"figures/{name}.png")
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (cell,) = [c for c in code_cells(committed) if f'save_figure("{name}")' in c.source]
    names = {"plots": plots, "plt": plt, "np": np, "ablation": ablation, "heat_map": heat_map}
    names |= {"record": RECORD, "best": RECORD["best"], "notebook": notebook}
    names |= {"robustness": robustness, "accuracies": ablation.test_accuracies(RECORD)}
    names |= {"errors": robustness.corruption_errors(RECORD)}
    plots.use_style()
    exec(cell.source, names)
    plt.close("all")
    assert_same_picture(tmp_path / f"figures/{name}.png", ROOT / f"figures/{name}.png")


@pytest.mark.campaign
def test_recompute_trains_a_configuration_again(tmp_path, monkeypatch, mnist):
    """The cell itself, on a record with one configuration of two short runs."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    cell = next(c for c in nbformat.read(PATH, 4).cells if "if recompute:" in c.source)
    recipe = {"epochs": 1, "augment_strength": 0.0, "batch_size": 2048, "all_images": False}
    runs = sweep([recipe | {"seed": seed} for seed in (0, 1)], tmp_path / "first")
    short = {
        "recipe": recipe | {"all_images": False},
        "runs": [{"seed": s} | run for s, run in enumerate(runs)],
    }
    names = {"record": {"configurations": {"short": short}}, "recompute": "short"}
    names |= {"ablation": ablation, "notebook": notebook}
    exec(cell.source, names)
    assert len(list(tmp_path.glob("recomputed/*.json"))) == 2
    for run in short["runs"]:
        run["validation_accuracy"] += 0.01
    with pytest.raises(AssertionError):
        exec(cell.source, names)


def test_an_unknown_configuration_stops_with_one_sentence(tmp_path, mnist):
    command = [sys.executable, "-m", "papermill", PATH, tmp_path / "out.ipynb"]
    command += ["--no-progress-bar", "-p", "recompute", "longest"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MNIST_MLP_OUTPUT": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode
    words = "ValueError: cannot recompute 'longest': expected one of plain Adam, one-"
    assert done.stderr.strip().splitlines()[-1].startswith(words)
