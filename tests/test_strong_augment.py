import inspect

import numpy as np
import pytest
import torch

from mnist_lab.research import corruptions
from mnist_lab.research import strong_augment as module
from mnist_lab.research.strong_augment import DISTURBANCES, strong_augment
from mnist_mlp import load


@pytest.fixture(scope="module")
def images():
    return load("digits").train.images[:400].float() / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda f: f.__name__)
def test_disturbance_changes_most_images_and_leaves_a_digit(images, disturbance, monkeypatch):
    """Each is applied alone, to every image."""
    monkeypatch.setattr(module, "DISTURBANCES", {disturbance: 1.0})
    before = images.clone()
    found = strong_augment(images, generator(), fraction=1.0)
    assert torch.equal(images, before)
    assert torch.isfinite(found).all()
    assert (found != images).flatten(1).any(1).float().mean() > 0.9
    assert (found.std((1, 2)) > 0.02).float().mean() > 0.97

    # Each image has random numbers of its own.
    same = strong_augment(images[:1].repeat(50, 1, 1), generator(), fraction=1.0)
    assert len({bytes(image.numpy()) for image in same}) > 40


def test_strong_augment_changes_the_first_fraction_of_the_batch(images):
    found = strong_augment(images, generator(), fraction=0.25)
    assert torch.equal(found[100:], images[100:])
    changed = (found[:100] != images[:100]).flatten(1).any(1).float().mean()
    untouched = np.prod([1 - probability for probability in DISTURBANCES.values()])
    assert float(changed) == pytest.approx(1 - untouched, abs=0.1)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(strong_augment(images, generator(), fraction=0.0), images)


def test_strong_augment_depends_on_the_generator_alone(images):
    first = strong_augment(images, generator(1))
    again = strong_augment(images, generator(1))
    other = strong_augment(images, generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_disturbances_are_as_frequent_as_written(images, monkeypatch):
    counts = dict.fromkeys(DISTURBANCES, 0)

    def counted(disturbance):
        def call(part, random):
            counts[disturbance] += len(part)
            return part

        return call

    monkeypatch.setattr(module, "DISTURBANCES", {counted(d): p for d, p in DISTURBANCES.items()})
    for seed in range(10):
        strong_augment(images, generator(seed), fraction=1.0)
    for disturbance, probability in DISTURBANCES.items():
        assert counts[disturbance] / 4000 == pytest.approx(probability, abs=0.04)


def test_strong_augment_uses_nothing_of_the_robustness_test():
    source = inspect.getsource(module)
    assert "mnist_lab.research" not in source
    assert not set(vars(corruptions)) & {f.__name__ for f in DISTURBANCES}
