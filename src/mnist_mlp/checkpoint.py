"""Weights on disk: written whole or not at all, read without running anybody's code."""

import hashlib
import io
import json
import os
import pickle
import platform
import tempfile
import zipfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn


@contextmanager
def atomic(path: Path):
    """Yield a temporary path in the same folder; on success it replaces `path` in one step.

    Whatever happens, `path` holds either what it held before or the whole new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's `state_dict` at `path` and what is known about it in a .json card beside it.

    The .pth holds nothing but tensors, so that
    `model.load_state_dict(torch.load(path, weights_only=True))` works anywhere. `card`: plain
    values (data set, recipe, metrics, ...); the class, its size, the digest of the .pth, the
    versions and the date are added. Raises OSError if it cannot be written, and then both files
    are as they were.
    """
    path = Path(path)
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    buffer = io.BytesIO()  # in memory first, for torch does not say that a disk is full
    torch.save(state, buffer)
    weights = buffer.getvalue()
    about = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        **card,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    try:
        with atomic(path.with_suffix(".json")) as card_file, atomic(path) as weights_file:
            weights_file.write_bytes(weights)
            card_file.write_text(json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"{path} was not written, and is as it was before: {error}.") from error


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights at `path` into the model and return it, in evaluation mode.

    Nothing in the file is executed, and every byte is checked against its CRC. Raises
    FileNotFoundError if there is no such file, and ValueError if it is damaged, is not a plain
    `state_dict`, or is that of another architecture; the model is then unchanged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no CRC
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{path} is damaged: {damaged} fails its checksum. Get a fresh copy.")
        state = torch.load(path, weights_only=True, map_location="cpu")
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is cut off or no PyTorch file: {error}. Get a fresh copy."
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run code when loaded, expected only tensors. "
            "Ask its author for torch.save(model.state_dict(), path)."
        ) from error
    _check_fit(model, state, path)
    model.load_state_dict(state)
    return model.eval()


def _check_fit(model: nn.Module, state: object, path: Path) -> None:
    """Raise ValueError unless `state` has just the model's keys and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            f"{path} holds a {type(state).__name__}, expected a state_dict of tensors."
        )
    for name in sorted(shapes.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else "nothing"
        expected = shapes.get(name, "nothing")
        if found != expected:
            raise ValueError(
                f"{path} is not a {type(model).__name__}: at {name} it holds {found}, "
                f"expected {expected}."
            )
