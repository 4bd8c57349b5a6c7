"""Students learn from the teachers' logits, which are computed once for each augmented image."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import nn
from torch.nn import functional as F

from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import (
    load_distillation_sets,
    precompute_teacher_logits,
    read_source,
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
    other_names = ConvNet()
    other_names.class_names = tuple("abcdefghij")

    for teacher in (ConvNet(classes=7), other_names):
        with pytest.raises(ValueError, match="class"):
            precompute_teacher_logits(toy[0], [ConvNet(), teacher], copies=1, progress=False)


def test_precompute_teacher_logits_refuses_an_unknown_precision(toy):
    with pytest.raises(ValueError, match="auto"):
        precompute_teacher_logits(toy[0], [ConvNet()], 1, precision="auto", progress=False)


def test_precompute_teacher_logits_refuses_a_teacher_without_a_list(toy):
    for teachers in (ConvNet(), nn.Sequential(nn.Linear(784, 10)), [], iter([ConvNet()])):
        with pytest.raises(TypeError, match="list"):
            precompute_teacher_logits(toy[0], teachers, copies=1, progress=False)


def test_distillation_refuses_what_is_no_data_set(toy, tmp_path):
    with pytest.raises(TypeError, match="dataset must be an ImageDataset"):
        precompute_teacher_logits(toy, [ConvNet()], copies=1, progress=False)
    with pytest.raises(TypeError, match="a copy must be an ImageDataset"):
        save_distillation_sets(toy[0], toy[0], tmp_path / "logits.pth")


def test_load_distillation_sets_restores_saved_sets(toy, tmp_path):
    torch.manual_seed(0)
    train, _ = toy
    sets = precompute_teacher_logits(train, [ConvNet()], copies=2, progress=False)
    path = tmp_path / "sets.pth"

    save_distillation_sets(sets, train, path, {"copies": 2})

    assert read_source(path) == {"copies": 2}
    for loaded, saved in zip(load_distillation_sets(path, train), sets, strict=True):
        assert torch.equal(loaded.images, saved.images)
        assert torch.equal(loaded.teacher_logits, saved.teacher_logits)
        assert torch.equal(loaded.labels, saved.labels)


def test_load_distillation_sets_refuses_another_data_set(toy, tmp_path):
    train, validation = toy
    sets = precompute_teacher_logits(train, [ConvNet()], copies=1, progress=False)
    path = tmp_path / "sets.pth"
    save_distillation_sets(sets, train, path)

    other_images = train.images.clone()
    other_images[7, 3, 3] += 1
    others = [
        validation,
        replace(train, images=other_images),
        replace(train, labels=(train.labels + 1) % 10),
        replace(train, classes=tuple("abcdefghij")),
    ]
    for other in others:
        with pytest.raises(ValueError, match="belongs to other"):
            load_distillation_sets(path, other)


def test_load_distillation_sets_refuses_missing_and_damaged_files(toy, tmp_path):
    path = tmp_path / "sets.pth"
    with pytest.raises(FileNotFoundError, match="make ablation"):
        load_distillation_sets(path, toy[0])

    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        load_distillation_sets(path, toy[0])

    torch.save({"images": torch.zeros(1)}, path)  # as an older version wrote it
    with pytest.raises(ValueError, match="this version"):
        load_distillation_sets(path, toy[0])


def test_precompute_of_make_ideas_goes_by_content(toy, tmp_path, monkeypatch):
    """A file is used again only for the same images, teachers and number of copies."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "accuracy")
    ideas = importlib.import_module("ideas")
    teacher = ConvNet(width=4)
    monkeypatch.setattr(ideas, "load_trained", lambda run: teacher)
    path = tmp_path / "logits.pt"

    def is_made_again(images, copies: int) -> bool:
        before = path.stat().st_mtime_ns if path.exists() else 0
        ideas.precompute(str(path), images, [{}], copies)
        assert len(load_distillation_sets(path, images)) == copies
        return path.stat().st_mtime_ns != before

    train, validation = toy
    assert is_made_again(train, copies=1)
    assert not is_made_again(train, copies=1)
    assert is_made_again(train, copies=2)
    assert is_made_again(validation, copies=2)
    teacher.layers[0].weight.data.mul_(2)
    assert is_made_again(validation, copies=2)
    assert not is_made_again(validation, copies=2)


def test_save_distillation_sets_refuses_copies_without_logits(toy, tmp_path):
    train, _ = toy
    (with_logits,) = precompute_teacher_logits(train, [ConvNet()], copies=1, progress=False)

    for sets in ([with_logits, train], []):
        with pytest.raises(ValueError, match="cop"):
            save_distillation_sets(sets, train, tmp_path / "sets.pth")
    assert not list(tmp_path.iterdir())


def test_save_distillation_sets_refuses_copies_of_another_order(toy, tmp_path):
    train = toy[0]
    sets = precompute_teacher_logits(train, [EnhancedNet()], copies=1, progress=False)

    with pytest.raises(ValueError, match="labels"):
        save_distillation_sets(sets, train.subset(torch.arange(129, -1, -1)), tmp_path / "sets.pt")
