"""`load` returns MNIST, data sets like it, or scikit-learn's small digits, split in three."""

import gzip
import hashlib
import io
import os
import warnings
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mnist_mlp.data import ImageDataset, Splits, stratified_split
from mnist_mlp.files import atomic_write, repo_root

# Size in bytes and SHA-256 of the extracted files.
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

# Servers that have these files, compressed, with .gz at the end of the name.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT_SECONDS = 10  # how long a server may be silent before the next one is tried

# The data sets that torchvision reads: its class, and the arguments.
TORCHVISION_DATASETS = {
    "fashion": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "qmnist": ("QMNIST", {}),
    "emnist-digits": ("EMNIST", {"split": "digits"}),
    "usps": ("USPS", {}),
}


def default_root() -> Path:
    """Return the folder of the data sets: `$MNIST_ROOT`, or `data/` if that is not set.

    A relative path is relative to the repository, or to the working directory if the package is
    installed.
    """
    folder = os.environ.get("MNIST_ROOT") or "data"
    return repo_root() / Path(folder).expanduser()


def missing_data_hint(class_name: str) -> str:
    """Return what the user can do if the files of one of torchvision's data sets are missing."""
    files = "usps.bz2 and usps.t.bz2" if class_name == "USPS" else f"{class_name}/raw/"
    return (
        f"Set MNIST_ROOT to the folder that holds {files}, connect to the network once, "
        "or use load('digits')."
    )


