"""The page, in a real browser: it sees the images of Python and agrees with PyTorch and Captum."""

import base64
import importlib.util
import io
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import ROOT, pasted, published, sample
from PIL import Image
from scipy import spatial

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.research.understanding import logits_of
from mnist_mlp import EnhancedNet, load, load_weights
from mnist_mlp.data import MEAN, STD

WEB = ROOT / "web"
PAGE = (WEB / "index.html").as_uri()
WEIGHTS = ROOT / "models" / "enhanced_model_handwriting.pth"

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


def draw(page, strokes: str, left: float = 0, steps: int = 6) -> None:
    """Move the real pointer along the strokes, `left` pixels further to the right."""
    box = page.locator("canvas.paper").bounding_box()
    scale = box["height"] / 280
    for stroke in strokes.split(" / "):
        for i, point in enumerate(stroke.split()):
            x, y = map(float, point.split(","))
            page.mouse.move(
                box["x"] + (x + left) * scale, box["y"] + y * scale, steps=steps if i else 1
            )
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


def shown(page, canvas: str) -> np.ndarray:
    """Return what a canvas shows, RGBA, uint8 of shape (height, width, 4)."""
    url = page.locator(canvas).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def pixels(page) -> np.ndarray:
    """Return what the pad shows, uint8 of shape (280, width)."""
    return shown(page, "canvas.paper")[..., 0]


# In the page: the images that it sees in pictures of base64, and its probabilities for them.
SEE = """async (pictures) => {
  const found = [];
  for (const picture of pictures) {
    const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const images = digitsIn(context.getImageData(0, 0, bitmap.width, bitmap.height));
    found.push(images.map((image) => [[...image], [...predict(layers, image, MEAN, STD)]]));
  }
  return found;
}"""


def see(page, canvases) -> list[list]:
    """Return for each canvas an image and probabilities per digit, both as lists."""
    digits = []
    for start in range(0, len(canvases), 50):
        part = [base64.b64encode(png(c)).decode() for c in canvases[start : start + 50]]
        digits += page.evaluate(SEE, part)
    return digits


def images_of(digits: list) -> torch.Tensor:
    return torch.tensor([image for image, _ in digits], dtype=torch.uint8).view(-1, 28, 28)


