"""The record of `make generalisation` holds what is read of pictures of many kinds."""

import csv
import importlib

import numpy as np
import pytest
from helpers import ROOT, skip_unless_published
from PIL import Image

from mnist_lab.handwriting import photos, records
from mnist_lab.handwriting.read import read
from mnist_mlp import EnhancedNet, load_weights

WEIGHTS = "models/enhanced_model_handwriting.pth"


@pytest.fixture(scope="module")
def script():
    """The module of `make generalisation`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks" / "accuracy")
        yield importlib.import_module("generalisation")


@pytest.fixture(scope="module")
def model():
    return load_weights(EnhancedNet(), ROOT / WEIGHTS)


@pytest.fixture
def record() -> dict:
    skip_unless_published("benchmarks/accuracy/generalisation.json", WEIGHTS)
    return records.read_generalisation()


# A picture with lines takes twenty milliseconds to read, a bitmap hardly any time.
KINDS_TO_COUNT = [
    "printed box",
    "bitmap stretched to 16x16",
    pytest.param("squared, tilted", marks=pytest.mark.campaign),
]


@pytest.mark.parametrize("kind", KINDS_TO_COUNT)
def test_record_is_counted_again_from_the_pictures(record, script, model, mnist, kind):
    n_right = 0
    for i in range(script.N_PICTURES):
        ink = photos.enlarge(mnist.test.images[i])
        picture = photos.KINDS[kind](ink, np.random.default_rng(i))
        try:
            n_right += read(model, picture).text == str(int(mnist.test.labels[i]))
        except ValueError:
            continue

    # Another processor may round a probability near one half differently.
    assert abs(n_right - record["counts"][kind]["right"]) <= 2


def test_each_picture_of_the_record_counts_once(record):
    for counts in record["counts"].values():
        outcomes = ("right", "refused", "doubted", "misread")
        assert sum(counts[name] for name in outcomes) == counts["pictures"]
        assert 0 <= counts["tutorial_right"] <= counts["pictures"]


def test_readmes_quote_the_record(record):
    table = records.generalisation_table(record["counts"])
    benchmarks_readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    for kind, row in table.iterrows():
        assert f"| {kind} | {' | '.join(row)} |" in benchmarks_readme
    quoted = [kind for kind in table.index if f"| {kind} |" in readme]
    assert len(quoted) >= 5
    for kind in quoted:
        row = table.loc[kind]
        assert f"| {kind} | {row['read right']} | {row['tutorial, read right']} |" in readme


def test_pictures_in_a_folder_are_counted_by_kind(script, model, mnist, tmp_path):
    with open(tmp_path / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "digits", "kind"])
        for i in range(20):
            ink = np.pad(photos.enlarge(mnist.test.images[i]), 20)
            kind = "photograph" if i < 15 else "empty"
            picture = photos.photograph(ink if i < 15 else 0 * ink, np.random.default_rng(i))
            Image.fromarray(picture).save(tmp_path / f"{i}.png")
            writer.writerow([f"{i}.png", int(mnist.test.labels[i]), kind])

    counts = script.count(script.own_pictures(tmp_path), model, model)

    assert counts["photograph"]["pictures"] == 15
    assert counts["photograph"]["right"] >= 14
    assert counts["empty"] == {
        "pictures": 5,
        "right": 0,
        "refused": 5,
        "doubted": 0,
        "misread": 0,
        "tutorial_right": counts["empty"]["tutorial_right"],
    }


def test_the_tutorial_sees_white_digits_on_black(script):
    picture = np.full((56, 56), 250, np.uint8)
    picture[10:46, 26:30] = 10

    on_white = script.prepare_as_tutorial(picture)
    on_black = script.prepare_as_tutorial(255 - picture)

    assert on_white.shape == (28, 28)
    assert on_white[14, 13] > 200
    assert on_white[0, 0] < 30
    assert (on_white.int() - on_black.int()).abs().max() <= 1
