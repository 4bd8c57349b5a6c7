"""Data sets other than MNIST: small digits, torchvision's siblings, a person's own folder."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from mnist_mlp.data import ImageDataset, Splits, hold_out, split
from mnist_mlp.download import ensure, remedy
from mnist_mlp.images import centre, to_mnist

# The class of torchvision's that reads each, and its arguments.
SIBLINGS = {
    "fashion": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "qmnist": ("QMNIST", {}),
    "emnist-digits": ("EMNIST", {"split": "digits"}),
    "usps": ("USPS", {}),
}
# What its readers raise on bytes that are not theirs.
UNREADABLE = (OSError, RuntimeError, ValueError, AssertionError, EOFError, LookupError)


def load(name: str, root: Path, download: bool, seed: int) -> Splits:
    """Return the splits of a data set; arguments and errors as of `data.load`."""
    if name == "digits":
        return digits(seed)
    if name in SIBLINGS:
        return sibling(name, root, download, seed)
    if Path(name).is_dir():
        return folder(Path(name), seed)
    known = ", ".join(map(repr, ("mnist", "digits", "auto", *SIBLINGS)))
    raise ValueError(f"unknown data set {name!r}: expected {known} or the path of a folder.")


def digits(seed: int) -> Splits:
    """Return scikit-learn's 8x8 digits as 28x28 images: 1,317 / 120 / 360."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.stack([centre(torch.tensor(image)) for image in found.images / 16])
    everything = ImageDataset(images, torch.tensor(found.target, dtype=torch.int64))
    learn, test = hold_out(everything.labels, every=5, seed=seed)
    return split("digits", everything.subset(learn), everything.subset(test), seed)


def sibling(name: str, root: Path, download: bool, seed: int) -> Splits:
    """Return one of torchvision's data sets that are like MNIST."""
    kind, arguments = SIBLINGS[name]
    learn, test = (
        _sibling_part(root, kind, download=download, train=train, **arguments)
        for train in (True, False)
    )
    return split(name, learn, test, seed)


def _sibling_part(root: Path, kind: str, download: bool, **arguments) -> ImageDataset:
    def read(root: Path):
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        try:
            if kind == "USPS":  # packed: verified before it takes memory
                _, name, md5 = datasets.USPS.split_list["train" if arguments["train"] else "test"]
                if (root / name).exists() and not check_integrity(root / name, md5):
                    raise ValueError(f"{name} has not the MD5 {md5}")
            return getattr(datasets, kind)(root, download=False, **arguments)
        except UNREADABLE as error:
            if not any(root.glob("usps*.bz2" if kind == "USPS" else f"{kind}/raw/*")):
                raise FileNotFoundError(
                    f"{kind} is not in {root}: {error} {remedy(kind)}"
                ) from error
            raise ValueError(f"{kind} in {root} is damaged ({error}).") from error

    part = ensure(root, kind, read, download, **arguments)
    images = torch.as_tensor(part.data)
    if kind == "USPS":  # 16x16
        images = torch.stack([centre(image / 255) for image in images])
    if kind == "EMNIST":  # its files hold each image with rows and columns exchanged
        images = images.transpose(1, 2).contiguous()
    labels = torch.as_tensor(part.targets, dtype=torch.int64)
    if kind == "QMNIST":  # after the class: who wrote it, where it is from, ...
        labels = labels[:, 0]
    named = kind in ("FashionMNIST", "KMNIST")
    return ImageDataset(images, labels, tuple(part.classes) if named else ImageDataset.classes)


def folder(path: Path, seed: int) -> Splits:
    """Return a person's own pictures: a sub-folder for each class, named like it.

    If these are named by digits the classes are all ten, so that a network that knows these fits.
    The folder may also hold two such folders, `train` and `test`, and no other.
    """
    # Never just "mnist": by that name the published weights and figures are known.
    name = f"folder-{path.resolve().name}"
    if {part.name for part in _folders(path)} == {"train", "test"} and _folders(path / "train"):
        learn, test = (_pictures(path / part, at_least=2) for part in ("train", "test"))
        if learn.classes != test.classes:
            found = f"{' '.join(learn.classes)} in train, {' '.join(test.classes)} in test"
            raise ValueError(f"{path} must hold the same classes twice, found {found}.")
        return split(name, learn, test, seed)
    everything = _pictures(path, at_least=3)
    rows, held_out = hold_out(everything.labels, every=5, seed=seed)
    return split(name, everything.subset(rows), everything.subset(held_out), seed)


def _folders(path: Path) -> list[Path]:
    return sorted(part for part in path.iterdir() if part.is_dir() and part.name[0] != ".")


def _pictures(path: Path, at_least: int) -> ImageDataset:
    """Return the pictures in a folder of class folders, each of which holds `at_least` so many."""
    parts = _folders(path)
    if len(parts) < 2:
        expected = "must hold a folder for each of two classes or more"
        raise ValueError(f"{path} {expected}, found {len(parts)}.")
    files = [sorted(file for file in part.iterdir() if file.name[0] != ".") for part in parts]
    for part, of_part in zip(parts, files, strict=True):
        for inner in _folders(part):
            raise ValueError(f"{inner} is a folder: {part} must hold the pictures of one class.")
        if len(of_part) < at_least:
            expected = "expected three or more: to learn from, to validate and to test"
            expected = expected if at_least == 3 else f"expected {at_least} or more"
            raise ValueError(f"{part} holds {len(of_part)} pictures, {expected}.")
    names = tuple(part.name for part in parts)
    classes = ImageDataset.classes if set(names) <= set(ImageDataset.classes) else names
    pictures = [
        (file, classes.index(part.name))
        for part, of_part in zip(parts, files, strict=True)
        for file in of_part
    ]
    images = []
    quiet = len(pictures) < 500
    for file, _ in tqdm(pictures, "Pictures", unit="picture", file=sys.stdout, disable=quiet):
        try:
            images.append(to_mnist(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    labels = torch.tensor([label for _, label in pictures])
    return ImageDataset(torch.stack(images), labels, classes)
