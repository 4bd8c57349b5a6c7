"""An exported model has PyTorch's probabilities in another runtime."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_mlp import EnhancedNet, evaluate, load_weights
from mnist_mlp.data import MEAN, STD
from mnist_mlp.handwriting.export import export_onnx
from mnist_mlp.research.convnet import ConvNet

WEIGHTS = ROOT / "models" / "enhanced_model.pth"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "enhanced_model.onnx"
    export_onnx(load_weights(EnhancedNet(), WEIGHTS), path)
    return path


def test_onnxruntime_gives_pytorchs_probabilities_for_the_whole_test_set(exported, mnist):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported)
    images = mnist.test.images.numpy()
    (found,) = session.run(None, {"images": images})
    expected = evaluate(load_weights(EnhancedNet(), WEIGHTS), mnist.test).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    (one,) = session.run(None, {"images": images[7:8]})  # any number of images
    np.testing.assert_allclose(one, found[7:8], atol=1e-5)


def test_it_is_one_file_whose_input_and_output_have_names(exported):
    onnx = pytest.importorskip("onnx")
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    graph = onnx.load(exported).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["probabilities"]


def test_the_convolutional_network_and_other_classes_are_exported_too(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    model = ConvNet(classes=4).eval()
    with pytest.raises(ValueError, match="the model has 4 classes, expected 10"):
        export_onnx(model, tmp_path / "net.onnx")
    export_onnx(model, tmp_path / "net.onnx", ["circle", "cross", "gerade", "größer"])
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert names == ["circle", "cross", "gerade", "größer"]
    (found,) = session.run(None, {"images": images})
    normalised = (torch.from_numpy(images) / 255 - MEAN) / STD
    np.testing.assert_allclose(found, model(normalised).softmax(1).detach(), atol=1e-5)


def test_a_network_that_takes_flat_images_is_exported_and_stays_as_it_was(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(784, 10)).train()
    export_onnx(model, tmp_path / "net.onnx")
    assert model.training
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (found,) = session.run(None, {"images": images})
    flat = ((torch.from_numpy(images) / 255 - MEAN) / STD).flatten(1)
    np.testing.assert_allclose(found, model.eval()(flat).softmax(1).detach(), atol=1e-5)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"\[onnx\]"):
        export_onnx(EnhancedNet(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
