"""Train a network that reads the handwriting of more than one country.

`make handwriting` starts from the best network. That one was trained on MNIST alone and reads many
a 1 with an upstroke as a 7. It is trained further, on warped copies of MNIST, of synthetic
handwriting, of small pictures, and of letters and scribbles. Its own logits are the targets, so
that it forgets nothing; for digits that are not MNIST's the label's logit is raised where it does
not lead clearly, and for letters and scribbles all are equal.

Then the logits are divided by a temperature, so that the probabilities are as sure as they should
be on handwriting that the network was not trained on. The last layer takes this division over:
whoever has the weights has the calibrated probabilities.

The script reads the test set and handwriting of other origin once per seed. It writes
`benchmarks/accuracy/handwriting.json` and the weights of seed 0. Choices were made on the
validation images, on the half of the fonts that is not reported, and on pictures that are not in
the repository. One was made on scikit-learn's digits: that small pictures belong in the training.
"""

import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ideas import machine
from torch import nn

from mnist_lab.handwriting import photos
from mnist_lab.handwriting.fonts import font_digits
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.synthetic import (
    render_photo,
    synthetic_digits,
    synthetic_other_marks,
)
from mnist_lab.research.calibration import fit_temperature
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
N_SYNTHETIC = 40_000  # images of synthetic handwriting
N_SMALL = 12_000  # small pictures of MNIST's training digits
N_NO_DIGITS = 4_000  # images of letters and scribbles
OTHER_STRENGTH = 0.7  # of the warps of all these: they are varied already
MNIST_STRENGTHS = (1.0, 0.4)  # of the warps of two copies of MNIST in each epoch
COPIES = 20  # warped copies of each image: one for each epoch in turn
MARGIN = 8.0  # by which the label's logit leads all others, for synthetic handwriting
SURE = 0.95  # of an answer's probability: of the sure answers at least 99% should be right
RECIPE = Recipe(
    epochs=60,
    batch_size=1024,
    learning_rate=0.02,
    optimizer="muon",
    augment_strength=0.0,  # the copies are warped
    select="last epoch",
    distillation_temperature=4.0,
)


def raise_label_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits with each label's raised, if need be, to lead all others by `MARGIN`."""
    label = labels[:, None]
    highest_other = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
    raised = torch.maximum(logits.gather(1, label), highest_other + MARGIN)
    return logits.scatter(1, label, raised)


def small_pictures(mnist: ImageDataset, count: int) -> ImageDataset:
    """Return the first images as `to_mnist` reads them from small pictures.

    Every second one is stretched to a square bitmap, and the others are 8 to 14 pixels high.
    """
    rng = np.random.default_rng(0)
    images = []
    for number, image in enumerate(mnist.images[:count]):
        if number % 2 == 0:
            kind = photos.bitmap(int(rng.integers(16, 40)), stretched=True)
        else:
            kind = photos.small(int(rng.integers(8, 15)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the digits are small
            images.append(to_mnist(kind(photos.enlarge(image), rng)))
    return ImageDataset(torch.stack(images), mnist.labels[:count])


def training_sets(
    mnist: ImageDataset,
    teacher: nn.Module,
    n_synthetic: int = N_SYNTHETIC,
    n_small: int = N_SMALL,
    n_no_digits: int = N_NO_DIGITS,
    copies: int = COPIES,
) -> list[ImageDataset]:
    """Return warped copies of MNIST, of other digits and of what is no digit, with targets.

    MNIST's targets are the teacher's logits, and those of other digits, too, with the label's
    raised. What is no digit has equal logits: the network learns to be unsure.
    """
    digits = concatenate(synthetic_digits(n_synthetic), small_pictures(mnist, n_small))
    marks = synthetic_other_marks(n_no_digits)
    others = concatenate(digits, ImageDataset(marks, torch.zeros(n_no_digits, dtype=torch.int64)))

    other_copies = precompute_teacher_logits(
        others, [teacher], copies, augment_strength=OTHER_STRENGTH
    )
    mnist_copies = []
    for strength in MNIST_STRENGTHS:
        mnist_copies.append(
            precompute_teacher_logits(mnist, [teacher], copies, augment_strength=strength)
        )

    train_sets = []
    for strong_copy, gentle_copy, other_copy in zip(*mnist_copies, other_copies, strict=True):
        logits = other_copy.teacher_logits
        logits[: len(digits)] = raise_label_logits(logits[: len(digits)], digits.labels)
        logits[len(digits) :] = 0
        mnist_copy = concatenate(strong_copy, gentle_copy)
        train_sets.append(concatenate(mnist_copy, other_copy))
    return train_sets


def calibrate(model: EnhancedNet, dataset: ImageDataset) -> float:
    """Divide the model's logits by the temperature that suits the images best, and return it."""
    temperature = fit_temperature(evaluate(model, dataset))
    with torch.no_grad():
        model.layer5.weight.div_(temperature)
        model.layer5.bias.div_(temperature)
    return temperature


def surest_answers(model: nn.Module, sets: dict[str, ImageDataset]) -> dict[str, list[int]]:
    """Return how many answers of each set are given with 95% or more, and how many are right."""
    counts = {}
    for name, dataset in sets.items():
        evaluation = evaluate(model, dataset)
        is_sure = evaluation.probabilities.amax(dim=1) >= SURE
        counts[name] = [int(is_sure.sum()), int(evaluation.correct[is_sure].sum())]
    return counts


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


def all_images(sets: dict[str, ImageDataset]) -> ImageDataset:
    """Return the images of all sets as one."""
    joined, *others = sets.values()
    for dataset in others:
        joined = concatenate(joined, dataset)
    return joined


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
    to_calibrate = all_images(font_digits(half=0))

    runs = []
    for seed in SEEDS:
        model = load_weights(EnhancedNet(), START)
        history = fit(model, train_sets, splits.validation, replace(RECIPE, seed=seed))
        temperature = calibrate(model, to_calibrate)
        test = evaluate(model, splits.test)
        runs.append(
            {
                "seed": seed,
                "training_seconds": round(history.seconds, 1),
                "test_correct": test.n_correct,
                "handwriting": correct_per_digit(model, test_sets),
                "temperature": round(temperature, 3),
                "sure_and_right": surest_answers(model, test_sets),
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
                small_pictures=N_SMALL,
                no_digits=N_NO_DIGITS,
                applied_temperature=round(temperature, 3),  # by which the last layer is divided
                dataset=splits.name,
                test_images=len(splits.test),
                test_correct=test.n_correct,
                record="benchmarks/accuracy/handwriting.json",
            )

    recipe = RECIPE.asdict()
    recipe["precision"] = history.precision
    recipe["synthetic"] = N_SYNTHETIC
    recipe["small_pictures"] = N_SMALL
    recipe["no_digits"] = N_NO_DIGITS
    recipe["strength_of_others"] = OTHER_STRENGTH
    recipe["strengths_of_mnist"] = MNIST_STRENGTHS
    recipe["copies"] = COPIES
    recipe["margin"] = MARGIN

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
