"""The convolutional network that EnhancedNet is compared with and learns from."""

import torch
from torch import nn


class ConvNet(nn.Module):
    """Four convolutions with batch normalisation and ReLU, and a linear layer on 7x7 maps.

    The first convolution is 5x5 with stride 2. With ten classes and the `width` of 32 the network
    has 97,066 parameters.
    """

    def __init__(self, classes: int = 10, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, width, size=5, stride=2),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(7 * 7 * 2 * width, classes),
        ).to(memory_format=torch.channels_last)  # up to twice as fast on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 of shape (N, classes). `images`: as for `EnhancedNet`."""
        return self.layers(images.reshape(-1, 1, 28, 28))


def _convolution(channels: int, filters: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU()]
