"""Synthetic handwriting is varied, repeatable, and looks like MNIST's digits."""

import numpy as np
import pytest
import torch
from helpers import ROOT
from scipy import ndimage

from mnist_lab.handwriting.styles import FORMS, ONE_PERSON
from mnist_lab.handwriting.synthetic import _hand_drawn, synthetic_digits, synthetic_other_marks
from mnist_lab.research.convnet import ConvNet
from mnist_mlp import evaluate, load_weights
from mnist_mlp.data import ImageDataset


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return synthetic_digits(400, seed=3)


def test_synthetic_digits_depend_on_the_seed_alone():
    digits = synthetic_digits(30, seed=3)
    again = synthetic_digits(30, seed=3)
    other_seed = synthetic_digits(30, seed=4)

    assert torch.equal(digits.images, again.images)
    assert torch.equal(digits.labels, again.labels)
    assert not torch.equal(digits.images, other_seed.images)


def test_synthetic_digits_are_placed_like_mnists(digits):
    """MNIST's makers fitted a digit into 20x20, its centre of mass in the middle of 28x28."""
    for image in digits.images.numpy():
        rows, columns = image.nonzero()
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)  # the faintest edge may be lost
        assert image.max() == 255
        assert np.allclose(ndimage.center_of_mass(image), 13.5, atol=0.6)


def test_synthetic_digits_have_every_pen_and_form(digits):
    ink = (digits.images > 127).float().mean((1, 2))
    n_forms = torch.tensor([len(forms) for forms in FORMS.values()])
    expected = 400 * n_forms / n_forms.sum()

    assert len(digits.images.flatten(1).unique(dim=0)) == 400
    assert ink.quantile(0.9) > 2 * ink.quantile(0.1)
    assert ((digits.labels.bincount() - expected).abs() <= 4 * expected.sqrt()).all()


def test_no_pen_fills_the_loops_of_a_digit(digits):
    """A 9 with a filled head looks like a 1."""
    for label in (0, 8, 9):
        images = digits.images[digits.labels == label].numpy()
        n_with_a_loop = 0
        for image in images:
            _, n_areas = ndimage.label(np.pad(image, 1) < 192)
            n_with_a_loop += n_areas > 1
        assert n_with_a_loop >= 0.9 * len(images)


def test_other_marks_depend_on_the_seed_alone_and_are_unlike_each_other():
    marks = synthetic_other_marks(60, seed=3)

    assert torch.equal(marks, synthetic_other_marks(60, seed=3))
    assert not torch.equal(marks, synthetic_other_marks(60, seed=4))
    assert len(marks.flatten(1).unique(dim=0)) == 60
    assert (marks.amax(dim=(1, 2)) == 255).all()


def test_other_network_reads_synthetic_digits(digits):
    """This network has never seen synthetic digits. It misreads many a 1 with an upstroke."""
    model = load_weights(ConvNet(), ROOT / "models" / "conv_net.pth")

    correct = evaluate(model, digits).correct

    assert correct[digits.labels != 1].float().mean() >= 0.93


def test_forms_do_not_contain_the_hand_of_the_photos():
    for digit, form in ONE_PERSON.items():
        assert form not in FORMS[digit]


def test_hands_lean_to_the_right_on_average():
    rng = np.random.default_rng(0)
    stems = [_hand_drawn("10,0 10,100", rng)[0] for _ in range(400)]

    tops = np.array([stem[0, 0] for stem in stems])
    bottoms = np.array([stem[-1, 0] for stem in stems])
    assert 0.05 < np.mean(tops - bottoms) < 0.15
