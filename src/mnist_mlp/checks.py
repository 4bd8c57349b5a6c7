"""Checks of the arguments of `fit`, so that a mistake gives one clear error before training."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from mnist_mlp.data import Augmentation, ImageDataset, check_dataset
from mnist_mlp.evaluation import Evaluation, evaluation_mode
from mnist_mlp.recipe import Recipe

# The fields of a recipe that an argument of `fit` replaces.
REPLACED_FIELDS = {
    "optimizer": ["optimizer"],
    "schedule": ["schedule"],
    "loss_fn": ["label_smoothing", "distillation_temperature"],
    "augment": ["augment_strength", "elastic_strength"],
}

# What the schedulers of torch call the number of steps, where it is their second argument.
NUMBER_OF_STEPS = ("T_max", "T_0", "total_iters", "total_steps")

# Noise that is not clamped makes some pixels larger than 1, but seldom as large as normalised ones.
MAX_PIXEL = 2.0

# If all predictions are equal after fewer steps than this, blame the steps, not the learning rate.
FEW_STEPS = 100


def check_training_sets(
    train_sets: Sequence[ImageDataset], validation: ImageDataset, batch_size: int, epochs: int
) -> None:
    """Check that all data sets have the same classes; warn if one is not used or is very small.

    Raises:
        TypeError: One of them is not an ImageDataset.
        ValueError: Their classes differ, or there is no training set.
    """
    if not train_sets:
        raise ValueError("train must be at least one ImageDataset, found an empty list.")

    check_dataset("validation", validation)
    for train_set in train_sets:
        check_dataset("train", train_set)
        if train_set.classes != validation.classes:
            raise ValueError(
                "train and validation must have the same classes in the same order, found "
                f"{' '.join(train_set.classes)} and {' '.join(validation.classes)}."
            )

    if len(train_sets) > epochs:
        warnings.warn(
            f"there are {len(train_sets)} training sets, which take turns, but only {epochs} "
            "epochs: the last sets are not used.",
            stacklevel=3,
        )

    smallest = min(len(train_set) for train_set in train_sets)
    if smallest < batch_size:
        warnings.warn(
            f"batch_size is {batch_size}, but there are only {smallest} training images: "
            "an epoch is one step.",
            stacklevel=3,
        )


def check_custom_functions(
    recipe: Recipe,
    train_sets: Sequence[ImageDataset],
    optimizer: Callable | None,
    schedule: Callable | None,
    loss_fn: Callable | None,
    augment: Callable | None,
) -> None:
    """Check that your own functions can be called, and that none replaces a field that you set.

    Raises:
        TypeError: An argument is not a function.
        ValueError: An argument replaces something that you have set too: a field of the recipe, an
            argument of the optimizer, or teacher logits.
    """
    functions = {
        "optimizer": optimizer,
        "schedule": schedule,
        "loss_fn": loss_fn,
        "augment": augment,
    }
    changed_fields = recipe.diff_from_default()

    for name, function in functions.items():
        if function is None:
            continue
        if not callable(function):
            raise TypeError(
                f"{name} must be a function or a class, which `fit` calls, found the "
                f"{type(function).__name__} {function!r:.200}."
            )
        for field in REPLACED_FIELDS[name]:
            if field in changed_fields:
                raise ValueError(
                    f"{name}={function!r} replaces the recipe's {field}, "
                    f"which is {changed_fields[field]!r}: leave one of the two out."
                )

    for name in ("loss_fn", "augment"):
        function = functions[name]
        if isinstance(function, type):
            raise TypeError(
                f"{name} must be a function or an object that can be called, found the class "
                f"{function.__name__}: did you mean {function.__name__}()?"
            )

    if isinstance(optimizer, partial):
        for argument, field in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            if argument in optimizer.keywords:
                raise ValueError(
                    f"optimizer sets {argument} to {optimizer.keywords[argument]!r}, which the "
                    f"recipe would replace: use Recipe({field}=...)."
                )

    has_teacher = [train_set.teacher_logits is not None for train_set in train_sets]
    if loss_fn is not None and any(has_teacher):
        raise ValueError(
            "train has teacher logits, which loss_fn would ignore: leave one of the two out."
        )
    if any(has_teacher) and augment is None and recipe.augment_strength > 0:
        warnings.warn(
            "train has teacher logits, which belong to its images as they are, but "
            f"augment_strength is {recipe.augment_strength}: set it to 0, so that the student sees "
            "the same images.",
            stacklevel=3,
        )
    if "label_smoothing" in changed_fields and all(has_teacher):
        raise ValueError(
            "train has teacher logits, which take the place of the labels, so label_smoothing "
            "would be ignored: leave one of the two out."
        )
    if "distillation_temperature" in changed_fields and not any(has_teacher):
        raise ValueError(
            "distillation_temperature would be ignored, because train has no teacher logits: leave "
            "it out."
        )
    if "elastic_strength" in changed_fields and recipe.augment_strength == 0:
        raise ValueError(
            "elastic_strength would be ignored, because it is multiplied by augment_strength, "
            "which is 0: leave one of the two out."
        )


def check_trainable(model: nn.Module, train_sets: Sequence[ImageDataset], batch_size: int) -> None:
    """Check that a network can be trained with batches of this size.

    Raises:
        RuntimeError: Gradients are switched off.
        ValueError: Its weights are all frozen or not float32, or its batch norm would get a batch
            of one image.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "gradients are switched off: call fit outside no_grad and inference_mode, or after "
            "torch.set_grad_enabled(True)."
        )
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "the model has no weights that can be trained. If its layers are in a Python list, put "
            "them into an nn.ModuleList; if they are frozen, use model.requires_grad_(True)."
        )

    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            raise ValueError(
                f"the model's weights must be torch.float32, but {name} is {weight.dtype}: use "
                'model.float(), and Recipe(precision="bfloat16") for products in bfloat16.'
            )

    batch_norms = (nn.BatchNorm1d, nn.LazyBatchNorm1d)
    has_batch_norm = any(isinstance(module, batch_norms) for module in model.modules())
    for train_set in train_sets:
        last_batch = (len(train_set) - 1) % batch_size + 1
        if has_batch_norm and last_batch == 1:
            raise ValueError(
                f"{len(train_set):,} images in batches of {batch_size} leave a batch of one, "
                "but batch norm needs two: choose another batch_size."
            )


