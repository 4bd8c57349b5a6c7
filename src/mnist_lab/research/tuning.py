"""Learning rates tried one by one, and the figures of the studies; judged on validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import nn

from mnist_mlp.data import MEAN, STD, Splits
from mnist_mlp.files import read_json, repo_root
from mnist_mlp.model import EnhancedNet
from mnist_mlp.plots import BLUE, GREY, ORANGE, new_axes
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import fit


class OtherNormalisation(nn.Module):
    """An EnhancedNet whose inputs are normalised by another mean and standard deviation."""

    def __init__(self, classes: int, mean: float, std: float):
        super().__init__()
        self.network = EnhancedNet(classes)
        self.mean = mean
        self.std = std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images that are normalised as all data sets are."""
        pixels = images * STD + MEAN  # from 0 to 1
        return self.network((pixels - self.mean) / self.std)


def try_learning_rates(
    splits: Splits, recipe: Recipe, rates: Sequence[float], mean: float = MEAN, std: float = STD
) -> dict[float, float]:
    """Return the best validation accuracy of a fresh EnhancedNet at each peak learning rate.

    `mean` and `std` normalise the inputs of the network; 0 and 1 leave the pixels as they are.
    """
    accuracy = {}
    for rate in rates:
        torch.manual_seed(recipe.seed)
        model = OtherNormalisation(len(splits.train.classes), mean, std)
        history = fit(
            model,
            splits.train,
            splits.validation,
            replace(recipe, learning_rate=rate),
            progress=False,
        )
        accuracy[rate] = history.validation_accuracy
    return accuracy


