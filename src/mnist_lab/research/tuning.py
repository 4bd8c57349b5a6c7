"""Find and try learning rates, and draw the studies of `make tune` and `small_study`."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import nn
from torch.nn import functional as F

from mnist_mlp.data import MEAN, STD, ImageDataset, Splits, batches, epoch_generator
from mnist_mlp.evaluation import device_of
from mnist_mlp.files import published, read_json
from mnist_mlp.model import EnhancedNet
from mnist_mlp.plots import BLUE, GREY, ORANGE, new_axes
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import default_augmentation, default_optimizer, fit


class OtherNormalisation(nn.Module):
    """An EnhancedNet that normalises its inputs with its own mean and standard deviation."""

    def __init__(self, classes: int, mean: float, std: float):
        super().__init__()
        self.network = EnhancedNet(classes)
        self.mean = mean
        self.std = std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch whose images are normalised with `MEAN` and `STD`."""
        pixels = images * STD + MEAN  # back to values from 0 to 1
        return self.network((pixels - self.mean) / self.std)


def try_learning_rates(
    splits: Splits, recipe: Recipe, rates: Sequence[float], mean: float = MEAN, std: float = STD
) -> dict[float, float]:
    """Train a new EnhancedNet with each peak learning rate.

    Args:
        splits: The data set.
        recipe: The recipe, but for the learning rate.
        rates: The learning rates.
        mean, std: The normalisation of the network's inputs (pixels from 0 to 1).

    Returns:
        The best validation accuracy for each learning rate.
    """
    accuracies = {}
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
        accuracies[rate] = history.validation_accuracy
    return accuracies


def learning_rates_plot(
    accuracies: Mapping[str, Mapping[float, float]], ax: Axes | None = None
) -> Axes:
    """Draw curves of the validation accuracy against the peak learning rate.

    A large dot marks the best rate of each curve.

    Args:
        accuracies: For each curve's name the accuracies by learning rate, as
            `try_learning_rates` returns them.
        ax: Where to draw.
    """
    ax = ax or new_axes(9, 3.6)
    all_rates: set[float] = set()
    for i, (name, accuracy_of_rate) in enumerate(accuracies.items()):
        rates = sorted(accuracy_of_rate)
        curve = [accuracy_of_rate[rate] for rate in rates]
        best_rate = max(accuracy_of_rate, key=lambda rate: accuracy_of_rate[rate])
        best_accuracy = accuracy_of_rate[best_rate]

        label = f"{name}: {best_accuracy:.2%} at {best_rate:g}"
        ax.plot(rates, curve, "o-", color=f"C{i}", label=label)
        ax.plot(best_rate, best_accuracy, "o", color=f"C{i}", markersize=11)
        all_rates.update(rates)

    ax.set_xscale("log")
    ticks = sorted(all_rates)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="peak learning rate", ylabel="validation accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="lower right", title="best")
    return ax


def find_learning_rate(
    model: nn.Module,
    train: ImageDataset,
    recipe: Recipe = Recipe(),
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
) -> dict[float, float]:
    """Take steps at a rate that rises exponentially until the loss diverges; return each loss.

    A good peak for one cycle lies where the loss still falls fast: well below the rate of the
    lowest loss. The steps are those of the recipe in float32, without schedule and averaging. The
    model is not changed: a copy of it takes the steps.

    Args:
        model: A network as for `fit`.
        train: The training images.
        recipe: The hyperparameters, but for the learning rate.
        lowest: The learning rate of the first step.
        highest: The learning rate of the last step, if the loss does not diverge before.
        steps: How many rates are tried.

    Returns:
        The loss of the batch before each step, by the learning rate of the step. It ends with the
        first loss that is not finite or above four times the lowest loss.

    Raises:
        ValueError: The rates do not rise from a number above 0, or there are fewer than two.

    Example:
        >>> losses = find_learning_rate(EnhancedNet(), splits.train)
        >>> learning_rate_finder_plot(losses)

    Source: Smith, "Cyclical learning rates for training neural networks", WACV 2017.
    """
    if not 0 < lowest < highest or steps < 2:
        raise ValueError(
            "the rates must rise from a number above 0 in at least two steps, found lowest="
            f"{lowest!r}, highest={highest!r}, steps={steps!r}."
        )
    model = copy.deepcopy(model).train()
    train = train.to(device_of(model))
    make_optimizer = default_optimizer(recipe, "float32")
    optimizer = make_optimizer(model.parameters(), lr=lowest, weight_decay=recipe.weight_decay)
    growth = (highest / lowest) ** (1 / (steps - 1))
    losses: dict[float, float] = {}

    # Dropout must not change the random numbers of a later training.
    with torch.random.fork_rng(devices=[]):
        for images, labels in _endless_batches(train, recipe):
            logits = model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            rate = lowest * growth ** len(losses)
            losses[rate] = loss.item()
            has_diverged = not losses[rate] <= 4 * min(losses.values())  # NaN has, too
            if has_diverged or len(losses) == steps:
                break

            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm > 0:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            for group in optimizer.param_groups:  # Muon's groups have different rates
                group["lr"] *= growth
    return losses


