import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import ROOT
from torchvision.datasets import MNIST

from mnist_mlp import datasets
from mnist_mlp.data import stratified_split
from mnist_mlp.datasets import download, folder, load, siblings
from mnist_mlp.datasets import mnist as mnist_files

FILES = sorted(mnist_files.MNIST_FILES)


def test_the_parts_are_those_of_the_files_and_share_no_image(small_mnist):
    splits = load("mnist", small_mnist, download=False)
    parts = [
        {bytes(i) for i in p.images.numpy()} for p in (splits.train, splits.validation, splits.test)
    ]
    train_file, test_file = (
        {bytes(i) for i in MNIST(small_mnist, train=t).data.numpy()} for t in (True, False)
    )
    assert [len(part) for part in parts] == [660, 60, 130]
    assert parts[0] | parts[1] == train_file
    assert not parts[0] & parts[1]
    assert parts[2] == test_file
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.images[:, 0, 0].long(), part.labels)


def test_the_split_of_mnist_is_55000_5000_10000_and_stratified(mnist):
    assert [len(p) for p in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    train, validation = (torch.bincount(p.labels) for p in (mnist.train, mnist.validation))
    assert ((train + validation) / 12 - validation).abs().max() < 1
    assert (train + validation).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_the_split_depends_on_its_seed_alone(small_mnist):
    first, again, other = (load("mnist", small_mnist, seed=s).validation for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_digits_are_the_embedded_ones_made_the_mnist_way():
    from sklearn.datasets import load_digits

    splits = load("digits")
    parts = (splits.train, splits.validation, splits.test)
    assert splits.name == "digits"
    assert sum(len(part) for part in parts) == 1797
    labels = torch.cat([part.labels for part in parts])
    assert torch.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()
    images = torch.cat([part.images for part in parts]).double()
    at = torch.arange(28, dtype=torch.float64)
    for axis in (1, 2):
        mass = images.sum(3 - axis)
        centre = (mass * at).sum(1) / mass.sum(1)
        assert (centre - 13.5).abs().median() < 0.3
        inked = (mass > 0).sum(1)
        assert inked.max() <= 20
    longer = torch.maximum(*[(images.sum(d) > 0).sum(1) for d in (1, 2)])
    assert longer.float().mean() > 18  # blank borders of a stroke may round away


def test_root_is_the_argument_then_the_environment_then_data(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert load("mnist", download=False).name == "mnist"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("mnist", tmp_path / "nowhere", download=False)
    monkeypatch.delenv("MNIST_ROOT")
    monkeypatch.setattr(datasets, "repo_root", lambda: tmp_path)
    small_mnist.rename(tmp_path / "data")
    assert load("mnist", download=False).name == "mnist"
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("MNIST_ROOT", "elsewhere")  # relative: from the repository, whatever the cwd
    assert load("mnist", download=False).name == "mnist"


def test_a_missing_root_names_what_is_missing_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks train-images.*Set MNIST_ROOT"):
        load("mnist", tmp_path / "nowhere", download=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "one bit", "longer", "labels for images"])
def test_a_damaged_file_is_named_with_what_was_expected(small_mnist, monkeypatch, name, how):
    path = small_mnist / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[:-9])
    elif how == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:
        path.write_bytes(b"\0" * len(content))
    found = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{name} is .*expected.*Load with download=True"):
        load("mnist", small_mnist, download=False)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(download, "MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setattr(download, "BACKOFF", 0)
    with pytest.raises(ValueError, match=rf"{name} is .*could not be downloaded again \(.*refused"):
        load("auto", small_mnist)  # a damaged MNIST is no missing MNIST
    assert path.read_bytes() == found


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_each_real_file_is_found(mnist, tmp_path, name):
    root = os.environ.get("MNIST_ROOT") or ROOT / "data"
    shutil.copytree(root, tmp_path / "copy")
    path = tmp_path / "copy" / "MNIST" / "raw" / name
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is altered"):
        load("mnist", tmp_path / "copy", download=False)


def test_an_unreadable_folder_is_named(small_mnist, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("numpy.fromfile", refuse)  # root may read anything: permissions won't do
    with pytest.raises(
        PermissionError, match=r"cannot be read.*Permission denied.*holds MNIST/raw/, "
    ):
        load("auto", small_mnist)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown data set 'mnits': expected 'mnist'"):
        load("mnits")


def test_with_mnist_auto_is_mnist_and_silent(small_mnist):
    with warnings.catch_warnings(action="error"):
        splits = load("auto", small_mnist)
    assert (splits.name, splits.note) == ("mnist", "")


def test_loading_mnist_imports_no_torchvision(small_mnist):
    """Which takes longer to import than all the rest of this does. Nor what only figures need."""
    code = f"""
import sys
from mnist_mlp import train
from mnist_mlp.datasets import load, mnist
mnist.MNIST_FILES.update({mnist_files.MNIST_FILES!r})
assert len(load("mnist", {str(small_mnist)!r}, download=False).test) == 130
print({{"torchvision", "matplotlib", "sklearn", "scipy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_by_default_it_is_mnist_split_with_seed_0(small_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    monkeypatch.setattr(download, "_download", None)  # not needed
    splits = load()
    assert splits.name == "mnist"
    seed_0 = load("mnist", small_mnist, seed=0)
    assert torch.equal(splits.validation.images, seed_0.validation.images)


def test_auto_warns_at_the_line_that_called_it(tmp_path):
    with pytest.warns(UserWarning, match="NOT MNIST") as found:
        load("auto", tmp_path / "nowhere", download=False)
    assert found[0].filename == __file__


def test_auto_without_mnist_is_the_digits_of_the_same_seed(tmp_path):
    with pytest.warns(
        UserWarning, match=r"NOT MNIST\. MNIST is not there: .*lacks .*holds MNIST/raw/, "
    ) as found:
        splits = load("auto", tmp_path / "nowhere", download=False, seed=3)
    assert (splits.name, splits.note) == ("digits", str(found[0].message))
    expected = load("digits", seed=3)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, part).images, getattr(expected, part).images)


def test_other_data_sets_get_the_same_arguments(toy, tmp_path, monkeypatch):
    calls = []

    def called(*arguments):
        calls.append(arguments)
        return toy

    monkeypatch.setattr(siblings, "load_sibling", called)
    monkeypatch.setattr(siblings, "load_digits", called)
    monkeypatch.setattr(folder, "load_folder", called)
    found = [
        load("fashion", tmp_path),
        load("usps", str(tmp_path), download=False, seed=7),
        load("digits", seed=3),
        load(tmp_path, seed=5),
    ]
    assert calls == [
        ("fashion", tmp_path, True), ("usps", tmp_path, False), (3,), (tmp_path, 5),
    ]  # fmt: skip
    names = ["fashion", "usps", "digits", f"folder-{tmp_path.name}"]
    assert [splits.name for splits in found] == names
    for splits, seed in zip(found, (0, 7, 3, 5), strict=True):
        rest, held_out = stratified_split(toy[0].labels, every=12, seed=seed)
        assert torch.equal(splits.train.images, toy[0].images[rest])
        assert torch.equal(splits.validation.images, toy[0].images[held_out])
        assert splits.test is toy[1]


def test_what_is_wrong_with_a_file_is_said_in_full(small_mnist):
    path = small_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content, remedy = path.read_bytes(), "or copy it from a good source."
    for wrong, words in [
        (content[:-1], r"is truncated: 137 bytes, expected 138\. Load with download=True to fetch"),
        (content + b"0", r"is not MNIST's: 139 bytes, expected 138\. Load with download=True"),
        (content[:-1] + b"0", r"SHA-256 begins [0-9a-f]{12}, expected [0-9a-f]{12}\. Load with"),
    ]:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=words) as found:
            load("mnist", small_mnist, download=False)
        assert str(found.value).endswith(remedy)
    path.unlink()
    path.with_name("t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-images-idx3-ubyte, t10k-labels-idx1"):
        load("mnist", small_mnist, download=False)
