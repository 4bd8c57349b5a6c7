"""Train the default recipe with five seeds, and evaluate each network once on the test set.

`make seeds` takes about five minutes on two cores and writes `benchmarks/accuracy/seeds.json`.
"""

import os
import platform
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from mnist_lab.research.calibration import calibration
from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, load
from mnist_mlp.files import write_json

SEEDS = range(5)


def main() -> None:
    """Train, evaluate on the test set, and write the record."""
    splits = load("mnist")
    recipe = Recipe()

    runs = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = EnhancedNet()
        history = fit(model, splits.train, splits.validation, replace(recipe, seed=seed))
        test = evaluate(model, splits.test)
        run = {
            "seed": seed,
            "validation_accuracy": history.validation_accuracy,
            "test_correct": test.n_correct,
            "test_accuracy": test.accuracy,
            "test_ece": calibration(test)["ece"],
            "training_seconds": history.seconds,
        }
        runs.append(run)
        print(run)

    summary = {}
    for name in ("validation_accuracy", "test_accuracy", "training_seconds"):
        values = [run[name] for run in runs]
        summary[f"{name}_mean"] = mean(values)
        summary[f"{name}_stdev"] = stdev(values)

    record = {
        "command": "make seeds",
        "recipe": recipe.asdict(),
        "precision": history.precision,
        "summary": summary,
        "runs": runs,
        "machine": {
            "processor": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    write_json(Path(__file__).with_suffix(".json"), record)
    print(summary)


if __name__ == "__main__":
    main()
