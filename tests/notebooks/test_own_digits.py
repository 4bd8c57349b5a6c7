"""The notebook of one's own digits, and the synthetic handwriting that it uses."""

import nbformat
import numpy as np
import papermill
import pytest
import torch
from helpers import ROOT
from PIL import Image

from mnist_mlp import EnhancedNet, evaluate, load, load_weights
from mnist_mlp.handwriting.collection import Pictures
from mnist_mlp.handwriting.preprocess import normalise, segment_digits, to_mnist
from mnist_mlp.handwriting.styles import ONE_PERSON
from mnist_mlp.handwriting.synthetic import render_photo, write_samples

PATH = ROOT / "notebooks" / "Your-Own-Digits.ipynb"


@pytest.fixture(scope="module")
def model():
    return load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")


def test_a_blank_picture_and_a_correction_without_its_picture_are_named(tmp_path):
    write_samples(tmp_path, each=1)
    own = Pictures(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"files that are not there: IMG_1\.png"):
        own.labels(torch.zeros(10), {"IMG_1.png": "7"})
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"no ink in .*blank\.png"):
        Pictures(tmp_path, tmp_path)


def test_the_samples_are_photos_all_different_and_always_the_same(tmp_path):
    written = write_samples(tmp_path / "a b", each=2, seed=3)
    assert sorted(digit for _, digit in written) == sorted([*ONE_PERSON] * 2)
    pictures = [path.read_bytes() for path, _ in written]
    assert len(set(pictures)) == 20
    again = write_samples(tmp_path / "again", each=2, seed=3)
    assert [path.read_bytes() for path, _ in again] == pictures
    grey = np.asarray(Image.open(written[0][0]))
    assert grey.shape == (320, 320)
    assert grey.min() < 120 < 180 < grey.max()


def test_the_ones_of_the_samples_are_sevens_to_a_network_trained_on_mnist_alone(tmp_path, model):
    written = write_samples(tmp_path, each=8)
    images = torch.stack([to_mnist(path) for path, _ in written])
    predicted = model.predict_proba((images / 255 - 0.1307) / 0.3081).argmax(1).tolist()
    wrong = {(digit, str(p)) for (_, digit), p in zip(written, predicted, strict=True)}
    wrong -= {(digit, digit) for digit in ONE_PERSON}
    assert wrong == {("1", "7")}
    knows_more = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_handwriting.pth")
    digits = "".join(digit for _, digit in written)
    found = knows_more.predict_proba(normalise(images)).argmax(1).tolist()
    assert sum(str(p) != digit for p, digit in zip(found, digits, strict=True)) <= 2


def test_a_number_is_segmented_digit_by_digit(model):
    digits = segment_digits(render_photo("9024375", np.random.default_rng(1), 220))
    predicted = model.predict_proba(normalise(digits)).argmax(1)
    assert "".join(map(str, predicted.tolist())) == "9024375"


def test_pictures_are_the_files_of_a_folder_and_labels_are_corrected_known_or_predicted(tmp_path):
    folder = tmp_path / "my pictures"
    written = dict(write_samples(folder, each=1))
    (folder / ".hidden").write_text("not a picture")
    (folder / "inner").mkdir()
    mine = Pictures(folder, tmp_path / "samples")
    assert mine.paths == sorted(written)
    assert torch.equal(mine.images[3], to_mnist(mine.paths[3]))
    assert torch.equal(mine.inputs, (mine.images / 255 - 0.1307) / 0.3081)
    expected = np.asarray(Image.open(mine.paths[2]).convert("L"))
    assert np.array_equal(mine.photos([2])[0], expected)
    labels = mine.labels(torch.full((10,), 7), {mine.paths[0].name: "4"})
    assert labels == ["4"] + ["7"] * 9
    labelled = mine.save_labelled(labels)
    assert [p.name for p in (labelled / "4").iterdir()] == [mine.paths[0].name]
    assert len(list((labelled / "7").iterdir())) == 9
    mine.save_labelled(["5"] * 10)
    assert [p.name for p in labelled.iterdir()] == ["5"]  # no copies with earlier labels
    samples = Pictures("", tmp_path / "samples")
    assert len(samples.paths) == 200
    assert samples.labels(torch.full((200,), 7), {}) == [
        samples.known[p.name] for p in samples.paths
    ]


def test_a_folder_without_pictures_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no pictures: expected one digit on"):
        Pictures(tmp_path / "empty", tmp_path / "samples")


def test_the_notebook_reads_a_persons_own_pictures_and_learns_their_corrections(
    tmp_path, monkeypatch, model
):
    inbox = tmp_path / "my pictures, été"
    for path, digit in write_samples(inbox, each=8):
        if digit not in "1278":
            path.unlink()  # nobody writes all ten
    truth = {p.name: d for p, d in write_samples(tmp_path / "same", each=8) if d in "1278"}
    ones = {name: digit for name, digit in truth.items() if digit == "1"}
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path / "out"))
    parameters = {"dataset": "digits", "pictures": str(inbox), "corrections": ones}
    parameters |= {"weights": "models/enhanced_model_best.pth"}  # which has much to learn
    papermill.execute_notebook(
        PATH, tmp_path / "out.ipynb", parameters, cwd=str(PATH.parent), progress_bar=False
    )
    text = str(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "your handwriting is classified no worse than before: True" in text
    mine = load(str(tmp_path / "out" / "data" / "own-digits" / "labelled"))
    labelled = {p.name: p.parent.name for p in (tmp_path / "out").rglob("labelled/*/*.jpg")}
    assert labelled == truth
    tuned = load_weights(EnhancedNet(), tmp_path / "out" / "models" / "enhanced_model-own-hand.pth")
    assert evaluate(tuned, mine.test).n_correct > evaluate(model, mine.test).n_correct
    assert sorted(p.name for p in inbox.iterdir()) == sorted(truth)  # they are unchanged
