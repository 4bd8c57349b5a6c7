"""A folder of pictures, with one folder per class, as a data set."""

import hashlib
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from mnist_lab.handwriting.pictures import HEIC_SUFFIXES
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, Splits, stratified_split

# One picture of each class for the training, one for the validation and one for the test set.
MINIMUM_PER_CLASS = 3

# What the folders of a data set that is split already may be called, in small letters.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def load_folder(path: str | Path, seed: int = 0) -> Splits:
    """Return the pictures in a folder as training, validation and test images.

    The folder holds one folder of pictures per class, named by the class. If all names are
    digits, the classes are all ten digits, so that a network trained on MNIST fits. Otherwise the
    classes have the order of their names, and numbers in names count as numbers: "2" comes before
    "10". A fifth of the pictures becomes the test set, and a twelfth of the rest the validation
    set. Each class has at least one picture in each of the three.

    The folder may instead hold two folders, `train` and `test`, each with one folder of pictures
    per class. A twelfth of `train` becomes the validation set, unless there is a third folder,
    `val`. `Train`, `training`, `valid`, `validation` and `testing` are understood, too.

    Args:
        path: The folder. The splits are named `folder-<name>`.
        seed: The seed of the two random splits.

    Raises:
        OSError: There is no such folder, or a file cannot be read.
        ValueError: The folders or their pictures cannot be used; the message says why.

    Warns if a picture seems to be read wrongly, or if the same file is in the test set and in the
    training or validation set.
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

    validation = None
    split_folders = _split_folders(path)
    if split_folders:
        train, train_files = _read_classes(split_folders["train"], minimum=2)
        test, test_files = _read_classes(split_folders["test"], minimum=1)
        if "validation" in split_folders:
            validation, validation_files = _read_classes(split_folders["validation"], minimum=1)
            train_files += validation_files
    else:
        everything, files = _read_classes(path, MINIMUM_PER_CLASS)
        kept, held_out = stratified_split(everything.labels, holdout_fraction=1 / 5, seed=seed)
        train = everything.subset(kept)
        test = everything.subset(held_out)
        train_files = [files[i] for i in kept]
        test_files = [files[i] for i in held_out]
    _warn_if_shared(train_files, test_files)

    if validation is None:
        kept, held_out = stratified_split(train.labels, holdout_fraction=1 / 12, seed=seed)
        validation = train.subset(held_out)
        train = train.subset(kept)

    # The prefix keeps a folder called mnist apart from MNIST's published results.
    return Splits(f"folder-{path.resolve().name}", train, validation, test)


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folders "train", "test" and perhaps "validation"; {} if there are only classes."""
    folders = {}
    for name, folder in _class_folders(path).items():
        split = SPLIT_FOLDERS.get(name.lower())
        if split is None or split in folders:
            return {}
        folders[split] = folder

    # If `train` holds no folders, these are classes that are called test and train.
    if "train" not in folders or not _class_folders(folders["train"]):
        return {}

    if "test" not in folders:
        raise ValueError(
            f"{path} holds a folder {folders['train'].name}, but no folder `test`: if there is a "
            "folder `val`, call it `test`. A twelfth of the training pictures is then used for "
            "validation."
        )

    train_names = list(_class_folders(folders["train"]))
    for folder in folders.values():
        names = list(_class_folders(folder))
        if names != train_names:
            raise ValueError(
                f"{path}: train and test must have the same classes, found "
                f"{' '.join(train_names)} in train, {' '.join(names)} in {folder.name}."
            )
    return folders


def _read_classes(path: Path, minimum: int) -> tuple[ImageDataset, list[Path]]:
    """Return the pictures of all classes, and their files.

    Each class must have at least `minimum` pictures.
    """
    folders = _class_folders(path)
    if len(folders) < 2:
        raise ValueError(
            f"{path} must hold two or more folders, one per class: {len(folders)} found."
        )

    # A picture that lies beside the folders has no class. Other files, such as notes, may be there.
    picture_suffixes = {*Image.registered_extensions(), *HEIC_SUFFIXES}
    for file in _visible(path):
        if file.is_file() and file.suffix.lower() in picture_suffixes:
            raise ValueError(
                f"{file} lies beside the folders of the classes: move it into one of them."
            )

    classes = tuple(folders)
    if set(classes) <= set(ImageDataset.classes):
        classes = ImageDataset.classes

    files: list[Path] = []
    labels = []
    for name, folder in folders.items():
        pictures = _pictures_in(folder)
        if len(pictures) < minimum:
            raise ValueError(
                f"{folder} holds {len(pictures)} pictures, expected at least {minimum} per class."
            )
        files += pictures
        labels += [classes.index(name)] * len(pictures)

    images = _read_pictures(files)
    return ImageDataset(images, torch.tensor(labels), classes), files


def _read_pictures(files: list[Path]) -> torch.Tensor:
    """Return the pictures, uint8 of shape (N, 28, 28); warn once of each doubt, with one file."""
    takes_seconds = len(files) >= 500
    progress = tqdm(files, "Pictures", unit="picture", file=sys.stdout, disable=not takes_seconds)
    images = []
    doubtful_files: dict[str, list[Path]] = {}
    for file in progress:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            images.append(to_mnist(file))
        for warning in caught:
            doubtful_files.setdefault(str(warning.message), []).append(file)

    for message, doubtful in doubtful_files.items():
        others = f" (one of {len(doubtful)} such pictures)" if len(doubtful) > 1 else ""
        warnings.warn(f"{doubtful[0]}{others}: {message}", stacklevel=4)
    return torch.stack(images)


def _warn_if_shared(train_files: list[Path], test_files: list[Path]) -> None:
    """Warn if test pictures are training pictures, too: files of the same bytes."""
    train_file_by_digest = {_sha256(file): file for file in train_files}
    shared = [file for file in test_files if _sha256(file) in train_file_by_digest]
    if shared:
        warnings.warn(
            f"{len(shared)} of the {len(test_files)} test pictures are also training or validation "
            f"pictures, so the test accuracy is too good: {shared[0]} is the same file as "
            f"{train_file_by_digest[_sha256(shared[0])]}. Remove one of the two.",
            stacklevel=3,
        )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _class_folders(path: Path) -> dict[str, Path]:
    """Return the folders in a folder by their names; numbers in names are sorted as numbers.

    macOS writes an accent as a character of its own. In the names here it is part of the letter.
    """
    folders = sorted(entry for entry in _visible(path) if entry.is_dir())
    folder_by_name: dict[str, Path] = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder.name)
        if name in folder_by_name:
            raise ValueError(f"{path} holds two folders that are called {name}: merge them.")
        folder_by_name[name] = folder
    # "01" and "1" are always in the same order.
    return {
        name: folder_by_name[name] for name in sorted(sorted(folder_by_name), key=_natural_order)
    }


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
            raise ValueError(
                f"{file} is a folder: {folder} must hold the pictures of one class. Only the "
                "folders train, val and test may hold folders, and no other may be beside them."
            )
    return files


def _visible(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, in no particular order, without hidden ones."""
    return [entry for entry in folder.iterdir() if entry.name[0] != "."]
