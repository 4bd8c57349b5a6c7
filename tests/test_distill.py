import numpy as np
import pytest
import torch
from torch import nn

from mnist_mlp import distill
from mnist_mlp.augment import warp
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import ConvNet, EnhancedNet
from mnist_mlp.train import fit

SETTINGS = {"batch_size": 32, "augment": 0.0, "progress": False}


def test_the_soft_loss_is_hintons_divergence():
    random = np.random.default_rng(0)
    logits, answers = random.normal(0, 3, (2, 20, 10))

    def tempered(z):
        e = np.exp(z / 2.5)
        return e / e.sum(1, keepdims=True)

    p, q = tempered(answers), tempered(logits)
    expected = 2.5**2 * (p * np.log(p / q)).sum(1).mean()
    found = distill.soft_loss(torch.tensor(logits), torch.tensor(answers), 2.5)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_its_gradient_tends_to_that_of_matching_logits():
    """At a high temperature, where Hinton et al. show the two to be the same."""
    logits = torch.randn(5, 10, dtype=torch.double, requires_grad=True)
    answers = torch.randn(5, 10, dtype=torch.double)
    distill.soft_loss(logits, answers, 1e4).backward()
    centred = [z.detach() - z.detach().mean(1, keepdim=True) for z in (logits, answers)]
    assert torch.allclose(logits.grad, (centred[0] - centred[1]) / 10 / 5, atol=1e-4)


def test_lessons_are_fresh_warps_with_the_teachers_mean_answers_to_those_very_images(toy):
    torch.manual_seed(0)
    teachers = [ConvNet(), EnhancedNet()]
    first, second = distill.lessons(toy[0], teachers, copies=2, seed=5, progress=False)
    for k, lesson in enumerate((first, second)):
        expected = warp(toy[0].images.float() / 255, epoch_generator(5, k))
        assert (lesson.images / 255 - expected).abs().max() < 0.51 / 255
        answers = [evaluate(teacher, lesson).logits for teacher in teachers]
        assert torch.allclose(lesson.answers.float(), (answers[0] + answers[1]) / 2, atol=2e-3)
        assert torch.equal(lesson.labels, toy[0].labels)
    assert (first.images != second.images).float().mean() > 0.2


def test_a_student_learns_its_teachers_answers_and_not_the_labels(toy):
    """The teacher calls every digit by the next one's name, and so does its student."""
    torch.manual_seed(0)
    shifted = [ImageDataset(part.images, (part.labels + 1) % 10) for part in toy]
    teacher = EnhancedNet()
    fit(teacher, *shifted, epochs=30, **SETTINGS, learning_rate=0.01, averaging=0.9)
    answers = evaluate(teacher, toy[0]).logits
    taught = ImageDataset(toy[0].images, toy[0].labels, answers=answers)
    student = EnhancedNet()
    history = fit(student, taught, toy[1], epochs=30, **SETTINGS, averaging=0.9, temperature=2.0)
    # `fit` keeps what does best on the labels: look at what the last epoch had learned.
    assert history.epochs[-1]["accuracy"] < 0.05
    assert history.epochs[-1]["loss"] < 0.1 * history.epochs[0]["loss"]
    assert history.settings["temperature"] == 2.0


def test_lessons_take_turns_an_epoch_each(toy):
    """Told apart by their answers: one is so wrong that its epochs have the higher loss."""
    answers = torch.zeros(len(toy[0]), 10)
    near = ImageDataset(toy[0].images, toy[0].labels, answers=answers)
    far = ImageDataset(toy[0].images, toy[0].labels, answers=100 * torch.randn(len(toy[0]), 10))
    lessons = [near, far, near]
    history = fit(EnhancedNet(), lessons, toy[1], epochs=5, learning_rate=1e-6, **SETTINGS)
    losses = [epoch["loss"] for epoch in history.epochs]
    assert [loss > 10 for loss in losses] == [False, True, False, False, True]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_several_sets_each_learns_its_labels_or_its_teachers_answers(toy, order):
    """Told apart by their losses: that of the labels, and the divergence from equal answers."""
    torch.manual_seed(0)
    plain, answers = toy[0], 3 * torch.randn(len(toy[0]), 10)
    taught = ImageDataset(plain.images, plain.labels, answers=answers)
    model = EnhancedNet()
    logits = evaluate(model, plain).logits
    expected = [
        float(nn.functional.cross_entropy(logits, plain.labels)),
        float(distill.soft_loss(logits, answers, 4.0)),
    ]
    still = SETTINGS | {"learning_rate": 1e-9, "batch_size": len(plain)}
    history = fit(model, [(plain, taught)[i] for i in order], toy[1], epochs=2, **still)
    found = [epoch["loss"] for epoch in history.epochs]
    assert found == pytest.approx([expected[i] for i in order], rel=1e-4)


def test_a_part_of_a_data_set_keeps_its_teachers_answers_and_so_does_a_copy_on_a_gpu(
    toy, monkeypatch
):
    answers = torch.randn(len(toy[0]), 10)
    taught = ImageDataset(toy[0].images, toy[0].labels, answers=answers)
    assert torch.equal(taught.subset(torch.tensor([5, 3])).answers, answers[[5, 3]])
    assert toy[0].to("cpu").answers is None
    moved = []  # there may be no GPU here
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    taught.to("cuda")
    assert moved == ["cuda"] * 3


def test_lessons_survive_their_file(toy, tmp_path):
    torch.manual_seed(0)
    taught = distill.lessons(toy[0], [ConvNet()], copies=2, progress=False)
    distill.save(taught, tmp_path / "lessons.pth")
    for found, wanted in zip(distill.load(tmp_path / "lessons.pth", toy[0]), taught, strict=True):
        assert torch.equal(found.images, wanted.images)
        assert torch.equal(found.answers, wanted.answers)
        assert torch.equal(found.labels, wanted.labels)
    with pytest.raises(ValueError, match="lessons about 130 images, expected 50"):
        distill.load(tmp_path / "lessons.pth", toy[1])
    with pytest.raises(FileNotFoundError, match="make ladder"):
        distill.load(tmp_path / "none.pth", toy[0])


def test_a_teacher_with_another_number_of_classes_is_refused(toy):
    with pytest.raises(ValueError, match="must know the data set's 10 classes, found one of 7"):
        distill.lessons(toy[0], [ConvNet(), ConvNet(classes=7)], copies=1, progress=False)
    with pytest.raises(ValueError, match=r"answers must have the shape \(130, 10\), found .*7\)"):
        ImageDataset(toy[0].images, toy[0].labels, answers=torch.zeros(130, 7))
    seven = ImageDataset(
        toy[0].images, toy[0].labels % 7, tuple("0123456"), answers=torch.zeros(130, 7)
    )
    before = nn.utils.parameters_to_vector((model := EnhancedNet()).parameters()).clone()
    with pytest.raises(ValueError, match="train has the classes 0 1 2 3 4 5 6, validation 0 1 2 3"):
        fit(model, seven, toy[1], epochs=1, **SETTINGS)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))


def test_the_loss_of_a_lesson_is_tempered_as_the_settings_say(toy):
    torch.manual_seed(0)
    student, answers = EnhancedNet(), 5 * torch.randn(len(toy[0]), 10)
    expected = distill.soft_loss(evaluate(student, toy[0]).logits, answers, 2.5)
    taught = ImageDataset(toy[0].images, toy[0].labels, answers=answers)
    whole = SETTINGS | {"batch_size": len(taught)}  # one step, taken after its loss
    history = fit(student, taught, toy[1], epochs=1, **whole, temperature=2.5)
    assert history.epochs[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
