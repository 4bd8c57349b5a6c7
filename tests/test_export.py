"""An exported model has PyTorch's probabilities in another runtime."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_lab.handwriting.export import export_onnx
from mnist_lab.research.convnet import ConvNet
from mnist_mlp import EnhancedNet, evaluate, load_weights
from mnist_mlp.data import MEAN, STD


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


def inputs(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images) / 255 - MEAN) / STD


def session(path):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(path)


def test_onnxruntime_gives_pytorchs_probabilities_for_all_test_images(tmp_path, mnist):
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")
    export_onnx(model, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]

    images = mnist.test.images.numpy()
    exported = session(tmp_path / "a.onnx")
    (probabilities,) = exported.run(["probabilities"], {"images": images})
    expected = evaluate(model, mnist.test).probabilities
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    (one,) = exported.run(None, {"images": images[7:8]})  # any number of images
    np.testing.assert_allclose(one, probabilities[7:8], atol=1e-5)


def test_export_onnx_exports_other_networks_and_classes(tmp_path, images):
    model = ConvNet(classes=4).eval()
    with pytest.raises(ValueError, match="4 classes, expected 10"):
        export_onnx(model, tmp_path / "a.onnx")
    names = ["circle", "cross", "gerade", "größer"]
    export_onnx(model, tmp_path / "a.onnx", names)

    exported = session(tmp_path / "a.onnx")
    assert json.loads(exported.get_modelmeta().custom_metadata_map["classes"]) == names
    (probabilities,) = exported.run(None, {"images": images})
    expected = model(inputs(images)).softmax(1).detach()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_export_onnx_leaves_the_model_in_its_mode(tmp_path, images):
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(784, 10)).train()
    export_onnx(model, tmp_path / "a.onnx")
    assert model.training
    (probabilities,) = session(tmp_path / "a.onnx").run(None, {"images": images})
    expected = model.eval()(inputs(images).flatten(1)).softmax(1).detach()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_export_onnx_without_the_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"\[onnx\]"):
        export_onnx(EnhancedNet(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
