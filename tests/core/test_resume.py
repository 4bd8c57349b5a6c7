import os
import signal
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import fit_with, full_disk, visible
from torch import nn

from mnist_mlp import train
from mnist_mlp.data import ImageDataset
from mnist_mlp.model import EnhancedNet
from mnist_mlp.storage.checkpoint import MARK, TrainingCheckpoint, deferred_signals
from mnist_mlp.storage.weights import read_tensors

RECIPE = {"epochs": 4, "batch_size": 32, "learning_rate": 0.01}


class Dropping(nn.Module):
    """A small network with dropout and batch norm, which have a state of their own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)
        )

    def forward(self, images):
        return self.layers(images)


def net(kind=EnhancedNet):
    torch.manual_seed(0)
    return kind()


def noise(images, generator):
    return (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


class Stopping(ImageDataset):
    """Images that raise an error at a certain batch: the process might as well be dead."""

    at = None
    batches = 0

    def __getitems__(self, indices, augment=None):
        if len(indices) > 1:
            Stopping.batches += 1
            if Stopping.batches == self.at:
                raise RuntimeError("gone")
        return super().__getitems__(indices, augment)


@pytest.fixture
def stop_at(monkeypatch, toy):
    """A function to train until a certain batch is asked for, at which an error ends it."""

    def stop(batch, path, model, **recipe):
        monkeypatch.setattr(Stopping, "at", batch)
        monkeypatch.setattr(Stopping, "batches", 0)
        train_set = Stopping(toy[0].images, toy[0].labels)
        with pytest.raises(RuntimeError, match="gone"):
            fit_with(model, train_set, toy[1], checkpoint=path, **recipe)

    return stop


def outcome(model, history):
    epochs = [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]
    return (
        epochs,
        history.best_epoch,
        [t.numpy().tobytes() for t in model.state_dict().values()],
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("batch", [1, 2, 5, 6, 9, 18, 20])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (EnhancedNet, {}),
        (EnhancedNet, {"optimizer": "muon"}),
        (EnhancedNet, {"ema_decay": 0.0, "schedule": "constant"}),
        (Dropping, {"augment": noise, "ema_decay": 0.5, "precision": "bfloat16"}),
    ],
    ids=["published", "muon", "constant", "dropout"],
)
def test_resumed_is_uninterrupted_bit_for_bit(
    toy, tmp_path, stop_at, monkeypatch, batch, kind, changes
):
    """Stopped at any batch of 4 epochs of 5, saved after every two steps and every epoch."""
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    recipe, path = RECIPE | changes, tmp_path / "run.pt"
    model = net(kind)
    expected = outcome(model, fit_with(model, *toy, **recipe))
    stop_at(batch, path, net(kind), **recipe)
    model = net(kind)
    torch.manual_seed(99)  # a new process has another state
    history = fit_with(model, *toy, checkpoint=path, **recipe)
    found = outcome(model, history)
    if batch > 2:  # else there is nothing to go on from, and dropout has drawn other numbers
        assert found == expected
    elif kind is EnhancedNet:
        assert found[:3] == expected[:3]
    assert len(history.epochs) == 4


def test_it_goes_on_and_does_not_begin_anew(toy, tmp_path, stop_at, monkeypatch):
    stop_at(13, tmp_path / "run.pt", net(), **RECIPE)  # two epochs of five steps are done
    monkeypatch.setattr(Stopping, "at", None)
    monkeypatch.setattr(Stopping, "batches", 0)
    train_set = Stopping(toy[0].images, toy[0].labels)
    fit_with(net(), train_set, toy[1], checkpoint=tmp_path / "run.pt", **RECIPE)
    assert Stopping.batches == 10
    history = fit_with(net(), train_set, toy[1], checkpoint=tmp_path / "run.pt", **RECIPE)
    assert Stopping.batches == 10  # completed: nothing left to do
    assert len(history.epochs) == 4


def test_a_damaged_file_is_set_aside_and_the_one_before_it_taken(toy, tmp_path, stop_at):
    model, path = net(), tmp_path / "run.pt"
    expected = outcome(model, fit_with(model, *toy, **RECIPE))
    stop_at(13, path, net(), **RECIPE)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    model = net()
    with pytest.warns(UserWarning, match=r"run.pt is damaged and now .*run.pt.damaged"):
        assert outcome(model, fit_with(model, *toy, checkpoint=path, **RECIPE)) == expected
    assert (tmp_path / "run.pt.damaged").read_bytes() == content[:-1000]


def test_with_both_files_damaged_it_begins_anew(toy, tmp_path, stop_at):
    model, path = net(), tmp_path / "run.pt"
    expected = outcome(model, fit_with(model, *toy, **RECIPE))
    stop_at(13, path, net(), **RECIPE)
    path.write_bytes(b"")
    path.with_name("run.pt.previous").write_bytes(b"PK")
    model = net()
    with pytest.warns(UserWarning, match="is damaged"):
        found = outcome(model, fit_with(model, *toy, checkpoint=path, **RECIPE))
    assert found[:3] == expected[:3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.02}, r"learning_rate was 0\.01, is 0\.02"),
        ({"epochs": 5, "seed": 1}, r"(?=.*epochs was 4, is 5)(?=.*seed was 0, is 1)"),
        ({"keep": "last"}, r"keep was 'best', is 'last'"),
        ({"kind": Dropping}, "model was 'EnhancedNet: .*, is 'Dropping"),
        ({"data": True}, r"data \(SHA-256\) was"),
        ({"threads": True}, "threads was"),
    ],
)
def test_another_training_is_refused_and_what_differs_is_named(
    toy, tmp_path, stop_at, monkeypatch, change, words
):
    change = dict(change)
    path = tmp_path / "run.pt"
    stop_at(13, path, net(), **RECIPE)
    before = path.read_bytes()
    model = net(change.pop("kind", EnhancedNet))
    untouched = [p.clone() for p in model.parameters()]
    train_set = toy[0]
    if change.pop("data", False):
        train_set = ImageDataset(train_set.images.flip(0), train_set.labels)
    if change.pop("threads", False):
        threads = torch.get_num_threads()
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(ValueError, match=rf"run.pt is the checkpoint of another.*{words}"):
        fit_with(model, train_set, toy[1], checkpoint=path, **RECIPE | change)
    assert path.read_bytes() == before
    assert all(map(torch.equal, untouched, model.parameters()))


def test_a_private_attribute_of_the_model_is_no_setting(toy, tmp_path, stop_at):
    path, model = tmp_path / "run.pt", net()
    stop_at(13, path, net(), **RECIPE)
    model._seen = 7
    assert len(fit_with(model, *toy, checkpoint=path, **RECIPE).epochs) == RECIPE["epochs"]


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_pickle_in_its_place_is_not_run(toy, tmp_path):
    path, trace = tmp_path / "run.pt", tmp_path / "trace"
    torch.save({"fingerprint": Evil(trace)}, path)
    with pytest.raises(
        ValueError, match="exists and is not a training checkpoint: it is left as it is"
    ):
        fit_with(net(), *toy, checkpoint=path, **RECIPE | {"epochs": 1})
    torch.save({"fingerprint": Evil(trace), MARK.decode(): True}, path)  # of one who knows ours
    with pytest.warns(UserWarning, match="holds pickled objects, which may run code"):
        fit_with(net(), *toy, checkpoint=path, **RECIPE | {"epochs": 1})
    assert not trace.exists()
    torch.load(path.with_name("run.pt.damaged"), weights_only=False)  # and it is a trap indeed
    assert trace.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(toy, tmp_path):
    model = net()
    expected = outcome(model, fit_with(model, *toy, **RECIPE))
    model = net()
    words = r"run.pt was not saved: .*too large.* Training goes on"
    with full_disk(1_000_000), pytest.warns(UserWarning, match=words):
        found = outcome(model, fit_with(model, *toy, checkpoint=tmp_path / "run.pt", **RECIPE))
    assert found == expected
    assert visible(tmp_path) == []


def test_two_trainings_do_not_share_a_file(toy, tmp_path):
    other = TrainingCheckpoint(tmp_path / "run.pt", state=None, identity=dict)
    with other.locked(), pytest.raises(OSError, match=r"run.pt is in use by another training"):
        fit_with(net(), *toy, checkpoint=tmp_path / "run.pt", **RECIPE)
    fit_with(net(), *toy, checkpoint=tmp_path / "run.pt", **RECIPE)


def test_what_a_killed_process_left_is_cleared_away(toy, tmp_path):
    (tmp_path / ".run.pt.abc.tmp").write_bytes(b"half")
    fit_with(net(), *toy, checkpoint=tmp_path / "run.pt", **RECIPE | {"epochs": 2})
    assert visible(tmp_path) == ["run.pt", "run.pt.previous"]


class Signalling(ImageDataset):
    """Images that send this process a signal when a certain batch is asked for."""

    def __getitems__(self, indices, augment=None):
        if len(indices) > 1:
            Signalling.batches += 1
            if Signalling.batches == 8:
                signal.raise_signal(Signalling.number)
        return super().__getitems__(indices, augment)


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_its_step_and_a_second_run_goes_on(
    toy, tmp_path, monkeypatch, capsys, number
):
    model = net()
    expected = outcome(model, fit_with(model, *toy, **RECIPE))
    monkeypatch.setattr(Signalling, "number", number, raising=False)
    monkeypatch.setattr(Signalling, "batches", 0, raising=False)
    before = signal.getsignal(number)
    train_set, model = Signalling(toy[0].images, toy[0].labels), net()
    path = tmp_path / "run.pt"
    history = fit_with(model, train_set, toy[1], checkpoint=path, **RECIPE, progress=True)
    assert history.stopped == "after step 3 of epoch 2 of 4"
    words = "Stopped after step 3 of epoch 2 of 4; the weights are those of epoch 1."
    assert words in capsys.readouterr().out
    assert (len(history.epochs), history.best_epoch) == (1, 1)
    assert not model.training
    assert signal.getsignal(number) is before
    assert read_tensors(path)["state"]["totals"]["steps"] == 3
    model = net()
    history = fit_with(model, *toy, checkpoint=path, **RECIPE, progress=True)
    assert outcome(model, history) == expected
    assert not history.stopped
    shown = capsys.readouterr().out.split("\r")
    assert "Training:  25%" in shown[1]  # the bar too goes on
    assert " 4/4 " in shown[-1]


def test_a_signal_that_the_process_ignores_stays_ignored(toy, monkeypatch):
    monkeypatch.setattr(Signalling, "number", signal.SIGINT, raising=False)
    monkeypatch.setattr(Signalling, "batches", 0, raising=False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train_set = Signalling(toy[0].images, toy[0].labels)
        assert len(fit_with(net(), train_set, toy[1], **RECIPE).epochs) == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_second_signal_acts_at_once():
    with pytest.raises(KeyboardInterrupt), deferred_signals() as signals:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not reached")


def test_outside_the_main_thread_too_it_trains(toy):
    found = []
    thread = threading.Thread(target=lambda: found.append(fit_with(net(), *toy, **RECIPE)))
    thread.start()
    thread.join()
    assert len(found[0].epochs) == 4


def test_without_a_checkpoint_nothing_is_written(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        fit_with(net(), *toy, **RECIPE)
    assert not list(tmp_path.iterdir())


def test_without_averaging_there_is_no_average_to_save(toy, tmp_path):
    fit_with(net(), *toy, checkpoint=tmp_path / "run.pt", **RECIPE | {"ema_decay": 0.0})
    state = read_tensors(tmp_path / "run.pt")["state"]
    of_the_epochs = {"epochs", "best_epoch", "best_weights", "totals", "generator"}
    assert set(state) == {"model", "optimizer", "scheduler"} | of_the_epochs


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("change", [{"mean": 0.5}, {"std": 0.5}])
def test_another_normalisation_is_another_training(toy, tmp_path, stop_at, part, change):
    path = tmp_path / "run.pt"
    stop_at(13, path, net(), **RECIPE)
    before = path.read_bytes()
    parts = dict(zip(("train", "validation"), toy, strict=True))
    parts[part] = replace(parts[part], **change)
    with pytest.raises(ValueError, match=r"train is normalised by mean .*, validation by mean"):
        fit_with(net(), parts["train"], parts["validation"], checkpoint=path, **RECIPE)
    parts = {name: replace(each, **change) for name, each in parts.items()}
    with pytest.raises(ValueError, match=r"checkpoint of another training: data \(SHA-256\) was"):
        fit_with(net(), parts["train"], parts["validation"], checkpoint=path, **RECIPE)
    assert path.read_bytes() == before


def test_a_training_with_another_normalisation_goes_on_from_its_own_checkpoint(toy, tmp_path):
    parts, path = [replace(part, mean=0.5, std=0.25) for part in toy], tmp_path / "run.pt"
    model = net()
    expected = outcome(model, fit_with(model, *parts, **RECIPE))
    stop = {"on_epoch": lambda history: True, "checkpoint": path}
    assert fit_with(net(), *parts, **RECIPE, **stop).stopped
    model = net()
    assert outcome(model, fit_with(model, *parts, checkpoint=path, **RECIPE)) == expected


@pytest.mark.parametrize("at", [1, 3])
def test_a_training_that_on_epoch_stopped_goes_on_to_the_same_bits(toy, tmp_path, at):
    model, path = net(), tmp_path / "run.pt"
    expected = outcome(model, fit_with(model, *toy, **RECIPE))

    def stop(history):
        return len(history.epochs) == at

    history = fit_with(net(), *toy, checkpoint=path, on_epoch=stop, **RECIPE)
    assert (len(history.epochs), history.stopped) == (at, f"after step 0 of epoch {at + 1} of 4")
    model, calls = net(), []
    torch.manual_seed(99)  # a new process has another state
    history = fit_with(
        model, *toy, checkpoint=path, on_epoch=lambda h: calls.append(len(h.epochs)), **RECIPE
    )
    assert outcome(model, history) == expected
    assert history.stopped == ""
    assert calls == list(range(at + 1, 5))  # for the epochs that this call has trained
