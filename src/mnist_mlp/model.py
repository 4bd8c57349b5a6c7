"""The five-layer network."""

import torch
from torch import nn
from torch.nn import functional as F


class EnhancedNet(nn.Module):
    """Fully connected network 784-512-256-128-64-`classes` with ReLU between its five layers.

    With ten classes it has 575,050 parameters, named `layer1.weight`, ..., `layer5.bias`.
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

        `images`: as for `forward`. The softmax is here because the cross-entropy loss takes
        logits. Raises TypeError for integer images and ValueError for another shape.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"images must be normalised floats, found {images.dtype}. "
                "For MNIST's uint8 images use (images / 255 - 0.1307) / 0.3081."
            )
        if images.shape[1:].numel() != 28 * 28:
            hint = "; use images[None] for one image" if images.numel() == 28 * 28 else ""
            found = f"found {tuple(images.shape)}{hint}."
            raise ValueError(f"images must have the shape (N, 784) or (N, 28, 28), {found}")
        return self(images).softmax(dim=1)
