"""The one training loop."""

import copy
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnist_mlp.augment import disturb, warp
from mnist_mlp.data import ImageDataset, epoch_generator, loader
from mnist_mlp.distill import soft_loss
from mnist_mlp.evaluate import evaluate
from mnist_mlp.muon import Muon


@dataclass
class History:
    """What happened in a call of `fit`.

    `settings`: its keyword arguments. `epochs`: one dict an epoch, with `loss` and `accuracy` on
    the training images as they were learned from (warped, and by the weights of the moment),
    `validation_loss` and `validation_accuracy` of the averaged weights, `learning_rate` at the
    epoch's end and `seconds`. Losses are means over examples in nats, accuracies go from 0 to 1.
    `best_epoch`: the epoch, counted from 1, whose averaged weights the model now has; 0 if none
    was completed. `interrupted`: whether an interrupt ended it early.
    """

    settings: dict[str, int | float | str]
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    interrupted: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of training, validation included."""
        return sum(record["seconds"] for record in self.epochs)

    @property
    def validation_accuracy(self) -> float:
        """Validation accuracy, from 0 to 1, of the weights that the model now has."""
        return self.epochs[self.best_epoch - 1]["validation_accuracy"] if self.best_epoch else 0.0


def fit(
    model: nn.Module,
    train: ImageDataset | Sequence[ImageDataset],
    validation: ImageDataset,
    *,
    epochs: int = 45,
    batch_size: int = 512,
    learning_rate: float = 0.005,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    averaging: float = 0.998,
    augment: float = 1.0,
    optimizer: str = "adamw",
    seed: int = 0,
    schedule: str = "one-cycle",
    elastic: float = 1.0,
    temperature: float = 4.0,
    precision: str = "float32",
    noise: float = 0.0,
    progress: bool = True,
) -> History:
    """Train the model in place and return the history; the model ends with its best weights.

    `optimizer`, "adamw" or "muon", has a one-cycle learning rate that peaks at `learning_rate`. An
    exponential moving average of the weights with decay `averaging`, 0 for none, is what is
    validated and kept, that of the epoch with the highest validation accuracy. `augment`: strength
    of the random warps of the training images, 0 for none; `elastic`: of their elastic part;
    `noise`: of the random light and noise of every second one (`augment.disturb`).
    `seed` decides the order of the images and their warps; the model brings its own initial
    weights, and is where the data are. Same seed, machine and thread count: same bits. An interrupt
    ends the training as if it had been planned so.

    `train`: a data set, or several that take turns, an epoch each. If it has a teacher's answers
    (see `distill.lessons`), these are learned in place of the labels, both tempered by
    `temperature`. `schedule`: "one-cycle" or "constant". `precision`: "float32", or "bfloat16" for
    the model's products while it learns, up to twice as fast where the processor has such products.

    Raises TypeError or ValueError for an absurd setting before anything is trained, and
    FloatingPointError if the loss diverges; the model then has its best weights so far.
    Sources: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019; Smith &
    Topin, "Super-convergence", 2018; Polyak & Juditsky, "Acceleration of stochastic approximation
    by averaging", 1992.
    """
    extras, named = default_settings(extras=True), default_settings()
    settings = {k: v for k, v in locals().items() if k in named or extras.get(k, v) != v}
    turns = [train] if isinstance(train, ImageDataset) else train
    check_settings(settings, min(map(len, turns)))
    loss_of = partial(F.cross_entropy, label_smoothing=label_smoothing)
    if turns[0].answers is not None:
        loss_of = partial(soft_loss, temperature=temperature)
    optimizer = OPTIMIZERS[optimizer](model, lr=learning_rate, weight_decay=weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = sum(math.ceil(len(turns[e % len(turns)]) / batch_size) for e in range(epochs))
    schedule = SCHEDULES[schedule](optimizer, peaks, steps)
    average = partial(_move_average, decay=averaging)
    averaged = AveragedModel(model, multi_avg_fn=average) if averaging else None
    kept = averaged.module if averaged else model
    change = partial(_change, augment=augment, elastic=elastic, noise=noise)
    device = validation.images.device.type
    rounded = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    history = History(settings)
    best = kept.state_dict()  # not a copy: until an epoch is completed, it moves along
    bar = tqdm(total=epochs, desc="Training", unit="epoch", file=sys.stdout, disable=not progress)
    try:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            lesson = turns[(epoch - 1) % len(turns)]
            batches = loader(lesson, batch_size, epoch_generator(seed, epoch), change)
            record = _train_epoch(model, batches, optimizer, schedule, averaged, loss_of, rounded)
            judged = evaluate(kept, validation)
            record |= {"validation_loss": judged.loss, "validation_accuracy": judged.accuracy}
            record |= {"seconds": time.perf_counter() - start}
            history.epochs.append(record)
            if judged.accuracy >= history.validation_accuracy:
                best, history.best_epoch = copy.deepcopy(kept.state_dict()), epoch
            progress_now = {"loss": f"{record['loss']:.3f}", "validation": f"{judged.accuracy:.2%}"}
            bar.set_postfix(progress_now, refresh=False)
            bar.update()
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        bar.close()
        model.load_state_dict(best)
        model.eval()
    return history


def _adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


OPTIMIZERS = {"adamw": _adamw, "muon": Muon}
SCHEDULES = {
    "one-cycle": lambda optimizer, peaks, steps: OneCycleLR(optimizer, peaks, total_steps=steps),
    "constant": lambda optimizer, peaks, steps: LambdaLR(optimizer, lambda step: 1.0),
}
PRECISIONS = ("float32", "bfloat16")
# Only recorded where they are not the defaults.
EXTRAS = ("schedule", "elastic", "temperature", "precision", "noise")


def _train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    averaged: AveragedModel | None,
    loss_of: Callable[..., torch.Tensor],
    rounded: torch.autocast,
) -> dict[str, float]:
    """Pass once over the batches and return the mean loss and accuracy over their examples."""
    model.train()
    loss_sum = correct = examples = 0
    for step, (images, labels, *answers) in enumerate(batches, 1):
        with rounded:
            logits = model(images)
        loss = loss_of(logits.float(), *answers or [labels])
        mean_loss = loss.item()
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss became {mean_loss} at step {step} of its epoch. The likely cause is the "
                f"learning rate ({optimizer.param_groups[0]['lr']:.3g} at that step): try a tenth."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if averaged:
            averaged.update_parameters(model)
        loss_sum += mean_loss * len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        examples += len(labels)
    rate = schedule.get_last_lr()[0]
    return {"loss": loss_sum / examples, "accuracy": correct / examples, "learning_rate": rate}


def _move_average(averages, weights, n_averaged, *, decay: float) -> None:
    """Move the averages towards the weights, faster at first so as to forget the initial ones."""
    decay = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
    torch._foreach_lerp_(averages, weights, 1 - decay)


def _change(images, generator, *, augment: float, elastic: float, noise: float) -> torch.Tensor:
    if augment:
        images = warp(images, generator, augment, elastic=elastic)
    return disturb(images, generator, noise) if noise else images


def default_settings(extras: bool = False) -> dict[str, int | float | str]:
    """Return the published recipe: the defaults of `fit`'s keyword arguments but `progress`.

    Or, of these, the `extras`, which the published recipe leaves as they are.
    """
    arguments = inspect.signature(fit).parameters.values()
    settings = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}
    del settings["progress"]
    return {k: v for k, v in settings.items() if (k in EXTRAS) == extras}


def check_settings(settings: dict[str, int | float | str], examples: int) -> None:
    """Raise TypeError or ValueError, in one sentence, for settings that cannot be meant.

    `settings`: as of `default_settings`. `examples`: the number of training images.
    """
    expected = {
        "epochs": (Integral, lambda v: v >= 1, "a whole number of at least 1"),
        "batch_size": (
            Integral,
            lambda v: 1 <= v <= examples,
            f"a whole number from 1 to the {examples:,} training images",
        ),
        "learning_rate": (Real, lambda v: 0 < v < math.inf, "a number above 0"),
        "weight_decay": (Real, lambda v: 0 <= v < math.inf, "a number of at least 0"),
        "label_smoothing": (Real, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
        "averaging": (Real, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
        "augment": (Real, lambda v: 0 <= v < math.inf, "a number of at least 0"),
        "optimizer": (str, OPTIMIZERS.__contains__, " or ".join(map(repr, OPTIMIZERS))),
        "schedule": (str, SCHEDULES.__contains__, " or ".join(map(repr, SCHEDULES))),
        "elastic": (Real, lambda v: 0 <= v < math.inf, "a number of at least 0"),
        "temperature": (Real, lambda v: 0 < v < math.inf, "a number above 0"),
        "precision": (str, PRECISIONS.__contains__, " or ".join(map(repr, PRECISIONS))),
        "noise": (Real, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
        "seed": (Integral, lambda v: v >= 0, "a whole number of at least 0"),
    }
    for name, value in settings.items():
        kind, allowed, words = expected[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} must be {words}, found {value!r}.")
        if not allowed(value):
            raise ValueError(f"{name} must be {words}, found {value!r}.")
