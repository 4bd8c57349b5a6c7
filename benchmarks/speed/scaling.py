"""How training time and memory grow with data, width, batch size and threads.

`make scaling`, about two minutes on two cores; writes `benchmarks/speed/scaling.json` and draws
`figures/scaling.png`. Seconds are those of one plain epoch of the default recipe, the median of
three after a warm-up. More images than MNIST has are warped copies of them.
"""

import json
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
from mnist_mlp.data import epoch_generator, loader
from mnist_mlp.datasets import default_root
from mnist_mlp.storage.files import write_json

RECORD = Path(__file__).with_suffix(".json")
IMAGES = (6_000, 12_000, 24_000, 60_000, 120_000, 240_000, 480_000)
WIDTHS = (1, 2, 4, 8)
BATCH_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)

# What a process does to train one epoch, for its peak of memory.
START = "import torch"
OURS = (
    "from mnist_mlp import EnhancedNet, Recipe, fit, load; s = load('mnist'); model = EnhancedNet()"
)
LOOP = """
model = EnhancedNet()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for images, labels in batches:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""
USUAL = """
import os
from torchvision import datasets, transforms
from mnist_mlp import EnhancedNet
steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
data = datasets.MNIST(os.environ["MNIST_ROOT"], transform=transforms.Compose(steps))
"""
LOADING = {
    "import torch alone": START,
    "one uint8 tensor, plain": f"{START}\n{OURS}\nfit(model, s.train, s.validation, \
Recipe(epochs=1, augment_strength=0.0), progress=False)",
    "one uint8 tensor, augmented": f"{START}\n{OURS}\nfit(model, s.train, s.validation, \
Recipe(epochs=1), progress=False)",
    "one float32 tensor": f"{START}\n{OURS}\ninputs = (s.train.images.flatten(1).float() / 255 - \
0.1307) / 0.3081\nbatches = ((inputs[i], s.train.labels[i]) for i in \
torch.randperm(len(inputs)).split(512)){LOOP}",
    "DataLoader, image by image": f"{START}\n{USUAL}\nbatches = torch.utils.data.DataLoader(data, \
512, shuffle=True){LOOP}",
    "DataLoader, two workers (theirs apart)": f"{START}\n{USUAL}\n\
batches = torch.utils.data.DataLoader(data, 512, shuffle=True, num_workers=2){LOOP}",
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
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def copies(train: ImageDataset, count: int) -> ImageDataset:
    """Return that many images: the first ones, then warped copies in turn."""
    images, labels = [train.images[:count]], [train.labels[:count]]
    for copy in range(1, -(-count // len(train))):
        part = train.subset(torch.arange(min(len(train), count - copy * len(train))))
        unscaled = ImageDataset(part.images, part.labels, mean=0.0, std=1.0)
        for batch, batch_labels in loader(unscaled, 5000, epoch_generator(0, copy), random_warp):
            images.append((batch.view(-1, 28, 28) * 255).round().to(torch.uint8))
            labels.append(batch_labels)
    return ImageDataset(torch.cat(images), torch.cat(labels))


def peak_memory(code: str) -> int:
    """Return the peak of a Python process's resident memory in bytes, without its children's."""
    meter = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    # Through a shell, since a child's peak counts from its parent's size.
    command = ["/bin/sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code + meter]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(done.stdout.split()[-1])


def exponent(points: dict) -> float:
    """Return the slope of the seconds on doubly logarithmic axes."""
    x, y = np.log(list(points)), np.log(list(points.values()))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    """Measure everything and write the record."""
    os.environ["MNIST_ROOT"] = str(default_root())  # torchvision's, too
    before = os.getloadavg()[0]
    splits = load("mnist")
    both = (splits.train, splits.validation)
    train = ImageDataset(torch.cat([p.images for p in both]), torch.cat([p.labels for p in both]))
    small = train.subset(torch.arange(12_000))
    threads = torch.get_num_threads()
    record = {
        "command": "make scaling", "load_average_before": before, "cores": os.cpu_count(),
        "threads": threads, "seconds": {},
    }  # fmt: skip
    seconds = record["seconds"]
    torch.manual_seed(0)
    epoch_seconds(EnhancedNet(), small)  # warm up
    for count in (1, threads) if threads > 1 else (1,):
        torch.set_num_threads(count)
        name = f"batch size, {count} thread{'s' * (count > 1)}"
        seconds[name] = {
            size: epoch_seconds(EnhancedNet(), small, size) for size in tqdm(BATCH_SIZES, name)
        }
    seconds["width"] = {k: epoch_seconds(wide(k), small) for k in tqdm(WIDTHS, "width")}
    seconds["images"] = {
        n: epoch_seconds(EnhancedNet(), copies(train, n)) for n in tqdm(IMAGES, "images")
    }
    record["exponents"] = {name: exponent(seconds[name]) for name in ("width", "images")}
    record["peak_memory_bytes"] = {
        name: peak_memory(code) for name, code in tqdm(LOADING.items(), "memory")
    }
    record["versions"] = {"torch": str(torch.__version__)}
    write_json(RECORD, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
