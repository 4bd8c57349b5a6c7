"""Where the images come from: files and their integrity, the split, the batches."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mnist_mlp.download import ensure, remedy

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images' pixels, on the scale from 0 to 1

# Size in bytes and SHA-256 of the four extracted files. torchvision only checks that they exist.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images and their labels in two tensors, preprocessed a whole batch at a time.

    `images`: uint8 of shape (N, 28, 28), 0 the background, 255 the ink. `labels`: int64 of shape
    (N,), from 0 to `len(classes) - 1`. `augment`: None, or a function from and to float32 images
    of shape (N, 28, 28) on the scale from 0 to 1, called for training, after the warps that `fit`
    brings; its random numbers are to come from torch's own generator. `answers`: None, or a
    teacher's logits, float of shape (N, classes), to be learned in place of the labels. Raises
    ValueError if these do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...] = tuple("0123456789")
    mean: float = MEAN
    std: float = STD
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    answers: torch.Tensor | None = None

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
        expected = (len(self), len(self.classes))
        if self.answers is not None and self.answers.shape != expected:
            found = f"answers of shape {tuple(self.answers.shape)}"
            raise ValueError(f"a teacher's answers must have the shape {expected}, found {found}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one preprocessed image, float32 of shape (784,), and its label."""
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return a preprocessed batch: float32 of shape (N, 784) and int64 of shape (N,).

        With `answers` these are the third element, float32 of shape (N, classes).

        Bit for bit what torchvision's `ToTensor`, `Normalize((mean,), (std,))` and `flatten` give
        image by image (without `augment`), in four operations for the whole batch.
        """
        indices = torch.as_tensor(indices, device=self.images.device)
        # index_select copies whole images, ten times as fast as indexing with [].
        images = self.images.index_select(0, indices).float().div_(255)  # to tensor
        if self.augment is not None:
            images = self.augment(images)
        images = images.sub_(self.mean).div_(self.std)  # normalise
        batch = images.flatten(1), self.labels.index_select(0, indices)  # flatten
        if self.answers is None:
            return batch
        return *batch, self.answers.index_select(0, indices).float()

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Return the data set on a device, say "cuda", for a model that is there."""
        return self._with(lambda tensor: tensor.to(device))

    def subset(self, indices: torch.Tensor) -> "ImageDataset":
        """Return the data set of these images alone."""
        return self._with(lambda tensor: tensor[indices])

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ImageDataset":
        """Return the data set with each of its tensors changed in the same way."""
        answers = None if self.answers is None else change(self.answers)
        return replace(
            self, images=change(self.images), labels=change(self.labels), answers=answers
        )