def mean_difference(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels of each image, of 255."""
    return (images.float() - others.float()).abs().mean((1, 2))


def network() -> EnhancedNet:
    return load_weights(EnhancedNet(), WEIGHTS)


@pytest.mark.parametrize("count", sample(100, 1000))
def test_page_sees_pythons_images_and_gives_pytorchs_probabilities(page, count):
    random = np.random.default_rng(0)
    digits = load("digits").train.images
    canvases = [pasted(digits[i].numpy(), random, rough=i % 2 == 1) for i in range(count)]
    expected = torch.stack([to_mnist(canvas) for canvas in canvases])

    answers = see(page, canvases)
    assert [len(digits) for digits in answers] == [1] * count
    images = images_of([digits[0] for digits in answers])
    probabilities = torch.tensor([digits[0][1] for digits in answers])

    model = network()
    expected_probabilities = model.predict_proba((images / 255 - MEAN) / STD)
    from_pythons_images = model.predict_proba((expected / 255 - MEAN) / STD)
    agreement = (from_pythons_images.argmax(1) == probabilities.argmax(1)).float().mean()
    assert mean_difference(images, expected).mean() <= 2
    assert agreement >= 0.998
    assert (expected_probabilities - probabilities).abs().max() <= 1e-3


def number(digits, random: np.random.Generator) -> np.ndarray:
    """Paste 28x28 digits side by side: any sizes, heights, distances, polarity, with some noise."""
    sides = random.integers(70, 130, len(digits))
    gaps = random.integers(2, 25, len(digits) + 1)
    ink = np.zeros((180, sides.sum() + gaps.sum()))
    for i, (digit, side) in enumerate(zip(digits, sides, strict=True)):
        big = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
        top, left = random.integers(0, 180 - side), sides[:i].sum() + gaps[: i + 1].sum()
        ink[top : top + side, left : left + side] = np.asarray(big) / 255
    grey = 0.1 + 0.7 * ink + random.uniform(0, 0.02) * random.standard_normal(ink.shape)
    return (255 * (grey if random.random() < 0.5 else 1 - grey).clip(0, 1)).round().astype(np.uint8)


@pytest.mark.parametrize("count", sample(40, 400))
def test_page_segments_digits_as_python_does(page, count):
    random = np.random.default_rng(0)
    digits = load("digits").train.images.numpy()
    canvases = [number(digits[random.integers(0, 1000, 2 + i % 8)], random) for i in range(count)]
    for canvas, answers in zip(canvases, see(page, canvases), strict=True):
        expected = segment_digits(canvas)
        assert len(answers) == len(expected)
        difference = mean_difference(images_of(answers), expected)
        assert difference.max() <= 4
        assert difference.mean() <= 2


def test_overlapping_strokes_are_one_digit_and_slanted_neighbours_two(page):
    """Two bars of 100 columns; the second one, which is thicker, to the right by so many."""
    sheets = []
    for shift in (55, 65, 80, 140):
        sheet = np.full((280, 560), 255, np.uint8)
        for column in range(100):
            sheet[150 - column : 170 - column, 100 + column] = 0
            sheet[150 - column : 177 - column, 100 + shift + column] = 0
        sheets.append(sheet)
    expected = [segment_digits(sheet) for sheet in sheets]
    assert [len(digits) for digits in expected] == [1, 2, 2, 2]
    for digits, answers in zip(expected, see(page, sheets), strict=True):
        assert mean_difference(images_of(answers), digits).max() <= 4


def test_small_parts_belong_to_their_digit_and_specks_are_dropped(page):
    five = np.full((280, 560), 255, np.uint8)
    five[100:120, 100:170] = five[120:180, 100:120] = five[160:180, 100:170] = 0
    five[180:240, 150:170] = five[220:240, 90:170] = 0

    roof = five.copy()
    roof[70:90, 100:190] = 0
    flag = five.copy()
    flag[70:90, 180:230] = 0  # less than half as high as the digit, and not above it
    specks = five.copy()
    specks[20:23, 20:23] = specks[250:254, 500:504] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of `to_mnist`, if it took one of them for several digits
        expected = torch.stack([to_mnist(sheet) for sheet in (five, roof, flag, specks)])
    answers = see(page, [five, roof, flag, specks])
    assert [len(digits) for digits in answers] == [1] * 4
    images = images_of([digits[0] for digits in answers])
    assert mean_difference(images, expected).max() <= 2
    assert see(page, [np.full((280, 560), 255, np.uint8)]) == [[]]


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_drawn_with_the_pointer_is_recognised(page, digit):
    draw(page, STROKES[digit])
    assert said(page).startswith(f"This looks like {digit}")
    percents = [float(text.rstrip("%")) for text in bars(page)[1::2]]
    assert np.argmax(percents) == int(digit)
    assert sum(percents) == pytest.approx(100, abs=0.6)


def test_a_drawn_number_is_read_digit_by_digit(page):
    for place, digit in enumerate("427"):
        draw(page, STROKES[digit], left=165 * place - 40)
    assert said(page) == "This looks like 4 2 7."
    picks = page.get_by_role("group", name="digits").get_by_role("button")
    texts = picks.all_inner_texts()
    assert [text.split()[0] for text in texts] == ["4", "2", "7"]
    assert all(50 < int(text.split()[1].rstrip("%")) <= 100 for text in texts)
    images = images_of(see(page, [pixels(page)])[0])
    for place, digit in ((0, "4"), (2, "7"), (1, "2")):
        picks.nth(place).focus()
        page.keyboard.press("Enter")
        assert [pick.get_attribute("aria-pressed") for pick in picks.all()].index("true") == place
        assert page.locator(".bars .first").inner_text() == digit
        np.testing.assert_array_equal(shown(page, "canvas.seen")[..., 0], images[place])
    page.get_by_role("button", name="Undo").click()
    settle(page)
    assert said(page) == "This looks like 4 2."
    page.get_by_role("button", name="Clear").click()
    settle(page)
    assert said(page) == "Draw a digit from 0 to 9."
    assert picks.count() == 0


def test_undo_restores_the_pixels(page):
    draw(page, STROKES["3"])
    draw(page, STROKES["8"], left=200, steps=3)
    box = page.locator("canvas.paper").bounding_box()
    page.mouse.click(box["x"] + 30, box["y"] + 30)
    settle(page)
    before = pixels(page)
    draw(page, STROKES["0"], left=90)
    page.locator("canvas.paper").press(" ")
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
    settle(page)
    assert (pixels(page) != before).any()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    settle(page)
    np.testing.assert_array_equal(pixels(page), before)


def test_strokes_are_smooth_curves_and_a_tap_is_a_dot(page):
    draw(page, "60,60 220,60 220,220 60,220", steps=1)
    t = np.linspace(0, 1, 2000)[:, None]

    def line(a, b):
        return a + t * (b - a)

    a, b, c, d = np.array([[60, 60], [220, 60], [220, 220], [60, 220]])
    middles = (a + b) / 2, (b + c) / 2, (c + d) / 2
    curve = [line(a, middles[0]), line(middles[2], d)]
    for start, control, end in zip(middles, (b, c), middles[1:], strict=False):
        curve.append(line(line(start, control), line(control, end)))  # de Casteljau
    y, x = np.mgrid[:280, :560] + 0.5
    distance, _ = spatial.cKDTree(np.concatenate(curve)).query(np.stack([x, y], 2))
    drawn = pixels(page)
    assert drawn[distance < 10].max() == 0
    assert drawn[distance > 12].min() == 255
    page.get_by_role("button", name="Clear").click()
    draw(page, "300,100")
    drawn = pixels(page)
    distance = np.hypot(x - 300, y - 100)
    assert drawn[distance < 10].max() == 0
    assert drawn[distance > 12].min() == 255


def test_undo_while_the_pointer_is_down_ends_the_stroke(page):
    box = page.locator("canvas.paper").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    page.locator("canvas.paper").press("Control+z")
    page.mouse.move(box["x"] + 190, box["y"] + 190)
    page.mouse.up()
    settle(page)
    assert pixels(page).min() == 255
    assert said(page) == "Draw a digit from 0 to 9."


def captum(inputs: torch.Tensor, answers: torch.Tensor, **options) -> torch.Tensor:
    """Return integrated gradients from an empty image, by Captum and PyTorch's autograd."""
    attr = pytest.importorskip("captum.attr")
    method = attr.IntegratedGradients(partial(logits_of, network()))
    return method.attribute(inputs, baselines=0.0, target=answers, **options).detach().float()


EXPLAIN = """([images, answers]) => images.map((image, i) =>
  [...attributions(layers, Uint8Array.from(image), answers[i], MEAN, STD)])"""


def test_map_of_an_answer_is_captums_and_sums_to_the_logit(page, mnist):
    images = mnist.test.images[:30]
    inputs = images / 255
    model = network()
    logits = logits_of(model, inputs).detach()
    empty_logits = logits_of(model, torch.zeros(1, 28, 28)).detach()
    answers = logits.argmax(1)
    answers[::3] = (answers[::3] + 1) % 10  # and for classes that are not the answer

    arguments = [images.flatten(1).tolist(), answers.tolist()]
    scores = torch.tensor(page.evaluate(EXPLAIN, arguments)).view(-1, 28, 28)
    largest = scores.abs().amax((1, 2))
    same_steps = captum(inputs, answers, n_steps=64, method="riemann_middle")
    many_steps = captum(inputs, answers, n_steps=1000)
    rise = (logits - empty_logits).gather(1, answers[:, None])[:, 0]
    assert ((scores - same_steps).abs().amax((1, 2)) / largest).max() <= 0.03  # 16-bit weights
    assert ((scores - many_steps).abs().amax((1, 2)) / largest).max() <= 0.1
    assert (scores.sum((1, 2)) - rise).abs().max() <= 0.5


def test_map_is_blue_for_the_answer_and_red_against_it(page):
    for place, digit in enumerate("42"):
        draw(page, STROKES[digit], left=200 * place)
    for place, digit in enumerate("42"):
        page.get_by_role("group", name="digits").get_by_role("button").nth(place).click()
        page.locator("#why[aria-busy=false]").wait_for()
        image = torch.tensor(page.evaluate("[...digits[picked].image]"))
        red, _, blue, alpha = torch.from_numpy(shown(page, "#why canvas").astype(int)).view(-1, 4).T
        assert torch.equal(alpha, image)  # only ink speaks
        scores = captum(image.view(1, 28, 28) / 255, torch.tensor([int(digit)]), n_steps=200)
        strong = (scores.flatten().abs() > 0.1 * scores.abs().max()) & (image > 100)
        assert 20 < int(strong.sum()) < 300
        assert torch.equal((blue > red)[strong], (scores.flatten() > 0)[strong])
    page.get_by_role("button", name="Clear").click()
    settle(page)
    assert shown(page, "#why canvas").max() == 0


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


def test_a_dropped_or_chosen_picture_is_classified(page, tmp_path):
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


@pytest.mark.parametrize("paper", [0, 60, 120, 255])
def test_a_picture_of_any_paper_is_read_without_margins(page, paper):
    """Beside a dark picture the pad's white margins would be brighter than its paper."""
    digits = load("digits").test
    image = digits.images[int((digits.labels == 2).nonzero()[0, 0])].numpy() / 255
    big = np.kron(image, np.ones((8, 8)))
    ink = 255 if paper == 0 else 0
    picture = png((paper + (ink - paper) * big).round().astype(np.uint8))
    page.evaluate(DROP, ["two.png", "image/png", base64.b64encode(picture).decode()])
    page.locator(".spoken", has_text="This looks like 2").wait_for(timeout=3000)


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


@pytest.mark.parametrize("width", [1000, 320])
def test_forty_digits_do_not_break_the_layout(browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(PAGE)
    before = page.locator("canvas.paper").bounding_box()
    sheet = np.full((280, 560), 255, np.uint8)
    for place in range(40):
        sheet[80:200, 4 + 14 * place : 10 + 14 * place] = 0
    page.evaluate(DROP, ["forty.png", "image/png", base64.b64encode(png(sheet)).decode()])
    page.locator("#picks:not([hidden])").wait_for()
    assert said(page) == f"This looks like {' '.join('1' * 40)}."
    picks = page.get_by_role("group", name="digits").get_by_role("button")
    assert picks.count() == 40
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("canvas.paper").bounding_box() == before
    boxes = [pick.bounding_box() for pick in picks.all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    page.close()


def test_committed_page_is_what_make_page_makes():
    published("models/enhanced_model_handwriting.pth", "web/index.html")
    spec = importlib.util.spec_from_file_location("build", WEB / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    text = (WEB / "index.html").read_text(encoding="utf-8")
    assert build.page(WEIGHTS) == text
    assert len(text.encode()) <= 1.8e6
    assert "http:" not in text
    assert "https:" not in text
