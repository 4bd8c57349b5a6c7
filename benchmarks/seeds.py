"""Train the default recipe with five seeds, read the test set once for each, record the result.

`make seeds`, about five minutes on two cores; writes `benchmarks/seeds.json`.
"""

import json
import os
import platform
from pathlib import Path
from statistics import mean, stdev

import torch

from mnist_mlp.checkpoint import atomic
from mnist_mlp.data import load
from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.train import default_settings, fit

splits = load("mnist")
runs = []
for seed in range(5):
    torch.manual_seed(seed)
    model = EnhancedNet()
    history = fit(model, splits.train, splits.validation, **default_settings() | {"seed": seed})
    if history.interrupted:
        raise SystemExit(f"Interrupted in seed {seed}: the record stays as it was.")
    test = evaluate(model, splits.test)
    runs.append(
        {
            "seed": seed,
            "validation_accuracy": history.validation_accuracy,
            "test_correct": test.n_correct,
            "test_accuracy": test.accuracy,
            "test_ece": test.calibration()["ece"],
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
    "recipe": {k: v for k, v in default_settings().items() if k != "seed"},
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
with atomic(Path(__file__).with_suffix(".json")) as file:
    file.write_text(json.dumps(record, indent=2) + "\n")
print(json.dumps(summary, indent=2))
