"""Learning rates tried one by one, and the figure of `make tune`; judged on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
    space, trials = record["space"], record["trials"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["validation_loss"])
    figure, axes = plt.subplots(2, 5, figsize=(17, 6.8), layout="constrained")
    names, shares = zip(*reversed(record["importance"].items()), strict=True)
    axes[0, 0].barh(names, shares, color=BLUE)
    axes[0, 0].set(xlabel="share of the variance of log loss")
    axes[0, 0].xaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_title(f"{names[-1]} matters most")
    spent = np.cumsum([trial["seconds"] for trial in trials])
    losses = [trial["validation_loss"] or np.inf for trial in trials]
    axes[0, 1].step(spent, np.minimum.accumulate(losses), where="post", color=BLUE)
    axes[0, 1].plot(spent, losses, "o", color=BLUE, alpha=0.4)
    after = spent[trials.index(best)] / spent[-1]
    axes[0, 1].set(xlabel="processor seconds", ylabel="validation loss", yscale="log")
    axes[0, 1].set_title(f"Best after {after:.0%} of the budget")
    for ax, (name, domain) in zip(axes.flat[2:], space.items(), strict=True):
        values = [trial["params"][name] for trial in complete]
        if choices := domain.get("choices"):
            values = [choices.index(value) for value in values]
            ax.set_xticks(range(len(choices)), choices)
        found = best["params"][name]
        ax.plot(
            values, [trial["validation_loss"] for trial in complete], "o", color=BLUE, alpha=0.5
        )
        place = choices.index(found) if choices else found
        ax.plot(place, best["validation_loss"], "o", color=ORANGE, markersize=10)
        ax.set(xlabel=name, yscale="log", xscale="log" if domain.get("log") else "linear")
        ax.set_title(f"Best at {found if choices else format(found, '.3g')}")
    comparison = record["comparison"]
    figure.suptitle(
        f"The default recipe {'is to be replaced' if comparison['replace'] else 'stays'}: "
        f"the best changes validation loss by {comparison['loss_difference']:+.4f} "
        f"± {2 * comparison['loss_standard_error']:.4f} and accuracy by "
        f"{100 * comparison['accuracy_difference']:+.2f} points"
    )
    return figure
