"""The records of `make ideas` and `make ablation`: their tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from matplotlib.axes import Axes

from mnist_mlp.plots import BLUE, GREY, new_axes
from mnist_mlp.research.comparison import compare
from mnist_mlp.research.sweep import sweep
from mnist_mlp.storage.files import read_json, repo_root

FOLDER = repo_root() / "benchmarks" / "accuracy"


def read_ideas() -> dict:
    """Return the record of `make ideas`. Raises OSError or ValueError if it is damaged."""
    return read_json(FOLDER / "ideas.json", {"groups": dict})


def read_record(configuration: str = "") -> dict:
    """Return the record, in which this configuration must have validation accuracies, if named.

    Raises OSError or ValueError if it is missing or damaged, or lacks such a configuration.
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
    runs = [configuration["recipe"] | {"seed": run["seed"]} for run in configuration["runs"]]
    again, recorded = (
        mean(run["validation_accuracy"] for run in found)
        for found in (sweep(runs, folder), configuration["runs"])
    )
    return again, recorded


def top_two(labels: torch.Tensor, logits: Sequence[torch.Tensor]) -> list[str]:
    """Return captions: the label, and each model's two most probable digits in percent."""
    captions = []
    for i, label in enumerate(labels):
        lines = [f"label {label}"]
        for of_model in logits:
            share, digit = of_model[i].softmax(0).topk(2)
            lines.append(" ".join(f"{d}:{100 * s:.0f}" for d, s in zip(digit, share, strict=True)))
        captions.append("\n".join(lines))
    return captions


def correct_mask(run: dict, images: int) -> torch.Tensor:
    """Return which test images a run of the record classified correctly, bool of shape (N,)."""
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


def ablation_table(record: dict) -> str:
    """Return the configurations as a Markdown table, each compared with an earlier one.

    Mean and standard deviation over the seeds, and the difference with the p-values of a t-test
    paired over the seeds and of McNemar's test on the images of seed 0.
    """
    from scipy.stats import ttest_rel

    lines = [
        "| configuration | test accuracy | validation | seconds | compared with | points "
        "| p, seeds | p, images of seed 0 |",
        "|:--|--:|--:|--:|:--|--:|--:|--:|",
    ]
    accuracies, n = test_accuracies(record), record["test_images"]
    for name, configuration in record["configurations"].items():
        runs, accuracy, compared = configuration["runs"], accuracies[name], " | | | "
        validation = "trained on"
        if not configuration["recipe"]["all_images"]:
            validation = f"{mean(run['validation_accuracy'] for run in runs):.2%}"
        seconds = mean(run["training_seconds"] for run in runs)
        if before := configuration["compared_with"]:
            earlier = accuracies[before]
            first = record["configurations"][before]["runs"][0]
            n_seeds = min(len(accuracy), len(earlier))  # those that both have
            p_seeds = ttest_rel(accuracy[:n_seeds], earlier[:n_seeds]).pvalue
            p_images = compare(correct_mask(first, n), correct_mask(runs[0], n)).p_value
            points = 100 * (mean(accuracy) - mean(earlier))
            compared = f"{before} | {points:+.2f} | {p_seeds:.1g} | {p_images:.1g}"
        lines.append(
            f"| {name} | {mean(accuracy):.2%} ± {100 * stdev(accuracy):.2f} "
            f"| {validation} | {seconds:.0f} | {compared} |"
        )
    return "\n".join(lines)


def ideas_table(record: dict) -> str:
    """Return the record of `make ideas` as a Markdown table: percent, and points with intervals."""
    lines = [
        "| | validation loss | accuracy | warped copies | difference | disturbed | difference |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for group, ideas in record["groups"].items():
        for name, found in ideas.items():
            cells = [f"{group}: {name}", f"{found['validation_loss']:.4f}"]
            cells.append(f"{found['validation_accuracy']:.2%}")
            for judge in ("warped", "disturbed"):
                points, half = (100 * x for x in found[f"{judge}_difference"])
                change = "" if name == "the recipe" else f"{points:+.2f} ± {half:.2f}"
                cells += [f"{found[f'{judge}_accuracy']:.2%}", change]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def calibration_table(record: dict) -> str:
    """Return each configuration's ECE before and after temperature scaling, in Markdown."""
    lines = [
        "| configuration | ECE, in points | temperature | ECE after scaling |",
        "|:--|--:|--:|--:|",
    ]
    for name, configuration in record["configurations"].items():
        before, temperature, after = (
            mean(run[key] for run in configuration["runs"])
            for key in ("test_ece", "temperature", "test_ece_scaled")
        )
        lines.append(f"| {name} | {100 * before:.2f} | {temperature:.2f} | {100 * after:.2f} |")
    return "\n".join(lines)


def ablation_plot(
    accuracies: Mapping[str, Sequence[float]],
    published: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each configuration's test errors, a dot per seed, with mean and standard deviation.

    `accuracies`: name -> test accuracies, from 0 to 1. `published`: of others, drawn as lines.
    """
    ax = ax or new_axes(9.5, 0.9 + 0.5 * len(accuracies))
    low, high = min(map(min, accuracies.values())), max(map(max, accuracies.values()))
    for i, of_seeds in enumerate(accuracies.values()):
        errors = 100 * (1 - np.asarray(of_seeds))
        ax.plot(errors, np.full(len(errors), i), "o", color=BLUE, alpha=0.45, markersize=6)
        ax.plot(errors.mean(), i, "|", color=BLUE, markersize=22, markeredgewidth=2.5)
        words = f"{100 - errors.mean():.2f}% ± {errors.std(ddof=1):.2f}"
        ax.text(1.02, i, words, transform=ax.get_yaxis_transform(), va="center", fontsize=10)
    for name, accuracy in (published or {}).items():
        ax.axvline(100 * (1 - accuracy), color=GREY, linestyle="--", linewidth=1, zorder=0)
        ax.text(100 * (1 - accuracy), -0.75, name, ha="center", va="bottom", fontsize=8.5)
    ax.set_xscale("log")
    ticks = [t for t in (0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5) if 70 * (1 - high) < t]
    ax.set_xticks(ticks, [f"{t:g}%" for t in ticks])
    ax.minorticks_off()
    ax.set(xlim=(130 * (1 - low), 70 * (1 - high)), ylim=(len(accuracies) - 0.5, -0.6))
    ax.set_yticks(range(len(accuracies)), list(accuracies))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("test error (log scale)")
    return ax
