import numpy as np
import pytest
import torch
from helpers import fit_with
from torch import nn

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
from mnist_mlp.train import distillation_loss

SETTINGS = {"batch_size": 32, "augment_strength": 0.0}


def test_the_distillation_loss_is_hintons_divergence():
    random = np.random.default_rng(0)
    logits, teacher_logits = random.normal(0, 3, (2, 20, 10))

    def softened(z):
        e = np.exp(z / 2.5)
        return e / e.sum(1, keepdims=True)

    p, q = softened(teacher_logits), softened(logits)
    expected = 2.5**2 * (p * np.log(p / q)).sum(1).mean()
    found = distillation_loss(torch.tensor(logits), torch.tensor(teacher_logits), 2.5)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_its_gradient_tends_to_that_of_matching_logits():
    """At a high temperature, where Hinton et al. show the two to be the same."""
    logits = torch.randn(5, 10, dtype=torch.double, requires_grad=True)
    teacher_logits = torch.randn(5, 10, dtype=torch.double)
    distillation_loss(logits, teacher_logits, 1e4).backward()
    centred = [z.detach() - z.detach().mean(1, keepdim=True) for z in (logits, teacher_logits)]
    assert torch.allclose(logits.grad, (centred[0] - centred[1]) / 10 / 5, atol=1e-4)


def test_each_copy_is_warped_anew_and_has_the_teachers_mean_logits_for_its_own_images(toy):
    torch.manual_seed(0)
    teachers = [ConvNet(), EnhancedNet()]
    first, second = precompute_teacher_logits(toy[0], teachers, copies=2, seed=5, progress=False)
    for k, copy in enumerate((first, second)):
        expected = random_warp(toy[0].images.float() / 255, epoch_generator(5, k))
        assert (copy.images / 255 - expected).abs().max() < 0.51 / 255
        logits = [evaluate(teacher, copy).logits for teacher in teachers]
        assert torch.allclose(copy.teacher_logits.float(), (logits[0] + logits[1]) / 2, atol=2e-3)
        assert torch.equal(copy.labels, toy[0].labels)
    assert (first.images != second.images).float().mean() > 0.2


def test_a_student_learns_its_teachers_logits_and_not_the_labels(toy):
    """The teacher calls every digit by the next one's name, and so does its student."""
    torch.manual_seed(0)
    shifted = [ImageDataset(part.images, (part.labels + 1) % 10) for part in toy]
    teacher = EnhancedNet()
    fit_with(teacher, *shifted, epochs=30, **SETTINGS, learning_rate=0.01, ema_decay=0.9)
    logits = evaluate(teacher, toy[0]).logits
    train = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=logits)
    history = fit_with(
        EnhancedNet(),
        train,
        toy[1],
        **SETTINGS,
        epochs=30,
        ema_decay=0.9,
        distillation_temperature=2.0,
    )
    # `fit` keeps what does best on the labels: look at what the last epoch had learned.
    assert history.epochs[-1]["accuracy"] < 0.05
    assert history.epochs[-1]["loss"] < 0.1 * history.epochs[0]["loss"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_of_several_sets_is_trained_on_its_labels_or_its_teacher_logits(toy, order):
    """Told apart by their losses: the cross-entropy of the labels, and the divergence."""
    torch.manual_seed(0)
    plain, teacher_logits = toy[0], 3 * torch.randn(len(toy[0]), 10)
    distilled = ImageDataset(plain.images, plain.labels, teacher_logits=teacher_logits)
    model = EnhancedNet()
    logits = evaluate(model, plain).logits
    expected = [
        float(nn.functional.cross_entropy(logits, plain.labels)),
        float(distillation_loss(logits, teacher_logits, 4.0)),
    ]
    history = fit_with(
        model,
        [(plain, distilled)[i] for i in order],
        toy[1],
        epochs=2,
        batch_size=len(plain),
        learning_rate=1e-9,  # the weights stay
        augment_strength=0.0,
    )
    losses = [epoch["loss"] for epoch in history.epochs]
    assert losses == pytest.approx([expected[i] for i in order], rel=1e-4)


def test_subset_keeps_the_teacher_logits(toy):
    teacher_logits = torch.randn(len(toy[0]), 10)
    dataset = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=teacher_logits)
    chosen = torch.tensor([5, 3])
    assert torch.equal(dataset.subset(chosen).teacher_logits, teacher_logits[chosen])


def test_distillation_sets_survive_their_file(toy, tmp_path):
    torch.manual_seed(0)
    sets = precompute_teacher_logits(toy[0], [ConvNet()], copies=2, progress=False)
    path = tmp_path / "sets.pth"
    save_distillation_sets(sets, path)
    for found, wanted in zip(load_distillation_sets(path, toy[0]), sets, strict=True):
        assert torch.equal(found.images, wanted.images)
        assert torch.equal(found.teacher_logits, wanted.teacher_logits)
        assert torch.equal(found.labels, wanted.labels)
    with pytest.raises(ValueError, match="holds copies of 130 images, expected 50"):
        load_distillation_sets(path, toy[1])
    with pytest.raises(FileNotFoundError, match="make ablation"):
        load_distillation_sets(tmp_path / "none.pth", toy[0])


def test_a_teacher_with_another_number_of_classes_is_refused(toy):
    teachers = [ConvNet(), ConvNet(classes=7)]
    with pytest.raises(ValueError, match="10 classes, found one of 7"):
        precompute_teacher_logits(toy[0], teachers, copies=1, progress=False)
    with pytest.raises(ValueError, match="teacher_logits"):
        ImageDataset(toy[0].images, toy[0].labels, teacher_logits=torch.zeros(130, 7))


def test_the_loss_has_the_temperature_of_the_recipe(toy):
    torch.manual_seed(0)
    student, teacher_logits = EnhancedNet(), 5 * torch.randn(len(toy[0]), 10)
    expected = distillation_loss(evaluate(student, toy[0]).logits, teacher_logits, 2.5)
    train = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=teacher_logits)
    # One step, taken after its loss.
    history = fit_with(
        student,
        train,
        toy[1],
        epochs=1,
        batch_size=len(train),
        augment_strength=0.0,
        distillation_temperature=2.5,
    )
    assert history.epochs[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
