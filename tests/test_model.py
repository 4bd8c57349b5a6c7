"""The network computes its formula and refuses images that it cannot take."""

import numpy as np
import pytest
import torch
from scipy import special

from mnist_mlp.model import EnhancedNet


def test_net_has_five_layers_and_575050_parameters():
    shapes = {name: tuple(tensor.shape) for name, tensor in EnhancedNet().state_dict().items()}
    assert shapes == {
        "layer1.weight": (512, 784), "layer1.bias": (512,),
        "layer2.weight": (256, 512), "layer2.bias": (256,),
        "layer3.weight": (128, 256), "layer3.bias": (128,),
        "layer4.weight": (64, 128), "layer4.bias": (64,),
        "layer5.weight": (10, 64), "layer5.bias": (10,),
    }  # fmt: skip
    assert sum(parameter.numel() for parameter in EnhancedNet().parameters()) == 575_050


def test_net_computes_the_logits_of_the_formula():
    model = EnhancedNet()
    images = torch.randn(7, 1, 28, 28)

    x = images.numpy().reshape(7, 784)
    for i in range(1, 6):
        layer = getattr(model, f"layer{i}")
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if i < 5:
            x = np.maximum(x, 0)

    np.testing.assert_allclose(model(images).detach().numpy(), x, atol=1e-5)


def test_predict_proba_is_the_softmax_of_the_logits():
    model = EnhancedNet()
    images = torch.randn(50, 784) * 5
    logits = model(images).detach().double().numpy()

    probabilities = model.predict_proba(images)

    np.testing.assert_allclose(probabilities.numpy(), special.softmax(logits, axis=1), atol=1e-6)
    assert not probabilities.requires_grad


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 1, 28, 28), (0, 784)])
def test_predict_proba_takes_images_of_each_shape(shape):
    assert EnhancedNet().predict_proba(torch.zeros(shape)).shape == (shape[0], 10)


@pytest.mark.parametrize(
    ("images", "error", "remedy"),
    [
        (torch.zeros(1, 28, 28, dtype=torch.uint8), TypeError, "/ 255"),
        (torch.zeros(28, 28), ValueError, r"images\[None\]"),
        (torch.zeros(2, 30, 30), ValueError, r"\(N, 28, 28\)"),
    ],
)
def test_predict_proba_refuses_images_that_it_cannot_take(images, error, remedy):
    with pytest.raises(error, match=remedy):
        EnhancedNet().predict_proba(images)


def test_predict_proba_warns_of_images_that_are_not_normalised():
    with pytest.warns(UserWarning, match="normalised"):
        EnhancedNet().predict_proba(torch.rand(5, 784))


def test_predict_proba_refuses_what_is_no_number():
    model = EnhancedNet()
    model.layer2.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        model.predict_proba(torch.randn(5, 784))
