"""The training loop."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from mnist_mlp.data import ImageDataset, check_datasets
from mnist_mlp.evaluation import check_model, evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.optim import backprop
from mnist_mlp.optim.hardware import float32_products, keep_freed_memory
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.state import TrainState
from mnist_mlp.storage.checkpoint import TrainingCheckpoint, deferred_signals, fingerprint

CHECKPOINT_EVERY = 1000  # steps between checkpoints within an epoch
POSTFIX = "loss={loss:.3f}, validation={validation_accuracy:.2%}"  # of the progress bar


def train_steps(state: TrainState, train_set: ImageDataset) -> Iterator[None]:
    """Train for one epoch; yield after each step, so that `fit` can save or stop there.

    `backprop.train_steps` does the same for an EnhancedNet with AdamW and cross-entropy, faster.
    """
    if type(state.model) is EnhancedNet and backprop.applies(state, train_set):
        yield from backprop.train_steps(state, train_set)
        return
    model, loss_fn = state.model, state.recipe.loss_for(train_set)
    device = train_set.images.device
    autocast = torch.autocast(device.type, torch.bfloat16, state.recipe.uses_bfloat16(device))
    model.train()
    for images, labels, *teacher_logits in state.batches(train_set):
        with autocast:
            logits = model(images)
        loss = loss_fn(logits.float(), *(teacher_logits or [labels]))
        mean_loss = loss.item()
        state.check_loss(mean_loss)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.scheduler.step()
        if state.ema:
            state.ema.update_parameters(model)
        state.count(logits, labels, mean_loss)
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
                for _ in train_steps(state, train_sets[(epoch - 1) % len(train_sets)]):
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
