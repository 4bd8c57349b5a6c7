"""The page, in a real browser: it sees the images of Python and agrees with PyTorch and Captum."""

import base64
import io
import runpy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import ROOT, few_or_all, paste_digit
from PIL import Image

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.research.understanding import logits_of
from mnist_mlp import EnhancedNet, load, load_weights
from mnist_mlp.checkpoint import read_card
from mnist_mlp.data import MEAN, STD

PAGE = (ROOT / "web" / "index.html").as_uri()
WEIGHTS = ROOT / "models" / "enhanced_model_handwriting.pth"

# The points of each stroke as a person writes the ten digits, in pixels of the pad.
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
EMPTY = "Draw a digit from 0 to 9."


@pytest.fixture
def page(browser):
    """The page, opened from disk. It must ask for nothing else and complain of nothing."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    complaints = []
    requests = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(PAGE)

    yield page

    assert complaints == []
    assert [url for url in requests if not url.startswith("blob:")] == [PAGE]
    page.close()


@pytest.fixture(scope="module")
def network() -> EnhancedNet:
    return load_weights(EnhancedNet(), WEIGHTS)


def settle(page) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def draw(page, strokes: str, left: int = 0) -> None:
    """Move the real pointer along the strokes, `left` pixels further to the right."""
    box = page.locator("canvas.paper").bounding_box()
    for stroke in strokes.split(" / "):
        for point in stroke.split():
            x, y = map(int, point.split(","))
            page.mouse.move(box["x"] + left + x, box["y"] + y)
            page.mouse.down()
        page.mouse.up()
    settle(page)


def click(page, name: str) -> None:
    page.get_by_role("button", name=name).click()
    settle(page)


def press(page, *keys: str) -> None:
    for key in keys:
        page.locator("canvas.paper").press(key)
    settle(page)


def spoken(page) -> str:
    return page.get_by_role("status").inner_text()


def picks(page):
    """Return the buttons of the digits, from left to right."""
    return page.get_by_role("group", name="digits").get_by_role("button")


def png(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def drop(page, name: str, content: bytes) -> None:
    """Drop a file on the page."""
    code = """([name, content]) => {
      const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], name));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    page.evaluate(code, [name, in_base64(content)])


