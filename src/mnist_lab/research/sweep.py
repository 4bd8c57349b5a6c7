"""Train many recipes and seeds, on this machine or on a Dask cluster; keep a record of each run."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing import parent_process
from numbers import Real
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from torch import nn
from tqdm import tqdm

import mnist_mlp
from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import load_distillation_sets
from mnist_lab.research.strong_augment import strong_augment
from mnist_mlp.checkpoint import read_card, save_weights
from mnist_mlp.data import ImageDataset, concatenate
from mnist_mlp.datasets import load
from mnist_mlp.files import read_json, write_json
from mnist_mlp.identity import sha256_of_datasets
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

# The fields whose values are floats.
FLOAT_FIELDS = [
    name
    for name, default in {**RUN_DEFAULTS, **Recipe().asdict()}.items()
    if isinstance(default, float)
]

# The modules that no training uses: if they change, the records stay valid.
NOT_IN_TRAINING = ("notebook.py", "plots.py")


def training_files() -> list[Path]:
    """Return the source files that determine the result of a run."""
    core = Path(mnist_mlp.__file__).parent
    research = Path(__file__).parent
    files = [path for path in sorted(core.glob("*.py")) if path.name not in NOT_IN_TRAINING]
    for name in ("__init__", "convnet", "distillation", "strong_augment", "sweep"):
        files.append(research / f"{name}.py")
    return files


def code_digest() -> str:
    """Return the SHA-256 of the source files that determine the result of a run."""
    sha256 = hashlib.sha256()
    for path in training_files():
        sha256.update(path.name.encode())
        sha256.update(path.read_text(encoding="utf-8").encode())  # alike on Windows
    return sha256.hexdigest()


# What the result of a run depends on besides its fields and its data. A record holds all three, and
# if one differs, the run is trained again. Computed once, because later edits of the files do not
# change the code that runs.
VERSION = {"torch": str(torch.__version__), "code": code_digest()}


def with_defaults(run: dict) -> dict:
    """Return the run with all its fields. Missing fields get their default values.

    The precision "auto" becomes the precision that this machine uses.

    Raises:
        TypeError: The run is not a dict, or a field is unknown or has a value of another type.
        ValueError: A value is out of range, or the data set is "auto".
    """
    if not isinstance(run, dict):
        raise TypeError(
            f"a run must be a dict of the fields that differ from the default, found {run!r}. "
            "sweep takes a list of runs."
        )
    extras = {name: run.get(name, default) for name, default in RUN_DEFAULTS.items()}

    if extras["dataset"] == "auto":  # its records would be those of one or the other data set
        raise ValueError(
            "dataset must name one data set, found 'auto': use the name of the one that was "
            "loaded, load('auto').name."
        )
    for name in ("dataset", "teacher_logits"):
        if not isinstance(extras[name], str):
            raise TypeError(f"{name} must be a string, found {extras[name]!r}.")
    if extras["model"] not in MODELS:
        expected = " or ".join(map(repr, MODELS))
        raise ValueError(f"model must be {expected}, found {extras['model']!r}.")
    if not isinstance(extras["all_images"], bool):
        raise TypeError(f"all_images must be True or False, found {extras['all_images']!r}.")
    share = extras["disturbed_share"]
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
        raise ValueError(f"disturbed_share must be a number from 0 to 1, found {share!r}.")

    recipe = recipe_of(run)
    is_elastic = recipe.elastic_strength != Recipe.elastic_strength
    if is_elastic and recipe.augment_strength == 0:  # `fit` does not see both of a disturbed run
        raise ValueError(
            "elastic_strength would be ignored, because it is multiplied by augment_strength, "
            "which is 0: leave one of the two out."
        )

    precision = resolve_precision(recipe.precision, recipe.device or "cpu")
    whole_run = {**extras, **recipe.asdict(), "precision": precision}

    # Otherwise 0 and 0.0, or a NumPy number, would be another run.
    for name in FLOAT_FIELDS:
        whole_run[name] = float(whole_run[name])
    return whole_run


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


def sweep(runs: Iterable[dict], folder: str | Path, threads: int = 1) -> list[dict]:
    """Train each run that has no record in the folder yet; return the records of all runs.

    If a sweep is killed, the same call continues it. If a run fails, the others go on. The record
    of a failed run has only `run`, `version` and `failed`, which is the reason. Remove its file to
    try again.

    A record is used only for the same data, code and torch: `version` holds their digests. If one
    differs, the sweep says so and trains the run again.

    Args:
        runs: For each run, the fields of `Recipe` that differ from the default. A run may also
            have `dataset`, `model` ("EnhancedNet" or "ConvNet"), `teacher_logits` (a file that
            `save_distillation_sets` wrote), `all_images` (True trains on the validation images
            too) and `disturbed_share` (the fraction of each batch that `strong_augment` changes).
        folder: Where the records and weights go. A record is the JSON file that `save_weights`
            writes beside the weights (the card).
        threads: The number of threads of each run. The sweep trains `cpu_count() // threads` runs
            at a time, or one per worker of a `cluster`. A record of another number of threads is
            used, although rounding errors differ.

    Returns:
        A record for each run, in the order of `runs`.

    Raises:
        TypeError, ValueError: A run is invalid. Nothing is trained.
        OSError: The data or the teacher logits of a run cannot be read, or the folder cannot be
            written to. Nothing is trained.

    Example:
        >>> records = sweep([{"epochs": 5, "seed": seed} for seed in range(3)], "records")
        >>> [record["validation_accuracy"] for record in records]
    """
    folder = Path(folder).expanduser()
    runs = list(runs)
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, found {threads!r}.")
    runs_by_name = {run_name(run): with_defaults(run) for run in runs}

    # A folder that cannot be written to must not be noticed only after a training.
    write_json(folder / ".probe", {})
    (folder / ".probe").unlink()

    versions = versions_of(runs_by_name)

    records = {}
    jobs = []
    for name, run in runs_by_name.items():
        record = read_record(folder / f"{name}.json", run, versions[name])
        if record is None:
            jobs.append(delayed(_train)(name, run, threads, versions[name]))
        else:
            records[name] = record

    workers = Parallel(max(1, cpu_count() // threads), return_as="generator_unordered")
    trained = workers(jobs)
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


def versions_of(runs_by_name: dict[str, dict]) -> dict[str, dict[str, str]]:
    """Return the version of each run: `VERSION` and the digest of the run's data.

    Runs on the same data load it only once.
    """
    versions = {}
    digests: dict[tuple, str] = {}
    for name, run in runs_by_name.items():
        data_fields = (run["dataset"], run["all_images"], run["teacher_logits"])
        if data_fields not in digests:
            train_sets, validation = load_data(run)
            digests[data_fields] = data_digest(train_sets, validation)
        versions[name] = {**VERSION, "data": digests[data_fields]}
    return versions


def load_data(run: dict) -> tuple[list[ImageDataset], ImageDataset]:
    """Return the training sets and the validation set of a run."""
    splits = load(run["dataset"], download=False)
    images = splits.train
    if run["all_images"]:
        images = concatenate(splits.train, splits.validation)

    train_sets = [images]
    if run["teacher_logits"]:
        train_sets = load_distillation_sets(run["teacher_logits"], images)
    return train_sets, splits.validation


def data_digest(train_sets: list[ImageDataset], validation: ImageDataset) -> str:
    """Return the SHA-256 of images, labels, class names and teacher logits."""
    tensors = sha256_of_datasets([*train_sets, validation])
    names = [dataset.classes for dataset in (*train_sets, validation)]
    return hashlib.sha256(json.dumps([tensors, names]).encode()).hexdigest()


def train_run(run: dict, threads: int, version: dict[str, str]) -> tuple[nn.Module | None, dict]:
    """Train a run in this process.

    Args:
        run: A run with all its fields, as `with_defaults` returns it.
        threads: The number of threads.
        version: The run's version where `sweep` was called, as `versions_of` returns it. If this
            process has other data or code, as a worker on another machine may, the training fails.

    Returns:
        The model and its record. If the training fails, the model is None, and the record has the
        reason.
    """
    torch.set_num_threads(threads)
    try:
        train_sets, validation = load_data(run)
        version_here = {**VERSION, "data": data_digest(train_sets, validation)}
        if version_here != version:
            reason = (
                f"a worker has {differences(version_here, version)} than the process that called "
                "sweep: give both the same package, and the same files in MNIST_ROOT."
            )
            return None, {"run": run, "version": version_here, "failed": reason}

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
        model = MODELS[run["model"]](len(validation.classes))
        history = fit(model, train_sets, validation, recipe, augment=augment, progress=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return None, {"run": run, "version": version, "failed": reason}

    record = {
        "run": run,
        "version": version,
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


def _train(
    name: str, run: dict, threads: int, version: dict[str, str]
) -> tuple[str, nn.Module | None, dict]:
    """Train a run in a worker. The name identifies the result, as runs end in any order."""
    end_with_parent()
    model, record = train_run(run, threads, version)
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


def read_record(path: Path, run: dict, version: dict[str, str]) -> dict | None:
    """Return the record of a run, or None if it is missing or cannot be used.

    Args:
        path: The record, a JSON file.
        run: The run with all its fields.
        version: The version that the record must have, as `versions_of` returns it.
    """
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

    if record["run"] != run:
        print(f"{unusable}: it belongs to another run.", flush=True)
        return None
    if record["version"] != version:
        reason = f"it was trained with {differences(record['version'], version)}"
        print(f"{unusable}: {reason}.", flush=True)
        return None
    return record


def differences(version: dict, expected: dict[str, str]) -> str:
    """Return in words which parts of a version are not the expected ones, such as "other data"."""
    names = [name for name in expected if version.get(name) != expected[name]]
    return " and ".join(f"other {name}" for name in names) or "another layout of the record"


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
