"""What somebody meets who tries out the network: an input that it cannot take is a sentence."""

import pytest
import torch

from mnist_mlp import EnhancedNet


def test_images_that_predict_proba_cannot_take_are_one_sentence():
    model, image = EnhancedNet(), torch.zeros(28, 28)
    words = r"normalised floats, found torch\.uint8\. .* use \(images / 255"
    with pytest.raises(TypeError, match=words):
        model.predict_proba(image[None].byte())
    with pytest.raises(ValueError, match=r"found \(28, 28\); use images\[None\] for one image\."):
        model.predict_proba(image)
    with pytest.raises(
        ValueError, match=r"shape \(N, 784\) or \(N, 28, 28\), found \(2, 30, 30\)\."
    ):
        model.predict_proba(torch.zeros(2, 30, 30))
    for shape in ((3, 784), (3, 28, 28), (3, 1, 28, 28), (0, 784)):
        assert model.predict_proba(torch.zeros(shape)).shape == (shape[0], 10)
