"""Random warps are those of SciPy's rotations and affine maps, drawn per image."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from mnist_mlp.augment import random_warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def warp(images: torch.Tensor, **amounts: float) -> torch.Tensor:
    """Warp with these amounts alone; the others are zero."""
    all_amounts = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic": 0.0}
    all_amounts.update(amounts)
    return random_warp(images, generator(), **all_amounts)


def uniform(random: torch.Generator, *shape: int) -> np.ndarray:
    """Draw evenly from -1 to 1, as `random_warp` does."""
    return (torch.rand(*shape, generator=random) * 2 - 1).double().numpy()


@pytest.fixture
def blob() -> torch.Tensor:
    """A smooth picture without any symmetry."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    stroke = torch.exp(-((x - 9) ** 2) / 8 - (y - 12) ** 2 / 40)
    dot = torch.exp(-((x - 18) ** 2 + (y - 17) ** 2) / 9)
    return stroke + 0.5 * dot


def test_warp_of_strength_0_changes_nothing(blob):
    warped = random_warp(blob.repeat(5, 1, 1), generator(), 0.0)
    torch.testing.assert_close(warped, blob.repeat(5, 1, 1), atol=1e-5, rtol=0)


def test_warp_differs_per_image_and_depends_on_the_generator(blob):
    images = blob.repeat(20, 1, 1)
    first = random_warp(images, generator(3))
    again = random_warp(images, generator(3))
    another_seed = random_warp(images, generator(4))

    assert torch.equal(first, again)
    assert not torch.equal(first, another_seed)
    assert len({bytes(image.numpy()) for image in first}) == 20
    assert torch.equal(images, blob.repeat(20, 1, 1))  # not warped in place


def test_warp_rotates_as_scipy(blob):
    warped = warp(blob.repeat(50, 1, 1), rotation=30.0)

    angles = 30 * uniform(generator(), 50)
    for image, angle in zip(warped, angles, strict=True):
        expected = ndimage.rotate(blob.numpy(), angle, reshape=False, order=1, mode="grid-constant")
        assert np.abs(image.numpy() - expected).max() < 1e-4


def test_warp_stretches_and_shears_then_rotates_as_scipy(blob):
    warped = warp(blob.repeat(20, 1, 1), rotation=60.0, scale=0.3, shear=0.5)

    random = generator()
    angles = np.radians(60 * uniform(random, 20))
    sizes = 1 + 0.3 * uniform(random, 20, 2)
    shears = 0.5 * uniform(random, 20)
    for i in range(20):
        cos, sin = np.cos(angles[i]), np.sin(angles[i])
        rotation = np.array([[cos, -sin], [sin, cos]])
        stretch = np.array([[sizes[i, 0], shears[i]], [0, sizes[i, 1]]])

        # SciPy maps (row, column), which is (y, x).
        matrix = (rotation @ stretch)[::-1, ::-1]
        offset = 13.5 - matrix @ [13.5, 13.5]
        expected = ndimage.affine_transform(
            blob.double().numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert np.abs(warped[i].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("axis", [0, 1])
def test_warp_shifts_evenly_up_to_its_pixels(blob, axis):
    warped = warp(blob.repeat(2000, 1, 1), shift=2.0)

    mass = torch.cat([blob[None], warped]).sum(2 - axis)  # along the axis
    centres = (mass * torch.arange(28)).sum(1) / mass.sum(1)
    shifts = centres[1:] - centres[0]
    assert -2.01 <= shifts.min() < -1.9
    assert 1.9 < shifts.max() <= 2.01
    assert abs(shifts.mean()) < 0.1


def test_warp_fills_with_background():
    warped = warp(torch.ones(100, 28, 28), shift=6.0)
    assert warped.min() == 0
    assert warped.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_warp_moves_pixels_smoothly_by_the_elastic_deviation(axis):
    """The values of the picture are its coordinates, so they tell where a pixel came from."""
    coordinates = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")[axis]

    warped = warp(coordinates.repeat(4000, 1, 1), elastic=1.5)

    displacements = (warped - coordinates)[:, 8:20, 8:20]  # nothing comes from outside
    assert displacements.std() == pytest.approx(1.5, rel=0.03)
    assert displacements.std(0).min() > 1.4  # the same everywhere
    assert displacements.mean(0).abs().max() < 0.1

    # Neighbours move together: seven knots over 28 pixels are 4.5 pixels apart.
    expected_difference = 1.5 / 4.5 / 2**0.5
    assert displacements.diff(dim=1).std() == pytest.approx(expected_difference, rel=0.05)
