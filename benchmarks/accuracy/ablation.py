"""Ablation: from the course project's recipe to the best and the most robust network.

`make ablation` trains the runs that have no weights in `benchmarks/accuracy/runs/` yet. It then
evaluates each network once on the test set, clean and corrupted, and writes
`benchmarks/accuracy/ablation.json`.

`python benchmarks/accuracy/ablation.py "plain Adam"` does this for one configuration only; the
record keeps the results of the others. `make ideas` must have run before: the settings below were
chosen with it, on validation images.
"""

import sys
import time
from pathlib import Path

from ideas import (
    CONVNET,
    ROBUST_STUDENT,
    STUDENT,
    TAUGHT,
    WITHOUT_TEACHER,
    load_trained,
    machine,
    precompute,
    train_missing,
    variants,
)

from mnist_lab.research.calibration import calibration, fit_temperature, with_temperature
from mnist_lab.research.corruptions import CORRUPTIONS, corrupt
from mnist_lab.research.sweep import VERSION, with_defaults
from mnist_mlp import ImageDataset, Splits, evaluate, load, save_weights
from mnist_mlp.data import concatenate
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.files import read_json, repo_root, write_json

RECORD = Path(__file__).with_suffix(".json")
TEACHER_LOGITS = {"file": "data/teacher_logits.pt", "copies": 60}
BEST = "distilled"
ROBUST = "distilled, disturbed"
SEEDS = {BEST: range(10)}
DEFAULT_SEEDS = range(5)

# The weights of seed 0 of these configurations are published, whatever their score. This was fixed
# before the test set was read.
PUBLISHED = {
    BEST: "enhanced_model_best.pth",
    ROBUST: "enhanced_model_robust.pth",
    "ConvNet": "conv_net.pth",
}

SHORT = {"precision": "float32", "epochs": 10, "augment_strength": 0.0}

# The last five configurations were fixed after all choices were made. They train longer, and on
# the validation images too.
ALL_TAUGHT = {"all_images": True, "teacher_logits": TEACHER_LOGITS["file"]}
CONFIGURATIONS = {
    "plain Adam": {
        **SHORT,
        "batch_size": 64,
        "learning_rate": 0.001,
        "weight_decay": 0.0,
        "ema_decay": 0.0,
        "schedule": "constant",
    },
    "one-cycle AdamW": {**SHORT, "ema_decay": 0.0},
    "averaged weights": SHORT,
    "elastic warps": {"precision": "float32"},
    "Muon, all images": {**WITHOUT_TEACHER, "all_images": True, "epochs": 300},
    "ConvNet": {**CONVNET, "all_images": True, "epochs": 30},
    "ConvNet, distilled": {**CONVNET, **TAUGHT, **ALL_TAUGHT, "epochs": 20},
    BEST: {**STUDENT, **ALL_TAUGHT, "epochs": 300},
    ROBUST: {**ROBUST_STUDENT, **ALL_TAUGHT, "epochs": 240},
}
COMPARED_WITH = {
    "one-cycle AdamW": "plain Adam",
    "averaged weights": "one-cycle AdamW",
    "elastic warps": "averaged weights",
    "Muon, all images": "elastic warps",
    "ConvNet": "Muon, all images",
    "ConvNet, distilled": "ConvNet",
    BEST: "Muon, all images",
    ROBUST: BEST,
}

# A network that was trained on the validation images cannot be calibrated on them. It takes the
# temperature of a similar network: the recipe of this group in `ideas.py`.
GROUPS = {
    "Muon, all images": "without a teacher",
    "ConvNet": "ConvNet",
    "ConvNet, distilled": "ConvNet as a student",
    BEST: "student",
    ROBUST: "robust student",
}


def runs(configuration: str) -> list[dict]:
    """Return the runs of a configuration, one for each seed."""
    seeds = SEEDS.get(configuration, DEFAULT_SEEDS)
    return [{**CONFIGURATIONS[configuration], "seed": seed} for seed in seeds]


def recipe(configuration: str) -> dict:
    """Return all fields of a configuration except the seed."""
    fields = with_defaults(CONFIGURATIONS[configuration])
    del fields["seed"]
    return fields


def temperature(name: str, run: dict, splits: Splits) -> float:
    """Return the temperature that fits validation images which were not used for training."""
    if name in GROUPS:
        run = variants(GROUPS[name])["the recipe"]
        train_missing([run])  # `make ideas` has trained it, but maybe with other data or code
    return fit_temperature(evaluate(load_trained(run), splits.validation))


