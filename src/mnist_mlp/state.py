"""What a training changes: weights, optimizer, schedule, average, metrics."""

import copy
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mnist_mlp.data import ImageDataset, epoch_generator, loader
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History, Recipe

LIKELY_CAUSE = "The likely cause is the learning rate ({:.3g} by then): try a tenth."


@dataclass
class EpochTotals:
    """Sums over the examples of the current epoch."""

    steps: int = 0
    examples: int = 0
    correct: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class TrainState:
    """Everything that training changes, saved and restored as one `state_dict`."""

    def __init__(self, model: nn.Module, recipe: Recipe, train_sets: Sequence[ImageDataset]):
        sizes = [len(train_sets[epoch % len(train_sets)]) for epoch in range(recipe.epochs)]
        total_steps = sum(math.ceil(size / recipe.batch_size) for size in sizes)
        self.model, self.recipe, self.history = model, recipe, History(recipe)
        self.optimizer = recipe.make_optimizer(model)
        self.scheduler = recipe.make_schedule(self.optimizer, total_steps)
        update = partial(_ema_update, decay=recipe.ema_decay)
        self.ema = AveragedModel(model, multi_avg_fn=update) if recipe.ema_decay else None
        self.eval_model = self.ema.module if self.ema else model
        self.best_weights = self.eval_model.state_dict()  # a reference: moves in epoch 1
        self.totals, self.started, self.generator = EpochTotals(), 0.0, torch.Generator()
        parts = {"model": model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.stateful: dict[str, Any] = parts | ({"ema": self.ema} if self.ema else {})

    def state_dict(self) -> dict:
        """Return everything that a later process needs to continue bit for bit."""
        if self.totals.steps:
            self.totals.seconds = time.perf_counter() - self.started
        return {name: part.state_dict() for name, part in self.stateful.items()} | {
            "epochs": self.history.epochs,
            "best_epoch": self.history.best_epoch,
            "best_weights": self.best_weights if self.history.best_epoch else None,
            "totals": asdict(self.totals),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`."""
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.history.epochs, self.history.best_epoch = state["epochs"], state["best_epoch"]
        self.best_weights = state["best_weights"] or self.eval_model.state_dict()
        self.totals = EpochTotals(**state["totals"])
        self.generator.set_state(state["generator"])

    def batches(self, train_set: ImageDataset) -> Iterator[tuple[torch.Tensor, ...]]:
        """Return the batches of the current epoch, augmented, but those trained on already."""
        recipe, steps, resumed = self.recipe, self.totals.steps, self.generator
        self.generator = epoch_generator(recipe.seed, len(self.history.epochs) + 1)
        more = self.generator, recipe.augment_batch, steps
        batches = loader(train_set, recipe.batch_size, *more)
        if steps:
            self.generator.set_state(resumed.get_state())
        return batches

    def check_loss(self, mean_loss: float) -> None:
        """Raise FloatingPointError, before the weights are changed, if the loss is not finite."""
        if not math.isfinite(mean_loss):
            step, epoch = self.totals.steps + 1, len(self.history.epochs) + 1
            cause = LIKELY_CAUSE.format(self.optimizer.param_groups[0]["lr"])
            found = f"the loss became {mean_loss} at step {step} of epoch {epoch}"
            raise FloatingPointError(f"{found}. {cause}")

    def count(self, logits: torch.Tensor, labels: torch.Tensor, mean_loss: float) -> None:
        """Add a step to the totals of the epoch."""
        self.totals.steps += 1
        self.totals.examples += len(labels)
        self.totals.correct += int((logits.argmax(1) == labels).sum())
        self.totals.loss += mean_loss * len(labels)

    def end_epoch(self, validation: Evaluation) -> None:
        """Add the epoch to the history, and keep its weights as the recipe says."""
        totals, learning_rate = self.totals, float(self.scheduler.get_last_lr()[0])
        self._check_progress(validation, LIKELY_CAUSE.format(learning_rate))
        record = {"loss": totals.loss / totals.examples}
        record |= {"accuracy": totals.correct / totals.examples, "learning_rate": learning_rate}
        record |= {"validation_loss": validation.loss, "validation_accuracy": validation.accuracy}
        self.history.epochs.append(record | {"seconds": time.perf_counter() - self.started})
        better = validation.accuracy >= self.history.validation_accuracy
        if better or self.recipe.keep == "last":
            self.best_weights = copy.deepcopy(self.eval_model.state_dict())
            self.history.best_epoch = len(self.history.epochs)
        self.totals = EpochTotals()

    def _check_progress(self, validation: Evaluation, cause: str) -> None:
        """Raise FloatingPointError if the weights are useless, or warn if nothing is learned."""
        epoch, epochs = len(self.history.epochs) + 1, self.recipe.epochs
        where, steps = f"after step {self.totals.steps} of epoch {epoch}", epoch * self.totals.steps
        if not math.isfinite(validation.loss):
            found = f"the validation loss is {validation.loss} {where}"
            raise FloatingPointError(f"{found}: the weights are useless. {cause}")
        predicted, late = validation.predicted.unique(), (math.ceil(epochs / 2), epochs)
        if epoch in late and len(predicted) == 1 and len(validation.labels.unique()) > 1:
            if steps < 100:  # too few for any recipe
                cause = f"The likely cause is too few steps ({steps}): try more epochs."
            images, only = f"{len(validation.labels):,} images", validation.classes[predicted[0]]
            found = f"{where} the model predicts {only!r} for all {images} of the validation set"
            warnings.warn(f"{found}. {cause}", stacklevel=4)


def _ema_update(averages, weights, n_averaged, *, decay: float) -> None:
    """Update the averages, faster at first so that the initial weights are soon forgotten."""
    decay = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
    torch._foreach_lerp_(averages, weights, 1 - decay)
