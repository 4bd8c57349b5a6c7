"""Strong augmentation disturbs a fraction of a batch, reproducibly, and leaves digits visible."""

import math

import numpy as np
import pytest
import torch

from mnist_lab.research.strong_augment import (
    AUGMENTATIONS,
    BatchRandom,
    convolution,
    strokes,
    strong_augment,
)
from mnist_mlp import load


@pytest.fixture(scope="module")
def images():
    return load("digits").train.images[:400].float() / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda function: function.__name__)
def test_augmentation_changes_images_and_leaves_a_digit(images, augmentation):
    before = images.clone()
    augmented = augmentation(images, BatchRandom(images, generator())).clamp(0, 1)

    assert torch.equal(images, before)
    assert torch.isfinite(augmented).all()
    is_changed = (augmented != images).flatten(1).any(1)
    assert is_changed.float().mean() > 0.9
    is_visible = augmented.std((1, 2)) > 0.02
    assert is_visible.float().mean() > 0.97

    # Each image draws its own random numbers.
    copies = images[:1].repeat(50, 1, 1)
    assert len(augmentation(copies, BatchRandom(copies, generator())).unique(dim=0)) > 40


def test_strong_augment_changes_only_first_fraction(images):
    augmented = strong_augment(images, generator(), strong_fraction=0.25)

    is_changed = (augmented != images).flatten(1).any(1)
    assert is_changed[:100].float().mean() > 0.8
    assert not is_changed[100:].any()
    assert 0 <= augmented.min() <= augmented.max() <= 1
    assert torch.equal(strong_augment(images, generator(), strong_fraction=0.0), images)


def test_strong_augment_applies_each_with_its_probability(images):
    """An image stays as it is only if none of the augmentations is applied."""
    batch = images.repeat(25, 1, 1)
    expected = np.prod([1 - probability for probability in AUGMENTATIONS.values()])

    augmented = strong_augment(batch, generator(), strong_fraction=1.0)

    is_unchanged = (augmented == batch).flatten(1).all(1)
    assert float(is_unchanged.float().mean()) == pytest.approx(expected, abs=0.01)


def test_strong_augment_depends_on_generator_alone(images):
    augmented = strong_augment(images, generator(1))

    assert torch.equal(augmented, strong_augment(images, generator(1)))
    assert not torch.equal(augmented, strong_augment(images, generator(2)))


class OneStroke:
    """Draws a stroke through the middle, at 45 degrees, with a length of 12 and a width of 2."""

    def __init__(self):
        row, column, angle, half_length, half_width, grey = 13.5, 13.5, math.pi / 4, 6, 1, 1
        self.values = iter([row, column, angle, half_length, half_width, grey] * 3)

    def uniform(self, low, high):
        return torch.full((1, 1, 1), float(next(self.values)))

    def chance(self, probability):
        return torch.full((1, 1, 1), probability == 1.0)


def test_strokes_have_their_direction_and_length():
    stroke = strokes(torch.zeros(1, 28, 28), OneStroke())[0]

    rows, columns = stroke.nonzero().T
    assert rows.min() > 13.5 - 6
    assert rows.max() < 13.5 + 6
    assert ((rows - columns).abs() <= 1).all()


def test_convolution_scales_each_image_by_its_own_maximum():
    images = torch.rand(50, 28, 28, generator=generator(1))

    brightest = convolution(images, BatchRandom(images, generator())).amax((1, 2))

    assert brightest.max() <= 1
    assert (brightest > 1 - 1e-6).float().mean() > 0.5
