"""What somebody meets who tries out `fit`: nothing is ignored or lost, each error is a sentence."""

import re
import warnings

import pytest
import torch
from helpers import fit_with, shapes, visible
from torch import nn
from torch.utils.data import DataLoader, Subset

from mnist_mlp import EnhancedNet, Recipe, evaluate, fit, load, save_weights
from mnist_mlp.data import ImageDataset, epoch_generator

QUICK = {"epochs": 2, "batch_size": 32}


def net(kind=EnhancedNet, *arguments):
    torch.manual_seed(0)
    return kind(*arguments)


# Checkpoints


class Dropping(nn.Sequential):
    def __init__(self, share: float):
        super().__init__(nn.Linear(784, 16), nn.Dropout(share), nn.Linear(16, 10))


def test_a_checkpoint_of_the_same_network_with_another_dropout_is_refused(toy, tmp_path):
    path = tmp_path / "run.pt"
    fit_with(net(Dropping, 0.1), *toy, **QUICK, checkpoint=path)
    with pytest.raises(ValueError, match=r"layers was .*Dropout\(p=0\.1.*, is .*Dropout\(p=0\.9"):
        fit_with(net(Dropping, 0.9), *toy, **QUICK, checkpoint=path)


def test_a_completed_checkpoint_says_that_nothing_was_trained(toy, tmp_path, capsys):
    settings = QUICK | {"progress": True, "checkpoint": tmp_path / "run.pt"}
    fit_with(net(), *toy, **settings)
    assert "nothing was trained" not in capsys.readouterr().out
    fit_with(net(), *toy, **settings)
    assert "run.pt is already complete: nothing was trained." in capsys.readouterr().out


