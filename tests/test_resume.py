"""A training that was interrupted goes on from its checkpoint to the same bits."""

import os
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import fit_with, full_disk, visible
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from mnist_mlp import EnhancedNet, save_weights
from mnist_mlp.data import ImageDataset

# The toy data are few, and some of these trainings too short to learn anything.
pytestmark = [
    pytest.mark.filterwarnings("ignore:after epoch"),
    pytest.mark.filterwarnings("ignore:batch_size is"),
]

RECIPE = {"epochs": 4, "batch_size": 32, "learning_rate": 0.01}


class Dropping(nn.Module):
    """A small network with dropout and batch norm, which have a state of their own."""

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = share
        self.hidden = nn.Linear(784, 16)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 10)

    def forward(self, images):
        hidden = self.norm(self.hidden(images))
        return self.out(nn.functional.dropout(hidden, self.share, self.training))


def net(kind=EnhancedNet, seed: int = 0):
    torch.manual_seed(seed)
    return kind()


def noise(images, generator):
    return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def rolled(images, generator):
    return images.roll(1, 2)


def halved(optimizer, total_steps):
    return LambdaLR(optimizer, lambda step: 0.5)


class Stopping(ImageDataset):
    """Images that raise an error at a certain batch: the process might as well be dead."""

    at = None
    calls = 0

    def get_batch(self, *arguments):
        Stopping.calls += 1
        if Stopping.calls == self.at:
            raise RuntimeError("gone")
        return super().get_batch(*arguments)


@pytest.fixture
def stop_at(monkeypatch, toy):
    """Return a function that trains until a certain batch is asked for, where an error ends it."""

    def stop(batch, path, model, **recipe):
        monkeypatch.setattr(Stopping, "at", batch)
        monkeypatch.setattr(Stopping, "calls", 0)
        train_set = Stopping(toy[0].images, toy[0].labels)
        with pytest.raises(RuntimeError, match="gone"):
            fit_with(model, train_set, toy[1], checkpoint=path, **recipe)

    return stop


def outcome(model, history):
    """Return everything that must be equal to the bit."""
    epochs = [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]
    weights = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
    return epochs, history.best_epoch, weights


@pytest.mark.parametrize("batch", [1, 6, 9, 18])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (EnhancedNet, {}),
        (EnhancedNet, {"optimizer": "muon"}),
        (EnhancedNet, {"ema_decay": 0.0, "schedule": "constant"}),
        (EnhancedNet, {"optimizer": partial(torch.optim.SGD, momentum=0.9)}),
        (Dropping, {"augment": noise, "ema_decay": 0.5, "precision": "bfloat16"}),
    ],
    ids=["published", "muon", "constant", "sgd", "dropout"],
)
def test_resumed_training_is_bit_identical(toy, tmp_path, stop_at, batch, kind, changes):
    """Stopped at any batch of four epochs of five."""
    recipe = RECIPE | changes
    path = tmp_path / "run.pt"
    model = net(kind)
    expected = outcome(model, fit_with(model, *toy, **recipe))

    stop_at(batch, path, net(kind), **recipe)
    model = net(kind)
    if path.exists():
        torch.manual_seed(99)  # a new process has another state
    assert outcome(model, fit_with(model, *toy, checkpoint=path, **recipe)) == expected


def test_resume_trains_the_missing_epochs_alone(toy, tmp_path, stop_at, monkeypatch):
    path = tmp_path / "run.pt"
    stop_at(13, path, net(), **RECIPE)  # two epochs of five steps are done
    monkeypatch.setattr(Stopping, "at", None)
    monkeypatch.setattr(Stopping, "calls", 0)
    train_set = Stopping(toy[0].images, toy[0].labels)
    called = []
    options = {"checkpoint": path, "on_epoch": lambda history: called.append(len(history.epochs))}
    fit_with(net(), train_set, toy[1], **options, **RECIPE)
    assert Stopping.calls == 10
    assert called == [3, 4]


def test_complete_checkpoint_trains_nothing_and_says_so(toy, tmp_path):
    path = tmp_path / "run.pt"
    trained = net()
    first = fit_with(trained, *toy, checkpoint=path, **RECIPE)
    model = net()
    with pytest.warns(UserWarning, match="nothing was trained"):
        again = fit_with(model, *toy, checkpoint=path, **RECIPE)
    assert outcome(model, again) == outcome(trained, first)


@pytest.mark.parametrize("at", [1, 3])
def test_training_that_on_epoch_stopped_goes_on(toy, tmp_path, at):
    path = tmp_path / "run.pt"
    expected = net()
    whole = fit_with(expected, *toy, **RECIPE)

    stop = {"checkpoint": path, "on_epoch": lambda history: len(history.epochs) == at}
    assert fit_with(net(), *toy, **stop, **RECIPE).stopped
    model = net()
    history = fit_with(model, *toy, checkpoint=path, **RECIPE)
    assert history.stopped == ""
    assert outcome(model, history) == outcome(expected, whole)