@dataclass(frozen=True)
class Splits:
    """The three parts of one data set: fit on `train`, choose on `validation`, read `test` once.

    `note` is empty, or says why this is not the data set that was asked for.
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    note: str = ""


def loader(
    dataset: ImageDataset,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
    augment: Callable[..., torch.Tensor] | None = None,
    skip: int = 0,
) -> DataLoader:
    """Return a DataLoader over all images but the first `skip` batches, the last short if need be.

    In file order without a `generator`; with one, in a random order drawn from it, each batch
    passed through `augment(images, generator)` if that is given, and then through the data set's
    own. Batches are those of `ImageDataset.__getitems__`.
    """
    if generator is None:
        order = torch.arange(len(dataset))
    else:
        order = torch.randperm(len(dataset), generator=generator)
    order = order.to(dataset.images.device)
    if augment is not None:
        dataset = replace(dataset, augment=_chain(augment, dataset.augment, generator))
    return DataLoader(
        dataset,
        batch_sampler=order.split(batch_size)[skip:],
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),  # else it draws from the one that a model's dropout has
    )


def _chain(first, then, generator: torch.Generator | None) -> Callable:
    """Return the augmentation that is `first(images, generator)`, and then, if any, `then`."""
    first = partial(first, generator=generator)
    return first if then is None else lambda images: then(first(images))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of one epoch's order and warps: a pure function of (seed, epoch)."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def hold_out(labels: torch.Tensor, every: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices that stay and the stratified 1 in `every` held out, each ascending.

    Stratified by systematic sampling: shuffle, sort by label, take every `every`-th. Each class
    gives its share to within one image.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_class[::every]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def home() -> Path:
    """Return the repository that this package lies in, else the working directory."""
    repository = Path(__file__).parents[2]
    return repository if (repository / "pyproject.toml").exists() else Path.cwd()


def default_root() -> Path:
    """Return `$MNIST_ROOT`, else `data/`, both relative to the repository."""
    return home() / Path(os.environ.get("MNIST_ROOT") or "data").expanduser()


def load(
    name: str | Path = "mnist",
    root: str | Path | None = None,
    download: bool = True,
    seed: int = 0,
) -> Splits:
    """Return the train, validation and test sets of a data set.

    `name`: "mnist" (55,000 / 5,000 / 10,000 images, the validation set stratified and drawn with
    `seed` from the training files); "digits" (scikit-learn's embedded 1,797, no network needed);
    "auto" (MNIST if it is there or can be downloaded, else the digits); one of torchvision's
    siblings "fashion", "kmnist", "qmnist", "emnist-digits" and "usps"; or the path of a folder
    that holds a folder of pictures for each class, which `images.to_mnist` prepares: a fifth of
    them are for the test, unless the folder holds two such folders, `train` and `test`. `root`: the
    folder that holds `MNIST/raw/`; else `$MNIST_ROOT`, else `data/`, both relative to the
    repository.

    With `download` what is missing or damaged is fetched, see `download.ensure`. Raises ValueError
    for an unknown name or a file that is damaged and cannot be fetched, FileNotFoundError if the
    data set is neither there nor to be downloaded, OSError for a file that cannot be read,
    TypeError for a name or seed that is none.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"load takes a data set's name or a folder, found {name!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TypeError(f"seed must be a whole number of at least 0, found {seed!r}.")
    name, root = str(name), Path(root or default_root())
    if name not in ("mnist", "auto"):
        from mnist_mlp import others  # here, since it needs this module, and time

        return others.load(name, root, download, seed)
    try:
        return _mnist(root, download, seed)
    except PermissionError as error:
        raise PermissionError(
            f"MNIST in {root} cannot be read: {error}. {remedy('MNIST')}"
        ) from error
    except FileNotFoundError as error:
        if name == "mnist":
            raise
        why = f"These are scikit-learn's 1,797 small digits, NOT MNIST. {error}"
        warnings.warn(why, stacklevel=2)
        return replace(load("digits", seed=seed), note=why)


def split(name: str, learn: ImageDataset, test: ImageDataset, seed: int) -> Splits:
    """Return the splits with a twelfth of what is there to learn from held out for validation."""
    train, validation = hold_out(learn.labels, every=12, seed=seed)
    return Splits(name, learn.subset(train), learn.subset(validation), test)


def _mnist(root: Path, download: bool, seed: int) -> Splits:
    files = ensure(root, "MNIST", _files, download)
    learn, test = (
        ImageDataset(images[16:].view(-1, 28, 28), labels[8:].long())  # behind the files' headers
        for images, labels in (files[:2], files[2:])
    )
    return split("mnist", learn, test, seed)


def _files(root: Path) -> list[torch.Tensor]:
    """Return the content of the four files. Raises as `_read`, and FileNotFoundError."""
    raw = root / "MNIST" / "raw"
    if missing := [name for name in MNIST_FILES if not (raw / name).is_file()]:
        raise FileNotFoundError(
            f"MNIST is not there: {raw} lacks {', '.join(missing)}. {remedy('MNIST')}"
        )
    return [_read(raw / name, *expected) for name, expected in MNIST_FILES.items()]


def _read(path: Path, size: int, sha256: str) -> torch.Tensor:
    """Return a file's bytes, uint8 of shape (size,), once verified.

    Raises ValueError for another size or digest, OSError if it is not readable.
    """
    remedy = "Load with download=True to fetch it afresh, or copy it from a good source."
    found = path.stat().st_size
    if found != size:
        what = "truncated" if found < size else "not MNIST's"
        raise ValueError(f"{path} is {what}: {found:,} bytes, expected {size:,}. {remedy}")
    content = np.fromfile(path, np.uint8)
    digest = hashlib.sha256(content.data).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path} is altered or another data set's: its SHA-256 begins {digest[:12]}, "
            f"expected {sha256[:12]}. {remedy}"
        )
    return torch.from_numpy(content)
