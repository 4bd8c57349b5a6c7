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
from mnist_mlp.storage.files import atomic_write, repo_root


def precompute_teacher_logits(
    dataset: ImageDataset,
    teachers: Sequence[nn.Module],
    copies: int,
    augment_strength: float = 1.0,
    seed: int = 0,
    precision: str = "float32",
    progress: bool = True,
) -> list[ImageDataset]:
    """Return augmented copies of the data set with the teachers' mean logits.

    A teacher costs more than a student's step, so its logits are computed once. `copies`: their
    number; one of 55,000 images takes 44 MB. `augment_strength`, `precision`: as in `Recipe`.
    Raises ValueError if a teacher has another number of classes than the data set.
    Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022:
    teacher and student must see the same augmented image.
    """
    sets = []
    device = next(teachers[0].parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, precision == "bfloat16")
    numbers = tqdm(
        range(copies), "Teacher logits", unit="copy", file=sys.stdout, disable=not progress
    )
    for copy in numbers:
        generator = epoch_generator(seed, copy)
        warped = [
            random_warp(part.float() / 255, generator, augment_strength)
            for part in dataset.images.to(device).split(1024)
        ]
        images = (torch.cat(warped) * 255).round().to(torch.uint8).cpu()
        augmented = replace(dataset, images=images)
        with autocast:
            seen = augmented.to(device)
            logits = [evaluate(teacher, seen).logits for teacher in teachers]
        for classes in {len(of_teacher[0]) for of_teacher in logits} - {len(dataset.classes)}:
            expected = f"the data set's {len(dataset.classes)} classes"
            raise ValueError(f"a teacher must know {expected}, found one of {classes}.")
        sets.append(replace(augmented, teacher_logits=torch.stack(logits).mean(0).half()))
    return sets


def save_distillation_sets(sets: Sequence[ImageDataset], path: str | Path) -> None:
    """Save the images and teacher logits of augmented copies, without the labels."""
    names = ("images", "teacher_logits")
    with atomic_write(Path(path)) as file:
        torch.save({name: torch.stack([getattr(s, name) for s in sets]) for name in names}, file)


def load_distillation_sets(path: str | Path, dataset: ImageDataset) -> list[ImageDataset]:
    """Return the augmented copies of the data set in a file, memory-mapped.

    Raises FileNotFoundError if there is none, ValueError if they are of another data set.
    """
    path = repo_root() / path
    if not path.exists():
        raise FileNotFoundError(f"there are no teacher logits in {path}: run `make ablation`.")
    found = torch.load(path, weights_only=True, mmap=True)
    if found["images"].shape[1:] != dataset.images.shape:
        count, expected = (f"{len(images):,}" for images in (found["images"][0], dataset.images))
        raise ValueError(f"{path} holds copies of {count} images, expected {expected}.")
    pairs = zip(found["images"], found["teacher_logits"], strict=True)
    return [replace(dataset, images=images, teacher_logits=logits) for images, logits in pairs]
