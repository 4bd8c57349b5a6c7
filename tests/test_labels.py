"""`make labels` finds wrong labels with networks that have not seen them, and records them."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

from mnist_lab.research.understanding import read_labels
from mnist_mlp import EnhancedNet, ImageDataset, Recipe, evaluate, fit, load_weights
from mnist_mlp.datasets import default_root, load_mnist

FOLDER = ROOT / "benchmarks" / "accuracy"


@pytest.fixture
def script(monkeypatch):
    """The module of `make labels`."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "labels", raising=False)
    import labels

    return labels


@pytest.fixture
def record():
    return json.loads((FOLDER / "labels.json").read_bytes())


def test_main_records_planted_errors(script, record, monkeypatch, tmp_path, capsys):
    """Each class is a bright bar at a height of its own; every 23rd label is wrong."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (400, 28, 28), dtype=torch.uint8, generator=generator)
    true_labels = torch.arange(400) % 10
    for image, label in zip(images, true_labels.tolist(), strict=True):
        image[4 + 2 * label : 6 + 2 * label] += 150
    wrong = torch.arange(3, 400, 23)
    labels = true_labels.clone()
    labels[wrong] = (true_labels[wrong] + 4) % 10
    dataset = ImageDataset(images, labels)
    recipe = replace(script.RECIPE, batch_size=32, augment_strength=0.0, epochs=6)
    monkeypatch.setattr(script, "RECIPE", recipe)
    monkeypatch.setattr(script, "RECORD", tmp_path / "labels.json")
    monkeypatch.setattr(script, "load_mnist", lambda root, download: (dataset, None))

    script.main()

    written = json.loads((tmp_path / "labels.json").read_bytes())
    assert written.keys() == record.keys()
    assert written["images"] == 400
    assert written["suspicious_labels"] == len(wrong)
    assert sorted(entry["index"] for entry in written["most_suspicious"]) == wrong.tolist()
    for entry in written["most_suspicious"]:
        assert entry.keys() == record["most_suspicious"][0].keys()
        assert entry["given"] == labels[entry["index"]]
        assert entry["suggested"] == true_labels[entry["index"]]
    assert f"{400 - len(wrong)} of 400 correct" in capsys.readouterr().out


def test_cross_validated_predicts_only_unseen_images(script):
    """Noise has labels that a network can learn by heart but not predict."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 28, 28), dtype=torch.uint8, generator=generator)
    noise = ImageDataset(images, torch.arange(60) % 10)
    recipe = replace(script.RECIPE, epochs=25, batch_size=20, augment_strength=0.0)
    torch.manual_seed(0)
    model = EnhancedNet()
    fit(model, noise, noise, recipe, progress=False)

    probabilities = script.cross_validated(noise, recipe, 3)

    assert evaluate(model, noise).accuracy > 0.9
    assert (probabilities.argmax(1) == noise.labels).float().mean() < 0.3
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 60, abs=1e-5)


def test_record_describes_mnists_training_labels(script, record, mnist):
    assert read_labels() == record
    assert Recipe(**record["recipe"]) == script.RECIPE
    assert record["recipe"]["select"] == "last epoch"
    assert record["folds"] == script.FOLDS
    assert record["images"] == 60_000
    suspicious = record["most_suspicious"]
    assert len(suspicious) == min(script.N_LISTED, record["suspicious_labels"])
    probabilities = [entry["probability"] for entry in suspicious]
    assert probabilities == sorted(probabilities)

    training, _ = load_mnist(default_root(), download=False)
    images = training.subset(torch.tensor([entry["index"] for entry in suspicious]))
    assert images.labels.tolist() == [entry["given"] for entry in suspicious]

    # A network trained on these labels almost always ranks the suggested label first or second.
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")
    suggested = torch.tensor([entry["suggested"] for entry in suspicious])
    first_two = evaluate(model, images).logits.topk(2).indices
    assert (first_two == suggested[:, None]).any(1).float().mean() > 0.8
