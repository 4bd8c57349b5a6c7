"""The fifteen corruptions of MNIST-C do what their definitions say, the same way at every call."""

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


def corrupted(name, images):
    return CORRUPTIONS[name](images, np.random.default_rng(0))


def centre_rows(images):
    """Return the mean row of the ink in each column."""
    weighted = (images * np.arange(28)[:, None]).sum(1)
    return weighted / images.sum(1).clip(1e-9)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupt_changes_each_image_reproducibly(digits, name):
    before = digits.images.clone()

    dataset = corrupt(digits, name)

    assert torch.equal(dataset.images, corrupt(digits, name).images)
    assert torch.equal(dataset.labels, digits.labels)
    assert torch.equal(digits.images, before)
    assert (dataset.images != digits.images).flatten(1).float().mean(1).min() > 0.01
    assert dataset.images.float().std((1, 2)).min() > 10  # something is left to see


def test_corrupt_refuses_unknown_name(digits):
    with pytest.raises(ValueError, match="snow"):
        corrupt(digits, "snow")


def test_shot_noise_is_poisson_with_three_counts():
    noisy = corrupted("shot_noise", np.full((400, 28, 28), 0.5))

    assert noisy.mean() == pytest.approx(0.5, abs=0.005)
    assert noisy.var() == pytest.approx(0.5 / 3, rel=0.02)


def test_impulse_noise_matches_scikit_image():
    grey = np.full((400, 28, 28), 0.5)
    noisy = corrupted("impulse_noise", grey)
    expected = random_noise(grey, "s&p", rng=1, amount=0.17)

    for value in (0.0, 0.5, 1.0):
        assert (noisy == value).mean() == pytest.approx((expected == value).mean(), abs=0.004)


def test_glass_blur_matches_loop_over_pixels(images):
    rng = np.random.default_rng(0)
    expected = np.floor(255 * ndimage.gaussian_filter1d(images[0], 0.7, axis=0, mode="nearest"))
    for _ in range(2):
        for row in range(27, 1, -1):
            for column in range(27, 1, -1):
                up, left = rng.integers(0, 2, 2)
                value = expected[row, column]
                expected[row, column] = expected[row - up, column - left]
                expected[row - up, column - left] = value
    expected = ndimage.gaussian_filter1d(expected / 255, 0.7, axis=0, mode="nearest")

    np.testing.assert_allclose(corrupted("glass_blur", images[:1])[0], expected)


def test_motion_blur_draws_a_dot_out_into_a_line():
    images = np.zeros((300, 28, 28))
    images[:, 14, 25] = 1
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    weights /= weights.sum()

    slopes = []
    for image in corrupted("motion_blur", images):
        rows, columns = np.nonzero(image)
        slope = np.polyfit(columns, rows, 1, w=image[rows, columns])[0]
        slopes.append(slope)

        assert columns.max() == 25
        assert image[14, 25] >= weights[0] - 1e-9
        is_horizontal = abs(slope) < 0.05
        if is_horizontal:
            assert image.sum(0)[25:4:-1] == pytest.approx(weights, abs=1e-9)

    degrees = np.degrees(np.arctan(slopes))
    assert -46 < degrees.min() < -38
    assert 38 < degrees.max() < 46


@pytest.mark.parametrize("name", ["scale", "rotate", "shear"])
def test_affine_corruption_matches_scikit_image(images, name):
    to_origin = AffineTransform(translation=(-13.5, -13.5))
    from_origin = AffineTransform(translation=(13.5, 13.5))
    signs = set()
    for image, transformed in zip(images, corrupted(name, images), strict=True):
        errors = {}
        for sign in (-1, 1):
            sine = np.sin(0.4 * sign)
            transform = {
                "scale": AffineTransform(scale=(1 / 0.7, 1 / 0.7)),
                "rotate": AffineTransform(rotation=0.4 * sign),
                "shear": AffineTransform(np.array([[1, -sine, 0], [0, np.cos(0.4), 0], [0, 0, 1]])),
            }[name]
            expected = warp(image, to_origin + transform + from_origin)
            errors[sign] = abs(expected - transformed).max()
        assert min(errors.values()) < 1e-6
        signs.add(min(errors, key=errors.get))

    assert name == "scale" or signs == {-1, 1}


