"""`load`: MNIST, data sets like it, scikit-learn's digits and folders of pictures, as splits."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from mnist_mlp.data import ImageDataset, Splits, stratified_split
from mnist_mlp.datasets import mnist
from mnist_mlp.datasets.download import remedy
from mnist_mlp.storage.files import repo_root


def default_root() -> Path:
    """Return `$MNIST_ROOT`, else `data/`, both relative to the repository."""
    return repo_root() / Path(os.environ.get("MNIST_ROOT") or "data").expanduser()


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
    data sets "fashion", "kmnist", "qmnist", "emnist-digits" and "usps"; or the path of a folder
    with one folder of pictures per class, or with two such folders named `train` and `test`.
    `root`: the folder that holds `MNIST/raw/`, by default `$MNIST_ROOT`, else `data/`.

    With `download`, missing or damaged files are fetched. Raises ValueError for an unknown name or
    a damaged file that cannot be fetched, FileNotFoundError if the data set is neither there nor
    can be downloaded, OSError for an unreadable file, TypeError for an invalid name or seed.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"load takes the name of a data set or a folder, found {name!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise TypeError(f"seed must be a whole number of at least 0, found {seed!r}.")
    name, root = str(name), Path(root or default_root()).expanduser()
    if name not in ("mnist", "auto"):
        return _split(_load_parts(name, root, download, seed), seed)
    try:
        return _split(("mnist", *mnist.load_mnist(root, download)), seed)
    except PermissionError as error:
        raise PermissionError(
            f"MNIST in {root} cannot be read: {error}. {remedy('MNIST')}"
        ) from error
    except FileNotFoundError as error:
        if name == "mnist":
            raise
        note = f"These are scikit-learn's 1,797 small digits, NOT MNIST. {error}"
        warnings.warn(note, stacklevel=2)
        return replace(load("digits", seed=seed), note=note)


def _load_parts(
    name: str, root: Path, download: bool, seed: int
) -> tuple[str, ImageDataset, ImageDataset]:
    """Return the name and the training and test images of any data set but MNIST."""
    from mnist_mlp.datasets import folder, siblings  # here, because they take time to import

    if name == "digits":
        return name, *siblings.load_digits(seed)
    if name in siblings.SIBLINGS:
        return name, *siblings.load_sibling(name, root, download)
    if Path(name).is_dir():  # never just "mnist": that name stands for the published results
        return f"folder-{Path(name).resolve().name}", *folder.load_folder(Path(name), seed)
    known = ", ".join(map(repr, ("mnist", "digits", "auto", *siblings.SIBLINGS)))
    raise ValueError(f"unknown data set {name!r}: expected {known} or the path of a folder.")


def _split(parts: tuple[str, ImageDataset, ImageDataset], seed: int) -> Splits:
    """Return the splits, with a twelfth of the training images held out for validation."""
    name, train, test = parts
    kept, held_out = stratified_split(train.labels, every=12, seed=seed)
    return Splits(name, train.subset(kept), train.subset(held_out), test)
