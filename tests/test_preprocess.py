"""A person's picture becomes what MNIST's makers would have made of it, or one clear error."""

import sys
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, few_or_all, paste_digit
from PIL import Image, ImageDraw

from mnist_lab.handwriting.pictures import read_reduced
from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.handwriting.synthetic import render_photo, write_samples
from mnist_mlp import EnhancedNet, evaluate, load, load_weights


def draw_seven(width: int = 20, size: int = 280) -> np.ndarray:
    """Draw black ink on white paper."""
    sheet = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(sheet).line([(80, 60), (200, 60), (130, 230)], 0, width, joint="curve")
    return np.asarray(sheet.resize((size, size), Image.Resampling.BOX))


SEVEN = draw_seven()
BLANK = np.full_like(SEVEN, 255)


def difference(image: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean absolute pixel difference (0 to 255), the smallest over shifts of one pixel."""
    moved = [image.int().roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(float((each - expected.int()).abs().float().mean()) for each in moved)


@pytest.mark.filterwarnings("ignore:the picture seems to hold", "ignore:some digits seem to touch")
@pytest.mark.parametrize(("rough", "points"), [(False, 1.0), (True, 3.0)])
@pytest.mark.parametrize("count", few_or_all(100, 2000))
def test_to_mnist_costs_few_points_of_accuracy(mnist, rough, points, count):
    random = np.random.default_rng(0)
    chosen = mnist.test.subset(torch.from_numpy(random.permutation(10_000)[:count]))
    images = [to_mnist(paste_digit(digit, random, rough)) for digit in chosen.images.numpy()]
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")

    before = evaluate(model, chosen).accuracy
    after = evaluate(model, replace(chosen, images=torch.stack(images))).accuracy

    assert 100 * (before - after) <= points


def test_to_mnist_keeps_mnists_own_images(mnist):
    differences = [difference(to_mnist(image), image) for image in mnist.test.images[:100]]

    assert np.median(differences) < 6
    assert max(differences) < 40


TRANSPARENT = np.dstack([np.zeros((280, 280, 3), np.uint8), 255 - SEVEN])
PICTURES = {
    "white on black": 255 - SEVEN,
    "float": SEVEN / 255,
    "float32 tensor": torch.from_numpy(SEVEN / 255).float(),
    "bool": SEVEN < 128,
    "uint16": SEVEN.astype(np.uint16) * 257,
    "16-bit image": Image.fromarray(SEVEN.astype(np.uint16) * 257),
    "one channel": SEVEN[:, :, None],
    "blue ink": np.dstack([SEVEN, SEVEN, np.maximum(SEVEN, 200)]),
    "float colours": np.dstack([SEVEN / 255] * 3),
    "uint16 colours": np.dstack([SEVEN.astype(np.uint16) * 256] * 3),
    "black on nothing": TRANSPARENT,
    "white on nothing": TRANSPARENT + np.array([255, 255, 255, 0], np.uint8),
    "small": draw_seven(size=60),
    "large": np.kron(SEVEN, np.ones((5, 5), np.uint8)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_to_mnist_takes_arrays_and_images(name):
    image = to_mnist(PICTURES[name])

    assert image.dtype == torch.uint8
    assert image.max() == 255
    assert difference(image, to_mnist(SEVEN)) < 4


@pytest.mark.parametrize(
    ("name", "mode"),
    [("é.jpg", "L"), ("c d.jpg", "CMYK"), ("1.gif", "P"), ("bits.png", "1"), ("32.tif", "I")],
)
def test_to_mnist_takes_files(tmp_path, name, mode):
    Image.fromarray(SEVEN).convert(mode).save(tmp_path / name)

    assert difference(to_mnist(str(tmp_path / name)), to_mnist(SEVEN)) < 4


def test_to_mnist_takes_photos_as_cameras_store_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn by 270 degrees
    photo = Image.fromarray(SEVEN).rotate(90, expand=True)
    preview = photo.resize((70, 70))
    photo.save(tmp_path / "a.jpg", "MPO", exif=exif, save_all=True, append_images=[preview])

    assert difference(to_mnist(tmp_path / "a.jpg"), to_mnist(SEVEN)) < 4
    assert difference(to_mnist(Image.open(tmp_path / "a.jpg")), to_mnist(SEVEN)) < 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_to_mnist_reads_heic_like_the_same_png(tmp_path, orientation):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()  # so that Pillow can save
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.fromarray(SEVEN).convert("RGB")
    photo.save(tmp_path / "a.png", exif=exif)
    Image.open(tmp_path / "a.png").save(tmp_path / "a.heic", quality=90)
    upright = {1: SEVEN, 3: SEVEN[::-1, ::-1], 6: np.rot90(SEVEN, -1), 8: np.rot90(SEVEN)}

    image = to_mnist(tmp_path / "a.heic")

    assert difference(image, to_mnist(tmp_path / "a.png")) < 2
    assert difference(image, to_mnist(upright[orientation].copy())) < 2


@pytest.mark.parametrize("name", ["a.heic", "A.HEIF", "renamed.jpg"])
def test_to_mnist_tells_what_heic_needs(tmp_path, monkeypatch, name):
    start = bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(12)
    (tmp_path / name).write_bytes(start)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    with pytest.raises(ValueError, match=rf"{name}.*pip install -e '\.\[heic\]'.*JPEG\.$"):
        to_mnist(tmp_path / name)


def test_to_mnist_reads_a_picture_of_100_megapixels(tmp_path):
    picture = Image.fromarray(draw_seven(size=250)).convert("1")
    picture.resize((10_000, 10_000)).save(tmp_path / "huge.png")

    assert difference(to_mnist(tmp_path / "huge.png"), to_mnist(SEVEN)) < 4


def test_to_mnist_thickens_thin_strokes():
    ink = [int((to_mnist(draw_seven(width)) > 127).sum()) for width in (1, 3, 15)]

    assert min(ink) > 0.5 * max(ink)


def test_to_mnist_treats_rows_and_columns_alike():
    sheet = Image.fromarray(BLANK)
    ImageDraw.Draw(sheet).line([(140, 40), (160, 240)], 0, 2)
    upright = np.asarray(sheet)

    assert difference(to_mnist(upright.T), to_mnist(upright).T) < 1


def test_to_mnist_keeps_a_stroke_with_a_third_of_the_ink():
    full_ink = 240
    third = full_ink // 3
    sheet = BLANK.copy()
    sheet[40:140, 130:150] = 255 - full_ink
    sheet[140:240, 130:150] = 255 - third

    rows = to_mnist(sheet).amax(1)

    rows = rows[rows > 0]
    assert len(rows) == 20
    assert rows[:9].min() == 255
    assert 60 <= rows[-9:].min() <= rows[-9:].max() <= 100


def test_to_mnist_drops_specks_and_a_shadow():
    y, x = np.mgrid[:280, :280] / 279
    sheet = 60 + 0.7 * SEVEN * (1 - 0.5 * x * y)
    sheet[20:24, 20:24] = 0
    sheet[250:253, 250:253] = 0

    assert difference(to_mnist(sheet.astype(np.uint8)), to_mnist(SEVEN)) < 4


def test_to_mnist_warns_of_several_digits():
    with pytest.warns(UserWarning, match="3 digits"):
        to_mnist(render_photo("375", np.random.default_rng(0), 220))


def test_to_mnist_does_not_warn_of_one_digit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, _ in write_samples(tmp_path, each=3):
            to_mnist(path)


def test_segment_digits_finds_them_from_left_to_right():
    digits = load("digits").test
    chosen = [int((digits.labels == label).nonzero()[0, 0]) for label in (3, 1, 4, 1, 5, 9, 2, 6)]
    row = torch.nn.functional.pad(digits.images[chosen], (4, 4, 4, 4)).permute(1, 0, 2)
    sheet = 255 - np.kron(row.reshape(36, -1).numpy(), np.ones((4, 4), np.uint8))

    segmented = segment_digits(sheet)

    assert segmented.shape == (8, 28, 28)
    for image, index in zip(segmented, chosen, strict=True):
        assert difference(image, digits.images[index]) < 20


@pytest.mark.filterwarnings("ignore:some digits seem to touch")
def test_segment_digits_joins_strokes_and_drops_specks():
    sheet = np.full((200, 300), 255, np.uint8)
    for left in (20, 170):  # twice a long stroke over two short ones
        sheet[60:80, left : left + 100] = 0
        sheet[120:140, left + 5 : left + 30] = 0
        sheet[120:140, left + 60 : left + 95] = 0
    sheet[10:12, 10:12] = 0

    assert len(segment_digits(sheet)) == 2


REFUSED = {
    "grey": (BLANK // 2, "ink"),
    "1 x 1": (BLANK[:1, :1], "ink"),
    "noise": (np.random.default_rng(0).normal(0.5, 0.1, (280, 280)).clip(0, 1), "ink"),
    "NaN": (np.full((9, 9), np.nan), "finite"),
    "large floats": (SEVEN * 1.0, "255"),
    "large colours": (np.dstack([SEVEN * 1.0] * 3), "between 0 and 1"),
    "int64": (SEVEN.astype(np.int64), "int64"),
    "4 axes": (np.zeros((2, 3, 4, 5), np.uint8), r"\(2, 3, 4, 5\)"),
    "empty": (np.zeros((0, 5), np.uint8), r"\(0, 5\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_to_mnist_refuses_arrays(name):
    picture, message = REFUSED[name]

    with pytest.raises(ValueError, match=message):
        to_mnist(picture)


def test_to_mnist_refuses_files(tmp_path):
    frames = [Image.fromarray(draw_seven(width)) for width in (10, 20, 30)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(SEVEN).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    bomb = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "pdf.png").write_bytes(b"%PDF-1.7 and so on")
    (tmp_path / "empty.png").write_bytes(b"")

    reasons = {"moves": "frames", "bomb": "pixels", "cut": "damaged", "pdf": "not", "empty": "not"}
    for path in tmp_path.iterdir():
        if path.name != "whole.png":
            with pytest.raises(ValueError, match=f"{path.name}.* {reasons[path.stem]}"):
                to_mnist(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        to_mnist(tmp_path / "missing.png")


def test_long_pictures_are_reduced_by_their_longer_side():
    grey, reduction = read_reduced(np.zeros((100, 1300), np.uint8))

    assert grey.shape == (34, 434)
    assert reduction == 3