def pixels(page, canvas: str = "canvas.paper") -> np.ndarray:
    """Return what a canvas shows, RGBA, uint8 of shape (height, width, 4)."""
    url = page.locator(canvas).evaluate("canvas => canvas.toDataURL()")
    content = base64.b64decode(url.split(",")[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def read(page, pictures: list[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each picture the images that the page sees, (N, 28, 28), and the probabilities."""
    code = """async (pictures) => {
      const answers = [];
      for (const picture of pictures) {
        const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
        const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
        const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
        context.drawImage(bitmap, 0, 0);
        const images = digitsIn(context.getImageData(0, 0, bitmap.width, bitmap.height));
        const probabilities = images.map((image) => [...predict(layers, image, MEAN, STD)]);
        answers.push([images.map((image) => [...image]), probabilities]);
      }
      return answers;
    }"""
    answers = []
    for images, probabilities in page.evaluate(code, [in_base64(png(p)) for p in pictures]):
        images = torch.tensor(images, dtype=torch.uint8).view(-1, 28, 28)
        answers.append((images, torch.tensor(probabilities)))
    return answers


def number(digits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Paste 28x28 digits side by side, of any sizes and at any heights, on noisy paper."""
    grey = 30 + 4 * random.standard_normal((180, 125 * len(digits)))
    for i, digit in enumerate(digits):
        side = random.integers(60, 120)
        top = random.integers(0, 180 - side)
        left = 125 * i + random.integers(0, 125 - side)
        big = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        grey[top : top + side, left : left + side] += 0.8 * np.asarray(big)
    return grey.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("count", few_or_all(30, 600))
def test_page_reads_pictures_as_python_does(page, network, count):
    random = np.random.default_rng(0)
    digits = load("digits").train.images.numpy()
    pictures = [paste_digit(digits[i], random, rough=i % 2 == 1) for i in range(count)]
    pictures.append(pictures[0][..., None] // np.array([1, 2, 4], np.uint8))  # a coloured one
    expected = [to_mnist(picture)[None] for picture in pictures]
    for i in range(count // 2):
        picture = number(digits[random.integers(0, 1000, 2 + i % 4)], random)
        pictures.append(picture)
        expected.append(segment_digits(picture))

    answers = read(page, pictures)

    for (images, probabilities), expected_images in zip(answers, expected, strict=True):
        assert len(images) == len(expected_images)
        assert ((images.int() - expected_images.int()).abs() <= 1).all()
        expected_probabilities = network.predict_proba((expected_images / 255 - MEAN) / STD)
        assert (probabilities - expected_probabilities).abs().max() <= 2e-3  # 16-bit weights


def test_page_groups_strokes_as_python_does(page):
    sheet = np.full((280, 560), 255, np.uint8)
    pictures = [sheet]
    expected = [torch.empty(0, 28, 28)]

    # Two slanted bars 100 columns wide: one digit if they overlap on 40 columns, else two.
    for shift in (60, 61, 140):
        bars = sheet.copy()
        for column in range(100):
            bars[150 - column : 170 - column, 100 + column] = 0
            bars[150 - column : 177 - column, 100 + shift + column] = 0
        pictures.append(bars)
        expected.append(segment_digits(bars))
    assert [len(images) for images in expected] == [0, 1, 2, 2]

    five = sheet.copy()
    five[100:120, 100:170] = five[120:180, 100:120] = five[160:180, 100:170] = 0
    five[180:240, 150:170] = five[220:240, 90:170] = 0
    roof = five.copy()
    roof[70:90, 100:190] = 0
    flag = five.copy()
    flag[30:90, 180:230] = 0  # beside the digit, but less than half as high
    specks = five.copy()
    specks[20:23, 20:23] = specks[250:254, 500:504] = 0
    box = sheet.copy()
    # Its width becomes 12.5 of 20 pixels. Python rounds half to even, JavaScript rounds half up.
    box[50:130, 100:150] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # `to_mnist` warns of several digits
        for picture in (five, roof, flag, specks, box):
            pictures.append(picture)
            expected.append(to_mnist(picture)[None])

    answers = read(page, pictures)

    for (images, _), expected_images in zip(answers, expected, strict=True):
        assert len(images) == len(expected_images)
        assert ((images.int() - expected_images.int()).abs() <= 1).all()


def test_page_recognises_drawn_digits(page):
    for digit, strokes in STROKES.items():
        draw(page, strokes)

        assert spoken(page).startswith(f"This looks like {digit}")
        assert page.locator(".bars .best").inner_text() == digit
        percents = page.locator(".bars span").all_inner_texts()[1::2]
        percents = [float(percent.rstrip("%")) for percent in percents]
        assert np.argmax(percents) == int(digit)
        assert sum(percents) == pytest.approx(100, abs=0.6)

        press(page, "Escape")
        assert spoken(page) == EMPTY


def test_page_reads_a_drawn_number_digit_by_digit(page):
    for i, digit in enumerate("427"):
        draw(page, STROKES[digit], left=165 * i - 40)
    images, probabilities = read(page, [pixels(page)[..., 0]])[0]
    sure = [f"{100 * p:.0f}%" for p in probabilities.amax(1).tolist()]

    assert spoken(page) == "This looks like 4 2 7."
    assert [text.split() for text in picks(page).all_inner_texts()] == [
        ["4", sure[0]],
        ["2", sure[1]],
        ["7", sure[2]],
    ]

    for i in (1, 0, 2):
        picks(page).nth(i).press("Enter")
        pressed = [pick.get_attribute("aria-pressed") for pick in picks(page).all()]
        assert pressed.index("true") == i
        assert page.locator(".bars .best").inner_text() == "427"[i]
        np.testing.assert_array_equal(pixels(page, "canvas.seen")[..., 0], images[i])

    click(page, "Undo")
    assert spoken(page) == "This looks like 4 2."
    assert picks(page).count() == 2
    assert page.locator(".bars .best").inner_text() == "2"
    click(page, "Clear")
    assert spoken(page) == EMPTY
    assert picks(page).count() == 0


def test_undo_takes_back_strokes_clear_and_keys(page):
    draw(page, STROKES["7"])
    draw(page, "30,30")
    seven = pixels(page)

    draw(page, STROKES["0"], left=90)
    press(page, " ", "ArrowDown", "ArrowRight", "ArrowDown", " ")
    click(page, "Clear")
    assert pixels(page)[..., :3].min() == 255
    press(page, "Control+z", "Control+z")
    assert (pixels(page) != seven).any()
    click(page, "Undo")

    np.testing.assert_array_equal(pixels(page), seven)


def test_undo_while_the_pointer_is_down_ends_the_stroke(page):
    box = page.locator("canvas.paper").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    press(page, "Control+z")
    page.mouse.move(box["x"] + 190, box["y"] + 190)
    page.mouse.up()
    settle(page)

    assert pixels(page)[..., 0].min() == 255
    assert spoken(page) == EMPTY


def test_eraser_removes_the_ink(page):
    draw(page, STROKES["7"])
    click(page, "Eraser")
    draw(page, " / ".join(f"60,{y} 220,{y}" for y in range(40, 260, 30)))

    assert pixels(page)[..., 0].min() == 255
    assert spoken(page) == "There is no ink on the pad."


def test_a_digit_is_drawn_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    for key in ["ArrowUp"] * 10 + [" "] + ["ArrowDown"] * 20 + [" "]:
        page.keyboard.press(key)
    settle(page)

    assert spoken(page).startswith("This looks like 1")


def captum(network, inputs: torch.Tensor, answers: torch.Tensor, **options) -> torch.Tensor:
    """Return integrated gradients from an empty image, by Captum and PyTorch's autograd."""
    attr = pytest.importorskip("captum.attr")
    method = attr.IntegratedGradients(partial(logits_of, network))
    return method.attribute(inputs, baselines=0.0, target=answers, **options).detach().float()


def test_attributions_are_captums_and_sum_to_the_logit(page, network, mnist):
    images = mnist.test.images[:12]
    inputs = images / 255
    logits = logits_of(network, inputs).detach()
    empty_logits = logits_of(network, torch.zeros(1, 28, 28)).detach()
    answers = logits.argmax(1)
    answers[::3] = (answers[::3] + 1) % 10  # also for digits that are not the answer

    code = """([images, answers]) => images.map((image, i) =>
      [...attributions(layers, Uint8Array.from(image), answers[i], MEAN, STD)])"""
    scores = page.evaluate(code, [images.flatten(1).tolist(), answers.tolist()])

    scores = torch.tensor(scores).view(-1, 28, 28)
    largest = scores.abs().amax((1, 2))
    same_steps = captum(network, inputs, answers, n_steps=64, method="riemann_middle")
    many_steps = captum(network, inputs, answers, n_steps=400)
    rise = (logits - empty_logits).gather(1, answers[:, None])[:, 0]
    assert ((scores - same_steps).abs().amax((1, 2)) / largest).max() <= 0.03  # 16-bit weights
    assert ((scores - many_steps).abs().amax((1, 2)) / largest).max() <= 0.1
    assert (scores.sum((1, 2)) - rise).abs().max() <= 0.5


def test_map_is_blue_for_the_answer_and_orange_against_it(page, network):
    for i, digit in enumerate("42"):
        draw(page, STROKES[digit], left=200 * i)
    images, _ = read(page, [pixels(page)[..., 0]])[0]

    for i, digit in enumerate("42"):
        picks(page).nth(i).click()
        page.locator("#explanation[aria-busy=false]").wait_for()
        colours = torch.from_numpy(pixels(page, "#explanation canvas").astype(int))
        red, _, blue, alpha = colours.unbind(2)
        scores = captum(network, images[i, None] / 255, torch.tensor([int(digit)]), n_steps=64)[0]

        assert torch.equal(alpha, images[i].long())  # only ink speaks
        strong = (scores.abs() > 0.1 * scores.abs().max()) & (images[i] > 100)
        assert 20 < int(strong.sum()) < 300
        assert torch.equal((blue > red)[strong], (scores > 0)[strong])

    picks(page).first.click()
    click(page, "Clear")
    page.wait_for_timeout(300)  # longer than the page waits before it paints a map
    assert pixels(page, "#explanation canvas").max() == 0


def test_page_reads_dropped_and_chosen_pictures(page, tmp_path):
    digits = load("digits").test
    two = digits.images[int((digits.labels == 2).nonzero()[0, 0])].numpy()
    photo = png(paste_digit(two, np.random.default_rng(1), rough=True))
    (tmp_path / "two.png").write_bytes(photo)
    looks_like_2 = page.locator(".sentence", has_text="This looks like 2")

    drop(page, "two.png", photo)
    looks_like_2.wait_for()
    drop(page, "no.png", b"%PDF-1.7")
    page.locator(".sentence", has_text="no.png is not a picture").wait_for()
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(tmp_path / "two.png")
    looks_like_2.wait_for()
    assert chooser.input_value() == ""  # so that the same file can be chosen again

    # Beside a dark picture the pad's white margins would be brighter than its ink.
    for paper, ink in ((0, 255), (60, 0)):
        press(page, "Escape")
        big = np.kron(two / 255, np.ones((8, 8)))
        drop(page, "two.png", png((paper + (ink - paper) * big).round().astype(np.uint8)))
        looks_like_2.wait_for()


@pytest.mark.parametrize("width", [1000, 320])
def test_forty_digits_fit_into_the_window(browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844}, has_touch=True)
    page.goto(PAGE)
    pad = page.locator("canvas.paper").bounding_box()
    page.touchscreen.tap(pad["x"] + 100, pad["y"] + 100)
    settle(page)
    assert spoken(page).startswith("This looks like")

    sheet = np.full((280, 560), 255, np.uint8)
    for i in range(40):
        sheet[80:200, 4 + 14 * i : 10 + 14 * i] = 0
    drop(page, "forty.png", png(sheet))
    page.locator("#digit-buttons:not([hidden])").wait_for()

    assert spoken(page) == f"This looks like {' '.join('1' * 40)}."
    assert picks(page).count() == 40
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("canvas.paper").bounding_box() == pad
    page.close()


def test_committed_page_is_what_make_page_builds():
    build = runpy.run_path(str(ROOT / "web" / "build.py"))
    text = (ROOT / "web" / "index.html").read_text(encoding="utf-8")
    card = read_card(WEIGHTS)

    assert build["page"](WEIGHTS) == text, "run: make page"
    assert len(text.encode()) <= 1.8e6
    assert f"{card['test_correct']:,} of 10,000 MNIST test images correct" in text
