"""The convolutional network that EnhancedNet is compared with and learns from."""

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation as Convolution  # with batch norm and ReLU


class ConvNet(nn.Module):
    """Eight convolutions with batch normalisation and ReLU, then a linear layer on 3x3 maps.

    The first convolution is 5x5 with stride 2; the others are 3x3. With ten classes and a `width`
    of 32 the network has 191,722 parameters.
    """

    def __init__(self, classes: int = 10, width: int = 32):
        super().__init__()
        # Each star unpacks a convolution, its norm and its ReLU, so the keys of the state_dict are
        # layers.0, layers.1, ...
        self.layers = nn.Sequential(
            *Convolution(1, width, 5, stride=2),
            *Convolution(width, width),
            *Convolution(width, width),
            nn.MaxPool2d(2),
            *Convolution(width, 2 * width),
            *Convolution(2 * width, 2 * width),
            *Convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),
            *Convolution(2 * width, 2 * width),
            *Convolution(2 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(3 * 3 * 2 * width, classes),
        ).to(memory_format=torch.channels_last)  # up to twice as fast on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 of shape (N, classes), of images as for `EnhancedNet`."""
        return self.layers(images.reshape(-1, 1, 28, 28))
