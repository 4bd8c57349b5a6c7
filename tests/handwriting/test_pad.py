"""The notebook's drawing pad: the kernel's probabilities follow the strokes."""

import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.data import MEAN, STD
from mnist_mlp.handwriting.pad import drawing_pad
from mnist_mlp.handwriting.preprocess import to_mnist


@pytest.fixture
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")


def test_the_drawing_of_the_browser_is_classified_and_the_probabilities_go_back(model):
    pytest.importorskip("anywidget")
    pad = drawing_pad(model)
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[60:80, 80:200] = 0
    for row in range(80, 230):
        sheet[row, 190 - row // 3 : 212 - row // 3] = 0
    pad.set_state({"canvas": memoryview(sheet.tobytes())})  # as a message from the browser does
    expected = to_mnist(sheet)
    assert torch.equal(pad.image, expected)
    assert pad.seen == expected.numpy().tobytes()
    probabilities = model.predict_proba((expected[None] / 255 - MEAN) / STD)[0]
    np.testing.assert_allclose(pad.probabilities, probabilities, atol=1e-6)
    assert np.argmax(pad.probabilities) == 7
    assert pad.answer == 1
    for empty in (b"", np.full((280, 280), 255, np.uint8).tobytes()):
        pad.set_state({"canvas": memoryview(empty)})
        assert (pad.image, pad.seen, pad.probabilities) == (None, b"", [])


def test_the_class_names_go_to_the_browser(model):
    pytest.importorskip("anywidget")
    assert drawing_pad(model, ("o", "ki")).classes == ["o", "ki"]


def test_without_the_extra_it_is_a_sentence_that_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert "[draw]" in drawing_pad(model).data
