"""The training loop."""

import copy
import hashlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnist_mlp.augment import random_warp
from mnist_mlp.checkpoint import load_checkpoint, save_checkpoint
from mnist_mlp.data import (
    Augmentation,
    Batch,
    ImageDataset,
    batches,
    check_dataset,
    epoch_generator,
)
from mnist_mlp.evaluation import Evaluation, check_model, check_network, device_of, evaluate
from mnist_mlp.optim import Muon, constant, multiplies_bfloat16, one_cycle
from mnist_mlp.recipe import History, Recipe


def fit(
    model: nn.Module,
    train: ImageDataset | Sequence[ImageDataset],
    validation: ImageDataset,
    recipe: Recipe = Recipe(),
    *,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    augment: Augmentation | None = None,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[History], object] | None = None,
    history: History | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place and return the history; the model ends with its best weights.

    The best weights are the averaged weights of the epoch with the highest validation accuracy (the
    later one on a tie), or with `Recipe(select="last epoch")` those of the last epoch. Training is
    deterministic: the same initial weights, recipe, machine and thread count give bit-identical
    weights.

    Ctrl-C raises KeyboardInterrupt, as usual. The model then has the best weights so far, or
    those of the moment if no epoch was completed.

    Args:
        model: A network that takes float32 images of shape (N, 784) and returns logits.
        train: One data set, or a list of several that take turns, one per epoch. Data sets with
            teacher logits are trained by distillation.
        validation: The data set on which the best epoch is chosen.
        recipe: The hyperparameters.
        optimizer: Your own, such as `torch.optim.SGD` or `partial(torch.optim.SGD, momentum=0.9)`.
            It is called with the parameters, and with the recipe's `lr` and `weight_decay`.
        schedule: Your own, such as `torch.optim.lr_scheduler.CosineAnnealingLR`. It is called with
            the optimizer and the number of steps, and its result is stepped after every batch.
        loss_fn: Your own, such as `torch.nn.MultiMarginLoss()`. It is called with the logits and
            the labels, and returns the mean over the batch.
        augment: Your own augmentation, in place of the warps. It is called with the images,
            float32 of shape (N, 28, 28) from 0 to 1, and a `torch.Generator`.
        checkpoint: A file that is saved after every epoch. The same call continues from it; the
            result is bit-identical to that of an uninterrupted training (with dropout, on the CPU
            only). It knows the settings, the
            initial weights and the data, not the source: delete it after you have edited code.
        on_epoch: A function that is called with the history after each epoch. The training stops
            if it returns True. A checkpoint does not keep this: the same call goes on training.
        history: A `History(recipe)` to fill anew, so that it can be read after an interrupt.
        progress: Whether to show a progress bar.

    Returns:
        The metrics of each epoch, the best epoch, and where the training was stopped, if it was.

    Raises:
        TypeError, ValueError: Before anything is trained: the arguments do not fit together, or
            the checkpoint is that of another training.
        FloatingPointError: The loss diverges.

    Warns if the model predicts one class for all validation images.

    Sources: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019; Smith & Topin,
    "Super-convergence", 2018; Polyak & Juditsky, "Stochastic approximation by averaging", 1992.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe(...), found {recipe!r}.")
    train_sets = check_datasets(train, validation, recipe.batch_size)
    check_replaced_fields(recipe, optimizer, schedule, loss_fn, augment)
    if loss_fn is not None and any(part.teacher_logits is not None for part in train_sets):
        raise ValueError("train has teacher logits, which loss_fn would ignore: give only one.")

    check_network(model)
    if recipe.device is not None:
        model.to(recipe.device)
    device = device_of(model)
    train_sets = [part.to(device) for part in train_sets]
    validation = validation.to(device)
    check_model(model, validation)

    precision = resolve_precision(recipe.precision, device)
    if history is None:
        history = History(recipe)
    history.recipe = recipe
    history.precision = precision
    history.epochs = []
    history.best_epoch = 0
    history.stopped = ""

    # What trains: yours where you gave one, else what the recipe names.
    make_optimizer = optimizer or default_optimizer(recipe, precision)
    make_scheduler = schedule or default_schedule(recipe)
    batch_loss = partial(
        loss_of_batch,
        loss_fn=loss_fn or partial(F.cross_entropy, label_smoothing=recipe.label_smoothing),
        temperature=recipe.distillation_temperature,
    )
    augmentation = augment or default_augmentation(recipe)

    # Several training sets take turns.
    set_of_epoch = [train_sets[i % len(train_sets)] for i in range(recipe.epochs)]
    steps_of_epoch = [math.ceil(len(part) / recipe.batch_size) for part in set_of_epoch]
    model_optimizer = make_optimizer(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    scheduler = make_scheduler(model_optimizer, sum(steps_of_epoch))
    # A copy of the model; after each step `update_average` moves its weights towards the model's.
    average = AveragedModel(model, multi_avg_fn=partial(update_average, decay=recipe.ema_decay))
    best_weights = None

    components: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimizer": model_optimizer,
        "scheduler": scheduler,
    }
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        identity = describe_training(
            recipe,
            precision,
            model,
            [*train_sets, validation],
            model_optimizer,
            {"schedule": schedule, "loss_fn": loss_fn, "augment": augment},
        )
        state = load_checkpoint(checkpoint, identity)
        if state is not None:
            for name, component in components.items():
                component.load_state_dict(state[name])
            torch.set_rng_state(state["torch_rng"])
            best_weights = state["best_weights"]
            history.epochs = state["epochs"]
            history.best_epoch = state["best_epoch"]
            if len(history.epochs) == recipe.epochs:
                warnings.warn(f"{checkpoint} is complete: nothing was trained.", stacklevel=2)

    bar = tqdm(
        total=recipe.epochs,
        initial=len(history.epochs),
        desc="Training",
        unit="epoch",
        file=sys.stdout,
        disable=not progress,
    )
    try:
        for epoch in range(len(history.epochs) + 1, recipe.epochs + 1):
            start = time.perf_counter()

            train_set = set_of_epoch[epoch - 1]
            generator = epoch_generator(recipe.seed, epoch)
            epoch_batches = batches(train_set, recipe.batch_size, generator, augmentation)
            loss, accuracy = train_epoch(
                epoch_batches, model, model_optimizer, scheduler, average, batch_loss, precision
            )

            result = evaluate(average.module, validation)
            check_validation(result, epoch, recipe, steps=sum(steps_of_epoch[:epoch]))
            history.epochs.append(
                {
                    "loss": loss,
                    "accuracy": accuracy,
                    "learning_rate": float(scheduler.get_last_lr()[0]),
                    "validation_loss": result.loss,
                    "validation_accuracy": result.accuracy,
                    "seconds": time.perf_counter() - start,
                }
            )

            # The history still has the accuracy of the best epoch before this one.
            is_best = result.accuracy >= history.validation_accuracy
            if is_best or recipe.select == "last epoch":
                best_weights = copy.deepcopy(average.module.state_dict())
                history.best_epoch = epoch

            if checkpoint is not None:
                state = {name: part.state_dict() for name, part in components.items()}
                state["torch_rng"] = torch.get_rng_state()
                state["best_weights"] = best_weights
                state["epochs"] = history.epochs
                state["best_epoch"] = history.best_epoch
                save_checkpoint(checkpoint, identity, state)

            bar.set_postfix_str(f"loss={loss:.3f}, validation={result.accuracy:.2%}", refresh=False)
            bar.update()
            answer = None if on_epoch is None else on_epoch(history)
            wants_to_stop = isinstance(answer, (bool, np.bool_)) and bool(answer)
            if wants_to_stop and epoch < recipe.epochs:
                history.stopped = f"after epoch {epoch} of {recipe.epochs}"
                break
    except KeyboardInterrupt:
        if len(history.epochs) < recipe.epochs:
            history.stopped = f"in epoch {len(history.epochs) + 1} of {recipe.epochs}"
        raise
    finally:
        bar.close()
        if best_weights is not None:
            model.load_state_dict(best_weights)
        model.eval()

    return history


