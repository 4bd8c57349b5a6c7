"""Distillation: a teacher's logits for augmented images, computed once for all students."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, check_dataset, epoch_generator
from mnist_mlp.evaluation import check_network, evaluate
from mnist_mlp.files import atomic_write, repo_root
from mnist_mlp.identity import sha256_of


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

    Raises ValueError if a teacher has other classes than the data set, or the precision is unknown,
    TypeError if `dataset` is not an ImageDataset or `teachers` is not a list of networks.
    Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022:
    teacher and student must see the same augmented image.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', found {precision!r}.")
    check_dataset("dataset", dataset)
    if not isinstance(teachers, (list, tuple)) or not teachers:
        raise TypeError("teachers must be a list of one or more networks, such as [teacher].")
    for teacher in teachers:
        check_network(teacher)

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

        sets.append(replace(augmented, teacher_logits=torch.stack(logits).mean(0).half()))
    return sets


def save_distillation_sets(
    sets: Sequence[ImageDataset],
    dataset: ImageDataset,
    path: str | Path,
    source: Mapping | None = None,
) -> None:
    """Save the images and teacher logits of augmented copies, without the labels.

    Args:
        sets: The copies, as `precompute_teacher_logits` returns them.
        dataset: The original data set. The file can be loaded for this one only.
        path: The file; a relative path starts at the root of the repository.
        source: What the copies were made from, in plain values, for `read_source`.

    Raises TypeError if a copy is not an ImageDataset, ValueError if there are no copies, or one has
    no teacher logits or other labels.
    """
    images = []
    logits = []
    for augmented in sets:
        check_dataset("a copy", augmented)
        if augmented.teacher_logits is None:
            raise ValueError(
                "a copy has no teacher logits: use the sets that precompute_teacher_logits returns."
            )
        if (
            not torch.equal(augmented.labels, dataset.labels)
            or augmented.classes != dataset.classes
        ):
            raise ValueError(
                "a copy has other labels than the data set: save the copies with the data set that "
                "precompute_teacher_logits was given."
            )
        images.append(augmented.images)
        logits.append(augmented.teacher_logits)
    if not sets:
        raise ValueError("sets must hold at least one copy, found none.")

    content = {
        "images": torch.stack(images),
        "teacher_logits": torch.stack(logits),
        "dataset": describe_dataset(dataset),
        "source": dict(source or {}),
    }
    with atomic_write(repo_root() / Path(path).expanduser()) as file:
        torch.save(content, file)


def load_distillation_sets(path: str | Path, dataset: ImageDataset) -> list[ImageDataset]:
    """Return the augmented copies that `save_distillation_sets` wrote, memory-mapped.

    Args:
        path: The file; a relative path starts at the root of the repository.
        dataset: The original data set, from which the copies take their labels.

    Raises FileNotFoundError if there is no such file, ValueError if it is damaged or holds copies
    of another data set.
    """
    path = repo_root() / Path(path).expanduser()
    content = _read_file(path)
    if content["dataset"] != describe_dataset(dataset):
        raise ValueError(
            f"{path} belongs to other images, labels or class names than this data set: use the "
            "data set that it was made for, or delete it and make it again."
        )

    sets = []
    for images, logits in zip(content["images"], content["teacher_logits"], strict=True):
        sets.append(replace(dataset, images=images, teacher_logits=logits))
    return sets


def read_source(path: str | Path) -> dict:
    """Return what the copies in a file were made from, as `save_distillation_sets` was told.

    Raises FileNotFoundError if there is no such file, ValueError if it is damaged.
    """
    return _read_file(repo_root() / Path(path).expanduser())["source"]


def describe_dataset(dataset: ImageDataset) -> dict[str, str | list[str]]:
    """Return the digest of a data set's images and labels, and its class names."""
    return {
        "sha256": sha256_of([dataset.images, dataset.labels]),
        "classes": list(dataset.classes),
    }


def _read_file(path: Path) -> dict:
    """Return the content of a file that `save_distillation_sets` wrote."""
    if not path.exists():
        raise FileNotFoundError(f"there are no teacher logits in {path}: run `make ablation`.")

    advice = "Delete it and make it again, for example with `make ablation`."
    try:
        content = torch.load(path, weights_only=True, mmap=True)
    except Exception as error:  # torch raises all kinds of errors on foreign bytes
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {reason:.200}. {advice}") from error

    expected_entries = {"images", "teacher_logits", "dataset", "source"}
    if not isinstance(content, dict) or content.keys() != expected_entries:
        raise ValueError(f"{path} holds no teacher logits of this version. {advice}")
    return content
