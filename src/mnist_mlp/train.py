"""The one training loop."""

import copy
import difflib
import inspect
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from mnist_mlp.augment import disturb, warp
from mnist_mlp.data import ImageDataset, Splits, epoch_generator, loader
from mnist_mlp.distill import soft_loss
from mnist_mlp.evaluate import Evaluation, check_model, evaluate
from mnist_mlp.muon import Muon
from mnist_mlp.resume import Checkpoint, deferred


@dataclass
class History:
    """What happened in a call of `fit`.

    `settings`: its keyword arguments. `epochs`: one dict an epoch, with `loss` and `accuracy` on
    the training images as they were learned from (warped, and by the weights of the moment),
    `validation_loss` and `validation_accuracy` of the averaged weights, `learning_rate` at the
    epoch's end and `seconds`. Losses are means over examples in nats, accuracies go from 0 to 1.
    `best_epoch`: the epoch, counted from 1, whose averaged weights the model now has; 0 if none
    was completed. `stopped`: where an interrupt ended it early, else empty.
    """

    settings: dict[str, int | float | str]
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt ended it early."""
        return bool(self.stopped)

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
    checkpoint: str | Path | None = None,
    progress: bool = True,
    **unknown: object,
) -> History:
    """Train the model in place and return the history; the model ends with its best weights.

    `optimizer`, "adamw" or "muon", has a one-cycle learning rate that peaks at `learning_rate`. An
    exponential moving average of the weights with decay `averaging`, 0 for none, is what is
    validated and kept, that of the epoch with the highest validation accuracy. `augment`: strength
    of the random warps of the training images, 0 for none; `elastic`: of their elastic part;
    `noise`: of the random light and noise of every second one (`augment.disturb`). A training set's
    own `augment` is called after these. A batch larger than the training set is all of it.
    `seed` decides the order of the images and their warps; the model brings its own initial
    weights, and is where the data are. Same seed, machine and thread count: same bits. Ctrl-C or
    SIGTERM ends the training after the step as if it had been planned so.

    `checkpoint`: a file written after every epoch and every `SAVE_STEPS` steps, from which a later
    call with the same arguments goes on, to the same bits as without the interruption; if it was
    completed there, it has nothing left to do.

    `train`: a data set, or several that take turns, an epoch each. Where one has a teacher's
    answers (see `distill.lessons`), these are learned in place of its labels, both tempered by
    `temperature`. `schedule`: "one-cycle" or "constant". `precision`: "float32", or "bfloat16" for
    the model's products while it learns, up to twice as fast where the processor has such products.

    Raises TypeError or ValueError for an absurd setting, a model or data that do not fit, or a
    checkpoint of another training, before anything is trained, and FloatingPointError if the loss
    diverges; the model then has its best weights so far. Warns if all validation images get one
    answer.
    Sources: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019; Smith &
    Topin, "Super-convergence", 2018; Polyak & Juditsky, "Acceleration of stochastic approximation
    by averaging", 1992.
    """
    extras, named = default_settings(extras=True), default_settings()
    settings = {k: v for k, v in locals().items() if k in {**named, **extras}}
    settings = {k: v for k, v in settings.items() if k in named or extras[k] != v}
    for name in unknown:
        raise TypeError(_unknown(name, [*settings, *extras, "checkpoint", "progress"]))
    check_settings(settings)
    turns = _check_fit(model, train, validation)
    if (smallest := min(map(len, turns))) < batch_size:
        warnings.warn(
            f"batch_size is {batch_size}, but there are only {smallest} training images: "
            "an epoch is one step.",
            stacklevel=2,
        )
    batch_counts = [math.ceil(len(turns[e % len(turns)]) / batch_size) for e in range(epochs)]
    learner = _Learner(
        model, sum(batch_counts), optimizer=optimizer, schedule=schedule,
        learning_rate=learning_rate, weight_decay=weight_decay, averaging=averaging,
    )  # fmt: skip
    of_labels = partial(F.cross_entropy, label_smoothing=label_smoothing)
    of_answers = partial(soft_loss, temperature=temperature)
    change = partial(_change, augment=augment, elastic=elastic, noise=noise)
    device = validation.images.device.type
    rounded = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    file = Checkpoint(checkpoint, learner.parts, settings, [*turns, validation])
    history = History(settings)
    with file.locked(), deferred() as signals:
        at = {"epochs": [], "best": None, "best_epoch": 0} | NOTHING | file.restore()
        history.epochs, history.best_epoch = at["epochs"], at["best_epoch"]
        best = at["best"] or learner.kept.state_dict()  # no copy: moves along until an epoch ends
        if len(history.epochs) == epochs and progress:
            print(f"{checkpoint} is already complete: nothing was trained.")
        bar = tqdm(
            total=epochs, initial=len(history.epochs), desc="Training", unit="epoch",
            file=sys.stdout, disable=not progress,
        )  # fmt: skip
        try:
            for epoch in range(len(history.epochs) + 1, epochs + 1):
                start = time.perf_counter() - at["seconds"]
                generator = epoch_generator(seed, epoch)
                lesson = turns[(epoch - 1) % len(turns)]
                batches = loader(lesson, batch_size, generator, change, skip=at["steps"])
                if at["steps"]:
                    generator.set_state(at["drawn"])
                loss_of = of_labels if lesson.answers is None else of_answers
                for _ in learner.steps(batches, loss_of, rounded, at):
                    if signals or at["steps"] % SAVE_STEPS == 0:
                        now = time.perf_counter() - start
                        file.save(at | {"drawn": generator.get_state(), "seconds": now})
                    if signals:
                        raise KeyboardInterrupt
                judged = evaluate(learner.kept, validation)
                rate, now = float(learner.schedule.get_last_lr()[0]), time.perf_counter() - start
                history.epochs.append(_record(at, judged, rate, epochs, now))
                if judged.accuracy >= history.validation_accuracy:
                    best, history.best_epoch = copy.deepcopy(learner.kept.state_dict()), epoch
                at |= {"best": best, "best_epoch": history.best_epoch} | NOTHING
                file.save(at)
                loss, found = history.epochs[-1]["loss"], judged.accuracy
                bar.set_postfix(loss=f"{loss:.3f}", validation=f"{found:.2%}", refresh=False)
                bar.update()
                if signals and epoch < epochs:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            where = f"after step {at['steps']} of epoch {len(history.epochs) + 1} of {epochs}"
            history.stopped = where
        finally:
            bar.close()
            model.load_state_dict(best)
            model.eval()
        if history.stopped and progress:
            print(
                f"Interrupted {where}. The weights are the best so far: epoch {history.best_epoch}."
            )
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
SAVE_STEPS = 1000  # a checkpoint within the epoch
FEW_STEPS = 100  # in which nothing is learned at any rate
NOTHING = {"steps": 0, "examples": 0, "correct": 0, "loss": 0.0, "seconds": 0.0}  # of an epoch


class _Learner:
    """A model and all that a step changes with it: its optimizer, schedule and averaged weights."""

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        optimizer: str,
        schedule: str,
        learning_rate: float,
        weight_decay: float,
        averaging: float,
    ):
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model, lr=learning_rate, weight_decay=weight_decay)
        peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = SCHEDULES[schedule](self.optimizer, peaks, steps)
        average = partial(_move_average, decay=averaging)
        self.averaged = AveragedModel(model, multi_avg_fn=average) if averaging else None
        self.kept = self.averaged.module if self.averaged else model  # what is validated

    @property
    def parts(self) -> dict:
        """What a checkpoint holds of it, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | {"averaged": self.averaged} if self.averaged else parts

    def steps(
        self,
        batches: DataLoader,
        loss_of: Callable[..., torch.Tensor],
        rounded: torch.autocast,
        at: dict,
    ) -> Iterator[None]:
        """Take a step for each batch, add up in `at` what `NOTHING` names, and yield after each."""
        self.model.train()
        for images, labels, *answers in batches:
            with rounded:
                logits = self.model(images)
            loss = loss_of(logits.float(), *answers or [labels])
            mean_loss = loss.item()
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"the loss became {mean_loss} at step {at['steps'] + 1} of epoch "
                    f"{len(at['epochs']) + 1}. The likely cause is the learning rate "
                    f"({self.optimizer.param_groups[0]['lr']:.3g} at that step): try a tenth."
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            if self.averaged:
                self.averaged.update_parameters(self.model)
            at["steps"] += 1
            at["examples"] += len(labels)
            at["correct"] += int((logits.argmax(1) == labels).sum())
            at["loss"] += mean_loss * len(labels)
            yield


