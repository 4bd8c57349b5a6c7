"""A folder of pictures with one sub-folder per class."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from mnist_mlp.data import ImageDataset, stratified_split
from mnist_mlp.handwriting.preprocess import to_mnist


def load_folder(path: Path, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Return the pictures in a folder as training and test images, a fifth for the test.

    The class names are those of the sub-folders. If these are digits the classes are all ten
    digits, so that a network trained on MNIST fits. The folder may also hold only two such
    folders, named `train` and `test`.
    """
    if {part.name for part in _folders(path)} == {"train", "test"} and _folders(path / "train"):
        train, test = (_read_classes(path / part, at_least=2) for part in ("train", "test"))
        if train.classes != test.classes:
            found = f"{' '.join(train.classes)} in train, {' '.join(test.classes)} in test"
            raise ValueError(f"{path} must hold the same classes twice, found {found}.")
        return train, test
    everything = _read_classes(path, at_least=3)
    kept, held_out = stratified_split(everything.labels, every=5, seed=seed)
    return everything.subset(kept), everything.subset(held_out)


def _folders(path: Path) -> list[Path]:
    return sorted(part for part in path.iterdir() if part.is_dir() and part.name[0] != ".")


def _read_classes(path: Path, at_least: int) -> ImageDataset:
    """Return the pictures of all classes, each of which has `at_least` that many."""
    parts = _folders(path)
    if len(parts) < 2:
        expected = "must hold a folder for each of two classes or more"
        raise ValueError(f"{path} {expected}, found {len(parts)}.")
    names = tuple(part.name for part in parts)
    classes = ImageDataset.classes if set(names) <= set(ImageDataset.classes) else names
    pictures = []
    for part in parts:
        for inner in _folders(part):
            raise ValueError(f"{inner} is a folder: {part} must hold the pictures of one class.")
        files = sorted(file for file in part.iterdir() if file.name[0] != ".")
        if len(files) < at_least:
            uses = " (for training, validation and test)" if at_least == 3 else ""
            expected = f"expected at least {at_least}{uses}"
            raise ValueError(f"{part} holds {len(files)} pictures, {expected}.")
        pictures += [(file, classes.index(part.name)) for file in files]
    quiet = len(pictures) < 500
    bar = tqdm(pictures, "Pictures", unit="picture", file=sys.stdout, disable=quiet)
    images = torch.stack([to_mnist(file) for file, _ in bar])
    return ImageDataset(images, torch.tensor([label for _, label in pictures]), classes)
