"""The notebook's drawing pad: the kernel's probabilities follow the strokes."""

import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_lab.handwriting.pad import drawing_pad
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.data import MEAN, STD


@pytest.fixture
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")


def seven() -> np.ndarray:
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[60:80, 80:200] = 0
    for row in range(80, 230):
        sheet[row, 190 - row // 3 : 212 - row // 3] = 0
    return sheet


def test_pad_answers_what_the_browser_sends(model):
    pytest.importorskip("anywidget")
    pad = drawing_pad(model)
    pad.set_state({"canvas": memoryview(seven().tobytes())})  # as a message from the browser does
    expected = to_mnist(seven())
    assert torch.equal(pad.image, expected)
    assert pad.seen == expected.numpy().tobytes()
    probabilities = model.predict_proba((expected[None] / 255 - MEAN) / STD)[0]
    np.testing.assert_allclose(pad.probabilities, probabilities, atol=1e-6)
    assert np.argmax(pad.probabilities) == 7
    assert pad.answer == 1

    for empty in (b"", np.full((280, 280), 255, np.uint8).tobytes()):
        pad.set_state({"canvas": memoryview(empty)})
        assert (pad.image, pad.seen, pad.probabilities) == (None, b"", [])


def test_pad_takes_a_network_of_flat_images_and_other_classes():
    pytest.importorskip("anywidget")
    pad = drawing_pad(torch.nn.Linear(784, 2), ("o", "ki"))
    pad.set_state({"canvas": memoryview(seven().tobytes())})
    assert len(pad.probabilities) == 2
    assert pad.classes == ["o", "ki"]


# In a browser, in place of anywidget: the widget, with a model that keeps what it is told.
WIDGET = """async (code) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  window.told = { classes: [..."0123456789"], probabilities: [] };
  const model = {
    get: (name) => told[name], set: (name, value) => { told[name] = value; },
    save_changes() {}, on(name, update) { window.update = update; },
  };
  widget.render({ model, el: document.body });
}"""


def test_widget_sends_the_drawing_and_shows_the_answer(model, browser):
    folder = ROOT / "src" / "mnist_lab" / "handwriting"
    code = "".join((folder / name).read_text() for name in ("pad.js", "widget.js"))
    page = browser.new_page()
    page.evaluate(WIDGET, code)
    box = page.locator("canvas.paper").bounding_box()
    for i, (x, y) in enumerate([(85, 65), (190, 65), (130, 230)]):
        page.mouse.move(box["x"] + x, box["y"] + y, steps=6 if i else 1)
        page.mouse.down()
    page.mouse.up()
    page.wait_for_function("told.canvas")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    sent = page.evaluate("[...new Uint8Array(told.canvas.buffer)]")
    sheet = np.array(sent, np.uint8).reshape(280, 280)
    assert sheet[5, 5] == 255
    assert sheet[65, 85] == sheet[230, 130] == 0

    image = to_mnist(sheet)
    probabilities = model.predict_proba((image[None] / 255 - MEAN) / STD)[0]
    assert probabilities.argmax() == 7
    page.evaluate(
        """([image, probabilities]) => {
          Object.assign(told, { seen: new DataView(Uint8Array.from(image).buffer), probabilities });
          update();
        }""",
        [image.flatten().tolist(), probabilities.tolist()],
    )
    assert page.get_by_role("status").inner_text().startswith("This looks like 7")
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
    assert page.locator("canvas.seen").evaluate(read)[::4] == image.flatten().tolist()
    page.close()


def test_pad_without_the_extra_is_a_sentence(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    assert "[draw]" in drawing_pad(model).data
