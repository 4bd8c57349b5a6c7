"""A folder of pictures, with one folder per class, as a data set."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, Splits, stratified_split


def load_folder(path: str | Path, seed: int = 0) -> Splits:
    """Return the pictures in a folder as training, validation and test images.

    The folder holds one folder of pictures per class, named by the class. If all names are
    digits, the classes are all ten digits, so that a network trained on MNIST fits. A fifth of
    the pictures becomes the test set, and a twelfth of the rest the validation set.

    The folder may instead hold two folders, `train` and `test`, each with one folder of pictures
    per class. A twelfth of `train` becomes the validation set.

    Args:
        path: The folder. The splits are named `folder-<name>`.
        seed: The seed of the two random splits.

    Raises:
        OSError: There is no such folder, or a file cannot be read.
        ValueError: The folders or their pictures cannot be used; the message says why.
    """
    path = Path(path)
    names = [folder.name for folder in _folders_in(path)]

    # If `train` holds no folders, the two are classes called test and train.
    if names == ["test", "train"] and _folders_in(path / "train"):
        train = _read_classes(path / "train", minimum=2)
        test = _read_classes(path / "test", minimum=2)
        if train.classes != test.classes:
            raise ValueError(
                f"{path}: train and test must have the same classes, found "
                f"{' '.join(train.classes)} in train, {' '.join(test.classes)} in test."
            )
    else:
        everything = _read_classes(path, minimum=3)  # one for each of the three splits
        kept, held_out = stratified_split(everything.labels, holdout_fraction=1 / 5, seed=seed)
        train = everything.subset(kept)
        test = everything.subset(held_out)

    kept, held_out = stratified_split(train.labels, holdout_fraction=1 / 12, seed=seed)
    # The prefix keeps a folder called mnist apart from MNIST's published results.
    name = f"folder-{path.resolve().name}"
    return Splits(name, train.subset(kept), train.subset(held_out), test)


def _read_classes(path: Path, minimum: int) -> ImageDataset:
    """Return the pictures of all classes; each class must have at least `minimum` of them."""
    folders = _folders_in(path)
    if len(folders) < 2:
        raise ValueError(
            f"{path} must hold two or more folders, one per class: {len(folders)} found."
        )

    classes = tuple(folder.name for folder in folders)
    if set(classes) <= set(ImageDataset.classes):
        classes = ImageDataset.classes

    files = []
    labels = []
    for folder in folders:
        pictures = _pictures_in(folder)
        if len(pictures) < minimum:
            raise ValueError(
                f"{folder} holds {len(pictures)} pictures, expected at least {minimum} per class."
            )
        files += pictures
        labels += [classes.index(folder.name)] * len(pictures)

    takes_seconds = len(files) >= 500
    progress = tqdm(files, "Pictures", unit="picture", file=sys.stdout, disable=not takes_seconds)
    images = torch.stack([to_mnist(file) for file in progress])
    return ImageDataset(images, torch.tensor(labels), classes)


def _folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")


def _pictures_in(folder: Path) -> list[Path]:
    """Return the files in the folder of one class, sorted by name, without hidden ones."""
    inner_folders = _folders_in(folder)
    if inner_folders:
        raise ValueError(
            f"{inner_folders[0]} is a folder: {folder} must hold the pictures of one class."
        )
    return sorted(file for file in folder.iterdir() if file.name[0] != ".")
