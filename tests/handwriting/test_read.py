import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.handwriting.preprocess import normalise, segment_digits, to_mnist
from mnist_mlp.handwriting.read import read
from mnist_mlp.handwriting.synthetic import render_photo


@pytest.fixture(scope="module")
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")


def test_a_photo_of_one_digit_is_read_as_the_network_reads_its_image(model):
    path = ROOT / "figures" / "photo.jpg"
    digits, probabilities = read(model, path)
    expected = model.predict_proba(normalise(to_mnist(path)[None]))
    torch.testing.assert_close(probabilities, expected)
    assert digits == str(int(expected.argmax()))


def test_several_digits_are_read_from_left_to_right(model):
    photo = render_photo("9024375", np.random.default_rng(1), 220)
    digits, probabilities = read(model.train(), photo)
    assert digits == "9024375"
    torch.testing.assert_close(probabilities, model.predict_proba(normalise(segment_digits(photo))))
    assert model.training  # as it was


def test_a_network_of_other_classes_answers_with_their_names(model):
    names = [f"<{i}>" for i in range(10)]
    digits, _ = read(model, render_photo("72", np.random.default_rng(1), 220), names)
    assert digits == "<7><2>"


def test_a_network_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="the model has 26 classes, expected 10: name them"):
        read(EnhancedNet(26), ROOT / "figures" / "photo.jpg")


def test_a_picture_without_ink_is_refused(model):
    with pytest.raises(ValueError, match="ink"):
        read(model, np.full((100, 100), 255, np.uint8))


def test_forty_digits_are_forty_answers_and_a_photo_upside_down_is_read_as_it_is(model):
    sheet = np.full((60, 40 * 20), 255, np.uint8)
    for place in range(40):
        sheet[10:50, 20 * place + 8 : 20 * place + 12] = 0
    digits, probabilities = read(model, sheet)
    assert digits == 40 * "1"
    assert probabilities.shape == (40, 10)
    photo = np.asarray(render_photo("690", np.random.default_rng(1), 220))
    digits, probabilities = read(model, photo[::-1, ::-1])
    assert digits == "069"
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
