"""A person's picture becomes what MNIST's makers would have made of it, or one clear error."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, pasted, sample
from PIL import Image, ImageDraw

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.handwriting.synthetic import render_photo, write_samples
from mnist_mlp import EnhancedNet, evaluate, load, load_weights


def seven(width: int = 20, size: int = 280) -> np.ndarray:
    """Black ink on white paper."""
    sheet = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(sheet).line([(80, 60), (200, 60), (130, 230)], 0, width, joint="curve")
    return np.asarray(sheet.resize((size, size), Image.Resampling.BOX))


def difference(image: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over the pixels, of 255; a rounded centre of mass may move an image by a pixel."""
    moved = [image.int().roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(float((m - other.int()).abs().float().mean()) for m in moved)


@pytest.mark.parametrize(("rough", "points"), [(False, 1.0), (True, 3.0)])
@pytest.mark.parametrize("count", sample(400, 2000))
def test_pasted_digits_cost_few_points_of_accuracy(mnist, rough, points, count):
    random = np.random.default_rng(0)
    chosen = mnist.test.subset(torch.from_numpy(random.permutation(10_000)[:count]))
    images = [to_mnist(pasted(digit, random, rough)) for digit in chosen.images.numpy()]
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")
    before = evaluate(model, chosen).accuracy
    after = evaluate(model, replace(chosen, images=torch.stack(images))).accuracy
    print(f"as they were {before:.2%}, pasted {after:.2%}")
    assert 100 * (before - after) <= points


def test_to_mnist_returns_mnists_own_images_as_they_were(mnist):
    differences = [difference(to_mnist(image), image) for image in mnist.test.images[:500]]
    assert np.median(differences) < 6
    assert max(differences) < 40


def files(tmp_path):
    """The same seven in every form that a picture comes in."""
    grey = seven()
    image = Image.fromarray(grey)
    forms = {
        "array": grey,
        "white on black": 255 - grey,
        "float": grey / 255,
        "float32 tensor": torch.from_numpy(grey / 255).float(),
        "bool": grey < 128,
        "uint16": grey.astype(np.uint16) * 257,
        "one channel": grey[:, :, None],
        "colours": np.stack([grey] * 3, 2),
        "blue ink": np.stack([grey, grey, np.maximum(grey, 200)], 2),
        "RGBA array": np.dstack([grey, grey, grey, np.full_like(grey, 255)]),
        "black on nothing": np.dstack([np.zeros((280, 280, 3), np.uint8), 255 - grey]),
        "white on nothing": np.dstack([np.full((280, 280, 3), 255, np.uint8), 255 - grey]),
        "small": seven(size=60),
        "large": np.kron(grey, np.ones((5, 5), np.uint8)),
    }
    written = {
        "a b.png": image,
        "é.jpg": image,
        "1.gif": image,
        "bits.png": image.convert("1"),
        "palette.png": image.convert("P"),
        "32 bits.tif": image.convert("I"),
        "16 bits.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "w.webp": image,
        "cmyk.jpg": image.convert("CMYK"),
    }
    for name, picture in written.items():
        picture.save(tmp_path / name)
        forms[name] = tmp_path / name
    turned = image.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn by 270 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "mpo.jpg", "MPO", save_all=True, append_images=[image.resize((70, 70))])
    forms["turned"] = tmp_path / "turned.jpg"
    forms["open"] = Image.open(tmp_path / "turned.jpg")
    forms["mpo"] = tmp_path / "mpo.jpg"
    forms["text"] = str(tmp_path / "a b.png")
    return forms


def test_to_mnist_takes_every_form_of_a_picture(tmp_path):
    expected = to_mnist(seven())
    assert expected.shape == (28, 28)
    assert expected.dtype == torch.uint8
    assert expected.max() == 255
    for name, picture in files(tmp_path).items():
        assert difference(to_mnist(picture), expected) < 4, name


def test_digit_fills_20_pixels_around_its_centre_of_mass():
    for width in (3, 10, 30):
        image = to_mnist(seven(width)).double()
        rows, columns = (image > 25).nonzero().T
        assert 19 <= max(np.ptp(rows.numpy()), np.ptp(columns.numpy())) + 1 <= 20
        mass = [(image.sum(axis) * torch.arange(28)).sum() / image.sum() for axis in (1, 0)]
        assert np.abs(np.array(mass) - 13.5).max() <= 0.6


def test_strokes_of_a_thin_pen_are_thickened():
    thin, medium, thick = [float((to_mnist(seven(w)) > 127).sum()) for w in (1, 3, 15)]
    assert thin > 0.5 * thick
    assert medium > 0.5 * thick


def test_a_stroke_of_a_third_of_the_ink_is_kept():
    """A pen that runs dry: what is drawn with less ink belongs to the digit all the same."""
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[40:140, 130:150] = 15
    sheet[140:240, 130:150] = 255 - 72
    image = to_mnist(sheet)
    rows = (image.amax(1) > 0).nonzero()[:, 0]
    assert len(rows) == 20  # both halves, as long as each other
    lower = image[rows[-9:]].amax(1)
    assert image[rows[:9]].amax(1).min() == 255
    assert 60 <= lower.min() <= lower.max() <= 100