def test_translate_shifts_along_all_four_diagonals(images):
    shifts_seen = set()
    for image, translated in zip(images, corrupted("translate", images), strict=True):
        errors = {}
        for shift in itertools.product((-3, 3), (-3, 3)):
            errors[shift] = abs(ndimage.shift(image, shift, order=0) - translated).max()
        assert min(errors.values()) < 1e-9
        shifts_seen.add(min(errors, key=errors.get))

    assert len(shifts_seen) == 4


def test_brightness_adds_a_half(digits, images):
    """`corrupt` clips and rounds it: half of 255 is 127.5."""
    assert np.array_equal(corrupted("brightness", images), images + 0.5)

    brighter = corrupt(digits, "brightness").images.numpy()
    assert abs(brighter - np.minimum(digits.images.numpy() + 127.5, 255)).max() <= 0.5


def test_stripe_inverts_seven_columns_at_each_side(images):
    is_side = (np.arange(28) < 7) | (np.arange(28) >= 21)
    assert np.array_equal(corrupted("stripe", images), np.where(is_side, 1 - images, images))


def test_plasma_is_rough_at_every_scale():
    clouds = plasma(300, np.random.default_rng(0))

    assert (clouds.min((1, 2)) == 0).all()
    assert (clouds.max((1, 2)) == 1).all()
    assert len(np.unique(clouds, axis=0)) == 300
    # Doubling the distance multiplies the difference by about 1.5: rough at every scale.
    differences = [abs(clouds - np.roll(clouds, shift, 2)).mean() for shift in (1, 2, 4, 8)]
    for near, far in itertools.pairwise(differences):
        assert 1.4 < far / near < 1.7


def test_fog_covers_background_within_highest_value(images):
    dim = images / 2
    foggy = corrupted("fog", images)
    dim_foggy = corrupted("fog", dim)

    assert (dim_foggy.max((1, 2)) <= dim.max((1, 2)) + 1e-9).all()
    assert 0.25 < foggy[images == 0].mean() < 0.5  # three quarters of the mean cloud


def test_spatter_paints_grey_63_with_soft_edges():
    black = corrupted("spatter", np.zeros((200, 28, 28)))
    white = corrupted("spatter", np.ones((200, 28, 28)))
    mask = black * 255 / 63

    np.testing.assert_allclose(white, 1 - mask + black, atol=1e-9)
    assert ((mask == 0) | ((mask >= 0.8) & (mask <= 1 + 1e-9))).all()
    assert 0.1 < (mask > 0).mean() < 0.5


def test_dotted_line_is_straight_with_two_columns_of_four():
    lines = corrupted("dotted_line", np.zeros((200, 28, 28)))

    columns = np.arange(28)
    has_ink = lines.max(1) > 0.5
    is_dot = (columns % 4 >= 2) & (columns < 27)
    assert (has_ink == is_dot).all()

    is_inside = (lines[:, :3] == 0).all((1, 2)) & (lines[:, -3:] == 0).all((1, 2))
    dots = columns[is_dot]
    for rows in centre_rows(lines[is_inside])[:, dots]:
        straight = np.polyval(np.polyfit(dots, rows, 1), dots)
        assert abs(rows - straight).max() < 0.5


def test_zigzag_is_a_triangle_wave_about_a_line():
    """Where the line is nearly level, with amplitude two and a corner every four columns."""
    # `corrupted` draws the same random numbers in the same order.
    left, right = np.random.default_rng(0).uniform(0, 27, (400, 2)).T
    is_level = (abs(right - left) < 1) & (left > 4) & (left < 23)
    columns = np.arange(28)
    wave = np.interp(columns, np.arange(-2, 34, 4), [-2, 2, -2, 2, -2, 2, -2, 2, -2])
    lines = left[:, None] + (right - left)[:, None] * columns / 27

    rows = centre_rows(corrupted("zigzag", np.zeros((400, 28, 28))))

    assert is_level.sum() > 5
    errors = abs(rows - lines - wave)[is_level]
    assert errors.mean(1).max() < 0.2


def test_canny_edges_are_those_of_scikit_image(images):
    expected = [canny(image, sigma=1.0) for image in images]
    assert np.array_equal(corrupted("canny_edges", images), np.stack(expected))
