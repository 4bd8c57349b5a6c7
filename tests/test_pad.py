"""The notebook's drawing pad shows the kernel's probabilities of the digit in the browser."""

import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_lab.handwriting.pad import drawing_pad
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp import EnhancedNet, load_weights


@pytest.fixture(scope="module")
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")


@pytest.fixture(scope="module")
def seven() -> np.ndarray:
    """What the browser sends of a 7: black ink on white."""
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[60:80, 80:200] = 0
    for row in range(80, 230):
        sheet[row, 190 - row // 3 : 212 - row // 3] = 0
    return sheet


def probabilities_of(model, image: torch.Tensor) -> torch.Tensor:
    return model.predict_proba((image[None] / 255 - 0.1307) / 0.3081)[0]


def send(pad, canvas: bytes) -> None:
    """Give a pad what a message from the browser would give it."""
    pad.set_state({"canvas": memoryview(canvas)})


def test_pad_answers_with_the_probabilities_of_the_drawing(model, seven):
    pytest.importorskip("anywidget")
    pad = drawing_pad(model)

    send(pad, seven.tobytes())

    image = to_mnist(seven)
    assert torch.equal(pad.image, image)
    assert pad.seen == image.numpy().tobytes()
    np.testing.assert_allclose(pad.probabilities, probabilities_of(model, image), atol=1e-6)
    assert np.argmax(pad.probabilities) == 7
    assert pad.answer_count == 1

    for empty in (b"", b"\xff" * 280 * 280):
        send(pad, empty)
        assert (pad.image, pad.seen, pad.probabilities) == (None, b"", [])


def test_pad_takes_other_networks_and_classes(seven):
    pytest.importorskip("anywidget")
    network = torch.nn.Linear(784, 2)
    network.class_names = ("o", "ki")

    pad = drawing_pad(network)

    send(pad, seven.tobytes())

    assert len(pad.probabilities) == 2
    assert pad.classes == ["o", "ki"]


def test_pad_without_the_extra_names_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)

    assert "[draw]" in drawing_pad(model).data


# Renders the widget in a page, as anywidget does in a notebook; `state` stands in for the kernel.
RENDER = """async (code) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  window.state = { classes: [..."0123456789"], probabilities: [] };
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; },
    save_changes() {},
    on(name, update) { window.update = update; },
  };
  widget.render({ model, el: document.body });
}"""
ANSWER = """([image, probabilities]) => {
  state.seen = new DataView(Uint8Array.from(image).buffer);
  state.probabilities = probabilities;
  update();
}"""


def test_widget_sends_the_drawing_and_shows_the_answer(model, browser):
    folder = ROOT / "src" / "mnist_lab" / "handwriting"
    page = browser.new_page()
    page.evaluate(RENDER, (folder / "pad.js").read_text() + (folder / "widget.js").read_text())
    box = page.locator("canvas.paper").bounding_box()

    page.mouse.move(box["x"] + 85, box["y"] + 65)
    page.mouse.down()
    page.mouse.move(box["x"] + 190, box["y"] + 65, steps=6)
    page.mouse.move(box["x"] + 130, box["y"] + 230, steps=6)
    page.mouse.up()
    page.wait_for_function("state.canvas")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    sent = page.evaluate("[...new Uint8Array(state.canvas.buffer)]")

    sheet = np.array(sent, np.uint8).reshape(280, 280)
    assert sheet[5, 5] == 255
    assert sheet[65, 85] == sheet[230, 130] == 0

    image = to_mnist(sheet)
    probabilities = probabilities_of(model, image)
    page.evaluate(ANSWER, [image.flatten().tolist(), probabilities.tolist()])

    assert page.get_by_role("status").inner_text().startswith("This looks like 7")
    pixels = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
    assert page.locator("canvas.seen").evaluate(pixels)[::4] == image.flatten().tolist()
    page.close()
