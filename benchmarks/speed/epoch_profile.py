"""Profile of an epoch of the default recipe, plain and augmented, compared with its floor.

`make profile`, a minute; writes `benchmarks/speed/epoch_profile.json`. Measured in float32, and in
bfloat16 where the processor has units for it. The floor is the time of an epoch's matrix products
at the rate of one large product of the same precision, measured in the same process: nothing that
computes the same can be faster.
"""

import subprocess
import sys
import time
from functools import wraps
from pathlib import Path
from statistics import median

import torch

from mnist_mlp import EnhancedNet, ImageDataset, Recipe, evaluate, fit, load
from mnist_mlp import recipe as recipes
from mnist_mlp.optim import backprop
from mnist_mlp.optim.hardware import bfloat16_units, float32_products
from mnist_mlp.recipe import History
from mnist_mlp.storage.files import write_json

RECORD = Path(__file__).with_suffix(".json")
EPOCHS = 5
# Timed by hand: in a loop as tight as this torch.profiler's page faults double what it looks at.
PARTS = {
    "batch": (ImageDataset, "__getitems__"),
    "warp": (recipes, "random_warp"),
    "forward": (backprop.Step, "forward"),
    "loss": (backprop, "cross_entropy"),
    "backward": (backprop.Step, "backward"),
    "optimizer": (backprop.Step, "update"),
    "ema": (backprop.Step, "average"),
}


def product_seconds(a: torch.Tensor, b: torch.Tensor, repeats: int = 30) -> float:
    """Return the median seconds of a matrix product."""
    seconds = []
    with float32_products():
        for _ in range(repeats):
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
    return median(seconds)


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Return the floating-point operations per second of a square product."""
    a, b = torch.randn(2, size, size).to(dtype)
    return 2 * size**3 / product_seconds(a, b)


def products_of_an_epoch(
    model: EnhancedNet, train: int, dtype: torch.dtype, batch_size: int = 512
) -> float:
    """Return the seconds of an epoch's matrix products alone, each of the size that it has."""
    total = 0.0
    for i, weight in enumerate(p.detach().to(dtype) for p in model.parameters() if p.ndim == 2):
        x, gradient = (torch.randn(batch_size, n).to(dtype) for n in weight.shape[::-1])
        total += product_seconds(x, weight.T) + product_seconds(gradient.T, x)
        total += product_seconds(gradient, weight) if i else 0.0
    return total * train / batch_size


def epoch_operations(model: EnhancedNet, train: int, validation: int) -> float:
    """Return the floating-point operations of an epoch's matrix products.

    Each weight costs a multiplication and an addition per image: once forward, once for its own
    gradient, once for the gradient of its input, which the first layer does not need.
    """
    weights = [p.numel() for p in model.parameters() if p.ndim == 2]
    return 2 * train * (3 * sum(weights) - weights[0]) + 2 * validation * sum(weights)


def start_up() -> float:
    """Return the seconds that a fresh process takes to load MNIST, once torch is imported."""
    code = """
import time, torch
start = time.perf_counter()
from mnist_mlp import EnhancedNet, evaluate, fit, load
load("mnist")
print(time.perf_counter() - start)
"""
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def timed(owner, attribute: str, part: str, parts: dict[str, float]) -> None:
    """Replace a function by one that adds its seconds to a part's, and to no enclosing part's."""
    function = getattr(owner, attribute)

    @wraps(function)
    def wrapper(*args, **kwargs):
        inner, start = sum(parts.values()), time.perf_counter()
        result = function(*args, **kwargs)
        parts[part] += time.perf_counter() - start - (sum(parts.values()) - inner)
        return result

    setattr(owner, attribute, wrapper)


def run(splits, augment_strength: float, **more) -> History:
    """Train a fresh network for some epochs."""
    torch.manual_seed(0)
    recipe = Recipe(epochs=EPOCHS, augment_strength=augment_strength, **more)
    return fit(EnhancedNet(), splits.train, splits.validation, recipe, progress=False)


def measure() -> dict:
    """Return the seconds of an epoch and of its parts, plain and augmented."""
    splits = load("mnist")
    model = EnhancedNet()
    operations = epoch_operations(model, len(splits.train), len(splits.validation))
    used = Recipe().asdict()["precision"]
    run(splits, 1.0)  # warm up
    start = time.perf_counter()
    for _ in range(20):
        evaluate(model, splits.test)
    result: dict = {
        "precision": used,
        "bfloat16_units": bfloat16_units(),
        "threads": torch.get_num_threads(),
        "evaluation_of_10000_seconds": (time.perf_counter() - start) / 20,
        "import_and_load_seconds": median(start_up() for _ in range(5)),
    }
    for precision in sorted({"float32", used}):
        dtype, rates, seconds = getattr(torch, precision), [], {"plain": [], "augmented": []}
        for _ in range(3):
            rates.append(product_rate(dtype))
            for kind, augment in ("plain", 0.0), ("augmented", 1.0):
                history = run(splits, augment, precision=precision)
                seconds[kind] += [epoch["seconds"] for epoch in history.epochs]
        floor = operations / median(rates)
        found: dict = {
            "product_rate_gflops": median(rates) / 1e9,
            "floor_seconds": floor,
            "products_of_an_epoch_seconds": products_of_an_epoch(model, len(splits.train), dtype),
        }
        for kind, of_kind in seconds.items():
            found[f"{kind}_seconds"] = median(of_kind)
            found[f"{kind}_over_floor"] = median(of_kind) / floor
        for batch_size in 256, 1024, 2048:
            epochs = run(splits, 0.0, batch_size=batch_size, precision=precision).epochs
            found[f"plain_seconds_batch_{batch_size}"] = median(e["seconds"] for e in epochs)
        result[precision] = found

    parts = dict.fromkeys(PARTS, 0.0)
    for part, (owner, attribute) in PARTS.items():
        timed(owner, attribute, part, parts)
    for kind, augment in ("plain", 0.0), ("augmented", 1.0):
        parts.update(dict.fromkeys(PARTS, 0.0))
        wall = sum(epoch["seconds"] for epoch in run(splits, augment).epochs)
        rest = {"rest": wall - sum(parts.values())}
        result[f"{kind}_parts"] = {k: round(v / EPOCHS, 4) for k, v in (parts | rest).items()}
    return result


if __name__ == "__main__":
    record = {"command": "make profile"} | measure()
    write_json(RECORD, record, indent=2)
    for kind in "plain", "augmented":
        print(f"\n{kind} epoch in {record['precision']}, seconds")
        for name, seconds in record[f"{kind}_parts"].items():
            print(f"{name:>22}{seconds:10.3f}")
    for precision in sorted({"float32", record["precision"]}):
        print(f"\nin {precision}")
        for name, value in record[precision].items():
            print(f"{name:>30}{value:10.3f}")
    for name in "evaluation_of_10000_seconds", "import_and_load_seconds":
        print(f"{name}: {record[name]:.3f}")