def evaluate_run(
    splits: Splits, corrupted: dict[str, ImageDataset], name: str, run: dict, record: dict
) -> dict:
    """Evaluate one run on the test set, clean and corrupted."""
    model = load_trained(run)
    test = evaluate(model, splits.test)
    run_temperature = temperature(name, run, splits)
    scaled = with_temperature(test, run_temperature)
    n_correct_corrupted = {
        corruption: evaluate(model, images).n_correct for corruption, images in corrupted.items()
    }

    result = {
        "seed": run["seed"],
        "training_seconds": round(record["seconds"], 1),
        "best_epoch": record["best_epoch"],
        # Means nothing for a network that was trained on these images.
        "validation_accuracy": None if run.get("all_images") else record["validation_accuracy"],
        "test_correct": test.n_correct,
        "temperature": run_temperature,
        "test_ece": calibration(test)["ece"],
        "test_ece_scaled": calibration(scaled)["ece"],
        "corrupted": n_correct_corrupted,
    }
    if run["seed"] == 0:  # McNemar's test compares seed 0 image by image
        result["test_wrong"] = (~test.correct).nonzero()[:, 0].tolist()
    return result


def publish(name: str, result: dict, splits: Splits) -> None:
    """Save the weights of seed 0 with their card."""
    model = load_trained(runs(name)[0]).cpu()
    save_weights(
        model,
        repo_root() / "models" / PUBLISHED[name],
        configuration=name,
        recipe={**recipe(name), "seed": 0},
        dataset=splits.name,
        test_images=len(splits.test),
        record="benchmarks/accuracy/ablation.json",
        test_correct=result["test_correct"],
        temperature=result["temperature"],
    )


def read_others(names: list[str]) -> dict[str, dict]:
    """Return the recorded results of the configurations that are not trained now.

    Raises SystemExit if the recipe of one of them has changed since.
    """
    if not RECORD.exists():
        return {}

    configurations = read_json(RECORD, {"configurations": dict})["configurations"]
    others = {}
    for name in CONFIGURATIONS:
        if name in names or name not in configurations:
            continue
        # A record that is older than a field lacks it: the field then had its default.
        recorded = with_defaults(configurations[name]["recipe"])
        if recorded != with_defaults(CONFIGURATIONS[name]):
            raise SystemExit(f"The record holds another recipe of {name!r}: train this one, too.")
        others[name] = configurations[name]
    return others


def main() -> None:
    """Train, evaluate on the test set, write the record, and publish weights."""
    splits = load("mnist")
    names = sys.argv[1:] or list(CONFIGURATIONS)
    unknown = [name for name in names if name not in CONFIGURATIONS]
    if unknown:
        raise SystemExit(f"Unknown: {', '.join(unknown)}. Known: {', '.join(CONFIGURATIONS)}.")
    configurations = read_others(names)
    students = [name for name in names if "teacher_logits" in CONFIGURATIONS[name]]

    print("Configurations without a teacher", flush=True)
    train_missing([run for name in names if name not in students for run in runs(name)])

    if students:
        # The teachers are the ConvNets of all seeds.
        print("Configurations with a teacher", flush=True)
        train_missing(runs("ConvNet"))
        images = concatenate(splits.train, splits.validation)
        precompute(TEACHER_LOGITS["file"], images, runs("ConvNet"), TEACHER_LOGITS["copies"])
        train_missing([run for name in students for run in runs(name)])

    print("The test set, clean and corrupted", flush=True)
    corrupted = {name: corrupt(splits.test, name) for name in CORRUPTIONS}

    for name in names:
        sweep_records = train_missing(runs(name))  # none is missing: this reads the records
        results = [
            evaluate_run(splits, corrupted, name, run, record)
            for run, record in zip(runs(name), sweep_records, strict=True)
        ]
        configurations[name] = {
            "recipe": recipe(name),
            "compared_with": COMPARED_WITH.get(name),
            "machine": machine(),
            "version": VERSION,
            "made": time.strftime("%Y-%m-%d"),
            "runs": results,
        }

    if "ConvNet" in names:
        logits = [evaluate(load_trained(run), splits.test).logits for run in runs("ConvNet")]
        ensemble = Evaluation(sum(logits), splits.test.labels, splits.test.classes)
        configurations["ConvNet"]["ensemble_correct"] = ensemble.n_correct

    in_order = {name: configurations[name] for name in CONFIGURATIONS if name in configurations}
    record = {
        "command": "make ablation",
        "teacher_logits": TEACHER_LOGITS,
        "best": BEST,
        "robust": ROBUST,
        "test_images": len(splits.test),
        "configurations": in_order,
    }
    write_json(RECORD, record, indent=None)

    for name in PUBLISHED:
        if name in names:
            publish(name, configurations[name]["runs"][0], splits)


if __name__ == "__main__":
    main()
