"""Students learn from the teachers' logits, which are computed once for each augmented image."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import (
    load_distillation_sets,
    precompute_teacher_logits,
    save_distillation_sets,
)
from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.train import distillation_loss, fit


def test_distillation_loss_is_hintons_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (20, 10))
    teacher_logits = rng.normal(0, 3, (20, 10))

    def softened(z):
        return np.exp(z / 2.5) / np.exp(z / 2.5).sum(1, keepdims=True)

    p = softened(teacher_logits)
    q = softened(logits)
    divergence = (p * np.log(p / q)).sum(1).mean()

    loss = distillation_loss(torch.tensor(logits), torch.tensor(teacher_logits), 2.5)

    assert float(loss) == pytest.approx(2.5**2 * divergence, rel=1e-9)


@pytest.mark.parametrize("plain_first", [True, False])
def test_fit_distills_only_sets_with_teacher_logits(toy, plain_first):
    """At a learning rate near zero each epoch's loss is that of the initial weights."""
    torch.manual_seed(0)
    plain, validation = toy
    teacher_logits = 3 * torch.randn(len(plain), 10)
    distilled = ImageDataset(plain.images, plain.labels, teacher_logits=teacher_logits)
    model = EnhancedNet()
    logits = evaluate(model, plain).logits
    plain_loss = float(F.cross_entropy(logits, plain.labels))
    distilled_loss = float(distillation_loss(logits, teacher_logits, 2.5))

    recipe = Recipe(
        precision="float32",
        epochs=2,
        batch_size=len(plain),
        learning_rate=1e-9,
        augment_strength=0.0,
        distillation_temperature=2.5,
    )
    sets = [plain, distilled] if plain_first else [distilled, plain]
    history = fit(model, sets, validation, recipe, progress=False)

    losses = [epoch["loss"] for epoch in history.epochs]
    expected = [plain_loss, distilled_loss] if plain_first else [distilled_loss, plain_loss]
    assert losses == pytest.approx(expected, rel=1e-4)


def test_student_learns_teacher_logits_instead_of_labels(toy):
    """The teacher calls each digit by the name of the next one, and so does its student."""
    torch.manual_seed(0)
    train, validation = toy
    teacher_logits = 10.0 * F.one_hot((train.labels + 1) % 10, 10)
    student = EnhancedNet()

    recipe = Recipe(
        precision="float32", epochs=15, batch_size=32, augment_strength=0.0, ema_decay=0.9
    )
    history = fit(
        student,
        ImageDataset(train.images, train.labels, teacher_logits=teacher_logits),
        ImageDataset(validation.images, (validation.labels + 1) % 10),
        recipe,
        progress=False,
    )

    assert evaluate(student, validation).accuracy < 0.05
    assert history.epochs[-1]["validation_accuracy"] > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precompute_teacher_logits_matches_warp_and_teachers(toy, precision):
    torch.manual_seed(0)
    train, _ = toy
    teachers = [ConvNet(), EnhancedNet()]

    sets = precompute_teacher_logits(
        train, teachers, copies=2, seed=5, precision=precision, progress=False
    )

    for i, augmented in enumerate(sets):
        warped = random_warp(train.images.float() / 255, epoch_generator(5, i))
        assert (augmented.images / 255 - warped).abs().max() < 0.51 / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            first = evaluate(teachers[0], augmented).logits
            second = evaluate(teachers[1], augmented).logits
        assert torch.equal(augmented.teacher_logits, ((first + second) / 2).half())
        assert torch.equal(augmented.labels, train.labels)
    assert len(sets) == 2
    assert (sets[0].images != sets[1].images).float().mean() > 0.2


def test_precompute_teacher_logits_refuses_other_classes(toy):
    teachers = [ConvNet(), ConvNet(classes=7)]
    with pytest.raises(ValueError, match="7 classes, but the data set has 10"):
        precompute_teacher_logits(toy[0], teachers, copies=1, progress=False)


def test_load_distillation_sets_restores_saved_sets(toy, tmp_path):
    torch.manual_seed(0)
    train, validation = toy
    sets = precompute_teacher_logits(train, [ConvNet()], copies=2, progress=False)
    path = tmp_path / "sets.pth"

    save_distillation_sets(sets, path)

    for loaded, saved in zip(load_distillation_sets(path, train), sets, strict=True):
        assert torch.equal(loaded.images, saved.images)
        assert torch.equal(loaded.teacher_logits, saved.teacher_logits)
        assert torch.equal(loaded.labels, saved.labels)
    with pytest.raises(ValueError, match="130 images, expected 50"):
        load_distillation_sets(path, validation)
    with pytest.raises(FileNotFoundError, match="make ablation"):
        load_distillation_sets(tmp_path / "none.pth", train)
