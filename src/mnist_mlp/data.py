"""Data sets in memory, the stratified split, and batches in a reproducible order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

# Of the pixels of MNIST's 60,000 training images, on the scale from 0 to 1. Everything that this
# package trains, evaluates, reads and exports is normalised by these two numbers.
MEAN = 0.1307
STD = 0.3081

# A batch: the images, the labels, and the teacher logits or None.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

# A function of images, float32 of shape (N, 28, 28) from 0 to 1, and of a generator. It returns as
# many images of the same kind.
Augmentation = Callable[[torch.Tensor, torch.Generator | None], torch.Tensor]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as the networks take them: float32 of the same shape."""
    return images.div(255).sub_(MEAN).div_(STD)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images and labels in two tensors, preprocessed one batch at a time.

    Attributes:
        images: uint8 of shape (N, 28, 28); 0 is background, 255 is ink.
        labels: int64 of shape (N,), from 0 to `len(classes) - 1`.
        classes: The name of each class.
        teacher_logits: None, or float of shape (N, classes), for distillation.

    Raises:
        ValueError: These do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...] = tuple("0123456789")
    teacher_logits: torch.Tensor | None = None

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.shape[1:] != (28, 28):
            raise ValueError(
                "images must be torch.uint8 of shape (N, 28, 28), "
                f"found {self.images.dtype} of shape {tuple(self.images.shape)}."
            )

        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be torch.int64 of shape ({len(self.images)},), one for each image, "
                f"found {self.labels.dtype} of shape {tuple(self.labels.shape)}."
            )

        if len(self) == 0:
            raise ValueError("a data set must hold at least one image, found none.")

        lowest = int(self.labels.min())
        highest = int(self.labels.max())
        if lowest < 0 or highest >= len(self.classes):
            raise ValueError(
                f"labels must lie in 0 to {len(self.classes) - 1}, found {lowest} to {highest}."
            )

        expected_shape = (len(self), len(self.classes))
        if self.teacher_logits is not None and self.teacher_logits.shape != expected_shape:
            raise ValueError(
                f"teacher_logits must have the shape {expected_shape}, "
                f"found {tuple(self.teacher_logits.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one preprocessed image, float32 of shape (784,), and its label."""
        images, labels, _ = self.get_batch(torch.tensor([index]))
        return images[0], int(labels[0])

    def get_batch(
        self,
        indices: torch.Tensor,
        augment: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Return the preprocessed images of these indices, their labels, and teacher logits.

        The images are bit for bit those of torchvision's `ToTensor`, `Normalize` and `flatten`,
        computed for the whole batch at once.

        Args:
            indices: int64 of shape (N,).
            augment: If given, `augment(images, generator)` is called before the images are
                normalised, with float32 images of shape (N, 28, 28) from 0 to 1.
            generator: The source of the augmentation's random numbers.

        Returns:
            float32 of shape (N, 784), int64 of shape (N,), and None or float32 (N, classes).
        """
        indices = indices.to(self.images.device)

        # index_select copies whole images, ten times as fast as indexing with [].
        images = self.images.index_select(0, indices).float().div_(255)
        if augment is not None:
            images = augment(images, generator)
        images = images.sub(MEAN).div_(STD).flatten(1)

        labels = self.labels.index_select(0, indices)
        if self.teacher_logits is None:
            return images, labels, None
        return images, labels, self.teacher_logits.index_select(0, indices).float()

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Return the data set on a device, for example "cuda"; itself if it is there already."""
        if self.images.device == torch.device(device):
            return self
        return self._apply_to_tensors(lambda tensor: tensor.to(device))

    def subset(self, indices: torch.Tensor) -> "ImageDataset":
        """Return the data set of these images alone."""
        return self._apply_to_tensors(lambda tensor: tensor[indices])

    def _apply_to_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "ImageDataset":
        teacher_logits = None
        if self.teacher_logits is not None:
            teacher_logits = function(self.teacher_logits)
        return ImageDataset(
            function(self.images), function(self.labels), self.classes, teacher_logits
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set: fit on `train`, choose on `validation`, read `test` once.

    `warning` is empty, or says why this is not the data set that was asked for.
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    warning: str = ""


def concatenate(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    """Return both data sets as one.

    For example `concatenate(splits.train, splits.validation)`, for a last training after all
    choices are made.

    Raises:
        ValueError: They have other classes, or one of them has teacher logits.
    """
    if first.classes != second.classes:
        raise ValueError(
            f"both data sets must have the same classes, found {' '.join(first.classes)} "
            f"and {' '.join(second.classes)}."
        )
    if first.teacher_logits is not None or second.teacher_logits is not None:
        raise ValueError("data sets with teacher logits cannot be concatenated.")

    images = torch.cat([first.images, second.images])
    labels = torch.cat([first.labels, second.labels])
    return ImageDataset(images, labels, first.classes)


def batches(
    dataset: ImageDataset,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    augment: Augmentation | None = None,
) -> Iterator[Batch]:
    """Yield batches of all images; the last one may be short.

    Args:
        dataset: Where the images come from.
        batch_size: The number of images in a batch.
        generator: Without one, the images come in file order. With one, they come in a random
            order that is drawn from it.
        augment: If given, each batch goes through `augment(images, generator)`.

    Yields:
        As `ImageDataset.get_batch`: images, labels, and teacher logits or None.
    """
    if generator is None:
        order = torch.arange(len(dataset))
    else:
        order = torch.randperm(len(dataset), generator=generator)

    for indices in order.split(batch_size):
        yield dataset.get_batch(indices, augment, generator)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of one epoch's order and warps, a pure function of (seed, epoch)."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def stratified_split(
    labels: torch.Tensor, holdout_fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices that stay and those that are held out, both ascending.

    Systematic sampling: shuffle, sort by label, hold out every so-many-th. Each class keeps its
    proportion, within one image.

    Args:
        labels: int64 of shape (N,).
        holdout_fraction: One divided by a whole number, for example 1 / 12.
        seed: The seed of the shuffle.
    """
    step = round(1 / holdout_fraction)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]

    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[by_class[::step]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def check_dataset(name: str, dataset) -> None:
    """Raise TypeError if the argument of this name is not an ImageDataset."""
    if isinstance(dataset, Splits):
        raise TypeError(
            f"{name} must be an ImageDataset, found Splits. Use its train, validation or test."
        )
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"{name} must be an ImageDataset(images, labels), found {type(dataset).__name__}."
        )
