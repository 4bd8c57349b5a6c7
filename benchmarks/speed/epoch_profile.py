"""Profile an epoch of the default recipe and compare it with its floor.

`make profile` takes about a minute and writes `benchmarks/speed/epoch_profile.json`. It measures
float32, and bfloat16 if the processor has units for it. The floor is the time that the matrix
products of an epoch would take if all ran as fast as one large product.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import pandas
import torch
from bench import machine
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from mnist_mlp import EnhancedNet, Recipe, Splits, evaluate, fit, load
from mnist_mlp.augment import random_warp
from mnist_mlp.data import batches, epoch_generator
from mnist_mlp.files import write_json
from mnist_mlp.optim import bfloat16_units, multiplies_bfloat16
from mnist_mlp.train import default_optimizer, resolve_precision, update_average

RECORD = Path(__file__).with_suffix(".json")
ROUNDS = 3
EPOCHS = 5  # of each training in a round
REPEATS = 100  # of each part of a step


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median duration of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return how many operations per second a product of two large square matrices reaches."""
    a = torch.randn(size, size).to(dtype)
    b = torch.randn(size, size).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats=10)


def epoch_operations(model: EnhancedNet, train: int, validation: int) -> float:
    """Return how many floating-point operations the matrix products of an epoch take.

    Each weight takes a multiplication and an addition per image in the forward pass. The backward
    pass takes as many for the gradient of the weight and again for the gradient of its input,
    which the first layer does not need.

    Args:
        model: The network.
        train: The number of training images.
        validation: The number of validation images.
    """
    weights = [p.numel() for p in model.parameters() if p.ndim == 2]
    forward = 2 * sum(weights)
    backward = 4 * sum(weights) - 2 * weights[0]
    return train * (forward + backward) + validation * forward


def epoch_seconds(splits: Splits, precision: str, augment_strength: float) -> list[float]:
    """Return the seconds of each epoch of a short training."""
    torch.manual_seed(0)
    recipe = Recipe(epochs=EPOCHS, precision=precision, augment_strength=augment_strength)
    history = fit(EnhancedNet(), splits.train, splits.validation, recipe, progress=False)
    return [epoch["seconds"] for epoch in history.epochs]


def part_seconds(splits: Splits, precision: str) -> dict[str, float]:
    """Return the seconds per epoch of each part of the loop, timed separately."""
    recipe = Recipe()
    steps = len(splits.train) / recipe.batch_size
    generator = epoch_generator(recipe.seed, 1)
    images, labels, _ = splits.train.get_batch(torch.arange(recipe.batch_size))
    unflattened = images.view(-1, 28, 28)

    torch.manual_seed(0)
    model = EnhancedNet()
    make_optimizer = default_optimizer(recipe, precision)
    optimizer = make_optimizer(model.parameters(), lr=1e-5, weight_decay=recipe.weight_decay)
    average = AveragedModel(model, multi_avg_fn=partial(update_average, decay=recipe.ema_decay))

    def fetch_batches() -> None:
        for _ in batches(splits.train, recipe.batch_size, generator):
            pass

    def forward_and_loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    loss = forward_and_loss()

    def backward() -> None:
        optimizer.zero_grad()
        loss.backward(retain_graph=True)

    # The optimizer needs gradients. It must come after the backward pass, because it changes the
    # weights that are part of the graph.
    backward()
    step_functions = {
        "warp": lambda: random_warp(unflattened, generator),
        "forward_and_loss": forward_and_loss,
        "backward": backward,
        "optimizer": optimizer.step,
        "ema": lambda: average.update_parameters(model),
    }
    parts = {"batch": median_seconds(fetch_batches, repeats=5)}
    for name, function in step_functions.items():
        parts[name] = steps * median_seconds(function, REPEATS)
    parts["validation"] = median_seconds(lambda: evaluate(model, splits.validation), repeats=5)
    return parts


def profile(splits: Splits, precision: str) -> dict:
    """Return a plain epoch's seconds, floor and parts, and the seconds of an augmented epoch."""
    epoch_seconds(splits, precision, augment_strength=1.0)  # warm up

    rates = []
    plain = []
    augmented = []
    for _ in range(ROUNDS):
        rates.append(product_rate(getattr(torch, precision)))
        plain += epoch_seconds(splits, precision, augment_strength=0.0)
        augmented += epoch_seconds(splits, precision, augment_strength=1.0)

    operations = epoch_operations(EnhancedNet(), len(splits.train), len(splits.validation))
    floor = operations / median(rates)
    parts = part_seconds(splits, precision)
    parts_of_plain = sum(seconds for name, seconds in parts.items() if name != "warp")
    parts["rest"] = median(plain) - parts_of_plain

    return {
        "product_rate_gflops": median(rates) / 1e9,
        "floor_seconds": floor,
        "plain_seconds": median(plain),
        "plain_over_floor": median(plain) / floor,
        "augmented_seconds": median(augmented),
        "parts": parts,
    }


def main() -> None:
    """Measure everything and write the record."""
    record = {
        "command": "make profile",
        "load_average_before": os.getloadavg()[0],
        "precision": resolve_precision("auto", "cpu"),
        "bfloat16_units": bfloat16_units(),
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }

    splits = load("mnist")
    precisions = ["float32"]
    if multiplies_bfloat16("cpu"):
        precisions.append("bfloat16")
    for precision in precisions:
        record[precision] = profile(splits, precision)
    write_json(RECORD, record)

    table = pandas.json_normalize([record[precision] for precision in precisions])
    table.index = precisions
    print(table.T.round(2))


if __name__ == "__main__":
    main()
