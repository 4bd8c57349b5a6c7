"""Measure what each idea of the speedrun gives.

`make speedrun-ideas` takes 2 minutes on two cores. It trains the speedrun, and the speedrun without
one of its ideas, with 12 seeds each, in turns. Each seed leaves out another block of the training
images, on which the accuracy is measured. At the end, ten more seeds of the speedrun itself are
tested on the test images. The command writes `benchmarks/speed/speedrun.json` and prints the table.
"""

import os
import time
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import speedrun
from bench import machine
from tqdm import tqdm

from mnist_mlp.files import write_json

RECORD = Path(__file__).with_name("speedrun.json")
SEEDS = range(12)
TEST_SEEDS = range(100, 110)


class Adam:
    """Update one weight matrix with Adam; an optimizer as `speedrun.Muon`."""

    def __init__(self, weights: np.ndarray, settings: dict):
        """Start with both moments at 0."""
        self.weights = weights
        self.learning_rate = settings["learning_rate"]
        self.first = np.zeros_like(weights)
        self.second = np.zeros_like(weights)
        self.steps = 0

    def step(self, gradient: np.ndarray, fraction: float) -> None:
        """Update the weights with this fraction of the highest learning rate."""
        self.steps += 1
        self.first += np.float32(0.1) * (gradient - self.first)
        self.second += np.float32(0.01) * (gradient * gradient - self.second)

        # Both moments start at 0, so they are too small at first.
        first = self.first / np.float32(1 - 0.9**self.steps)
        second = self.second / np.float32(1 - 0.99**self.steps)
        step_size = np.float32(fraction * self.learning_rate)
        self.weights -= step_size * first / (np.sqrt(second) + np.float32(1e-8))


# What replaces an idea, and the optimizer. Adam has the batch size and the learning rate that are
# best for it.
VARIANTS = {
    "the speedrun": ({}, speedrun.Muon),
    "576 pixels instead of 64 components": ({"components": 576}, speedrun.Muon),
    "Adam instead of Muon": ({"batch_size": 256, "learning_rate": 0.008}, Adam),
    "Adam, 3 epochs": ({"batch_size": 256, "learning_rate": 0.008, "blocks": 33}, Adam),
    "five Newton-Schulz iterations": ({"iterations": 5}, speedrun.Muon),
    "a batch of 256": ({"batch_size": 256, "learning_rate": 0.06}, speedrun.Muon),
    "no shifts": ({"shift": False}, speedrun.Muon),
    "no smoothed labels": ({"smoothing": 0.0}, speedrun.Muon),
    "one epoch": ({"blocks": 11}, speedrun.Muon),
    "two epochs": ({"blocks": 22}, speedrun.Muon),
}


def main() -> None:
    """Train all variants with all seeds, and write the record."""
    images, labels = speedrun.read_mnist("train", 60_000)
    accuracies = {name: [] for name in VARIANTS}
    seconds = {name: [] for name in VARIANTS}
    load_average = os.getloadavg()[0]

    bar = tqdm(total=len(SEEDS) * len(VARIANTS) + len(TEST_SEEDS), unit="run")
    for seed in SEEDS:
        left_out = speedrun.left_out_block(seed)
        for name, (changes, optimizer) in VARIANTS.items():
            start = time.perf_counter()
            settings = {**speedrun.SETTINGS, **changes}
            state = speedrun.train(images, labels, seed, settings, optimizer)
            seconds[name].append(time.perf_counter() - start)

            correct = speedrun.predict(state, images[left_out]) == labels[left_out]
            accuracies[name].append(float(correct.mean()))
            bar.update()

    variants = {}
    for name, (changes, optimizer) in VARIANTS.items():
        variants[name] = {
            "changes": changes,
            "optimizer": optimizer.__name__,
            "validation_accuracy_mean": mean(accuracies[name]),
            "seconds": median(seconds[name]),
        }

    test_images, test_labels = speedrun.read_mnist("t10k", 10_000)
    test_accuracies = []
    for seed in TEST_SEEDS:
        state = speedrun.train(images, labels, seed)
        correct = speedrun.predict(state, test_images) == test_labels
        test_accuracies.append(float(correct.mean()))
        bar.update()
    bar.close()

    record = {
        "command": "make speedrun-ideas",
        "settings": speedrun.SETTINGS,
        "seeds": len(SEEDS),
        "variants": variants,
        "test_seeds": len(TEST_SEEDS),
        "test_accuracy_mean": mean(test_accuracies),
        "test_accuracy_stdev": stdev(test_accuracies),
        "load_average_before": round(load_average, 2),
        "machine": machine(),
    }
    write_json(RECORD, record)
    print(table_as_markdown(record))


def table_as_markdown(record: dict) -> str:
    """Return the record's variants as a table in Markdown."""
    lines = ["| | validation accuracy | training, s |", "|---|---|---|"]
    for name, row in record["variants"].items():
        accuracy = row["validation_accuracy_mean"]
        lines.append(f"| {name} | {accuracy:.2%} | {row['seconds']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
