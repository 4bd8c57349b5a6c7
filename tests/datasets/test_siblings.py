"""Other data sets than MNIST: torchvision's siblings, and a folder of pictures."""

import bz2
import hashlib

import numpy as np
import pytest
import torch
from helpers import fit_with, idx, shapes
from torchvision.datasets import USPS

from mnist_mlp.datasets import load
from mnist_mlp.datasets.siblings import SIBLINGS
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.notebook import banner


def write_siblings(root, monkeypatch) -> dict[str, np.ndarray]:
    """Write each sibling in its true format; return the test images as they should be read."""
    random, expected = np.random.default_rng(0), {}

    def part(count):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        return images, (np.arange(count) % 10).astype(np.uint8)

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    for train, prefix, count in ((True, "train", 240), (False, "t10k", 50)):
        for name, folder in (("fashion", "FashionMNIST"), ("kmnist", "KMNIST")):
            images, labels = part(count)
            write(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", idx(images))
            write(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", idx(labels))
            expected[name] = images
        prefix = "train" if train else "test"
        images, labels = part(count)
        raw = root / "QMNIST" / "raw" / f"qmnist-{prefix}"
        write(raw.with_name(f"{raw.name}-images-idx3-ubyte"), idx(images))
        about = np.zeros((count, 8), ">i4")  # the class, then who wrote it, where it is from, ...
        about[:, 0], about[:, 1:] = labels, 77
        header = b"\0\0\x0c\2" + np.array(about.shape, ">u4").tobytes()  # 12: four-byte integers
        write(raw.with_name(f"{raw.name}-labels-idx2-int"), header + about.tobytes())
        expected["qmnist"] = images
        images, labels = part(count)
        raw = root / "EMNIST" / "raw" / f"emnist-digits-{prefix}"
        write(raw.with_name(f"{raw.name}-images-idx3-ubyte"), idx(images.transpose(0, 2, 1)))
        write(raw.with_name(f"{raw.name}-labels-idx1-ubyte"), idx(labels))
        expected["emnist-digits"] = images
        ink = random.integers(0, 256, (count, 256)) / 255 * 2 - 1
        lines = (
            f"{label + 1} " + " ".join(f"{i + 1}:{v:.4f}" for i, v in enumerate(row))
            for label, row in zip(labels, ink, strict=True)
        )
        write(
            root / ("usps.bz2" if train else "usps.t.bz2"), bz2.compress("\n".join(lines).encode())
        )
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in root.glob("*.bz2")}
    listed = {k: [url, name, md5[name]] for k, (url, name, _) in USPS.split_list.items()}
    monkeypatch.setattr(USPS, "split_list", listed)
    return expected


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_in_its_true_format_is_read(name, tmp_path, monkeypatch):
    expected = write_siblings(tmp_path, monkeypatch)
    splits = load(name, tmp_path, download=False)
    assert (splits.name, splits.note) == (name, "")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [220, 20, 50]
    assert splits.test.labels.tolist() == [i % 10 for i in range(50)]
    if name != "usps":  # 16x16: it has to be made larger
        assert np.array_equal(splits.test.images, expected[name])
    first = {"fashion": "T-shirt/top", "kmnist": "o"}.get(name, "0")
    assert splits.test.classes[0] == first
    assert f"<code>{name}</code>" in banner(splits)
    assert "NOT MNIST" in banner(splits)


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_that_is_missing_or_truncated_is_named(name, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=SIBLINGS[name][0]):
        load(name, tmp_path, download=False)
    write_siblings(tmp_path, monkeypatch)
    folder = tmp_path if name == "usps" else tmp_path / SIBLINGS[name][0] / "raw"
    for path in folder.glob("*train-images*" if name != "usps" else "usps.bz2"):
        path.write_bytes(path.read_bytes()[:-100])
    why = r"usps\.bz2 has not the MD5" if name == "usps" else ""  # compressed: not even opened
    with pytest.raises(ValueError, match=f"{SIBLINGS[name][0]} in .* is damaged .*{why}"):
        load(name, tmp_path, download=False)


def test_a_folder_of_class_folders_is_trained_on_with_its_own_classes(tmp_path):
    splits = load(str(shapes(tmp_path / "mnist")), download=False)
    assert splits.name == "folder-mnist"  # never taken for MNIST itself
    assert splits.train.classes == ("crosses", "rings", "élan vital")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [52, 5, 15]
    torch.manual_seed(0)
    model = EnhancedNet(len(splits.train.classes))
    recipe = {"epochs": 30, "batch_size": 26, "learning_rate": 0.002, "augment_strength": 0.5}
    fit_with(model, splits.train, splits.validation, **recipe)
    test = evaluate(model, splits.test)
    assert test.accuracy > 0.9
    assert "élan vital" in test.report()
    assert test.confusion.shape == (3, 3)


def test_a_folder_of_some_digits_has_the_classes_of_all_ten(tmp_path):
    splits = load(str(shapes(tmp_path / "hand", classes=("1", "7"))))
    assert splits.test.classes == tuple("0123456789")
    assert set(splits.train.labels.tolist()) == {1, 7}


def test_a_folder_that_cannot_be_trained_on_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'nowhere'.*path of a folder"):
        load("nowhere")
    (tmp_path / "one" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="two classes or more, found 1"):
        load(str(tmp_path / "one"))
    folder = shapes(tmp_path / "some")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds 0 pictures"):
        load(str(folder))
    (folder / "empty").rmdir()
    (folder / "rings" / "notes.txt").write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.txt.*is not a picture"):
        load(str(folder))
