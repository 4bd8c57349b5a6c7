"""What each idea gives the fast recipe of the benchmark: validation accuracy and seconds.

`make search`, five minutes; writes `benchmarks/speed/search.json`. Every variant is trained once in
each of three rounds, in a process of its own, and judged on validation images alone.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median, stdev

from bench import OURS, TUNING, TUNING_SEEDS, machine, splits, train
from tqdm import tqdm

from mnist_mlp.storage.files import write_json

RECORD = Path(__file__).with_suffix(".json")
FEW = TUNING_SEEDS[:3]
ADAMW = {"optimizer": "adamw", "learning_rate": 0.005, "batch_size": 512, "weight_decay": 0.01}
# name: what it changes in the recipe or in the training.
VARIANTS = {
    "the fast recipe": {},
    "AdamW, batch 512, five epochs": OURS | ADAMW | {"epochs": 5},
    "products in float32": {"precision": "float32"},
    "products in float32, by MKL": {"precision": "float32", "mkl": True},
    "no label smoothing": {"label_smoothing": 0.0},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "two Newton-Schulz iterations": {"iterations": 2},
    "five Newton-Schulz iterations": {"iterations": 5},
    "batch 1,024": {"batch_size": 1024, "learning_rate": 0.08},
    "batch 2,048": {"batch_size": 2048},
    "batch 3,072, three epochs": {"batch_size": 3072, "learning_rate": 0.12, "epochs": 3},
    "one epoch of batch 512": {"batch_size": 512, "learning_rate": 0.08, "epochs": 1},
    "no weight decay": {"weight_decay": 0.0},
    "no moving average": {"ema_decay": 0.0},
    "freed memory is not kept": {"keep_memory": False},
    "denormal numbers are zero": {"flush_denormal": True},
}


def main() -> None:
    """Train every variant in every round, and record means and medians."""
    recipe = json.loads(TUNING.read_bytes())["peers"]["mnist_mlp, fast"]["chosen"]
    runs = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        files = splits(FEW, folder)
        names = list(VARIANTS)  # each round begins with another one: the first may be slower
        orders = (names[5 * i :] + names[: 5 * i] for i in range(len(FEW)))
        jobs = [(seed, name) for seed, order in zip(FEW, orders, strict=True) for name in order]
        for seed, name in tqdm(jobs, unit="run", file=sys.stdout):
            run = train("mnist_mlp", recipe | VARIANTS[name] | {"seed": seed}, files[seed])
            if "error" in run:
                raise SystemExit(f"{name}: {run['error']}")
            runs[name].append((run["validation_accuracy"][-1], sum(run["epoch"])))
    found = {}
    for name, of_seeds in runs.items():
        accuracy, seconds = zip(*of_seeds, strict=True)
        found[name] = {
            "changes": VARIANTS[name],
            "validation_accuracy": mean(accuracy),
            "stdev": stdev(accuracy),
            "seconds": median(seconds),
        }
    record = {"command": "make search", "recipe": recipe, "variants": found, "machine": machine()}
    write_json(RECORD, record)
    print(table(record))


def table(record: dict) -> str:
    """Return the variants as a Markdown table."""
    lines = ["| variant | validation accuracy | seconds |", "|---|---|---|"]
    for name, found in record["variants"].items():
        accuracy = f"{found['validation_accuracy']:.2%} ± {100 * found['stdev']:.2f}"
        lines.append(f"| {name} | {accuracy} | {found['seconds']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
