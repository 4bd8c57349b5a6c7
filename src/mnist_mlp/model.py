"""The five-layer network."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F


class EnhancedNet(nn.Module):
    """A fully connected network with five layers and ReLU between them: 784-512-256-128-64-10.

    With ten classes it has 575,050 parameters, named `layer1.weight`, ..., `layer5.bias`.

    Args:
        classes: The number of classes, and of outputs.
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

        Args:
            images: Normalised images, float32 of shape (N, 784), (N, 28, 28) or (N, 1, 28, 28).
        """
        x = images.flatten(1)
        x = F.relu(self.layer1(x))
        x = F.relu(self.layer2(x))
        x = F.relu(self.layer3(x))
        x = F.relu(self.layer4(x))
        return self.layer5(x)

    @torch.no_grad()
    def predict_proba(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class probabilities, float32 of shape (N, classes).

        The softmax is here and not in `forward`, because the cross-entropy loss takes logits.

        Args:
            images: As for `forward`.

        Raises:
            TypeError: The images are integers, so they are not normalised.
            ValueError: They have another shape, or the probabilities are not finite.

        Warns if no pixel is negative: then the images are probably not normalised.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"images must be normalised floats, found {images.dtype}. "
                "For MNIST's uint8 images use (images / 255 - 0.1307) / 0.3081."
            )
        if images.shape[1:].numel() != 28 * 28:
            is_single_image = images.numel() == 28 * 28
            hint = " Use images[None] for a single image." if is_single_image else ""
            raise ValueError(
                "images must have the shape (N, 784) or (N, 28, 28), "
                f"found {tuple(images.shape)}.{hint}"
            )

        if images.numel() > 0 and images.min() >= 0 and images.max() > 0:
            warnings.warn(
                "no pixel is negative, expected normalised images: (images - 0.1307) / 0.3081, "
                "where images are from 0 to 1.",
                stacklevel=3,
            )

        probabilities = self(images).softmax(dim=1)
        if not torch.isfinite(probabilities).all():
            raise ValueError(
                "the network returns numbers that are not finite: look at its inputs and weights."
            )
        return probabilities
