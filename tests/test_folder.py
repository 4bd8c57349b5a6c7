"""A folder with one folder of pictures per class becomes training, validation and test images."""

import shutil

import numpy as np
import pytest
import torch
from helpers import write_shapes
from PIL import Image

from mnist_lab.handwriting.folder import load_folder
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*test pictures are also training"),
    pytest.mark.filterwarnings("ignore:.*some digits seem to touch"),
]


def sizes(splits) -> list[int]:
    return [len(splits.train), len(splits.validation), len(splits.test)]


def write_ten_classes(folder, names):
    """Write three pictures of a mark into each of ten folders."""
    (shapes,) = write_shapes(folder.with_name("marks of " + folder.name), ("a",), 3).iterdir()
    for name in names:
        shutil.copytree(shapes, folder / name)
    return folder


def test_load_folder_classes_can_be_learned(tmp_path):
    folder = write_shapes(tmp_path / "mnist")
    (folder / ".git").mkdir()
    (folder / "rings" / ".DS_Store").write_bytes(b"")
    splits = load_folder(folder)
    torch.manual_seed(0)
    model = EnhancedNet(len(splits.train.classes))

    recipe = Recipe(precision="float32", epochs=30, batch_size=26, select="last epoch")
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


def test_load_folder_takes_heic_pictures(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()  # so that Pillow can save
    folder = write_shapes(tmp_path / "marks", count=3)
    expected = load_folder(folder).test.images
    for path in list(folder.glob("*/*")):
        Image.open(path).convert("RGB").save(path.with_suffix(".heic"), quality=95)
        path.unlink()

    images = load_folder(folder).test.images

    assert (images.int() - expected.int()).abs().float().mean() < 4


def test_load_folder_of_some_digits_has_all_ten_classes(tmp_path):
    splits = load_folder(write_shapes(tmp_path / "hand", classes=("1", "7"), count=5))

    assert splits.test.classes == tuple("0123456789")
    assert set(splits.train.labels.tolist()) == {1, 7}


def test_load_folder_sorts_numbers_as_numbers(tmp_path):
    numbers = write_shapes(tmp_path / "numbers", classes=("10", "9", "1"), count=3)
    weeks = write_shapes(tmp_path / "weeks", classes=("week 10", "week 9", "day 11"), count=3)

    assert load_folder(numbers).train.classes == ("1", "9", "10")
    assert load_folder(weeks).train.classes == ("day 11", "week 9", "week 10")


def test_evaluate_refuses_a_folder_whose_classes_are_not_the_digits(tmp_path):
    """Ten folders called 1 to 10, or by words, would be taken for the digits 0 to 9."""
    digits = EnhancedNet()
    digits.class_names = tuple("0123456789")
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    for names in ([*"123456789", "10"], words):
        marks = write_ten_classes(tmp_path / names[0], names)
        with pytest.raises(ValueError, match=r"0 1 2 .* and (1 2|eight five) "):
            evaluate(digits, load_folder(marks).test)

    as_digits = load_folder(write_ten_classes(tmp_path / "digits", "0123456789"))
    assert len(evaluate(digits, as_digits.test).labels) == 10


@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 4, 4), (5, 5, 5), (40, 3, 7)])
def test_load_folder_puts_each_class_in_each_of_the_three_sets(tmp_path, counts):
    folder = write_shapes(tmp_path / "marks", classes=("a", "b", "c"), count=max(counts))
    for name, count in zip("abc", counts, strict=True):
        for picture in sorted((folder / name).iterdir())[count:]:
            picture.unlink()

    for seed in (0, 1):
        splits = load_folder(folder, seed)
        parts = [splits.train, splits.validation, splits.test]
        per_class = torch.stack([part.labels.bincount(minlength=3) for part in parts])
        assert per_class.min() >= 1
        assert per_class.sum(0).tolist() == list(counts)


