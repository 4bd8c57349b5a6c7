"""Learning rates tried one by one, and the figure of `make tune`; judged on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from mnist_mlp.data import MEAN, STD, Splits
from mnist_mlp.model import EnhancedNet
from mnist_mlp.plots import BLUE, ORANGE, new_axes
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import fit


def try_learning_rates(
    splits: Splits, recipe: Recipe, rates: Sequence[float], mean: float = MEAN, std: float = STD
) -> dict[float, float]:
    """Return the best validation accuracy of a fresh EnhancedNet at each peak learning rate.

    `mean`, `std`: the normalisation of the inputs. Raises KeyboardInterrupt if interrupted.
    """
    train, validation = (replace(p, mean=mean, std=std) for p in (splits.train, splits.validation))
    accuracy = {}
    for rate in rates:
        torch.manual_seed(recipe.seed)
        trial = replace(recipe, learning_rate=rate)
        history = fit(EnhancedNet(len(train.classes)), train, validation, trial, progress=False)
        if history.stopped:
            raise KeyboardInterrupt("the trials were interrupted: run this cell again")
        accuracy[rate] = history.validation_accuracy
    return accuracy


def learning_rates_plot(
    accuracies: Mapping[str, Mapping[float, float]], ax: Axes | None = None
) -> Axes:
    """Draw validation accuracy against peak learning rate for each name, the best rate marked."""
    ax = ax or new_axes(9, 3.6)
    for i, (name, accuracy) in enumerate(accuracies.items()):
        rates, best = sorted(accuracy), max(accuracy, key=lambda rate: accuracy[rate])
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
    names, shares = zip(*reversed(record["importance"].items()), strict=True)
    axes[0, 0].barh(names, shares, color=BLUE)
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set(xlabel="share of log loss's variance", title=f"{names[-1]}: {shares[-1]:.0%}")
    spent = np.cumsum([trial["seconds"] for trial in trials])
    every = [trial["validation_loss"] or np.inf for trial in trials]
    axes[0, 1].step(spent, np.minimum.accumulate(every), where="post", color=ORANGE)
    axes[0, 1].plot(spent, every, "o", color=BLUE, alpha=0.5)
    share = spent[trials.index(best)] / spent[-1]
    axes[0, 1].set(xlabel="processor seconds", title=f"Best after {share:.0%} of the budget")
    for ax, (name, domain) in zip(axes.flat[2:], record["space"].items(), strict=True):
        values, value = [trial["params"][name] for trial in complete], best["params"][name]
        ax.set(xlabel=name, xscale="log" if domain.get("log") else "linear")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(f"Best at {value:.3g}" if isinstance(value, float) else f"Best at {value}")
        if choices := domain.get("choices"):
            values, value = list(map(choices.index, values)), choices.index(value)
            ax.set_xticks(range(len(choices)), choices)
        ax.plot(values, losses, "o", color=BLUE, alpha=0.5)
        ax.plot(value, min(losses), "o", color=ORANGE, markersize=10)
    ticks = [t for t in (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2) if min(losses) < t < max(losses)]
    for ax in axes.flat[1:]:
        ax.set(yscale="log", ylabel="validation loss" if ax in (axes[0, 1], axes[1, 0]) else "")
        ax.set_yticks(ticks, list(map(str, ticks)))
        ax.tick_params(axis="y", which="minor", left=False, labelleft=False)
    found = record["comparison"]
    verdict = "is to be replaced" if found["replace"] else "stays"
    loss, error = found["loss_difference"], 2 * found["loss_standard_error"]
    figure.suptitle(
        f"The default recipe {verdict}: the best one's validation loss differs by {loss:+.4f} "
        f"± {error:.4f}, its accuracy by {100 * found['accuracy_difference']:+.2f} points"
    )
    return figure
