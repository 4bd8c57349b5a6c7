"""One call reads the digits in a picture as the network classifies their images."""

import copy

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
    reading = read(model, PHOTO)

    image = to_mnist(PHOTO)
    expected = probabilities_of(model, image[None])[0]
    (digit,) = reading.digits
    torch.testing.assert_close(digit.probabilities, expected)
    assert torch.equal(digit.image, image)
    assert digit.probability == float(expected.max())
    assert reading.text == digit.label == str(int(expected.argmax()))


def test_read_reads_several_digits_from_left_to_right(model):
    photo = photo_of("9024375")

    reading = read(model.train(), photo)

    expected = probabilities_of(model, segment_digits(photo))
    probabilities = torch.stack([digit.probabilities for digit in reading.digits])
    torch.testing.assert_close(probabilities, expected)
    assert reading.text == "9024375"
    assert model.training  # as before the call


def test_read_does_not_turn_a_photo(model):
    upside_down = np.asarray(photo_of("690"))[::-1, ::-1]

    assert read(model, upside_down).text == "069"


def test_read_answers_with_the_names_of_the_models_classes(model):
    named = copy.deepcopy(model)
    named.class_names = tuple(f"<{i}>" for i in range(10))

    assert read(named, photo_of("72")).text == "<7><2>"


def test_read_refuses_a_model_with_another_number_of_classes():
    with pytest.raises(ValueError, match="26"):
        read(EnhancedNet(26), PHOTO)
