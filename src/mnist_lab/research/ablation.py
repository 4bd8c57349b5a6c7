"""The records of `make ideas` and `make ablation`: their tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from mnist_lab.research.sweep import sweep
from mnist_mlp.comparison import compare
from mnist_mlp.files import read_json, repo_root
from mnist_mlp.plots import BLUE, GREY, new_axes

FOLDER = repo_root() / "benchmarks" / "accuracy"


def read_ideas() -> dict:
    """Return the record of `make ideas`. Raises OSError or ValueError if it is damaged."""
    return read_json(FOLDER / "ideas.json", {"groups": dict})


def read_record(configuration: str = "") -> dict:
    """Return the record of `make ablation`.

    Raises OSError or ValueError if it is missing or damaged, or if a configuration is named that
    it has not, or that has no validation accuracies.
    """
    schema = {"configurations": dict, "best": str, "test_images": int}
    record = read_json(FOLDER / "ablation.json", schema)

    validated = [k for k, v in record["configurations"].items() if not v["recipe"]["all_images"]]
    if configuration and configuration not in validated:
        expected = ", ".join(validated)
        raise ValueError(f"cannot recompute {configuration!r}: expected one of {expected}.")
    return record


def recompute(record: dict, name: str, folder: Path) -> tuple[float, float]:
    """Train a configuration again; return its mean validation accuracy and that of the record."""
    configuration = record["configurations"][name]
    runs = [{**configuration["recipe"], "seed": run["seed"]} for run in configuration["runs"]]
    again = mean(run["validation_accuracy"] for run in sweep(runs, folder))
    recorded = mean(run["validation_accuracy"] for run in configuration["runs"])
    return again, recorded


def top_two(labels: torch.Tensor, logits: Sequence[torch.Tensor]) -> list[str]:
    """Return captions: the label, and each model's two most probable digits in percent."""
    captions = []
    for i, label in enumerate(labels):
        lines = [f"label {label}"]
        for model_logits in logits:
            shares, digits = model_logits[i].softmax(0).topk(2)
            lines.append(
                " ".join(f"{d}:{100 * s:.0f}" for d, s in zip(digits, shares, strict=True))
            )
        captions.append("\n".join(lines))
    return captions


def correct_mask(run: dict, images: int) -> torch.Tensor:
    """Return which test images a run of the record classified correctly, bool of shape (N,).

    The record has this of each configuration's first run, that of seed 0.
    """
    correct = torch.ones(images, dtype=torch.bool)
    correct[run["test_wrong"]] = False
    return correct


def test_accuracies(record: dict) -> dict[str, list[float]]:
    """Return the test accuracies, from 0 to 1, of all seeds of each configuration."""
    n = record["test_images"]
    return {
        name: [run["test_correct"] / n for run in configuration["runs"]]
        for name, configuration in record["configurations"].items()
    }


def ablation_table(record: dict) -> pd.DataFrame:
    """Return the configurations as a table, each compared with an earlier one.

    It has mean and standard deviation over the seeds, and the difference with the p-values of a
    t-test paired over the seeds and of McNemar's test on the images of seed 0.
    """
    from scipy.stats import ttest_rel

    configurations = record["configurations"]
    accuracies = test_accuracies(record)
    n = record["test_images"]

    rows = []
    for name, configuration in configurations.items():
        runs = configuration["runs"]
        accuracy = accuracies[name]
        row = {
            "configuration": name,
            "test accuracy": f"{mean(accuracy):.2%} ± {100 * stdev(accuracy):.2f}",
            "validation": "trained on",
            "seconds": f"{mean(run['training_seconds'] for run in runs):.0f}",
        }
        if not configuration["recipe"]["all_images"]:
            row["validation"] = f"{mean(run['validation_accuracy'] for run in runs):.2%}"

        earlier_name = configuration["compared_with"]
        if earlier_name:
            earlier = accuracies[earlier_name]
            earlier_run = configurations[earlier_name]["runs"][0]
            n_seeds = min(len(accuracy), len(earlier))  # those that both have
            p_seeds = ttest_rel(accuracy[:n_seeds], earlier[:n_seeds]).pvalue
            p_images = compare(correct_mask(earlier_run, n), correct_mask(runs[0], n)).p_value
            row["compared with"] = earlier_name
            row["points"] = f"{100 * (mean(accuracy) - mean(earlier)):+.2f}"
            row["p, seeds"] = f"{p_seeds:.1g}"
            row["p, images of seed 0"] = f"{p_images:.1g}"
        rows.append(row)

    return pd.DataFrame(rows).fillna("").set_index("configuration")


def ideas_table(record: dict) -> pd.DataFrame:
    """Return the record of `make ideas` as a table: percent, and points with intervals."""
    rows = []
    for group, ideas in record["groups"].items():
        for name, idea in ideas.items():
            is_base = name == "the recipe"  # with which the others are compared
            rows.append(
                {
                    "idea": f"{group}: {name}",
                    "validation loss": f"{idea['validation_loss']:.4f}",
                    "accuracy": f"{idea['validation_accuracy']:.2%}",
                    "warped copies": f"{idea['warped_accuracy']:.2%}",
                    "warped, points": "" if is_base else _points(idea["warped_difference"]),
                    "disturbed copies": f"{idea['disturbed_accuracy']:.2%}",
                    "disturbed, points": "" if is_base else _points(idea["disturbed_difference"]),
                }
            )
    return pd.DataFrame(rows).set_index("idea")


def _points(difference: Sequence[float]) -> str:
    """Return a difference and the half width of its interval in percentage points."""
    middle, half_width = difference
    return f"{100 * middle:+.2f} ± {100 * half_width:.2f}"


def calibration_table(record: dict) -> pd.DataFrame:
    """Return each configuration's ECE before and after temperature scaling, means of the seeds."""
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
    """Draw each configuration's test errors, a dot per seed, with mean and standard deviation.

    `accuracies`: name -> test accuracies, from 0 to 1. `published`: of others, drawn as lines.
    """
    ax = ax or new_axes(9.5, 0.9 + 0.5 * len(accuracies))
    every_accuracy = [accuracy for of_seeds in accuracies.values() for accuracy in of_seeds]
    highest_error = 100 * (1 - min(every_accuracy))
    lowest_error = 100 * (1 - max(every_accuracy))

    for i, of_seeds in enumerate(accuracies.values()):
        errors = 100 * (1 - np.asarray(of_seeds))
        ax.plot(errors, np.full(len(errors), i), "o", color=BLUE, alpha=0.45, markersize=6)
        ax.plot(errors.mean(), i, "|", color=BLUE, markersize=22, markeredgewidth=2.5)
        result = f"{100 - errors.mean():.2f}% ± {errors.std(ddof=1):.2f}"
        ax.text(1.02, i, result, transform=ax.get_yaxis_transform(), va="center", fontsize=10)

    for name, accuracy in (published or {}).items():
        ax.axvline(100 * (1 - accuracy), color=GREY, linestyle="--", linewidth=1, zorder=0)
        ax.text(100 * (1 - accuracy), -0.75, name, ha="center", va="bottom", fontsize=8.5)

    ax.set_xscale("log")
    ticks = [t for t in (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5) if 0.7 * lowest_error < t]
    ax.set_xticks(ticks, [f"{t:g}%" for t in ticks])
    ax.minorticks_off()
    ax.set(xlim=(1.3 * highest_error, 0.7 * lowest_error), ylim=(len(accuracies) - 0.5, -0.6))
    ax.set_yticks(range(len(accuracies)), list(accuracies))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("test error (log scale)")
    return ax
