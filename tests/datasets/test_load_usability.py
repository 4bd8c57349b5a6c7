"""What somebody meets who tries out `load`: each error is a sentence with its remedy."""

import socket

import pytest
from helpers import shapes
from torchvision.datasets import FashionMNIST

from mnist_mlp import load
from mnist_mlp.datasets import download


def test_arguments_that_load_cannot_take_are_one_sentence():
    with pytest.raises(TypeError, match="the name of a data set or a folder, found 5"):
        load(5)
    for seed in ("a", 1.5, -1, True):
        with pytest.raises(TypeError, match=f"seed must be a whole number .*, found {seed!r}"):
            load("digits", seed=seed)


def test_a_folder_with_train_and_test_is_read_as_training_and_test_images(tmp_path):
    shapes(tmp_path / "marks" / "train")
    shapes(tmp_path / "marks" / "test", count=5)
    splits = load(tmp_path / "marks")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [66, 6, 15]
    assert splits.train.classes == ("crosses", "rings", "élan vital")
    (tmp_path / "marks" / "test" / "rings").rename(tmp_path / "marks" / "test" / "squares")
    with pytest.raises(ValueError, match="must hold the same classes twice, found crosses rings"):
        load(tmp_path / "marks")


def test_a_folder_inside_a_class_folder_is_named(tmp_path):
    folder = shapes(tmp_path / "marks")
    (folder / "rings" / "more").mkdir()
    with pytest.raises(
        ValueError, match=r"more is a folder: .*rings must hold the pictures of one"
    ):
        load(folder)


def test_a_data_set_without_a_network_names_its_own_remedy_and_leaves_nothing(
    tmp_path, monkeypatch
):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://no.such.host.invalid/"])
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FileNotFoundError, match=r"folder that holds FashionMNIST/raw/, connect"):
        load("fashion", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
