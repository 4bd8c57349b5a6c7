"""Weights and their cards: saved atomically, loaded without running anybody's code."""

import hashlib
import io
import json
import pickle
import pickletools
import platform
import re
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_mlp.storage.files import PATIENCE, atomic_write, locked, read_json

# All names in the pickle of a state_dict, each as "module name".
ALLOWED_GLOBALS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|device)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.storage UntypedStorage"
)
CARD_SCHEMA = {"model": str, "parameters": int, "versions": dict, "saved": str, "sha256": str}


def to_bytes(state: dict) -> bytes:
    """Return the content of the .pth file of a `state_dict` or of other plain values."""
    buffer = io.BytesIO()  # in memory, because torch does not report a full disk
    torch.save(state, buffer)
    return buffer.getvalue()


def save_weights(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's `state_dict` at `path`, and a .json card about it beside it.

    The .pth file holds only tensors: `model.load_state_dict(torch.load(path, weights_only=True))`
    works anywhere. `card`: plain values (data set, recipe, metrics, ...); the class, its size, the
    SHA-256 of the .pth, the versions and the date are added. Of several processes that save at
    once the last one wins. Raises ValueError for another ending than .pth or .pt, and OSError if a
    file cannot be written; then each of the two has either its old or its new content.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".pt"):  # lr0.1 and lr0.2 would share the card lr0.json
        raise ValueError(f"weights must be saved in a .pth file, found {path.name!r}.")
    weights = to_bytes({name: t.cpu().clone() for name, t in model.state_dict().items()})
    card = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        **card,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    try:
        with (
            locked(path, path.with_suffix(".json")),
            atomic_write(path.with_suffix(".json")) as card_file,
            atomic_write(path) as weights_file,
        ):
            weights_file.write_bytes(weights)
            card_file.write_bytes(json.dumps(card, indent=2, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise OSError(f"{path} was not saved: {error}. Files saved before are intact.") from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights at `path` into the model and return it, in evaluation mode.

    Nothing in the file is executed, and its tensors are checked against their CRCs. Raises OSError
    if it cannot be read, and ValueError if it is damaged, is not a plain `state_dict` of finite
    numbers, or belongs to another architecture; the model is then unchanged.
    """
    path, own = Path(path), model.state_dict()
    state = read_tensors(path, limit=2 * sum(t.nbytes for t in own.values()) + 1_000_000)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        found = type(state).__name__
        raise ValueError(f"{path} holds a {found}, expected a state_dict of named tensors.")
    for name in sorted(own.keys() | state.keys()):
        found, expected = (describe(tensors.get(name)) for tensors in (state, own))
        if found != expected:
            raise ValueError(
                f"{path} is not a {type(model).__name__}: at {name} it holds {found}, "
                f"expected {expected}."
            )
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{path} is useless: at {name} it holds numbers that are not finite.")
    model.load_state_dict(state)
    return model.eval()


def read_card(path: str | Path) -> dict:
    """Return the card of the weights at `path`.

    Raises OSError if one of the two cannot be read, and ValueError if the card is damaged or
    belongs to other weights.
    """
    path = Path(path)
    deadline = time.monotonic() + PATIENCE
    while True:
        card = read_json(path.with_suffix(".json"), CARD_SCHEMA)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if card["sha256"] == sha256:
            return card
        if time.monotonic() > deadline:
            raise ValueError(
                f"{path.with_suffix('.json')} belongs to other weights: its SHA-256 begins "
                f"{card['sha256'][:12]!r}, found {sha256[:12]!r}. Save both again."
            )
        time.sleep(0.02)  # another process may have saved one of the two so far


def read_tensors(path: Path, limit: int | None = None) -> Any:
    """Return the tensors and plain values in a file of `torch.save`, verified, on the CPU.

    Nothing in it is executed. It takes no more memory than the file has bytes, at most `limit`:
    compressed and overlapping records are refused. Raises OSError if it cannot be read, and
    ValueError if it is damaged, too large or holds anything else.
    """
    size = path.stat().st_size
    if limit and size > limit:
        raise ValueError(f"{path} is too large: {size:,} bytes, expected at most {limit:,}.")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(r.compress_type for r in records):
                raise ValueError("it is compressed, and torch.save never compresses")
            if sum(r.file_size for r in records) > size:
                raise ValueError("its records overlap")
            if damaged := archive.testzip():  # torch itself checks no CRC
                raise ValueError(f"{damaged} fails its checksum")
            for record in records:
                if record.filename.endswith("/data.pkl"):
                    _check_globals(archive.read(record))
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run code when loaded, expected only tensors. "
            "Ask its author for torch.save(model.state_dict(), path)."
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # parsers raise all kinds of errors on foreign bytes
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged, truncated or not a PyTorch file: {reason}. Get a fresh copy."
        ) from error


def _check_globals(pickled: bytes) -> None:
    """Raise UnpicklingError if it names anything but tensors, of which torch allows more."""
    for opcode, name, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not ALLOWED_GLOBALS.fullmatch(str(name)):
            raise pickle.UnpicklingError(f"it names {name}")


def describe(tensor: torch.Tensor | None) -> str:
    """Return a tensor's dtype and shape in words."""
    return "nothing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
