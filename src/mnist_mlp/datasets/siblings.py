"""Data sets like MNIST, normalised like it: torchvision's, and scikit-learn's small digits."""

from pathlib import Path

import torch

from mnist_mlp.data import ImageDataset, stratified_split
from mnist_mlp.datasets.download import download_if_missing, remedy
from mnist_mlp.handwriting.preprocess import centre

# torchvision's class for each data set, and its arguments.
SIBLINGS = {
    "fashion": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "qmnist": ("QMNIST", {}),
    "emnist-digits": ("EMNIST", {"split": "digits"}),
    "usps": ("USPS", {}),
}


def load_digits(seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Return scikit-learn's 8x8 digits as 28x28 images: 1,437 for training and 360 for the test."""
    from sklearn import datasets

    found = datasets.load_digits()
    images = torch.stack([centre(torch.tensor(image)) for image in found.images / 16])
    everything = ImageDataset(images, torch.tensor(found.target, dtype=torch.int64))
    kept, held_out = stratified_split(everything.labels, every=5, seed=seed)
    return everything.subset(kept), everything.subset(held_out)


def load_sibling(name: str, root: Path, download: bool) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and test images of one of torchvision's data sets."""
    kind, arguments = SIBLINGS[name]
    train = _load_part(root, kind, download, train=True, **arguments)
    return train, _load_part(root, kind, download, train=False, **arguments)


def _load_part(root: Path, kind: str, download: bool, **arguments) -> ImageDataset:
    def read(root: Path):
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        try:
            if kind == "USPS":  # compressed: verified before it takes memory
                _, name, md5 = datasets.USPS.split_list["train" if arguments["train"] else "test"]
                if (root / name).exists() and not check_integrity(root / name, md5):
                    raise ValueError(f"{name} has not the MD5 {md5}")
            return getattr(datasets, kind)(root, download=False, **arguments)
        except Exception as error:  # readers raise all kinds of errors on damaged files
            if not any(root.glob("usps*.bz2" if kind == "USPS" else f"{kind}/raw/*")):
                raise FileNotFoundError(
                    f"{kind} is not in {root}: {error} {remedy(kind)}"
                ) from error
            raise ValueError(f"{kind} in {root} is damaged ({error}).") from error

    part = download_if_missing(root, kind, read, download, **arguments)
    images = torch.as_tensor(part.data)
    if kind == "USPS":  # 16x16
        images = torch.stack([centre(image / 255) for image in images])
    if kind == "EMNIST":  # its files hold each image transposed
        images = images.transpose(1, 2).contiguous()
    labels = torch.as_tensor(part.targets, dtype=torch.int64)
    if kind == "QMNIST":  # further columns: the writer, the source, ...
        labels = labels[:, 0]
    named = kind in ("FashionMNIST", "KMNIST")
    return ImageDataset(images, labels, tuple(part.classes) if named else ImageDataset.classes)