# Another training's checkpoint

OTHERS = {
    "learning_rate": {"learning_rate": 0.02},
    "epochs": {"epochs": 5},
    "select": {"select": "last epoch"},
    "network": {"model": net(Dropping)},
    "initial weights": {"model": net(seed=1)},
    "data": {"flip": True},
    "optimizer": {"optimizer": torch.optim.SGD},
    "schedule": {"schedule": CosineAnnealingLR},
    "loss_fn": {"loss_fn": nn.functional.multi_margin_loss},
    "augment": {"augment": rolled},
}


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoint_of_another_training_is_refused_by_name(toy, tmp_path, stop_at, name):
    path = tmp_path / "run.pt"
    stop_at(13, path, net(), **RECIPE)
    before = path.read_bytes()

    changes = dict(OTHERS[name])
    model = changes.pop("model", None) or net()
    untouched = [p.clone() for p in model.parameters()]
    train_set = toy[0]
    if changes.pop("flip", False):
        train_set = replace(train_set, images=train_set.images.flip(0))
    with pytest.raises(ValueError, match=rf"run.pt is the checkpoint of another.*{name}"):
        fit_with(model, train_set, toy[1], checkpoint=path, **RECIPE | changes)
    assert path.read_bytes() == before
    assert all(map(torch.equal, untouched, model.parameters()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"optimizer": torch.optim.SGD}, {"optimizer": partial(torch.optim.SGD, momentum=0.9)}),
        ({"schedule": CosineAnnealingLR}, {"schedule": halved}),
        ({"augment": noise}, {"augment": rolled}),
        ({"loss_fn": nn.MultiMarginLoss()}, {"loss_fn": nn.functional.multi_margin_loss}),
    ],
)
def test_checkpoint_with_another_function_is_refused(toy, tmp_path, one, other):
    path = tmp_path / "run.pt"
    stop = {"checkpoint": path, "on_epoch": lambda history: True}
    fit_with(net(), *toy, **stop, **RECIPE, **one)
    with pytest.raises(ValueError, match=f"another training.*{next(iter(one))}"):
        fit_with(net(), *toy, checkpoint=path, **RECIPE, **other)


def test_checkpoint_of_another_dropout_is_refused(toy, tmp_path):
    path = tmp_path / "run.pt"
    stop = {"checkpoint": path, "on_epoch": lambda history: True}
    fit_with(net(Dropping), *toy, **stop, **RECIPE)
    with pytest.raises(ValueError, match=r"share.*0\.5.*0\.9"):
        fit_with(net(partial(Dropping, 0.9)), *toy, checkpoint=path, **RECIPE)


def test_a_lambda_is_refused_with_a_checkpoint(toy, tmp_path):
    """It has no name that tells it from any other."""
    augment = {"augment": lambda images, generator: images}
    fit_with(net(), *toy, **RECIPE, **augment)
    with pytest.raises(ValueError, match="augment must be a named function"):
        fit_with(net(), *toy, **RECIPE, **augment, checkpoint=tmp_path / "run.pt")


# Files that are no checkpoint, damaged, or cannot be written


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_file_that_is_no_checkpoint_is_left_as_it_is(toy, tmp_path):
    save_weights(net(), tmp_path / "weights.pth")
    (tmp_path / "notes.txt").write_text("not to be lost")
    torch.save({"format": Evil(tmp_path / "trace")}, tmp_path / "evil.pt")
    names = visible(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in ("weights.pth", "notes.txt", "evil.pt"):
        with pytest.raises(ValueError, match=f"{name}.*file of its own"):
            fit_with(net(), *toy, checkpoint=tmp_path / name, **RECIPE)
    assert [(tmp_path / name).read_bytes() for name in visible(tmp_path)] == before
    assert not (tmp_path / "trace").exists()


def test_a_damaged_checkpoint_is_refused_and_nothing_is_changed(toy, tmp_path, stop_at):
    path = tmp_path / "run.pt"
    stop_at(13, path, net(), **RECIPE)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:-1000], bytes(len(content)), b"", bytes(flipped)):
        path.write_bytes(damaged)
        model = net()
        with pytest.raises(ValueError, match=r"run.pt is damaged.*delete this one"):
            fit_with(model, *toy, checkpoint=path, **RECIPE)
        assert all(map(torch.equal, model.parameters(), net().parameters()))
        assert path.read_bytes() == damaged


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(toy, tmp_path):
    expected = net()
    whole = fit_with(expected, *toy, **RECIPE)
    model = net()
    with full_disk(1_000_000), pytest.warns(UserWarning, match="run.pt was not saved"):
        history = fit_with(model, *toy, checkpoint=tmp_path / "run.pt", **RECIPE)
    assert outcome(model, history) == outcome(expected, whole)
    assert visible(tmp_path) == []


def test_without_a_checkpoint_nothing_is_written(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        fit_with(net(), *toy, **RECIPE)
    assert not list(tmp_path.iterdir())
