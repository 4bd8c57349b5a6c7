"""Measure how training time and memory grow with images, width, batch size and threads.

`make scaling` takes about two minutes on two cores. It writes `benchmarks/speed/scaling.json` and
draws `figures/scaling.png`. The times are seconds of one plain epoch of the default recipe: the
median of three epochs after a warm-up. Warped copies stand in for images beyond MNIST's 60,000.
"""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench import machine
from memory import WAYS
from torch import nn
from tqdm import tqdm

from mnist_mlp import EnhancedNet, ImageDataset, Recipe, fit, load
from mnist_mlp.augment import random_warp
from mnist_mlp.data import concatenate, epoch_generator
from mnist_mlp.datasets import default_root
from mnist_mlp.files import write_json

RECORD = Path(__file__).with_suffix(".json")
IMAGES = (6_000, 12_000, 24_000, 60_000, 120_000, 240_000, 480_000)
WIDTHS = (1, 2, 4, 8)
BATCH_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def epoch_seconds(model: nn.Module, train: ImageDataset, batch_size: int = 512) -> float:
    """Return the median seconds of a plain epoch."""
    validation = train.subset(torch.arange(100))
    recipe = Recipe(epochs=4, batch_size=batch_size, augment_strength=0.0, precision="float32")
    history = fit(model, train, validation, recipe, progress=False)
    return median(epoch["seconds"] for epoch in history.epochs[1:])


def wide(factor: int) -> nn.Module:
    """Return EnhancedNet with every hidden layer `factor` times as wide."""
    sizes = (784, factor * 512, factor * 256, factor * 128, factor * 64, 10)
    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers.append(nn.Linear(n_in, n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def copies(train: ImageDataset, count: int) -> ImageDataset:
    """Return `count` images: the first ones of `train`, then warped copies of them.

    Every further round of copies begins with the first image again and is warped differently.
    """
    images = [train.images[:count]]
    labels = [train.labels[:count]]
    for copy in range(1, math.ceil(count / len(train))):
        generator = epoch_generator(0, copy)
        missing = min(len(train), count - copy * len(train))

        # Batches of 5,000 keep the memory of the warps small.
        for indices in torch.arange(missing).split(5000):
            warped = random_warp(train.images[indices] / 255, generator)
            images.append((warped * 255).round().to(torch.uint8))
            labels.append(train.labels[indices])
    return ImageDataset(torch.cat(images), torch.cat(labels))


def peak_memory(way: str) -> int:
    """Return the peak of the resident memory, in bytes, of a process that trains in this way.

    Args:
        way: A key of `memory.WAYS`.
    """
    # A shell starts the process, because a child's peak begins at the size of its parent.
    # `exit` keeps the shell from replacing itself with Python.
    script = str(Path(__file__).with_name("memory.py"))
    command = ["/bin/sh", "-c", '"$0" "$1" "$2"; exit $?', sys.executable, script, way]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(process.stdout.split()[-1])


def exponent(points: dict[int, float]) -> float:
    """Return the exponent of the power law that fits the points, a slope on logarithmic axes."""
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return float(slope)


def main() -> None:
    """Measure everything and write the record."""
    os.environ["MNIST_ROOT"] = str(default_root())  # torchvision reads it too
    load_average = os.getloadavg()[0]
    threads = torch.get_num_threads()
    splits = load("mnist")
    train = concatenate(splits.train, splits.validation)
    small = train.subset(torch.arange(12_000))

    torch.manual_seed(0)
    epoch_seconds(EnhancedNet(), small)  # warm up
    seconds = {}

    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        name = "batch size, 1 thread" if count == 1 else f"batch size, {count} threads"
        seconds[name] = {}
        for size in tqdm(BATCH_SIZES, name):
            seconds[name][size] = epoch_seconds(EnhancedNet(), small, size)

    seconds["width"] = {}
    for factor in tqdm(WIDTHS, "width"):
        seconds["width"][factor] = epoch_seconds(wide(factor), small)

    seconds["images"] = {}
    for count in tqdm(IMAGES, "images"):
        seconds["images"][count] = epoch_seconds(EnhancedNet(), copies(train, count))

    memory = {way: peak_memory(way) for way in tqdm(WAYS, "memory")}

    record = {
        "command": "make scaling",
        "load_average_before": load_average,
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds": seconds,
        "exponents": {name: exponent(seconds[name]) for name in ("width", "images")},
        "peak_memory_bytes": memory,
        "machine": machine(),
    }
    write_json(RECORD, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
