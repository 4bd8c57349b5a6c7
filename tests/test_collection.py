"""A person's own pictures: prepared, labelled by name, and sorted into folders by label."""

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_lab.handwriting.collection import Pictures
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
    labels = pictures.labels(torch.full((10,), 7), {pictures.paths[0].name: "4"})

    assert labels == ["4"] + ["7"] * 9
    with pytest.raises(ValueError, match=r"IMG_1\.png"):
        pictures.labels(torch.zeros(10), {"IMG_1.png": "7"})


def test_save_labelled_removes_copies_with_earlier_labels(pictures):
    labelled = pictures.save_labelled(["4"] + ["7"] * 9)
    assert [path.name for path in (labelled / "4").iterdir()] == [pictures.paths[0].name]
    assert len(list((labelled / "7").iterdir())) == 9

    pictures.save_labelled(["5"] * 10)
    assert [path.name for path in labelled.iterdir()] == ["5"]


def test_pictures_refuses_folder_without_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pictures"):
        Pictures(tmp_path, tmp_path / "samples")


def test_pictures_names_picture_without_ink(tmp_path):
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png"):
        Pictures(tmp_path, tmp_path / "samples")
