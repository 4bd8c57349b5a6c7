"""The training loop."""

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnist_mlp.data import ImageDataset, check_datasets, epoch_generator, loader
from mnist_mlp.evaluation import Evaluation, check_model, evaluate
from mnist_mlp.optim.hardware import float32_products, keep_freed_memory
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.storage.checkpoint import TrainingCheckpoint, deferred_signals, fingerprint

CHECKPOINT_EVERY = 1000  # steps between checkpoints within an epoch
POSTFIX = "loss={loss:.3f}, validation={validation_accuracy:.2%}"  # of the progress bar
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


def train_steps(state: TrainState, train_set: ImageDataset, epoch: int) -> Iterator[None]:
    """Train for one epoch; yield after each step, so that `fit` can save or stop there."""
    model, recipe, totals = state.model, state.recipe, state.totals
    loss_fn = recipe.loss_for(train_set)
    resumed, generator = state.generator, epoch_generator(recipe.seed, epoch)
    batches = loader(train_set, recipe.batch_size, generator, recipe.augment_batch, totals.steps)
    if totals.steps:
        generator.set_state(resumed.get_state())
    state.generator = generator
    device = train_set.images.device
    autocast = torch.autocast(device.type, torch.bfloat16, recipe.uses_bfloat16(device))
    model.train()
    for images, labels, *teacher_logits in batches:
        with autocast:
            logits = model(images)
        loss = loss_fn(logits.float(), *(teacher_logits or [labels]))
        mean_loss = loss.item()
        if not math.isfinite(mean_loss):
            found = f"the loss became {mean_loss} at step {totals.steps + 1} of epoch {epoch}"
            cause = LIKELY_CAUSE.format(state.optimizer.param_groups[0]["lr"])
            raise FloatingPointError(f"{found}. {cause}")
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.scheduler.step()
        if state.ema:
            state.ema.update_parameters(model)
        totals.steps += 1
        totals.examples += len(labels)
        totals.correct += int((logits.argmax(1) == labels).sum())
        totals.loss += mean_loss * len(labels)
        yield


def fit(
    model: nn.Module,
    train: ImageDataset | Sequence[ImageDataset],
    validation: ImageDataset,
    recipe: Recipe = Recipe(),
    *,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], object] | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place and return the history; the model ends with its best weights.

    The best weights are those of the epoch with the highest validation accuracy, the later of
    equals, or with `Recipe(keep="last")` those of the last epoch. `train`: one data set, or several
    that take turns, one per epoch; sets with teacher logits are trained by distillation. Same
    initial weights, recipe, machine and threads: same bits. Ctrl-C and SIGTERM end the call after
    the current step; `history.stopped` says where.

    `checkpoint`: a file that is saved after every epoch and every `CHECKPOINT_EVERY` steps. A call
    with the same arguments, threads and torch continues from it, bit-identical to one whole run.
    `on_epoch(history)` is called after each epoch and stops the training by returning True.

    Raises TypeError or ValueError before anything is trained, for arguments that do not fit
    together or a checkpoint of another training, and FloatingPointError if the loss diverges.
    Warns if the model predicts one class for all validation images.
    Sources: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019; Smith & Topin,
    "Super-convergence", 2018; Polyak & Juditsky, "Stochastic approximation by averaging", 1992.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe(...), found {recipe!r}.")
    train_sets = check_datasets(train, validation, recipe.batch_size)
    if recipe.device:
        model.to(recipe.device)
        *train_sets, validation = (part.to(recipe.device) for part in (*train_sets, validation))
    check_model(model, validation)
    keep_freed_memory()
    state = TrainState(model, recipe, train_sets)
    history, epochs = state.history, recipe.epochs
    identity = partial(fingerprint, recipe.asdict(), model, [*train_sets, validation])
    saved = TrainingCheckpoint(checkpoint, state, identity)
    with float32_products(), saved.locked(), deferred_signals() as signals:
        saved.restore()
        if len(history.epochs) == epochs and progress:
            print(f"{checkpoint} is already complete: nothing was trained.")
        options = {"desc": "Training", "unit": "epoch", "disable": not progress}
        bar = tqdm(total=epochs, initial=len(history.epochs), file=sys.stdout, **options)
        try:
            for epoch in range(len(history.epochs) + 1, epochs + 1):
                state.started = time.perf_counter() - state.totals.seconds
                for _ in train_steps(state, train_sets[(epoch - 1) % len(train_sets)], epoch):
                    if signals or state.totals.steps % CHECKPOINT_EVERY == 0:
                        saved.save()
                    if signals:
                        raise KeyboardInterrupt
                state.end_epoch(evaluate(state.eval_model, validation))
                saved.save()
                bar.set_postfix_str(POSTFIX.format(**history.epochs[-1]), refresh=False)
                bar.update()
                stop = on_epoch is not None and on_epoch(history) is True
                if (signals or stop) and epoch < epochs:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if (epoch := len(history.epochs) + 1) <= epochs:
                history.stopped = f"after step {state.totals.steps} of epoch {epoch} of {epochs}"
        finally:
            bar.close()
            model.load_state_dict(state.best_weights)
            model.eval()
    if history.stopped and progress:
        of = f"epoch {history.best_epoch}" if history.best_epoch else "that step"
        print(f"Stopped {history.stopped}; the weights are those of {of}.")
    return history
