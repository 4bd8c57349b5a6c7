import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_mlp import load
from mnist_mlp.research.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def digits():
    return load("digits").test.subset(torch.arange(60))


@pytest.fixture
def images(digits):
    return digits.images.numpy() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_every_image_the_same_way_each_time_and_no_label(digits, name):
    found, again = corrupt(digits, name), corrupt(digits, name)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.labels, digits.labels)
    changed = (found.images != digits.images).flatten(1).float().mean(1)
    assert changed.min() > 0.01
    assert (found.images.int() - digits.images.int()).abs().float().mean() < 128  # still legible


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_input_images_are_not_changed(digits, name):
    before = digits.images.clone()
    corrupt(digits, name)
    assert torch.equal(before, digits.images)


def random():
    return np.random.default_rng(0)


def test_a_translation_shifts_by_three_pixels_in_all_four_diagonal_directions(images):
    found = CORRUPTIONS["translate"](images, random())
    corners = set()
    for image, moved in zip(images, found, strict=True):
        options = {(y, x): ndimage.shift(image, (y, x), order=1) for y in (-3, 3) for x in (-3, 3)}
        best = min(options, key=lambda k: abs(options[k] - moved).sum())
        assert np.allclose(options[best], moved, atol=1e-9)
        corners.add(best)
    assert len(corners) == 4


def test_a_rotation_is_scipys_by_23_degrees_to_either_side(images):
    found, degrees = CORRUPTIONS["rotate"](images, random()), np.degrees(0.4)
    signs = set()
    for image, turned in zip(images, found, strict=True):
        errors = {
            sign: abs(ndimage.rotate(image, sign * degrees, reshape=False, order=1) - turned)
            for sign in (-1, 1)
        }
        sign = min(errors, key=lambda s: errors[s].sum())
        assert errors[sign].max() < 1e-6
        signs.add(sign)
    assert signs == {-1, 1}


def test_scaling_halves_the_area_and_shearing_keeps_it(images):
    ink = images.sum((1, 2))
    assert CORRUPTIONS["scale"](images, random()).sum((1, 2)) == pytest.approx(0.49 * ink, rel=0.05)
    inside = CORRUPTIONS["shear"](images, random()).sum((1, 2))
    assert inside == pytest.approx(ink, rel=0.05)


def test_the_amounts_of_noise_are_as_documented(images):
    grey = np.full((200, 28, 28), 0.5)
    shots = CORRUPTIONS["shot_noise"](grey, random())
    assert shots.mean() == pytest.approx(0.5, abs=0.005)
    assert shots.var() == pytest.approx(0.5 / 5, rel=0.02)
    struck = CORRUPTIONS["impulse_noise"](grey, random())
    assert (struck != grey).mean() == pytest.approx(0.17, abs=0.003)
    assert set(np.unique(struck)) == {0.0, 0.5, 1.0}


def test_brightness_adds_and_a_stripe_inverts(images):
    assert np.array_equal(CORRUPTIONS["brightness"](images, random()), images + 0.5)
    found = CORRUPTIONS["stripe"](images, random())
    assert np.array_equal(found[:, :, 11:18], 1 - images[:, :, 11:18])
    assert np.array_equal(np.delete(found, range(11, 18), 2), np.delete(images, range(11, 18), 2))


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur"])
def test_a_blur_keeps_the_light_and_loses_the_edges(images, name):
    found = CORRUPTIONS[name](images, random())
    assert found.sum() == pytest.approx(images.sum(), rel=0.05)
    assert abs(np.diff(found)).sum() < 0.9 * abs(np.diff(images)).sum()


@pytest.mark.parametrize("name", ["spatter", "dotted_line", "zigzag"])
def test_drawing_over_an_image_only_adds_light(images, name):
    found = CORRUPTIONS[name](images, random())
    assert (found >= images).all()
    assert (found > images).sum((1, 2)).min() >= 10


def test_an_unknown_corruption_is_named(digits):
    with pytest.raises(ValueError, match="unknown corruption 'snow': expected one of shot_noise, "):
        corrupt(digits, "snow")
