"""An interrupted training continues from its checkpoint, and ends with the same bits."""

import itertools
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import full_disk, visible
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from mnist_mlp import EnhancedNet, Recipe, fit, save_weights
from mnist_mlp.data import ImageDataset

# The toy data set is small, and some of these runs too short to learn anything.
pytestmark = [
    pytest.mark.filterwarnings("ignore:after epoch"),
    pytest.mark.filterwarnings("ignore:batch_size is"),
    pytest.mark.filterwarnings("ignore:train has teacher logits"),
]

# The toy data have 130 images: an epoch is five batches.
RECIPE = Recipe(epochs=4, batch_size=32, learning_rate=0.01, precision="float32")


class DropoutNet(nn.Module):
    """A small network with dropout, which draws random numbers, and batch norm, which counts."""

    def __init__(self, dropout_rate: float = 0.5):
        super().__init__()
        self.dropout_rate = dropout_rate
        self.hidden1 = nn.Linear(784, 16)
        self.norm = nn.BatchNorm1d(16)
        self.hidden2 = nn.Linear(16, 16)
        self.out = nn.Linear(16, 10)

    def forward(self, images):
        hidden = self.norm(self.hidden1(images)).relu()
        hidden = nn.functional.dropout(hidden, self.dropout_rate, self.training)
        return self.out(self.hidden2(hidden))


def dropout_net(seed: int = 0) -> DropoutNet:
    torch.manual_seed(seed)
    return DropoutNet()


def enhanced_net() -> EnhancedNet:
    torch.manual_seed(0)
    return EnhancedNet()


def add_noise(images, generator):
    return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def roll(images, generator):
    return images.roll(1, 2)


def halve(optimizer, total_steps):
    return LambdaLR(optimizer, lambda step: 0.5)


def crashing(dataset: ImageDataset, at_batch: int) -> ImageDataset:
    """Return a training set that raises an error when it is asked for the batch of this number."""
    batch_numbers = itertools.count(1)

    class Crashing(ImageDataset):
        def get_batch(self, *arguments):
            if next(batch_numbers) == at_batch:
                raise RuntimeError("crash")
            return super().get_batch(*arguments)

    return Crashing(dataset.images, dataset.labels)


@pytest.fixture
def checkpoint(toy, tmp_path):
    """The checkpoint of a training that crashed in its third epoch."""
    train, validation = toy
    path = tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match="crash"):
        fit(dropout_net(), crashing(train, at_batch=13), validation, RECIPE, checkpoint=path)
    return path


def outcome(model, history):
    """Return everything that must be equal to the bit."""
    epochs = []
    for epoch in history.epochs:
        epochs.append({name: value for name, value in epoch.items() if name != "seconds"})
    weights = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
    return epochs, history.best_epoch, history.stopped, weights


@pytest.mark.parametrize(
    ("new_net", "recipe", "functions", "at_batch"),
    [
        (dropout_net, RECIPE, {}, 3),
        (enhanced_net, RECIPE, {}, 18),
        (dropout_net, replace(RECIPE, optimizer="muon"), {}, 13),
        (dropout_net, replace(RECIPE, ema_decay=0.0, schedule="constant"), {}, 6),
        (dropout_net, RECIPE, {"optimizer": partial(torch.optim.SGD, momentum=0.9)}, 11),
        (
            dropout_net,
            replace(RECIPE, ema_decay=0.5, precision="bfloat16"),
            {"augment": add_noise, "schedule": CosineAnnealingLR},
            20,
        ),
    ],
    ids=["no checkpoint yet", "published recipe", "muon", "no average", "sgd", "bfloat16"],
)
def test_resumed_training_is_bit_identical(toy, tmp_path, new_net, recipe, functions, at_batch):
    train, validation = toy
    path = tmp_path / "run.pt"
    model = new_net()
    expected = outcome(model, fit(model, train, validation, recipe, **functions))

    train_until_crash = crashing(train, at_batch)
    with pytest.raises(RuntimeError, match="crash"):
        fit(new_net(), train_until_crash, validation, recipe, checkpoint=path, **functions)
    model = new_net()
    # Without a checkpoint the run starts anew and needs the same seed.
    if path.exists():
        torch.manual_seed(99)  # a new process has another random state
    history = fit(model, train, validation, recipe, checkpoint=path, **functions)

    assert outcome(model, history) == expected


def test_complete_checkpoint_trains_nothing_and_says_so(toy, tmp_path):
    trained = dropout_net()
    first = fit(trained, *toy, RECIPE, checkpoint=tmp_path / "run.pt")

    model = dropout_net()
    with pytest.warns(UserWarning, match="nothing was trained"):
        again = fit(model, *toy, RECIPE, checkpoint=tmp_path / "run.pt")

    assert outcome(model, again) == outcome(trained, first)


