"""Weights with their card, and checkpoints of a training that can be continued."""

import hashlib
import io
import json
import pickle
import platform
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_mlp.files import atomic_write, read_json

CARD_SCHEMA = {"model": str, "parameters": int, "versions": dict, "saved": str, "sha256": str}

# What a training checkpoint holds under "format"; another number is of another version.
CHECKPOINT_FORMAT = "training checkpoint of mnist_mlp, 5"


def save_weights(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's `state_dict` at `path`, and a .json card about it beside it.

    The .pth file holds only tensors: `model.load_state_dict(torch.load(path, weights_only=True))`
    works anywhere. Give each process a path of its own: of two that save at once, one may leave
    the weights and the other the card, and `load_weights` then refuses them.

    Args:
        model: The network.
        path: A file that ends in .pth or .pt.
        card: Plain values: data set, recipe, metrics, ... The class of the model, its size, the
            SHA-256 of the .pth file, the versions and the date are added.

    Raises:
        ValueError: Another ending; a number in the card that is not finite; an entry that is added
            anyway.
        TypeError: A value in the card that JSON cannot hold.
        OSError: A file cannot be written. Each of the two has its old or its new content.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".pt"):  # lr0.1 and lr0.2 would share the card lr0.json
        raise ValueError(f"weights must be saved in a .pth file, found {path.name!r}.")

    own_entries = card.keys() & {"model", "parameters", "versions", "machine", "saved", "sha256"}
    if own_entries:
        raise ValueError(f"the card's {sorted(own_entries)} are written by save_weights itself.")

    weights = to_bytes({name: t.cpu().clone() for name, t in model.state_dict().items()})
    whole_card = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        **card,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    card_text = json.dumps(whole_card, indent=2, allow_nan=False) + "\n"

    try:
        with atomic_write(path.with_suffix(".json")) as card_file, atomic_write(path) as file:
            file.write_bytes(weights)
            card_file.write_text(card_text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"{path} was not saved: {error}. Files saved before are intact.") from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights at `path` into the model and return it, in evaluation mode.

    Nothing in the file is executed. Its tensors are compared with their checksums, and the file
    with the SHA-256 in its card, if there is one.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, is not a plain `state_dict` of finite numbers, or belongs to
            another architecture. The model is then unchanged.
    """
    path = Path(path)
    state = read_tensors(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a state_dict.")

    expected_state = model.state_dict()
    for name in sorted(expected_state.keys() | state.keys(), key=str):
        actual = describe(state.get(name))
        expected = describe(expected_state.get(name))
        if actual != expected:
            raise ValueError(
                f"{path} is not a {type(model).__name__}: "
                f"at {name} it holds {actual}, expected {expected}."
            )
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{path} is useless: at {name} it holds numbers that are not finite.")

    if path.with_suffix(".json").exists():
        read_card(path)

    model.load_state_dict(state)
    return model.eval()


def read_card(path: str | Path) -> dict:
    """Return the card of the weights at `path`.

    Raises:
        OSError: One of the two files cannot be read.
        ValueError: The card is damaged or belongs to other weights.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    card = read_json(card_path, CARD_SCHEMA)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if card["sha256"] != sha256:
        raise ValueError(
            f"{card_path} belongs to other weights: its SHA-256 begins {card['sha256'][:12]!r}, "
            f"that of {path.name} {sha256[:12]!r}. Save both again, or remove the card."
        )
    return card


def to_bytes(state: dict) -> bytes:
    """Return the content of the .pth file of a `state_dict` or of other plain values."""
    buffer = io.BytesIO()  # in memory, because torch does not report a full disk
    torch.save(state, buffer)
    return buffer.getvalue()


def read_tensors(path: Path) -> Any:
    """Return the tensors and plain values in a file of `torch.save`, on the CPU.

    Nothing in the file is executed, and no more is read than the file has bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged or holds anything else.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Compressed or overlapping records could unpack to any size.
            unpacked_size = sum(record.file_size for record in archive.infolist())
            if unpacked_size > len(content):
                raise ValueError("it unpacks to more bytes than it has")

            damaged_record = archive.testzip()  # torch itself compares no checksum
            if damaged_record is not None:
                raise ValueError(f"{damaged_record} fails its checksum")

        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects, which may run code when loaded, expected only tensors. "
            "Ask its author for torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # parsers raise all kinds of errors on foreign bytes
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged, truncated or not a PyTorch file: {reason}. Get a fresh copy."
        ) from error


def describe(value) -> str:
    """Return a tensor's dtype and shape in words."""
    if value is None:
        return "nothing"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}"


def save_checkpoint(path: Path, identity: dict, state: dict) -> None:
    """Save the state of a training; if that fails, warn, so that the training goes on.

    Args:
        path: The file. It is replaced in one step.
        identity: Plain values that tell this training from any other.
        state: Tensors and plain values that `load_checkpoint` will return.
    """
    content = {"format": CHECKPOINT_FORMAT, "identity": identity, "state": state}
    try:
        with atomic_write(path) as file:
            file.write_bytes(to_bytes(content))
    except OSError as error:
        warnings.warn(f"{path} was not saved: {error}. Training goes on.", stacklevel=3)


def load_checkpoint(path: Path, identity: dict) -> dict | None:
    """Return the state that `save_checkpoint` has saved, or None if there is no file.

    Raises:
        ValueError: The file is damaged, is no training checkpoint, or is that of another training.
            It is left as it is.
    """
    if not path.exists():
        return None

    advice = "Give checkpoint= a file of its own, or delete this one to start anew."
    try:
        content = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error} {advice}") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a training checkpoint of this version. {advice}")

    saved_identity = content["identity"]
    differences = [
        f"{name} was {saved_identity.get(name)!r}, is {identity.get(name)!r}"
        for name in {**identity, **saved_identity}
        if saved_identity.get(name) != identity.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} is the checkpoint of another training: {'; '.join(differences)}. {advice}"
        )
    return content["state"]
