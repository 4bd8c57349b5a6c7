"""Handwriting fonts are read in two halves: one to choose on, the other to report."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import maximum_filter

from mnist_lab.handwriting import fonts
from mnist_lab.handwriting.preprocess import to_mnist


def test_read_fonts_returns_ten_digits_per_font():
    digits = np.stack(list(fonts.read_fonts().values()))

    assert digits.shape == (103, 10, 48, 48)
    assert (digits.max((2, 3)) > 0.6).all()  # none is empty, however thin
    assert digits[:, 1].sum() < 0.8 * digits[:, 8].sum()  # a 1 has less ink than an 8


def test_read_half_splits_the_fonts_in_two():
    to_choose = list(fonts.read_half(0))
    to_report = list(fonts.read_half(1))

    all_fonts = list(fonts.read_fonts())
    assert sorted(to_choose + to_report) == sorted(all_fonts)
    assert to_choose[:2] == [all_fonts[0], all_fonts[2]]
    assert abs(len(to_choose) - len(to_report)) == 1


def test_write_with_pens_has_every_pen_and_slant():
    two_fonts = list(fonts.read_half(1).values())[:2]

    pictures = fonts.write_with_pens(two_fonts)

    ink = [sum((1 - picture).sum() for picture, _ in of_pen) for of_pen in pictures.values()]
    assert list(pictures) == ["thin", "medium", "thick"]
    assert ink[0] < ink[1] < ink[2]
    digits = [digit for _, digit in pictures["thin"]]
    assert digits == 2 * [digit for digit in "0123456789" for _ in range(3)]


def test_font_digits_are_the_pictures_as_to_mnist_reads_them(monkeypatch):
    all_fonts = fonts.read_half(1)
    two_fonts = {name: all_fonts[name] for name in ["Playwrite AR", next(iter(all_fonts))]}
    monkeypatch.setattr(fonts, "read_half", lambda half: two_fonts)

    pictures = fonts.font_pictures(1)
    datasets = fonts.font_digits(1)

    assert len(datasets) == 6  # two groups of fonts, three pens
    for group, dataset in datasets.items():
        assert len(dataset) == len(pictures[group]) == 30
        for i, (picture, digit) in enumerate(pictures[group]):
            assert int(dataset.labels[i]) == int(digit)
            assert torch.equal(dataset.images[i], to_mnist(picture))


def test_write_with_pens_slants_as_pillow_does():
    font = fonts.read_half(1)["Playwrite AR"]
    picture = Image.fromarray(np.pad(font[4], 16))

    pictures = fonts.write_with_pens([font])["thin"][12:15]

    for (drawn, _), slant in zip(pictures, fonts.SLANTS, strict=True):
        shear = (1, slant, -slant * 40, 0, 1, 0)  # around the middle row
        slanted = picture.transform((80, 80), Image.AFFINE, shear, Image.BILINEAR)
        difference = to_mnist(drawn).int() - to_mnist(1 - np.asarray(slanted)).int()
        assert difference.abs().float().mean() < 4


def test_ones_are_the_school_fonts_of_a_half():
    names, images = fonts.ones(1)

    expected = [name for name in fonts.read_half(1) if name.startswith("Playwrite ")]
    assert [f"Playwrite {name}" for name in names] == expected
    assert images.shape == (len(names), 28, 28)
    assert images[:, 7:21].amax(2).min() > 100  # each has a stem from top to bottom


def test_slanted_digits_stay_on_their_paper():
    for digit in np.concatenate(list(fonts.read_half(1).values())):
        thick = maximum_filter(np.pad(digit, fonts.MARGIN), 5)
        for slant in fonts.SLANTS:
            assert fonts._slant(thick, slant).sum() == pytest.approx(thick.sum(), rel=0.01)
