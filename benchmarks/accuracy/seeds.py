"""Train the default recipe with five seeds, read the test set once for each, record the result.

`make seeds`, about five minutes on two cores; writes `benchmarks/accuracy/seeds.json`.
"""

import os
import platform
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, load
from mnist_mlp.research.calibration import calibration
from mnist_mlp.storage.files import write_json

splits, recipe = load("mnist"), Recipe()
runs = []
for seed in range(5):
    torch.manual_seed(seed)
    model = EnhancedNet()
    history = fit(model, splits.train, splits.validation, replace(recipe, seed=seed))
    if history.stopped:
        raise SystemExit(f"Interrupted in seed {seed}: the record was not changed.")
    test = evaluate(model, splits.test)
    runs.append(
        {
            "seed": seed,
            "validation_accuracy": history.validation_accuracy,
            "test_correct": test.n_correct,
            "test_accuracy": test.accuracy,
            "test_ece": calibration(test)["ece"],
            "training_seconds": history.seconds,
        }
    )
    print(runs[-1])

summary = {
    f"{name}_{statistic.__name__}": statistic([run[name] for run in runs])
    for name in ("validation_accuracy", "test_accuracy", "training_seconds")
    for statistic in (mean, stdev)
}
record = {
    "command": "make seeds",
    "recipe": {name: value for name, value in recipe.asdict().items() if name != "seed"},
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
write_json(Path(__file__).with_suffix(".json"), record, indent=2)
print(summary)
