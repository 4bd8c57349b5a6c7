"""Train many recipes, ideas and seeds, here or on a Dask cluster; keep a record of each run."""

import hashlib
import json
import os
import pickle
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from multiprocessing import parent_process
from numbers import Real
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, cpu_count, delayed, parallel_config
from torch import nn
from tqdm import tqdm

import mnist_mlp
from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import load_distillation_sets
from mnist_lab.research.strong_augment import strong_augment
from mnist_mlp.checkpoint import load_weights, read_card, save_weights
from mnist_mlp.data import ImageDataset, Splits, concatenate, stratified_split
from mnist_mlp.datasets import load
from mnist_mlp.evaluation import check_network, evaluate
from mnist_mlp.files import read_json, write_json
from mnist_mlp.identity import describe, sha256_of_datasets
from mnist_mlp.model import EnhancedNet
from mnist_mlp.optim import bfloat16_units
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.train import default_augmentation, fit, resolve_precision

MODELS = {"EnhancedNet": EnhancedNet, "ConvNet": ConvNet}

# The fields that a run has in addition to those of `Recipe`.
RUN_DEFAULTS: dict[str, Any] = {
    "dataset": "mnist",  # or your own `Splits` or `ImageDataset`
    "model": "EnhancedNet",  # or your own class or function, called with classes=...
    "teacher_logits": "",  # a file that `save_distillation_sets` wrote
    "all_images": False,  # True: train on the validation images too
    "disturbed_share": 0.0,  # the fraction of each batch that `strong_augment` changes
}

# Your own functions, as for `fit`. A run has these fields only if it has such a function.
FUNCTIONS = ("optimizer", "schedule", "loss_fn", "augment")

# The fields whose values are floats.
FLOAT_FIELDS = [
    name
    for name, default in {**RUN_DEFAULTS, **Recipe().asdict()}.items()
    if isinstance(default, float)
]

# How often a sweep looks whether another process has trained a run that both need.
POLL_SECONDS = 1.0

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
    """Return the run with all its fields but its name. Missing fields get their default values.

    The precision "auto" becomes the precision that this machine uses. What is your own stays as it
    is: `describe_run` turns it into text.

    Raises:
        TypeError: The run is not a dict, or a field is unknown or has a value of another type.
        ValueError: A value is out of range, two fields exclude each other, or the data set is
            "auto".
    """
    if not isinstance(run, dict):
        raise TypeError(
            f"a run must be a dict of the fields that differ from the default, found {run!r}. "
            "sweep takes a list of runs."
        )
    known_names = ["name", *RUN_DEFAULTS, *FUNCTIONS, *Recipe().asdict()]
    for name in run:
        if name not in known_names:
            expected = ", ".join(dict.fromkeys(known_names))
            raise TypeError(f"unknown field {name!r} in the run {run!r:.200}: use {expected}.")
    extras = {name: run.get(name, default) for name, default in RUN_DEFAULTS.items()}

    dataset = extras["dataset"]
    if not isinstance(dataset, (str, Splits, ImageDataset)):
        raise TypeError(
            f"dataset must be a name, Splits or an ImageDataset, found {dataset!r:.200}."
        )
    # Its records would be those of one or the other data set.
    if isinstance(dataset, str) and dataset == "auto":
        raise ValueError(
            "dataset must name one data set, found 'auto': use the name of the one that was "
            "loaded, load('auto').name."
        )

    for name, model_class in MODELS.items():  # a class of ours is the same as its name
        if extras["model"] is model_class:
            extras["model"] = name
    model = extras["model"]
    is_own_model = callable(model) and not isinstance(model, nn.Module)
    if not is_own_model and (not isinstance(model, str) or model not in MODELS):
        expected = " or ".join(map(repr, MODELS))
        raise ValueError(
            f"model must be {expected}, or a class or function that returns a network, "
            f"found {model!r:.200}."
        )

    for name, value in (
        ("name", run.get("name", "")),
        ("teacher_logits", extras["teacher_logits"]),
    ):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, found {value!r}.")
    if not isinstance(extras["all_images"], bool):
        raise TypeError(f"all_images must be True or False, found {extras['all_images']!r}.")
    share = extras["disturbed_share"]
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
        raise ValueError(f"disturbed_share must be a number from 0 to 1, found {share!r}.")

    recipe = recipe_of(run)
    functions = functions_of(run)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a name or a function, found {function!r:.200}.")
    if functions["augment"] is not None and float(share) > 0:
        raise ValueError("augment replaces disturbed_share: leave one of the two out.")
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

    for name, function in functions.items():
        if function is not None:
            whole_run[name] = function
    return whole_run


