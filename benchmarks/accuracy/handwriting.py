"""A network that reads the handwriting of more than one country.

`make handwriting`: takes the best network, which was trained on MNIST alone and reads many a 1 with
an upstroke as a 7, and trains it further, on warped images of MNIST and of synthetic handwriting.
Its own logits are the targets, so that it forgets nothing; of synthetic handwriting the label's
logit is raised where it does not lead clearly. The weights then go back a fifth of the way. Reads
the test set and handwriting of other origin once for each seed, and writes
`benchmarks/accuracy/handwriting.json` and the weights of seed 0. The choices were made on the
validation images and on the other half of the fonts.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ideas import machine
from torch import nn

from mnist_lab.handwriting.fonts import font_digits
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.synthetic import render_photo, synthetic_digits
from mnist_lab.research.distillation import precompute_teacher_logits
from mnist_lab.research.sweep import VERSION
from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, load, load_weights, save_weights
from mnist_mlp.data import ImageDataset, concatenate
from mnist_mlp.files import repo_root, write_json

RECORD = Path(__file__).with_suffix(".json")
MODELS = repo_root() / "models"
START = MODELS / "enhanced_model_best.pth"
PUBLISHED = MODELS / "enhanced_model_handwriting.pth"
SEEDS = range(3)
SYNTHETIC = 24_000  # images
COPIES = 20
MARGIN = 5.0  # of the label's logit over the others', for synthetic handwriting
SHARE = 0.8  # of the way from the old weights to the trained ones
RECIPE = Recipe(
    epochs=30,
    batch_size=1024,
    learning_rate=0.0007,
    augment_strength=0.0,  # the copies are warped
    select="last epoch",
    distillation_temperature=8.0,
)


def corrected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits with each label's raised, if need be, to lead all others by `MARGIN`."""
    label = labels[:, None]
    others = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
    raised = torch.maximum(logits.gather(1, label), others + MARGIN)
    return logits.scatter(1, label, raised)


def training_sets(mnist: ImageDataset, teacher: nn.Module) -> list[ImageDataset]:
    """Return warped copies of MNIST and of synthetic handwriting with the teacher's logits."""
    synthetic = synthetic_digits(SYNTHETIC)
    sets = precompute_teacher_logits(concatenate(mnist, synthetic), [teacher], COPIES)
    for copy in sets:
        synthetic_logits = copy.teacher_logits[len(mnist) :]
        synthetic_logits.copy_(corrected(synthetic_logits, synthetic.labels))
    return sets


def interpolate(model: nn.Module, start: nn.Module) -> None:
    """Move the model's weights back towards the start's, which costs new knowledge less than old.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022.
    """
    with torch.no_grad():
        for weight, old in zip(model.parameters(), start.parameters(), strict=True):
            weight.lerp_(old, 1 - SHARE)


def handwriting(half: int) -> dict[str, ImageDataset]:
    """Return sets of handwriting by name; `half` of the fonts: 0 to choose, 1 to report."""
    random = np.random.default_rng(0)
    digits = torch.arange(10).repeat(20)
    photos = [to_mnist(render_photo(str(int(digit)), random, 320)) for digit in digits]

    small = load("digits", download=False)
    scanned = concatenate(concatenate(small.train, small.validation), small.test)

    sets = font_digits(half)
    sets["photos of one person's digits"] = ImageDataset(torch.stack(photos), digits)
    sets["43 people in Turkey, 8x8 pixels"] = scanned
    return sets


def correct(model: nn.Module, sets: dict[str, ImageDataset]) -> dict[str, list[int]]:
    """Return how many images of each digit are classified correctly, by set."""
    return {
        name: evaluate(model, dataset).confusion.diagonal().tolist()
        for name, dataset in sets.items()
    }


def main() -> None:
    """Train, read the test sets, write the record, publish seed 0."""
    print("Handwriting to test on, then to train on: 3 minutes", flush=True)
    splits = load("mnist")
    reported = handwriting(1)
    start = load_weights(EnhancedNet(), START)
    train_sets = training_sets(concatenate(splits.train, splits.validation), start)

    runs = []
    for seed in SEEDS:
        model = load_weights(EnhancedNet(), START)
        history = fit(model, train_sets, splits.validation, replace(RECIPE, seed=seed))
        interpolate(model, start)
        test = evaluate(model, splits.test)
        runs.append(
            {
                "seed": seed,
                "training_seconds": round(history.seconds, 1),
                "test_correct": test.n_correct,
                "handwriting": correct(model, reported),
            }
        )
        if seed == SEEDS[0]:
            save_weights(
                model,
                PUBLISHED,
                configuration="handwriting",
                recipe={**history.recipe.asdict(), "precision": history.precision},
                starts_from=START.name,
                synthetic=SYNTHETIC,
                dataset=splits.name,
                test_images=len(splits.test),
                test_correct=test.n_correct,
                record="benchmarks/accuracy/handwriting.json",
            )

    record = {
        "command": "make handwriting",
        "recipe": {
            **RECIPE.asdict(),
            "precision": history.precision,
            "synthetic": SYNTHETIC,
            "copies": COPIES,
            "margin": MARGIN,
            "share": SHARE,
        },
        "machine": {**machine(), "threads_a_run": torch.get_num_threads()},
        "version": VERSION,
        "made": time.strftime("%Y-%m-%d"),
        "images": {name: part.labels.bincount().tolist() for name, part in reported.items()},
        "test_images": len(splits.test),
        "before": {
            "test_correct": evaluate(start, splits.test).n_correct,
            "handwriting": correct(start, reported),
        },
        "runs": runs,
    }
    write_json(RECORD, record, indent=None)


if __name__ == "__main__":
    main()