def warn_if_not_image_by_image(model: nn.Module, dataset: ImageDataset) -> None:
    """Warn if the logits of an image depend on the other images of its batch, or on chance.

    In evaluation mode, only a mistake makes them do so, such as `Softmax(dim=0)`, or `F.dropout`
    without `training=self.training`.
    """
    images, _, _ = dataset.get_batch(torch.tensor([0, len(dataset) - 1]))
    with evaluation_mode(model):
        once = model(images)
        twice = model(torch.cat([images, images]))

    if twice.shape[0] != 4 or not torch.allclose(once, twice[:2], rtol=1e-3, atol=1e-3):
        warnings.warn(
            "in evaluation mode the model's logits for an image depend on the other images of the "
            "batch, or on chance, so its accuracy does, too: look for Softmax(dim=0), and for "
            "F.dropout without training=self.training.",
            stacklevel=3,
        )


def create_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], model: nn.Module, recipe: Recipe
) -> torch.optim.Optimizer:
    """Return the optimizer of the model's weights.

    Raises:
        TypeError: The function returns something else.
        ValueError: The function does not take the arguments of `fit`, the optimizer needs a
            closure, or it does not hold all weights that can be trained.
    """
    parameters = model.parameters()
    try:
        result = optimizer(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer must take (parameters, lr=..., weight_decay=...), found "
            f"{optimizer!r}, which raised: {error}. Write a function that takes these three and "
            "returns your optimizer."
        ) from error

    if not isinstance(result, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, found {result!r}.")
    if isinstance(result, torch.optim.LBFGS):
        raise ValueError("optimizer must not need a closure, as LBFGS does: `fit` gives none.")

    optimized = {id(weight) for group in result.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in optimized:
            raise ValueError(
                f"optimizer must hold all weights of the model that can be trained, but {name} is "
                "missing: give it all parameters that it is called with. To leave some weights as "
                "they are, use requires_grad_(False) on them."
            )
    return result


def create_scheduler(
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler],
    optimizer: torch.optim.Optimizer,
    total_steps: int,
) -> LRScheduler:
    """Return the scheduler of the optimizer's learning rate.

    Raises:
        TypeError: The function returns something else.
        ValueError: The function does not take an optimizer and the number of steps, or the
            scheduler changes another optimizer or ends before the training.
    """
    remedy = (
        "Write a function, for example "
        "lambda optimizer, steps: StepLR(optimizer, step_size=steps // 3)."
    )

    # Most of torch's schedulers take another number as their second argument, such as a period or
    # a factor. They would take the number of steps for it.
    scheduler_class = schedule.func if isinstance(schedule, partial) else schedule
    is_class = isinstance(scheduler_class, type)
    if is_class and scheduler_class.__module__ == "torch.optim.lr_scheduler":
        second_argument = list(signature(schedule).parameters)[1]
        if second_argument not in NUMBER_OF_STEPS:
            raise ValueError(
                "schedule is called with the optimizer and the number of steps of the training, "
                f"but the second argument of {scheduler_class.__name__} is {second_argument}. "
                f"{remedy}"
            )

    try:
        scheduler = schedule(optimizer, total_steps)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"schedule must take (optimizer, number of steps), found {schedule!r}, which raised: "
            f"{error}. {remedy}"
        ) from error

    needs_a_metric = isinstance(scheduler, ReduceLROnPlateau)
    if not isinstance(scheduler, LRScheduler) or needs_a_metric:
        raise TypeError(
            "schedule must return a scheduler of torch whose step() takes no metric, "
            f"found {scheduler!r}."
        )
    if scheduler.optimizer.param_groups[0] is not optimizer.param_groups[0]:
        raise ValueError(
            "schedule must return a scheduler of the optimizer that it is called with, found one "
            "of another optimizer."
        )
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < total_steps:
        raise ValueError(
            f"schedule ends after {scheduler.total_steps} steps, but the training has "
            f"{total_steps}: use the number of steps that the function is called with."
        )
    return scheduler