def test_training_that_on_epoch_stopped_continues(toy, tmp_path):
    path = tmp_path / "run.pt"
    expected = dropout_net()
    whole = fit(expected, *toy, RECIPE)
    epochs = []

    def record_epoch(history):
        epochs.append(len(history.epochs))

    assert fit(dropout_net(), *toy, RECIPE, checkpoint=path, on_epoch=lambda h: True).stopped
    model = dropout_net()
    history = fit(model, *toy, RECIPE, checkpoint=path, on_epoch=record_epoch)

    assert epochs == [2, 3, 4]
    assert outcome(model, history) == outcome(expected, whole)


def test_training_that_on_step_stopped_continues_after_its_last_epoch(toy, tmp_path):
    """The steps are counted over the whole training: an epoch has five."""
    path = tmp_path / "run.pt"
    expected = dropout_net()
    whole = fit(expected, *toy, RECIPE)
    steps = []

    def stop(step, loss, gradient_norm):
        return step == 7

    def record_step(step, loss, gradient_norm):
        steps.append(step)

    stopped = fit(dropout_net(), *toy, RECIPE, checkpoint=path, on_step=stop)
    assert stopped.stopped == "in epoch 2 of 4"
    model = dropout_net()
    history = fit(model, *toy, RECIPE, checkpoint=path, on_step=record_step)

    assert steps == list(range(5, 20))
    assert outcome(model, history) == outcome(expected, whole)


# The checkpoint of another training


def assert_refused(checkpoint, match, model, train, validation, recipe=RECIPE, **functions):
    """Assert that `fit` refuses the checkpoint, and changes neither it nor the model."""
    content = checkpoint.read_bytes()
    weights = [tensor.clone() for tensor in model.state_dict().values()]

    with pytest.raises(ValueError, match=match):
        fit(model, train, validation, recipe, checkpoint=checkpoint, **functions)

    assert checkpoint.read_bytes() == content
    assert all(map(torch.equal, model.state_dict().values(), weights))


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.02}, {"clip_norm": 1.0}, {"epochs": 5}, {"select": "last epoch"}],
)
def test_fit_refuses_a_checkpoint_of_another_recipe(toy, checkpoint, change):
    recipe = replace(RECIPE, **change)

    assert_refused(checkpoint, next(iter(change)), dropout_net(), *toy, recipe)


def test_fit_refuses_a_checkpoint_of_another_network(toy, checkpoint):
    torch.manual_seed(0)
    more_dropout = DropoutNet(0.9)

    assert_refused(checkpoint, "network", enhanced_net(), *toy)
    assert_refused(checkpoint, "initial weights", dropout_net(seed=1), *toy)
    assert_refused(checkpoint, r"dropout_rate.*0\.5.*0\.9", more_dropout, *toy)


def test_fit_refuses_a_checkpoint_of_other_data(toy, checkpoint):
    train, validation = toy
    flipped = replace(train, images=train.images.flip(0))
    relabelled = replace(validation, labels=validation.labels.flip(0))
    taught = replace(train, teacher_logits=torch.zeros(130, 10))

    assert_refused(checkpoint, "data", dropout_net(), flipped, validation)
    assert_refused(checkpoint, "data", dropout_net(), train, relabelled)
    assert_refused(checkpoint, "data", dropout_net(), taught, validation)


@pytest.mark.parametrize(
    ("argument", "saved", "other"),
    [
        ("optimizer", torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)),
        ("schedule", CosineAnnealingLR, halve),
        ("augment", add_noise, roll),
        ("loss_fn", nn.MultiMarginLoss(), nn.functional.multi_margin_loss),
    ],
)
def test_fit_refuses_a_checkpoint_of_another_function(toy, tmp_path, argument, saved, other):
    path = tmp_path / "run.pt"
    functions = {argument: saved}
    fit(dropout_net(), *toy, RECIPE, checkpoint=path, on_epoch=lambda history: True, **functions)

    assert_refused(path, argument, dropout_net(), *toy, **{argument: other})


def weighted(weight):
    """Return a loss whose name does not depend on the weight."""

    def loss(logits, labels):
        return weight * nn.functional.cross_entropy(logits, labels)

    return loss


