"""The trials of an Optuna study, judged on the validation loss: `make tune`'s and a small one.

Optuna is in the extra `[tune]`; the module can be imported without it.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mnist_mlp.data import Splits
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.train import fit

if TYPE_CHECKING:
    import optuna

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def suggest(trial: optuna.Trial, space: Mapping, recipe: Recipe) -> Recipe:
    """Return the recipe with the values that the trial suggests for the fields of the space."""
    values: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, list):
            values[name] = trial.suggest_categorical(name, domain)
            continue

        low, high, *scale = domain
        is_whole = isinstance(getattr(recipe, name), int)
        suggest_number = trial.suggest_int if is_whole else trial.suggest_float
        values[name] = suggest_number(name, low, high, log="log" in scale)

    return replace(recipe, **values)


def train_trial(trial: optuna.Trial, splits: Splits, recipe: Recipe) -> float:
    """Return the validation loss of a fresh EnhancedNet.

    Raises TrialPruned if Optuna stops the trial, which it may after each quarter of the epochs,
    and FloatingPointError if the loss diverges.
    """
    import optuna

    start = time.process_time()
    trial.set_user_attr("epochs", recipe.epochs)

    def on_epoch(history: History) -> None:
        done = len(history.epochs)
        trial.set_user_attr("seconds", time.process_time() - start)

        # Trials with other numbers of epochs have the quarters in common.
        quarter = 4 * done // recipe.epochs
        if quarter > 4 * (done - 1) // recipe.epochs:
            trial.report(history.epochs[-1]["validation_loss"], quarter)
            if quarter < 4 and trial.should_prune():
                raise optuna.TrialPruned

    torch.manual_seed(recipe.seed)
    model = EnhancedNet(len(splits.train.classes))
    history = fit(model, splits.train, splits.validation, recipe, on_epoch=on_epoch, progress=False)
    return history.epochs[history.best_epoch - 1]["validation_loss"]


def trial_records(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the trials of a study in plain values, as `tune.json` has them."""
    records = []
    for trial in study.trials:
        state = STATES[trial.state.name]
        record = {
            "number": trial.number,
            "state": state,
            "params": trial.params,
            "validation_loss": trial.value if state == "complete" else None,
            "epochs": trial.user_attrs.get("epochs", 0),
            "seconds": trial.user_attrs.get("seconds", 0.0),
        }
        records.append(record)
    return records


def describe_space(space: Mapping) -> dict[str, dict[str, Any]]:
    """Return the space in plain values, as `tune.json` has it."""
    described: dict[str, dict[str, Any]] = {}
    for name, domain in space.items():
        if isinstance(domain, list):
            described[name] = {"choices": domain}
        else:
            low, high, *scale = domain
            described[name] = {"low": low, "high": high, "log": "log" in scale}
    return described


def small_study(
    splits: Splits,
    recipe: Recipe,
    space: Mapping,
    trials: int = 10,
    epochs: int = 3,
    images: int = 9_000,
) -> dict[str, Any]:
    """Search for a better recipe with short trials; return a record like that of `make tune`.

    Args:
        splits: The data set. A trial is judged on `validation`.
        recipe: The recipe to improve. It is the first trial, where the space has its values.
        space: The fields of `Recipe` to search, each with a range `(low, high)` or
            `(low, high, "log")` or with a list of choices.
        trials: How many to train.
        epochs: How many each trial trains. It is stopped early if its loss is above the median of
            the others.
        images: About how many each trial trains on, taken from all over the training set.

    Raises:
        TypeError, ValueError: The space is invalid. Nothing has been trained then.
        ModuleNotFoundError: Optuna is not installed.
    """
    check_space(space, recipe)
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This study needs Optuna, an extra: pip install -e '.[tune]'."
        ) from error

    every = max(1, len(splits.train) // images)
    part = splits.train.subset(torch.arange(0, len(splits.train), every))
    splits = replace(splits, train=part)
    recipe = replace(recipe, epochs=epochs)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=trials // 2, multivariate=True, seed=recipe.seed
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    study = optuna.create_study(sampler=sampler, pruner=pruner)

    values = {name: getattr(recipe, name) for name in space}
    study.enqueue_trial({n: value for n, value in values.items() if _contains(space[n], value)})

    def objective(trial: optuna.Trial) -> float:
        return train_trial(trial, splits, suggest(trial, space, recipe))

    with (
        tqdm(total=trials, desc="Trials", file=sys.stdout) as bar,
        warnings.catch_warnings(action="ignore"),  # a short training may learn nothing
    ):
        study.optimize(
            objective,
            n_trials=trials,
            catch=(FloatingPointError,),
            callbacks=[lambda study, trial: bar.update()],
        )

    records = trial_records(study)
    for trial, record in zip(study.trials, records, strict=True):
        record["losses"] = {
            math.ceil(quarter * epochs / 4): loss
            for quarter, loss in trial.intermediate_values.items()
        }
    complete = [record for record in records if record["state"] == "complete"]
    best = min(complete, key=lambda record: record["validation_loss"], default=None)
    return {
        "space": describe_space(space),
        "trials": records,
        "best": best["number"] if best else None,
    }


def check_space(space: Mapping, recipe: Recipe) -> None:
    """Raise TypeError or ValueError unless the recipe can have all values of the space."""
    for name, domain in space.items():
        is_range = isinstance(domain, tuple) and domain[2:] in ((), ("log",)) and len(domain) > 1
        is_choice = isinstance(domain, list) and bool(domain)
        if not is_range and not is_choice:
            expected = '(low, high), (low, high, "log") or a list of choices'
            raise TypeError(f"{name} must have {expected}, found {domain!r}.")

        for value in domain[:2] if is_range else domain:
            replace(recipe, **{name: value})  # raises for an unknown name or an invalid value

        if is_range and not domain[0] < domain[1]:
            raise ValueError(f"{name} must have a low value below the high one, found {domain!r}.")
        if is_range and domain[2:] and domain[0] <= 0:
            raise ValueError(f"{name} has a logarithmic range, which must be above 0.")


def _contains(domain: list | tuple, value) -> bool:
    """Return whether a value is in a range or among choices."""
    if isinstance(domain, list):
        return value in domain
    return domain[0] <= value <= domain[1]
