"""Try ideas for a ConvNet, its student and a robust student in short trainings.

`make ideas` takes 40 minutes. It trains the runs that have no record in `benchmarks/accuracy/runs/`
yet, evaluates them on validation images alone and writes `benchmarks/accuracy/ideas.json`. The
settings in `ablation.py` were chosen with this record.

Accuracy on 5,000 images is noisy. Therefore each network is also evaluated on ten gently warped and
on three strongly disturbed copies of the validation images.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mnist_lab.research.ablation import ideas_table
from mnist_lab.research.distillation import (
    describe_dataset,
    precompute_teacher_logits,
    read_source,
    save_distillation_sets,
)
from mnist_lab.research.strong_augment import strong_augment
from mnist_lab.research.sweep import MODELS, VERSION, run_name, sweep
from mnist_mlp import evaluate, load, load_weights
from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.files import repo_root, write_json
from mnist_mlp.identity import sha256_of
from mnist_mlp.optim import bfloat16_units

RUNS = Path(__file__).with_name("runs")
RECORD = Path(__file__).with_suffix(".json")
SEED = 10  # not one of the ablation's seeds
DEVICE = "cuda" if torch.cuda.is_available() else None
COPIES = 20  # warped copies of the training images, from which the students learn

# The files of the teachers' logits for these copies, and the strengths of their warps.
LOGITS = {"usual": "data/ideas_logits.pt", "wide": "data/ideas_logits_wide.pt"}
STRENGTHS = {"usual": 1.0, "wide": 1.4}

CONVNET = {
    "model": "ConvNet",
    "optimizer": "muon",
    "select": "last epoch",
    "precision": "bfloat16",
    "epochs": 12,
    "batch_size": 128,
    "learning_rate": 0.02,
    "weight_decay": 0.02,
    "augment_strength": 1.2,
    "elastic_strength": 0.4,
}
WITHOUT_TEACHER = {
    "optimizer": "muon",
    "select": "last epoch",
    "precision": "bfloat16",
    "epochs": 30,
    "batch_size": 1024,
    "learning_rate": 0.05,
    "weight_decay": 0.05,
}
TAUGHT = {
    "augment_strength": 0.0,  # the images of the logits are warped already
    "elastic_strength": 1.0,
    "distillation_temperature": 8.0,
    "teacher_logits": LOGITS["usual"],
}
STUDENT = {**WITHOUT_TEACHER, **TAUGHT}
ROBUST_STUDENT = {**STUDENT, "disturbed_share": 0.5}
ADAMW = {
    "optimizer": "adamw",
    "learning_rate": 0.005,
    "weight_decay": 0.01,
    "batch_size": 512,
}

# For each group: its recipe, and its ideas. An idea holds the fields of the recipe that it changes.
IDEAS: dict[str, tuple[dict, dict[str, dict]]] = {
    "ConvNet": (
        CONVNET,
        {
            "another seed": {"seed": SEED + 1},
            "AdamW": {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.01},
            "gentler, more elastic warps": {"augment_strength": 0.6, "elastic_strength": 1.0},
            "affine warps": {"augment_strength": 1.7, "elastic_strength": 0.0},
            "learning rate 0.05": {"learning_rate": 0.05},
        },
    ),
    "student": (
        STUDENT,
        {
            "another seed": {"seed": SEED + 1},
            "AdamW": ADAMW,
            "learning rate 0.03": {"learning_rate": 0.03},
            "weight decay 0.1": {"weight_decay": 0.1},
            "temperature 2": {"distillation_temperature": 2.0},
            "temperature 4": {"distillation_temperature": 4.0},
            "batch 512": {"batch_size": 512, "learning_rate": 0.035},
            "warps of strength 1.4": {"teacher_logits": LOGITS["wide"]},
        },
    ),
    "ConvNet as a student": ({**CONVNET, **TAUGHT}, {"another seed": {"seed": SEED + 1}}),
    "robust student": (
        ROBUST_STUDENT,
        {
            "a quarter disturbed": {"disturbed_share": 0.25},
            "three quarters disturbed": {"disturbed_share": 0.75},
        },
    ),
    "without a teacher": (
        WITHOUT_TEACHER,
        {
            "AdamW": ADAMW,
            "warps of strength 1.4": {"augment_strength": 1.4},
        },
    ),
}


def variants(group: str) -> dict[str, dict]:
    """Return the runs of a group by name: first "the recipe", unchanged, then each idea."""
    recipe, changes = IDEAS[group]
    runs = {"the recipe": {"seed": SEED, **recipe}}
    for name, change in changes.items():
        runs[name] = {"seed": SEED, **recipe, **change}
    return runs


def precompute(
    file: str, images: ImageDataset, teacher_runs: list[dict], copies: int, strength: float = 1.0
) -> None:
    """Save the logits of the teachers for warped images, if the file does not hold these yet.

    Args:
        file: The path of the file within the repository.
        images: The images before the warps.
        teacher_runs: The runs that trained the teachers.
        copies: The number of warped copies of each image.
        strength: The strength of the warps.
    """
    path = repo_root() / file
    teachers = [load_trained(run) for run in teacher_runs]
    source = {
        "dataset": describe_dataset(images),
        "teachers": [sha256_of(teacher.state_dict().values()) for teacher in teachers],
        "copies": copies,
        "strength": strength,
        "code": VERSION["code"],
    }
    if path.exists():
        if read_source(path) == source:
            return
        print(f"{path} was made from other images, teachers or code: it is made again.", flush=True)

    torch.set_num_threads(os.cpu_count() or 1)
    sets = precompute_teacher_logits(images, teachers, copies, strength, precision="bfloat16")
    save_distillation_sets(sets, images, path, source)
    torch.set_num_threads(1)  # as in the sweeps


def train_missing(runs: list[dict]) -> list[dict]:
    """Train the runs that have no record yet, and return the records of all runs."""
    runs_on_device = [{**run, "device": DEVICE} for run in runs]
    return sweep(runs_on_device, RUNS)


def load_trained(run: dict) -> torch.nn.Module:
    """Return the network that a run has trained, from the file of its weights.

    `train_missing` must have returned the run's record before: it looks whether the file belongs
    to this data and code.
    """
    model = MODELS[run.get("model", "EnhancedNet")]()
    name = run_name({**run, "device": DEVICE})
    return load_weights(model, RUNS / f"{name}.pth").to(DEVICE or "cpu")


def changed_copies(
    dataset: ImageDataset,
    copies: int,
    change: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
) -> list[ImageDataset]:
    """Return copies of the data set, each changed with different random numbers."""
    images = dataset.images.float() / 255
    datasets = []
    for copy in range(copies):
        changed = change(images, epoch_generator(SEED, copy))
        pixels = (255 * changed).round().to(torch.uint8)
        datasets.append(replace(dataset, images=pixels))
    return datasets


def fraction_correct(model: torch.nn.Module, copies: list[ImageDataset]) -> torch.Tensor:
    """Return for each image the fraction of its copies that the model classifies correctly."""
    correct = [evaluate(model, copy).correct.double() for copy in copies]
    return torch.stack(correct).mean(0)


def mean_and_half_width(fractions: torch.Tensor, base: torch.Tensor) -> list[float]:
    """Return the mean of `fractions - base`, and half the width of its 95% confidence interval.

    Args:
        fractions: The fraction of correct copies of each image, for one network.
        base: The same for the network that it is compared with.
    """
    differences = fractions - base
    half_width = 1.96 * float(differences.std()) / len(differences) ** 0.5
    return [float(differences.mean()), half_width]


def machine() -> dict:
    """Describe the machine that trains the runs."""
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16_units(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if DEVICE else "none",
        "threads_a_run": 1,
    }


def main() -> None:
    """Train and evaluate all runs, write the record and print the tables."""
    splits = load("mnist")
    warped_copies = changed_copies(
        splits.validation, 10, lambda images, generator: random_warp(images, generator, 0.6)
    )
    disturbed_copies = changed_copies(
        splits.validation, 3, lambda images, generator: strong_augment(images, generator, 1.0)
    )

    groups = {}
    for group, (recipe, _) in IDEAS.items():
        if group == "student":  # the teachers are ConvNets of the group before
            convnets = variants("ConvNet")
            teachers = [convnets["the recipe"], convnets["another seed"]]
            for name, file in LOGITS.items():
                precompute(file, splits.train, teachers, COPIES, STRENGTHS[name])

        runs = variants(group)
        records = train_missing(list(runs.values()))
        base = load_trained(runs["the recipe"])
        base_warped = fraction_correct(base, warped_copies)
        base_disturbed = fraction_correct(base, disturbed_copies)

        groups[group] = {}
        for (name, run), record in zip(runs.items(), records, strict=True):
            model = load_trained(run)
            validation = evaluate(model, splits.validation)
            warped = fraction_correct(model, warped_copies)
            disturbed = fraction_correct(model, disturbed_copies)
            changed_fields = {
                field: value for field, value in run.items() if value != recipe.get(field)
            }
            groups[group][name] = {
                "run": changed_fields,
                "validation_accuracy": validation.accuracy,
                "validation_loss": validation.loss,
                "warped_accuracy": float(warped.mean()),
                "warped_difference": mean_and_half_width(warped, base_warped),
                "disturbed_accuracy": float(disturbed.mean()),
                "disturbed_difference": mean_and_half_width(disturbed, base_disturbed),
                "seconds": record["seconds"],
            }
        print(ideas_table({"groups": {group: groups[group]}}).to_string(), flush=True)

    record = {
        "command": "make ideas",
        "recipes": {name: recipe for name, (recipe, _) in IDEAS.items()},
        "groups": groups,
        "machine": machine(),
        "version": VERSION,
    }
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
