"""How training time and memory grow with data, width, batch size and threads.

`make scaling` needs about two minutes on two cores. It writes `benchmarks/speed/scaling.json` and
draws `figures/scaling.png`. Seconds are those of one plain epoch of the default recipe, the median
of three after a warm-up. More images than MNIST has are warped copies of them.
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

# What a process does to train one epoch, for its peak of memory.
OURS = """
from mnist_mlp import EnhancedNet, Recipe, fit, load
splits = load("mnist")
"""
USUAL = """
import os
from mnist_mlp import EnhancedNet
from torchvision import datasets, transforms
steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
data = datasets.MNIST(os.environ["MNIST_ROOT"], transform=transforms.Compose(steps))
"""
LOOP = """
model = EnhancedNet()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for images, labels in batches:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""
PROGRAMS = {
    "import torch alone": "",
    "one uint8 tensor, plain": f"""{OURS}
recipe = Recipe(epochs=1, augment_strength=0.0)
fit(EnhancedNet(), splits.train, splits.validation, recipe, progress=False)
""",
    "one uint8 tensor, augmented": f"""{OURS}
fit(EnhancedNet(), splits.train, splits.validation, Recipe(epochs=1), progress=False)
""",
    "one float32 tensor": f"""{OURS}
inputs = (splits.train.images.flatten(1).float() / 255 - 0.1307) / 0.3081
order = torch.randperm(len(inputs)).split(512)
batches = ((inputs[indices], splits.train.labels[indices]) for indices in order)
{LOOP}""",
    "DataLoader, image by image": f"""{USUAL}
batches = torch.utils.data.DataLoader(data, 512, shuffle=True)
{LOOP}""",
    "DataLoader, two workers (theirs apart)": f"""{USUAL}
batches = torch.utils.data.DataLoader(data, 512, shuffle=True, num_workers=2)
{LOOP}""",
}


def epoch_seconds(model: nn.Module, train: ImageDataset, batch_size: int = 512) -> float:
    """Return the median seconds of a plain epoch."""
    validation = train.subset(torch.arange(100))
    recipe = Recipe(epochs=4, batch_size=batch_size, augment_strength=0.0, precision="float32")
    history = fit(model, train, validation, recipe, progress=False)
    return median(epoch["seconds"] for epoch in history.epochs[1:])


def wide(factor: int) -> nn.Module:
    """Return EnhancedNet with every hidden layer that many times as wide."""
    sizes = [784, *(factor * n for n in (512, 256, 128, 64)), 10]
    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(sizes):
        layers.append(nn.Linear(n_in, n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def copies(train: ImageDataset, count: int) -> ImageDataset:
    """Return that many images: the first ones, then warped copies in turn."""
    images = [train.images[:count]]
    labels = [train.labels[:count]]
    for copy in range(1, math.ceil(count / len(train))):
        generator = epoch_generator(0, copy)
        missing = min(len(train), count - copy * len(train))
        for indices in torch.arange(missing).split(5000):
            warped = random_warp(train.images[indices] / 255, generator)
            images.append((warped * 255).round().to(torch.uint8))
            labels.append(train.labels[indices])
    return ImageDataset(torch.cat(images), torch.cat(labels))


def peak_memory(program: str) -> int:
    """Return the peak of a Python process's resident memory in bytes, without its children's."""
    meter = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    code = f"import torch\n{program}\n{meter}"

    # Through a shell, since a child's peak counts from its parent's size.
    command = ["/bin/sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(process.stdout.split()[-1])


def exponent(points: dict) -> float:
    """Return the slope of the seconds on doubly logarithmic axes."""
    slope, _ = np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)
    return float(slope)


def main() -> None:
    """Measure everything and write the record."""
    os.environ["MNIST_ROOT"] = str(default_root())  # torchvision's, too
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

    memory = {name: peak_memory(program) for name, program in tqdm(PROGRAMS.items(), "memory")}
    record = {
        "command": "make scaling",
        "load_average_before": load_average,
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds": seconds,
        "exponents": {name: exponent(seconds[name]) for name in ("width", "images")},
        "peak_memory_bytes": memory,
        "versions": {"torch": str(torch.__version__)},
    }
    write_json(RECORD, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
