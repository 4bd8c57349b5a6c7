"""Recipe: every hyperparameter of a training run, validated. History: the metrics of the run."""

import difflib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Integral, Real
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset
from mnist_mlp.optim import OPTIMIZERS, SCHEDULES
from mnist_mlp.optim.hardware import multiplies_bfloat16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a training run; the defaults are those of the published weights.

    `learning_rate` is the peak of the schedule. `ema_decay`: decay of the exponential moving
    average of the weights, 0 for none. `augment_strength`, `elastic_strength`: of the random warps
    of the training images and of their elastic part. `keep`: the epoch whose weights the model ends
    with, "best" on validation or "last". `precision`: of the training's matrix products, "float32",
    "bfloat16", or "auto" for bfloat16 on processors that have units for it. `device`: where to
    train; None leaves model and data where they are. `seed` sets the order and augmentation of the
    images, not the initial weights.

    Where a field takes a name it also takes your own function, recorded by its qualified name:
    `optimizer=partial(torch.optim.SGD, momentum=0.9)`, called with parameters, lr, weight_decay;
    `schedule=torch.optim.lr_scheduler.CosineAnnealingLR`, called with optimizer and total steps;
    `loss_fn=torch.nn.MultiMarginLoss()`, called with logits and labels;
    `augment=lambda images, generator: images.flip(2)`, called in place of the warps with float32
    images of shape (N, 28, 28) from 0 to 1. Raises TypeError or ValueError for an invalid value.
    """

    epochs: int = 45
    batch_size: int = 512
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    ema_decay: float = 0.998
    augment_strength: float = 1.0
    optimizer: str | Callable = "adamw"
    seed: int = 0
    schedule: str | Callable = "one-cycle"
    loss_fn: str | Callable = "cross-entropy"
    augment: str | Callable = "warp"
    elastic_strength: float = 1.0
    keep: str = "best"
    distillation_temperature: float = 4.0
    precision: str = "auto"
    device: str | None = None

    def __new__(cls, **values):
        """Refuse an unknown field and suggest the nearest one."""
        known = [f.name for f in fields(cls)]
        for name in values.keys() - set(known):
            near = difflib.get_close_matches(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
            raise TypeError(f"Recipe has no field {name!r}: {hint}")
        return super().__new__(cls)

    def __post_init__(self):
        for name, (kind, allowed, words) in RULES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"{name} must be {words}, found {value!r}.")
            if not allowed(value):
                raise ValueError(f"{name} must be {words}, found {value!r}.")

    def asdict(self) -> dict[str, Any]:
        """Return the recipe in plain values for records.

        A function is in it by its qualified name, an automatic precision as the one that is used.
        """
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return values | {"precision": "bfloat16" if self.uses_bfloat16() else "float32"}

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from the published recipe, in plain values."""
        published = Recipe().asdict()
        return {name: value for name, value in self.asdict().items() if value != published[name]}

    def uses_bfloat16(self, device: torch.device | None = None) -> bool:
        """Return whether the training's matrix products are in bfloat16, on a device if given."""
        if self.precision == "auto":
            return multiplies_bfloat16(device or self.device or "cpu")
        return self.precision == "bfloat16"

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the model's parameters."""
        factory = self.optimizer if callable(self.optimizer) else OPTIMIZERS[self.optimizer]
        settings: dict = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer == "muon":
            settings["bfloat16"] = self.uses_bfloat16(next(model.parameters()).device)
        return factory(model.parameters(), **settings)

    def make_schedule(self, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
        """Return the learning-rate schedule of the whole training."""
        factory = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        return factory(optimizer, total_steps)

    def augment_batch(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the augmented batch, float32 of shape (N, 28, 28) from 0 to 1 as `images`."""
        if callable(self.augment):
            images = self.augment(images, generator)
        elif self.augment_strength:
            elastic = self.elastic_strength
            images = random_warp(images, generator, self.augment_strength, elastic=elastic)
        return images

    def loss_for(self, train_set: ImageDataset) -> Callable[..., torch.Tensor]:
        """Return the loss of logits and targets, where teacher logits go before labels."""
        if train_set.teacher_logits is not None:
            return partial(distillation_loss, temperature=self.distillation_temperature)
        if callable(self.loss_fn):
            return self.loss_fn
        return partial(F.cross_entropy, label_smoothing=self.label_smoothing)


@dataclass
class History:
    """Metrics of one training run.

    `epochs`: one dict per epoch, with `loss` and `accuracy` on the augmented training images by the
    weights of the moment, `validation_loss` and `validation_accuracy` of the averaged weights,
    `learning_rate` at the end of the epoch and `seconds`. Losses are means over examples in nats,
    accuracies are from 0 to 1. `best_epoch`: the epoch, counted from 1, whose averaged weights the
    model has; 0 if none was completed. `stopped`: where the training was stopped early, or "".
    """

    recipe: Recipe
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of training, validation included."""
        return sum(record["seconds"] for record in self.epochs)

    @property
    def validation_accuracy(self) -> float:
        """Validation accuracy, from 0 to 1, of the weights that the model has."""
        return self.epochs[self.best_epoch - 1]["validation_accuracy"] if self.best_epoch else 0.0


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return T^2 times the divergence of the softened probabilities from the teacher's, in nats.

    Both logits have the shape (N, classes). Source: Hinton, Vinyals & Dean, "Distilling the
    knowledge in a neural network", 2015.
    """
    student, teacher = (F.log_softmax(z / temperature, dim=1) for z in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _plain(value):
    """Return a number, string or None as it is; a function or object by name and arguments."""
    if callable(value) and hasattr(value, "__qualname__"):
        name, held = f"{value.__module__}.{value.__qualname__}", {}
        if isinstance(value, FunctionType):  # what a closure holds tells it from its likes
            held = dict(inspect.getclosurevars(value).nonlocals)
        elif isinstance(value, MethodType):
            held = getattr(value.__self__, "__dict__", {})
        held = {k: v for k, v in held.items() if k[0] != "_" and isinstance(v, (int, float, str))}
        return f"{name}({', '.join(f'{k}={v!r}' for k, v in held.items())})" if held else name
    if isinstance(value, partial):
        name, args, named = _plain(value.func), value.args, value.keywords
    elif callable(value):
        name, args, named = _plain(type(value)), (), getattr(value, "__dict__", {})
        if isinstance(value, nn.Module):
            named = named | {k: v.tolist() for k, v in value.state_dict().items()}
    else:
        return value.item() if isinstance(value, np.generic) else value
    named = {k: v for k, v in named.items() if not k.startswith("_")}
    given = [*map(_plain, args), *(f"{k}={_plain(v)}" for k, v in named.items())]
    return f"{name}({', '.join(map(str, given))})"


def _choice(names, own: str = "", classes: bool = True) -> tuple:
    def allowed(value) -> bool:
        return classes or not isinstance(value, type) if callable(value) else value in names

    return (str, Callable) if own else str, allowed, " or ".join(map(repr, names)) + own


_WHOLE = Integral, lambda v: v >= 1, "a whole number of at least 1"
_POSITIVE = Real, lambda v: 0 < v < math.inf, "a number above 0"
_NOT_NEGATIVE = Real, lambda v: 0 <= v < math.inf, "a number of at least 0"
_FRACTION = Real, lambda v: 0 <= v < 1, "a number from 0 to below 1"
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
# What each field must be: its types, a test of its value, and both in words.
RULES: dict[str, tuple] = {
    **dict.fromkeys(["epochs", "batch_size"], _WHOLE),
    **dict.fromkeys(["learning_rate", "distillation_temperature"], _POSITIVE),
    **dict.fromkeys(["weight_decay", "augment_strength", "elastic_strength"], _NOT_NEGATIVE),
    **dict.fromkeys(["label_smoothing", "ema_decay"], _FRACTION),
    "seed": (Integral, lambda v: v >= 0, "a whole number of at least 0"),
    "optimizer": _choice(OPTIMIZERS, ", or an optimizer class"),
    "schedule": _choice(SCHEDULES, ", or a scheduler class"),
    "loss_fn": _choice(["cross-entropy"], ", or a function, not a class", classes=False),
    "augment": _choice(["warp"], ", or a function, not a class", classes=False),
    "keep": _choice(["best", "last"]),
    "precision": _choice(["auto", "float32", "bfloat16"]),
    "device": ((str, type(None)), lambda v: _DEVICE.fullmatch(v or "cpu"), "None, 'cpu' or 'cuda'"),
}