def learning_rates_plot(
    accuracies: Mapping[str, Mapping[float, float]], ax: Axes | None = None
) -> Axes:
    """Draw validation accuracy against peak learning rate for each name, the best rate marked."""
    ax = ax or new_axes(9, 3.6)
    for i, (name, accuracy) in enumerate(accuracies.items()):
        rates = sorted(accuracy)
        best = max(accuracy, key=lambda rate: accuracy[rate])
        label = f"{name}: {accuracy[best]:.2%} at {best:g}"
        ax.plot(rates, [accuracy[rate] for rate in rates], "o-", color=f"C{i}", label=label)
        ax.plot(best, accuracy[best], "o", color=f"C{i}", markersize=11)
    ax.set_xscale("log")
    every = sorted({rate for accuracy in accuracies.values() for rate in accuracy})
    ax.set_xticks(every, [f"{rate:g}" for rate in every])
    ax.minorticks_off()
    ax.set(xlabel="peak learning rate", ylabel="validation accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="lower right", title="best")
    return ax


def tuning_plot(record: Mapping) -> Figure:
    """Draw the record of `make tune`: importances, the best against the budget, and slices."""
    figure, axes = plt.subplots(2, 5, figsize=(17, 7), layout="constrained")
    trials = record["trials"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    losses = [trial["validation_loss"] for trial in complete]
    best = complete[np.argmin(losses)]

    names = list(record["importance"])[::-1]
    shares = [record["importance"][name] for name in names]
    axes[0, 0].barh(names, shares, color=BLUE)
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set(xlabel="share of log loss's variance", title=f"{names[-1]}: {shares[-1]:.0%}")

    spent = np.cumsum([trial["seconds"] for trial in trials])
    every = [trial["validation_loss"] or np.inf for trial in trials]
    axes[0, 1].step(spent, np.minimum.accumulate(every), where="post", color=ORANGE)
    axes[0, 1].plot(spent, every, "o", color=BLUE, alpha=0.5)
    share = spent[trials.index(best)] / spent[-1]
    axes[0, 1].set(xlabel="processor seconds", title=f"Best after {share:.0%} of the budget")

    for ax, name in zip(axes.flat[2:], record["space"], strict=True):
        _slices(ax, name, [record])
        value = best["params"][name]
        ax.set_title(f"Best at {value:.3g}" if isinstance(value, float) else f"Best at {value}")
    _log_losses(axes.flat[1:], losses, (axes[0, 1], axes[1, 0]))

    comparison = record["comparison"]
    verdict = "is to be replaced" if comparison["replace"] else "stays"
    loss = comparison["loss_difference"]
    error = 2 * comparison["loss_standard_error"]
    figure.suptitle(
        f"The default recipe {verdict}: the best one's validation loss differs by {loss:+.4f} "
        f"± {error:.4f}, its accuracy by {100 * comparison['accuracy_difference']:+.2f} points"
    )
    return figure


def read_record() -> dict:
    """Return the record of `make tune`."""
    path = repo_root() / "benchmarks" / "accuracy" / "tune.json"
    return read_json(path, {"space": dict, "trials": list, "best": int})


def finding(study: Mapping) -> str:
    """Return in one line what a small study has found."""
    states = [trial["state"] for trial in study["trials"]]
    best = study["best"]
    if best is None:
        return f"no trial of {len(states)} was completed, so only the recorded study is shown"

    losses = [trial["validation_loss"] for trial in study["trials"]]
    line = f"{len(states)} trials, {states.count('pruned')} stopped early"
    if "failed" in states:
        line += f", {states.count('failed')} diverged"
    line += f"; the best validation loss {losses[best]:.3f}"
    if best == 0:
        line += " is the recipe's"
    elif losses[0]:
        line += f", the recipe's {losses[0]:.3f}"
    return line


def study_plot(study: Mapping, recorded: Mapping, name: str) -> Figure:
    """Draw a small study's losses by epoch, and its slices over those of the record.

    A cross is a trial that was stopped early, at the loss that it had then.

    Args:
        study: What `trials.small_study` returns.
        recorded: The record of `make tune`.
        name: The name of the small study's data set.
    """
    space = study["space"]
    columns = 3
    rows = math.ceil((1 + len(space)) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 0.5 + 2.6 * rows), layout="constrained", squeeze=False
    )
    first, *others = axes.flat

    for trial in study["trials"]:
        epochs = list(trial["losses"])
        losses = list(trial["losses"].values())
        colour = {0: "black", study["best"]: ORANGE}.get(trial["number"], BLUE)
        width = 1.2 if colour == BLUE else 2
        first.plot(epochs, losses, "o-", color=colour, linewidth=width, markersize=4, alpha=0.7)
        if trial["state"] == "pruned":
            first.plot(epochs[-1:], losses[-1:], "x", color=BLUE, markersize=8)
    first.xaxis.set_major_locator(MaxNLocator(integer=True))
    first.set(xlabel="epoch")

    for ax, field in zip(others, space, strict=False):
        _slices(ax, field, [record for record in (recorded, study) if field in record["space"]])
    for ax in others[len(space) :]:
        ax.set_axis_off()

    every_loss = [loss for trial in study["trials"] for loss in trial["losses"].values()]
    every_loss += [t["validation_loss"] for t in recorded["trials"] if t["state"] == "complete"]
    _log_losses(axes.flat, every_loss, axes[:, 0])

    handles = [
        Line2D([], [], color="black", linewidth=2, marker="o", ms=4, label="the recipe"),
        Line2D([], [], ls="", color=BLUE, marker="o", ms=6, label=f"{name}, this study"),
        Line2D([], [], ls="", color=BLUE, marker="x", ms=8, label="stopped early"),
        Line2D([], [], ls="", color=ORANGE, marker="o", ms=9, label="its best"),
        Line2D([], [], ls="", color=GREY, marker="o", ms=6, label="MNIST, recorded study"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _slices(ax: Axes, field: str, records: Sequence[Mapping]) -> None:
    """Draw each trial's last validation loss against its value of a field, the last record on top.

    A field that is a choice in one of the records is drawn as one.
    """
    domains = [record["space"][field] for record in records]
    choices = {value for domain in domains for value in domain.get("choices", ())}
    if choices:
        choices |= {trial["params"][field] for r in records for trial in r["trials"]}
        ax.set_xticks(range(len(choices)), sorted(choices))
    elif domains[-1].get("log"):
        ax.set(xscale="log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=field)
    for record in records:
        colour, best = (BLUE, ORANGE) if record is records[-1] else (GREY, GREY)
        for trial in record["trials"]:
            value = trial["params"][field]
            value = sorted(choices).index(value) if choices else value
            if trial["number"] == record["best"]:
                ax.plot(value, trial["validation_loss"], "o", color=best, markersize=9, zorder=4)
            elif trial["state"] == "complete":
                ax.plot(value, trial["validation_loss"], "o", color=colour, alpha=0.6, zorder=3)
            elif trial.get("losses"):
                ax.plot(value, list(trial["losses"].values())[-1], "x", color=colour, markersize=8)


def _log_losses(axes, losses: Sequence[float], labelled) -> None:
    """Give the axes a logarithmic scale with plain numbers for their validation losses."""
    ticks = [t for t in (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2) if min(losses) < t < max(losses)]
    for ax in axes:
        ax.set(yscale="log", ylabel="validation loss" if ax in labelled else "")
        ax.set_yticks(ticks, list(map(str, ticks)))
        ax.tick_params(axis="y", which="minor", left=False, labelleft=False)
