import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import canny
from skimage.transform import AffineTransform, warp
from skimage.util import random_noise

from mnist_lab.research.corruptions import CORRUPTIONS, corrupt, plasma
from mnist_mlp import load


@pytest.fixture(scope="module")
def digits():
    return load("digits").test.subset(torch.arange(60))


@pytest.fixture
def images(digits):
    return digits.images.numpy() / 255


def random():
    return np.random.default_rng(0)


def test_they_are_the_fifteen_of_mnist_c():
    names = (
        "shot_noise impulse_noise glass_blur motion_blur shear scale rotate brightness translate "
        "stripe fog spatter dotted_line zigzag canny_edges"
    )
    assert list(CORRUPTIONS) == names.split()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_every_image_the_same_way_each_time_and_no_label(digits, name):
    before = digits.images.clone()
    found, again = corrupt(digits, name), corrupt(digits, name)
    assert torch.equal(before, digits.images)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.labels, digits.labels)
    changed = (found.images != digits.images).flatten(1).float().mean(1)
    assert changed.min() > 0.01
    assert found.images.float().std((1, 2)).min() > 10  # there is still something to see


def test_the_amounts_of_noise_are_as_defined():
    grey = np.full((400, 28, 28), 0.5)
    shots = CORRUPTIONS["shot_noise"](grey, random())
    assert shots.mean() == pytest.approx(0.5, abs=0.005)
    assert shots.var() == pytest.approx(0.5 / 3, rel=0.02)
    struck = CORRUPTIONS["impulse_noise"](grey, random())
    oracle = random_noise(grey, "s&p", rng=1, amount=0.17)
    for value in (0.0, 0.5, 1.0):
        assert (struck == value).mean() == pytest.approx((oracle == value).mean(), abs=0.004)


def test_glass_blur_moves_pixels_up_and_left_within_two_steps_of_each_other():
    images = np.zeros((500, 28, 28))
    images[:, 14, 14] = 1
    found = CORRUPTIONS["glass_blur"](images, random())
    column_of = found.sum(1).argmax(1)  # no blur along the rows: the dot stays in one column
    assert (found.sum(1) > 0).sum(1).max() <= 7  # the blurred dot's pixels, each shuffled
    assert set(column_of) >= {12, 13, 14, 15}
    assert abs(column_of - 14).max() <= 13
    assert np.bincount(column_of).argmax() in (13, 14, 15)
    assert found.sum((1, 2)) == pytest.approx(1, abs=0.05)


def test_glass_blur_of_stripes_along_the_blur_only_shuffles():
    """Columns of one grey: the vertical blur does nothing, and swaps keep the grey values."""
    images = np.repeat(np.linspace(0, 1, 28)[None, None], 28, 1)
    found = CORRUPTIONS["glass_blur"](images, random())
    assert found.sum() == pytest.approx(images.sum(), rel=0.01)
    assert abs(np.diff(found, axis=1)).max() > 0.01


def test_motion_blur_draws_a_dot_out_along_a_random_line_within_45_degrees():
    images = np.zeros((300, 28, 28))
    images[:, 14, 25] = 1
    found = CORRUPTIONS["motion_blur"](images, random())
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    slopes = []
    for image in found:
        rows, columns = np.nonzero(image)
        assert image[14, 25] >= (weights / weights.sum())[0] - 1e-9
        assert columns.max() == 25
        slopes.append(np.polyfit(columns, rows, 1, w=image[rows, columns])[0])
        per_column = image.sum(0)[25:4:-1]
        if abs(slopes[-1]) < 0.05:  # one pixel a step
            assert per_column == pytest.approx(weights / weights.sum(), abs=1e-9)
    degrees = np.degrees(np.arctan(slopes))
    assert -46 < degrees.min() < -38
    assert 38 < degrees.max() < 46


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("scale", lambda sign: AffineTransform(scale=(1 / 0.7, 1 / 0.7))),
        ("rotate", lambda sign: AffineTransform(rotation=0.4 * sign)),
        (
            "shear",
            lambda sign: AffineTransform(
                np.array([[1, -np.sin(0.4 * sign), 0], [0, np.cos(0.4), 0], [0, 0, 1]])
            ),
        ),
    ],
)
def test_an_affine_corruption_is_scikit_images_about_the_centre(images, name, transform):
    found, signs = CORRUPTIONS[name](images, random()), set()
    for image, changed in zip(images, found, strict=True):
        errors = {}
        for sign in (-1, 1):
            there = AffineTransform(translation=(-13.5, -13.5)) + transform(sign)
            whole = there + AffineTransform(translation=(13.5, 13.5))
            errors[sign] = abs(warp(image, whole) - changed)
        sign = min(errors, key=lambda s: errors[s].sum())
        assert errors[sign].max() < 1e-6
        signs.add(sign)
    assert len(signs) == 2 or name == "scale"


