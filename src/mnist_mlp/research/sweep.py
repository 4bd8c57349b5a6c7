"""Many training runs, each with its own record, on this machine or on a Dask cluster."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm import tqdm

from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.research.convnet import ConvNet
from mnist_mlp.research.distillation import load_distillation_sets
from mnist_mlp.research.disturbances import disturb
from mnist_mlp.storage.files import atomic_write, read_json, write_json
from mnist_mlp.storage.weights import to_bytes
from mnist_mlp.train import fit

# Fields of a run beyond the recipe's.
DEFAULTS: dict[str, Any] = {
    "dataset": "mnist", "model": "EnhancedNet", "teacher_logits": "",
    "all_images": False,  # train on the validation images too
    "disturbed_share": 0.0,  # of each batch, by `disturb`
}  # fmt: skip
MODELS = {"EnhancedNet": EnhancedNet, "ConvNet": ConvNet}
RECORD_SCHEMA = {
    "run": dict, "version": dict, "threads": int, "validation_accuracy": float, "best_epoch": int,
    "sha256": str, "seconds": float, "epochs": list,
}  # fmt: skip
VERSION = {"record": 3, "torch": str(torch.__version__)}


def with_defaults(run: dict) -> dict:
    """Return the run with all fields; those that it lacks are as in the published recipe.

    Raises TypeError or ValueError for an unknown field or an invalid value.
    """
    whole = DEFAULTS | {name: run[name] for name in DEFAULTS if name in run}
    if whole["model"] not in MODELS:
        expected = " or ".join(map(repr, MODELS))
        raise ValueError(f"model must be {expected}, found {whole['model']!r}.")
    if not isinstance(whole["all_images"], bool):
        raise TypeError(f"all_images must be True or False, found {whole['all_images']!r}.")
    if not 0 <= (share := whole["disturbed_share"]) <= 1:
        raise ValueError(f"disturbed_share must be a number from 0 to 1, found {share!r}.")
    for name in [name for name, value in run.items() if callable(value)]:
        raise TypeError(f"a run of a sweep must have plain values, found a function as {name!r}.")
    return whole | _recipe(run).asdict()


def _recipe(run: dict) -> Recipe:
    return Recipe(**{name: value for name, value in run.items() if name not in DEFAULTS})


def run_name(run: dict) -> str:
    """Return the name of a run's files: its model, a digest of all its fields, its seed."""
    run = with_defaults(run)
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return f"{run['model']}-{digest[:12]}-{run['seed']}"


def sweep(
    runs: list[dict], folder: str | Path, threads: int = 1, retry_failed: bool = False
) -> list[dict]:
    """Train each run that has no record in the folder yet; return all records in the runs' order.

    A run: fields of `Recipe`, and if need be `dataset`, `model` ("EnhancedNet" or "ConvNet"),
    `teacher_logits` (a file of `save_distillation_sets`), `all_images` (True to train on the
    validation images too) and `disturbed_share` (of each batch, from 0 to 1). Its record is a .json
    file with the weights beside it, so a killed sweep continues where it was. As many runs train at
    a time as the processors hold with `threads` each, or as a `cluster` has. The record of a run
    that failed has only `run`, `version` and `failed`, the reason; it is trained again only with
    `retry_failed`.
    Raises TypeError or ValueError for an invalid run before the first one starts.
    """
    named = {Path(folder) / f"{run_name(run)}.json": with_defaults(run) for run in runs}
    found = {path: _read(path, run) for path, run in named.items() if path.exists()}
    done = {p: r for p, r in found.items() if r and not (retry_failed and "failed" in r)}
    todo = {path: run for path, run in named.items() if path not in done}
    workers = Parallel(max(1, cpu_count() // threads), return_as="generator_unordered")
    trained = workers(delayed(_train)(path, run, threads) for path, run in todo.items())
    start, total = len(named) - len(todo), len(named)
    for path, record, weights in tqdm(trained, "Sweep", total, initial=start, file=sys.stdout):
        if weights:
            with atomic_write(path.with_suffix(".pth")) as file:
                file.write_bytes(weights)
        write_json(path, record)  # last: a record says that its weights are there
        done[path] = record
    records = [done[Path(folder) / f"{run_name(run)}.json"] for run in runs]
    if failed := [record for record in records if "failed" in record]:
        print(f"{len(failed)} of {len(records)} runs failed; retry_failed=True tries them again:")
        for record in failed:
            changes = _recipe(record["run"]).changes()
            print(f"  {run_name(record['run'])} {changes}: {record['failed']}")
    return records


def _augment_and_disturb(images, generator, recipe: Recipe, share: float) -> torch.Tensor:
    return disturb(recipe.augment_batch(images, generator), generator, share)


def train_run(run: dict, threads: int) -> tuple[dict, bytes]:
    """Train a run with all fields; return its record and the content of its weights' file.

    If the training fails the record says why, and there are no weights.
    """
    from mnist_mlp.datasets import load

    torch.set_num_threads(threads)
    try:
        splits = load(run["dataset"], download=False)
        torch.manual_seed(run["seed"])
        model = MODELS[run["model"]](len(splits.train.classes))
        images = splits.train_and_validation() if run["all_images"] else splits.train
        train, recipe = [images], _recipe(run)
        if run["teacher_logits"]:
            train = load_distillation_sets(run["teacher_logits"], images)
        if share := run["disturbed_share"]:
            disturbed = partial(_augment_and_disturb, recipe=recipe, share=share)
            recipe = replace(recipe, augment=disturbed)
        history = fit(model, train, splits.validation, recipe, progress=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"run": run, "version": VERSION, "failed": reason}, b""
    if history.stopped:  # half a run is no record
        raise KeyboardInterrupt
    weights = to_bytes(model.cpu().state_dict())
    record = {
        "run": run,
        "version": VERSION,
        "threads": threads,
        "validation_accuracy": history.validation_accuracy,
        "best_epoch": history.best_epoch,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "seconds": history.seconds,
        "epochs": history.epochs,
    }
    return record, weights


def _train(path: Path, run: dict, threads: int) -> tuple[Path, dict, bytes]:
    end_with_parent()
    return path, *train_run(run, threads)


@cache
def end_with_parent() -> None:
    """End this process soon after its parent, which may have been killed. Not on Windows."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if parent_process() is not None and os.name != "nt":  # not in the process that calls `sweep`
        Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def _read(path: Path, run: dict) -> dict | None:
    """Return the run's record, or None, saying why, if it or its weights cannot be used."""
    try:
        if "failed" in (record := read_json(path, {"run": dict, "version": dict})):
            return record if (record["run"], record["version"]) == (run, VERSION) else None
        record = read_json(path, RECORD_SCHEMA)
        sha256 = hashlib.sha256(path.with_suffix(".pth").read_bytes()).hexdigest()
        expected = {"run": run, "version": VERSION, "sha256": sha256}
        if different := [name for name, value in expected.items() if record[name] != value]:
            raise ValueError(f"its {different[0]} is not the expected one")
        return record
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"{path} cannot be used and is computed again: {error!r}.", flush=True)
        return None


@contextmanager
def cluster(address: str) -> Iterator:
    """Yield the client of the Dask cluster with the scheduler at `address`: `sweep` runs there.

    Raises ConnectionError if no scheduler answers within ten seconds.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}.") from error
    with client, parallel_config(backend="dask"):
        yield client
