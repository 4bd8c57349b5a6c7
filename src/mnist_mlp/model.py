"""The five-layer network, and the convolutional one that it is compared with and learns from."""

import torch
from torch import nn
from torch.nn import functional as F


class EnhancedNet(nn.Module):
    """Fully connected network 784-512-256-128-64-`classes` with ReLU between its five layers.

    With ten classes it has 575,050 parameters. Its `state_dict` has the keys `layer1.weight`,
    `layer1.bias`, ..., `layer5.bias`.
    """

    def __init__(self, classes: int = 10):
        super().__init__()
        self.layer1 = nn.Linear(28 * 28, 512)
        self.layer2 = nn.Linear(512, 256)
        self.layer3 = nn.Linear(256, 128)
        self.layer4 = nn.Linear(128, 64)
        self.layer5 = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 of shape (N, classes).

        `images`: normalised float32 of shape (N, 784), (N, 28, 28) or (N, 1, 28, 28).
        """
        x = images.flatten(1)
        x = F.relu(self.layer1(x))
        x = F.relu(self.layer2(x))
        x = F.relu(self.layer3(x))
        x = F.relu(self.layer4(x))
        return self.layer5(x)

    @torch.inference_mode()
    def predict_proba(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities, float32 of shape (N, classes); each row sums to 1.

        `images`: as for `forward`. The softmax is here and not in `forward`, since the
        cross-entropy loss takes logits. Raises TypeError for bytes, ValueError for another shape.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"images must be normalised floats, found {images.dtype}: "
                "(images / 255 - 0.1307) / 0.3081 makes bytes of MNIST's kind such."
            )
        if images.shape[1:].numel() != 28 * 28:
            hint = ": images[None] makes one image such" if images.numel() == 28 * 28 else ""
            found = f"found {tuple(images.shape)}{hint}."
            raise ValueError(f"images must have the shape (N, 784) or (N, 28, 28), {found}")
        return self(images).softmax(dim=1)


class ConvNet(nn.Module):
    """Convolutional network: 14x14 maps after a 5x5 convolution in steps of two, then 7x7 maps.

    Four convolutions without bias, each followed by batch normalisation and ReLU, and a linear
    layer on the last maps. With ten classes and the `width` of 32 it has 97,066 parameters.
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
        ).to(memory_format=torch.channels_last)  # on a CPU up to twice as fast

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 of shape (N, classes). `images`: as for `EnhancedNet`."""
        return self.layers(images.reshape(-1, 1, 28, 28))


def _convolution(channels: int, filters: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU()]
