"""An exported model gives PyTorch's probabilities in another runtime."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn

from mnist_lab.handwriting.export import export_onnx
from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, load_weights, save_weights


def session(path):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(path)


def test_export_onnx_gives_the_same_probabilities_on_mnist(tmp_path, mnist):
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")

    export_onnx(model, tmp_path / "a.onnx")

    images = mnist.test.images.numpy()
    onnx = session(tmp_path / "a.onnx")
    (probabilities,) = onnx.run(["probabilities"], {"images": images})
    (one_image,) = onnx.run(None, {"images": images[7:8]})
    expected = evaluate(model, mnist.test).probabilities
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(one_image, probabilities[7:8], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_export_onnx_exports_other_networks_and_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    classes = ["circle", "cross", "gerade", "größer"]
    model = nn.Sequential(nn.BatchNorm1d(784), nn.Dropout(0.5), nn.Linear(784, 4)).train()

    model.class_names = tuple(classes)
    export_onnx(model, tmp_path / "a.onnx")

    onnx = session(tmp_path / "a.onnx")
    (probabilities,) = onnx.run(None, {"images": images})
    assert model.training  # as before the call
    inputs = (torch.from_numpy(images) / 255 - 0.1307) / 0.3081
    expected = model.eval()(inputs.flatten(1)).softmax(1).detach()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert json.loads(onnx.get_modelmeta().custom_metadata_map["classes"]) == classes


def test_export_onnx_names_the_classes_that_were_trained(tmp_path, toy):
    """Ten outputs are not always the ten digits."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    train, validation = [replace(dataset, classes=names) for dataset in toy]
    trained = EnhancedNet()
    recipe = Recipe(epochs=8, batch_size=64, precision="float32")
    fit(trained, train, validation, recipe, progress=False)
    save_weights(trained, tmp_path / "a.pth")

    for model in (trained, load_weights(EnhancedNet(), tmp_path / "a.pth")):
        export_onnx(model, tmp_path / "a.onnx")
        metadata = session(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == list(names)


def with_four_names() -> nn.Module:
    model = EnhancedNet()
    model.class_names = tuple("abcd")
    return model


def with_nan() -> nn.Module:
    model = EnhancedNet()
    model.layer3.weight.data[2, 5] = torch.nan
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(784, 4), "class_names"),
        (with_four_names(), "4"),
        (with_nan(), "layer3"),
        (nn.Sequential(nn.Linear(784, 10), nn.Softmax(1)), "softmax"),
    ],
)
def test_export_onnx_refuses_a_model_it_would_misrepresent(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_export_onnx_without_the_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(ModuleNotFoundError, match="onnx"):
        export_onnx(EnhancedNet(), tmp_path / "a.onnx")

    assert not list(tmp_path.iterdir())
