import copy
import math
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import transforms

from mnist_mlp import train
from mnist_mlp.checkpoint import read_card
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.train import check_settings, default_settings, fit

SETTINGS = {
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 0.01,
    "averaging": 0.9,
    "progress": False,
}


def net(seed: int = 0) -> EnhancedNet:
    torch.manual_seed(seed)
    return EnhancedNet()


def textbook(model, learn, judge, epochs, batch_size, learning_rate, averaging, smoothing, decay):
    """The loop again from its description: one image at a time, each formula written out.

    Returns a dict an epoch with the averaged weights and the same metrics as a history.
    """
    to_input = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    )
    inputs, judged = (torch.stack([to_input(i.numpy()) for i in d.images]) for d in (learn, judge))
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    average, epochs_seen, step = None, [], 0
    total = epochs * math.ceil(len(learn) / batch_size)
    peak = 0.3 * total - 1
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(learn), generator=epoch_generator(0, epoch)).tolist()
        losses, right = [], 0
        for start in range(0, len(order), batch_size):
            # the rate and momentum of the one-cycle schedule, two half cosines
            low, high, last = learning_rate / 25, learning_rate, learning_rate / 25e4
            if step <= peak:
                wave = (1 + math.cos(math.pi * step / peak)) / 2
                rate, beta = high + (low - high) * wave, 0.85 + 0.10 * wave
            else:
                wave = (1 + math.cos(math.pi * (step - peak) / (total - 1 - peak))) / 2
                rate, beta = last + (high - last) * wave, 0.95 - 0.10 * wave
            step += 1
            chosen = order[start : start + batch_size]
            logits = model(inputs[chosen])
            labels = learn.labels[chosen]
            target = torch.full_like(logits, smoothing / 10)
            target[range(len(chosen)), labels] += 1 - smoothing
            each = -(target * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1)
            gradients = torch.autograd.grad(each.mean(), parameters)
            losses += each.tolist()
            right += sum((logits.argmax(1) == labels).tolist())
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    p *= 1 - rate * decay
                    m += (1 - beta) * (g - m)
                    v += 0.001 * (g * g - v)
                    p -= rate * (m / (1 - beta**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                if average is None:
                    average = [p.clone() for p in parameters]
                else:
                    keep = min(averaging, step / (9 + step))
                    average = [
                        keep * a + (1 - keep) * p for a, p in zip(average, parameters, strict=True)
                    ]
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p, a in zip(other.parameters(), average, strict=True):
                p.copy_(a)
            logits = other(judged)
        epochs_seen.append(
            {
                "average": average,
                "loss": sum(losses) / len(losses),
                "accuracy": right / len(losses),
                "validation_loss": float(nn.CrossEntropyLoss()(logits, judge.labels)),
                "validation_accuracy": (logits.argmax(1) == judge.labels).double().mean().item(),
            }
        )
    return epochs_seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_is_the_textbooks_loop(toy):
    """130 images in batches of 64, 64 and 2: a short batch counts by its examples."""
    expected = textbook(net(), *toy, 3, 64, 0.002, 0.9, smoothing=0.1, decay=0.05)
    model = net()
    history = fit(
        model, *toy, **SETTINGS | {"learning_rate": 0.002}, augment=0.0, label_smoothing=0.1,
        weight_decay=0.05,
    )  # fmt: skip
    for record, wanted in zip(history.epochs, expected, strict=True):
        for metric in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
            assert record[metric] == pytest.approx(wanted[metric], rel=1e-4), metric
    best = max(range(3), key=lambda i: (expected[i]["validation_accuracy"], i))
    assert history.best_epoch == best + 1
    for found, wanted in zip(model.parameters(), expected[best]["average"], strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_without_averaging_the_weights_of_the_moment_are_judged_and_kept(toy):
    model = net()
    history = fit(model, *toy, **SETTINGS | {"averaging": 0.0, "epochs": 2}, augment=0.0)
    tiny = net()
    fit(tiny, *toy, **SETTINGS | {"averaging": 1e-30, "epochs": 2}, augment=0.0)
    assert evaluate(model, toy[1]).accuracy == history.validation_accuracy
    for found, wanted in zip(model.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_with_warps_too_what_is_validated_is_the_model_on_the_images_as_they_are(toy):
    model = net()
    history = fit(model, *toy, **SETTINGS, augment=2.0)
    result = evaluate(model, toy[1])
    kept = history.epochs[history.best_epoch - 1]
    assert kept["validation_accuracy"] == history.validation_accuracy == result.accuracy
    assert kept["validation_loss"] == result.loss
    plain = fit(net(), *toy, **SETTINGS, augment=0.0)
    assert plain.epochs[-1]["loss"] < history.epochs[-1]["loss"]  # warped images are harder


def test_it_learns(toy):
    model = net()
    history = fit(model, *toy, **SETTINGS | {"epochs": 15, "learning_rate": 0.003})
    assert history.validation_accuracy > 0.9
    assert evaluate(model, toy[0]).accuracy > 0.9


def test_same_seed_same_bits_and_other_seed_other_bits(toy):
    def weights(seed):
        model = net()
        history = fit(model, *toy, **SETTINGS, seed=seed)
        for record in history.epochs:
            record.pop("seconds")
        return history.epochs, torch.cat([p.flatten() for p in model.parameters()])

    (first, a), (again, b), (_, c) = weights(0), weights(0), weights(1)
    assert first == again
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_model_keeps_the_epoch_that_validated_best(toy, monkeypatch):
    """Of equally good epochs the last: it has seen most."""
    accuracies, states = iter([0.5, 0.9, 0.9, 0.3]), []

    def pretend(model, dataset):
        states.append(copy.deepcopy(model.state_dict()))
        answers = {"predicted": torch.tensor([1, 2]), "loss": 1.0}
        return type("Result", (), answers | {"accuracy": next(accuracies)})

    monkeypatch.setattr(train, "evaluate", pretend)
    model = net()
    history = fit(model, *toy, **SETTINGS | {"epochs": 4})
    assert (history.best_epoch, history.validation_accuracy) == (3, 0.9)
    assert all(torch.equal(states[2][k], v) for k, v in model.state_dict().items())
    assert not torch.equal(states[3]["layer1.weight"], model.layer1.weight)


class Interrupting(ImageDataset):
    """Interrupts, as a person does, when its `at`-th batch is asked for."""

    calls, at = 0, 0

    def __getitems__(self, indices):
        Interrupting.calls += 1
        if Interrupting.calls == Interrupting.at:
            raise KeyboardInterrupt
        return super().__getitems__(indices)


@pytest.mark.parametrize(("at", "epochs_done"), [(1, 0), (2, 0), (4, 1), (8, 2)])
def test_an_interrupt_keeps_the_best_weights_so_far(toy, monkeypatch, at, epochs_done):
    whole_states = []

    def remember(model, dataset):
        whole_states.append(copy.deepcopy(model.state_dict()))
        return evaluate(model, dataset)

    monkeypatch.setattr(train, "evaluate", remember)
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", at)
    learn = Interrupting(toy[0].images, toy[0].labels)
    model = net()
    history = fit(model, learn, toy[1], **SETTINGS)
    assert history.interrupted
    assert len(history.epochs) == epochs_done
    assert 0 <= history.best_epoch <= epochs_done
    if epochs_done:
        kept = whole_states[history.best_epoch - 1]
        assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items())
    assert not fit(model, learn, toy[1], **SETTINGS).interrupted  # and a second run works


@pytest.mark.parametrize(("in_epoch", "stopped"), [(1, "after step 0 of epoch 2 of 3"), (3, "")])
def test_a_signal_while_validating_counts_unless_that_was_the_end(
    toy, monkeypatch, in_epoch, stopped
):
    epochs = iter((1, 2, 3))

    def signalling(model, dataset):
        if next(epochs) == in_epoch:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(model, dataset)

    monkeypatch.setattr(train, "evaluate", signalling)
    history = fit(net(), *toy, **SETTINGS)
    assert (history.stopped, len(history.epochs)) == (stopped, in_epoch)


def test_the_seconds_are_those_of_the_epochs_also_of_one_that_was_interrupted(
    toy, monkeypatch, tmp_path
):
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert [e["seconds"] for e in fit(net(), *toy, **SETTINGS).epochs] == [10, 10, 10]
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", 5)
    learn, path = Interrupting(toy[0].images, toy[0].labels), tmp_path / "run.pt"
    monkeypatch.setattr(train, "SAVE_STEPS", 1)  # the clock is read at each save, too
    assert fit(net(), learn, toy[1], **SETTINGS, checkpoint=path).interrupted
    history = fit(net(), *toy, **SETTINGS, checkpoint=path)
    assert [e["seconds"] for e in history.epochs] == [40, 40, 40]
    assert history.seconds == 120


def test_a_diverging_learning_rate_stops_with_the_step_and_the_cause(toy):
    model = net()
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step \d+ .*learning rate"):
        fit(model, *toy, **SETTINGS | {"learning_rate": 1e6, "epochs": 20})
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_loss_that_is_not_a_number_stops(toy):
    model = net()
    nn.init.constant_(model.layer5.bias, math.nan)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        fit(model, *toy, **SETTINGS)


# What each setting must be, in words; values that are; of the right kind but not; of another kind.
ALLOWED = {
    "epochs": ("a whole number of at least 1", [1, np.int64(3)], [0, -1], [2.5, True, "3"]),
    "batch_size": ("a whole number of at least 1", [1, 1300], [0, -3], [64.0]),
    "learning_rate": (
        "a number above 0", [1e-9, 2, np.float64(0.1)], [0.0, -0.1, math.nan, math.inf], ["fast"],
    ),
    "weight_decay": ("a number of at least 0", [0, 1.5], [-1e-9, math.nan, math.inf], [None]),
    "label_smoothing": ("a number from 0 to below 1", [0, 0.99], [-1e-9, 1, 1.0], ["0.1"]),
    "averaging": ("a number from 0 to below 1", [0, 0.999], [-1e-9, 1, 1.0], [False]),
    "augment": ("a number of at least 0", [0, 1.5], [-1e-9, math.inf], [None]),
    "optimizer": ("'adamw' or 'muon'", ["adamw", "muon"], ["sgd"], [None, 3]),
    "schedule": ("'one-cycle' or 'constant'", ["one-cycle", "constant"], ["cosine"], [None]),
    "elastic": ("a number of at least 0", [0, 1.5], [-1e-9, math.inf], [None]),
    "temperature": ("a number above 0", [1e-9, 20], [0, -1, math.inf], ["warm"]),
    "precision": ("'float32' or 'bfloat16'", ["float32", "bfloat16"], ["float16"], [16]),
    "noise": ("a number from 0 to 1", [0, 1], [-1e-9, 1.001], [None]),
    "seed": ("a whole number of at least 0", [0, 7], [-1], [0.5, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_a_setting_that_cannot_be_meant_is_one_sentence(name):
    words, right, wrong, of_another_kind = ALLOWED[name]
    for value in right:
        check_settings({name: value})
    for error, values in ((ValueError, wrong), (TypeError, of_another_kind)):
        for value in values:
            with pytest.raises(error) as found:
                check_settings({name: value})
            assert str(found.value) == f"{name} must be {words}, found {value!r}."


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"noise": 1.5}])
def test_with_an_absurd_setting_nothing_is_trained(toy, wrong):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="must be"):
        fit(model, *toy, **SETTINGS | wrong)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_default_settings_are_the_arguments_of_fit_and_can_be_meant():
    settings = default_settings()
    assert list(settings) == [
        "epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "averaging",
        "augment", "optimizer", "seed",
    ]  # fmt: skip
    extras = default_settings(extras=True)
    assert set(settings | extras) == set(ALLOWED)
    check_settings(settings | extras)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_without_settings_is_the_recipe_of_the_published_weights(capsys):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (512, 28, 28), dtype=torch.uint8, generator=generator)
    learn = ImageDataset(images, torch.arange(512) % 10)
    history = fit(net(), learn, learn.subset(torch.arange(20)))
    recipe = read_card(Path(__file__).parents[1] / "models" / "enhanced_model.pth")["recipe"]
    assert history.settings == recipe
    assert "Training: 100%" in capsys.readouterr().out


def test_the_bar_shows_the_epochs_the_loss_and_the_validation(toy, capsys):
    last = fit(net(), *toy, **SETTINGS | {"progress": True}).epochs[-1]
    shown = capsys.readouterr().out.split("\r")[-1]
    loss, validation = f"{last['loss']:.3f}", f"{last['validation_accuracy']:.2%}"
    assert re.match(
        rf"Training: 100%.* 3/3 .*(epoch/s|s/epoch), loss={loss}, validation={validation}", shown
    )
    fit(net(), *toy, **SETTINGS)
    assert capsys.readouterr() == ("", "")


def test_the_images_learned_from_are_warped_and_disturbed_as_the_settings_say(toy, monkeypatch):
    calls = []
    for name in ("warp", "disturb"):
        monkeypatch.setattr(
            train, name, lambda x, g, *of, name=name, **too: calls.append((name, of, too)) or x
        )
    fit(net(), *toy, **SETTINGS, augment=0.5, elastic=0.3, noise=0.7)
    assert calls == [("warp", (0.5,), {"elastic": 0.3}), ("disturb", (0.7,), {})] * 9
    calls.clear()
    fit(net(), *toy, **SETTINGS, augment=0.0)
    assert calls == []


def test_the_history_has_the_learning_rate_of_the_schedule(toy):
    history = fit(net(), *toy, **SETTINGS)
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=9)
    for record in history.epochs:
        for _ in range(3):
            optimizer.step()
            schedule.step()
        assert record["learning_rate"] == pytest.approx(schedule.get_last_lr()[0])