def train_epoch(
    epoch_batches: Iterable[Batch],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    average: AveragedModel,
    batch_loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    precision: str,
) -> tuple[float, float]:
    """Take one step per batch; return the mean loss and the accuracy on these batches.

    Both are means over the examples, measured while training, before each update.
    """
    model.train()
    loss_sum = 0.0
    correct = 0
    seen = 0

    for images, labels, teacher_logits in epoch_batches:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        loss = batch_loss(logits.float(), labels, teacher_logits)

        mean_loss = loss.item()
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss became {mean_loss}. The likely cause is the learning rate "
                f"({scheduler.get_last_lr()[0]:.3g} at this step): try a tenth."
            )

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)

        loss_sum += mean_loss * len(labels)
        correct += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)

    return loss_sum / seen, correct / seen


def loss_of_batch(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    temperature: float,
) -> torch.Tensor:
    """Return the mean loss: of the labels, or of the teacher's answers where there are any."""
    if teacher_logits is None:
        return loss_fn(logits, labels)
    return distillation_loss(logits, teacher_logits, temperature)


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return T^2 times the divergence of the softened probabilities from the teacher's, in nats.

    Both logits have the shape (N, classes). Source: Hinton, Vinyals & Dean, "Distilling the
    knowledge in a neural network", 2015.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@torch.no_grad()
