"""Distillation: a teacher's logits for augmented images, computed once for all students."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluation import evaluate
from mnist_mlp.files import atomic_write, repo_root


def precompute_teacher_logits(
    dataset: ImageDataset,
    teachers: Sequence[nn.Module],
    copies: int,
    augment_strength: float = 1.0,
    seed: int = 0,
    precision: str = "float32",
    progress: bool = True,
) -> list[ImageDataset]:
    """Return augmented copies of the data set with the mean logits of the teachers.

    A teacher's prediction costs more than a student's step, so each copy is predicted only once
    and then serves all epochs and all students.

    Args:
        dataset: The images to augment.
        teachers: Trained networks, all on one device.
        copies: The number of copies; one copy of 55,000 images takes 44 MB.
        augment_strength: The strength of the random warps, as in `Recipe`.
        seed: The seed of the random warps.
        precision: The teachers compute in "float32" or "bfloat16".
        progress: Whether to show a progress bar.

    Returns:
        One data set per copy, with uint8 images and float16 `teacher_logits` of shape (N, classes).

    Raises ValueError if a teacher has another number of classes than the data set.
    Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022:
    teacher and student must see the same augmented image.
    """
    device = next(teachers[0].parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    bar = tqdm(range(copies), "Teacher logits", unit="copy", file=sys.stdout, disable=not progress)

    sets = []
    for copy_index in bar:
        generator = epoch_generator(seed, copy_index)
        warped = []
        for batch in dataset.images.to(device).split(1024):
            warped.append(random_warp(batch.float() / 255, generator, augment_strength))
        images = (torch.cat(warped) * 255).round().to(torch.uint8).cpu()
        augmented = replace(dataset, images=images)

        with autocast:
            on_device = augmented.to(device)
            logits = [evaluate(teacher, on_device).logits for teacher in teachers]

        for teacher_logits in logits:
            if teacher_logits.shape[1] != len(dataset.classes):
                raise ValueError(
                    f"a teacher has {teacher_logits.shape[1]} classes, "
                    f"but the data set has {len(dataset.classes)}."
                )

        sets.append(replace(augmented, teacher_logits=torch.stack(logits).mean(0).half()))
    return sets


def save_distillation_sets(sets: Sequence[ImageDataset], path: str | Path) -> None:
    """Save the images and teacher logits of augmented copies, without the labels."""
    images = []
    logits = []
    for augmented in sets:
        images.append(augmented.images)
        if augmented.teacher_logits is not None:  # always so, but mypy cannot know
            logits.append(augmented.teacher_logits)

    content = {"images": torch.stack(images), "teacher_logits": torch.stack(logits)}
    with atomic_write(Path(path)) as file:
        torch.save(content, file)


def load_distillation_sets(path: str | Path, dataset: ImageDataset) -> list[ImageDataset]:
    """Return the augmented copies that `save_distillation_sets` wrote, memory-mapped.

    Args:
        path: The file; a relative path starts at the root of the repository.
        dataset: The original data set, from which the copies take their labels.

    Raises FileNotFoundError if there is no such file, ValueError if it holds copies of another
    number of images.
    """
    path = repo_root() / path
    if not path.exists():
        raise FileNotFoundError(f"there are no teacher logits in {path}: run `make ablation`.")

    content = torch.load(path, weights_only=True, mmap=True)
    n_images = content["images"].shape[1]
    if n_images != len(dataset):
        raise ValueError(f"{path} holds copies of {n_images:,} images, expected {len(dataset):,}.")

    sets = []
    for images, logits in zip(content["images"], content["teacher_logits"], strict=True):
        sets.append(replace(dataset, images=images, teacher_logits=logits))
    return sets