def check_loss(
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: nn.Module,
    train_set: ImageDataset,
) -> None:
    """Check on two images that a loss is the mean over a batch, and takes logits.

    Raises:
        ValueError: The loss cannot be computed, is not one number, has no gradient, is a sum over
            the batch, takes log-probabilities, or is larger for right predictions.
    """
    images, labels, _ = train_set.get_batch(torch.tensor([0, len(train_set) - 1]))
    with evaluation_mode(model):
        logits = model(images).float()

    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the loss as a number."""
        try:
            loss = loss_fn(logits.requires_grad_(), labels)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"loss_fn must take logits of shape {tuple(logits.shape)} and int64 labels of "
                f"shape {tuple(labels.shape)}. It raised: {error}"
            ) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ValueError(
                "loss_fn must return one number, the mean over the batch, found "
                f'{describe_shape(loss)}. A loss of torch does so with reduction="mean".'
            )
        if not loss.requires_grad:
            raise ValueError(
                "loss_fn must have a gradient, found none: compute it from the logits with "
                "functions of torch, without argmax, detach or no_grad."
            )
        return loss.item()

    # The mean over a batch does not change if each example is there twice. A sum doubles.
    once = loss_of(logits, labels)
    twice = loss_of(torch.cat([logits, logits]), torch.cat([labels, labels]))
    if once != 0 and math.isclose(twice, 2 * once, rel_tol=1e-3):
        raise ValueError(
            "loss_fn must return the mean over the batch, found the sum. A loss of torch returns "
            'the mean with reduction="mean".'
        )

    # The negative log-likelihood of logits falls without bound as they grow.
    is_log_probability = logits.exp().sum(dim=1).sub(1).abs().max() < 1e-3
    perfect = F.one_hot(labels, logits.shape[1]).float()
    small_logits = loss_of(100 * perfect, labels)
    large_logits = loss_of(1000 * perfect, labels)
    falls_without_bound = small_logits < 0 and large_logits < 5 * small_logits
    if falls_without_bound and not is_log_probability:
        raise ValueError(
            "loss_fn falls without bound as the logits grow, because it takes log-probabilities, "
            "as NLLLoss does. Use CrossEntropyLoss, or end the model with log_softmax."
        )

    right = loss_of(10 * perfect, labels)
    wrong = loss_of(10 * perfect.roll(1, dims=1), labels)
    if right > wrong:
        raise ValueError(
            f"loss_fn must be smaller for right predictions, found {right:.3g} for right and "
            f"{wrong:.3g} for wrong ones: it has the wrong sign."
        )


def describe_shape(value: object) -> str:
    """Return what a value is, with its shape if it is a tensor."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def check_augmentation(augment: Augmentation, train_set: ImageDataset) -> None:
    """Check on two images that an augmentation returns images of the same shape from 0 to 1.

    Raises:
        ValueError: It cannot be called with images and a generator, or returns something else.
    """
    images = train_set.images[:2].float() / 255
    try:
        changed = augment(images.clone(), torch.Generator().manual_seed(0))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            "augment must take float32 images of shape (N, 28, 28) and a torch.Generator. "
            f"It raised: {error}"
        ) from error

    expected = f"augment must return float32 images of shape {tuple(images.shape)} from 0 to 1"
    if not isinstance(changed, torch.Tensor) or changed.shape != images.shape:
        raise ValueError(f"{expected}, found {describe_shape(changed)}.")
    if changed.dtype != torch.float32:
        raise ValueError(f"{expected}, found {changed.dtype}.")
    if not torch.isfinite(changed).all():
        raise ValueError(f"{expected}, found numbers that are not finite.")
    if changed.max() > MAX_PIXEL:
        warnings.warn(
            f"{expected}, found pixels of up to {changed.max():.3g}: do not scale or normalise "
            "them, `fit` does it afterwards.",
            stacklevel=3,
        )


