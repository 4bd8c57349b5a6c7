"""Train a network that reads the handwriting of more than one country.

`make handwriting` starts from the best network. That one was trained on MNIST alone and reads many
a 1 with an upstroke as a 7. It is trained further, on warped copies of MNIST and of synthetic
handwriting. Its own logits are the targets, so that it forgets nothing; for synthetic handwriting
the label's logit is raised where it does not lead clearly. After training, the weights move a fifth
of the way back to the old ones.

The script reads the test set and handwriting of other origin once per seed. It writes
`benchmarks/accuracy/handwriting.json` and the weights of seed 0. All choices were made on the
validation images and on the half of the fonts that is not reported.
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
from mnist_mlp.checkpoint import read_card
from mnist_mlp.data import ImageDataset, concatenate
from mnist_mlp.files import repo_root, write_json

RECORD = Path(__file__).with_suffix(".json")
MODELS = repo_root() / "models"
START = MODELS / "enhanced_model_best.pth"
PUBLISHED = MODELS / "enhanced_model_handwriting.pth"
SEEDS = range(3)
N_SYNTHETIC = 24_000  # images of synthetic handwriting
COPIES = 20  # warped copies of each image: one for each epoch in turn
MARGIN = 5.0  # by which the label's logit leads all others, for synthetic handwriting
KEPT_FRACTION = 0.8  # 1: the trained weights, 0: the old ones
RECIPE = Recipe(
    epochs=30,
    batch_size=1024,
    learning_rate=0.0007,
    augment_strength=0.0,  # the copies are warped
    select="last epoch",
    distillation_temperature=8.0,
)


def raise_label_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits with each label's raised, if need be, to lead all others by `MARGIN`."""
    label = labels[:, None]
    highest_other = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
    raised = torch.maximum(logits.gather(1, label), highest_other + MARGIN)
    return logits.scatter(1, label, raised)


def training_sets(
    mnist: ImageDataset, teacher: nn.Module, n_synthetic: int = N_SYNTHETIC, copies: int = COPIES
) -> list[ImageDataset]:
    """Return warped copies of MNIST and of synthetic handwriting with the teacher's logits."""
    synthetic = synthetic_digits(n_synthetic)
    train_sets = precompute_teacher_logits(concatenate(mnist, synthetic), [teacher], copies)
    for train_set in train_sets:
        synthetic_logits = train_set.teacher_logits[len(mnist) :]
        synthetic_logits.copy_(raise_label_logits(synthetic_logits, synthetic.labels))
    return train_sets


def interpolate(model: nn.Module, start: nn.Module) -> None:
    """Move the model's weights back towards the start's, so that it forgets less of MNIST.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022.
    """
    with torch.no_grad():
        for weight, start_weight in zip(model.parameters(), start.parameters(), strict=True):
            weight.lerp_(start_weight, 1 - KEPT_FRACTION)


def rendered_photos() -> ImageDataset:
    """Return 200 digits drawn like one person's writing, as `to_mnist` reads them."""
    random = np.random.default_rng(0)
    digits = torch.arange(10).repeat(20)
    images = [to_mnist(render_photo(str(int(digit)), random, 320)) for digit in digits]
    return ImageDataset(torch.stack(images), digits)


def scikit_learn_digits() -> ImageDataset:
    """Return scikit-learn's digits, written by 43 people in Turkey."""
    embedded = load("digits", download=False)
    return concatenate(concatenate(embedded.train, embedded.validation), embedded.test)


def correct_per_digit(model: nn.Module, sets: dict[str, ImageDataset]) -> dict[str, list[int]]:
    """Return how many images of each digit the model classifies correctly, by set."""
    return {
        name: evaluate(model, dataset).confusion.diagonal().tolist()
        for name, dataset in sets.items()
    }


def main() -> None:
    """Train, read the test sets, write the record, publish seed 0."""
    print("Handwriting to test on, then to train on: 3 minutes", flush=True)
    splits = load("mnist")
    test_sets = font_digits(half=1)
    test_sets["drawn digits like one person's"] = rendered_photos()
    test_sets["43 people in Turkey, 8x8 pixels"] = scikit_learn_digits()
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
                "handwriting": correct_per_digit(model, test_sets),
            }
        )
        if seed == SEEDS[0]:
            card_recipe = history.recipe.asdict()
            card_recipe["precision"] = history.precision
            save_weights(
                model,
                PUBLISHED,
                configuration="handwriting",
                recipe=card_recipe,
                starts_from=START.name,
                starts_from_sha256=read_card(START)["sha256"],
                synthetic=N_SYNTHETIC,
                dataset=splits.name,
                test_images=len(splits.test),
                test_correct=test.n_correct,
                record="benchmarks/accuracy/handwriting.json",
            )

    recipe = RECIPE.asdict()
    recipe["precision"] = history.precision
    recipe["synthetic"] = N_SYNTHETIC
    recipe["copies"] = COPIES
    recipe["margin"] = MARGIN
    recipe["share"] = KEPT_FRACTION

    this_machine = machine()
    this_machine["threads_a_run"] = torch.get_num_threads()

    record = {
        "command": "make handwriting",
        "recipe": recipe,
        "machine": this_machine,
        "version": VERSION,
        "made": time.strftime("%Y-%m-%d"),
        "images": {name: images.labels.bincount().tolist() for name, images in test_sets.items()},
        "test_images": len(splits.test),
        "before": {
            "test_correct": evaluate(start, splits.test).n_correct,
            "handwriting": correct_per_digit(start, test_sets),
        },
        "runs": runs,
    }
    write_json(RECORD, record, indent=None)


if __name__ == "__main__":
    main()
