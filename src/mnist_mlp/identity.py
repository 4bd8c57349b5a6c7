"""The identity of a training: everything that determines its result, in plain values.

Two trainings with equal identities give equal weights. So a checkpoint is continued only by a
training of the same identity. What is compared is content, never the name of a file or function.
"""

import argparse
import dis
import hashlib
import importlib
import importlib.util
import json
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cached_property, partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import nn

from mnist_mlp.data import ImageDataset
from mnist_mlp.recipe import Recipe

STANDARD_LIBRARY = sysconfig.get_path("stdlib")

# Objects of these types are described although their classes are installed and have attributes.
DESCRIBED_TYPES = (
    torch.Tensor,
    nn.Module,
    partial,
    Enum,
    Mapping,
    list,
    tuple,
    set,
    SimpleNamespace,
    argparse.Namespace,
)


def describe_training(
    model: nn.Module,
    train_sets: Sequence[ImageDataset],
    validation: ImageDataset,
    recipe: Recipe,
    precision: str,
    functions: Mapping[str, Callable | None],
) -> dict[str, Any]:
    """Return what determines the result of a training, in values that JSON can represent.

    Args:
        model: The network with its initial weights.
        train_sets: The training sets, in the order in which they take turns.
        validation: The validation set.
        recipe: The hyperparameters.
        precision: The precision of the matrix products, "float32" or "bfloat16".
        functions: `fit` itself, under that name, so that edited code is noticed; and the user's own
            functions by their names in `fit`, None for those not given.

    Returns:
        The fields of the recipe, in which a name is replaced by the function that was given for it,
        and the network, its initial weights, the data, and the versions.
    """
    descriptions = {}
    for name, function in functions.items():
        if function is not None:
            descriptions[name] = describe(function)

    major, minor, _ = platform.python_version_tuple()
    return {
        **recipe.asdict(),
        **descriptions,
        "precision": precision,
        "network": describe_network(model),
        "settings of the network": plain_settings(model),
        "initial weights (SHA-256)": sha256_of(_weights(model)),
        "frozen weights": _frozen_weights(model),
        "data (SHA-256)": sha256_of_datasets([*train_sets, validation]),
        "torch": str(torch.__version__),
        "python": f"{major}.{minor}",
        "threads": torch.get_num_threads(),
    }


def describe(value: Any) -> str:
    """Return the name of a function or object, and a digest of its code and its settings.

    The digest covers the bytecode of functions and methods and the values that they use, the
    attributes of objects, the arguments of a `partial`, and the weights of modules. Comments do not
    matter. Installed packages are taken by their name. The digest is the same in every process.

    Example:
        >>> describe(partial(torch.optim.SGD, momentum=0.9))
        'torch.optim.sgd.SGD (5c9a2b0f6d31)'
    """
    return f"{qualified_name(value)} ({_digest(_details(value, {}))})"


def describe_network(model: nn.Module) -> str:
    """Return the layers of a network as text, and a digest of its code, but not of its weights."""
    layers = " ".join(repr(model).split())
    return f"{layers} ({_digest(_layer_details(model, {}))})"


def plain_settings(model: nn.Module) -> dict[str, Any]:
    """Return the plain values among the layers' attributes, such as a dropout probability."""
    settings = {}
    for layer_name, layer in model.named_modules():
        for name, value in vars(layer).items():
            is_public = not name.startswith("_")
            if is_public and name != "training" and isinstance(value, (int, float, str)):
                settings[f"{layer_name}.{name}".lstrip(".")] = value
    return settings


def qualified_name(value: Any) -> str:
    """Return the module and name of a function or class; of an object, those of its class."""
    if isinstance(value, partial):
        return qualified_name(value.func)
    if not hasattr(value, "__qualname__"):
        value = type(value)
    return f"{value.__module__}.{value.__qualname__}"


def sha256_of_datasets(datasets: Iterable[ImageDataset]) -> str:
    """Return the SHA-256 of the images, labels and teacher logits of all data sets."""
    tensors = []
    for dataset in datasets:
        tensors.append(dataset.images)
        tensors.append(dataset.labels)
        if dataset.teacher_logits is not None:
            tensors.append(dataset.teacher_logits)
    return sha256_of(tensors)


