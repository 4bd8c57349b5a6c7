"""MNIST's four files, each verified by its size and SHA-256."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from mnist_mlp.data import ImageDataset
from mnist_mlp.datasets.download import download_if_missing, remedy

# Size in bytes and SHA-256 of the extracted files. torchvision only checks that they exist.
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


def load_mnist(root: Path, download: bool) -> tuple[ImageDataset, ImageDataset]:
    """Return the 60,000 training and the 10,000 test images; errors as in `datasets.load`."""
    files = download_if_missing(root, "MNIST", _read_files, download)
    train, test = (
        ImageDataset(images[16:].view(-1, 28, 28), labels[8:].long())  # after the files' headers
        for images, labels in (files[:2], files[2:])
    )
    return train, test


def _read_files(root: Path) -> list[torch.Tensor]:
    raw = root / "MNIST" / "raw"
    if missing := [name for name in MNIST_FILES if not (raw / name).is_file()]:
        raise FileNotFoundError(
            f"MNIST is not there: {raw} lacks {', '.join(missing)}. {remedy('MNIST')}"
        )
    return [_read_verified(raw / name, *expected) for name, expected in MNIST_FILES.items()]


def _read_verified(path: Path, size: int, sha256: str) -> torch.Tensor:
    """Return a file's bytes, uint8 of shape (size,). Raises ValueError if they are others."""
    advice = "Load with download=True to fetch it again, or copy it from a good source."
    found = path.stat().st_size
    if found != size:
        problem = "truncated" if found < size else "not MNIST's"
        raise ValueError(f"{path} is {problem}: {found:,} bytes, expected {size:,}. {advice}")
    content = np.fromfile(path, np.uint8)
    digest = hashlib.sha256(content.data).hexdigest()
    if digest != sha256:
        raise ValueError(
            f"{path} is altered or of another data set: its SHA-256 begins {digest[:12]}, "
            f"expected {sha256[:12]}. {advice}"
        )
    return torch.from_numpy(content)