def _record(at: dict, judged: Evaluation, rate: float, epochs: int, seconds: float) -> dict:
    """Return an epoch's line in the history. Raises FloatingPointError, or warns, if it is lost."""
    epoch = len(at["epochs"]) + 1
    cause = f"The likely cause is the learning rate ({rate:.3g} by then): try a tenth."
    if not math.isfinite(judged.loss):
        raise FloatingPointError(
            f"the validation loss is {judged.loss} after step {at['steps']} of epoch {epoch}: the "
            f"weights are of no use. {cause}"
        )
    answers = judged.predicted.unique()
    late = epoch in (math.ceil(epochs / 2), epochs)  # at first it may well be so
    if late and len(answers) == 1 and len(judged.labels.unique()) > 1:
        if (steps := epoch * at["steps"]) < FEW_STEPS:
            cause = (
                f"The likely cause is that {steps} steps, {at['steps']} an epoch, are too few: "
                "train for more epochs or with a smaller batch_size."
            )
        only = judged.classes[answers[0]]
        warnings.warn(
            f"after step {at['steps']} of epoch {epoch} all {len(judged.labels):,} validation "
            f"images get the answer {only!r}. {cause}",
            stacklevel=3,
        )
    return {
        "loss": at["loss"] / at["examples"],
        "accuracy": at["correct"] / at["examples"],
        "learning_rate": rate,
        "validation_loss": judged.loss,
        "validation_accuracy": judged.accuracy,
        "seconds": seconds,
    }