def test_in_bfloat16_it_learns_as_well_and_is_validated_in_float32(toy):
    model = net()
    history = fit(model, *toy, **SETTINGS | {"epochs": 20}, precision="bfloat16")
    exact = fit(net(), *toy, **SETTINGS | {"epochs": 20})
    assert history.settings["precision"] == "bfloat16"
    assert [e["loss"] for e in history.epochs] != [e["loss"] for e in exact.epochs]
    for learned in (history, exact):
        assert learned.epochs[-1]["loss"] < learned.epochs[0]["loss"] / 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    judged = evaluate(model, toy[1])
    assert judged.logits.dtype == torch.float32
    assert judged.accuracy == history.validation_accuracy


def test_with_noise_the_images_learned_from_are_disturbed_and_those_validated_are_not(toy):
    settings = SETTINGS | {"augment": 0.0}
    plain, noisy = (fit(net(), *toy, **settings, noise=noise) for noise in (0.0, 1.0))
    assert "noise" not in plain.settings
    assert noisy.epochs[0]["loss"] != plain.epochs[0]["loss"]
    model = net()
    history = fit(model, *toy, **settings, noise=1.0)
    assert evaluate(model, toy[1]).accuracy == history.validation_accuracy


def test_a_model_without_an_output_for_each_class_is_refused(toy):
    with pytest.raises(ValueError, match=r"logits of shape \(N, 10\), one a class, found \(N, 7\)"):
        fit(EnhancedNet(7), *toy, **SETTINGS)


