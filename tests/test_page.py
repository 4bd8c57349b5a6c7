"""The page, in a real browser: it sees the images of Python and agrees with PyTorch and Captum."""

import base64
import io
import runpy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ROOT, few_or_all, paste_digit
from PIL import Image
from test_pad import RENDER

from mnist_lab.figures import explain
from mnist_lab.handwriting.photos import KINDS, enlarge
from mnist_lab.handwriting.preprocess import analyse
from mnist_lab.handwriting.read import read as read_with_python
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


@dataclass
class PageReading:
    """What the page reads in a picture."""

    images: torch.Tensor  # uint8 of shape (N, 28, 28)
    probabilities: torch.Tensor  # float32 of shape (N, 10)
    boxes: list[list[int]]  # left, top, width and height of each digit in the picture
    row_lengths: list[int]  # the digits in each row
    warnings: list[str]


def read(page, pictures: list[np.ndarray]) -> list[PageReading]:
    """Return what the page reads in each picture."""
    code = """async (pictures) => {
      const answers = [];
      for (const picture of pictures) {
        const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
        const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
        const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
        context.drawImage(bitmap, 0, 0);
        const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height);
        const { rows, images, warnings } = analyse(pixels);
        const probabilities = images.map((image) => [...predict(layers, image, MEAN, STD)]);
        answers.push({
          images: images.map((image) => [...image]),
          probabilities,
          boxes: rows.flat().map(({ left, top, width, height }) => [left, top, width, height]),
          rowLengths: rows.map((row) => row.length),
          warnings,
        });
      }
      return answers;
    }"""
    answers = []
    for answer in page.evaluate(code, [in_base64(png(picture)) for picture in pictures]):
        images = torch.tensor(answer["images"], dtype=torch.uint8).view(-1, 28, 28)
        probabilities = torch.tensor(answer["probabilities"])
        answers.append(
            PageReading(
                images=images,
                probabilities=probabilities,
                boxes=answer["boxes"],
                row_lengths=answer["rowLengths"],
                warnings=answer["warnings"],
            )
        )
    return answers


def read_by_python(picture: np.ndarray) -> PageReading:
    """Return what Python reads in a picture, without the probabilities."""
    try:
        analysed = analyse(picture)
    except ValueError:  # there is no ink
        return PageReading(torch.empty(0, 28, 28), torch.empty(0, 10), [], [], [])
    row_lengths = [len(row) for row in analysed.rows]
    boxes = [[digit.left, digit.top, digit.width, digit.height] for digit in analysed.digits]
    return PageReading(analysed.images, torch.empty(0, 10), boxes, row_lengths, analysed.warnings)


