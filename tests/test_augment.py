import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_mlp.augment import random_warp

STILL = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def blob() -> torch.Tensor:
    """A smooth picture that no symmetry maps onto itself."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    return torch.exp(-((x - 9) ** 2) / 8 - (y - 12) ** 2 / 40) + 0.5 * torch.exp(
        -((x - 18) ** 2 + (y - 17) ** 2) / 9
    )


def test_no_strength_is_no_change(blob):
    batch = blob.repeat(5, 1, 1)
    torch.testing.assert_close(random_warp(batch, generator(), 0.0), batch, atol=1e-5, rtol=0)


def test_a_rotation_is_scipys(blob):
    found = random_warp(blob.repeat(50, 1, 1), generator(), **STILL | {"rotation": 30.0})
    angles = (torch.rand(50, generator=generator()) * 2 - 1) * 30  # the first numbers drawn
    for image, angle in zip(found, angles.tolist(), strict=True):
        expected = ndimage.rotate(blob.numpy(), angle, reshape=False, order=1, mode="grid-constant")
        assert np.abs(image.numpy() - expected).max() < 1e-4
    assert angles.min() < -25
    assert angles.max() > 25


def test_turning_comes_after_stretching_as_in_scipys_map_of_both(blob):
    """Each pixel's source is its place stretched and slanted, and then turned."""
    amplitudes = {"rotation": 60.0, "scale": 0.3, "shear": 0.5}
    found = random_warp(blob.repeat(20, 1, 1), generator(), **STILL | amplitudes)
    drawn = generator()
    angle, size, slant = (
        (torch.rand(20, *shape, generator=drawn) * 2 - 1).double().numpy()
        for shape in ((), (2,), ())
    )
    for image, a, (across, down), s in zip(found, np.radians(60 * angle), size, slant, strict=True):
        turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        stretch = np.array([[1 + 0.3 * across, 0.5 * s], [0, 1 + 0.3 * down]])
        matrix = (turn @ stretch)[::-1, ::-1]  # of (row, column) in place of (x, y)
        offset = 13.5 - matrix @ [13.5, 13.5]
        expected = ndimage.affine_transform(
            blob.double().numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert np.abs(image.numpy() - expected).max() < 1e-4


def centre(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass, (row, column), of each image."""
    at = torch.arange(28.0)
    mass = images.sum((1, 2))
    return torch.stack([(images.sum(2) * at).sum(1) / mass, (images.sum(1) * at).sum(1) / mass], 1)


def test_a_shift_moves_by_whole_pictures_of_up_to_its_pixels(blob):
    found = centre(random_warp(blob.repeat(2000, 1, 1), generator(), **STILL | {"shift": 2.0}))
    moved = found - centre(blob[None])
    assert moved.abs().max() <= 2.01
    assert (moved.amin(0) < -1.9).all()
    assert (moved.amax(0) > 1.9).all()
    assert moved.mean(0).abs().max() < 0.1  # no bias to a side


def test_scale_and_shear_change_the_size_and_the_slant(blob):
    large = (random_warp(blob.repeat(500, 1, 1), generator(), **STILL | {"scale": 0.2})).sum((1, 2))
    ratio = large / blob.sum()
    assert 1 / 1.2**2 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1 / 0.8**2 + 0.05
    slanted = random_warp(blob.repeat(500, 1, 1), generator(), **STILL | {"shear": 0.3})
    assert (slanted.sum((1, 2)) / blob.sum() - 1).abs().max() < 0.05  # a shear keeps areas


def test_elastic_moves_each_pixel_by_its_standard_deviation():
    """A picture that holds its own coordinates tells how far each pixel was moved."""
    row, column = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    inner = slice(8, 20)  # nothing comes from outside the picture
    for picture in (row, column):
        still_but_elastic = STILL | {"elastic": 1.5}
        found = random_warp(picture.repeat(4000, 1, 1), generator(), **still_but_elastic)
        moved = (found - picture)[:, inner, inner]
        assert moved.std() == pytest.approx(1.5, rel=0.03)
        assert moved.std(0).min() > 1.4  # everywhere the same
        assert moved.mean(0).abs().max() < 0.1
        neighbours = moved.diff(dim=1).std()
        assert 0.1 < neighbours < 0.5  # smooth: neighbours move together


def test_every_image_gets_a_warp_of_its_own_from_the_generator(blob):
    batch = blob.repeat(20, 1, 1)
    first, again, other = (random_warp(batch, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({bytes(image.numpy()) for image in first}) == 20
    assert torch.equal(batch, blob.repeat(20, 1, 1))  # a copy, not in place


def test_what_comes_from_outside_is_background():
    found = random_warp(torch.ones(100, 28, 28), generator(), **STILL | {"shift": 6.0})
    assert found.min() == 0
    assert math.isclose(found.max(), 1, abs_tol=1e-6)
