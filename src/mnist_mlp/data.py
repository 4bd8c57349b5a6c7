"""Data sets in memory, the stratified split, and batches in a reproducible order."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images' pixels, on the scale from 0 to 1


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images and labels in two tensors, preprocessed one batch at a time.

    `images`: uint8 of shape (N, 28, 28), 0 is background, 255 is ink. `labels`: int64 of shape
    (N,), from 0 to `len(classes) - 1`. `teacher_logits`: None, or float of shape (N, classes), for
    distillation. Raises ValueError if these do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...] = tuple("0123456789")
    mean: float = MEAN
    std: float = STD
    teacher_logits: torch.Tensor | None = None

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.shape[1:] != (28, 28):
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images must be torch.uint8 of shape (N, 28, 28), found {found}.")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            expected = f"torch.int64 of shape ({len(self.images)},), one for each image"
            raise ValueError(f"labels must be {expected}, found {found}.")
        if not len(self):
            raise ValueError("a data set must hold at least one image, found none.")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            found = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise ValueError(f"labels must lie in 0 to {len(self.classes) - 1}, found {found}.")
        shape = (len(self), len(self.classes))
        if self.teacher_logits is not None and self.teacher_logits.shape != shape:
            found = f"found {tuple(self.teacher_logits.shape)}"
            raise ValueError(f"teacher_logits must have the shape {shape}, {found}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one preprocessed image, float32 of shape (784,), and its label."""
        images, labels, *_ = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(
        self,
        indices: Sequence[int] | torch.Tensor,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return a preprocessed batch: float32 of shape (N, 784) and int64 of shape (N,).

        `teacher_logits`, if there are any, are the third element, float32 of shape (N, classes).
        The images are bit for bit those of torchvision's `ToTensor`, `Normalize((mean,), (std,))`
        and `flatten`, computed for the whole batch at once.
        """
        indices = torch.as_tensor(indices, device=self.images.device)
        # index_select copies whole images, ten times as fast as indexing with [].
        images = self.images.index_select(0, indices).float().div_(255)
        if augment is not None:
            images = augment(images)
        images = images.sub_(self.mean).div_(self.std)
        batch = images.flatten(1), self.labels.index_select(0, indices)
        if self.teacher_logits is None:
            return batch
        return *batch, self.teacher_logits.index_select(0, indices).float()

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Return the data set on a device, for example "cuda"."""
        return self._map(lambda tensor: tensor.to(device))

    def subset(self, indices: torch.Tensor) -> "ImageDataset":
        """Return the data set of these images alone."""
        return self._map(lambda tensor: tensor[indices])

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "ImageDataset":
        logits = None if self.teacher_logits is None else function(self.teacher_logits)
        images, labels = function(self.images), function(self.labels)
        return replace(self, images=images, labels=labels, teacher_logits=logits)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set: fit on `train`, choose on `validation`, read `test` once.

    `note` is empty, or says why this is not the data set that was asked for.
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    note: str = ""

    def train_and_validation(self) -> ImageDataset:
        """Return both parts as one, for a last training after all choices are made."""
        images, labels = (
            torch.cat([getattr(part, name) for part in (self.train, self.validation)])
            for name in ("images", "labels")
        )
        return replace(self.train, images=images, labels=labels)


def loader(
    dataset: ImageDataset,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    augment: Callable[..., torch.Tensor] | None = None,
    skip: int = 0,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return the batches of all images but the first `skip`; the last one may be short.

    The images come in file order without a `generator`. With one, they come in a random order
    drawn from it, and each batch goes through `augment(images, generator)` if that is given.
    """
    n = len(dataset)
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    change = augment and partial(augment, generator=generator)
    batches = order.to(dataset.images.device).split(batch_size)[skip:]
    return (dataset.__getitems__(indices, change) for indices in batches)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of one epoch's order and warps, a pure function of (seed, epoch)."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def stratified_split(
    labels: torch.Tensor, every: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices that stay and the 1 in `every` that are held out, both ascending.

    Systematic sampling: shuffle, sort by label, take every `every`-th. Each class keeps its
    proportion, within one image.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[::every]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def check_dataset(name: str, part) -> None:
    """Raise TypeError if the argument of this name is not an ImageDataset."""
    if not isinstance(part, ImageDataset):
        hint = " Use its train, validation or test." if isinstance(part, Splits) else ""
        found = f"found {type(part).__name__}.{hint}"
        raise TypeError(f"{name} must be an ImageDataset(images, labels), {found}")


def check_datasets(
    train: ImageDataset | Sequence[ImageDataset], validation: ImageDataset, batch_size: int
) -> list[ImageDataset]:
    """Return the training sets as a list; TypeError or ValueError if they cannot be used."""
    train_sets: list = list(train) if isinstance(train, (list, tuple)) else [train]
    for name, part in [("validation", validation), *(("train", part) for part in train_sets)]:
        check_dataset(name, part)
        if part.classes != validation.classes:
            found, expected = (" ".join(p.classes) for p in (part, validation))
            raise ValueError(f"train has the classes {found}, validation {expected}: not the same.")
        if (part.mean, part.std) != (validation.mean, validation.std):
            found, expected = (f"mean {p.mean}, std {p.std}" for p in (part, validation))
            raise ValueError(
                f"train is normalised by {found}, validation by {expected}: not the same."
            )
    if not train_sets:
        raise ValueError("train must be at least one ImageDataset, found an empty list.")
    if (smallest := min(map(len, train_sets))) < batch_size:
        found = f"batch_size is {batch_size}, but there are only {smallest} training images"
        warnings.warn(f"{found}: an epoch is one step.", stacklevel=3)
    return train_sets
