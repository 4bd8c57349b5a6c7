"""A folder of pictures, with one folder for each class, as a data set."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, Splits, stratified_split


def load_folder(path: str | Path, seed: int = 0) -> Splits:
    """Return the pictures in a folder as training, validation and test images.

    The folder holds one folder of pictures for each class; the names of these folders are the
    names of the classes. If all of them are digits, the classes are all ten digits, so that a
    network trained on MNIST fits. A fifth of the pictures is held out for the test, and a
    twelfth of the rest for validation.

    The folder may also hold just two folders, named `train` and `test`, each with one folder of
    pictures for each class.

    Args:
        path: The folder. The name of the splits is "folder-" and the name of this folder.
        seed: The seed of the two random choices.

    Raises:
        OSError: There is no such folder, or a file cannot be read.
        ValueError: The folders or the pictures in them cannot be used; the message says why.
    """
    path = Path(path)
    names = [folder.name for folder in _folders_in(path)]

    if names == ["test", "train"] and _folders_in(path / "train"):
        train = _read_classes(path / "train", minimum=2)
        test = _read_classes(path / "test", minimum=2)
        if train.classes != test.classes:
            raise ValueError(
                f"{path} must hold the same classes twice, found "
                f"{' '.join(train.classes)} in train, {' '.join(test.classes)} in test."
            )
    else:
        everything = _read_classes(path, minimum=3)
        kept, held_out = stratified_split(everything.labels, holdout_fraction=1 / 5, seed=seed)
        train = everything.subset(kept)
        test = everything.subset(held_out)

    kept, held_out = stratified_split(train.labels, holdout_fraction=1 / 12, seed=seed)
    name = f"folder-{path.resolve().name}"  # never just "mnist", which the published results have
    return Splits(name, train.subset(kept), train.subset(held_out), test)


def _read_classes(path: Path, minimum: int) -> ImageDataset:
    """Return the pictures of all classes, of which each has at least `minimum` pictures."""
    folders = _folders_in(path)
    if len(folders) < 2:
        raise ValueError(
            f"{path} must hold a folder for each of two classes or more, found {len(folders)}."
        )

    names = tuple(folder.name for folder in folders)
    classes = names
    if set(names) <= set(ImageDataset.classes):
        classes = ImageDataset.classes

    files = []
    labels = []
    for folder in folders:
        pictures = _pictures_in(folder)
        if len(pictures) < minimum:
            purpose = " (for training, validation and test)" if minimum == 3 else ""
            raise ValueError(
                f"{folder} holds {len(pictures)} pictures, expected at least {minimum}{purpose}."
            )
        files += pictures
        labels += [classes.index(folder.name)] * len(pictures)

    progress = tqdm(files, "Pictures", unit="picture", file=sys.stdout, disable=len(files) < 500)
    images = torch.stack([to_mnist(file) for file in progress])
    return ImageDataset(images, torch.tensor(labels), classes)


def _folders_in(path: Path) -> list[Path]:
    """Return the folders in a folder, in the order of their names, but not hidden ones."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")


def _pictures_in(folder: Path) -> list[Path]:
    """Return the files in the folder of one class, in the order of their names."""
    for inner in _folders_in(folder):
        raise ValueError(f"{inner} is a folder: {folder} must hold the pictures of one class.")
    return sorted(file for file in folder.iterdir() if file.name[0] != ".")
