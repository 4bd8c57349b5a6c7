"""From the course project's recipe to the best, one step at a time: train every rung, then examine.

`make ladder`: the runs that have no record in `benchmarks/ladder/` yet, two hours if none has one
(two slow cores); then the examination, once for all, into `benchmarks/ladder.json`.
`python benchmarks/ladder.py "ConvNet"` only trains the runs of that rung.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

from mnist_mlp import checkpoint, distill, model
from mnist_mlp.corrupt import CORRUPTIONS, corrupt
from mnist_mlp.data import home, load
from mnist_mlp.evaluate import evaluate
from mnist_mlp.run import VERSION, run_name
from mnist_mlp.sweep import sweep

RECORDS = Path(__file__).with_suffix("")
LESSONS = {"file": "data/lessons.pth", "copies": 40, "teachers": 5}
SEEDS = range(5)
BEST = "distilled, long"  # by validation
# What seed 0 of a rung is published as, whatever it scores: fixed before the test set was read.
PUBLISHED = {BEST: "enhanced_model_best.pth", "ConvNet": "conv_net.pth"}
SHORT = {"epochs": 10, "augment": 0.0, "averaging": 0.0}
COURSE = {"batch_size": 64, "learning_rate": 0.001, "weight_decay": 0.0, "schedule": "constant"}
TAUGHT = {"lessons": LESSONS["file"], "augment": 0.0}
LONG = {"epochs": 400, "precision": "bfloat16"}
RUNGS = {
    "plain Adam": SHORT | COURSE,
    "one-cycle AdamW": SHORT,
    "averaged weights": SHORT | {"averaging": 0.998},
    "affine warps": {"elastic": 0.0},
    "elastic warps": {},
    "long": LONG,
    "distilled": TAUGHT,
    "distilled, long": TAUGHT | {"epochs": 300, "precision": "bfloat16"},
    "noisy student, long": TAUGHT | {"epochs": 300, "precision": "bfloat16", "noise": 1.0},
    "ConvNet": {"model": "ConvNet", "epochs": 24, "batch_size": 256, "precision": "bfloat16"},
}
STEP_FROM = {
    "one-cycle AdamW": "plain Adam",
    "averaged weights": "one-cycle AdamW",
    "affine warps": "averaged weights",
    "elastic warps": "affine warps",
    "long": "elastic warps",
    "distilled": "elastic warps",
    "distilled, long": "long",
    "noisy student, long": "distilled, long",
    "ConvNet": "elastic warps",
}


def runs(rung: str) -> list[dict]:
    return [RUNGS[rung] | {"seed": seed} for seed in SEEDS]


def weights(run: dict) -> torch.nn.Module:
    network = getattr(model, run.get("model", "EnhancedNet"))()
    return checkpoint.load(network, RECORDS / f"{run_name(run)}.pth")


def teach() -> None:
    """Let ConvNets answer about warped copies of the training images, once for all students."""
    path = home() / LESSONS["file"]
    if not path.exists():
        teachers = [weights(run) for run in runs("ConvNet")[: LESSONS["teachers"]]]
        train, copies = load("mnist").train, LESSONS["copies"]
        distill.save(distill.lessons(train, teachers, copies, precision="bfloat16"), path)


def examine(digits, corrupted, run: dict, record: dict) -> dict:
    """Read the test set, as it is and corrupted, with one run's weights."""
    network = weights(run)
    temperature = evaluate(network, digits.validation).temperature()
    test = evaluate(network, digits.test)
    return {
        "seed": run["seed"],
        "training_seconds": round(record["seconds"], 1),
        "best_epoch": record["best_epoch"],
        "validation_accuracy": record["validation_accuracy"],
        "test_correct": test.n_correct,
        "test_wrong": (~test.correct).nonzero()[:, 0].tolist(),
        "temperature": temperature,
        "test_ece": test.calibration()["ece"],
        "test_ece_scaled": test.scaled(temperature).calibration()["ece"],
        "corrupted": {k: evaluate(network, images).n_correct for k, images in corrupted.items()},
        "sha256": record["sha256"],
    }


def main() -> None:
    digits, rungs = load("mnist"), sys.argv[1:] or list(RUNGS)
    taught = [rung for rung in rungs if "lessons" in RUNGS[rung]]
    print("Rungs without a teacher", flush=True)
    sweep([run for rung in rungs if rung not in taught for run in runs(rung)], RECORDS)
    if taught:
        print("Rungs with a teacher", flush=True)
        sweep(runs("ConvNet"), RECORDS)
        teach()
        sweep([run for rung in taught for run in runs(rung)], RECORDS)
    if len(rungs) < len(RUNGS):
        return
    print("The test set, as it is and corrupted", flush=True)
    corrupted = {name: corrupt(digits.test, name) for name in CORRUPTIONS}
    examined = {
        rung: {
            "recipe": RUNGS[rung],
            "step_from": STEP_FROM.get(rung),
            "runs": [
                examine(digits, corrupted, run, record)
                for run, record in zip(runs(rung), sweep(runs(rung), RECORDS), strict=True)
            ],
        }
        for rung in RUNGS
    }
    record = {
        "command": "make ladder",
        "machine": {
            "processor": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads_a_run": 1,
        },
        "version": VERSION,
        "made": time.strftime("%Y-%m-%d"),
        "lessons": LESSONS,
        "best": BEST,
        "test_images": len(digits.test),
        "rungs": examined,
    }
    with checkpoint.atomic(RECORDS.with_suffix(".json")) as file:
        file.write_text(json.dumps(record) + "\n")
    for rung, name in PUBLISHED.items():
        run = examined[rung]["runs"][0]
        about = {"rung": rung, "recipe": RUNGS[rung] | {"seed": 0}, "dataset": digits.name}
        about |= {"test_images": len(digits.test), "record": "benchmarks/ladder.json"}
        about |= {k: run[k] for k in ("validation_accuracy", "test_correct", "temperature")}
        checkpoint.save(weights(runs(rung)[0]), home() / "models" / name, **about)


if __name__ == "__main__":
    main()