def test_a_file_that_is_not_a_checkpoint_is_left_as_it_is(toy, tmp_path):
    save_weights(net(), tmp_path / "weights.pth")
    (tmp_path / "notes.txt").write_text("not to be lost")
    torch.save({"about": 5, "parts": []}, tmp_path / "other.pt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("weights.pth", "notes.txt", "other.pt"):
        words = f"{name} exists and is not a training checkpoint: it is left as it is"
        with pytest.raises(ValueError, match=words):
            fit_with(net(), *toy, **QUICK, checkpoint=tmp_path / name)
    after = {name: (tmp_path / name).read_bytes() for name in before}
    assert after == before
    assert set(visible(tmp_path)) <= set(before)


# A user's own augmentation


def invert(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - images


def blank(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images * 0


@pytest.mark.parametrize("augment_strength", [0.0, 1.0])
def test_an_own_augmentation_is_applied_to_the_training_images_in_place_of_the_warps(
    toy, augment_strength
):
    train, validation = toy
    calls = []

    def own(images, generator):
        calls.append((images.clone(), generator))
        return invert(images, generator)

    recipe = {"epochs": 1, "batch_size": len(train), "learning_rate": 1e-9, "augment": own}
    history = fit_with(net(), train, validation, **recipe, augment_strength=augment_strength)
    ((images, generator),) = calls  # of the training images alone: the validation is another batch
    expected_generator = epoch_generator(0, 1)
    order = torch.randperm(len(train), generator=expected_generator)
    assert images.dtype == torch.float32
    assert torch.equal(images, train.images[order] / 255)  # not warped
    assert torch.equal(generator.get_state(), expected_generator.get_state())
    inverted = ImageDataset(255 - train.images, train.labels)
    assert history.epochs[0]["loss"] == pytest.approx(evaluate(net(), inverted).loss, rel=1e-4)
    assert history.epochs[0]["validation_loss"] == pytest.approx(
        evaluate(net(), validation).loss, rel=1e-4
    )


def test_a_checkpoint_with_another_own_augmentation_is_refused_by_its_name(toy, tmp_path):
    path = tmp_path / "run.pt"
    fit_with(net(), *toy, **QUICK, augment=invert, checkpoint=path)
    words = r"augment was '.*test_train_usability\.invert', is '.*test_train_usability\.blank'"
    with pytest.raises(ValueError, match=words):
        fit_with(net(), *toy, **QUICK, augment=blank, checkpoint=path)


# Arguments that cannot be used


class Pair(nn.Linear):
    def forward(self, images):
        return super().forward(images), None


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


def test_a_model_that_cannot_be_used_is_one_sentence(toy):
    for model, words in {
        EnhancedNet: r"a network, found the class EnhancedNet: did you mean EnhancedNet\(\)\?",
        "net": r"a network, found str",
        Pair(784, 10): r"must return logits of shape \(N, 10\), a tensor, found a tuple",
        nn.Linear(784, 7): r"logits of shape \(N, 10\), one per class, found \(N, 7\)",
        convolutional(): r"take images of shape \(2, 784\).*x\.view\(-1, 1, 28, 28\).*: Expected",
        nn.Sequential(nn.Linear(784, 10), nn.Unflatten(1, (5, 2))): r"found \(N, 5, 2\)\.",
    }.items():
        with pytest.raises((TypeError, ValueError), match=words) as found:
            fit_with(model, *toy, **QUICK)
        assert "\n" not in str(found.value)
        assert not isinstance(model, nn.Module) or model.training  # as it was


def test_data_that_cannot_be_used_are_one_sentence(toy):
    digits = load("digits")
    for train, words in (
        (digits, r"train must be an ImageDataset\(images, labels\), found Splits.*train"),
        (toy[0].images, r"found Tensor\.$"),
        (DataLoader(toy[0], 10), "found DataLoader"),
        (Subset(toy[0], range(9)), "found Subset"),
    ):
        with pytest.raises(TypeError, match=words):
            fit_with(net(), train, toy[1], **QUICK)
    with pytest.raises(TypeError, match=r"validation must be .*found Tensor"):
        fit_with(net(), toy[0], toy[1].images, **QUICK)
    with pytest.raises(TypeError, match=r"train must be .*found Tensor"):
        fit_with(net(), [toy[0], toy[0].images], toy[1], **QUICK)
    for dataset in (digits, toy[0].images):
        with pytest.raises(TypeError, match=r"^dataset must be an ImageDataset.*, found"):
            evaluate(net(), dataset)
    with pytest.raises(ValueError, match=r"^train must be at least one ImageDataset, found"):
        fit_with(net(), [], toy[1], **QUICK)
    four = ImageDataset(toy[0].images, toy[0].labels % 4, tuple("0123"))
    with pytest.raises(ValueError, match=r"train has the classes 0 1 2 3, validation 0 1 2 3 4"):
        fit_with(net(), four, toy[1], **QUICK)


def test_an_unknown_argument_of_fit_is_named_and_a_field_of_the_recipe_suggests_the_nearest(toy):
    for name in ("checkpoints", "show_progress", "epochs"):
        with pytest.raises(TypeError, match=rf"fit\(\) got an unexpected .* '{name}'"):
            fit(net(), *toy, **{name: 3})
    for name, words in {
        "epoch": "Recipe has no field 'epoch': did you mean 'epochs'?",
        "lr_schedule": "did you mean 'schedule'?",
        "qqq": "Recipe has no field 'qqq': expected one of epochs, ",
    }.items():
        with pytest.raises(TypeError, match=re.escape(words)):
            fit(net(), *toy, Recipe(**{name: 3}))


# Warnings


def test_a_batch_larger_than_the_training_set_is_all_of_it_and_warned_about(tmp_path):
    splits = load(shapes(tmp_path / "marks"))
    train, validation = splits.train, splits.validation
    words = r"batch_size is 512, but there are only 52 training images: an epoch is one step\."
    with pytest.warns(UserWarning, match=words):
        history = fit_with(net(EnhancedNet, 3), train, validation, epochs=100, augment_strength=0.5)
    assert history.validation_accuracy > 0.5
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="batch_size")  # for it is just as large
        fit_with(net(EnhancedNet, 3), train, validation, epochs=1, batch_size=52)


def test_a_batch_larger_than_the_training_set_is_a_warning_at_the_line_that_called_fit(toy):
    with pytest.warns(UserWarning, match="batch_size is 131") as found:
        fit(net(), *toy, Recipe(epochs=2, batch_size=131), progress=False)
    assert found[0].filename == __file__


@pytest.mark.filterwarnings("ignore:batch_size")
def test_the_cause_of_a_short_trainings_failure_is_that_it_is_short(toy):
    class Always(nn.Linear):
        def forward(self, images):
            return super().forward(images) * 0 + torch.eye(10)[3]

    words = r"is too few steps \(6\): try more epochs"
    with pytest.warns(UserWarning, match=words):
        fit_with(Always(784, 10), *toy, epochs=2, batch_size=50)
