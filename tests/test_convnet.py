"""The ConvNet has the documented size and takes the same images as EnhancedNet."""

import torch

from mnist_lab.research.convnet import ConvNet


def test_convnet_has_191722_parameters():
    assert sum(parameter.numel() for parameter in ConvNet().parameters()) == 191_722


def test_convnet_takes_flat_images_and_other_classes():
    model = ConvNet(classes=7).eval()
    images = torch.rand(3, 1, 28, 28)

    assert model(images).shape == (3, 7)
    assert torch.equal(model(images.flatten(1)), model(images))