def update_average(
    averages: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    n_averaged: torch.Tensor,
    decay: float,
) -> None:
    """Update the moving average of the weights in place.

    The decay is smaller at first, so that the initial weights are soon forgotten. With a decay of
    0 the average is the weights.
    """
    n_updates = float(n_averaged)
    decay = min(decay, (1 + n_updates) / (10 + n_updates))
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1 - decay)


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """Return "float32" or "bfloat16": a recipe's precision, with "auto" resolved for a device."""
    if precision != "auto":
        return precision
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def default_optimizer(recipe: Recipe, precision: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimizer that the recipe names, to be called with parameters and rates."""
    if recipe.optimizer == "muon":
        return partial(Muon, bfloat16=precision == "bfloat16")
    return partial(torch.optim.AdamW, fused=True)


def default_schedule(recipe: Recipe) -> Callable[[torch.optim.Optimizer, int], LRScheduler]:
    """Return the schedule that the recipe names."""
    return one_cycle if recipe.schedule == "one-cycle" else constant


def default_augmentation(recipe: Recipe) -> Augmentation | None:
    """Return the random warps of the recipe, or None if it has none."""
    if recipe.augment_strength == 0:
        return None
    return partial(random_warp, strength=recipe.augment_strength, elastic=recipe.elastic_strength)


def check_datasets(
    train: ImageDataset | Sequence[ImageDataset], validation: ImageDataset, batch_size: int
) -> list[ImageDataset]:
    """Return the training sets as a list; TypeError or ValueError if they cannot be used."""
    train_sets: list = list(train) if isinstance(train, (list, tuple)) else [train]
    if not train_sets:
        raise ValueError("train must be at least one ImageDataset, found an empty list.")

    check_dataset("validation", validation)
    for train_set in train_sets:
        check_dataset("train", train_set)
        if train_set.classes != validation.classes:
            raise ValueError(
                f"train has the classes {' '.join(train_set.classes)}, "
                f"validation {' '.join(validation.classes)}: not the same."
            )

    smallest = min(len(train_set) for train_set in train_sets)
    if smallest < batch_size:
        warnings.warn(
            f"batch_size is {batch_size}, but there are only {smallest} training images: "
            "an epoch is one step.",
            stacklevel=3,
        )
    return train_sets


def check_replaced_fields(recipe: Recipe, optimizer, schedule, loss_fn, augment) -> None:
    """Raise TypeError for an argument that is no function, ValueError for an ignored field.

    A field of the recipe that an argument of `fit` replaces must have its default.
    """
    replaced_fields = {
        "optimizer": (optimizer, ["optimizer"]),
        "schedule": (schedule, ["schedule"]),
        "loss_fn": (loss_fn, ["label_smoothing", "distillation_temperature"]),
        "augment": (augment, ["augment_strength", "elastic_strength"]),
    }
    changed_fields = recipe.diff_from_default()

    for name, (function, fields) in replaced_fields.items():
        if function is None:
            continue
        if not callable(function):
            raise TypeError(f"{name} must be a function, found {function!r}.")
        for field in fields:
            if field in changed_fields:
                raise ValueError(
                    f"{name}={function!r} takes the place of the recipe's {field}, "
                    f"which is {changed_fields[field]!r}: leave one of the two out."
                )

    if isinstance(optimizer, partial):
        for name, field in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            if name in optimizer.keywords:
                raise ValueError(
                    f"optimizer sets {name} to {optimizer.keywords[name]!r}, which the recipe "
                    f"would replace: give it as Recipe({field}=...)."
                )

    for name, function in (("loss_fn", loss_fn), ("augment", augment)):
        if isinstance(function, type):
            raise TypeError(
                f"{name} must be a function or an object that can be called, found the class "
                f"{function.__name__}: did you mean {function.__name__}()?"
            )


def check_validation(result: Evaluation, epoch: int, recipe: Recipe, steps: int) -> None:
    """Raise FloatingPointError if the weights are useless; warn if nothing is learned."""
    cause = f"The likely cause is the learning rate ({recipe.learning_rate:.3g}): try a tenth."
    if not math.isfinite(result.loss):
        raise FloatingPointError(
            f"the validation loss is {result.loss} after epoch {epoch}: "
            f"the weights are useless. {cause}"
        )

    if epoch not in (math.ceil(recipe.epochs / 2), recipe.epochs):
        return
    predicted = result.predicted.unique()
    if len(predicted) > 1 or len(result.labels.unique()) == 1:
        return

    if steps < 100:  # too few for any recipe
        cause = f"The likely cause is too few steps ({steps}): try more epochs."
    warnings.warn(
        f"after epoch {epoch} the model predicts {result.classes[predicted[0]]!r} for all "
        f"{len(result.labels):,} validation images. {cause}",
        stacklevel=3,
    )


def describe_training(
    recipe: Recipe,
    precision: str,
    model: nn.Module,
    datasets: Sequence[ImageDataset],
    optimizer: torch.optim.Optimizer,
    functions: dict[str, Callable | None],
) -> dict:
    """Return what determines the result of a training, in plain values.

    A function is described by its name, an object by its class: not what a function computes.

    Raises:
        ValueError: A function has no name of its own, so that it could be any other.
    """
    settings = {}
    for module_name, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (int, float, str)) and name[0] != "_" and name != "training":
                settings[f"{module_name}.{name}"] = value

    description = {
        **recipe.asdict(),
        "precision": precision,
        "network": " ".join(repr(model).split()),
        "settings of the network": settings,
        "initial weights (SHA-256)": digest(model.state_dict().values()),
        "optimizer": [qualified_name(type(optimizer)), hyperparameters(optimizer)],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }

    for name, function in functions.items():
        if function is not None:
            description[name] = qualified_name(function)
            if "<lambda>" in description[name]:
                raise ValueError(f"with a checkpoint, {name} must be a named function, no lambda.")

    tensors = []
    for dataset in datasets:
        tensors += [dataset.images, dataset.labels]
        if dataset.teacher_logits is not None:
            tensors.append(dataset.teacher_logits)
    description["data (SHA-256)"] = digest(tensors)

    return json.loads(json.dumps(description))  # tuples as lists, as a file has them


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict]:
    """Return the settings of each parameter group that are plain values."""
    return [
        {
            name: value
            for name, value in group.items()
            if isinstance(value, (int, float, str, tuple))
        }
        for group in optimizer.param_groups
    ]


def qualified_name(function: Callable) -> str:
    """Return the name of a function or class with its module, or that of an object's class."""
    if isinstance(function, partial):
        arguments = [*function.args, *function.keywords.items()]
        return f"{qualified_name(function.func)} with {arguments}"
    if not hasattr(function, "__qualname__"):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of the tensors' bytes."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().contiguous().cpu()
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