class Exploding(torch.autograd.Function):
    """The identity, with a gradient that is infinite from a certain step on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Exploding.steps += 1
        return gradient * (math.inf if Exploding.steps >= Exploding.at else 1.0)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (2, r"the loss became nan at step 3 of epoch 1.*learning rate \("),
        (3, r"the validation loss is nan after step 3 of epoch 1: .*no use.*learning rate \("),
        (5, r"the loss became nan at step 3 of epoch 2"),
    ],
)
def test_exploding_gradients_stop_with_the_step_and_the_cause(toy, monkeypatch, at, words):
    monkeypatch.setattr(Exploding, "at", at, raising=False)
    monkeypatch.setattr(Exploding, "steps", 0, raising=False)
    model = net()
    model.layer5.register_forward_hook(lambda layer, inputs, output: Exploding.apply(output))
    with pytest.raises(FloatingPointError, match=words):
        fit(model, *toy, **SETTINGS)


@pytest.fixture
def always_3() -> EnhancedNet:
    """A model with one answer to everything, and nothing to unlearn it by."""
    model = net()
    nn.init.constant_(model.layer5.weight, 0.0)
    model.layer5.bias.data[3] = 1e6
    return model


@pytest.mark.parametrize(
    ("epochs", "at", "cause"),
    [(3, 2, "6 steps, 3 an epoch, are too few"), (68, 34, "learning rate")],
)
def test_one_answer_for_all_images_is_noticed_with_the_step_and_the_cause(
    toy, always_3, epochs, at, cause
):
    words = rf"after step 3 of epoch {at} all 50 validation images get the answer '3'.*{cause}"
    with pytest.warns(UserWarning, match=words):
        fit(always_3, *toy, **SETTINGS | {"learning_rate": 1e-9, "epochs": epochs})


def test_one_answer_is_noticed_with_two_classes_too(toy, always_3):
    two = toy[1].subset((toy[1].labels == 3) | (toy[1].labels == 5))
    with pytest.warns(UserWarning, match="get the answer '3'"):
        fit(always_3, toy[0], two, **SETTINGS | {"learning_rate": 1e-9})


def test_one_answer_is_a_warning_at_the_line_that_called_fit(toy, always_3):
    with pytest.warns(UserWarning, match="get the answer '3'") as found:
        fit(always_3, *toy, **SETTINGS | {"learning_rate": 1e-9})
    assert {warning.filename for warning in found} == {__file__}


@pytest.mark.filterwarnings("error")
def test_one_answer_is_right_where_there_is_one_class(toy):
    ones = toy[1].subset(toy[1].labels == 3)
    fit(net(), toy[0], ones, **SETTINGS)
