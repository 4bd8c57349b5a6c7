"""Search for a better recipe with Optuna; trials are judged on the validation loss.

`make tune` and `small_study` share these functions. Optuna comes with the extra `[tune]`; this
module can be imported without it.
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
    """Return the recipe with new values, which the trial suggests, for the fields of the space."""
    values: dict[str, Any] = {}
    for name, domain in space.items():
        if isinstance(domain, list):
            values[name] = trial.suggest_categorical(name, domain)
            continue

        low, high = domain[:2]
        is_log = "log" in domain
        is_whole = isinstance(getattr(Recipe, name), int)  # the recipe may have 0 for 0.0
        if is_whole:
            values[name] = trial.suggest_int(name, low, high, log=is_log)
        else:
            values[name] = trial.suggest_float(name, low, high, log=is_log)

    return replace(recipe, **values)


def train_trial(trial: optuna.Trial, splits: Splits, recipe: Recipe) -> float:
    """Train a new EnhancedNet and return its validation loss.

    It is the loss of the best epoch, whose weights `fit` leaves in the model.

    Raises:
        optuna.TrialPruned: Optuna stops the trial. It can do so after each quarter of the epochs.
        FloatingPointError: The loss diverges.
    """
    import optuna

    start = time.process_time()
    trial.set_user_attr("epochs", recipe.epochs)

    def on_epoch(history: History) -> None:
        epoch = len(history.epochs)
        trial.set_user_attr("seconds", time.process_time() - start)

        # Trials can differ in their number of epochs, so Optuna compares them at each quarter.
        quarters_done = 4 * epoch // recipe.epochs
        quarters_done_before = 4 * (epoch - 1) // recipe.epochs
        if quarters_done > quarters_done_before:
            trial.report(history.epochs[-1]["validation_loss"], quarters_done)
            if quarters_done < 4 and trial.should_prune():
                raise optuna.TrialPruned

    torch.manual_seed(recipe.seed)
    model = EnhancedNet(len(splits.train.classes))
    history = fit(model, splits.train, splits.validation, recipe, on_epoch=on_epoch, progress=False)
    best_epoch = history.epochs[history.best_epoch - 1]
    return best_epoch["validation_loss"]


def trial_records(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the trials of a study as dicts, which `tune.json` contains."""
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
    """Return the search space as a dict, which `tune.json` contains."""
    described: dict[str, dict[str, Any]] = {}
    for name, domain in space.items():
        if isinstance(domain, list):
            described[name] = {"choices": domain}
        else:
            low, high = domain[:2]
            described[name] = {"low": low, "high": high, "log": "log" in domain}
    return described


def small_study(
    splits: Splits,
    recipe: Recipe,
    space: Mapping,
    trials: int = 10,
    epochs: int = 3,
    images: int = 9_000,
) -> dict[str, Any]:
    """Search for a better recipe with short trials.

    Args:
        splits: The data set. The study does not read its test set.
        recipe: The recipe to improve. The first trial has its values, if the space contains them.
        space: The fields of `Recipe` to search. Each has a range `(low, high)` or
            `(low, high, "log")`, or a list of choices.
        trials: The number of trials.
        epochs: The number of epochs of each trial. The study stops a trial early if its loss is
            above the median of the earlier trials.
        images: The number of training images per trial, chosen at random, the same for all trials.

    Returns:
        A dict with `space`, `trials` and `best`, as in the record of `make tune`. `best` is the
        number of the best trial, or None if no trial was completed. A trial also has `losses`, the
        validation loss by epoch. `starts_with_recipe` is whether the first trial is the recipe.

    Raises:
        TypeError, ValueError: The space is invalid. Nothing is trained.
        ModuleNotFoundError: Optuna is not installed.

    Example:
        >>> space = {"learning_rate": (0.001, 0.1, "log"), "optimizer": ["adamw", "muon"]}
        >>> study = small_study(load("mnist"), Recipe(), space)
    """
    check_space(space, recipe)
    for name, value in (("trials", trials), ("images", images)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value!r}.")
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This study needs Optuna, an extra: pip install -e '.[tune]'."
        ) from error

    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(splits.train), generator=generator)
    indices = order[:images].sort().values
    splits = replace(splits, train=splits.train.subset(indices))
    recipe = replace(recipe, epochs=epochs)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=trials // 2, multivariate=True, seed=recipe.seed
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    study = optuna.create_study(sampler=sampler, pruner=pruner)

    first_trial = {}
    for name, domain in space.items():
        value = getattr(recipe, name)
        if _contains(domain, value):
            first_trial[name] = value
    study.enqueue_trial(first_trial)

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
        losses = {}
        for quarters_done, loss in trial.intermediate_values.items():
            epoch = math.ceil(
                quarters_done * record["epochs"] / 4
            )  # the one that `train_trial` reported
            losses[epoch] = loss
        record["losses"] = losses

    complete = [record for record in records if record["state"] == "complete"]
    best = min(complete, key=lambda record: record["validation_loss"], default=None)
    return {
        "space": describe_space(space),
        "trials": records,
        "best": best["number"] if best else None,
        "starts_with_recipe": len(first_trial) == len(space),
    }


def check_space(space: Mapping, recipe: Recipe) -> None:
    """Check a search space.

    Raises TypeError or ValueError unless the recipe accepts every choice and both ends of every
    range, and every field has an effect.
    """
    if "distillation_temperature" in space:
        raise ValueError(
            "distillation_temperature has no effect, because a study has no teacher: leave it out."
        )
    strengths = space.get("augment_strength", [recipe.augment_strength])
    if "elastic_strength" in space and isinstance(strengths, list) and 0 in strengths:
        raise ValueError(
            "elastic_strength has no effect at augment_strength=0: leave out one of the two."
        )

    for name, domain in space.items():
        is_choice = isinstance(domain, list) and len(domain) > 0
        is_plain_range = isinstance(domain, tuple) and len(domain) == 2
        is_log_range = isinstance(domain, tuple) and len(domain) == 3 and domain[2] == "log"
        is_range = is_plain_range or is_log_range
        if not is_choice and not is_range:
            raise TypeError(
                f'{name} must have (low, high), (low, high, "log") or a list of choices, '
                f"found {domain!r}."
            )

        values = domain[:2] if is_range else domain
        for value in values:
            replace(recipe, **{name: value})  # raises for an unknown name or an invalid value

        if is_range:
            low, high = values
            if low >= high:
                raise ValueError(
                    f"{name} must have a low value below the high one, found {domain}."
                )
            if is_log_range and low <= 0:
                raise ValueError(f"{name} must be above 0 in a logarithmic range, found {domain}.")


def _contains(domain: list | tuple, value: Any) -> bool:
    """Return whether a value is in a range or among choices."""
    if isinstance(domain, list):
        return value in domain
    low, high = domain[:2]
    return low <= value <= high
