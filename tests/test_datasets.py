"""MNIST from its files, scikit-learn's digits, and what `load` says to wrong arguments."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from mnist_mlp import datasets
from mnist_mlp.datasets import load

FILES = sorted(datasets.MNIST_FILES)


def as_set(images: torch.Tensor) -> set[bytes]:
    return {bytes(image) for image in images.numpy()}


def test_load_mnist_parts_are_the_files_and_disjoint(small_mnist):
    splits = load("mnist", small_mnist, download=False)
    train = as_set(splits.train.images)
    validation = as_set(splits.validation.images)

    assert (len(train), len(validation), len(splits.test)) == (660, 60, 130)
    assert train | validation == as_set(MNIST(small_mnist, train=True).data)
    assert not train & validation
    assert torch.equal(splits.test.images, MNIST(small_mnist, train=False).data)
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.images[:, 0, 0].long(), part.labels)


def test_load_mnist_split_is_55000_5000_10000_stratified(mnist):
    train = torch.bincount(mnist.train.labels)
    validation = torch.bincount(mnist.validation.labels)

    assert (int(train.sum()), int(validation.sum()), len(mnist.test)) == (55_000, 5_000, 10_000)
    assert ((train + validation) / 12 - validation).abs().max() < 1
    assert (train + validation).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_load_split_depends_on_seed_alone(small_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    default = load().validation
    seed_0 = load("mnist", small_mnist, seed=0).validation
    seed_1 = load("mnist", small_mnist, seed=1).validation

    assert torch.equal(default.images, seed_0.images)
    assert not torch.equal(seed_0.images, seed_1.images)


def test_load_digits_are_the_embedded_ones_placed_like_mnist():
    splits = load("digits")
    parts = (splits.train, splits.validation, splits.test)
    images = torch.cat([part.images for part in parts]).double()
    labels = torch.cat([part.labels for part in parts])

    assert splits.name == "digits"
    assert torch.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()

    positions = torch.arange(28, dtype=torch.float64)
    sides = []
    for axis in (1, 2):
        mass = images.sum(3 - axis)
        centre_of_mass = (mass * positions).sum(1) / mass.sum(1)
        assert (centre_of_mass - 13.5).abs().median() < 0.3
        sides.append((mass > 0).sum(1))
        assert sides[-1].max() <= 20
    assert torch.maximum(*sides).float().mean() > 18  # blank borders of a stroke may round away


def test_load_root_is_argument_then_environment_then_data(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert load("mnist", download=False).name == "mnist"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("mnist", tmp_path / "nowhere", download=False)

    monkeypatch.delenv("MNIST_ROOT")
    monkeypatch.setattr(datasets, "repo_root", lambda: tmp_path)
    small_mnist.rename(tmp_path / "data")
    assert load("mnist", download=False).name == "mnist"

    # A relative path begins at the repository, whatever the working directory is.
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("MNIST_ROOT", "elsewhere")
    assert load("mnist", download=False).name == "mnist"


@pytest.mark.parametrize("name", FILES)
def test_load_names_missing_file_and_remedy(small_mnist, name):
    (small_mnist / "MNIST" / "raw" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.*MNIST_ROOT"):
        load("mnist", small_mnist, download=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "one bit", "zeroed"])
def test_load_refuses_damaged_file(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-9:]
    elif damage == "longer":
        content += b"\0"
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    else:
        content = bytes(len(content))
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} is .*expected.*download=True"):
        load("mnist", small_mnist, download=False)
    with pytest.raises(ValueError, match=name):  # a damaged MNIST is no missing MNIST
        load("auto", small_mnist, download=False)


def test_load_names_unreadable_file(small_mnist, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("numpy.fromfile", refuse)  # no chmod: root may read anything
    with pytest.raises(PermissionError, match=r"Permission denied.*ubyte.*MNIST_ROOT"):
        load("auto", small_mnist)


def test_load_auto_is_silent_with_mnist(small_mnist):
    with warnings.catch_warnings(action="error"):
        splits = load("auto", small_mnist)
    assert (splits.name, splits.warning) == ("mnist", "")


def test_load_auto_falls_back_to_digits_loudly(tmp_path):
    with pytest.warns(UserWarning, match="NOT MNIST.*MNIST_ROOT") as caught:
        splits = load("auto", tmp_path / "nowhere", download=False, seed=3)

    assert caught[0].filename == __file__
    assert (splits.name, splits.warning) == ("digits", str(caught[0].message))
    expected = load("digits", seed=3)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, part).images, getattr(expected, part).images)


def test_load_unknown_name_lists_names_and_folder_reader(tmp_path):
    for name in ("mnits", str(tmp_path)):
        with pytest.raises(ValueError, match=r"unknown data set .*'mnist'.*'usps'.*load_folder"):
            load(name)


def test_load_refuses_arguments_of_wrong_type(tmp_path):
    for name in (5, None, tmp_path):
        with pytest.raises(TypeError, match=r"name of a data set.*load_folder"):
            load(name)
    for seed in ("a", 1.5, -1, True):
        with pytest.raises(TypeError, match=f"seed must be a whole number .*, found {seed!r}"):
            load("digits", seed=seed)


def test_import_leaves_out_torchvision():
    """It takes twice as long to import as torch."""
    code = "import sys, mnist_mlp; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