def sha256_of(tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of the bytes of all tensors."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().contiguous().cpu()
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _weights(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _frozen_weights(model: nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if not weight.requires_grad]


def _digest(details: Any) -> str:
    return hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest()[:12]


def _details(value: Any, seen: dict[int, Any]) -> Any:
    """Return what a value computes or holds, in values that JSON can represent.

    Args:
        value: Any value.
        seen: The values that are described already, by their ids: values can hold each other, and
            many functions use the same ones. The values are kept so that no id is used again.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in seen:
        return f"value {list(seen).index(id(value))}"
    seen[id(value)] = value

    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), sha256_of([value])]
    if isinstance(value, (np.ndarray, np.generic)):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, (list, tuple)):
        return [_details(item, seen) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _details(item, seen) for key, item in value.items()}

    if isinstance(value, partial):
        return [_details(part, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, MethodType):
        return [_details(part, seen) for part in (value.__func__, value.__self__)]
    if isinstance(value, BuiltinFunctionType):
        return qualified_name(value)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType):
        return _function_details(value, seen)
    if isinstance(value, type):
        return _class_details(value, seen)

    if isinstance(value, nn.Module):
        return [_layer_details(value, seen), sha256_of(_weights(value))]

    class_details = _class_details(type(value), seen)
    if isinstance(value, torch.Generator):
        return [class_details, sha256_of([value.get_state()])]
    if hasattr(value, "__dict__"):
        return [class_details, _details(vars(value), seen)]

    shows_address = " at 0x" in repr(value)
    return [class_details, "" if shows_address else repr(value)]


def _function_details(function: FunctionType, seen: dict[int, Any]) -> Any:
    """Return the bytecode of a function, and the values that it uses."""
    name = qualified_name(function)

    # torch wraps some methods in a function of its own, `Optimizer.step` even while it is in use.
    while _is_installed(_file_of_function(function)) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if _is_installed(_file_of_function(function)):
        return name

    used_values = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        used_values.append(cell.cell_contents)

    for value in _used_globals(function):
        if _can_be_described(value):
            used_values.append(value)

    return [name, _code_details(function.__code__), _details(used_values, seen)]


def _used_globals(function: FunctionType) -> list:
    """Return the values of the module that a function uses, also in its inner functions.

    Of another module of the user's own, these are the module and its values.
    """
    # Of `settings.width` the first name is a global one, and the second an attribute. A function
    # may also import a module itself: `from settings import width`.
    global_names = []
    module_names = []
    attribute_names = []
    for code in _with_inner_functions(function.__code__):
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL":
                global_names.append(instruction.argval)
            elif instruction.opname == "IMPORT_NAME":
                module_names.append(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
                attribute_names.append(instruction.argval)

    values = [function.__globals__.get(name) for name in dict.fromkeys(global_names)]
    for name in dict.fromkeys(module_names):
        values.append(_own_module(name, function.__globals__.get("__package__")))

    used_values = []
    for value in values:
        used_values.append(value)
        path = getattr(value, "__file__", None)
        if isinstance(value, ModuleType) and path is not None and not _is_installed(path):
            used_values += [vars(value).get(name) for name in dict.fromkeys(attribute_names)]
    return used_values


def _own_module(name: str, package: str | None) -> ModuleType | None:
    """Return the module of the user's own that a function imports, or None if it is no such one.

    An installed module is taken by its name, so it is not imported for this.
    """
    names = [name]
    if package:  # the import may be relative: the bytecode does not say
        names.insert(0, f"{package}.{name}")

    for full_name in names:
        try:
            spec = importlib.util.find_spec(full_name)
            if spec is None:
                continue
            if not spec.has_location or _is_installed(spec.origin or ""):
                return None
            return importlib.import_module(full_name)
        except (ImportError, ValueError):  # ValueError: a script has no specification
            continue
    return None


def _with_inner_functions(code: CodeType) -> list[CodeType]:
    """Return the code of a function, and that of the functions and lambdas inside it."""
    codes = [code]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            codes += _with_inner_functions(constant)
    return codes


def _can_be_described(value: Any) -> bool:
    """Return whether a value of a module or class is a setting, a function or the user's own.

    Other objects of installed packages, such as a logger, often hold half of the program.
    """
    if isinstance(value, DESCRIBED_TYPES):
        return True
    has_attributes = hasattr(value, "__dict__") and not hasattr(value, "__qualname__")
    is_module = isinstance(value, ModuleType)
    return is_module or not has_attributes or not _is_installed(_file_of(type(value)))


def _code_details(code: CodeType) -> list:
    """Return the instructions, argument names, other names and constants of a piece of bytecode."""
    constants: list = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_code_details(constant))
        elif isinstance(constant, frozenset):
            constants.append(sorted(repr(item) for item in constant))
        else:
            constants.append(repr(constant))

    # A caller may pass arguments by their names.
    n_arguments = code.co_argcount + code.co_kwonlyargcount
    arguments = list(code.co_varnames[:n_arguments])
    return [code.co_code.hex(), arguments, list(code.co_names), constants]


def _class_details(cls: type, seen: dict[int, Any]) -> list:
    """Return the name of a class, and its methods and values, also those that it inherits."""
    details: list = [qualified_name(cls)]
    for base in cls.__mro__:
        if _is_installed(_file_of(base)):
            continue
        # Sorted, because a class that was sent to another process has them in another order.
        for name, attribute in sorted(vars(base).items()):
            if isinstance(attribute, (staticmethod, classmethod)):
                attribute = attribute.__func__
            if isinstance(attribute, property):
                attribute = attribute.fget
            if isinstance(attribute, cached_property):
                attribute = attribute.func

            is_own_value = _can_be_described(attribute) and not name.startswith("__")
            if is_own_value or isinstance(attribute, FunctionType):
                details.append([name, _details(attribute, seen)])
    return details


def _layer_details(network: nn.Module, seen: dict[int, Any]) -> dict[str, Any]:
    """Return the class and the settings of each layer, such as a dropout probability."""
    details = {}
    for layer_name, layer in network.named_modules():
        settings = {}
        for name, value in vars(layer).items():
            is_private = name.startswith("_")
            if not is_private and name not in ("training", "class_names"):
                settings[name] = _details(value, seen)
        details[layer_name] = [_class_details(type(layer), seen), settings]
    return details


def _file_of(cls: type) -> str:
    """Return the file that defines a class, or "" if it is a script or a notebook."""
    if cls.__module__ == "__main__":  # in a worker, another `__main__` has this name
        return ""
    if cls.__module__ == "builtins":
        return STANDARD_LIBRARY
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or ""


def _file_of_function(function: FunctionType) -> str:
    """Return the file that defines a function; of a wrapper, the file of the wrapper."""
    # cloudpickle keeps this entry, but not the file name in the code.
    return function.__globals__.get("__file__") or function.__code__.co_filename


def _is_installed(path: str) -> bool:
    """Return whether a source file belongs to Python or to an installed package."""
    is_package = "site-packages" in path or "dist-packages" in path
    return is_package or path.startswith((STANDARD_LIBRARY, "<frozen"))
