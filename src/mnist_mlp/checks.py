"""Checks of the arguments of `fit`, so that a mistake gives one clear error before training."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from mnist_mlp.data import ImageDataset, check_dataset
from mnist_mlp.evaluation import Evaluation, evaluation_mode
from mnist_mlp.recipe import Recipe

# The fields of a recipe that an argument of `fit` replaces.
REPLACED_FIELDS = {
    "optimizer": ["optimizer"],
    "schedule": ["schedule"],
    "loss_fn": ["label_smoothing", "distillation_temperature"],
    "augment": ["augment_strength", "elastic_strength"],
}

# If all predictions are equal after fewer steps than this, blame the steps, not the learning rate.
FEW_STEPS = 100


def check_training_sets(
    train_sets: Sequence[ImageDataset], validation: ImageDataset, batch_size: int
) -> None:
    """Check that all data sets have the same classes; warn if one is smaller than a batch.

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
                "train and validation must have the same classes, found "
                f"{' '.join(train_set.classes)} and {' '.join(validation.classes)}."
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
            raise TypeError(f"{name} must be a function, found {function!r}.")
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

    if loss_fn is not None:
        for train_set in train_sets:
            if train_set.teacher_logits is not None:
                raise ValueError(
                    "train has teacher logits, which loss_fn would ignore: leave one of the two "
                    "out."
                )


def check_model(model: nn.Module, dataset: ImageDataset) -> None:
    """Check on two images that the model can classify the data set.

    Raises:
        TypeError: The model does not return a tensor.
        ValueError: It does not take the images, or does not return a logit for each class.
    """
    images = dataset.images[:2].flatten(1).float()  # not normalised: only the shapes matter here
    try:
        with evaluation_mode(model):
            logits = model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the model must take images of shape {tuple(images.shape)}. If it needs 2-D images, "
            f"begin its forward with x.view(-1, 1, 28, 28). It raised: {reason}"
        ) from error

    expected = f"the model must return logits of shape (N, {len(dataset.classes)})"
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{expected}, a tensor, found a {type(logits).__name__}.")
    if logits.shape[1:] != (len(dataset.classes),):
        raise ValueError(f"{expected}, one per class, found the shape {tuple(logits.shape)}.")


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

    if steps < FEW_STEPS:
        advice = f"The likely cause is too few steps ({steps}): try more epochs."
    else:
        advice = f"The likely cause is the learning rate ({learning_rate:.3g}): try a tenth."
    warnings.warn(
        f"after epoch {epoch} the model predicts {result.classes[predicted[0]]!r} for all "
        f"{len(result.labels):,} validation images. {advice}",
        stacklevel=3,
    )
