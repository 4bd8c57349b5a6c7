import numpy as np
import pytest
import torch
from helpers import fit_with
from torch import nn

from mnist_mlp.augment import random_warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import distillation_loss
from mnist_mlp.research.convnet import ConvNet
from mnist_mlp.research.distillation import (
    load_distillation_sets,
    precompute_teacher_logits,
    save_distillation_sets,
)

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
    settings = SETTINGS | {"epochs": 30, "ema_decay": 0.9, "distillation_temperature": 2.0}
    history = fit_with(EnhancedNet(), train, toy[1], **settings)
    # `fit` keeps what does best on the labels: look at what the last epoch had learned.
    assert history.epochs[-1]["accuracy"] < 0.05
    assert history.epochs[-1]["loss"] < 0.1 * history.epochs[0]["loss"]
    assert history.recipe.asdict()["distillation_temperature"] == 2.0


def test_several_training_sets_take_turns_an_epoch_each(toy):
    """Told apart by their logits: one is so wrong that its epochs have the higher loss."""
    images, labels = toy[0].images, toy[0].labels
    near = ImageDataset(images, labels, teacher_logits=torch.zeros(len(labels), 10))
    far = ImageDataset(images, labels, teacher_logits=100 * torch.randn(len(labels), 10))
    sets = [near, far, near]
    history = fit_with(EnhancedNet(), sets, toy[1], epochs=5, learning_rate=1e-6, **SETTINGS)
    losses = [epoch["loss"] for epoch in history.epochs]
    assert [loss > 10 for loss in losses] == [False, True, False, False, True]


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
    still = SETTINGS | {"learning_rate": 1e-9, "batch_size": len(plain)}
    history = fit_with(model, [(plain, distilled)[i] for i in order], toy[1], epochs=2, **still)
    found = [epoch["loss"] for epoch in history.epochs]
    assert found == pytest.approx([expected[i] for i in order], rel=1e-4)


def test_a_subset_keeps_its_teacher_logits_and_so_does_a_copy_on_a_gpu(toy, monkeypatch):
    teacher_logits = torch.randn(len(toy[0]), 10)
    dataset = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=teacher_logits)
    chosen = torch.tensor([5, 3])
    assert torch.equal(dataset.subset(chosen).teacher_logits, teacher_logits[chosen])
    assert toy[0].to("cpu").teacher_logits is None
    moved = []  # there may be no GPU here
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    dataset.to("cuda")
    assert moved == ["cuda"] * 3


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
    with pytest.raises(ValueError, match="must know the data set's 10 classes, found one of 7"):
        precompute_teacher_logits(toy[0], teachers, copies=1, progress=False)
    words = r"teacher_logits must have the shape \(130, 10\), found .*7\)"
    with pytest.raises(ValueError, match=words):
        ImageDataset(toy[0].images, toy[0].labels, teacher_logits=torch.zeros(130, 7))
    seven = ImageDataset(
        toy[0].images, toy[0].labels % 7, tuple("0123456"), teacher_logits=torch.zeros(130, 7)
    )
    before = nn.utils.parameters_to_vector((model := EnhancedNet()).parameters()).clone()
    with pytest.raises(ValueError, match="train has the classes 0 1 2 3 4 5 6, validation 0 1 2 3"):
        fit_with(model, seven, toy[1], epochs=1, **SETTINGS)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))


def test_the_loss_has_the_temperature_of_the_recipe(toy):
    torch.manual_seed(0)
    student, teacher_logits = EnhancedNet(), 5 * torch.randn(len(toy[0]), 10)
    expected = distillation_loss(evaluate(student, toy[0]).logits, teacher_logits, 2.5)
    train = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=teacher_logits)
    # One step, taken after its loss.
    settings = SETTINGS | {"batch_size": len(train), "distillation_temperature": 2.5}
    history = fit_with(student, train, toy[1], epochs=1, **settings)
    assert history.epochs[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