def test_load_folder_reads_train_and_test_folders(tmp_path):
    write_shapes(tmp_path / "marks" / "train", count=12)
    write_shapes(tmp_path / "marks" / "test", count=2)

    splits = load_folder(tmp_path / "marks")

    assert sizes(splits) == [33, 3, 6]
    assert splits.train.classes == ("crosses", "rings", "élan vital")


def test_load_folder_reads_train_and_val_folders_of_other_names(tmp_path):
    write_shapes(tmp_path / "marks" / "Train", count=4)
    write_shapes(tmp_path / "marks" / "valid", count=3)
    write_shapes(tmp_path / "marks" / "test", count=2)

    with pytest.warns(UserWarning, match="same file"):
        splits = load_folder(tmp_path / "marks")

    assert sizes(splits) == [12, 9, 6]


def test_load_folder_refuses_a_val_folder_without_test(tmp_path):
    write_shapes(tmp_path / "marks" / "train", count=2)
    write_shapes(tmp_path / "marks" / "val", count=2)

    with pytest.raises(ValueError, match="no folder `test`"):
        load_folder(tmp_path / "marks")


def test_load_folder_refuses_a_folder_beside_train_and_test(tmp_path):
    for name in ("train", "test", "extra"):
        write_shapes(tmp_path / "marks" / name, count=2)

    with pytest.raises(ValueError, match="no other may be beside them"):
        load_folder(tmp_path / "marks")


def test_load_folder_takes_both_forms_of_an_accent(tmp_path):
    """macOS writes an accent as a character of its own."""
    one = "\u00e9lan"
    two = "e\u0301lan"
    write_shapes(tmp_path / "marks" / "train", classes=("a", one), count=4)
    write_shapes(tmp_path / "marks" / "test", classes=("a", two), count=2)

    with pytest.warns(UserWarning, match="same file"):
        splits = load_folder(tmp_path / "marks")

    assert splits.test.classes == ("a", one)


def test_load_folder_warns_of_a_picture_in_training_and_test(tmp_path):
    folder = write_shapes(tmp_path / "marks", count=10)
    for i in range(10):
        shutil.copy(folder / "rings" / f"a picture {i}.png", folder / "rings" / f"copy {i}.png")

    with pytest.warns(UserWarning, match=r"of the 8 test pictures .*rings.* the same file as .*"):
        load_folder(folder)


def test_load_folder_warnings_name_a_file_and_the_number(tmp_path):
    folder = write_shapes(tmp_path / "marks", count=3)
    for name, width in (("low.png", 20), ("wide.png", 24)):
        grey = np.full((60, 60), 230, dtype=np.uint8)
        grey[30:34, 20 : 20 + width] = 40
        Image.fromarray(grey).save(folder / "rings" / name)

    with pytest.warns(UserWarning, match=r"rings.low\.png \(one of 2 .*: the digits are only 4"):
        load_folder(folder)


def test_load_folder_refuses_other_classes_in_test(tmp_path):
    write_shapes(tmp_path / "marks" / "train", count=2)
    write_shapes(tmp_path / "marks" / "test", classes=("crosses", "squares"), count=2)

    with pytest.raises(ValueError, match="squares in test"):
        load_folder(tmp_path / "marks")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("", ValueError, "empty"), ("none", FileNotFoundError, "none: check")],
)
def test_load_folder_refuses_a_name_without_a_folder(name, error, message):
    with pytest.raises(error, match=message):
        load_folder(name)


def test_load_folder_refuses_an_archive(tmp_path):
    archive = tmp_path / "marks.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(NotADirectoryError, match="unpack"):
        load_folder(archive)


def test_load_folder_refuses_pictures_beside_the_classes(tmp_path):
    folder = write_shapes(tmp_path / "marks", count=3)
    (folder / "notes.txt").write_text("no picture")
    load_folder(folder)

    (folder / "rings" / "a picture 0.png").rename(folder / "lost.PNG")
    with pytest.raises(ValueError, match=r"lost\.PNG"):
        load_folder(folder)


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
