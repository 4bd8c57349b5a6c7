"""A folder of pictures as a data set."""

import pytest
import torch
from helpers import fit_with, shapes

from mnist_lab.handwriting.folder import load_folder
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet


def sizes(splits) -> list[int]:
    return [len(splits.train), len(splits.validation), len(splits.test)]


def test_load_folder_classes_can_be_learned(tmp_path):
    splits = load_folder(shapes(tmp_path / "mnist"))
    assert splits.name == "folder-mnist"  # never taken for MNIST itself
    assert splits.train.classes == ("crosses", "rings", "élan vital")
    assert sizes(splits) == [52, 5, 15]

    torch.manual_seed(0)
    model = EnhancedNet(len(splits.train.classes))
    fit_with(model, splits.train, splits.validation, epochs=30, batch_size=26)
    assert evaluate(model, splits.test).accuracy > 0.9


def test_load_folder_split_depends_on_seed_alone(tmp_path):
    folder = shapes(tmp_path / "marks")
    seed_0 = load_folder(str(folder)).test
    again = load_folder(folder, seed=0).test
    seed_1 = load_folder(folder, seed=1).test

    assert torch.equal(seed_0.images, again.images)
    assert not torch.equal(seed_0.images, seed_1.images)


def test_load_folder_of_some_digits_has_all_ten_classes(tmp_path):
    splits = load_folder(shapes(tmp_path / "hand", classes=("1", "7")))
    assert splits.test.classes == tuple("0123456789")
    assert set(splits.train.labels.tolist()) == {1, 7}


def test_load_folder_reads_train_and_test_folders(tmp_path):
    shapes(tmp_path / "marks" / "train")
    shapes(tmp_path / "marks" / "test", count=5)
    splits = load_folder(tmp_path / "marks")
    assert sizes(splits) == [66, 6, 15]
    assert splits.train.classes == ("crosses", "rings", "élan vital")

    (tmp_path / "marks" / "test" / "rings").rename(tmp_path / "marks" / "test" / "squares")
    with pytest.raises(ValueError, match="the same classes twice, found crosses rings"):
        load_folder(tmp_path / "marks")


def test_load_folder_says_what_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_folder(tmp_path / "nowhere")

    (tmp_path / "one" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="two classes or more, found 1"):
        load_folder(tmp_path / "one")

    folder = shapes(tmp_path / "some")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds 0 pictures"):
        load_folder(folder)
    (folder / "empty").rmdir()

    (folder / "rings" / "more").mkdir()
    with pytest.raises(ValueError, match=r"more is a folder: .*rings must hold the pictures"):
        load_folder(folder)
    (folder / "rings" / "more").rmdir()

    (folder / "rings" / "notes.txt").write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.txt.*is not a picture"):
        load_folder(folder)