def assert_same_reading(answer: PageReading, expected: PageReading) -> None:
    assert answer.row_lengths == expected.row_lengths
    assert answer.warnings == expected.warnings
    assert answer.boxes == expected.boxes
    assert ((answer.images.int() - expected.images.int()).abs() <= 1).all()


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
    for i in range(count // 2):
        pictures.append(number(digits[random.integers(0, 1000, 2 + i % 4)], random))

    answers = read(page, pictures)

    for answer, picture in zip(answers, pictures, strict=True):
        expected = read_by_python(picture)
        assert_same_reading(answer, expected)
        expected_probabilities = network.predict_proba((expected.images / 255 - MEAN) / STD)
        assert (answer.probabilities - expected_probabilities).abs().max() <= 2e-3  # 16-bit weights


@pytest.mark.parametrize("count", few_or_all(3, 60))
def test_page_drops_lines_edges_and_crops_as_python_does(page, mnist, count):
    pictures = []
    for make_picture in KINDS.values():
        for i in range(count):
            picture = make_picture(enlarge(mnist.test.images[i]), np.random.default_rng(i))
            pictures.append(picture * 255 if picture.max() == 1 else picture)

    answers = read(page, pictures)

    n_warned = 0
    for answer, picture in zip(answers, pictures, strict=True):
        assert_same_reading(answer, read_by_python(picture))
        n_warned += bool(answer.warnings)
    assert n_warned >= len(pictures) / 3


def test_page_groups_strokes_as_python_does(page):
    sheet = np.full((280, 560), 255, np.uint8)
    pictures = [sheet]
    row_lengths = [[]]

    # Two slanted bars 100 columns wide: one digit if they overlap on 40 columns, else two.
    for shift in (60, 61, 140):
        bars = sheet.copy()
        for column in range(100):
            bars[150 - column : 170 - column, 100 + column] = 0
            bars[150 - column : 177 - column, 100 + shift + column] = 0
        pictures.append(bars)
        row_lengths.append([1] if shift == 60 else [2])

    five = sheet.copy()
    five[100:120, 100:170] = five[120:180, 100:120] = five[160:180, 100:170] = 0
    five[180:240, 150:170] = five[220:240, 90:170] = 0
    roof = five.copy()
    roof[70:90, 100:190] = 0
    flag = five.copy()
    flag[50:90, 180:230] = 0  # beside the digit, but less than half as high
    specks = five.copy()
    specks[20:23, 20:23] = specks[250:254, 500:504] = 0
    box = sheet.copy()
    # Its width becomes 12.5 of 20 pixels. Python rounds half to even, JavaScript rounds half up.
    box[50:130, 100:150] = 0
    pictures += [five, roof, flag, specks, box]
    row_lengths += [[1]] * 5

    mark = five.copy()
    mark[10:40, 400:470] = 0
    above = sheet.copy()
    above[20:120, 100:110] = above[150:250, 100:110] = above[150:250, 300:310] = 0
    halves = sheet.copy()
    halves[20:120, 100:110] = halves[130:250, 100:110] = 0
    wide = sheet.copy()
    for left in (40, 140, 260, 400):
        wide[60:200, left : left + 16] = wide[60:76, left : left + 70] = 0
    wide[130:136, 260:400] = 0  # joins two digits
    pictures += [mark, above, halves, wide]
    row_lengths += [[1], [1, 2], [1], [4]]

    answers = read(page, pictures)

    for answer, picture, lengths in zip(answers, pictures, row_lengths, strict=True):
        assert_same_reading(answer, read_by_python(picture))
        assert answer.row_lengths == lengths


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
    answer = read(page, [pixels(page)[..., 0]])[0]
    sure = [f"{100 * p:.0f}%" for p in answer.probabilities.amax(1).tolist()]

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
        np.testing.assert_array_equal(pixels(page, "canvas.seen")[..., 0], answer.images[i])

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
    images = read(page, [pixels(page)[..., 0]])[0].images

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


def test_page_reads_rows_and_tells_its_doubt(page):
    sheet = np.full((280, 560), 255, np.uint8)
    for top, lefts in ((20, (100, 200)), (160, (100, 200, 300))):
        for left in lefts:
            sheet[top : top + 100, left : left + 14] = 0
    sheet[:, :12] = 60  # a strip of the table

    drop(page, "rows.png", png(sheet))

    page.locator(".sentence", has_text="This looks like 1 1 / 1 1 1.").wait_for()
    assert "edge" in page.locator(".doubt").inner_text()
    press(page, "Escape")
    assert page.locator(".doubt").inner_text() == ""


def open_fold(page) -> None:
    page.locator("summary").click()
    page.locator("#stage-digits .box").first.wait_for()


def sheet_with_everything() -> np.ndarray:
    """Two rows of bars on a shaded sheet, with ruled lines, a strip of the table and specks."""
    sheet = np.tile(np.linspace(150, 230, 560), (280, 1))
    sheet[[100, 101, 200, 201]] = 120
    for top, lefts in ((20, (100, 200)), (120, (100, 200, 300))):
        for left in lefts:
            sheet[top : top + 70, left : left + 14] = 30
    sheet[40:44, 400:404] = 30  # a speck
    sheet[220:250, 500:512] = 30  # a mark beside the digits
    sheet[:, :40] = 60  # a strip of the table
    return sheet.round().astype(np.uint8)


def test_page_shows_the_stages_that_explain_draws(page):
    sheet = sheet_with_everything()
    figure = explain(sheet)
    picture, paper, ink, strength, images = [ax.images[0].get_array() for ax in figure.axes]
    expected_boxes = [
        [box.get_x() + 0.5, box.get_y() + 0.5, box.get_width(), box.get_height()]
        for box in figure.axes[3].patches
    ]

    drop(page, "sheet.png", png(sheet))
    page.locator(".sentence", has_text="This looks like 1 1 / 1 1 1.").wait_for()
    open_fold(page)

    shown = {}
    for name in ("picture", "paper", "ink", "digits"):
        shown[name] = pixels(page, f"#stage-{name} canvas")[..., :3].astype(int)
    for name, expected in {"picture": picture, "paper": paper, "digits": 1 - strength}.items():
        np.testing.assert_allclose(shown[name], np.stack([255 * expected] * 3, axis=2), atol=1.01)

    # The page also paints specks and marks, which explain shows like paper and like ink.
    is_small = (shown["ink"] == (0, 158, 115)).all(2)
    assert is_small[40:44, 400:404].all()
    assert is_small[225:245, 502:510].all()
    assert not is_small[:, :390].any()
    np.testing.assert_allclose(shown["ink"][~is_small], 255 * ink[~is_small], atol=1.01)
    legend = page.locator("#stage-ink .legend > span").all_inner_texts()
    assert [reason.strip() for reason in legend] == ["line", "edge", "small"]

    code = """boxes => boxes.map(({ style, textContent }) => [
      5.6 * parseFloat(style.left), 2.8 * parseFloat(style.top),
      5.6 * parseFloat(style.width), 2.8 * parseFloat(style.height), textContent])"""
    boxes = page.locator("#stage-digits .box").evaluate_all(code)
    np.testing.assert_allclose([box[:4] for box in boxes], expected_boxes, atol=0.01)
    assert [box[4] for box in boxes] == ["1"] * 5

    rows = page.locator(".image-row").all()
    assert [row.locator("canvas").count() for row in rows] == [2, 3]
    answers = [text.split() for text in page.locator(".image-row div").all_inner_texts()]
    assert answers == [text.split() for text in picks(page).all_inner_texts()]
    for y, row in enumerate(rows):
        for x in range(row.locator("canvas").count()):
            canvas = f".image-row:nth-child({y + 1}) div:nth-child({x + 1}) canvas"
            seen = pixels(page, canvas)[..., 0].astype(int)
            expected = images[28 * y : 28 * (y + 1), 28 * x : 28 * (x + 1)].astype(int)
            assert abs(seen - expected).max() <= 1


def test_page_draws_the_stages_only_while_the_fold_is_open(page):
    paints = """() => {
      window.paintCount = 0;
      const paint = paintStage;
      paintStage = (...stage) => { window.paintCount++; paint(...stage); };
    }"""
    page.evaluate(paints)

    draw(page, STROKES["7"])
    page.wait_for_timeout(300)  # longer than the page waits before it paints
    assert page.evaluate("paintCount") == 0
    open_fold(page)
    assert page.evaluate("paintCount") == 4
    assert page.locator("#stage-digits .box").all_inner_texts() == ["7"]

    draw(page, STROKES["1"], left=200)
    page.locator("#stage-digits .box", has_text="1").wait_for()
    assert page.locator("#stage-digits .box").all_inner_texts() == ["7", "1"]
    click(page, "Clear")
    page.locator("#nothing-read").wait_for()
    assert page.locator("#stages figure:visible").count() == 0


def test_page_tells_the_warnings_of_python(page, network):
    cross = np.full((280, 560), 255, np.uint8)
    cross[60:220, 100:116] = 0  # a 1 beside it
    for i in range(160):
        cross[60 + i, 220 + i : 236 + i] = cross[60 + i, 364 - i : 380 - i] = 0
    assert "in doubt" in read_with_python(network, cross).warnings[0]

    for sheet in (sheet_with_everything(), cross):
        expected = read_with_python(network, sheet)
        drop(page, "sheet.png", png(sheet))
        page.locator("#digit-buttons:not([hidden])").wait_for()
        settle(page)

        sentences = [warning[0].upper() + warning[1:] for warning in expected.warnings]
        assert sentences
        assert page.locator(".doubt").inner_text() == " ".join(sentences)
        shown = [text.split() for text in picks(page).all_inner_texts()]
        assert shown == [[d.label, f"{100 * d.probability:.0f}%"] for d in expected.digits]
        press(page, "Escape")


@pytest.mark.parametrize("width", [390, 320])
def test_page_fits_a_phone(browser, width):
    page = browser.new_page(
        viewport={"width": width, "height": 844},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=3,
    )
    page.goto(PAGE)
    drop(page, "sheet.png", png(sheet_with_everything()))
    page.locator("#digit-buttons:not([hidden])").wait_for()
    page.locator("summary").tap()
    page.locator("#stage-digits .box").first.wait_for()

    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    pad = page.locator("canvas.paper").bounding_box()
    assert pad["x"] >= 0
    assert pad["x"] + pad["width"] <= width
    for button in page.locator("button:visible, summary").all():
        assert button.bounding_box()["height"] >= 40
    boxes = [figure.bounding_box() for figure in page.locator("#stages figure").all()]
    for above, below in pairwise(boxes):
        assert above["y"] + above["height"] <= below["y"]
        assert above["x"] == below["x"]
    page.close()


def code_like(n_modules: int) -> np.ndarray:
    """Random squares as in a QR code, which shows no digits."""
    modules = np.random.default_rng(0).integers(0, 2, (n_modules, n_modules))
    return np.pad(255 - 255 * np.kron(modules, np.ones((6, 6))), 24, constant_values=255)


def two_inks() -> np.ndarray:
    sheet = np.zeros((200, 400, 4), np.uint8)
    sheet[30:170, 90:110] = (0, 0, 0, 255)
    sheet[30:170, 250:270] = 255
    return sheet


def thin_bar(size: int, top: int, bottom: int) -> np.ndarray:
    sheet = np.full((size, size), 255)
    sheet[top:bottom, size // 2] = 0
    return sheet


BAD_PICTURES = {
    "black": (np.zeros((300, 300)), "There is no ink on the pad.", ""),
    "one pixel": (np.zeros((1, 1)), "There is no ink on the pad.", ""),
    "two inks": (two_inks(), "This looks like 1 1", ""),
    "5x5": (thin_bar(5, 1, 4), "This looks like", "The digits are only 3 pixels high"),
    "28x28": (thin_bar(28, 11, 17), "This looks like", "pixels high"),
    "thumbnail": (thin_bar(28, 4, 24), "This looks like 1", ""),
    "code": (code_like(57), "This looks like", "may be no digits"),
    "pattern": (np.kron(np.eye(2), np.ones((2, 2))), "There are more than 500 pieces of ink", ""),
    "large": (thin_bar(10, 2, 8), "This looks like 1", ""),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_page_answers_bad_pictures_with_a_sentence(page, name):
    picture, sentence, doubt = BAD_PICTURES[name]
    if name == "pattern":
        picture = 255 * (1 - np.tile(np.pad(picture, (0, 2)), (40, 80)))
    if name == "large":
        picture = np.kron(picture.astype(np.uint8), np.ones((1000, 1000), np.uint8))

    drop(page, "x.png", png(picture.astype(np.uint8)))

    page.locator(".sentence", has_text=sentence).wait_for(timeout=20_000)
    told = page.locator(".doubt").inner_text()
    assert doubt in told if doubt else told == ""
    page.locator("summary").click()
    page.locator("#stage-picture canvas").wait_for()


def test_page_shows_the_picture_that_was_opened_last(page):
    large = np.kron(thin_bar(10, 2, 8).astype(np.uint8), np.ones((600, 600), np.uint8))
    drop(page, "large.png", png(large))
    drop(page, "black.png", png(np.zeros((300, 300), np.uint8)))

    page.locator(".sentence", has_text="There is no ink on the pad.").wait_for()
    page.wait_for_timeout(1500)  # longer than it takes to decode the large one
    assert spoken(page) == "There is no ink on the pad."


@pytest.mark.parametrize("ink", [0, 255])
def test_page_reads_transparent_ink_of_either_colour(page, ink):
    sheet = np.zeros((200, 200, 4), np.uint8)
    sheet[..., :3] = ink
    sheet[30:170, 92:108, 3] = 255

    drop(page, "ink.png", png(sheet))

    page.locator(".sentence", has_text="This looks like 1").wait_for()


CHANGE_PIXELS = """const read = CanvasRenderingContext2D.prototype.getImageData;
CanvasRenderingContext2D.prototype.getImageData = function (...area) {
  const picture = read.apply(this, area);
  for (let i = 0; i < picture.data.length; i++) if (i % 4 !== 3) picture.data[i] = VALUE;
  return picture;
}"""
PROTECTIONS = {
    "random": CHANGE_PIXELS.replace("VALUE", "Math.random() * 256"),
    "white": CHANGE_PIXELS.replace("VALUE", "255"),
    "refused": """CanvasRenderingContext2D.prototype.getImageData = function () {
      throw new DOMException("no", "SecurityError");
    }""",
    "noise": CHANGE_PIXELS.replace("VALUE", "picture.data[i] ^ (Math.random() < 0.5)"),
}


@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("place", ["page", "notebook"])
def test_pad_tells_that_the_browser_hides_its_drawing(browser, protection, place):
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.add_init_script(PROTECTIONS[protection])
    page.goto(PAGE if place == "page" else "about:blank")
    if place == "notebook":
        folder = ROOT / "src" / "mnist_lab" / "handwriting"
        page.evaluate(RENDER, (folder / "pad.js").read_text() + (folder / "widget.js").read_text())

    draw(page, STROKES["7"])

    assert ("browser" in spoken(page)) == (protection != "noise")
    if protection == "noise" and place == "page":
        assert spoken(page).startswith("This looks like 7")
    page.close()


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
