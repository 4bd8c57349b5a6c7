"""The page, in a real browser: it sees the images of `to_mnist` and agrees with PyTorch."""

import base64
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, pasted, published, sample
from PIL import Image

from mnist_mlp import EnhancedNet, load, load_weights
from mnist_mlp.data import MEAN, STD
from mnist_mlp.handwriting.preprocess import to_mnist

WEB = ROOT / "web"
PAGE = (WEB / "index.html").as_uri()

# How a person writes the ten digits: the points of each stroke, in pixels of the pad.
STROKES = {
    "0": "140,50 95,80 85,140 100,210 140,230 180,210 195,140 185,80 140,50",
    "1": "120,90 150,60 150,230",
    "2": "90,90 110,60 150,55 180,80 175,120 130,175 85,220 195,220",
    "3": "95,70 140,52 180,75 170,115 130,135 180,155 188,200 145,230 90,215",
    "4": "110,60 85,150 190,150 / 170,65 165,235",
    "5": "180,60 105,60 98,130 150,120 185,155 175,210 130,230 90,215",
    "6": "170,55 120,95 95,160 105,215 145,230 180,205 170,165 130,155 100,180",
    "7": "85,65 190,65 130,230",
    "8": "175,75 140,52 105,75 115,115 165,155 180,200 140,230 100,205 110,160 165,115 175,75",
    "9": "180,90 140,60 105,85 110,130 150,140 180,110 180,90 175,160 160,230",
}


@pytest.fixture
def page(browser):
    """The page, opened from disk; it must ask for nothing and complain of nothing."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(PAGE)
    yield page
    assert complaints == []
    assert [url for url in requests if not url.startswith("blob:")] == [PAGE]
    page.close()


def draw(page, strokes: str) -> None:
    """Move the real pointer along the strokes."""
    box = page.locator("canvas.paper").bounding_box()
    scale = box["width"] / 280
    for stroke in strokes.split(" / "):
        for i, point in enumerate(stroke.split()):
            x, y = (float(part) * scale for part in point.split(","))
            page.mouse.move(box["x"] + x, box["y"] + y, steps=6 if i else 1)
            page.mouse.down()
        page.mouse.up()
    settle(page)


def settle(page) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def said(page) -> str:
    return page.get_by_role("status").inner_text()


def bars(page) -> list[str]:
    return page.locator(".bars span").all_inner_texts()


def png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


# In the page: the images that it sees in pictures of base64, and its probabilities for them.
SEE = """async (pictures) => {
  const found = [];
  for (const picture of pictures) {
    const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const image = toMnist(context.getImageData(0, 0, bitmap.width, bitmap.height));
    found.push([Array.from(image), Array.from(predict(layers, image, MEAN, STD))]);
  }
  return found;
}"""


def weights() -> Path:
    best = ROOT / "models" / "enhanced_model_best.pth"
    return best if best.exists() else best.with_name("enhanced_model.pth")


@pytest.mark.parametrize("count", sample(100, 1000))
def test_canvases_become_pythons_images_and_get_pytorchs_probabilities(page, count):
    random, digits = np.random.default_rng(0), load("digits").train.images
    canvases = [pasted(digits[i].numpy(), random, rough=i % 2 == 1) for i in range(count)]
    expected = torch.stack([to_mnist(canvas) for canvas in canvases])
    see, found = SEE.replace("MEAN, STD", f"{MEAN}, {STD}"), []
    for start in range(0, len(canvases), 50):
        part = [base64.b64encode(png(c)).decode() for c in canvases[start : start + 50]]
        found += page.evaluate(see, part)
    images = torch.tensor([image for image, _ in found], dtype=torch.uint8).view(-1, 28, 28)
    probabilities = torch.tensor([p for _, p in found])
    difference = (images.float() - expected.float()).abs().mean()
    network = load_weights(EnhancedNet(), weights())

    def predict(images: torch.Tensor) -> torch.Tensor:
        return network.predict_proba((images.float() / 255 - MEAN) / STD)

    agree = (predict(expected).argmax(1) == probabilities.argmax(1)).float().mean()
    off = (predict(images) - probabilities).abs().max()
    print(
        f"pixels differ by {difference:.4f} of 255, predictions agree in {agree:.1%}, "
        f"probabilities within {off:.1e}"
    )
    assert difference <= 2
    assert agree >= 0.998
    assert off <= 1e-3


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_drawn_with_the_pointer_is_recognised(page, digit):
    draw(page, STROKES[digit])
    assert said(page).startswith(f"This looks like {digit}")
    percents = [float(text.rstrip("%")) for text in bars(page)[1::2]]
    assert np.argmax(percents) == int(digit)
    assert sum(percents) == pytest.approx(100, abs=0.6)


def test_undo_clear_eraser_and_an_empty_pad(page):
    assert said(page) == "Draw a digit from 0 to 9."
    draw(page, STROKES["7"])
    seven = bars(page)
    draw(page, "60,60 60,230 200,230 / 60,140 200,140")
    assert bars(page) != seven
    page.get_by_role("button", name="Undo").click()
    page.locator("canvas.paper").press("Control+z")
    settle(page)
    assert bars(page) == seven
    page.get_by_role("button", name="Eraser").click()
    draw(page, " / ".join(f"60,{y} 220,{y}" for y in range(40, 260, 30)))
    assert said(page) == "There is no ink to be seen."
    page.get_by_role("button", name="Clear").click()
    settle(page)
    assert said(page) == "Draw a digit from 0 to 9."
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    settle(page)
    assert bars(page) != seven  # seven erased strokes are left but one


def test_a_digit_is_drawn_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    for key in ["ArrowUp"] * 10 + [" "] + ["ArrowDown"] * 20 + [" "]:
        page.keyboard.press(key)
    settle(page)
    assert said(page).startswith("This looks like 1")
    page.keyboard.press("Escape")
    settle(page)
    assert said(page) == "Draw a digit from 0 to 9."


DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
}"""