def recipe_of(run: dict) -> Recipe:
    """Return the recipe of a run, without its own functions."""
    fields = {}
    for name, value in run.items():
        is_own_function = name in FUNCTIONS and not isinstance(value, str)
        if name != "name" and name not in RUN_DEFAULTS and not is_own_function:
            fields[name] = value
    return Recipe(**fields)


def functions_of(run: dict) -> dict[str, Any]:
    """Return the run's own functions by their names in `fit`, None for those that it has not."""
    functions = {}
    for name in FUNCTIONS:
        value = run.get(name)
        functions[name] = None if isinstance(value, str) else value
    return functions


def describe_run(run: dict, descriptions: dict[int, str] | None = None) -> dict:
    """Return a run with all its fields, in which text stands for what is your own.

    The text is a name and a digest: of what a function or class computes, or of the data. So an
    edited function is another run, and a function with another comment is the same run.

    Args:
        run: A run with all its fields, as `with_defaults` returns it.
        descriptions: The texts of values that were described before, by their ids. A sweep has
            many runs on the same data, and describes them once.
    """
    if descriptions is None:
        descriptions = {}

    described = dict(run)
    for name in ("model", "dataset", *FUNCTIONS):
        value = run.get(name)
        if value is None or isinstance(value, str):
            continue
        if id(value) not in descriptions:
            is_data = isinstance(value, (Splits, ImageDataset))
            descriptions[id(value)] = describe_data(value) if is_data else describe(value)
        described[name] = descriptions[id(value)]
    return described


def describe_data(data: Splits | ImageDataset) -> str:
    """Return the name of a data set, and a digest of its images, labels and class names."""
    if isinstance(data, ImageDataset):
        return f"images ({data_digest([data])[:12]})"
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    return f"{data.name} ({data_digest(parts)[:12]})"


def run_name(run: dict) -> str:
    """Return the name of a run's files. It consists of the model, a digest and the seed.

    The digest covers all fields, so different runs have different names.
    """
    return file_name(describe_run(with_defaults(run)))