def _move_average(averages, weights, n_averaged, *, decay: float) -> None:
    """Move the averages towards the weights, faster at first so as to forget the initial ones."""
    decay = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
    torch._foreach_lerp_(averages, weights, 1 - decay)


def _change(images, generator, *, augment: float, elastic: float, noise: float) -> torch.Tensor:
    if augment:
        images = warp(images, generator, augment, elastic=elastic)
    return disturb(images, generator, noise) if noise else images


def default_settings(extras: bool = False) -> dict[str, int | float | str]:
    """Return the published recipe: the defaults of those arguments of `fit` that change weights.

    Or, of these, the `extras`, which the published recipe leaves as they are.
    """
    arguments = inspect.signature(fit).parameters.values()
    settings = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}
    del settings["progress"], settings["checkpoint"]
    return {k: v for k, v in settings.items() if (k in EXTRAS) == extras}


def _unknown(name: str, known: list[str]) -> str:
    """Return the sentence about a setting that `fit` does not have."""
    near = difflib.get_close_matches(name, known)
    meant = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}."
    return f"fit has no setting {name!r}: {meant}"


def _check_fit(model, train, validation: ImageDataset) -> list[ImageDataset]:
    """Return the training sets. Raises TypeError or ValueError if model and data do not fit."""
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        hint = f"the class {name}: did you mean {name}()?" if isinstance(model, type) else name
        raise TypeError(f"model must be a network, found {hint}")
    turns = list(train) if isinstance(train, (list, tuple)) else [train]
    for name, part in [*(("train", part) for part in turns), ("validation", validation)]:
        if not isinstance(part, ImageDataset):
            found = type(part).__name__
            hint = f" Its part {name!r} is one." if isinstance(part, Splits) else ""
            raise TypeError(f"{name} must be an ImageDataset(images, labels), found {found}.{hint}")
    if not turns:
        raise ValueError("train must be at least one ImageDataset, found an empty list.")
    for part in turns:
        if part.classes != validation.classes:
            found, expected = (" ".join(p.classes) for p in (part, validation))
            raise ValueError(f"train has the classes {found}, validation {expected}: not the same.")
    check_model(model, validation)
    return turns


def check_settings(settings: dict[str, int | float | str]) -> None:
    """Raise TypeError or ValueError, in one sentence, for settings that cannot be meant.

    `settings`: as of `default_settings`.
    """
    expected = {
        "epochs": (Integral, lambda v: v >= 1, "a whole number of at least 1"),
        "batch_size": (Integral, lambda v: v >= 1, "a whole number of at least 1"),
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