def load(
    name: str = "mnist",
    root: str | Path | None = None,
    download: bool = True,
    seed: int = 0,
) -> Splits:
    """Return the training, validation and test images of a data set.

    Args:
        name: "mnist" has 55,000 training, 5,000 validation and 10,000 test images.
            "digits" are the 1,797 small digits that come with scikit-learn: they need no network.
            "auto" is MNIST, or the small digits, with a warning, if MNIST is missing and cannot be
            downloaded.
            "fashion", "kmnist", "qmnist", "emnist-digits" and "usps" are read by torchvision.
        root: The folder that contains `MNIST/raw/`; by default `$MNIST_ROOT`, or `data/`.
        download: Whether to download files of MNIST that are missing or damaged, and missing files
            of the others.
        seed: Decides which images form the validation set: a twelfth of the training images, with
            the same proportion of each class. For "digits", also which images form the test set.

    Raises:
        TypeError: The name is not a string, or the seed not a whole number.
        ValueError: The name is unknown, or a file is damaged and cannot be downloaded again.
        FileNotFoundError: The data set is missing and cannot be downloaded.
        OSError: A file cannot be read.

    Example:
        >>> splits = load("mnist")
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (55000, 5000, 10000)
    """
    names = ", ".join(map(repr, ("mnist", "digits", "auto", *TORCHVISION_DATASETS)))
    expected = (
        f"expected {names}. For a folder of pictures use mnist_lab.handwriting.folder.load_folder"
    )
    if not isinstance(name, str):
        raise TypeError(f"load takes the name of a data set, found {name!r}: {expected}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TypeError(f"seed must be a whole number of at least 0, found {seed!r}.")

    if name == "auto":
        try:
            return load("mnist", root, download, seed)
        except FileNotFoundError as error:
            warning = f"These are scikit-learn's 1,797 small digits, NOT MNIST. {error}"
            warnings.warn(warning, stacklevel=2)
            return replace(load("digits", seed=seed), warning=warning)

    root = default_root() if root is None else Path(root).expanduser()
    if name == "mnist":
        train, test = load_mnist(root, download)
    elif name == "digits":
        train, test = _load_digits(seed)
    elif name in TORCHVISION_DATASETS:
        train, test = _load_torchvision(name, root, download)
    else:
        raise ValueError(f"unknown data set {name!r}: {expected}.")

    kept, held_out = stratified_split(train.labels, holdout_fraction=1 / 12, seed=seed)
    return Splits(name, train.subset(kept), train.subset(held_out), test)


def load_mnist(root: Path, download: bool) -> tuple[ImageDataset, ImageDataset]:
    """Return MNIST's 60,000 training and 10,000 test images, in the order of its files.

    Raises:
        ValueError, FileNotFoundError, OSError: As `load`.
    """
    raw = root / "MNIST" / "raw"
    train = _load_mnist_files(raw, "train", download)
    test = _load_mnist_files(raw, "t10k", download)
    return train, test


def _load_mnist_files(raw: Path, prefix: str, download: bool) -> ImageDataset:
    """Return the images and labels in two of MNIST's files."""
    image_file = _read_or_download(raw / f"{prefix}-images-idx3-ubyte", download)
    label_file = _read_or_download(raw / f"{prefix}-labels-idx1-ubyte", download)

    # The files begin with headers of 16 and 8 bytes.
    images = image_file[16:].view(-1, 28, 28)
    labels = label_file[8:].long()
    return ImageDataset(images, labels)


def _read_or_download(path: Path, download: bool) -> torch.Tensor:
    """Return the bytes of one of MNIST's files, after downloading it if that is necessary."""
    try:
        return _read_verified(path)
    except PermissionError as error:
        hint = missing_data_hint("MNIST")
        raise PermissionError(f"MNIST cannot be read: {error}. {hint}") from error
    except (FileNotFoundError, ValueError) as error:
        if not download:
            raise
        problem = error

    try:
        _download(path)
    except OSError as error:
        # The type of the first problem stays: the file is missing, or it is damaged.
        raise type(problem)(f"{problem} The download failed ({error}).") from error
    return _read_verified(path)


def _read_verified(path: Path) -> torch.Tensor:
    """Return the bytes of one of MNIST's files, uint8 of shape (size,).

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is truncated, altered, or from another data set.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"MNIST is missing: {path.parent} has no {path.name}. {missing_data_hint('MNIST')}"
        )

    size, sha256 = MNIST_FILES[path.name]
    remedy = "Load with download=True to fetch it again, or copy it from a good source."

    actual_size = path.stat().st_size
    if actual_size != size:
        problem = "truncated" if actual_size < size else "not MNIST's"
        raise ValueError(f"{path} is {problem}: {actual_size:,} bytes, expected {size:,}. {remedy}")

    content = np.fromfile(path, np.uint8)
    actual_sha256 = hashlib.sha256(content.data).hexdigest()
    if actual_sha256 != sha256:
        raise ValueError(
            f"{path} is altered or from another data set: its SHA-256 begins with "
            f"{actual_sha256[:12]}, expected {sha256[:12]}. {remedy}"
        )
    return torch.from_numpy(content)


def _download(path: Path) -> None:
    """Download one of MNIST's files from the first mirror that has it.

    The file gets its name only after it is complete and verified. So an interrupted download
    leaves no damaged file, and downloads at the same time cannot mix.

    Raises:
        OSError: No mirror has the file, or it cannot be written.
    """
    import pooch  # here, because few calls download

    size, sha256 = MNIST_FILES[path.name]
    download_url = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS)
    problems = []

    for mirror in MIRRORS:
        archive = io.BytesIO()
        try:
            download_url(f"{mirror}{path.name}.gz", archive, None)
            archive.seek(0)
            # Read no more than the file should have, in case the server sent something huge.
            content = gzip.GzipFile(fileobj=archive).read(size + 1)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            problems.append(f"{mirror}: {error}")
            continue

        if hashlib.sha256(content).hexdigest() != sha256:
            problems.append(f"{mirror}: it sent another file")
            continue

        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        return

    raise OSError("; ".join(problems))


def _load_digits(seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Return scikit-learn's 8x8 digits as 28x28 images: 1,437 to train on and 360 to test on."""
    everything = _all_digits()
    kept, held_out = stratified_split(everything.labels, holdout_fraction=1 / 5, seed=seed)
    return everything.subset(kept), everything.subset(held_out)  # copies


@cache  # to scale and place the images takes longer than a short training on them
def _all_digits() -> ImageDataset:
    from sklearn import datasets  # here, because it takes time to import

    digits = datasets.load_digits()
    images = torch.stack([centre_digit(torch.tensor(image)) for image in digits.images / 16])
    return ImageDataset(images, torch.tensor(digits.target, dtype=torch.int64))


def _load_torchvision(name: str, root: Path, download: bool) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and the test images of one of torchvision's data sets."""
    class_name, _ = TORCHVISION_DATASETS[name]

    try:
        train = _read_torchvision(name, root, download, train=True)
        test = _read_torchvision(name, root, download, train=False)
    except Exception as error:  # torchvision raises many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        files = "usps*.bz2" if class_name == "USPS" else f"{class_name}/raw/*ubyte"
        if any(root.glob(files)):
            raise ValueError(
                f"{class_name} in {root} is damaged or incomplete ({reason}). "
                f"Delete {root / files} and load it again with download=True."
            ) from error
        raise FileNotFoundError(
            f"{class_name} is not in {root} ({reason}). {missing_data_hint(class_name)}"
        ) from error

    return train, test


def _read_torchvision(name: str, root: Path, download: bool, train: bool) -> ImageDataset:
    """Return the training or the test images of one of torchvision's data sets."""
    import torchvision  # here, because it takes time to import

    class_name, arguments = TORCHVISION_DATASETS[name]
    dataset_class = getattr(torchvision.datasets, class_name)
    dataset = dataset_class(root, train=train, download=download, **arguments)
    images = torch.as_tensor(dataset.data)
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)

    if name == "usps":  # its images have 16x16 pixels
        images = torch.stack([centre_digit(image / 255) for image in images])
    if name == "emnist-digits":  # its files hold each image transposed
        images = images.transpose(1, 2).contiguous()
    if name == "qmnist":  # its labels have further columns: the writer, the source, ...
        labels = labels[:, 0]

    if name in ("fashion", "kmnist"):
        return ImageDataset(images, labels, tuple(dataset.classes))
    return ImageDataset(images, labels)


def centre_digit(digit: torch.Tensor) -> torch.Tensor:
    """Return a digit of any size, scaled and placed as in MNIST: uint8 of shape (28, 28).

    The bounding box of the ink is scaled to fit into 20x20 pixels. The centre of mass of the ink is
    then the centre of the image.

    Args:
        digit: float of shape (H, W), from 0 (background) to 1 (ink). It must have some ink.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
    """
    rows, columns = (digit > 0).nonzero().T
    box = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    size = [max(1, round(20 * side / max(box.shape))) for side in box.shape]
    small = F.interpolate(box[None, None], size, mode="bilinear", antialias=True)[0, 0]

    height, width = size
    top = _offset_to_centre(small.sum(dim=1))
    left = _offset_to_centre(small.sum(dim=0))
    image = torch.zeros(28, 28)
    image[top : top + height, left : left + width] = small
    return (image * 255).round().to(torch.uint8)


def _offset_to_centre(mass: torch.Tensor) -> int:
    """Return where rows or columns with these masses begin, so that their centre is at 13.5."""
    centre_of_mass = float((mass * torch.arange(len(mass))).sum() / mass.sum())
    return min(max(round(13.5 - centre_of_mass), 0), 28 - len(mass))
