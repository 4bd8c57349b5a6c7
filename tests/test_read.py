"""One call reads the digits in a picture as the network classifies their images."""

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


def photo_of(digits: str):
    return render_photo(digits, np.random.default_rng(1), 220)


def probabilities_of(model, images: torch.Tensor) -> torch.Tensor:
    return model.predict_proba((images / 255 - 0.1307) / 0.3081)


def test_read_reads_one_digit(model):
    digits, probabilities = read(model, PHOTO)

    expected = probabilities_of(model, to_mnist(PHOTO)[None])
    torch.testing.assert_close(probabilities, expected)
    assert digits == str(int(expected.argmax()))


def test_read_reads_several_digits_from_left_to_right(model):
    photo = photo_of("9024375")

    digits, probabilities = read(model.train(), photo)

    expected = probabilities_of(model, segment_digits(photo))
    torch.testing.assert_close(probabilities, expected)
    assert digits == "9024375"
    assert model.training  # as before the call


def test_read_does_not_turn_a_photo(model):
    upside_down = np.asarray(photo_of("690"))[::-1, ::-1]

    assert read(model, upside_down)[0] == "069"


def test_read_answers_with_the_names_of_the_classes(model):
    names = [f"<{i}>" for i in range(10)]

    assert read(model, photo_of("72"), names)[0] == "<7><2>"
    with pytest.raises(ValueError, match="26 classes"):
        read(EnhancedNet(26), PHOTO)