def _endless_batches(
    train: ImageDataset, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images and labels of epoch after epoch, in the order and with the warps of `fit`."""
    augment = default_augmentation(recipe)
    for epoch in itertools.count(1):
        generator = epoch_generator(recipe.seed, epoch)
        for images, labels, _ in batches(train, recipe.batch_size, generator, augment):
            yield images, labels


def learning_rate_finder_plot(
    losses: Mapping[float, float], marked: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the loss against the learning rate, and mark rates such as a study's choice.

    Args:
        losses: The loss by learning rate, as `find_learning_rate` returns it.
        marked: Learning rates by name, each drawn as a vertical line.
        ax: Where to draw.
    """
    ax = ax or new_axes(9, 3.2)
    ax.plot(list(losses), list(losses.values()), color=BLUE)
    for i, (name, rate) in enumerate((marked or {}).items()):
        ax.axvline(rate, color=(ORANGE, GREY)[i % 2], linestyle="--", label=f"{name}: {rate:.2g}")
    if marked:
        ax.legend(loc="upper left")
    ax.set(xlabel="learning rate", ylabel="cross-entropy (nats)", xscale="log")

    # The last loss, which has diverged, would squeeze the others.
    ax.set_ylim(0, 1.5 * next(iter(losses.values())))
    return ax


def tuning_plot(record: Mapping) -> Figure:
    """Draw the record of `make tune`.

    The first panel shows the importance of each field, the second one the best loss against the
    processor seconds that were spent. The others show the loss against each field.
    """
    figure, axes = plt.subplots(2, 5, figsize=(17, 7), layout="constrained")
    importance_axes = axes[0, 0]
    budget_axes = axes[0, 1]
    field_axes = axes.flat[2:]

    trials = record["trials"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    complete_losses = [trial["validation_loss"] for trial in complete]
    best = complete[np.argmin(complete_losses)]

    # `barh` draws from the bottom up, so the most important field comes last.
    fields = list(record["importance"])[::-1]
    importances = [record["importance"][field] for field in fields]
    importance_axes.barh(fields, importances, color=BLUE)
    importance_axes.xaxis.set_major_formatter(PercentFormatter(1))
    importance_axes.set(
        xlabel="share of log loss's variance", title=f"{fields[-1]}: {importances[-1]:.0%}"
    )

    spent = np.cumsum([trial["seconds"] for trial in trials])
    losses = [trial["validation_loss"] or np.inf for trial in trials]  # None: it was stopped
    budget_axes.step(spent, np.minimum.accumulate(losses), where="post", color=ORANGE)
    budget_axes.plot(spent, losses, "o", color=BLUE, alpha=0.5)
    budget_share = spent[trials.index(best)] / spent[-1]
    budget_axes.set(
        xlabel="processor seconds", title=f"Best after {budget_share:.0%} of the budget"
    )

    # The study of `make tune` has eight fields, one for each of the other axes.
    for ax, field in zip(field_axes, record["space"], strict=True):
        _draw_losses_by_field(ax, field, [record])
        best_value = best["params"][field]
        if isinstance(best_value, float):
            best_value = f"{best_value:.3g}"
        ax.set_title(f"Best at {best_value}")

    _use_log_loss_axis(axes.flat[1:], complete_losses, labelled_axes=(budget_axes, axes[1, 0]))

    comparison = record["comparison"]
    verdict = "should be replaced" if comparison["replace"] else "stays"
    loss_difference = comparison["loss_difference"]
    half_width = 2 * comparison["loss_standard_error"]
    points = 100 * comparison["accuracy_difference"]
    figure.suptitle(
        f"The default recipe {verdict}: the best one's validation loss differs by "
        f"{loss_difference:+.4f} ± {half_width:.4f}, its accuracy by {points:+.2f} points"
    )
    return figure


def read_record() -> dict:
    """Return the record of `make tune`."""
    path = published("benchmarks/accuracy/tune.json")
    return read_json(path, {"dataset": str, "space": dict, "trials": list, "best": int})


def finding(study: Mapping) -> str:
    """Return the result of a small study in one line.

    Args:
        study: What `trials.small_study` returns.
    """
    states = [trial["state"] for trial in study["trials"]]
    losses = [trial["validation_loss"] for trial in study["trials"]]
    n = len(states)
    n_failed = states.count("failed")
    best = study["best"]
    if best is None:
        return f"none of the {n} trials was completed, so only the recorded study is shown"

    counts = f"{n} trials, {states.count('pruned')} stopped early"
    if n_failed:
        counts = f"{counts}, {n_failed} diverged"

    best_loss = losses[best]
    recipe_loss = losses[0]
    if not study["starts_with_recipe"]:
        return f"{counts}; the best validation loss {best_loss:.3f}; the recipe is not in the space"
    if best == 0:
        return f"{counts}; the best validation loss {best_loss:.3f} is the recipe's"
    if recipe_loss is None:  # the recipe itself diverged
        return f"{counts}; the best validation loss {best_loss:.3f}"
    return f"{counts}; the best validation loss {best_loss:.3f}, the recipe's {recipe_loss:.3f}"


def study_plot(study: Mapping, recorded: Mapping, name: str) -> Figure:
    """Draw a small study over the recorded one.

    The first panel shows the loss of each trial by epoch. The others show the last loss against
    each field. A cross marks a trial that was stopped early.

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
    epoch_axes = axes[0, 0]
    field_axes = axes.flat[1:]

    for trial in study["trials"]:
        epochs = list(trial["losses"])
        losses = list(trial["losses"].values())
        if trial["number"] == study["best"]:
            colour = ORANGE
            width = 2.0
        elif trial["number"] == 0:  # the recipe
            colour = "black"
            width = 2.0
        else:
            colour = BLUE
            width = 1.2
        epoch_axes.plot(
            epochs, losses, "o-", color=colour, linewidth=width, markersize=4, alpha=0.7
        )
        if trial["state"] == "pruned":
            epoch_axes.plot(epochs[-1:], losses[-1:], "x", color=BLUE, markersize=8)
    epoch_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    epoch_axes.set(xlabel="epoch")

    for ax, field in zip(field_axes, space, strict=False):
        records = [record for record in (recorded, study) if field in record["space"]]
        _draw_losses_by_field(ax, field, records)
    for ax in field_axes[len(space) :]:
        ax.set_axis_off()

    all_losses = []
    for trial in study["trials"]:
        all_losses += trial["losses"].values()
    for trial in recorded["trials"]:
        if trial["state"] == "complete":
            all_losses.append(trial["validation_loss"])
    _use_log_loss_axis(axes.flat, all_losses, labelled_axes=axes[:, 0])

    recorded_label = f"{recorded['dataset'].upper()}, recorded study"
    handles = [
        Line2D([], [], color="black", linewidth=2, marker="o", ms=4, label="the recipe"),
        Line2D([], [], ls="", color=BLUE, marker="o", ms=6, label=f"{name}, this study"),
        Line2D([], [], ls="", color=BLUE, marker="x", ms=8, label="stopped early"),
        Line2D([], [], ls="", color=ORANGE, marker="o", ms=9, label="its best"),
        Line2D([], [], ls="", color=GREY, marker="o", ms=6, label=recorded_label),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _draw_losses_by_field(ax: Axes, field: str, records: Sequence[Mapping]) -> None:
    """Draw the last validation loss of each trial against its value of a field.

    The last record is coloured; the others are grey. The axis has one tick per choice if the field
    is a choice in one of the records.
    """
    choices = set()
    for record in records:
        choices.update(record["space"][field].get("choices", ()))
    is_choice = bool(choices)
    if is_choice:  # another record may have a range of the same field, so other values
        for record in records:
            choices.update(trial["params"][field] for trial in record["trials"])

    position_of = {choice: i for i, choice in enumerate(sorted(choices))}
    if is_choice:
        ax.set_xticks(range(len(position_of)), list(position_of))
    elif records[-1]["space"][field].get("log"):
        ax.set(xscale="log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=field)

    for record in records:
        is_last = record is records[-1]
        colour = BLUE if is_last else GREY
        best_colour = ORANGE if is_last else GREY
        for trial in record["trials"]:
            value = trial["params"][field]
            x = position_of[value] if is_choice else value
            loss = trial["validation_loss"]
            if trial["number"] == record["best"]:
                ax.plot(x, loss, "o", color=best_colour, markersize=9, zorder=4)
            elif trial["state"] == "complete":
                ax.plot(x, loss, "o", color=colour, alpha=0.6, zorder=3)
            elif trial.get("losses"):
                last_loss = list(trial["losses"].values())[-1]
                ax.plot(x, last_loss, "x", color=colour, markersize=8)


def _use_log_loss_axis(
    axes: Iterable[Axes], losses: Sequence[float], labelled_axes: Iterable[Axes]
) -> None:
    """Give the axes a logarithmic y-axis for validation losses, with plain numbers.

    Only the labelled axes say that it is the validation loss.
    """
    labelled = list(labelled_axes)
    lowest = min(losses)
    highest = max(losses)
    candidates = (0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2)
    ticks = [tick for tick in candidates if lowest < tick < highest]
    for ax in axes:
        ax.set(yscale="log", ylabel="validation loss" if ax in labelled else "")
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.tick_params(axis="y", which="minor", left=False, labelleft=False)
