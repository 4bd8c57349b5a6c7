"""Learning rates tried one by one, judged on the validation set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mnist_mlp.data import MEAN, STD, Splits
from mnist_mlp.model import EnhancedNet
from mnist_mlp.plots import new_axes
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
