"""Read pictures of many kinds, with our networks and as the usual tutorial does.

`make generalisation` takes 3 minutes. It makes pictures of every kind in
`mnist_lab.handwriting.photos` from MNIST's test set. It adds the test set itself, handwriting
fonts, scikit-learn's digits, and USPS where torchvision can fetch it. It writes
`benchmarks/accuracy/generalisation.json`.

`make read-folder FOLDER=...` reads your own pictures in the same way and writes nothing. The folder
holds a file `labels.csv` with the columns `file`, `digits` (of all rows, joined) and `kind`.

The usual tutorial trains the same layers without augmentation. It resizes a picture to 28x28 pixels
and inverts it if it is mostly bright.
"""

import csv
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from ideas import machine
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import nn
from torchvision.datasets import USPS
from tqdm import tqdm

from mnist_lab.handwriting import fonts, photos
from mnist_lab.handwriting.read import read
from mnist_lab.handwriting.records import generalisation_table
from mnist_lab.research.sweep import VERSION
from mnist_mlp import EnhancedNet, ImageDataset, Recipe, evaluate, fit, load, load_weights
from mnist_mlp.datasets import default_root
from mnist_mlp.files import repo_root, write_json

RECORD = Path(__file__).with_suffix(".json")
WEIGHTS = repo_root() / "models" / "enhanced_model_handwriting.pth"
N_PICTURES = 500  # of each kind
N_SHEETS = 100  # with 2 rows of 5 digits
TUTORIAL = Recipe(
    epochs=10,
    batch_size=64,
    learning_rate=0.001,
    schedule="constant",
    weight_decay=0.0,
    ema_decay=0.0,
    augment_strength=0.0,
    select="last epoch",
)

LabelledPicture = tuple[str | Path | np.ndarray, str]  # a file or an array, and its digits


def made_pictures(test: ImageDataset) -> dict[str, Iterable[LabelledPicture]]:
    """Return pictures by their kind, all of which any user can make again."""
    digits = [str(int(label)) for label in test.labels]
    pictures: dict[str, Iterable[LabelledPicture]] = {
        "MNIST's test set": list(zip(test.images.numpy(), digits, strict=True))
    }

    for name, kind in photos.KINDS.items():
        pictures[name] = [
            (kind(photos.enlarge(test.images[i]), np.random.default_rng(i)), digits[i])
            for i in range(N_PICTURES)
        ]

    sheets = []
    for number in range(N_SHEETS):
        indices = range(10 * number, 10 * number + 10)
        images = [test.images[i] for i in indices]
        sheet = photos.sheet_of_rows(images, 5, np.random.default_rng(number))
        sheets.append((sheet, "".join(digits[i] for i in indices)))
    pictures["two rows of five, all right"] = sheets
    return pictures


def other_handwriting() -> dict[str, list[LabelledPicture]]:
    """Return pictures of digits that are not MNIST's, by their origin."""
    pictures = dict(fonts.font_pictures(half=1))

    turkey = load_digits()
    labels = [str(label) for label in turkey.target]
    pictures["43 people in Turkey, 8x8 pixels"] = list(zip(turkey.images / 16, labels, strict=True))

    try:
        envelopes = USPS(default_root() / "USPS", train=False, download=True)
    except (OSError, RuntimeError) as error:
        print(f"USPS is left out: {error}")
    else:
        labels = [str(label) for label in envelopes.targets]
        pictures["USPS's test set, 16x16 pixels"] = list(zip(envelopes.data, labels, strict=True))
    return pictures


def own_pictures(folder: Path) -> dict[str, list[LabelledPicture]]:
    """Return the pictures in a folder by the kinds in its file `labels.csv`."""
    pictures: dict[str, list[LabelledPicture]] = {}
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pictures.setdefault(row["kind"], []).append((folder / row["file"], row["digits"]))
    return pictures


def train_tutorial() -> EnhancedNet:
    """Train the network of the usual tutorial."""
    splits = load("mnist")
    torch.manual_seed(TUTORIAL.seed)
    model = EnhancedNet()
    fit(model, splits.train, splits.validation, TUTORIAL)
    return model


def prepare_as_tutorial(picture: str | Path | np.ndarray) -> torch.Tensor:
    """Return a picture as the usual tutorial prepares it, uint8 of shape (28, 28)."""
    if isinstance(picture, np.ndarray):
        values = picture if picture.dtype == np.uint8 else (255 * picture).astype(np.uint8)
        picture_file = Image.fromarray(values)
    else:
        picture_file = Image.open(picture)
    grey = picture_file.convert("L").resize((28, 28))
    if np.asarray(grey).mean() > 127:
        grey = ImageOps.invert(grey)
    return torch.from_numpy(np.array(grey))


def count(
    pictures: dict[str, Iterable[LabelledPicture]], model: nn.Module, tutorial: nn.Module
) -> dict[str, dict[str, int]]:
    """Return by kind how many pictures are read right, refused, doubted and misread.

    A misread picture counts as doubted if there is a warning and no wrong picture as refused.
    """
    counts = {}
    for kind, labelled in tqdm(pictures.items(), unit="kind"):
        result = {"pictures": 0, "right": 0, "refused": 0, "doubted": 0, "misread": 0}
        prepared = []
        expected = []
        for picture, digits in labelled:
            result["pictures"] += 1
            prepared.append(prepare_as_tutorial(picture))
            expected.append(digits)
            try:
                reading = read(model, picture)
            except ValueError:
                result["refused"] += 1
                continue
            if reading.text.replace("\n", "") == digits:
                result["right"] += 1
            elif reading.warnings:
                result["doubted"] += 1
            else:
                result["misread"] += 1

        unknown = torch.zeros(len(prepared), dtype=torch.int64)
        answers = evaluate(tutorial, ImageDataset(torch.stack(prepared), unknown)).probabilities
        result["tutorial_right"] = sum(
            str(int(answer)) == digits
            for answer, digits in zip(answers.argmax(dim=1), expected, strict=True)
        )
        counts[kind] = result
    return counts


def main() -> None:
    """Count and print; write the record, unless a folder of own pictures is given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    model = load_weights(EnhancedNet(), WEIGHTS)
    tutorial = train_tutorial()

    if folder:
        counts = count(own_pictures(folder), model, tutorial)
        total = {key: sum(c[key] for c in counts.values()) for key in next(iter(counts.values()))}
        print(generalisation_table({**counts, "all": total}).to_string())
        return

    test = load("mnist").test
    counts = count({**made_pictures(test), **other_handwriting()}, model, tutorial)
    print(generalisation_table(counts).to_string())
    record = {
        "command": "make generalisation",
        "weights": WEIGHTS.name,
        "tutorial_recipe": TUTORIAL.asdict(),
        "machine": machine(),
        "version": VERSION,
        "made": time.strftime("%Y-%m-%d"),
        "counts": counts,
    }
    write_json(RECORD, record, indent=1)


if __name__ == "__main__":
    main()
