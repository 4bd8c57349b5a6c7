"""Weights, each with a card (a JSON file that describes them), and training checkpoints."""

import hashlib
import io
import json
import pickle
import platform
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_mlp.data import ImageDataset
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
CHECKPOINT_FORMAT = "training checkpoint of mnist_mlp, 5"


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
            `save_weights` adds the class of the model, its number of parameters, the versions,
            the machine, the date, and the SHA-256 of the .pth file.

    Raises:
        ValueError: The path has another suffix, or the card holds a number that is not finite or
            an entry that `save_weights` adds.
        TypeError: The card holds a value that JSON cannot represent.
        OSError: A file cannot be written. Each of the two then has its old or its new content.

    Example:
        >>> save_weights(model, "models/my_model.pth", dataset="mnist", test_correct=9_934)
    """
    path = Path(path)

    # Without such a suffix, "lr0.1" and "lr0.2" would share the card "lr0.json".
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"weights must be saved in a .pth file, found {path.name!r}.")

    reserved = sorted(card.keys() & {*CARD_SCHEMA, "machine"})
    if reserved:
        raise ValueError(f"the card must not have the entries {reserved}: save_weights adds them.")

    weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    content = state_bytes(weights)
    whole_card = {
        "model": type(model).__name__,
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        **card,
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
        raise OSError(f"{path} was not saved: {error}. Files saved before are intact.") from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights in a .pth file into the model, and return it in evaluation mode.

    Nothing in the file is executed. The tensors are compared with their checksums, and the file
    with the SHA-256 in its card, if it has one.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, does not hold a plain `state_dict` of finite numbers, or
            belongs to another architecture; or its card is damaged or belongs to other weights.
            The model is then unchanged.

    Example:
        >>> model = load_weights(EnhancedNet(), "models/enhanced_model.pth")
    """
    path = Path(path)
    weights = read_tensors(path)
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__}, expected a state_dict.")

    expected_weights = model.state_dict()
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

    if path.with_suffix(".json").exists():
        read_card(path)

    model.load_state_dict(weights)
    return model.eval()


def read_card(path: str | Path) -> dict:
    """Return the card of the weights in a .pth file.

    Raises:
        OSError: The weights or the card cannot be read.
        ValueError: The card is damaged or belongs to other weights.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    card = read_json(card_path, CARD_SCHEMA)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if card["sha256"] != sha256:
        raise ValueError(
            f"{card_path} belongs to other weights: it says that their SHA-256 begins with "
            f"{card['sha256'][:12]!r}, but that of {path.name} begins with {sha256[:12]!r}. "
            "Save both again, or remove the card."
        )
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


def describe_training(
    settings: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    functions: dict[str, Callable | None],
    datasets: Sequence[ImageDataset],
) -> dict:
    """Return what determines the result of a training, in plain values: its identity.

    A function is described by its name and an object by its class, not by what they compute.

    Args:
        settings: The fields of the recipe, and the precision.
        model: The network with its initial weights.
        optimizer: The optimizer of its weights.
        functions: The user's own functions by their names in `fit`; None for those not given.
        datasets: The training and validation sets.

    Raises:
        ValueError: A function is a lambda, whose name does not distinguish it from others.
    """
    tensors = []
    for dataset in datasets:
        tensors.append(dataset.images)
        tensors.append(dataset.labels)
        if dataset.teacher_logits is not None:
            tensors.append(dataset.teacher_logits)

    description = {
        **settings,
        "network": " ".join(repr(model).split()),
        "settings of the network": network_settings(model),
        "initial weights (SHA-256)": sha256_of(model.state_dict().values()),
        "optimizer": [qualified_name(type(optimizer)), optimizer_settings(optimizer)],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "data (SHA-256)": sha256_of(tensors),
    }
    for name, function in functions.items():
        if function is None:
            continue
        description[name] = qualified_name(function)
        if "<lambda>" in description[name]:
            raise ValueError(f"with a checkpoint, {name} must be a named function, not a lambda.")

    # Through JSON, so that only plain values remain, and tuples compare as lists.
    return json.loads(json.dumps(description))


def network_settings(model: nn.Module) -> dict[str, Any]:
    """Return the plain values among the modules' attributes, such as a dropout probability."""
    settings = {}
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            is_public = not name.startswith("_")
            if is_public and name != "training" and isinstance(value, (int, float, str)):
                settings[f"{module_name}.{name}"] = value
    return settings


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Return the plain values of each of the optimizer's groups, such as the learning rate."""
    settings = []
    for group in optimizer.param_groups:
        plain_values = {}
        for name, value in group.items():
            if isinstance(value, (int, float, str, tuple)):
                plain_values[name] = value
        settings.append(plain_values)
    return settings


def qualified_name(function: Callable) -> str:
    """Return the module and name of a function or class; of an object, those of its class."""
    if isinstance(function, partial):
        arguments = [*function.args, *function.keywords.items()]
        return f"{qualified_name(function.func)} with {arguments}"
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


def sha256_of(tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of the bytes of all tensors."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().contiguous().cpu()
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
