"""The trials of an Optuna study, judged on the validation loss: `make tune`'s and a small one.

Optuna is in the extra `[tune]`. The module can be imported without it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mnist_mlp.data import Splits
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import fit

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

MISSING = "This study needs Optuna, an extra: pip install -e '.[tune]'. The rest runs without it."


def train_trial(trial: optuna.Trial, splits: Splits, recipe: Recipe) -> float | None:
    """Return the validation loss of a fresh EnhancedNet, or None if the trial was pruned.

    Optuna may stop it after each quarter of its epochs. Raises KeyboardInterrupt if interrupted and
    FloatingPointError if the loss diverges.
    """
    pruned, epochs, start = False, recipe.epochs, time.process_time()
    trial.set_user_attr("epochs", epochs)

    def on_epoch(history) -> bool:
        nonlocal pruned
        done = len(history.epochs)
        quarter = 4 * done // epochs  # trials with other numbers of epochs have these in common
        if quarter > 4 * (done - 1) // epochs:
            trial.report(history.epochs[-1]["validation_loss"], quarter)
            pruned = quarter < 4 and bool(trial.should_prune())  # a NumPy bool does not stop `fit`
        return pruned

    torch.manual_seed(recipe.seed)
    model = EnhancedNet(len(splits.train.classes))
    history = fit(model, splits.train, splits.validation, recipe, on_epoch=on_epoch, progress=False)
    trial.set_user_attr("seconds", time.process_time() - start)
    if history.stopped and not pruned:
        raise KeyboardInterrupt("the trials were interrupted: run this cell again")
    return None if pruned else history.epochs[history.best_epoch - 1]["validation_loss"]


def run(study: optuna.Study, trial: optuna.Trial, train: Callable[..., float | None], *args):
    """Tell the study what `train(trial, *args)` returns; a trial that diverges has failed."""
    from optuna.trial import TrialState

    try:
        loss = train(trial, *args)
        study.tell(trial, loss, TrialState.PRUNED if loss is None else TrialState.COMPLETE)
    except FloatingPointError as error:
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.FAIL)


def state_of(trial: optuna.trial.FrozenTrial) -> str:
    """Return "complete", "pruned", "failed" (it diverged), "killed", "running" or "waiting"."""
    if trial.state.name == "FAIL":
        return "failed" if "failed" in trial.user_attrs else "killed"
    return trial.state.name.lower()


def small_study(
    splits: Splits, recipe: Recipe, space: Mapping, trials: int = 10, epochs: int = 3,
    images: int = 9_000,
) -> dict[str, Any]:  # fmt: skip
    """Search for a better recipe with short trials; return a record like that of `make tune`.

    `space`: fields of `Recipe`, each with a range `(low, high)` or `(low, high, "log")` or a list
    of choices. The first trial is the recipe itself, where the space has its values. Each one
    trains on about so many images, from all over the training set, and is stopped early if its loss
    is above the median of the others. Without Optuna it prints one sentence and returns no trials.
    Raises TypeError or ValueError for an invalid space and KeyboardInterrupt if interrupted.
    """
    for name, values in space.items():
        _check(name, values, recipe)
    record: dict[str, Any] = {"space": {}, "epochs": epochs, "trials": [], "best": None}
    try:
        import optuna
    except ModuleNotFoundError:
        print(MISSING)
        return record
    domains = {name: _domain(name, values, recipe) for name, values in space.items()}
    every = max(1, len(splits.train) // images)
    part = replace(splits, train=splits.train.subset(torch.arange(0, len(splits.train), every)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings(action="ignore"):  # a short training may learn nothing
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=trials // 2, multivariate=True, seed=recipe.seed
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        own = {name: getattr(recipe, name) for name in space}
        study.enqueue_trial({n: v for n, v in own.items() if _contains(space[n], v)})
        for _ in tqdm(range(trials), "Trials", file=sys.stdout):
            trial = study.ask(domains)
            run(study, trial, train_trial, part, replace(recipe, epochs=epochs, **trial.params))
    record["space"] = {name: vars(domain) for name, domain in domains.items()}
    record["trials"] = [_record_of(trial, epochs) for trial in study.trials]
    losses = {t["number"]: t["validation_loss"] for t in record["trials"] if t["validation_loss"]}
    return record | {"best": min(losses, key=lambda number: losses[number], default=None)}


def _check(name: str, values: list | tuple, recipe: Recipe) -> None:
    """Raise TypeError or ValueError unless a recipe can have these values of a field."""
    is_range = isinstance(values, tuple) and values[2:] in ((), ("log",)) and len(values) > 1
    if not (is_range or (isinstance(values, list) and values)):
        expected = '(low, high), (low, high, "log") or a list of choices'
        raise TypeError(f"{name} must have {expected}, found {values!r}.")
    for value in values[:2] if is_range else values:
        replace(recipe, **{name: value})  # which raises for a name or a value that is invalid
    if is_range and not values[0] < values[1]:
        raise ValueError(f"{name} must have a low value below the high one, found {values!r}.")
    if is_range and values[2:] and values[0] <= 0:
        raise ValueError(f"{name} has a logarithmic range: it must be above 0, found {values!r}.")


def _domain(name: str, values: list | tuple, recipe: Recipe) -> BaseDistribution:
    """Return the range or choices of a field as Optuna's."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(values)
    whole = isinstance(getattr(recipe, name), int)
    low, high, *scale = values
    return (IntDistribution if whole else FloatDistribution)(low, high, log=bool(scale))


def _contains(values: list | tuple, value) -> bool:
    """Return whether a value is in a range or among choices."""
    return value in values if isinstance(values, list) else values[0] <= value <= values[1]


def _record_of(trial: optuna.trial.FrozenTrial, epochs: int) -> dict[str, Any]:
    """Return a trial as `tune.json` has it, and its losses by epoch."""
    losses = {-(-quarter * epochs // 4): v for quarter, v in trial.intermediate_values.items()}
    state = state_of(trial)
    return {"number": trial.number, "state": state, "params": trial.params, "losses": losses} | {
        "validation_loss": trial.value if state == "complete" else None, **trial.user_attrs,
    }  # fmt: skip
