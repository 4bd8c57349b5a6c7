"""What each idea gives a ConvNet, its student and a robust student, on short trainings.

`make ideas`, 40 minutes; trains the runs that have no record in `benchmarks/accuracy/runs/` yet,
judges them on validation images alone and writes `benchmarks/accuracy/ideas.json`. Accuracy on
5,000 images is noisy, so each network is also judged on the loss, on ten gently warped copies of
the validation images, and on three disturbed ones. The choices in `ablation.py` come from this.
"""

import os
import platform
from dataclasses import replace
from pathlib import Path

import torch

from mnist_mlp import evaluate, load, load_weights
from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.optim.hardware import bfloat16_units
from mnist_mlp.research.ablation import ideas_table
from mnist_mlp.research.distillation import precompute_teacher_logits, save_distillation_sets
from mnist_mlp.research.disturbances import disturb
from mnist_mlp.research.sweep import MODELS, VERSION, run_name, sweep
from mnist_mlp.storage.files import repo_root, write_json

RUNS, RECORD = Path(__file__).with_name("runs"), Path(__file__).with_suffix(".json")
SEED = 10  # the ablation has others
ON = {"device": "cuda"} if torch.cuda.is_available() else {}
LOGITS = {"usual": "data/ideas_logits.pt", "wide": "data/ideas_logits_wide.pt"}
STRENGTHS, COPIES = {"usual": 1.0, "wide": 1.4}, 20

MUON = {"optimizer": "muon", "keep": "last", "precision": "bfloat16"}
CONVNET = MUON | {
    "model": "ConvNet", "epochs": 12, "batch_size": 128, "learning_rate": 0.02,
    "weight_decay": 0.02, "augment_strength": 1.2, "elastic_strength": 0.4,
}  # fmt: skip
WITHOUT = MUON | {
    "epochs": 30, "batch_size": 1024, "learning_rate": 0.05, "weight_decay": 0.05,
}  # fmt: skip
TAUGHT = {
    "augment_strength": 0.0, "elastic_strength": 1.0, "distillation_temperature": 8.0,
    "teacher_logits": LOGITS["usual"],
}  # fmt: skip
STUDENT = WITHOUT | TAUGHT
ROBUST = STUDENT | {"disturbed_share": 0.5}
# Of each group the recipe that the others change, and what they change.
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
            "AdamW": {
                "optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.01,
                "batch_size": 512,
            },
            "learning rate 0.03": {"learning_rate": 0.03},
            "weight decay 0.1": {"weight_decay": 0.1},
            "temperature 2": {"distillation_temperature": 2.0},
            "temperature 4": {"distillation_temperature": 4.0},
            "batch 512": {"batch_size": 512, "learning_rate": 0.035},
            "warps of strength 1.4": {"teacher_logits": LOGITS["wide"]},
        },
    ),
    "ConvNet as a student": (CONVNET | TAUGHT, {"another seed": {"seed": SEED + 1}}),
    "robust student": (
        ROBUST,
        {
            "a quarter disturbed": {"disturbed_share": 0.25},
            "three quarters disturbed": {"disturbed_share": 0.75},
        },
    ),
    "without a teacher": (
        WITHOUT,
        {
            "AdamW": {
                "optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.01,
                "batch_size": 512,
            },
            "warps of strength 1.4": {"augment_strength": 1.4},
        },
    ),
}  # fmt: skip


def variants(group: str) -> dict[str, dict]:
    """Return the runs of a group by name, the unchanged recipe first."""
    recipe, changes = IDEAS[group]
    base = {"seed": SEED} | recipe
    return {"the recipe": base} | {name: base | change for name, change in changes.items()}


def precompute(name: str, splits) -> None:
    """Let two ConvNets classify warped training images."""
    path = repo_root() / LOGITS[name]
    if not path.exists():
        torch.set_num_threads(os.cpu_count() or 1)
        of_group = variants("ConvNet")
        teachers = [trained(of_group[each]) for each in ("the recipe", "another seed")]
        sets = precompute_teacher_logits(
            splits.train, teachers, COPIES, STRENGTHS[name], precision="bfloat16"
        )
        save_distillation_sets(sets, path)
        torch.set_num_threads(1)


def train(runs: list[dict]) -> list[dict]:
    """Train the runs that have no record yet, on the GPU if there is one; return all records."""
    return sweep([run | ON for run in runs], RUNS)


def trained(run: dict) -> torch.nn.Module:
    model = MODELS[run.get("model", "EnhancedNet")]()
    return load_weights(model, RUNS / f"{run_name(run | ON)}.pth").to(ON.get("device", "cpu"))


def changed_copies(part: ImageDataset, copies: int, change) -> list[ImageDataset]:
    """Return copies of the images, each changed with random numbers of its own."""
    images = part.images.float() / 255
    changed = (change(images, epoch_generator(SEED, copy)) for copy in range(copies))
    return [replace(part, images=(255 * each).round().to(torch.uint8)) for each in changed]


def share_correct(model: torch.nn.Module, copies: list[ImageDataset]) -> torch.Tensor:
    """Return in which share of the copies each image is classified correctly."""
    return torch.stack([evaluate(model, copy).correct.double() for copy in copies]).mean(0)


def difference(found: torch.Tensor, base: torch.Tensor) -> list[float]:
    """Return the mean difference and the half width of its 95% interval over the images."""
    each = found - base
    return [float(each.mean()), 1.96 * float(each.std()) / len(each) ** 0.5]


def machine() -> dict:
    """Return what the runs were trained on."""
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16_units(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if ON else "none",
        "threads_a_run": 1,
    }


def main() -> None:
    """Train all runs, judge them, write the record and print the table."""
    splits = load("mnist")
    gentle = changed_copies(splits.validation, 10, lambda i, g: random_warp(i, g, 0.6))
    disturbed = changed_copies(splits.validation, 3, lambda i, g: disturb(i, g, 1.0))
    groups = {}
    for group in IDEAS:
        runs = variants(group)
        if group == "student":
            for name in LOGITS:
                precompute(name, splits)
        records = train(list(runs.values()))
        groups[group], base = {}, []
        for (name, run), record in zip(runs.items(), records, strict=True):
            model = trained(run)
            validation = evaluate(model, splits.validation)
            shares = [share_correct(model, copies) for copies in (gentle, disturbed)]
            base = base or shares
            groups[group][name] = {
                "run": {k: v for k, v in run.items() if run[k] != IDEAS[group][0].get(k)},
                "validation_accuracy": validation.accuracy,
                "validation_loss": validation.loss,
                "warped_accuracy": float(shares[0].mean()),
                "warped_difference": difference(shares[0], base[0]),
                "disturbed_accuracy": float(shares[1].mean()),
                "disturbed_difference": difference(shares[1], base[1]),
                "seconds": record["seconds"],
            }
        print(ideas_table({"groups": {group: groups[group]}}), flush=True)
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
