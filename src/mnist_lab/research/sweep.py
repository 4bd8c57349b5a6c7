"""Train many recipes and seeds, on this machine or on a Dask cluster; keep a record of each run."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from torch import nn
from tqdm import tqdm

from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import load_distillation_sets
from mnist_lab.research.strong_augment import strong_augment
from mnist_mlp.checkpoint import read_card, save_weights
from mnist_mlp.data import concatenate
from mnist_mlp.datasets import load
from mnist_mlp.files import read_json, write_json
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import default_augmentation, fit, resolve_precision

MODELS = {"EnhancedNet": EnhancedNet, "ConvNet": ConvNet}

# The fields that a run has in addition to those of `Recipe`.
RUN_DEFAULTS: dict[str, Any] = {
    "dataset": "mnist",
    "model": "EnhancedNet",
    "teacher_logits": "",  # a file that `save_distillation_sets` wrote
    "all_images": False,  # True: train on the validation images too
    "disturbed_share": 0.0,  # the fraction of each batch that `strong_augment` changes
}

# A record of another version is not used. Raise the number when the same fields no longer give the
# same training.
VERSION = {"record": 4, "torch": str(torch.__version__)}


def with_defaults(run: dict) -> dict:
    """Return the run with all its fields. Missing fields get their default values.

    The precision "auto" becomes the precision that this machine uses.

    Raises:
        TypeError: A field is unknown or has a value of another type.
        ValueError: A value is out of range.
    """
    extras = {name: run.get(name, default) for name, default in RUN_DEFAULTS.items()}

    if extras["model"] not in MODELS:
        expected = " or ".join(map(repr, MODELS))
        raise ValueError(f"model must be {expected}, found {extras['model']!r}.")
    if not isinstance(extras["all_images"], bool):
        raise TypeError(f"all_images must be True or False, found {extras['all_images']!r}.")
    if not 0 <= extras["disturbed_share"] <= 1:
        raise ValueError(
            f"disturbed_share must be a number from 0 to 1, found {extras['disturbed_share']!r}."
        )

    recipe = recipe_of(run)
    precision = resolve_precision(recipe.precision, recipe.device or "cpu")
    return {**extras, **recipe.asdict(), "precision": precision}


def recipe_of(run: dict) -> Recipe:
    """Return the recipe of a run."""
    fields = {name: value for name, value in run.items() if name not in RUN_DEFAULTS}
    return Recipe(**fields)


def run_name(run: dict) -> str:
    """Return the name of a run's files. It consists of the model, a digest and the seed.

    The digest covers all fields, so different runs have different names.
    """
    run = with_defaults(run)
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return f"{run['model']}-{digest[:12]}-{run['seed']}"


def sweep(runs: list[dict], folder: str | Path, threads: int = 1) -> list[dict]:
    """Train each run that has no record in the folder yet; return the records of all runs.

    If a sweep is killed, the same call continues it. If a run fails, the others go on. The record
    of a failed run has only `run`, `version` and `failed`, which is the reason. Remove its file to
    try again.

    Args:
        runs: For each run, the fields of `Recipe` that differ from the default. A run may also
            have `dataset`, `model` ("EnhancedNet" or "ConvNet"), `teacher_logits` (a file that
            `save_distillation_sets` wrote), `all_images` (True trains on the validation images
            too) and `disturbed_share` (the fraction of each batch that `strong_augment` changes).
        folder: Where the records and weights go. A record is the JSON file that `save_weights`
            writes beside the weights (the card).
        threads: The number of threads of each run. The sweep trains `cpu_count() // threads` runs
            at a time, or one per worker of a `cluster`.

    Returns:
        A record for each run, in the order of `runs`.

    Raises:
        TypeError, ValueError: A run is invalid. Nothing is trained.

    Example:
        >>> records = sweep([{"epochs": 5, "seed": seed} for seed in range(3)], "records")
        >>> [record["validation_accuracy"] for record in records]
    """
    folder = Path(folder)
    runs_by_name = {run_name(run): with_defaults(run) for run in runs}

    records = {}
    to_train = {}
    for name, run in runs_by_name.items():
        record = read_record(folder / f"{name}.json", run)
        if record is None:
            to_train[name] = run
        else:
            records[name] = record

    workers = Parallel(max(1, cpu_count() // threads), return_as="generator_unordered")
    trained = workers(delayed(_train)(name, run, threads) for name, run in to_train.items())
    progress = tqdm(
        trained, "Sweep", total=len(runs_by_name), initial=len(records), file=sys.stdout
    )

    # This process alone writes files, so a worker that is killed leaves no incomplete record.
    for name, model, record in progress:
        if model is None:  # the training failed
            write_json(folder / f"{name}.json", record)
            records[name] = record
        else:
            weights = folder / f"{name}.pth"
            save_weights(model, weights, **record)
            records[name] = read_card(weights)  # the record and what `save_weights` adds to it

    failed = [record for record in records.values() if "failed" in record]
    if failed:
        print(f"{len(failed)} of {len(records)} runs failed:")
    for record in failed:
        recipe = recipe_of(record["run"])
        print(f"  {run_name(record['run'])} {recipe.diff_from_default()}: {record['failed']}")

    return [records[run_name(run)] for run in runs]


def train_run(run: dict, threads: int) -> tuple[nn.Module | None, dict]:
    """Train a run in this process.

    Args:
        run: A run with all its fields, as `with_defaults` returns it.
        threads: The number of threads.

    Returns:
        The model and its record. If the training fails, the model is None, and the record has the
        reason.
    """
    torch.set_num_threads(threads)
    try:
        splits = load(run["dataset"], download=False)
        images = splits.train
        if run["all_images"]:
            images = concatenate(splits.train, splits.validation)

        train_sets = [images]
        if run["teacher_logits"]:
            train_sets = load_distillation_sets(run["teacher_logits"], images)

        recipe = recipe_of(run)
        augment = None
        if run["disturbed_share"]:
            augment = _strong_augmentation(recipe, run["disturbed_share"])
            # `augment` warps already. `fit` accepts it only if the recipe's own warp fields have
            # their defaults.
            recipe = replace(
                recipe,
                augment_strength=Recipe.augment_strength,
                elastic_strength=Recipe.elastic_strength,
            )

        torch.manual_seed(run["seed"])
        model = MODELS[run["model"]](len(images.classes))
        history = fit(model, train_sets, splits.validation, recipe, augment=augment, progress=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return None, {"run": run, "version": VERSION, "failed": reason}

    record = {
        "run": run,
        "version": VERSION,
        "threads": threads,
        "validation_accuracy": history.validation_accuracy,
        "best_epoch": history.best_epoch,
        "seconds": history.seconds,
        "epochs": history.epochs,
    }
    return model.cpu(), record


def _strong_augmentation(recipe: Recipe, strong_fraction: float) -> Callable[..., torch.Tensor]:
    """Return a function that warps as the recipe says, then augments a fraction strongly."""
    warp = default_augmentation(recipe)

    def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if warp is not None:
            images = warp(images, generator)
        return strong_augment(images, generator, strong_fraction)

    return augment


def _train(name: str, run: dict, threads: int) -> tuple[str, nn.Module | None, dict]:
    """Train a run in a worker. The name identifies the result, as runs end in any order."""
    end_with_parent()
    model, record = train_run(run, threads)
    return name, model, record


@cache  # a worker trains many runs, but one thread that watches its parent is enough
def end_with_parent() -> None:
    """End this worker within a second after its parent has ended.

    If the parent is killed, joblib leaves its workers running. In the process that calls `sweep`,
    this does nothing.
    """
    parent = parent_process()
    if parent is None:
        return

    def exit_without_parent() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)

    Thread(target=exit_without_parent, daemon=True).start()


def read_record(path: Path, run: dict) -> dict | None:
    """Return the record of a run, or None if it is missing or cannot be used."""
    if not path.exists():
        return None

    unusable = f"{path} cannot be used, so the run is trained again"
    try:
        record = read_json(path, {"run": dict, "version": dict})
        if "failed" not in record:
            read_card(path.with_suffix(".pth"))  # raises if the weights are not those of the card
    except (OSError, ValueError) as error:
        print(f"{unusable}: {error!r}.", flush=True)
        return None

    if record["run"] != run or record["version"] != VERSION:
        print(f"{unusable}: it belongs to another run or version.", flush=True)
        return None
    return record


@contextmanager
def cluster(address: str) -> Iterator:
    """Let `sweep` train on a Dask cluster.

    Args:
        address: The address of the scheduler.

    Yields:
        The client of the cluster.

    Raises:
        ConnectionError: No scheduler answers within ten seconds.

    Example:
        >>> with cluster("tcp://SCHEDULER:8786"):
        ...     records = sweep(runs, "records")
    """
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address}: {error}. Start one with `dask scheduler`."
        ) from error

    with client, parallel_config(backend="dask"):
        yield client
