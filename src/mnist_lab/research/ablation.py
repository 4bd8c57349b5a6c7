"""Tables and figures from the records of `make ideas` and `make ablation`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from mnist_lab.research.sweep import sweep
from mnist_mlp.comparison import compare
from mnist_mlp.files import published, read_json
from mnist_mlp.plots import BLUE, GREY, new_axes


def read_ideas() -> dict:
    """Return the record of `make ideas`. Raises OSError or ValueError if it is damaged."""
    return read_json(published("benchmarks/accuracy/ideas.json"), {"groups": dict})


def read_record(configuration: str = "") -> dict:
    """Return the record of `make ablation`.

    Args:
        configuration: The configuration that the notebook is going to `recompute`, or "" for none.
            It must be in the record, with validation accuracies. This is checked here, at the start
            of the notebook, because it recomputes only after an hour of other cells.

    Raises:
        OSError, ValueError: The record is missing or damaged, or `configuration` cannot be
            recomputed.
    """
    schema = {"configurations": dict, "best": str, "robust": str, "test_images": int}
    record = read_json(published("benchmarks/accuracy/ablation.json"), schema)

    # A configuration that trains on the validation images has no validation accuracy.
    names = [
        name
        for name, entry in record["configurations"].items()
        if not entry["recipe"]["all_images"]
    ]
    if configuration and configuration not in names:
        raise ValueError(f"cannot recompute {configuration!r}: expected one of {', '.join(names)}.")
    return record


def recompute(record: dict, name: str, folder: Path) -> tuple[float, float]:
    """Train a configuration again, with all its seeds.

    Args:
        record: What `read_record` returns.
        name: The configuration.
        folder: Where the new weights and their records go.

    Returns:
        The new mean validation accuracy and the recorded one.
    """
    configuration = record["configurations"][name]
    recorded_runs = configuration["runs"]
    runs = [{**configuration["recipe"], "seed": run["seed"]} for run in recorded_runs]
    new_accuracy = mean(run["validation_accuracy"] for run in sweep(runs, folder))
    recorded_accuracy = mean(run["validation_accuracy"] for run in recorded_runs)
    return new_accuracy, recorded_accuracy


def top_two(labels: torch.Tensor, logits: Sequence[torch.Tensor]) -> list[str]:
    """Return a caption per image: its label, then a line per model with its two likeliest digits.

    Each digit has its probability in percent.

    Args:
        labels: int64 of shape (N,).
        logits: The logits of each model, of shape (N, classes).
    """
    captions = []
    for i, label in enumerate(labels):
        lines = [f"label {label}"]
        for model_logits in logits:
            probabilities, digits = model_logits[i].softmax(0).topk(2)
            first = f"{digits[0]}:{100 * probabilities[0]:.0f}"
            second = f"{digits[1]}:{100 * probabilities[1]:.0f}"
            lines.append(f"{first} {second}")
        captions.append("\n".join(lines))
    return captions


def correct_mask(run: dict, images: int) -> torch.Tensor:
    """Return which test images a run classified correctly, bool of shape (images,).

    Only the first run of each configuration, with seed 0, records this.
    """
    correct = torch.ones(images, dtype=torch.bool)
    correct[run["test_wrong"]] = False
    return correct


def test_accuracies(record: dict) -> dict[str, list[float]]:
    """Return the test accuracy of each seed, from 0 to 1, for each configuration."""
    accuracies = {}
    for name, configuration in record["configurations"].items():
        counts = [run["test_correct"] for run in configuration["runs"]]
        accuracies[name] = [count / record["test_images"] for count in counts]
    return accuracies


def ablation_table(record: dict) -> pd.DataFrame:
    """Return a row for each configuration, with a comparison to an earlier one.

    A row has the mean and the standard deviation over the seeds. The comparison has the difference
    of the means and the p-value of a t-test that pairs the seeds, both over the seeds that the two
    have in common, and the p-value of McNemar's test on the images of seed 0.
    """
    from scipy.stats import ttest_rel

    configurations = record["configurations"]
    accuracies = test_accuracies(record)
    n_images = record["test_images"]

    rows = []
    for name, configuration in configurations.items():
        runs = configuration["runs"]
        accuracy = accuracies[name]
        validation = "trained on"  # with `all_images`, so there is no validation accuracy
        if not configuration["recipe"]["all_images"]:
            validation = f"{mean(run['validation_accuracy'] for run in runs):.2%}"

        row = {
            "configuration": name,
            "test accuracy": f"{mean(accuracy):.2%} ± {100 * stdev(accuracy):.2f}",
            "validation": validation,
            "seconds": f"{mean(run['training_seconds'] for run in runs):.0f}",
        }

        earlier_name = configuration["compared_with"]
        if earlier_name:
            earlier_accuracy = accuracies[earlier_name]
            # A configuration may have more seeds than the other: both take the common ones.
            n_seeds = min(len(accuracy), len(earlier_accuracy))
            common = accuracy[:n_seeds]
            earlier_common = earlier_accuracy[:n_seeds]
            points = 100 * (mean(common) - mean(earlier_common))
            seeds_test = ttest_rel(common, earlier_common)

            earlier_run = configurations[earlier_name]["runs"][0]
            images_test = compare(
                correct_mask(earlier_run, n_images), correct_mask(runs[0], n_images)
            )

            row["compared with"] = earlier_name
            row["points"] = f"{points:+.2f}"
            row["p, seeds"] = f"{seeds_test.pvalue:.1g}"
            row["p, images of seed 0"] = f"{images_test.p_value:.1g}"
        rows.append(row)

    return pd.DataFrame(rows).fillna("").set_index("configuration")


def ideas_table(record: dict) -> pd.DataFrame:
    """Return a row for each idea in the record of `make ideas`.

    Accuracies are in percent. Differences are in percentage points, with the half width of their
    95% interval.
    """
    rows = []
    for group, ideas in record["groups"].items():
        for name, idea in ideas.items():
            warped_points = _points(idea["warped_difference"])
            disturbed_points = _points(idea["disturbed_difference"])
            if name == "the recipe":  # the baseline of the differences
                warped_points = ""
                disturbed_points = ""

            rows.append(
                {
                    "idea": f"{group}: {name}",
                    "validation loss": f"{idea['validation_loss']:.4f}",
                    "accuracy": f"{idea['validation_accuracy']:.2%}",
                    "warped copies": f"{idea['warped_accuracy']:.2%}",
                    "warped, points": warped_points,
                    "disturbed copies": f"{idea['disturbed_accuracy']:.2%}",
                    "disturbed, points": disturbed_points,
                }
            )
    return pd.DataFrame(rows).set_index("idea")


def _points(difference: Sequence[float]) -> str:
    """Write a difference and the half width of its interval in percentage points."""
    middle, half_width = difference
    return f"{100 * middle:+.2f} ± {100 * half_width:.2f}"


def calibration_table(record: dict) -> pd.DataFrame:
    """Return the ECE of each configuration before and after temperature scaling.

    All numbers are means over the seeds.
    """
    rows = []
    for name, configuration in record["configurations"].items():
        runs = configuration["runs"]
        rows.append(
            {
                "configuration": name,
                "ECE, in points": f"{100 * mean(run['test_ece'] for run in runs):.2f}",
                "temperature": f"{mean(run['temperature'] for run in runs):.2f}",
                "ECE after scaling": f"{100 * mean(run['test_ece_scaled'] for run in runs):.2f}",
            }
        )
    return pd.DataFrame(rows).set_index("configuration")


def ablation_plot(
    accuracies: Mapping[str, Sequence[float]],
    published: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the test errors of each configuration: a dot per seed, and a bar at the mean.

    The mean accuracy and its standard deviation stand beside each row.

    Args:
        accuracies: The test accuracies of each configuration, from 0 to 1.
        published: Accuracies of other people's networks, drawn as vertical lines.
        ax: Where to draw.
    """
    ax = ax or new_axes(9.5, 0.9 + 0.5 * len(accuracies))
    top = -0.6  # the first row is at 0
    bottom = len(accuracies) - 0.5

    for row, seed_accuracies in enumerate(accuracies.values()):
        errors = 100 * (1 - np.asarray(seed_accuracies))
        ax.plot(errors, np.full(len(errors), row), "o", color=BLUE, alpha=0.45, markersize=6)
        ax.plot(errors.mean(), row, "|", color=BLUE, markersize=22, markeredgewidth=2.5)
        summary = f"{100 - errors.mean():.2f}% ± {errors.std(ddof=1):.2f}"
        ax.text(1.02, row, summary, transform=ax.get_yaxis_transform(), va="center", fontsize=10)

    for name, accuracy in (published or {}).items():
        error = 100 * (1 - accuracy)
        ax.axvline(error, color=GREY, linestyle="--", linewidth=1, zorder=0)
        ax.text(error, top - 0.15, name, ha="center", va="bottom", fontsize=8.5)  # above the axes

    # Both axes are reversed: small errors are on the right, and the first configuration is on top.
    all_accuracies = [accuracy for values in accuracies.values() for accuracy in values]
    left = 1.3 * (100 * (1 - min(all_accuracies)))
    right = 0.7 * (100 * (1 - max(all_accuracies)))
    ax.set_xscale("log")
    candidates = (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5)
    ticks = [tick for tick in candidates if tick > right]  # a larger one on the left is not drawn
    ax.set_xticks(ticks, [f"{tick:g}%" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_yticks(range(len(accuracies)), list(accuracies))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("test error (log scale)")
    return ax