@pytest.mark.parametrize(
    ("same", "saved", "other"),
    [
        (lambda images, generator: images, lambda images, generator: images, roll),
        (weighted(2.0), weighted(2.0), weighted(3.0)),
        (
            nn.CrossEntropyLoss(torch.arange(1.0, 11.0)),
            nn.CrossEntropyLoss(torch.arange(1.0, 11.0)),
            nn.CrossEntropyLoss(torch.arange(2.0, 12.0)),
        ),
    ],
    ids=["lambda", "enclosed value", "weights of an object"],
)
def test_functions_are_compared_by_what_they_compute(toy, tmp_path, same, saved, other):
    path = tmp_path / "run.pt"
    argument = "augment" if other is roll else "loss_fn"
    stopped = {"checkpoint": path, "on_epoch": lambda history: True}
    fit(dropout_net(), *toy, RECIPE, **stopped, **{argument: saved})

    assert_refused(path, argument, dropout_net(), *toy, **{argument: other})
    fit(dropout_net(), *toy, RECIPE, checkpoint=path, **{argument: same})


def test_fit_refuses_a_checkpoint_of_an_edited_network(toy, checkpoint, monkeypatch):
    """The layers and the initial weights are those of before."""

    def forward(self, images):
        hidden = self.norm(self.hidden1(images)).tanh()
        return self.out(self.hidden2(hidden))

    monkeypatch.setattr(DropoutNet, "forward", forward)

    assert_refused(checkpoint, "network", dropout_net(), *toy)


def test_fit_refuses_a_checkpoint_of_an_edited_loop(toy, checkpoint, monkeypatch):
    monkeypatch.setattr("mnist_mlp.train.update_average", lambda *args, **kwargs: None)
    assert_refused(checkpoint, "fit was", dropout_net(), *toy)


def test_trainings_from_other_initial_weights_do_not_share_a_checkpoint(toy, checkpoint):
    for seed in (1, 2, 3):
        assert_refused(checkpoint, "initial weights", dropout_net(seed), *toy)


def test_history_keeps_its_epochs_if_a_checkpoint_is_refused(toy, checkpoint):
    history = fit(dropout_net(), *toy, RECIPE)
    before = list(history.epochs)

    assert_refused(checkpoint, "initial weights", dropout_net(1), *toy, history=history)

    assert history.epochs == before


# Files that are no checkpoint, are damaged, or cannot be written


class Evil:
    """Makes a folder if it is ever unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_fit_leaves_a_file_that_is_no_checkpoint(toy, tmp_path):
    save_weights(dropout_net(), tmp_path / "weights.pth")
    (tmp_path / "notes.txt").write_text("not to be lost")
    torch.save({"format": Evil(tmp_path / "trace")}, tmp_path / "evil.pt")

    for name in ("weights.pth", "notes.txt", "evil.pt"):
        assert_refused(tmp_path / name, f"{name}.*file of its own", dropout_net(), *toy)
    assert not (tmp_path / "trace").exists()


def test_fit_refuses_a_damaged_checkpoint(toy, checkpoint):
    content = checkpoint.read_bytes()
    flipped_bit = bytearray(content)
    flipped_bit[len(content) // 2] ^= 1

    for damaged in (content[:-1000], bytes(len(content)), b"", bytes(flipped_bit)):
        checkpoint.write_bytes(damaged)
        assert_refused(checkpoint, "run.pt is damaged.*delete this one", dropout_net(), *toy)


def test_full_disk_costs_the_checkpoint_and_not_the_training(toy, tmp_path):
    expected = dropout_net()
    whole = fit(expected, *toy, RECIPE)

    model = dropout_net()
    with full_disk(10_000), pytest.warns(UserWarning, match="run.pt was not saved"):
        history = fit(model, *toy, RECIPE, checkpoint=tmp_path / "run.pt")

    assert outcome(model, history) == outcome(expected, whole)
    assert visible(tmp_path) == []


def test_fit_refuses_a_checkpoint_of_another_teacher(toy, tmp_path):
    train, validation = toy
    taught = replace(train, teacher_logits=torch.zeros(130, 10))
    taught_otherwise = replace(train, teacher_logits=torch.eye(130, 10))
    path = tmp_path / "run.pt"

    fit(dropout_net(), taught, validation, RECIPE, checkpoint=path)

    assert_refused(path, "data", dropout_net(), taught_otherwise, validation)


def test_fit_refuses_a_checkpoint_of_other_words_in_the_network(toy, tmp_path):
    path = tmp_path / "run.pt"
    network = dropout_net()
    network.activation = "relu"
    fit(network, *toy, RECIPE, checkpoint=path)

    other_network = dropout_net()
    other_network.activation = "tanh"
    assert_refused(path, "activation", other_network, *toy)
