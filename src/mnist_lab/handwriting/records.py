"""The records of how well handwriting is read, as tables."""

from collections.abc import Mapping
from statistics import mean

import pandas as pd

from mnist_mlp.files import published, read_json


def read_handwriting() -> dict:
    """Return the record of `make handwriting`.

    Raises:
        OSError: The record is missing.
        ValueError: The record is damaged.
    """
    schema = {"images": dict, "before": dict, "runs": list, "test_images": int}
    return read_json(published("benchmarks/accuracy/handwriting.json"), schema)


def handwriting_table(record: Mapping) -> pd.DataFrame:
    """Return the accuracy on each set of images, from the record of `make handwriting`."""
    before = record["before"]
    runs = record["runs"]

    test_images = record["test_images"]
    correct_after = mean(run["test_correct"] for run in runs)
    rows = {
        "MNIST's test set": {
            "images": f"{test_images:,}",
            "before": f"{before['test_correct'] / test_images:.2%}",
            "after, mean of the seeds": f"{correct_after / test_images:.2%}",
        }
    }

    for name, images_per_digit in record["images"].items():
        count = sum(images_per_digit)
        correct_before = sum(before["handwriting"][name])
        correct_after = mean(sum(run["handwriting"][name]) for run in runs)
        rows[name] = {
            "images": f"{count:,}",
            "before": f"{correct_before / count:.1%}",
            "after, mean of the seeds": f"{correct_after / count:.1%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def read_generalisation() -> dict:
    """Return the record of `make generalisation`.

    Raises:
        OSError: The record is missing.
        ValueError: The record is damaged.
    """
    return read_json(published("benchmarks/accuracy/generalisation.json"), {"counts": dict})


def generalisation_table(counts: Mapping) -> pd.DataFrame:
    """Return how each kind of picture is read, from the counts of `make generalisation`."""
    rows = {}
    for kind, result in counts.items():
        n_pictures = result["pictures"]
        rows[kind] = {
            "pictures": f"{n_pictures:,}",
            "read right": f"{result['right'] / n_pictures:.1%}",
            "refused": f"{result['refused']:,}",
            "misread with a warning": f"{result['doubted']:,}",
            "misread without": f"{result['misread']:,}",
            "tutorial, read right": f"{result['tutorial_right'] / n_pictures:.1%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
