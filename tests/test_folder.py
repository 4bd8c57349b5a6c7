"""A folder with one folder of pictures per class becomes training, validation and test images."""

import pytest
import torch
from helpers import write_shapes

from mnist_lab.handwriting.folder import load_folder
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import fit


def sizes(splits) -> list[int]:
    return [len(splits.train), len(splits.validation), len(splits.test)]


def test_load_folder_classes_can_be_learned(tmp_path):
    folder = write_shapes(tmp_path / "mnist")
    (folder / ".git").mkdir()
    (folder / "rings" / ".DS_Store").write_bytes(b"")
    splits = load_folder(folder)
    torch.manual_seed(0)
    model = EnhancedNet(len(splits.train.classes))

    recipe = Recipe(precision="float32", epochs=30, batch_size=26)
    fit(model, splits.train, splits.validation, recipe, progress=False)

    assert splits.name == "folder-mnist"  # never taken for MNIST itself
    assert splits.train.classes == ("crosses", "rings", "élan vital")
    assert sizes(splits) == [52, 5, 15]
    assert evaluate(model, splits.test).accuracy > 0.9


def test_load_folder_split_depends_on_the_seed_alone(tmp_path):
    folder = write_shapes(tmp_path / "marks", count=10)

    test = load_folder(str(folder)).test
    again = load_folder(folder, seed=0).test
    other_seed = load_folder(folder, seed=1).test

    assert torch.equal(test.images, again.images)
    assert not torch.equal(test.images, other_seed.images)


def test_load_folder_of_some_digits_has_all_ten_classes(tmp_path):
    splits = load_folder(write_shapes(tmp_path / "hand", classes=("1", "7"), count=5))

    assert splits.test.classes == tuple("0123456789")
    assert set(splits.train.labels.tolist()) == {1, 7}


def test_load_folder_reads_train_and_test_folders(tmp_path):
    write_shapes(tmp_path / "marks" / "train", count=12)
    write_shapes(tmp_path / "marks" / "test", count=2)

    splits = load_folder(tmp_path / "marks")

    assert sizes(splits) == [33, 3, 6]
    assert splits.train.classes == ("crosses", "rings", "élan vital")


def test_load_folder_refuses_other_classes_in_test(tmp_path):
    write_shapes(tmp_path / "marks" / "train", count=2)
    write_shapes(tmp_path / "marks" / "test", classes=("crosses", "squares"), count=2)

    with pytest.raises(ValueError, match="squares in test"):
        load_folder(tmp_path / "marks")


@pytest.mark.parametrize(("classes", "message"), [(("a",), "1 found"), (("a", "b"), "2 pictures")])
def test_load_folder_refuses_too_few_classes_or_pictures(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        load_folder(write_shapes(tmp_path / "marks", classes, count=2))


def test_load_folder_refuses_what_is_not_a_picture(tmp_path):
    folder = write_shapes(tmp_path / "marks", count=3)
    notes = folder / "rings" / "notes.txt"
    notes.write_text("not a picture")

    with pytest.raises(ValueError, match=r"notes\.txt"):
        load_folder(folder)

    notes.unlink()
    (folder / "rings" / "inner").mkdir()
    with pytest.raises(ValueError, match="inner is a folder"):
        load_folder(folder)