def test_specks_and_a_shadow_are_not_ink():
    sheet = seven().astype(float)
    y, x = np.mgrid[:280, :280] / 279
    sheet = 60 + 0.7 * sheet * (1 - 0.5 * x * y)
    sheet[20:24, 20:24] = sheet[250:253, 250:253] = 0
    assert difference(to_mnist(sheet.astype(np.uint8)), to_mnist(seven())) < 4


def test_digits_side_by_side_are_segmented_from_left_to_right():
    digits = load("digits").test
    chosen = [int((digits.labels == label).nonzero()[0, 0]) for label in (3, 1, 4, 1, 5, 9, 2, 6)]
    row = torch.nn.functional.pad(digits.images[chosen], (4, 4, 4, 4)).permute(1, 0, 2)
    sheet = 255 - np.kron(row.reshape(36, -1).numpy(), np.ones((4, 4), np.uint8))
    segmented = segment_digits(sheet)
    assert segmented.shape == (8, 28, 28)
    for image, index in zip(segmented, chosen, strict=True):
        assert difference(image, digits.images[index]) < 20


def test_to_mnist_warns_of_several_digits():
    number = render_photo("375", np.random.default_rng(0), 220)
    with pytest.warns(UserWarning, match="3 digits, .* segment_digits"):
        to_mnist(number)
    assert len(segment_digits(number)) == 3


def test_one_digit_is_not_taken_for_several(tmp_path, recwarn):
    for path, _ in write_samples(tmp_path, each=6):
        to_mnist(path)
    random = np.random.default_rng(0)
    for digit in load("digits").test.images[:100].numpy():
        to_mnist(pasted(digit, random, rough=False))
    assert not [warning for warning in recwarn if "digits" in str(warning.message)]


def test_specks_beside_digits_are_no_digits():
    sheet = np.full((200, 300), 255, np.uint8)
    sheet[60:140, 50:60] = sheet[60:140, 200:210] = sheet[10:12, 10:12] = sheet[190, 290] = 0
    assert len(segment_digits(sheet)) == 2


def test_strokes_above_each_other_are_one_digit():
    sheet = np.full((200, 300), 255, np.uint8)
    for left in (40, 180):  # an equals sign, twice
        sheet[60:80, left : left + 60] = sheet[120:140, left + 10 : left + 70] = 0
    assert len(segment_digits(sheet)) == 2


def damaged(tmp_path):
    png = tmp_path / "whole.png"
    Image.fromarray(seven()).save(png)
    content = png.read_bytes()
    frames = [Image.fromarray(seven(width)) for width in (10, 20)]
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    bomb = content[:8] + (13).to_bytes(4, "big") + header
    bomb += zlib.crc32(header).to_bytes(4, "big") + content[33:]
    written = {
        "cut.png": content[: len(content) // 2],
        "flipped.png": content[:60] + bytes(b ^ 255 for b in content[60:70]) + content[70:],
        "pdf.png": b"%PDF-1.7 and so on",
        "empty.png": b"",
        "bomb.png": bomb,
    }
    for name, part in written.items():
        (tmp_path / name).write_bytes(part)
    dot = np.full((280, 280), 255, np.uint8)
    return {
        "cut": (tmp_path / "cut.png", "damaged"),
        "flipped": (tmp_path / "flipped.png", "damaged"),
        "pdf": (tmp_path / "pdf.png", "not a picture"),
        "empty": (tmp_path / "empty.png", "not a picture"),
        "bomb": (tmp_path / "bomb.png", "100,000 x 100,000|too large"),
        "frames": (tmp_path / "moves.gif", "2 frames"),
        "blank": (dot, "no ink"),
        "grey": (dot // 2, "no ink"),
        "1 x 1": (dot[:1, :1], "no ink"),
        "noise": (np.random.default_rng(0).normal(0.5, 0.1, (280, 280)).clip(0, 1), "no ink"),
        "NaN": (np.full((9, 9), np.nan), "finite"),
        "large floats": (seven() * 1.0, "0 to 1"),
        "int64": (seven().astype(np.int64), "int64"),
        "shape": (np.zeros((2, 3, 4, 5), np.uint8), "found"),
        "nothing": (np.zeros((0, 5), np.uint8), "found"),
    }


def test_to_mnist_refuses_what_is_no_picture_in_one_line(tmp_path):
    for name, (picture, words) in damaged(tmp_path).items():
        with pytest.raises(ValueError, match=words) as caught:
            to_mnist(picture)
        assert "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError, match="none"):
        to_mnist(tmp_path / "none.png")


def test_to_mnist_reads_a_single_dot_and_a_huge_picture(tmp_path):
    sheet = np.full((280, 280), 255, np.uint8)
    sheet[140:146, 100:106] = 0
    assert to_mnist(sheet).max() == 255
    huge = Image.fromarray(np.kron(seven(size=250), np.ones((40, 40), np.uint8)))
    huge.save(tmp_path / "huge.png")
    assert difference(to_mnist(tmp_path / "huge.png"), to_mnist(seven())) < 4