def warn_if_shared_images(train_sets: Sequence[ImageDataset], validation: ImageDataset) -> None:
    """Warn if more than one in a hundred validation images are also training images.

    The best epoch would then be chosen on images that the model has seen.
    """
    # Two images are taken for equal if a random sum of their bytes is. Eight bytes are one number.
    numbers = validation.images.flatten(1).view(torch.int64)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (numbers.shape[1],), generator=generator).to(numbers.device)
    validation_keys = (numbers * factors).sum(dim=1)

    is_shared = torch.zeros(len(validation), dtype=torch.bool, device=numbers.device)
    for train_set in train_sets:
        train_keys = (train_set.images.flatten(1).view(torch.int64) * factors).sum(dim=1)
        is_shared |= torch.isin(validation_keys, train_keys)

    n_shared = int(is_shared.sum())
    if n_shared > 0.01 * len(validation):
        warnings.warn(
            f"{n_shared:,} of the {len(validation):,} validation images are also training images: "
            "the validation accuracy is too good, and the best epoch is chosen on it. Keep them "
            'apart, or use Recipe(select="last epoch").',
            stacklevel=3,
        )


def warn_if_rate_of_adamw(recipe: Recipe, optimizer: Callable | None) -> None:
    """Warn if another optimizer than AdamW is given AdamW's default learning rate."""
    is_adamw = optimizer is None and recipe.optimizer == "adamw"
    if is_adamw or recipe.learning_rate != Recipe.learning_rate:
        return

    name = recipe.optimizer if optimizer is None else f"{optimizer!r}"
    warnings.warn(
        f"the learning rate {recipe.learning_rate} is the default, which suits AdamW, but the "
        f"optimizer is {name}. Most others need a larger one: set Recipe(learning_rate=...).",
        stacklevel=3,
    )


def warn_if_stepped_by_epoch(first_rate: float, last_rate: float) -> None:
    """Warn if the learning rate is almost zero after the first of several epochs.

    Args:
        first_rate: The learning rate of the first step.
        last_rate: The learning rate of the last step of the first epoch.
    """
    if last_rate < 1e-4 * first_rate:
        warnings.warn(
            f"the learning rate fell from {first_rate:.3g} to {last_rate:.3g} in the first epoch: "
            "`fit` steps the schedule after every batch, not after every epoch.",
            stacklevel=3,
        )


def warn_if_constant_prediction(
    result: Evaluation, epoch: int, steps: int, learning_rate: float
) -> None:
    """Warn if the model predicts the same class for all validation images.

    Args:
        result: The evaluation on the validation images.
        epoch: The epoch after which the model was evaluated.
        steps: How many steps the training has taken.
        learning_rate: The recipe's.
    """
    predicted = result.predicted.unique()
    if len(predicted) > 1 or len(result.labels.unique()) == 1:
        return

    loss_of_chance = math.log(len(result.classes))
    if steps < FEW_STEPS and result.loss < loss_of_chance:
        advice = f"The likely cause is too few steps ({steps}): try more epochs."
    else:
        advice = (
            f"The likely cause is the learning rate ({learning_rate:.3g}): try a tenth, or, if the "
            "loss hardly changes, ten times as much."
        )
    warnings.warn(
        f"after epoch {epoch} the model predicts {result.classes[predicted[0]]!r} for all "
        f"{len(result.labels):,} validation images. {advice}",
        stacklevel=3,
    )
