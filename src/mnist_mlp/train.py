"""The training loop: `fit` trains a model, `train_epoch` takes the steps of one epoch."""

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnist_mlp.augment import random_warp
from mnist_mlp.checkpoint import load_checkpoint, save_checkpoint
from mnist_mlp.checks import (
    check_augmentation,
    check_custom_functions,
    check_loss,
    check_trainable,
    check_training_sets,
    create_optimizer,
    create_scheduler,
    warn_if_constant_prediction,
    warn_if_not_image_by_image,
    warn_if_rate_of_adamw,
    warn_if_shared_images,
    warn_if_stepped_by_epoch,
)
from mnist_mlp.data import Augmentation, Batch, ImageDataset, batches, epoch_generator
from mnist_mlp.evaluation import check_network, check_outputs, check_weights, device_of, evaluate
from mnist_mlp.identity import describe_training
from mnist_mlp.optim import Muon, constant_rate, multiplies_bfloat16, one_cycle
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
    on_step: Callable[[int, float, float], object] | None = None,
    history: History | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place and return the metrics of each epoch.

    The model ends with its best weights: the averaged weights of the epoch with the highest
    validation accuracy (the later one on a tie). With `Recipe(select="last epoch")`, these are the
    averaged weights of the last epoch.

    Training is deterministic: the same initial weights, recipe, machine and thread count give
    bit-identical weights. If your network has dropout, call `torch.manual_seed` before `fit`.

    The model is left in evaluation mode. Ctrl-C raises KeyboardInterrupt, as usual. The model then
    has the best weights so far, or its current weights if no epoch is complete.

    Args:
        model: A network that takes float32 images of shape (N, 784) and returns logits of shape
            (N, classes).
        train: The training set, or a list of training sets that take turns, one per epoch. A set
            with teacher logits is trained by distillation; its labels then only measure accuracy.
        validation: The data set on which the best epoch is chosen.
        recipe: The hyperparameters.
        optimizer: Your own optimizer, such as `torch.optim.SGD` or `partial(torch.optim.SGD,
            momentum=0.9)`. `fit` calls it with the parameters, `lr` and `weight_decay`.
        schedule: Your own schedule, such as `torch.optim.lr_scheduler.CosineAnnealingLR`. `fit`
            calls it with the optimizer and the number of steps, and steps it after every batch.
        loss_fn: Your own loss, such as `torch.nn.MultiMarginLoss()`. `fit` calls it with the logits
            and the labels; it returns the mean over the batch.
        augment: Your own augmentation, in place of the random warps. `fit` calls it with float32
            images of shape (N, 28, 28) from 0 to 1 and a `torch.Generator`.
        checkpoint: A file that `fit` saves after every epoch. The same call continues from it. The
            result is bit-identical to that of an uninterrupted training; with dropout, this holds
            on the CPU only. A checkpoint is refused if the settings, the code, the initial weights
            or the data differ. To continue, create the model with the same `torch.manual_seed`,
            torch version and number of threads.
        on_epoch: A function that `fit` calls with the history after each epoch. If it returns
            True, the training stops. A checkpoint does not record this stop: the same call
            continues the training.
        on_step: A function that `fit` calls after each step with three numbers: the step, counted
            from 0 over the whole training; the loss of the batch, before the step; and the norm of
            all gradients, before clipping. If it returns True, the training stops at once, as
            after Ctrl-C but without an error: the epoch that it is in does not count.
        history: A `History(recipe)` whose contents `fit` replaces, so that you can read it after an
            interrupt.
        progress: Whether to show a progress bar.

    Returns:
        The history: the metrics of each epoch, and the best epoch.

    Raises:
        TypeError, ValueError: The arguments do not fit together, or the checkpoint belongs to
            another training. Nothing is trained.
        FloatingPointError: The loss diverges.

    Warns if something is probably not meant: a learning rate of another optimizer, validation
    images that are training images too, a schedule that is almost at zero after the first epoch,
    logits that depend on the other images of a batch, or the same prediction for all validation
    images, after half of the epochs or after the last one.

    Example:
        >>> splits = load("mnist")
        >>> model = EnhancedNet()
        >>> history = fit(model, splits.train, splits.validation, Recipe(epochs=5))
        >>> history.epochs[-1]["validation_accuracy"]

        To see the size of the gradients in every step:

        >>> norms = []
        >>> watch = lambda step, loss, gradient_norm: norms.append(gradient_norm)
        >>> fit(model, splits.train, splits.validation, Recipe(epochs=5), on_step=watch)

    Sources: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019; Smith & Topin,
    "Super-convergence", 2018; Polyak & Juditsky, "Stochastic approximation by averaging", 1992;
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013
    (clipping).
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe(...), found {recipe!r}.")
    train_sets: list = list(train) if isinstance(train, (list, tuple)) else [train]
    check_training_sets(train_sets, validation, recipe.batch_size, recipe.epochs)
    check_custom_functions(recipe, train_sets, optimizer, schedule, loss_fn, augment)
    check_network(model)
    check_trainable(model, train_sets, recipe.batch_size)
    if on_epoch is not None and not callable(on_epoch):
        raise TypeError(f"on_epoch must be a function of the history, found {on_epoch!r}.")
    if on_step is not None and not callable(on_step):
        raise TypeError(
            f"on_step must be a function of the step, the loss and the norm, found {on_step!r}."
        )
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be a History(recipe), found {history!r}.")
    warn_if_rate_of_adamw(recipe, optimizer)

    if recipe.device is not None:
        model.to(recipe.device)
    device = device_of(model)
    train_sets = [train_set.to(device) for train_set in train_sets]
    validation = validation.to(device)
    precision = resolve_precision(recipe.precision, device)

    # A network or function with random numbers must not draw others because it was checked.
    with torch.random.fork_rng(devices=[]):
        check_outputs(model, validation)
        check_weights(model)
        warn_if_not_image_by_image(model, validation)
        if loss_fn is not None:
            check_loss(loss_fn, model, train_sets[0])
        if augment is not None:
            check_augmentation(augment, train_sets[0])
    if recipe.select == "best epoch":
        warn_if_shared_images(train_sets, validation)

    identity = describe_training(
        model=model,
        train_sets=train_sets,
        validation=validation,
        recipe=recipe,
        precision=precision,
        functions={
            "fit": fit,
            "optimizer": optimizer,
            "schedule": schedule,
            "loss_fn": loss_fn,
            "augment": augment,
        },
    )

    # Several training sets take turns.
    train_set_by_epoch = [train_sets[i % len(train_sets)] for i in range(recipe.epochs)]
    steps_by_epoch = [math.ceil(len(data) / recipe.batch_size) for data in train_set_by_epoch]
    total_steps = sum(steps_by_epoch)

    # Your own functions, or those that the recipe names.
    has_own_schedule = schedule is not None
    if optimizer is None:
        optimizer = default_optimizer(recipe, precision)
    if schedule is None:
        schedule = default_schedule(recipe)
    if loss_fn is None:
        loss_fn = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    if augment is None:
        augment = default_augmentation(recipe)

    model_optimizer = create_optimizer(optimizer, model, recipe)
    scheduler = create_scheduler(schedule, model_optimizer, total_steps)
    first_rate = float(scheduler.get_last_lr()[0])

    # `evaluate` compares these with a data set's; `save_weights` writes them into the card.
    model.class_names = validation.classes  # type: ignore[assignment]

    # A copy of the model whose weights follow the model's weights slowly.
    average = AveragedModel(model, multi_avg_fn=partial(update_average, decay=recipe.ema_decay))
    best_weights = None

    state = None
    if checkpoint is not None:
        checkpoint = Path(checkpoint).expanduser()
        state = load_checkpoint(checkpoint, identity)

    if history is None:
        history = History(recipe)
    history.recipe = recipe
    history.precision = precision
    history.identity = identity
    history.epochs = []
    history.best_epoch = 0
    history.stopped = ""

    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        model_optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
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

            generator = epoch_generator(recipe.seed, epoch)
            train_set = train_set_by_epoch[epoch - 1]
            epoch_batches = batches(train_set, recipe.batch_size, generator, augment)
            loss, accuracy, learning_rate, is_stopped = train_epoch(
                epoch_batches,
                model,
                model_optimizer,
                scheduler,
                average,
                loss_fn,
                recipe,
                precision,
                on_step,
                first_step=sum(steps_by_epoch[: epoch - 1]),
            )
            if is_stopped:
                history.stopped = f"in epoch {epoch} of {recipe.epochs}"
                break
            if has_own_schedule and epoch == 1 and recipe.epochs > 1:
                warn_if_stepped_by_epoch(first_rate, learning_rate)

            try:
                result = evaluate(average.module, validation)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"after epoch {epoch}, {error} The likely cause is the recipe's learning rate, "
                    f"{recipe.learning_rate:.3g}: try a tenth."
                ) from error
            if epoch in (math.ceil(recipe.epochs / 2), recipe.epochs):
                warn_if_constant_prediction(
                    result, epoch, sum(steps_by_epoch[:epoch]), recipe.learning_rate
                )

            best_accuracy_so_far = history.validation_accuracy
            is_best = result.accuracy >= best_accuracy_so_far
            history.epochs.append(
                {
                    "loss": loss,
                    "accuracy": accuracy,
                    "learning_rate": learning_rate,
                    "validation_loss": result.loss,
                    "validation_accuracy": result.accuracy,
                    "seconds": time.perf_counter() - start,
                }
            )
            if is_best or recipe.select == "last epoch":
                best_weights = copy.deepcopy(average.module.state_dict())
                history.best_epoch = epoch

            if checkpoint is not None:
                state = {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": model_optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "torch_rng": torch.get_rng_state(),
                    "best_weights": best_weights,
                    "epochs": history.epochs,
                    "best_epoch": history.best_epoch,
                }
                save_checkpoint(checkpoint, identity, state)

            bar.set_postfix_str(f"loss={loss:.3f}, validation={result.accuracy:.2%}", refresh=False)
            bar.update()

            answer = None if on_epoch is None else on_epoch(history)
            if is_true(answer) and epoch < recipe.epochs:
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
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    recipe: Recipe,
    precision: str,
    on_step: Callable[[int, float, float], object] | None = None,
    first_step: int = 0,
) -> tuple[float, float, float, bool]:
    """Take one step per batch, until the batches end or `on_step` returns True.

    Args:
        epoch_batches: Batches of images, labels, and teacher logits or None.
        model: The network. It is trained in place.
        optimizer: The optimizer of its weights.
        scheduler: The schedule of the learning rate. It is stepped after every batch.
        average: The moving average of the weights. It is updated after every batch.
        loss_fn: The loss of a batch without teacher logits.
        recipe: The hyperparameters; its temperature is for batches with teacher logits.
        precision: "bfloat16" computes the matrix products of the network in bfloat16.
        on_step: Called after each step with its number, the loss, and the norm of the gradients.
        first_step: The number of the first step.

    Returns:
        The mean loss and the accuracy, both over the examples, measured while training, before
        each update; the learning rate of the last step; and whether `on_step` has stopped the
        training.

    Raises:
        FloatingPointError: The loss diverges.
    """
    model.train()
    loss_sum = 0.0
    correct = 0
    seen = 0
    learning_rate = 0.0
    is_stopped = False

    for step, (images, labels, teacher_logits) in enumerate(epoch_batches, start=first_step):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        logits = logits.float()

        if teacher_logits is None:
            loss = loss_fn(logits, labels)
        else:
            loss = distillation_loss(logits, teacher_logits, recipe.distillation_temperature)

        mean_loss = loss.item()
        learning_rate = float(scheduler.get_last_lr()[0])
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss became {mean_loss}. The likely cause is the recipe's learning rate, "
                f"{recipe.learning_rate:.3g} (at this step {learning_rate:.3g}): try a tenth."
            )

        optimizer.zero_grad()
        loss.backward()
        if on_step is not None:
            gradient_norm = norm_of_gradients(model)
        if recipe.clip_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)

        loss_sum += mean_loss * len(labels)
        correct += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)

        if on_step is not None and is_true(on_step(step, mean_loss, gradient_norm)):
            is_stopped = True
            break

    return loss_sum / seen, correct / seen, learning_rate, is_stopped


