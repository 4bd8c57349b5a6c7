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


def to_bytes(model: nn.Module) -> bytes:
    """Return what the model's .pth file holds: its `state_dict`, nothing but tensors."""
    buffer = io.BytesIO()
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    torch.save(state, buffer)
    return buffer.getvalue()


def save(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's `state_dict` at `path` and what is known about it in a .json card beside it.

    The .pth holds nothing but tensors, so that
    `model.load_state_dict(torch.load(path, weights_only=True))` works anywhere. `card`: plain
    values (data set, recipe, metrics, ...); the class, its size, the digest of the .pth, the
    versions and the date are added. Raises OSError if one cannot be written; each of the two then
    is whole all the same, what it was or what it was to be.
    """
    path = Path(path)
    weights = to_bytes(model)  # in memory first, for torch does not say that a disk is full
    about = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
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
        raise OSError(f"{path} was not saved: {error}. What was there before is whole.") from error


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights at `path` into the model and return it, in evaluation mode.

    Nothing in the file is executed, and its tensors are checked against their CRCs. Raises OSError
    if it cannot be read, and ValueError if it is damaged, is not a plain `state_dict` of finite
    numbers, or is that of another architecture; the model is then unchanged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no CRC
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{damaged} fails its checksum")
        state = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run code when loaded, expected only tensors. "
            "Ask its author for torch.save(model.state_dict(), path)."
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # parsers raise whatever they like on bytes that are not theirs
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged, cut off or no PyTorch file: {reason}. Get a fresh copy."
        ) from error
    _check_fit(model, state, path)
    model.load_state_dict(state)
    return model.eval()


def _check_fit(model: nn.Module, state: object, path: Path) -> None:
    """Raise ValueError unless `state` has just the model's keys, shapes and types, all finite."""
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        found = type(state).__name__
        raise ValueError(f"{path} holds a {found}, expected a state_dict of named tensors.")
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        found, expected = (_describe(tensors.get(name)) for tensors in (state, own))
        if found != expected:
            raise ValueError(
                f"{path} is not a {type(model).__name__}: at {name} it holds {found}, "
                f"expected {expected}."
            )
        if not torch.isfinite(state[name]).all():
            raise ValueError(
                f"{path} is of no use: at {name} it holds numbers that are not finite."
            )


def _describe(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
