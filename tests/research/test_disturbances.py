import inspect

import numpy as np
import pytest
import torch

from mnist_mlp import load
from mnist_mlp.research import corruptions, disturbances
from mnist_mlp.research.disturbances import DISTURBANCES, _Random, disturb


@pytest.fixture(scope="module")
def images():
    return load("digits").train.images[:400].float() / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda f: f.__name__)
def test_each_disturbance_changes_most_images_and_leaves_something_to_see(images, disturbance):
    before = images.clone()
    found = disturbance(images.clone(), _Random(images, generator())).clamp(0, 1)
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert (found != images).flatten(1).any(1).float().mean() > 0.9
    assert (found.std((1, 2)) > 0.02).float().mean() > 0.97
    # Each image has random numbers of its own.
    same = images[:1].repeat(50, 1, 1)
    same = disturbance(same, _Random(same, generator())).clamp(0, 1)
    assert len({bytes(image.numpy()) for image in same}) > 40


def test_the_first_share_of_the_batch_is_disturbed_and_the_rest_is_not(images):
    before = images.clone()
    found = disturb(images, generator(), share=0.25)
    assert torch.equal(images, before)
    assert torch.equal(found[100:], images[100:])
    changed = (found[:100] != images[:100]).flatten(1).any(1).float().mean()
    untouched = np.prod([1 - p for p in DISTURBANCES.values()])
    assert float(changed) == pytest.approx(1 - untouched, abs=0.1)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(disturb(images, generator(), share=0.0), images)


def test_the_same_generator_gives_the_same_disturbances(images):
    first, again, other = (disturb(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_is_applied_as_often_as_is_written(images, monkeypatch):
    counts = dict.fromkeys(DISTURBANCES, 0)

    def counted(disturbance):
        def call(part, random):
            counts[disturbance] += len(part)
            return part

        return call

    monkeypatch.setattr(
        disturbances, "DISTURBANCES", {counted(d): p for d, p in DISTURBANCES.items()}
    )
    for seed in range(10):
        disturb(images, generator(seed), share=1.0)
    assert min(DISTURBANCES.values()) >= 0.1  # each is there
    for disturbance, probability in DISTURBANCES.items():
        assert counts[disturbance] / 4000 == pytest.approx(probability, abs=0.04)


def test_none_is_a_function_of_the_robustness_test():
    source = inspect.getsource(disturbances)
    assert "import" in source
    assert "mnist_mlp.research" not in source
    assert not set(vars(corruptions)) & {f.__name__ for f in DISTURBANCES}
