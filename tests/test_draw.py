"""The notebook's drawing pad: the kernel's answer follows the strokes."""

import sys

import numpy as np
import pytest
import torch

from mnist_mlp import checkpoint, data
from mnist_mlp.draw import drawing_pad
from mnist_mlp.images import to_mnist
from mnist_mlp.model import EnhancedNet


@pytest.fixture
def model():
    return checkpoint.load(EnhancedNet(), data.home() / "models" / "enhanced_model_best.pth")


def test_what_the_browser_sends_is_read_and_the_answer_goes_back(model):
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
    probabilities = model.predict_proba((expected[None] / 255 - data.MEAN) / data.STD)[0]
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
