import numpy as np
import pytest
import torch

from mnist_mlp.model import EnhancedNet


def test_it_is_the_five_layers_with_575050_parameters():
    shapes = {name: tuple(tensor.shape) for name, tensor in EnhancedNet().state_dict().items()}
    assert shapes == {
        "layer1.weight": (512, 784), "layer1.bias": (512,),
        "layer2.weight": (256, 512), "layer2.bias": (256,),
        "layer3.weight": (128, 256), "layer3.bias": (128,),
        "layer4.weight": (64, 128), "layer4.bias": (64,),
        "layer5.weight": (10, 64), "layer5.bias": (10,),
    }  # fmt: skip
    assert sum(p.numel() for p in EnhancedNet().parameters()) == 575_050


def test_the_logits_are_those_of_the_formula():
    model, images = EnhancedNet(), torch.randn(7, 1, 28, 28)
    x = images.double().numpy().reshape(7, 784)
    for i in range(1, 6):
        layer = getattr(model, f"layer{i}")
        x = x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        if i < 5:
            x = np.maximum(x, 0)
    np.testing.assert_allclose(model(images).detach().numpy(), x, atol=1e-5)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_probabilities_are_the_softmax_and_sum_to_one():
    model, images = EnhancedNet(), torch.randn(50, 784) * 5
    logits = model(images).detach().double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = model.predict_proba(images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-6)
    assert not found.requires_grad


def test_predict_proba_refuses_images_that_it_cannot_take():
    model = EnhancedNet()
    image = torch.zeros(28, 28)
    with pytest.raises(TypeError, match="uint8"):
        model.predict_proba(image[None].byte())
    with pytest.raises(ValueError, match=r"images\[None\]"):
        model.predict_proba(image)
    with pytest.raises(ValueError, match=r"\(2, 30, 30\)"):
        model.predict_proba(torch.zeros(2, 30, 30))
    for shape in ((3, 784), (3, 28, 28), (3, 1, 28, 28), (0, 784)):
        assert model.predict_proba(torch.zeros(shape)).shape == (shape[0], 10)