def test_a_translation_shifts_by_three_pixels_in_all_four_diagonal_directions(images):
    found, corners = CORRUPTIONS["translate"](images, random()), set()
    for image, moved in zip(images, found, strict=True):
        options = {(y, x): ndimage.shift(image, (y, x), order=0) for y in (-3, 3) for x in (-3, 3)}
        (corner,) = [k for k, option in options.items() if np.allclose(option, moved)]
        corners.add(corner)
    assert len(corners) == 4


def test_brightness_adds_a_half_and_stripes_invert_seven_columns_at_each_side(images):
    assert np.array_equal(CORRUPTIONS["brightness"](images, random()), images + 0.5)
    found = CORRUPTIONS["stripe"](images, random())
    assert np.array_equal(found[:, :, 7:21], images[:, :, 7:21])
    for sides in (slice(0, 7), slice(21, 28)):
        assert np.array_equal(found[:, :, sides], 1 - images[:, :, sides])


def test_clouds_are_rough_at_every_scale_and_do_not_repeat():
    clouds = plasma(300, random())
    assert (clouds.min((1, 2)) == 0).all()
    assert (clouds.max((1, 2)) == 1).all()
    assert len({each.tobytes() for each in clouds}) == 300
    # A step of twice the size sees differences larger by the decay, 1.96, or less.
    steps = [abs(clouds - np.roll(clouds, s, 2)).mean() for s in (1, 2, 4, 8)]
    for fine, coarse in itertools.pairwise(steps):
        assert 1.4 < coarse / fine < 1.7  # 1.3 if the decay were its root


def test_fog_covers_the_whole_image_and_keeps_its_highest_value_as_the_bound(images):
    found = CORRUPTIONS["fog"](images, random())
    highest = images.max((1, 2))
    assert (found.max((1, 2)) <= highest + 1e-9).all()
    black = found[images == 0]
    assert 0.25 < black.mean() < 0.5  # three quarters of the clouds' mean


def test_spatter_paints_spots_of_grey_63_with_soft_edges():
    """On black each pixel is the mask times the grey; on white they darken."""
    black, white = (CORRUPTIONS["spatter"](np.full((200, 28, 28), x), random()) for x in (0.0, 1.0))
    mask = black * 255 / 63
    assert white == pytest.approx(1 - mask + black)
    assert ((mask == 0) | ((mask >= 0.8) & (mask <= 1 + 1e-9))).all()
    assert 0.1 < (mask > 0).mean() < 0.5


def test_a_dotted_line_goes_from_edge_to_edge_two_columns_on_and_two_off():
    found = CORRUPTIONS["dotted_line"](np.zeros((200, 28, 28)), random())
    inked = found.max(1) > 0.5
    assert (inked == (np.arange(28) % 4 >= 2) & (np.arange(28) < 27)).all()
    widths = (found[:, :, 2] > 0).sum(1)
    assert set(widths) <= {2, 3, 4, 5, 6}
    # Its middle lies on a straight line.
    columns = np.flatnonzero(inked[0])
    centres = (found * np.arange(28)[:, None]).sum(1) / found.sum(1).clip(1e-9)
    inside = (found[:, :3] == 0).all((1, 2)) & (found[:, -3:] == 0).all((1, 2))
    for line in centres[inside][:, columns]:
        assert abs(line - np.polyval(np.polyfit(columns, line, 1), columns)).max() < 0.5


def test_a_zigzag_swings_two_pixels_about_a_line_and_turns_every_four():
    found = CORRUPTIONS["zigzag"](np.zeros((400, 28, 28)), random())
    centres = (found * np.arange(28)[:, None]).sum(1) / found.sum(1).clip(1e-9)
    level = [
        line
        for line in centres
        if abs(line[:14].mean() - line[14:].mean()) < 0.4 and 8 < line.mean() < 19
    ]
    assert len(level) > 3
    for line in level:
        assert 2.0 < np.ptp(line) < 5.5
        crossings = (np.diff(np.sign(line - line.mean())) != 0).sum()
        assert crossings in (6, 7)  # one between two corners, of which every four pixels have one


def test_canny_edges_are_scikit_images(images):
    found = CORRUPTIONS["canny_edges"](images, random())
    assert set(np.unique(found)) == {0.0, 1.0}
    for image, edges in zip(images[:5], found, strict=False):
        assert np.array_equal(edges, canny(image, sigma=1.0))


def test_an_unknown_corruption_is_named(digits):
    with pytest.raises(ValueError, match="unknown corruption 'snow': expected one of shot_noise, "):
        corrupt(digits, "snow")