def norm_of_gradients(model: nn.Module) -> float:
    """Return the Euclidean norm of all gradients of the model, as of one long vector."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def is_true(answer: object) -> bool:
    """Return whether `on_epoch` or `on_step` has answered True.

    Anything else that they return, such as a figure or a number, does not stop the training.
    """
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return how far the model's softened probabilities are from the teacher's.

    This is the Kullback-Leibler divergence, averaged over the batch and multiplied by the squared
    temperature, so that its gradients do not shrink as the temperature grows.

    Args:
        logits: The model's, float32 of shape (N, classes).
        teacher_logits: The teacher's, of the same shape.
        temperature: What both are divided by before the softmax.

    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015.
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
    """Update the exponential moving average of the weights in place.

    The first updates use a smaller decay, so that the average soon forgets the initial weights.
    With a decay of 0, the average equals the weights.
    """
    n_updates = float(n_averaged)
    decay = min(decay, (1 + n_updates) / (10 + n_updates))
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1 - decay)


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """Return the precision of the matrix products on a device: "float32" or "bfloat16".

    A recipe's "auto" is bfloat16 if the device computes it in hardware.
    """
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
    if recipe.schedule == "one-cycle":
        return one_cycle
    return constant_rate


def default_augmentation(recipe: Recipe) -> Augmentation | None:
    """Return the random warps of the recipe, or None if it has none."""
    if recipe.augment_strength == 0:
        return None
    return partial(random_warp, strength=recipe.augment_strength, elastic=recipe.elastic_strength)