def test_a_dropped_or_chosen_picture_is_classified_and_another_file_is_named(page, tmp_path):
    digits = load("digits").test
    two = int((digits.labels == 2).nonzero()[0, 0])
    picture = png(pasted(digits.images[two].numpy(), np.random.default_rng(1), rough=True))
    page.evaluate(DROP, ["two.png", "image/png", base64.b64encode(picture).decode()])
    page.locator(".spoken", has_text="This looks like 2").wait_for()
    page.evaluate(DROP, ["no.png", "image/png", base64.b64encode(b"%PDF-1.7").decode()])
    page.locator(".spoken", has_text="no.png is not a picture").wait_for()
    page.get_by_role("button", name="Clear").click()
    (tmp_path / "two.png").write_bytes(picture)
    page.locator("input[type=file]").set_input_files(tmp_path / "two.png")
    page.locator(".spoken", has_text="This looks like 2").wait_for()


def test_it_is_fast_enough_to_follow_the_strokes(page):
    draw(page, STROKES["3"])
    milliseconds = page.evaluate("""() => {
      const canvas = document.querySelector("canvas.paper"), times = [];
      for (let i = 0; i < 60; i++) {
        const start = performance.now();
        look(canvas);
        times.push(performance.now() - start);
      }
      return times.sort((a, b) => a - b)[30];
    }""")
    navigation = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    print(f"{milliseconds:.1f} ms an answer, {navigation:.0f} ms to load")
    assert milliseconds <= 40  # 10 on an idle machine


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (390, "dark"), (320, "light")])
def test_nothing_sticks_out_of_the_window(browser, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=True
    )
    page = context.new_page()
    page.goto(PAGE)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("canvas.paper").bounding_box()
    page.touchscreen.tap(box["x"] + 100, box["y"] + 100)
    settle(page)
    assert said(page).startswith("This looks like")
    context.close()


def test_the_committed_page_is_what_make_page_makes_and_is_small_enough():
    published("models/enhanced_model_best.pth", "web/index.html")
    spec = importlib.util.spec_from_file_location("build", WEB / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    text = (WEB / "index.html").read_text(encoding="utf-8")
    assert build.page(weights()) == text
    assert len(text.encode()) <= 1.8e6
    assert "http:" not in text
    assert "https:" not in text
