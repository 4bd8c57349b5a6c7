"""A folder of pictures, with one folder per class, as a data set."""

import re
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from mnist_lab.handwriting.pictures import HEIC_SUFFIXES
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, Splits, stratified_split

# One picture of each class for the training, one for the validation and one for the test set.
MINIMUM_PER_CLASS = 3


def load_folder(path: str | Path, seed: int = 0) -> Splits:
    """Return the pictures in a folder as training, validation and test images.

    The folder holds one folder of pictures per class, named by the class. If all names are
    digits, the classes are all ten digits, so that a network trained on MNIST fits. Otherwise the
    classes have the order of their names, and numbers in names count as numbers: "2" comes before
    "10". A fifth of the pictures becomes the test set, and a twelfth of the rest the validation
    set. Each class has at least one picture in each of the three.

    The folder may instead hold two folders, `train` and `test`, each with one folder of pictures
    per class. A twelfth of `train` becomes the validation set.

    Args:
        path: The folder. The splits are named `folder-<name>`.
        seed: The seed of the two random splits.

    Raises:
        OSError: There is no such folder, or a file cannot be read.
        ValueError: The folders or their pictures cannot be used; the message says why.
    """
    if not str(path):
        raise ValueError("load_folder takes the path of a folder, found an empty one.")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path.absolute()}: check its name.")
    if not path.is_dir():
        raise NotADirectoryError(
            f"{path} is a file, expected a folder with one folder of pictures per class: "
            "unpack it if it is an archive."
        )

    names = _class_names(path)

    # If `train` holds no folders, the two are classes called test and train.
    if names == ["test", "train"] and _class_names(path / "train"):
        train_names = _class_names(path / "train")
        test_names = _class_names(path / "test")
        if train_names != test_names:
            raise ValueError(
                f"{path}: train and test must have the same classes, found "
                f"{' '.join(train_names)} in train, {' '.join(test_names)} in test."
            )
        train = _read_classes(path / "train", minimum=2)
        test = _read_classes(path / "test", minimum=1)
    else:
        everything = _read_classes(path, MINIMUM_PER_CLASS)
        kept, held_out = stratified_split(everything.labels, holdout_fraction=1 / 5, seed=seed)
        train = everything.subset(kept)
        test = everything.subset(held_out)

    kept, held_out = stratified_split(train.labels, holdout_fraction=1 / 12, seed=seed)
    # The prefix keeps a folder called mnist apart from MNIST's published results.
    name = f"folder-{path.resolve().name}"
    return Splits(name, train.subset(kept), train.subset(held_out), test)


def _read_classes(path: Path, minimum: int) -> ImageDataset:
    """Return the pictures of all classes; each class must have at least `minimum` of them."""
    names = _class_names(path)
    if len(names) < 2:
        raise ValueError(
            f"{path} must hold two or more folders, one per class: {len(names)} found."
        )

    # A picture that lies beside the folders has no class. Other files, such as notes, may be there.
    picture_suffixes = {*Image.registered_extensions(), *HEIC_SUFFIXES}
    for file in _visible(path):
        if file.is_file() and file.suffix.lower() in picture_suffixes:
            raise ValueError(
                f"{file} lies beside the folders of the classes: move it into one of them."
            )

    classes = tuple(names)
    if set(classes) <= set(ImageDataset.classes):
        classes = ImageDataset.classes

    files = []
    labels = []
    for name in names:
        pictures = _pictures_in(path / name)
        if len(pictures) < minimum:
            raise ValueError(
                f"{path / name} holds {len(pictures)} pictures, "
                f"expected at least {minimum} per class."
            )
        files += pictures
        labels += [classes.index(name)] * len(pictures)

    takes_seconds = len(files) >= 500
    progress = tqdm(files, "Pictures", unit="picture", file=sys.stdout, disable=not takes_seconds)
    images = torch.stack([to_mnist(file) for file in progress])
    return ImageDataset(images, torch.tensor(labels), classes)


def _class_names(path: Path) -> list[str]:
    """Return the names of the folders in a folder; numbers in names are sorted as numbers."""
    names = [entry.name for entry in _visible(path) if entry.is_dir()]
    return sorted(sorted(names), key=_natural_order)  # "01" and "1" always in the same order


def _natural_order(name: str) -> list[str | int]:
    """Return the parts of a name, alternately text and a number, by which names are sorted."""
    parts: list[str | int] = []
    for part in re.split(r"(\d+)", name):
        parts.append(int(part) if part.isdecimal() else part)
    return parts


def _pictures_in(folder: Path) -> list[Path]:
    """Return the files in the folder of one class, sorted by name, without hidden ones."""
    files = sorted(_visible(folder))
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder: {folder} must hold the pictures of one class.")
    return files


def _visible(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, in no particular order, without hidden ones."""
    return [entry for entry in folder.iterdir() if entry.name[0] != "."]