def file_name(described: dict) -> str:
    """Return the name of the files of a run that `describe_run` returned."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    model = described["model"].split(" (")[0].split(".")[-1]
    model = re.sub(r"\W", "", model)  # a lambda's name has angle brackets
    return f"{model}-{digest[:12]}-{described['seed']}"


def sweep(
    runs: Iterable[dict],
    folder: str | Path,
    threads: int = 1,
    *,
    test: bool = False,
    on_epoch: Callable[[str, History], object] | None = None,
) -> list[dict]:
    """Train each run that has no record in the folder yet; return the records of all runs.

    If a sweep is killed, the same call continues it. Several processes, such as those of a SLURM
    array, can make the same call with the same folder: they share the runs, and each run is
    trained once. If a run fails, the others go on. The record of a failed run has only `run`,
    `version` and `failed`, which is the reason. Remove its file to try again.

    A record is used only for the same data, code and torch: `version` holds their digests. If one
    differs, the sweep says so and trains the run again. In a record, your own functions and data
    are text, their names and digests of what they compute or hold. So an edited function is
    trained again, and one with another comment is not.

    Args:
        runs: For each run, the fields of `Recipe` that differ from the default. A run may also
            have

            * `name`: what `summarise` calls its configuration, such as "Lion";
            * `dataset`: a name for `load`, your own `Splits`, or an `ImageDataset`, of which a
              twelfth becomes the validation set;
            * `model`: "EnhancedNet", "ConvNet", or your own class or function. `sweep` calls it
              with `classes`, the number of classes, after `torch.manual_seed`;
            * `optimizer`, `schedule`, `loss_fn` and `augment`: your own, as for `fit`;
            * `teacher_logits` (a file that `save_distillation_sets` wrote), `all_images` (True
              trains on the validation images too) and `disturbed_share` (the fraction of each
              batch that `strong_augment` changes).
        folder: Where the records and weights go. A record is the JSON file that `save_weights`
            writes beside the weights (the card).
        threads: The number of threads of each run. The sweep trains `cpu_count() // threads` runs
            at a time, or one per worker of a `cluster`. A record of another number of threads is
            used, although rounding errors differ.
        test: Whether the records have `test_accuracy` too. Choose on the validation accuracy, and
            ask for this once, at the end: no run is trained again for it.
        on_epoch: A function for loggers. The worker calls it after each epoch with the name of the
            run's files and the history. What it returns is ignored.

    Returns:
        A record for each run, in the order of `runs`.

    Raises:
        TypeError, ValueError: A run is invalid, or something of your own cannot be sent to the
            workers. Nothing is trained.
        OSError: The data or the teacher logits of a run cannot be read, and the data cannot be
            downloaded; or the folder cannot be written to. Nothing is trained.

    Example:
        >>> sgd = {"optimizer": torch.optim.SGD, "learning_rate": 0.1}
        >>> runs = [{"epochs": 5, "seed": seed, **idea} for idea in ({}, sgd) for seed in range(3)]
        >>> records = sweep(runs, "records")
        >>> [record["validation_accuracy"] for record in records]
    """
    folder = Path(folder).expanduser()
    runs = list(runs)
    whole_runs = [with_defaults(run) for run in runs]
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, found {threads!r}.")
    check_can_be_sent(whole_runs, on_epoch)

    descriptions: dict[int, str] = {}
    described_runs = [describe_run(run, descriptions) for run in whole_runs]
    files = [file_name(described) for described in described_runs]
    runs_by_file = dict(zip(files, whole_runs, strict=True))
    described_by_file = dict(zip(files, described_runs, strict=True))
    titles = {file: run["name"] for file, run in zip(files, runs, strict=True) if "name" in run}

    # A folder that cannot be written to must not be noticed only after a training.
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    write_json(probe, {})
    probe.unlink()

    versions = versions_of(runs_by_file)
    test_sets = read_test_sets(runs_by_file) if test else {}

    records: dict[str, dict] = {}
    missing = []
    for file, described in described_by_file.items():
        record = read_record(folder / f"{file}.json", described, versions[file])
        if record is None:
            missing.append(file)
        else:
            records[file] = record

    progress = tqdm(
        desc="Sweep", total=len(runs_by_file), initial=len(records), unit="run", file=sys.stdout
    )
    claims: dict[str, FileLock] = {}

    def keep(file: str, record: dict) -> None:
        """Keep the record of a claimed run, which is in the folder, and give up the claim."""
        records[file] = record
        missing.remove(file)
        release(claims.pop(file))
        progress.update()

    def claimed_jobs() -> Iterator:
        """Yield a job for each missing run that no other process is training or has trained.

        A job is drawn when a worker is free, so other processes can claim the rest.
        """
        for file in list(missing):
            claim = claim_run(folder / f"{file}.claim")
            if claim is None:
                continue
            claims[file] = claim

            # Another process may have trained the run since this one has looked.
            path = folder / f"{file}.json"
            record = read_record(path, described_by_file[file], versions[file], quiet=True)
            if record is not None:
                keep(file, record)
                continue

            run = without_test_set(runs_by_file[file])
            job = cloudpickle.dumps((run, described_by_file[file], on_epoch))
            yield delayed(_train)(file, job, threads, versions[file])

    try:
        while missing:
            n_missing = len(missing)
            workers = Parallel(
                max(1, cpu_count() // threads),
                return_as="generator_unordered",
                pre_dispatch="n_jobs",
                batch_size=1,
            )
            # This process alone writes files, so a worker that is killed leaves no incomplete
            # record.
            for file, weights, classes, record in workers(claimed_jobs()):
                path = folder / f"{file}.pth"
                if file in titles:
                    record["name"] = titles[file]
                if weights is None:  # the training failed
                    write_json(path.with_suffix(".json"), record)
                    keep(file, record)
                    continue

                model = new_model(runs_by_file[file], len(classes))
                model.load_state_dict(weights)
                model.class_names = classes  # type: ignore[assignment]
                save_weights(model, path, **record)
                keep(file, read_card(path))  # the record and what `save_weights` adds to it

            if len(missing) == n_missing:  # other processes train what is left
                time.sleep(POLL_SECONDS)
    finally:
        progress.close()
        for claim in list(claims.values()):
            release(claim)

    for file, test_set in test_sets.items():
        record = records[file]
        if "failed" not in record and "test_accuracy" not in record:
            path = folder / f"{file}.pth"
            model = load_weights(new_model(runs_by_file[file], len(test_set.classes)), path)
            result = evaluate(model, test_set)
            record["test_correct"] = result.n_correct
            record["test_accuracy"] = result.accuracy
            write_json(path.with_suffix(".json"), record)

    failed = {file: record for file, record in records.items() if "failed" in record}
    if failed:
        print(f"{len(failed)} of {len(records)} runs failed:")
    for file, record in failed.items():
        print(f"  {file} {diff_from_default(record['run'])}: {record['failed']}")

    # A record that was there before may have another name, or none.
    named_records = []
    for file, run in zip(files, runs, strict=True):
        name = {"name": run["name"]} if "name" in run else {}
        named_records.append({**records[file], **name})
    return named_records


def claim_run(path: Path) -> FileLock | None:
    """Return the lock of a run, or None if another process has it.

    The operating system gives the lock of a process that has died to the next one that asks.
    """
    claim = FileLock(path, thread_local=False)  # joblib's threads take it, this one releases it
    try:
        claim.acquire(blocking=False)
    except Timeout:
        return None
    return claim


def release(claim: FileLock) -> None:
    """Give up a claim and remove its file."""
    with suppress(OSError):  # Windows removes no open file
        Path(claim.lock_file).unlink()
    claim.release()


def check_can_be_sent(whole_runs: list[dict], on_epoch: Callable | None) -> None:
    """Raise TypeError or ValueError if a model or function cannot be sent to a worker."""
    values = {id(on_epoch): ("on_epoch", on_epoch)}
    for run in whole_runs:
        for name in ("model", *FUNCTIONS):
            value = run.get(name)
            values[id(value)] = (name, value)

    for name, value in values.values():
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # each object has its own way to refuse
            reason = " ".join(str(error).split())
            raise TypeError(
                f"{name}={value!r:.200} cannot be sent to the workers ({reason}): create what "
                "cannot be pickled, such as an open file, inside the function."
            ) from error


def diff_from_default(described: dict) -> dict:
    """Return the fields of a described run that differ from the defaults."""
    defaults = {**RUN_DEFAULTS, **Recipe().asdict()}
    ignored = ("seed", "precision")
    return {
        name: value
        for name, value in described.items()
        if name not in ignored and value != defaults.get(name)
    }


def versions_of(runs_by_file: dict[str, dict]) -> dict[str, dict[str, str]]:
    """Return the version of each run: `VERSION` and the digest of the run's data.

    Runs on the same data load it only once. A data set that is missing is downloaded here, once,
    and not by each worker.
    """
    versions = {}
    digests: dict[tuple, str] = {}
    for file, run in runs_by_file.items():
        data_fields = (data_key(run), run["all_images"], run["teacher_logits"])
        if data_fields not in digests:
            train_sets, validation = load_data(run, download=True)
            digests[data_fields] = data_digest([*train_sets, validation])
        versions[file] = {**VERSION, "data": digests[data_fields]}
    return versions


def read_test_sets(runs_by_file: dict[str, dict]) -> dict[str, ImageDataset]:
    """Return the test set of each run. Raises ValueError if a data set has none."""
    test_sets = {}
    by_key: dict[str | int, ImageDataset | None] = {}
    for file, run in runs_by_file.items():
        key = data_key(run)
        if key not in by_key:
            by_key[key] = splits_of(run["dataset"]).test
        test_set = by_key[key]
        if test_set is None:
            raise ValueError(
                "the dataset of a run has no test set, so test must be False: give it Splits with "
                "a test set."
            )
        test_sets[file] = test_set
    return test_sets


def data_key(run: dict) -> str | int:
    """Return what tells the data sets of one sweep apart: the name, or the id of your own."""
    dataset = run["dataset"]
    return dataset if isinstance(dataset, str) else id(dataset)


def splits_of(dataset: str | Splits | ImageDataset, download: bool = False) -> Splits:
    """Return the three parts of a run's data set. An `ImageDataset` has no test set."""
    if isinstance(dataset, str):
        return load(dataset, download=download)
    if isinstance(dataset, Splits):
        return dataset
    kept, held_out = stratified_split(dataset.labels, holdout_fraction=1 / 12, seed=0)
    train = dataset.subset(kept)
    return Splits("images", train, dataset.subset(held_out), None)  # type: ignore[arg-type]


