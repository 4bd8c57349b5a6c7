"""The notebook of one's own digits, and the pictures and the handwriting that it uses."""

import nbformat
import numpy as np
import papermill
import pytest
import torch
from helpers import ROOT
from PIL import Image

from mnist_lab.handwriting.collection import Pictures
from mnist_lab.handwriting.folder import load_folder
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.styles import ONE_PERSON
from mnist_lab.handwriting.synthetic import write_samples
from mnist_mlp import EnhancedNet, evaluate, load_weights
from mnist_mlp.data import ImageDataset

PATH = ROOT / "notebooks" / "Your-Own-Digits.ipynb"


def network(name: str) -> EnhancedNet:
    return load_weights(EnhancedNet(), ROOT / "models" / f"{name}.pth")


def test_write_samples_draws_different_photos_and_repeats_them(tmp_path):
    written = write_samples(tmp_path / "a b", each=2, seed=3)
    assert sorted(digit for _, digit in written) == sorted([*ONE_PERSON] * 2)
    pictures = [path.read_bytes() for path, _ in written]
    assert len(set(pictures)) == 20
    again = write_samples(tmp_path / "again", each=2, seed=3)
    assert [path.read_bytes() for path, _ in again] == pictures
    grey = np.asarray(Image.open(written[0][0]))
    assert grey.shape == (320, 320)
    assert grey.min() < 120 < 180 < grey.max()


def test_ones_of_the_samples_are_sevens_to_a_network_of_mnist_alone(tmp_path):
    written = write_samples(tmp_path, each=8)
    images = torch.stack([to_mnist(path) for path, _ in written])
    labels = torch.tensor([int(digit) for _, digit in written])
    samples = ImageDataset(images, labels)

    mnist_alone = evaluate(network("enhanced_model_best"), samples)
    wrong = ~mnist_alone.correct
    assert set(labels[wrong].tolist()) == {1}
    assert set(mnist_alone.predicted[wrong].tolist()) == {7}
    handwriting = evaluate(network("enhanced_model_handwriting"), samples)
    assert len(samples) - handwriting.n_correct <= 2


def test_pictures_are_the_visible_files_of_a_folder(tmp_path):
    folder = tmp_path / "my pictures"
    written = dict(write_samples(folder, each=1))
    (folder / ".hidden").write_text("not a picture")
    (folder / "inner").mkdir()

    own = Pictures(folder, tmp_path / "samples")
    assert own.paths == sorted(written)
    assert torch.equal(own.images[3], to_mnist(own.paths[3]))
    assert torch.equal(own.inputs, (own.images / 255 - 0.1307) / 0.3081)
    assert np.array_equal(own.photos([2])[0], np.asarray(Image.open(own.paths[2]).convert("L")))


def test_labels_are_corrected_known_or_predicted(tmp_path):
    write_samples(tmp_path / "inbox", each=1)
    own = Pictures(tmp_path / "inbox", tmp_path / "samples")
    labels = own.labels(torch.full((10,), 7), {own.paths[0].name: "4"})
    assert labels == ["4"] + ["7"] * 9
    with pytest.raises(ValueError, match=r"IMG_1\.png"):
        own.labels(torch.zeros(10), {"IMG_1.png": "7"})

    samples = Pictures("", tmp_path / "samples")
    assert len(samples.paths) == 200
    known = [samples.known[path.name] for path in samples.paths]
    assert samples.labels(torch.full((200,), 7), {}) == known


def test_save_labelled_leaves_no_copies_with_earlier_labels(tmp_path):
    write_samples(tmp_path / "inbox", each=1)
    own = Pictures(tmp_path / "inbox", tmp_path / "samples")
    labelled = own.save_labelled(["4"] + ["7"] * 9)
    assert [path.name for path in (labelled / "4").iterdir()] == [own.paths[0].name]
    assert len(list((labelled / "7").iterdir())) == 9
    own.save_labelled(["5"] * 10)
    assert [path.name for path in labelled.iterdir()] == ["5"]


def test_pictures_names_what_cannot_be_used(tmp_path):
    (tmp_path / "inbox").mkdir()
    with pytest.raises(FileNotFoundError, match=r"inbox holds no pictures"):
        Pictures(tmp_path / "inbox", tmp_path / "samples")
    Image.new("L", (90, 90), 255).save(tmp_path / "inbox" / "blank.png")
    with pytest.raises(ValueError, match=r"no ink in .*blank\.png"):
        Pictures(tmp_path / "inbox", tmp_path / "samples")


def test_notebook_learns_the_corrections_of_own_pictures(tmp_path, monkeypatch):
    inbox = tmp_path / "my pictures, été"
    truth = {}
    for path, digit in write_samples(inbox, each=8):
        if digit in "1278":  # nobody writes all ten
            truth[path.name] = digit
        else:
            path.unlink()

    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path / "out"))
    parameters = {
        "dataset": "digits",
        "pictures": str(inbox),
        "corrections": {name: digit for name, digit in truth.items() if digit == "1"},
        "weights": "models/enhanced_model_best.pth",  # which has much to learn
    }
    papermill.execute_notebook(
        PATH, tmp_path / "out.ipynb", parameters, cwd=str(PATH.parent), progress_bar=False
    )

    text = str(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "your handwriting is classified no worse than before: True" in text
    labelled = tmp_path / "out" / "data" / "own-digits" / "labelled"
    assert {path.name: path.parent.name for path in labelled.glob("*/*")} == truth
    assert {path.name for path in inbox.iterdir()} == set(truth)  # they are unchanged

    test = load_folder(labelled).test
    tuned = load_weights(EnhancedNet(), tmp_path / "out" / "models" / "enhanced_model-own-hand.pth")
    before = evaluate(network("enhanced_model_best"), test)
    assert evaluate(tuned, test).n_correct > before.n_correct
