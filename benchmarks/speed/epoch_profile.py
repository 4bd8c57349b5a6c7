"""Profile of an epoch of the default recipe, plain and augmented, compared with its floor.

`make profile`, a minute; writes `benchmarks/speed/epoch_profile.json`. The floor is the time of an
epoch's matrix products at the rate of one large product, measured in the same process: nothing that
computes the same in float32 can be faster.
"""

import subprocess
import sys
import time
from functools import wraps
from pathlib import Path
from statistics import median

import torch
from torch.optim.swa_utils import AveragedModel

from mnist_mlp import EnhancedNet, ImageDataset, Recipe, evaluate, fit, load
from mnist_mlp import recipe as recipes
from mnist_mlp.recipe import History
from mnist_mlp.storage.files import write_json

RECORD = Path(__file__).with_suffix(".json")
EPOCHS = 5
# Timed by hand: in a loop as tight as this torch.profiler's page faults double what it looks at.
PARTS = {
    "batch": (ImageDataset, "__getitems__"),
    "warp": (recipes, "random_warp"),
    "forward": (EnhancedNet, "forward"),
    "backward": (torch.Tensor, "backward"),
    "optimizer": (torch.optim.AdamW, "step"),
    "ema": (AveragedModel, "update_parameters"),
}


def product_seconds(a: torch.Tensor, b: torch.Tensor, repeats: int = 30) -> float:
    """Return the median seconds of a matrix product."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def product_rate(size: int = 2048) -> float:
    """Return the floating-point operations per second of a square float32 product."""
    return 2 * size**3 / product_seconds(torch.randn(size, size), torch.randn(size, size))


def products_of_an_epoch(model: EnhancedNet, train: int, batch_size: int = 512) -> float:
    """Return the seconds of an epoch's matrix products alone, each of the size that it has."""
    total = 0.0
    for i, weight in enumerate(p.detach() for p in model.parameters() if p.ndim == 2):
        x, gradient = torch.randn(batch_size, weight.shape[1]), torch.randn(batch_size, len(weight))
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
    run(splits, 1.0)  # warm up
    seconds = {"plain": [], "augmented": []}
    rates = []
    for _ in range(3):
        rates.append(product_rate())
        for kind, augment in ("plain", 0.0), ("augmented", 1.0):
            seconds[kind] += [epoch["seconds"] for epoch in run(splits, augment).epochs]
    floor = operations / median(rates)
    start = time.perf_counter()
    for _ in range(20):
        evaluate(model, splits.test)
    evaluation = (time.perf_counter() - start) / 20
    result = {
        "product_rate_gflops": median(rates) / 1e9,
        "floor_seconds": floor,
        "products_of_an_epoch_seconds": products_of_an_epoch(model, len(splits.train)),
        "import_and_load_seconds": median(start_up() for _ in range(5)),
        "plain_seconds": median(seconds["plain"]),
        "augmented_seconds": median(seconds["augmented"]),
        "plain_over_floor": median(seconds["plain"]) / floor,
        "augmented_over_floor": median(seconds["augmented"]) / floor,
        "augmented_over_plain": median(seconds["augmented"]) / median(seconds["plain"]),
        "evaluation_of_10000_seconds": evaluation,
        "threads": torch.get_num_threads(),
    }

    other_ways = {}
    for precision, name in ("highest", "float32"), ("medium", "bfloat16 products where there are"):
        torch.set_float32_matmul_precision(precision)
        for batch_size in 256, 512, 1024, 2048:
            epochs = run(splits, 0.0, batch_size=batch_size).epochs
            seconds = median(epoch["seconds"] for epoch in epochs)
            other_ways[f"batch {batch_size}, {name}"] = {
                "seconds": seconds,
                "over": seconds / floor,
            }
    torch.set_float32_matmul_precision("highest")
    result["plain_other_ways"] = other_ways

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
        print(f"\n{kind} epoch, seconds")
        for name, seconds in record[f"{kind}_parts"].items():
            print(f"{name:>22}{seconds:10.3f}")
        for name in "seconds", "over_floor":
            print(f"{name:>22}{record[f'{kind}_{name}']:10.3f}")
    for name in (
        "product_rate_gflops", "floor_seconds", "products_of_an_epoch_seconds",
        "augmented_over_plain", "evaluation_of_10000_seconds", "import_and_load_seconds",
    ):  # fmt: skip
        print(f"{name}: {record[name]:.3f}")
    for name, way in record["plain_other_ways"].items():
        print(f"plain, {name}: {way['seconds']:.3f} s, {way['over']:.2f} times the floor")
