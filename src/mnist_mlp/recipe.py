"""Recipe: every hyperparameter of a training. History: the metrics of the training."""

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("one-cycle", "constant")
SELECTIONS = ("best epoch", "last epoch")
PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a training. The defaults are those of models/enhanced_model.pth.

    All values are plain, so that `Recipe(**recipe.asdict()) == recipe`. Your own optimizer,
    schedule, loss or augmentation is an argument of `fit`. A card or a record that is older than a
    field lacks it; the field then had its default, which changes nothing.

    Raises:
        TypeError: A value has the wrong type, or a field is unknown.
        ValueError: A value is out of range.

    Example:
        >>> recipe = Recipe(epochs=5, augment_strength=0.0)
        >>> other_seed = dataclasses.replace(recipe, seed=1)
    """

    epochs: int = 45
    batch_size: int = 512
    learning_rate: float = 0.005  # the peak of the schedule
    weight_decay: float = 0.01  # decoupled, as in AdamW
    clip_norm: float = 0.0  # larger gradients are scaled down to this norm; 0: no clipping
    label_smoothing: float = 0.0  # how much of the target is spread evenly over the classes
    ema_decay: float = 0.998  # of the exponential moving average of the weights; 0: no average
    augment_strength: float = 1.0  # of the random warps of the training images; 0: no warps
    elastic_strength: float = 1.0  # elastic displacement in pixels, multiplied by augment_strength
    optimizer: str = "adamw"  # or "muon": then set a learning rate ten times as large
    schedule: str = "one-cycle"  # or "constant"
    select: str = "best epoch"  # by validation accuracy; or "last epoch"
    distillation_temperature: float = 4.0  # used only with teacher logits
    precision: str = "auto"  # of the matrix products; "auto": bfloat16 if `multiplies_bfloat16`
    device: str | None = None  # where to train, such as "cuda"; None: where the model is
    seed: int = 0  # of the order and warps of the images, not of the initial weights

    def __post_init__(self):
        _check_whole("epochs", self.epochs, at_least=1)
        _check_whole("batch_size", self.batch_size, at_least=1)
        _check_positive("learning_rate", self.learning_rate)
        _check_not_negative("weight_decay", self.weight_decay)
        _check_not_negative("clip_norm", self.clip_norm)
        _check_below_one("label_smoothing", self.label_smoothing)
        _check_below_one("ema_decay", self.ema_decay)
        _check_not_negative("augment_strength", self.augment_strength)
        _check_not_negative("elastic_strength", self.elastic_strength)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("select", self.select, SELECTIONS)
        _check_positive("distillation_temperature", self.distillation_temperature)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_device(self.device)
        _check_whole("seed", self.seed, at_least=0)

    def asdict(self) -> dict[str, Any]:
        """Return all fields with their values, NumPy numbers converted to Python numbers."""
        fields = dataclasses.asdict(self)
        for name, value in fields.items():
            if isinstance(value, np.generic):
                fields[name] = value.item()
        return fields

    def diff_from_default(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults."""
        default = Recipe().asdict()
        return {name: value for name, value in self.asdict().items() if value != default[name]}


@dataclass
class History:
    """The metrics of one training.

    Attributes:
        recipe: The hyperparameters.
        precision: The precision of the matrix products in the training, "float32" or "bfloat16".
        epochs: The metrics of each epoch, a dict per epoch:
            `loss` and `accuracy` are measured on the augmented training images while training,
            before each update.
            `validation_loss` and `validation_accuracy` are those of the averaged weights.
            `learning_rate` is the rate of the last step of the epoch.
            `seconds` is the duration of the epoch.
            Losses are means over the examples; the validation loss is the cross-entropy in
            nats. Accuracies are from 0 to 1.
        best_epoch: The epoch whose averaged weights the model has: the best, or the last if the
            recipe selects that. The first epoch is 1; 0 means that no epoch is complete.
        stopped: Where the training was stopped early, such as "after epoch 3 of 45"; else "".
        identity: Everything that determines the result of the training, in plain values: the
            recipe, the network and its initial weights, the data, your own functions, and versions.
    """

    recipe: Recipe
    precision: str = ""
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The duration of the training in seconds, including validation."""
        return sum(epoch["seconds"] for epoch in self.epochs)

    @property
    def validation_accuracy(self) -> float:
        """The validation accuracy, from 0 to 1, of the weights that the model has."""
        if self.best_epoch == 0:
            return 0.0
        return self.epochs[self.best_epoch - 1]["validation_accuracy"]


def _check_type(name: str, value, expected_type: type, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, expected_type):
        raise TypeError(f"{name} must be {expected}, found {value!r}.")


def _check_whole(name: str, value, at_least: int) -> None:
    expected = f"a whole number of at least {at_least}"
    _check_type(name, value, Integral, expected)
    if value < at_least:
        raise ValueError(f"{name} must be {expected}, found {value!r}.")


def _check_positive(name: str, value) -> None:
    _check_type(name, value, Real, "a number above 0")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, found {value!r}.")


def _check_not_negative(name: str, value) -> None:
    _check_type(name, value, Real, "a number of at least 0")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, found {value!r}.")


def _check_below_one(name: str, value) -> None:
    _check_type(name, value, Real, "a number from 0 to below 1")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 to below 1, found {value!r}.")


def _check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    expected = " or ".join(repr(choice) for choice in choices)
    if callable(value):
        raise TypeError(
            f"{name} must be {expected}, found {value!r}. Use fit(..., {name}=...) for your own."
        )
    _check_type(name, value, str, expected)
    if value not in choices:
        raise ValueError(f"{name} must be {expected}, found {value!r}.")


def _check_device(value) -> None:
    if value is None:
        return
    expected = "None or a device such as 'cpu', 'cuda' or 'cuda:1'"
    _check_type("device", value, str, expected)
    device_type, colon, index = value.partition(":")
    is_valid_index = index.isdigit() if colon else True
    if device_type not in DEVICES or not is_valid_index:
        raise ValueError(f"device must be {expected}, found {value!r}.")
