import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.handwriting.read import read
from mnist_lab.handwriting.synthetic import render_photo
from mnist_mlp import EnhancedNet, load_weights

PHOTO = ROOT / "figures" / "photo.jpg"


@pytest.fixture(scope="module")
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")


def inputs(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - 0.1307) / 0.3081


def test_read_reads_a_photo_as_the_network_reads_its_image(model):
    digits, probabilities = read(model, PHOTO)
    expected = model.predict_proba(inputs(to_mnist(PHOTO)[None]))
    torch.testing.assert_close(probabilities, expected)
    assert digits == str(int(expected.argmax()))


def test_read_reads_several_digits_from_left_to_right(model):
    photo = render_photo("9024375", np.random.default_rng(1), 220)
    digits, probabilities = read(model.train(), photo)
    assert digits == "9024375"
    torch.testing.assert_close(probabilities, model.predict_proba(inputs(segment_digits(photo))))
    assert model.training  # as it was


def test_read_reads_a_turned_photo_as_it_is(model):
    photo = np.asarray(render_photo("690", np.random.default_rng(1), 220))
    assert read(model, photo[::-1, ::-1])[0] == "069"


def test_read_answers_with_the_names_of_the_classes(model):
    names = [f"<{i}>" for i in range(10)]
    digits, _ = read(model, render_photo("72", np.random.default_rng(1), 220), names)
    assert digits == "<7><2>"
    with pytest.raises(ValueError, match="26 classes, expected 10"):
        read(EnhancedNet(26), PHOTO)


def test_read_refuses_a_picture_without_ink(model):
    with pytest.raises(ValueError, match="ink"):
        read(model, np.full((100, 100), 255, np.uint8))
