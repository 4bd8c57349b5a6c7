"""Weights, each with a card (a JSON file that describes them), and training checkpoints."""

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

from mnist_mlp.evaluation import check_network, check_weights, class_names_of
from mnist_mlp.files import atomic_write, read_json

# The entries that every card has, with their types.
CARD_SCHEMA = {
    "model": str,
    "parameters": int,
    "versions": dict,
    "saved": str,
    "sha256": str,
}

# Marks a file as a training checkpoint. Raise the number whenever the layout of the file changes.
CHECKPOINT_FORMAT = "training checkpoint of mnist_mlp, 6"


def save_weights(model: nn.Module, path: str | Path, **card) -> None:
    """Save the model's weights in a .pth file, and a card that describes them in a .json file.

    The .pth file holds only tensors: `model.load_state_dict(torch.load(path, weights_only=True))`
    works without this package. The card has the same name with the suffix .json.

    Give each process a path of its own. If two processes save to the same path at once, the card
    may belong to the other weights; `load_weights` then refuses both files.

    Args:
        model: The network.
        path: A file name that ends in .pth or .pt.
        card: What the card says about the weights, in plain values: data set, recipe, metrics, ...
            `save_weights` adds the class of the model, its number of parameters, the names of its
            classes (`model.class_names`, if `fit` or `load_weights` has set them), the versions,
            the machine, the date, and the SHA-256 of the .pth file.

    Raises:
        ValueError: The path has another suffix, the weights are not finite, or the card holds a
            number that is not finite or an entry that `save_weights` adds.
        TypeError: The model is not a network, or the card holds a value that JSON cannot represent.
        OSError: A file cannot be written. Each of the two then has its old or its new content.

    Example:
        >>> save_weights(model, "models/my_model.pth", dataset="mnist", test_correct=9_934)
    """
    check_network(model)
    path = Path(path).expanduser()

    # Without such a suffix, "lr0.1" and "lr0.2" would share the card "lr0.json".
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"weights must be saved in a .pth file, found {path.name!r}.")

    reserved = sorted(card.keys() & {*CARD_SCHEMA, "classes", "machine"})
    if reserved:
        raise ValueError(f"the card must not have the entries {reserved}: save_weights adds them.")

    check_weights(model)
    weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    content = state_bytes(weights)
    whole_card = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        **card,
        "classes": class_names_of(model),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    card_text = json.dumps(whole_card, indent=2, allow_nan=False) + "\n"

    try:
        with atomic_write(path.with_suffix(".json")) as temporary_card:
            temporary_card.write_text(card_text, encoding="utf-8")
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise OSError(
            f"{path} and its card were not saved: {error}. Each has its old or its new content: "
            "make room or choose another folder, and save both again."
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights in a .pth file into the model, and return it in evaluation mode.

    `model.class_names` becomes the names of the classes in the card, or None if there are none.

    Nothing in the file is executed. The tensors are compared with their checksums, and the file
    with the SHA-256 in its card, if it has one.

    Raises:
        TypeError: The model is not a network.
        OSError: The file cannot be read.
        ValueError: The file is damaged, does not hold a plain `state_dict` of finite numbers, or
            belongs to another architecture; or its card is damaged or belongs to other weights.
            The model is then unchanged.

    Warns if the card names another class of network than the model's.

    Example:
        >>> model = load_weights(EnhancedNet(), "models/enhanced_model.pth")
    """
    check_network(model)
    path = Path(path).expanduser()
    weights = read_tensors(path)
    expected_weights = model.state_dict()
    check_is_state_dict(path, weights, expected_weights)

    for name in sorted(expected_weights.keys() | weights.keys(), key=str):
        actual = describe_tensor(weights.get(name))
        expected = describe_tensor(expected_weights.get(name))
        if actual != expected:
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: "
                f"at {name} it holds {actual}, expected {expected}."
            )
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"{path} is useless: at {name} it holds numbers that are not finite.")

    class_names = None
    if path.with_suffix(".json").exists():
        card = read_card(path)
        if card.get("classes") is not None:
            class_names = tuple(card["classes"])
        if card["model"] != type(model).__name__:
            warnings.warn(
                f"the card of {path} says that these are weights of {card['model']}, but the model "
                f"is {type(model).__name__}: the layers fit, but check that forward is the same.",
                stacklevel=2,
            )

    model.load_state_dict(weights)
    model.class_names = class_names  # type: ignore[assignment]
    return model.eval()


def check_is_state_dict(path: Path, content: Any, expected: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if a file holds weights in another form than a plain `state_dict`.

    Args:
        path: The file, for the message.
        content: What the file holds.
        expected: The `state_dict` of the model that is to be loaded.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state_dict.")

    if str(content.get("format")).startswith("training checkpoint"):
        raise ValueError(
            f"{path} is the checkpoint of a training, expected weights: call the same "
            "fit(..., checkpoint=...) again, and then save_weights."
        )

    for entry, value in content.items():
        if isinstance(value, dict) and value.keys() == expected.keys():
            raise ValueError(
                f"{path} holds a state_dict as its entry {entry!r}, expected the state_dict alone: "
                f"torch.save(torch.load(path)[{entry!r}], ...)."
            )

    # DataParallel and torch.compile put a prefix before every name.
    for prefix in ("module.", "_orig_mod."):
        if content.keys() == {prefix + name for name in expected}:
            raise ValueError(
                f"{path} holds a wrapped model, whose names begin with {prefix!r}: save the "
                f"state_dict of model.{prefix.removesuffix('.')}."
            )


def read_card(path: str | Path) -> dict:
    """Return the card of the weights in a .pth file.

    Raises:
        OSError: The weights or the card cannot be read.
        ValueError: The card is damaged or belongs to other weights.
    """
    path = Path(path).expanduser()
    card_path = path.with_suffix(".json")
    card = read_json(card_path, CARD_SCHEMA)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if card["sha256"] != sha256:
        raise ValueError(
            f"{card_path} belongs to other weights: it says that their SHA-256 begins with "
            f"{card['sha256'][:12]!r}, but that of {path.name} begins with {sha256[:12]!r}. "
            "Save both again, or remove the card."
        )

    classes = card.get("classes")
    if classes is not None and not isinstance(classes, list):
        raise ValueError(f"{card_path} is damaged: its classes are {classes!r}, expected a list.")
    return card


def state_bytes(state: dict) -> bytes:
    """Return the bytes that `torch.save` writes for tensors and plain values."""
    buffer = io.BytesIO()  # in memory, because torch does not report a full disk
    torch.save(state, buffer)
    return buffer.getvalue()


def read_tensors(path: Path) -> Any:
    """Return the tensors and plain values in a file that `torch.save` wrote, on the CPU.

    Nothing in the file is executed, and nothing is unpacked that is larger than the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, or holds something else.
    """
    content = path.read_bytes()

    # A file in the old format begins with a pickled number, and a new one with "PK".
    if content.startswith(b"\x80\x02"):
        raise ValueError(
            f"{path} is in the format of torch before 1.6: "
            "torch.save(torch.load(path, weights_only=True), ...) writes it in the present one."
        )

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Compressed or overlapping records could unpack to any size.
            unpacked_size = sum(record.file_size for record in archive.infolist())
            if unpacked_size > len(content):
                raise ValueError("it unpacks to more bytes than it has")

            damaged_record = archive.testzip()  # torch.load does not compare the checksums
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


def describe_tensor(value) -> str:
    """Return the dtype and shape of a tensor in words, or what else the value is."""
    if value is None:
        return "nothing"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}"


def save_checkpoint(path: Path, identity: dict, state: dict) -> None:
    """Save the state of a training. If this fails, warn, and let the training go on.

    Args:
        path: The file. A new checkpoint replaces an old one in one step.
        identity: What distinguishes this training from others, in plain values.
        state: The tensors and plain values that `load_checkpoint` returns.
    """
    content = {"format": CHECKPOINT_FORMAT, "identity": identity, "state": state}
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(state_bytes(content))
    except OSError as error:
        warnings.warn(f"{path} was not saved: {error}. Training goes on.", stacklevel=3)


def load_checkpoint(path: Path, identity: dict) -> dict | None:
    """Return the state that `save_checkpoint` saved, or None if there is no file.

    Raises:
        ValueError: The file is damaged, is not a training checkpoint, or belongs to another
            training. The file stays as it is.
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
    differences = []
    for name in {**identity, **saved_identity}:
        saved = saved_identity.get(name)
        current = identity.get(name)
        if saved != current:
            differences.append(f"{name} was {saved!r}, is {current!r}")
    if differences:
        raise ValueError(
            f"{path} is the checkpoint of another training: {'; '.join(differences)}. {advice}"
        )
    return content["state"]
