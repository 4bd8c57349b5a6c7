"""Weights on disk: written whole or not at all, read without running anybody's code."""

import hashlib
import io
import json
import os
import pickle
import pickletools
import platform
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

# All that the pickle of a state_dict names, each as "module name".
TENSORS = re.compile(
    r"collections OrderedDict|torch (\w+Storage|device)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.storage UntypedStorage"
)

WINDOWS = os.name == "nt"
PATIENCE = 1.0  # seconds that another process may take with a file

CARD = {"model": str, "parameters": int, "versions": dict, "saved": str, "sha256": str}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path` in one step.

    Whatever happens, `path` holds either what it held before or the whole new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what may be written to
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that nobody else may read
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Move a file into another's place in one step.

    Windows refuses while another process reads the target: there it is tried for a while.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def lock(path: Path, timeout: float = -1) -> FileLock:
    """Return a lock beside `path`, which the operating system takes back however a process ends.

    Entering it raises `filelock.Timeout` after `timeout` seconds if that is 0 or more.
    """
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)


def to_bytes(state: dict) -> bytes:
    """Return what the .pth file of a `state_dict`, or of other plain values, holds."""
    buffer = io.BytesIO()  # in memory, for torch does not say that a disk is full
    torch.save(state, buffer)
    return buffer.getvalue()


def save(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's `state_dict` at `path` and what is known about it in a .json card beside it.

    The .pth holds nothing but tensors, so that
    `model.load_state_dict(torch.load(path, weights_only=True))` works anywhere. `card`: plain
    values (data set, recipe, metrics, ...); the class, its size, the digest of the .pth, the
    versions and the date are added. Of several processes that save there at once the last one wins.
    Raises OSError if one cannot be written; each of the two then is whole all the same, what it was
    or what it was to be.
    """
    path = Path(path)
    weights = to_bytes({name: t.cpu().clone() for name, t in model.state_dict().items()})
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path):
            for left in path.parent.glob(f".{path.stem}.*.tmp"):  # by a killed process
                left.unlink()
            with atomic(path.with_suffix(".json")) as card_file, atomic(path) as weights_file:
                weights_file.write_bytes(weights)
                card_file.write_bytes(json.dumps(about, indent=2).encode() + b"\n")
    except OSError as error:
        raise OSError(f"{path} was not saved: {error}. What was there before is whole.") from error


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights at `path` into the model and return it, in evaluation mode.

    Nothing in the file is executed, and its tensors are checked against their CRCs. Raises OSError
    if it cannot be read, and ValueError if it is damaged, is not a plain `state_dict` of finite
    numbers, or is that of another architecture; the model is then unchanged.
    """
    path = Path(path)
    own = model.state_dict()
    state = read(path, limit=2 * sum(t.nbytes for t in own.values()) + 1_000_000)
    model.load_state_dict(_checked(model, state, path))
    return model.eval()


def read_card(path: str | Path) -> dict:
    """Return what the card beside the weights at `path` says about them.

    Raises OSError if one of the two cannot be read, and ValueError if the card is damaged or about
    other weights.
    """
    path = Path(path)
    deadline = time.monotonic() + PATIENCE
    while True:
        card = read_json(path.with_suffix(".json"), CARD)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if card["sha256"] == sha256:
            return card
        if time.monotonic() > deadline:
            raise ValueError(
                f"{path.with_suffix('.json')} is about other weights: those whose SHA-256 begins "
                f"{card['sha256'][:12]!r}, found {sha256[:12]!r}. Save both anew."
            )
        time.sleep(0.02)  # another process may have saved the one and be about to save the other


def read_json(path: Path, expected: dict[str, type]) -> dict:
    """Return the object in a .json file, which has at least the `expected` entries.

    Raises OSError if it cannot be read, and ValueError if it is no such object.
    """
    try:
        found = json.loads(path.read_bytes(), parse_constant=_refuse)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, expected an object")
        for name, kind in expected.items():
            if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
                raise ValueError(f"at {name!r} it holds {found.get(name)!r:.80}, expected {kind}")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or of another kind: {error!r:.300}.") from error


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}, expected finite numbers")


def read(path: Path, limit: int | None = None) -> Any:
    """Return the tensors and plain values in a file of `torch.save`, verified, on the CPU.

    Nothing in it is executed, and it takes no more memory than the file has bytes, `limit` at most:
    neither packed nor overlapping records pass. Raises OSError if it cannot be read, and ValueError
    if it is damaged, too large or holds anything else.
    """
    size = path.stat().st_size
    if limit and size > limit:
        raise ValueError(f"{path} is too large: {size:,} bytes, expected at most {limit:,}.")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(r.compress_type for r in records):
                raise ValueError("it is packed, as torch.save packs nothing")
            if sum(r.file_size for r in records) > size:
                raise ValueError("its records overlap")
            if damaged := archive.testzip():  # torch itself checks no CRC
                raise ValueError(f"{damaged} fails its checksum")
            for record in records:
                if record.filename.endswith("/data.pkl"):
                    _check_names(archive.read(record))
        return torch.load(path, weights_only=True, map_location="cpu")
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


def _check_names(pickled: bytes) -> None:
    """Raise UnpicklingError if it names anything but tensors: torch would allow more.

    That torch itself refuses the other ways to name something, the tests check.
    """
    for opcode, name, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not TENSORS.fullmatch(str(name)):
            raise pickle.UnpicklingError(f"it names {name}")


def _checked(model: nn.Module, state: object, path: Path) -> dict[str, torch.Tensor]:
    """Return `state`; ValueError unless it has just the model's keys, shapes, types, all finite."""
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        found = type(state).__name__
        raise ValueError(f"{path} holds a {found}, expected a state_dict of named tensors.")
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        found, expected = (describe(tensors.get(name)) for tensors in (state, own))
        if found != expected:
            raise ValueError(
                f"{path} is not a {type(model).__name__}: at {name} it holds {found}, "
                f"expected {expected}."
            )
        if not torch.isfinite(state[name]).all():
            raise ValueError(
                f"{path} is of no use: at {name} it holds numbers that are not finite."
            )
    return state


def describe(tensor: torch.Tensor | None) -> str:
    """Return a tensor's dtype and shape in words."""
    return "nothing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
