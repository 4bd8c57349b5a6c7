"""A person's own pictures: prepared, labelled by name, and sorted into folders by label."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_lab.handwriting.collection import Pictures
from mnist_lab.handwriting.folder import load_folder
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.styles import ONE_PERSON
from mnist_lab.handwriting.synthetic import write_samples


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures in a folder."""
    write_samples(tmp_path / "my pictures", each=1)
    return Pictures(tmp_path / "my pictures", tmp_path / "samples")


def test_write_samples_draws_different_photos_and_repeats_them(tmp_path):
    written = write_samples(tmp_path / "a b", each=2, seed=3)
    again = write_samples(tmp_path / "again", each=2, seed=3)

    assert sorted(digit for _, digit in written) == sorted([*ONE_PERSON] * 2)
    photos = [path.read_bytes() for path, _ in written]
    assert len(set(photos)) == 20
    assert [path.read_bytes() for path, _ in again] == photos
    grey = np.asarray(Image.open(written[0][0]))
    assert grey.shape == (320, 320)
    assert grey.min() < 120 < 180 < grey.max()


def test_pictures_are_the_visible_files_of_a_folder(tmp_path):
    folder = tmp_path / "my pictures"
    written = dict(write_samples(folder, each=1))
    (folder / ".hidden").write_text("not a picture")
    (folder / "inner").mkdir()

    pictures = Pictures(folder, tmp_path / "samples")

    assert pictures.paths == sorted(written)
    assert torch.equal(pictures.images[3], to_mnist(pictures.paths[3]))
    assert torch.equal(pictures.inputs, (pictures.images / 255 - 0.1307) / 0.3081)
    photo = np.asarray(Image.open(pictures.paths[2]).convert("L"))
    assert np.array_equal(pictures.photos([2])[0], photo)


def test_labels_are_corrections_or_predictions(pictures):
    sevens = torch.full((10,), 7)
    first, second = pictures.paths[0].name, pictures.paths[1].name

    assert pictures.labels(sevens, {}) == ["7"] * 10
    assert pictures.labels(sevens, {first: "4", second: 5}) == ["4", "5"] + ["7"] * 8


def test_labels_takes_both_forms_of_an_accent_in_a_name(pictures, tmp_path):
    """macOS writes an accent as a character of its own."""
    folder = tmp_path / "named"
    folder.mkdir()
    shutil.copy(pictures.paths[0], folder / "u\u0308ben.jpg")
    shutil.copy(pictures.paths[1], folder / "\u00fcber.jpg")
    named = Pictures(folder, tmp_path / "samples")

    labels = named.labels(torch.tensor([7, 7]), {"\u00fcben.jpg": 4, "u\u0308ber.jpg": 5})

    assert labels == ["4", "5"]


def test_labels_are_unknown_until_somebody_has_looked(pictures):
    labels = pictures.labels(torch.full((10,), 7), None)

    assert labels is None
    assert "corrections" in pictures.obstacle_to_training(labels)


def test_labels_of_samples_are_the_drawn_digits(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "my own.txt").write_text("not a sample")
    samples = Pictures("", tmp_path / "samples")

    labels = samples.labels(torch.zeros(200), None)

    assert labels == [samples.true_digits[path.name] for path in samples.paths]
    assert sorted(labels) == sorted([*ONE_PERSON] * 20)
    assert samples.obstacle_to_training(labels) == ""


@pytest.mark.parametrize(
    ("corrections", "error", "message"),
    [
        ({"IMG_1.png": "7"}, ValueError, "IMG_1"),
        ({"picture 001.jpg": "seven"}, ValueError, "seven"),
        ({"picture 001.jpg": 10}, ValueError, "10"),
        ({"picture 001.jpg": ""}, ValueError, "digit"),
        (["picture 001.jpg"], TypeError, "corrections"),
    ],
)
def test_labels_refuses_other_corrections(pictures, corrections, error, message):
    with pytest.raises(error, match=message):
        pictures.labels(torch.zeros(10), corrections)


@pytest.mark.parametrize("counts", [{"0": 3, "7": 3}, {"0": 3, "7": 2}, {"4": 10}])
def test_obstacle_to_training_says_what_load_folder_refuses(tmp_path, counts):
    digits = [digit for digit, count in counts.items() for _ in range(count)]
    samples = dict(write_samples(tmp_path / "drawn", each=1))
    own = tmp_path / "own"
    own.mkdir()
    for i, digit in enumerate(digits):
        path = next(path for path, written in samples.items() if written == digit)
        shutil.copy(path, own / f"{i}.jpg")
    pictures = Pictures(own, tmp_path / "samples")
    labels = pictures.labels(torch.tensor([int(digit) for digit in digits]), {})

    obstacle = pictures.obstacle_to_training(labels)

    folder = pictures.save_labelled(labels)
    if obstacle:
        assert min(counts, key=counts.get) in obstacle
        with pytest.raises(ValueError, match=folder.name):
            load_folder(folder)
    else:
        assert len(load_folder(folder).test) == 2


def test_pictures_refuses_the_folder_that_save_labelled_deletes(pictures, tmp_path):
    labelled = pictures.save_labelled(["4"] * 10)

    with pytest.raises(ValueError, match="save_labelled"):
        Pictures(labelled / "4", tmp_path / "samples")


def test_save_labelled_removes_copies_with_earlier_labels(pictures):
    labelled = pictures.save_labelled(["4"] + ["7"] * 9)
    assert [path.name for path in (labelled / "4").iterdir()] == [pictures.paths[0].name]
    assert len(list((labelled / "7").iterdir())) == 9

    pictures.save_labelled(["5"] * 10)
    assert [path.name for path in labelled.iterdir()] == ["5"]


def test_pictures_refuses_folder_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures"):
        Pictures(tmp_path, tmp_path / "samples")
    with pytest.raises(FileNotFoundError, match="no folder"):
        Pictures(tmp_path / "none", tmp_path / "samples")


def test_pictures_names_picture_without_ink(tmp_path):
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png"):
        Pictures(tmp_path, tmp_path / "samples")