def without_test_set(run: dict) -> dict:
    """Return the run without the test set of its own data, which no training needs."""
    if isinstance(run["dataset"], Splits):
        return {**run, "dataset": replace(run["dataset"], test=None)}  # type: ignore[arg-type]
    return run


def load_data(run: dict, download: bool = False) -> tuple[list[ImageDataset], ImageDataset]:
    """Return the training sets and the validation set of a run."""
    splits = splits_of(run["dataset"], download)
    images = splits.train
    if run["all_images"]:
        images = concatenate(splits.train, splits.validation)

    train_sets = [images]
    if run["teacher_logits"]:
        train_sets = load_distillation_sets(run["teacher_logits"], images)
    return train_sets, splits.validation


def data_digest(datasets: list[ImageDataset]) -> str:
    """Return the SHA-256 of images, labels, class names and teacher logits."""
    tensors = sha256_of_datasets(datasets)
    names = [dataset.classes for dataset in datasets]
    return hashlib.sha256(json.dumps([tensors, names]).encode()).hexdigest()


def new_model(run: dict, classes: int) -> nn.Module:
    """Return the untrained network of a run.

    Raises:
        TypeError: Your own class or function does not take `classes`, or returns no network.
    """
    model_class = run["model"]
    if isinstance(model_class, str):
        model_class = MODELS[model_class]
    try:
        model = model_class(classes=classes)
    except TypeError as error:
        raise TypeError(
            f"model must take the number of classes, as in `def __init__(self, classes)` or "
            f"`lambda classes: ...`. It raised: {error}"
        ) from error
    check_network(model)
    return model


