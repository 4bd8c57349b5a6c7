"""Profile an epoch of the default recipe and compare it with its floor.

`make profile` needs about a minute and writes `benchmarks/speed/epoch_profile.json`. It measures
in float32, and in bfloat16 where the processor has units for it. The floor is the time of an
epoch's matrix products at the rate of one large product.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import pandas
import torch
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
    """Return the median seconds of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return the operations per second of a large square product."""
    a = torch.randn(size, size).to(dtype)
    b = torch.randn(size, size).to(dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats=10)


def epoch_operations(model: EnhancedNet, train: int, validation: int) -> float:
    """Return the floating-point operations of an epoch's matrix products.

    Each weight costs a multiplication and an addition per image: in the forward pass, for its own
    gradient, and for the gradient of its input, which the first layer does not need.
    `train` and `validation` are numbers of images.
    """
    weights = [p.numel() for p in model.parameters() if p.ndim == 2]
    training = 3 * sum(weights) - weights[0]
    return 2 * train * training + 2 * validation * sum(weights)


def epoch_seconds(splits: Splits, precision: str, augment_strength: float) -> list[float]:
    """Return the seconds of each epoch of a short training."""
    torch.manual_seed(0)
    recipe = Recipe(epochs=EPOCHS, precision=precision, augment_strength=augment_strength)
    history = fit(EnhancedNet(), splits.train, splits.validation, recipe, progress=False)
    return [epoch["seconds"] for epoch in history.epochs]


def part_seconds(splits: Splits, precision: str) -> dict[str, float]:
    """Return the seconds per epoch of each part of the loop, timed alone."""
    recipe = Recipe()
    steps = len(splits.train) / recipe.batch_size
    generator = epoch_generator(recipe.seed, 1)
    images, labels, _ = splits.train.get_batch(torch.arange(recipe.batch_size))
    squares = images.view(-1, 28, 28)

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

    backward()  # so that the optimizer has gradients

    # The backward pass comes before the optimizer changes the weights of its graph.
    step_functions = {
        "warp": lambda: random_warp(squares, generator),
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
    """Return the record of a precision: the epoch, plain and augmented, its floor, its parts."""
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
    plain_parts = sum(seconds for name, seconds in parts.items() if name != "warp")
    parts["rest"] = median(plain) - plain_parts
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
        "torch": str(torch.__version__),
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
