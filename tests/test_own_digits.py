"""The notebook of one's own digits, and the pictures that the repository draws for it."""

from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

from mnist_mlp import checkpoint, data
from mnist_mlp.data import load
from mnist_mlp.evaluate import evaluate
from mnist_mlp.images import find_digits, to_mnist
from mnist_mlp.model import EnhancedNet
from mnist_mlp.samples import HAND, photograph, write_samples

PATH = Path(__file__).parents[1] / "notebooks" / "Your-Own-Digits.ipynb"


@pytest.fixture(scope="module")
def model():
    return checkpoint.load(EnhancedNet(), data.home() / "models" / "enhanced_model_best.pth")


def test_the_samples_are_photographs_all_different_and_always_the_same(tmp_path):
    written = write_samples(tmp_path / "a b", each=2, seed=3)
    assert sorted(digit for _, digit in written) == sorted([*HAND] * 2)
    pictures = [path.read_bytes() for path, _ in written]
    assert len(set(pictures)) == 20
    again = write_samples(tmp_path / "again", each=2, seed=3)
    assert [path.read_bytes() for path, _ in again] == pictures
    grey = np.asarray(Image.open(written[0][0]))
    assert grey.shape == (320, 320)
    assert grey.min() < 120 < 180 < grey.max()


def test_the_hand_is_legible_but_for_its_ones(tmp_path, model):
    written = write_samples(tmp_path, each=8)
    images = torch.stack([to_mnist(path) for path, _ in written])
    answers = model.predict_proba((images / 255 - data.MEAN) / data.STD).argmax(1).tolist()
    wrong = {(digit, str(a)) for (_, digit), a in zip(written, answers, strict=True)}
    wrong -= {(digit, digit) for digit in HAND}
    assert wrong == {("1", "7")}


def test_a_number_is_found_digit_by_digit(model):
    number = photograph("9024375", np.random.default_rng(1), 220)
    digits = find_digits(number)
    answers = model.predict_proba((digits / 255 - data.MEAN) / data.STD).argmax(1)
    assert "".join(map(str, answers.tolist())) == "9024375"


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
    papermill.execute_notebook(
        PATH, tmp_path / "out.ipynb", parameters, cwd=str(PATH.parent), progress_bar=False
    )
    text = str(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "your hand is read better than before: True" in text
    mine = load(str(tmp_path / "out" / "data" / "own-digits" / "labelled"))
    labelled = {p.name: p.parent.name for p in (tmp_path / "out").rglob("labelled/*/*.jpg")}
    assert labelled == truth
    taught = checkpoint.load(
        EnhancedNet(), tmp_path / "out" / "models" / "enhanced_model-own-hand.pth"
    )
    assert evaluate(taught, mine.test).n_correct > evaluate(model, mine.test).n_correct
    assert sorted(p.name for p in inbox.iterdir()) == sorted(truth)  # theirs are as they were