def train_run(
    run: dict,
    threads: int,
    version: dict[str, str],
    described: dict | None = None,
    on_epoch: Callable[[History], object] | None = None,
) -> tuple[nn.Module | None, dict]:
    """Train a run in this process.

    Args:
        run: A run with all its fields, as `with_defaults` returns it.
        threads: The number of threads.
        version: The run's version where `sweep` was called, as `versions_of` returns it. If this
            process has other data or code, as a worker on another machine may, the training fails.
        described: The run as `describe_run` returned it where `sweep` was called.
        on_epoch: A function of the history that is called after each epoch.

    Returns:
        The model and its record. If the training fails, the model is None, and the record has the
        reason.
    """
    torch.set_num_threads(threads)
    if described is None:
        described = describe_run(run)
    try:
        train_sets, validation = load_data(run)
        version_here = {**VERSION, "data": data_digest([*train_sets, validation])}
        functions = {name: run[name] for name in ("model", *FUNCTIONS) if callable(run.get(name))}
        functions_here = {name: describe(function) for name, function in functions.items()}
        expected = {**version, **{name: described[name] for name in functions}}
        here = {**version_here, **functions_here}
        if here != expected:
            reason = (
                f"a worker has {differences(here, expected)} than the process that called "
                "sweep: give both the same package, the same modules of your own, and the same "
                "files in MNIST_ROOT."
            )
            return None, {"run": described, "version": version_here, "failed": reason}

        recipe = recipe_of(run)
        augment = run.get("augment")
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
        model = new_model(run, len(validation.classes))
        history = fit(
            model,
            train_sets,
            validation,
            recipe,
            **{**functions_of(run), "augment": augment},
            on_epoch=on_epoch,
            progress=False,
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return None, {"run": described, "version": version, "failed": reason}

    record = {
        "run": described,
        "version": version,
        "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16_units(),
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
    file: str, job: bytes, threads: int, version: dict[str, str]
) -> tuple[str, dict[str, torch.Tensor] | None, tuple[str, ...], dict]:
    """Train a run in a worker; return the name of its files, its weights, classes and record.

    Args:
        file: The name of the run's files. Runs end in any order.
        job: The run, its description, and a function to call after each epoch, as cloudpickle
            writes them: a function of a notebook is in no module that a worker could import.
        threads: The number of threads.
        version: The run's version where `sweep` was called.
    """
    end_with_parent()
    try:
        run, described, on_epoch = pickle.loads(job)
    except Exception as error:
        reason = (
            f"a worker cannot read what is your own ({type(error).__name__}: {error}): give the "
            "workers the same modules."
        )
        return file, None, (), {"run": {}, "version": {}, "failed": reason}

    def log(history: History) -> None:
        on_epoch(file, history)  # and not what it returns, which could stop the training

    after_epoch = None if on_epoch is None else log
    model, record = train_run(run, threads, version, described, after_epoch)
    if model is None:
        return file, None, (), record
    # Only tensors are sent back: a model may hold what cannot be pickled.
    return file, model.state_dict(), tuple(model.class_names), record  # type: ignore[arg-type]


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


def read_record(path: Path, run: dict, version: dict[str, str], quiet: bool = False) -> dict | None:
    """Return the record of a run, or None if it is missing or cannot be used.

    Args:
        path: The record, a JSON file.
        run: The run as `describe_run` returns it.
        version: The version that the record must have, as `versions_of` returns it.
        quiet: Whether to say nothing of a record that cannot be used.
    """
    if not path.exists():
        return None

    reason = ""
    try:
        record = read_json(path, {"run": dict, "version": dict})
        if "failed" not in record:
            read_card(path.with_suffix(".pth"))  # raises if the weights are not those of the card
        if record["run"] != run:
            reason = "it belongs to another run"
        elif record["version"] != version:
            reason = f"it was trained with {differences(record['version'], version)}"
    except (OSError, ValueError) as error:
        reason = repr(error)

    if not reason:
        return record
    if not quiet:
        print(f"{path} cannot be used, so the run is trained again: {reason}.", flush=True)
    return None


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
