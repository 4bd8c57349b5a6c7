"""Data sets in memory, the stratified split, and batches in a reproducible order."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

# The mean and standard deviation of the pixels of MNIST's 60,000 training images, on the scale from
# 0 to 1. All images that are trained on, evaluated, read or exported are normalised with these two.
MEAN = 0.1307
STD = 0.3081

# If no pixel is larger, the scale is another one: 0 to 1, 0 to 16, or normalised.
MAX_OF_ANOTHER_SCALE = 16

# A batch: the images, the labels, and the teacher logits or None.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

# A function that takes images, float32 of shape (N, 28, 28) from 0 to 1, and a generator of random
# numbers, and returns changed images of the same shape.
Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as normalised float32 images of the same shape.

    Raises:
        TypeError: The images are not uint8, so their scale is not known.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be torch.uint8 from 0 to 255, found {images.dtype}.")
    return images.div(255).sub_(MEAN).div_(STD)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images and their labels in two tensors. `get_batch` preprocesses a batch at a time.

    Attributes:
        images: uint8 of shape (N, 28, 28); 0 is background, 255 is ink.
        labels: int64 of shape (N,), from 0 to `len(classes) - 1`.
        classes: The name of each class, a tuple of strings. Other sequences become one.
        teacher_logits: A teacher's logits for distillation, float of shape (N, classes), or None.

    Raises:
        TypeError: The images, labels or teacher logits are not tensors, or the classes have no
            order.
        ValueError: A dtype or shape is wrong, a label has no class, two classes have the same name,
            or there are no images.

    Warns if the pixels cannot be ink from 0 to 255 on a background of 0: if they are at most 16, or
    if the corners of the images are bright.

    Example:
        >>> dataset = ImageDataset(torch.zeros(2, 28, 28, dtype=torch.uint8), torch.tensor([3, 7]))
        >>> image, label = dataset[1]
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...] = tuple("0123456789")
    teacher_logits: torch.Tensor | None = None

    def __post_init__(self):
        # A set has another order in each process, and the order of a dict need not be the labels'.
        if not isinstance(self.classes, Iterable) or isinstance(self.classes, (Set, Mapping)):
            raise TypeError(
                "classes must be a tuple or list of names, in the order of the labels, "
                f"found {self.classes!r}."
            )

        # The class is frozen, so that a data set cannot change while it is in use.
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))

        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"each class must have its own name, found {' '.join(self.classes)}.")

        tensors = {"images": self.images, "labels": self.labels}
        if self.teacher_logits is not None:
            tensors["teacher_logits"] = self.teacher_logits
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(
                    f"{name} must be a torch.Tensor, found a {type(tensor).__name__}. "
                    "Use torch.from_numpy for a NumPy array."
                )

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
        if self.teacher_logits is not None and not self.teacher_logits.isfinite().all():
            raise ValueError("teacher_logits must be finite, found infinite ones or NaN.")

        largest = int(self.images.max())
        if 0 < largest <= MAX_OF_ANOTHER_SCALE:
            warnings.warn(
                f"the largest pixel is {largest}, expected ink of up to 255: scale the images to "
                "0 to 255, before they become uint8.",
                stacklevel=3,
            )
        if self.images[:, ::27, ::27].float().mean() > 160:
            warnings.warn(
                "the corners of the images are bright, expected light ink on a background of 0: "
                "use 255 - images.",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a preprocessed image, float32 of shape (784,), and its label.

        Raises:
            TypeError: The index is not a number; for several images use `get_batch` or `subset`.
            IndexError: There is no such image.
        """
        if isinstance(index, slice):
            raise TypeError(
                "a data set takes one index: use subset(torch.arange(...)) for several."
            )
        position = range(len(self))[index]  # counts negative indices from the end
        images, labels, _ = self.get_batch(torch.tensor([position]))
        return images[0], int(labels[0])

    def get_batch(
        self,
        indices: torch.Tensor,
        augment: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Return the preprocessed images at these indices, their labels, and teacher logits.

        The images are bit for bit those of torchvision's `ToTensor`, `Normalize` and `flatten`,
        but computed for the whole batch at once.

        Args:
            indices: Which images, int64 of shape (N,).
            augment: A function that changes the images before they are normalised. It is called
                with float32 images of shape (N, 28, 28) from 0 to 1 and the generator.
            generator: The source of random numbers for `augment`.

        Returns:
            The images, float32 of shape (N, 784); the labels, int64 of shape (N,); and the teacher
            logits, float32 of shape (N, classes), or None.

        Raises:
            ValueError: There is an `augment`, but no generator.
        """
        indices = indices.to(self.images.device)

        # index_select copies whole images, which is much faster than self.images[indices].
        images = self.images.index_select(0, indices).float().div_(255)
        if augment is not None:
            if generator is None:
                raise ValueError("augment needs a generator=torch.Generator(), found None.")
            images = augment(images, generator)
        images = images.sub(MEAN).div_(STD).flatten(1)

        labels = self.labels.index_select(0, indices)
        if self.teacher_logits is None:
            return images, labels, None
        return images, labels, self.teacher_logits.index_select(0, indices).float()

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Return the data set on a device such as "cuda"."""
        device = torch.device(device)
        is_same_index = device.index is None or device.index == self.images.device.index
        if self.images.device.type == device.type and is_same_index:
            return self
        return self._apply_to_tensors(lambda tensor: tensor.to(device))

    def subset(self, indices: torch.Tensor) -> "ImageDataset":
        """Return a data set of the images at these indices."""
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
    """The training, validation and test set: train on the first, choose on the second, test once.

    Attributes:
        name: The name of the data set, such as "mnist".
        train: The images to train on.
        validation: The images to choose epochs, hyperparameters and models on.
        test: The images to measure the final accuracy on.
        warning: Why this is not the data set that was asked for; usually "".
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    warning: str = ""


def concatenate(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    """Return one data set with the images of both.

    Raises:
        ValueError: The classes differ, or only one of the data sets has teacher logits.

    Example:
        >>> everything = concatenate(splits.train, splits.validation)  # after all choices are made
    """
    if first.classes != second.classes:
        raise ValueError(
            f"both data sets must have the same classes, found {' '.join(first.classes)} "
            f"and {' '.join(second.classes)}."
        )
    if (first.teacher_logits is None) != (second.teacher_logits is None):
        raise ValueError("both data sets must have teacher logits or none, found one with them.")

    images = torch.cat([first.images, second.images])
    labels = torch.cat([first.labels, second.labels])
    teacher_logits = None
    if first.teacher_logits is not None and second.teacher_logits is not None:
        teacher_logits = torch.cat([first.teacher_logits, second.teacher_logits])
    return ImageDataset(images, labels, first.classes, teacher_logits)


def batches(
    dataset: ImageDataset,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    augment: Augmentation | None = None,
) -> Iterator[Batch]:
    """Yield all images in batches. The last batch may be smaller.

    Args:
        dataset: The images and their labels.
        batch_size: The number of images in a batch.
        generator: The source of the random order. Without one, the images come in the order of the
            data set.
        augment: A function that changes the images of a batch, as in `ImageDataset.get_batch`.

    Yields:
        Images, labels, and teacher logits or None, as from `ImageDataset.get_batch`.
    """
    if generator is None:
        order = torch.arange(len(dataset))
    else:
        order = torch.randperm(len(dataset), generator=generator)

    for indices in order.split(batch_size):
        yield dataset.get_batch(indices, augment, generator)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator that draws the order and the warps of the images of an epoch.

    It depends on the seed and the epoch alone, so an interrupted training can continue exactly.
    """
    # seed + epoch would repeat: seed 0 in epoch 2 would draw what seed 1 draws in epoch 1.
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def stratified_split(
    labels: torch.Tensor, holdout_fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the indices of the images into two parts in which each class has its proportion.

    The images are shuffled and sorted by label; then every n-th is held out. So each class keeps
    its proportion to within one image. Of a class that would have no image held out, one is, if the
    class has two or more.

    Args:
        labels: int64 of shape (N,).
        holdout_fraction: One divided by a whole number n, such as 1 / 12. Other fractions are
            rounded to such a one.
        seed: The seed of the shuffle.

    Returns:
        The indices that are kept and those that are held out, both ascending.
    """
    n = round(1 / holdout_fraction)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    sorted_by_label = shuffled[labels[shuffled].argsort(stable=True)]

    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    is_held_out[sorted_by_label[::n]] = True

    for label in labels.unique():
        of_class = sorted_by_label[labels[sorted_by_label] == label]
        if len(of_class) > 1 and not is_held_out[of_class].any():
            is_held_out[of_class[0]] = True

    kept = (~is_held_out).nonzero().flatten()
    held_out = is_held_out.nonzero().flatten()
    return kept, held_out


def check_dataset(name: str, dataset) -> None:
    """Raise TypeError if `dataset`, called `name` in the message, is not an ImageDataset."""
    if isinstance(dataset, Splits):
        raise TypeError(
            f"{name} must be an ImageDataset, found Splits. Use its train, validation or test."
        )
    if isinstance(dataset, Subset):
        raise TypeError(
            f"{name} must be an ImageDataset, found a Subset. Use dataset.subset(indices)."
        )
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"{name} must be an ImageDataset(images, labels), found {type(dataset).__name__}."
        )
