"""One run of a sweep: what it is, what it is called, how it is trained."""

import hashlib
import json

import torch

from mnist_mlp import checkpoint, data, distill, model, train

DATA = {"dataset": "mnist", "model": "EnhancedNet", "lessons": ""}
MODELS = {"EnhancedNet": model.EnhancedNet, "ConvNet": model.ConvNet}
RECORD = {
    "run": dict, "version": dict, "threads": int, "validation_accuracy": float, "best_epoch": int,
    "sha256": str, "seconds": float, "epochs": list,
}  # fmt: skip
VERSION = {"record": 1, "torch": str(torch.__version__)}


def complete(run: dict) -> dict:
    """Return the run with every field that it does not name as in the published recipe.

    Raises TypeError or ValueError for an unknown field or an absurd value.
    """
    whole = DATA | train.default_settings(extras=True) | train.default_settings()
    for name in run.keys() - whole.keys():
        raise ValueError(f"unknown field {name!r} in a run, expected one of {', '.join(whole)}.")
    whole |= run
    if whole["model"] not in MODELS:
        expected = " or ".join(map(repr, MODELS))
        raise ValueError(f"model must be {expected}, found {whole['model']!r}.")
    train.check_settings(_settings(whole))
    return whole


def run_name(run: dict) -> str:
    """Return the name of a run's files: its model, a digest of its whole recipe, its seed."""
    run = complete(run)
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return f"{run['model']}-{digest[:12]}-{run['seed']}"


def changes(run: dict) -> dict:
    """Return the fields of a run that are not as in the published recipe."""
    published = complete({})
    return {name: value for name, value in run.items() if published[name] != value}


def train_run(run: dict, threads: int) -> tuple[dict, bytes]:
    """Train a complete run; return its record and the content of its weights' file.

    Where the training fails the record says why, and there are no weights.
    """
    torch.set_num_threads(threads)
    digits = data.load(run["dataset"], download=False)
    torch.manual_seed(run["seed"])
    network = MODELS[run["model"]](len(digits.train.classes))
    learn = distill.load(run["lessons"], digits.train) if run["lessons"] else digits.train
    try:
        history = train.fit(network, learn, digits.validation, **_settings(run), progress=False)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"run": run, "version": VERSION, "failed": reason}, b""
    if history.interrupted:  # half a run is no record
        raise KeyboardInterrupt
    weights = checkpoint.to_bytes(network.state_dict())
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


def _settings(run: dict) -> dict:
    return {name: value for name, value in run.items() if name not in DATA}
