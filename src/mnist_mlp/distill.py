"""Learning from a teacher: its answers to warped images, and the loss that learns them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mnist_mlp.augment import warp
from mnist_mlp.checkpoint import atomic
from mnist_mlp.data import ImageDataset, epoch_generator, home
from mnist_mlp.evaluate import evaluate


def soft_loss(logits: torch.Tensor, answers: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the divergence of the tempered probabilities from the teacher's, in nats times T^2.

    `logits`, `answers`: the student's and the teacher's logits, of shape (N, classes). The factor
    keeps the size of the gradient the same whatever the temperature.
    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015.
    """
    student, teacher = (F.log_softmax(z / temperature, dim=1) for z in (logits, answers))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def lessons(
    dataset: ImageDataset,
    teachers: Sequence[nn.Module],
    copies: int,
    augment: float = 1.0,
    seed: int = 0,
    precision: str = "float32",
    progress: bool = True,
) -> list[ImageDataset]:
    """Return `copies` of the data set, each warped anew, with the teachers' mean logits.

    A teacher costs more than a student's whole step: asked once about each image of each copy, its
    answers serve every student. `augment`: strength of the warps; `precision`: of the teachers'
    products, as of `fit`. A copy of 55,000 images takes 44 MB. Raises ValueError if a teacher has
    another number of classes than the data set.
    Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", 2022:
    teacher and student must see the very same warped image.
    """
    taught = []
    rounded = torch.autocast(dataset.images.device.type, torch.bfloat16, precision == "bfloat16")
    for copy in tqdm(range(copies), "Lessons", unit="copy", file=sys.stdout, disable=not progress):
        generator = epoch_generator(seed, copy)
        warps = partial(warp, generator=generator, strength=augment)
        parts = [warps(part.float() / 255) for part in dataset.images.split(1024)]
        images = (torch.cat(parts) * 255).round().to(torch.uint8)
        warped = replace(dataset, images=images)
        with rounded:
            answers = [evaluate(teacher, warped).logits for teacher in teachers]
        for classes in {len(a[0]) for a in answers} - {len(dataset.classes)}:
            expected = f"the data set's {len(dataset.classes)} classes"
            raise ValueError(f"a teacher must know {expected}, found one of {classes}.")
        taught.append(replace(warped, answers=torch.stack(answers).mean(0).half()))
    return taught


def save(taught: Sequence[ImageDataset], path: str | Path) -> None:
    """Save lessons in a file, without the labels."""
    with atomic(Path(path)) as file:
        parts = {k: torch.stack([getattr(t, k) for t in taught]) for k in ("images", "answers")}
        torch.save(parts, file)


def load(path: str | Path, dataset: ImageDataset) -> list[ImageDataset]:
    """Return the lessons about the data set that `save` has put in a file, mapped, not read.

    Raises FileNotFoundError if there is none, ValueError if they are about another data set.
    """
    path = home() / path
    if not path.exists():
        raise FileNotFoundError(f"there are no lessons in {path}: `make ladder` makes them.")
    parts = torch.load(path, weights_only=True, mmap=True)
    if parts["images"].shape[1:] != dataset.images.shape:
        found, expected = (f"{len(images):,}" for images in (parts["images"][0], dataset.images))
        raise ValueError(f"{path} holds lessons about {found} images, expected {expected}.")
    pairs = zip(parts["images"], parts["answers"], strict=True)
    return [replace(dataset, images=images, answers=answers) for images, answers in pairs]
