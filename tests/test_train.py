"""The training loop: what it computes, what is yours in it, and how it ends."""

import copy
import math
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fit_with
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

import mnist_mlp.train
from mnist_mlp import EnhancedNet, History, Recipe, evaluate, fit
from mnist_mlp.data import ImageDataset, Splits, epoch_generator

# The toy data are few, and some of these trainings too short to learn anything.
pytestmark = [
    pytest.mark.filterwarnings("ignore:after epoch"),
    pytest.mark.filterwarnings("ignore:batch_size is"),
]

RECIPE = {"epochs": 3, "batch_size": 64, "learning_rate": 0.01, "ema_decay": 0.9}


def net(seed: int = 0) -> EnhancedNet:
    torch.manual_seed(seed)
    return EnhancedNet()


def same_weights(model, other) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


# The loop, compared with formulas


def textbook(model, train_set, validation, epochs, batch_size, lr, ema_decay, smoothing, decay):
    """Train again from the description: one image at a time, each formula written out.

    Returns a dict per epoch with the averaged weights and the same metrics as a history.
    """
    to_input = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    )
    inputs = torch.stack([to_input(image.numpy()) for image in train_set.images])
    validation_inputs = torch.stack([to_input(image.numpy()) for image in validation.images])
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    average = None
    epochs_seen = []
    step = 0
    total = epochs * math.ceil(len(train_set) / batch_size)
    peak = 0.3 * total - 1

    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(train_set), generator=epoch_generator(0, epoch)).tolist()
        losses = []
        n_correct = 0

        for start in range(0, len(order), batch_size):
            # The rate and momentum of the one-cycle schedule: two half cosines.
            low, high, last = lr / 25, lr, lr / 25e4
            if step <= peak:
                wave = (1 + math.cos(math.pi * step / peak)) / 2
                rate = high + (low - high) * wave
                beta = 0.85 + 0.10 * wave
            else:
                wave = (1 + math.cos(math.pi * (step - peak) / (total - 1 - peak))) / 2
                rate = last + (high - last) * wave
                beta = 0.95 - 0.10 * wave
            step += 1

            chosen = order[start : start + batch_size]
            logits = model(inputs[chosen])
            labels = train_set.labels[chosen]
            target = torch.full_like(logits, smoothing / 10)
            target[range(len(chosen)), labels] += 1 - smoothing
            each = -(target * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1)
            gradients = torch.autograd.grad(each.mean(), parameters)
            losses += each.tolist()
            n_correct += sum((logits.argmax(1) == labels).tolist())

            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    p *= 1 - rate * decay
                    m += (1 - beta) * (g - m)
                    v += 0.001 * (g * g - v)
                    p -= rate * (m / (1 - beta**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                if average is None:
                    average = [p.clone() for p in parameters]
                else:
                    share = min(ema_decay, step / (9 + step))
                    average = [
                        share * a + (1 - share) * p
                        for a, p in zip(average, parameters, strict=True)
                    ]

        averaged = copy.deepcopy(model)
        with torch.no_grad():
            for p, a in zip(averaged.parameters(), average, strict=True):
                p.copy_(a)
            logits = averaged(validation_inputs)
        hits = logits.argmax(1) == validation.labels
        epochs_seen.append(
            {
                "average": average,
                "loss": sum(losses) / len(losses),
                "accuracy": n_correct / len(losses),
                "validation_loss": float(nn.CrossEntropyLoss()(logits, validation.labels)),
                "validation_accuracy": hits.double().mean().item(),
            }
        )
    return epochs_seen


def test_fit_is_the_textbook_loop(toy):
    """130 images in batches of 64, 64 and 2: a short batch counts by its examples."""
    expected = textbook(net(), *toy, 3, 64, 0.002, 0.9, smoothing=0.1, decay=0.05)
    model = net()
    changes = {"learning_rate": 0.002, "label_smoothing": 0.1, "weight_decay": 0.05}
    history = fit_with(model, *toy, **RECIPE | changes, augment_strength=0.0)

    for record, wanted in zip(history.epochs, expected, strict=True):
        for metric in wanted.keys() - {"average"}:
            assert record[metric] == pytest.approx(wanted[metric], rel=1e-4), metric
    best = max(range(3), key=lambda i: (expected[i]["validation_accuracy"], i))
    assert history.best_epoch == best + 1
    for actual, wanted in zip(model.parameters(), expected[best]["average"], strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=1e-4)


def test_fit_calls_backward_once_per_step(toy, monkeypatch):
    calls = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: calls.append(1) or backward(loss))
    fit_with(net(), *toy, **RECIPE, precision="auto")
    assert len(calls) == 9


def test_fit_trains_with_an_edited_forward(toy, monkeypatch):
    """Whoever edits the network sees the effect in the training, not only afterwards."""
    expected = net()
    fit_with(expected, *toy, **RECIPE)
    forward = EnhancedNet.forward
    monkeypatch.setattr(EnhancedNet, "forward", lambda self, images: forward(self, -images))
    model = net()
    history = fit_with(model, *toy, **RECIPE)
    assert not same_weights(model, expected)
    assert history.validation_accuracy == evaluate(model, toy[1]).accuracy


def test_fit_trains_with_an_edited_loop(toy):
    """Clipping added before `optimizer.step()` keeps the weights where they were."""
    source = Path(mnist_mlp.train.__file__).read_text(encoding="utf-8")
    step = "        optimizer.step()\n"
    assert source.count(step) == 1
    clipped = "        nn.utils.clip_grad_norm_(model.parameters(), 0.0)\n" + step
    edited = {"__name__": "edited"}
    exec(compile(source.replace(step, clipped), "edited.py", "exec"), edited)

    start = net()
    plain = net()
    model = net()
    recipe = Recipe(**RECIPE, weight_decay=0.0, precision="float32")
    fit(plain, *toy, recipe, progress=False)
    edited["fit"](model, *toy, recipe, progress=False)
    assert same_weights(model, start)
    assert not same_weights(plain, start)


def test_fit_without_averaging_returns_the_weights_themselves(toy):
    model = net()
    step_by_hand = net()
    recipe = {"epochs": 1, "batch_size": 130, "ema_decay": 0.0, "augment_strength": 0.0}
    sgd = {"schedule": "constant", "optimizer": torch.optim.SGD, "weight_decay": 0.0}
    fit_with(model, *toy, **recipe, **sgd, learning_rate=0.1)

    order = torch.randperm(130, generator=epoch_generator(0, 1))
    images, labels, _ = toy[0].get_batch(order)
    nn.functional.cross_entropy(step_by_hand(images), labels).backward()
    for weight, start in zip(model.parameters(), step_by_hand.parameters(), strict=True):
        torch.testing.assert_close(weight, start - 0.1 * start.grad, atol=1e-6, rtol=1e-5)


def test_fit_validates_the_model_on_unwarped_images(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE, augment_strength=2.0)
    result = evaluate(model, toy[1])
    best = history.epochs[history.best_epoch - 1]
    assert best["validation_accuracy"] == history.validation_accuracy == result.accuracy
    assert best["validation_loss"] == result.loss
    plain = fit_with(net(), *toy, **RECIPE, augment_strength=0.0)
    assert plain.epochs[-1]["loss"] < history.epochs[-1]["loss"]  # warped images are harder


def test_fit_learns(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 15, "learning_rate": 0.003})
    assert history.validation_accuracy > 0.9
    assert evaluate(model, toy[0]).accuracy > 0.9


def test_fit_is_deterministic_and_depends_on_the_seed(toy):
    def train(seed):
        model = net()
        fit_with(model, *toy, **RECIPE, seed=seed)
        return model

    first = train(0)
    assert same_weights(first, train(0))
    assert not same_weights(first, train(1))


def test_fit_in_bfloat16_learns_and_validates_in_float32(toy):
    model = net()
    recipe = RECIPE | {"epochs": 20}
    history = fit_with(model, *toy, **recipe, precision="bfloat16")
    exact = fit_with(net(), *toy, **recipe)
    assert (history.precision, exact.precision) == ("bfloat16", "float32")
    assert [e["loss"] for e in history.epochs] != [e["loss"] for e in exact.epochs]
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"] / 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert evaluate(model, toy[1]).accuracy == history.validation_accuracy


@pytest.mark.parametrize("units", ["AMX", "none"])
def test_precision_auto_follows_the_processor(toy, monkeypatch, units):
    monkeypatch.setattr("mnist_mlp.optim.bfloat16_units", lambda: units)
    dtypes = set()

    class Watched(EnhancedNet):
        def forward(self, images):
            logits = super().forward(images)
            dtypes.add(logits.dtype)
            return logits

    history = fit(Watched(), *toy, Recipe(epochs=1, batch_size=64), progress=False)
    assert history.precision == ("float32" if units == "none" else "bfloat16")
    assert (torch.bfloat16 in dtypes) == (units != "none")
    assert history.recipe.precision == "auto"


def test_history_has_the_learning_rate_of_the_schedule(toy):
    history = fit_with(net(), *toy, **RECIPE)
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=9)
    for record in history.epochs:
        for _ in range(3):
            optimizer.step()
            schedule.step()
        assert record["learning_rate"] == pytest.approx(schedule.get_last_lr()[0])


def test_history_seconds_are_the_sum_of_its_epochs(toy):
    history = fit_with(net(), *toy, **RECIPE)
    assert all(epoch["seconds"] > 0 for epoch in history.epochs)
    assert history.seconds == sum(epoch["seconds"] for epoch in history.epochs)


# The weights that the model ends with


def rising(optimizer, total_steps):
    """A rate that rises until nothing is right: the best epoch is an early one."""
    return LambdaLR(optimizer, lambda step: 1.0 if step < 9 else 100.0)


def test_fit_selects_the_best_or_the_last_epoch(toy):
    recipe = RECIPE | {"epochs": 6, "ema_decay": 0.0, "schedule": rising}
    best, last = net(), net()
    early = fit_with(best, *toy, **recipe)
    late = fit_with(last, *toy, **recipe, select="last epoch")

    accuracies = [epoch["validation_accuracy"] for epoch in early.epochs]
    assert accuracies == [epoch["validation_accuracy"] for epoch in late.epochs]
    assert accuracies[-1] < max(accuracies)
    latest_best = max(range(6), key=lambda i: (accuracies[i], i))
    assert early.best_epoch == latest_best + 1
    assert late.best_epoch == 6
    assert evaluate(best, toy[1]).accuracy == early.validation_accuracy == max(accuracies)
    assert evaluate(last, toy[1]).accuracy == accuracies[-1]


def weights_of_epochs(toy, **recipe) -> list[dict]:
    """Return the averaged weights after each epoch, each from a training that ends there."""
    weights = []
    for epochs in range(1, recipe["epochs"] + 1):
        model = net()

        def stop(history, epochs=epochs):
            return len(history.epochs) == epochs

        fit_with(model, *toy, **recipe, on_epoch=stop, select="last epoch")
        weights.append(copy.deepcopy(model.state_dict()))
    return weights


class Interrupting(ImageDataset):
    """Images that send this process a signal when their `at`-th batch is asked for."""

    calls = 0
    at = 0
    number = signal.SIGINT

    def get_batch(self, *arguments):
        Interrupting.calls += 1
        if Interrupting.calls == Interrupting.at:
            signal.raise_signal(Interrupting.number)
        return super().get_batch(*arguments)


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored():
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("at", "epochs_done"), [(1, 0), (2, 0), (4, 1), (8, 2)])
def test_interrupt_leaves_the_best_weights_and_is_raised(toy, monkeypatch, at, epochs_done):
    """No script can go on to publish half a training; in a notebook the next cells work."""
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", at)
    train_set = Interrupting(toy[0].images, toy[0].labels)
    model = net()
    history = History(Recipe())
    with pytest.raises(KeyboardInterrupt):
        fit_with(model, train_set, toy[1], **RECIPE, history=history)

    assert history.stopped
    assert history.recipe == Recipe(**RECIPE, precision="float32")
    assert len(history.epochs) == epochs_done
    assert 0 <= history.best_epoch <= epochs_done
    assert not model.training
    if epochs_done:
        best = weights_of_epochs(toy, **RECIPE)[history.best_epoch - 1]
        assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())

    again = fit_with(model, train_set, toy[1], **RECIPE, history=history)
    assert again is history
    assert (again.stopped, len(again.epochs)) == ("", 3)


def test_sigterm_ends_the_process_as_usual(toy, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    fit_with(
        net(), *toy, **RECIPE, on_epoch=lambda h: seen.append(signal.getsignal(signal.SIGTERM))
    )
    assert set(seen) == {before}


def test_fit_trains_outside_the_main_thread(toy):
    histories = []
    thread = threading.Thread(target=lambda: histories.append(fit_with(net(), *toy, **RECIPE)))
    thread.start()
    thread.join()
    assert len(histories[0].epochs) == 3


@pytest.mark.parametrize("at", [1, 2, 3])
def test_on_epoch_stops_the_training_by_returning_true(toy, at):
    model = net()
    history = fit_with(model, *toy, **RECIPE, on_epoch=lambda history: len(history.epochs) == at)
    assert len(history.epochs) == at
    assert bool(history.stopped) == (at < 3)
    best = weights_of_epochs(toy, **RECIPE)[history.best_epoch - 1]
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("value", [None, False, 1, "stop", [True]])
def test_on_epoch_stops_by_nothing_else(toy, value):
    history = fit_with(net(), *toy, **RECIPE, on_epoch=lambda history: value)
    assert (len(history.epochs), history.stopped) == (3, "")


def test_on_epoch_may_raise_and_the_model_has_the_best_weights(toy):
    def fail(history):
        if len(history.epochs) == 2:
            raise RuntimeError(f"{history.best_epoch}")

    model = net()
    with pytest.raises(RuntimeError) as error:
        fit_with(model, *toy, **RECIPE, on_epoch=fail)
    best = weights_of_epochs(toy, **RECIPE)[int(str(error.value)) - 1]
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())


# A training that fails


def test_divergence_stops_with_the_learning_rate(toy):
    model = net()
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit_with(model, *toy, **RECIPE | {"learning_rate": 1e6, "epochs": 20})
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_infinite_weights_are_found_by_the_validation(toy):
    """A step that makes the weights infinite is the last of its epoch: no loss has seen it."""

    def explode_at_the_end(optimizer, total_steps):
        return LambdaLR(optimizer, lambda step: 1e38 if step == 2 else 0.0)

    recipe = RECIPE | {"schedule": explode_at_the_end, "ema_decay": 0.0, "weight_decay": 0.0}
    with pytest.raises(FloatingPointError, match="validation loss"):
        fit_with(net(), *toy, **recipe)


@pytest.fixture
def always_3() -> EnhancedNet:
    """A model that predicts 3 for everything, and whose gradients are all zero."""
    model = net()
    nn.init.constant_(model.layer5.weight, 0.0)
    model.layer5.bias.data[3] = 1e6
    return model


@pytest.mark.parametrize(("epochs", "cause"), [(3, "too few steps"), (68, "learning rate")])
def test_one_class_for_all_images_is_a_warning(toy, always_3, epochs, cause):
    recipe = Recipe(**RECIPE | {"learning_rate": 1e-9, "epochs": epochs})
    with pytest.warns(UserWarning, match=f"'3' for all.*{cause}") as warnings:
        fit(always_3, *toy, recipe, progress=False)
    assert {warning.filename for warning in warnings} == {__file__}


@pytest.mark.filterwarnings("error")
def test_one_class_for_all_images_may_be_right(toy):
    threes = toy[1].subset(toy[1].labels == 3)
    fit_with(net(), toy[0], threes, **RECIPE)


# Your own optimizer, schedule, loss and augmentation

RATE = 0.02
OWN_RECIPE = {
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": RATE,
    "weight_decay": 0.03,
    "ema_decay": 0.0,
    "select": "last epoch",
}


def cross_entropy(logits, labels):
    return (logits.exp().sum(1).log() - logits[range(len(labels)), labels]).mean()


def margin(logits, labels):
    """The mean over the images of the other classes' margins below 1, over the classes."""
    rows = range(len(labels))
    short = (1 - logits[rows, labels][:, None] + logits).clamp(min=0)
    short[rows, labels] = 0
    return (short.sum(1) / logits.shape[1]).mean()


def unchanged(images, generator):
    return images


def rolled(images, generator):
    """Roll each batch to the right by a random number of pixels."""
    return images.roll(int(torch.randint(1, 9, (), generator=generator)), 2)


def constant_rate(step, steps):
    return RATE


def cosine_rate(step, steps):
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


def sgd_by_hand(model, train_set, rate_of=constant_rate, loss_of=cross_entropy, augment=unchanged):
    """Train by SGD with momentum 0.9 from its formula; return the last mean loss."""
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    step = 0
    steps = 3 * math.ceil(len(train_set) / 64)
    for epoch in range(1, 4):
        generator = epoch_generator(0, epoch)
        loss_sum = 0.0
        order = torch.randperm(len(train_set), generator=generator)
        for chosen in order.split(64):
            images = augment(train_set.images[chosen] / 255, generator)
            loss = loss_of(model((images - 0.1307) / 0.3081), train_set.labels[chosen])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocities, strict=True):
                    v.copy_(0.9 * v + g + 0.03 * p)
                    p -= rate_of(step, steps) * v
            step += 1
            loss_sum += loss.item() * len(chosen)
    return loss_sum / len(train_set)


CASES = {
    "optimizer": ({"schedule": "constant", "augment": unchanged}, {}),
    "schedule": (
        {"schedule": CosineAnnealingLR, "augment": unchanged},
        {"rate_of": cosine_rate},
    ),
    "loss_fn": (
        {"schedule": "constant", "augment": unchanged, "loss_fn": nn.MultiMarginLoss()},
        {"loss_of": margin},
    ),
    "augment": ({"schedule": "constant", "augment": rolled}, {"augment": rolled}),
}


@pytest.mark.parametrize("name", CASES)
def test_fit_uses_custom_components(toy, name):
    own, formulas = CASES[name]
    expected = net()
    loss = sgd_by_hand(expected, toy[0], **formulas)
    model = net()
    sgd = partial(torch.optim.SGD, momentum=0.9)
    history = fit_with(model, *toy, **OWN_RECIPE, optimizer=sgd, **own)
    assert history.epochs[-1]["loss"] == pytest.approx(loss, rel=1e-4)
    for actual, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-6, rtol=1e-4)


def test_custom_augmentation_gets_the_training_images_alone(toy):
    seen = []

    def augment(images, generator):
        seen.append((images.clone(), generator))
        return images

    fit_with(net(), *toy, epochs=1, batch_size=130, augment=augment)
    ((images, generator),) = seen
    order = torch.randperm(130, generator=epoch_generator(0, 1))
    assert torch.equal(images, toy[0].images[order] / 255)
    assert isinstance(generator, torch.Generator)


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({"optimizer": torch.optim.SGD}, {"optimizer": "muon"}),
        ({"schedule": CosineAnnealingLR}, {"schedule": "constant"}),
        ({"loss_fn": nn.MultiMarginLoss()}, {"label_smoothing": 0.1}),
        ({"augment": unchanged}, {"augment_strength": 0.0}),
        ({"augment": unchanged}, {"elastic_strength": 0.5}),
    ],
)
def test_a_field_that_an_argument_replaces_must_be_the_default(toy, argument, field):
    model = net()
    with pytest.raises(ValueError, match=next(iter(field))):
        fit(model, *toy, Recipe(**field), progress=False, **argument)
    assert same_weights(model, net())


@pytest.mark.parametrize(
    "argument", [{"loss_fn": nn.MultiMarginLoss}, {"augment": "flip"}, {"optimizer": "sgd"}]
)
def test_an_argument_that_is_no_function_is_refused(toy, argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        fit(net(), *toy, progress=False, **argument)


def test_a_loss_that_teacher_logits_would_replace_is_refused(toy):
    taught = replace(toy[0], teacher_logits=torch.randn(len(toy[0]), 10))
    with pytest.raises(ValueError, match="teacher"):
        fit_with(net(), taught, toy[1], **RECIPE, loss_fn=margin)


# Arguments that do not fit together


@pytest.mark.parametrize("wrong", [{"epochs": 2}, Recipe, "published", None])
def test_fit_refuses_what_is_no_recipe(toy, wrong):
    with pytest.raises(TypeError, match="recipe"):
        fit(net(), *toy, wrong, progress=False)


class Squares(nn.Module):
    """A network that takes images of 28x28 without saying so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 10, 28)

    def forward(self, images):
        return self.layer(images).flatten(1)


class Tuples(EnhancedNet):
    def forward(self, images):
        return super().forward(images), images


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (EnhancedNet, TypeError, r"EnhancedNet\(\)"),
        ("a network", TypeError, "model must be a network"),
        (EnhancedNet(7), ValueError, r"logits of shape \(N, 10\)"),
        (Squares(), ValueError, r"x\.view\(-1, 1, 28, 28\)"),
        (Tuples(), TypeError, "tuple"),
    ],
)
def test_fit_refuses_a_model_that_cannot_classify(toy, model, error, words):
    with pytest.raises(error, match=words):
        fit_with(model, *toy, **RECIPE)


@pytest.mark.parametrize("wrap", [lambda data: DataLoader(data, 10), lambda d: Subset(d, [1])])
def test_fit_refuses_pytorchs_wrappers_of_a_data_set(toy, wrap):
    with pytest.raises(
        TypeError, match=r"train must be an ImageDataset.*found (DataLoader|Subset)"
    ):
        fit_with(net(), wrap(toy[0]), toy[1], **RECIPE)


def test_fit_refuses_data_that_is_no_data_set(toy):
    with pytest.raises(
        TypeError, match=r"train must be an ImageDataset.*train, validation or test"
    ):
        fit_with(net(), Splits("toy", *toy, toy[1]), toy[1], **RECIPE)
    with pytest.raises(TypeError, match="validation must be an ImageDataset"):
        fit_with(net(), toy[0], toy[1].images, **RECIPE)
    with pytest.raises(TypeError, match="train must be an ImageDataset"):
        fit_with(net(), toy[0].images, toy[1], **RECIPE)
    with pytest.raises(ValueError, match="train must be at least one"):
        fit_with(net(), [], toy[1], **RECIPE)


def test_fit_refuses_other_classes(toy):
    other = replace(toy[1], classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="a b c d e f g h i j"):
        fit_with(net(), toy[0], other, **RECIPE)


def test_fit_warns_of_a_batch_larger_than_the_data(toy):
    with pytest.warns(UserWarning, match="130 training images"):
        fit_with(net(), *toy, **RECIPE | {"batch_size": 512, "epochs": 1})


# Several data sets, devices, the progress bar


def test_fit_takes_data_sets_in_turns(toy):
    seen = []

    class Counted(ImageDataset):
        def get_batch(self, *arguments):
            seen.append(len(self))
            return super().get_batch(*arguments)

    sets = [Counted(toy[0].images[:n], toy[0].labels[:n]) for n in (100, 60)]
    fit_with(net(), sets, toy[1], **RECIPE | {"batch_size": 50})
    assert seen == [100, 100, 60, 60, 100, 100]


def test_fit_moves_model_and_data_to_the_device(toy):
    """On the CPU, where nothing moves, it is the same training."""
    expected, model = net(), net()
    fit_with(expected, *toy, **RECIPE)
    fit_with(model, *toy, **RECIPE, device="cpu")
    assert same_weights(model, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_fit_on_a_gpu_learns(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 20}, device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert evaluate(model, toy[1].to("cuda")).accuracy == history.validation_accuracy


def test_progress_bar_shows_the_last_epoch_or_nothing(toy, capsys):
    last = fit_with(net(), *toy, **RECIPE, progress=True).epochs[-1]
    shown = capsys.readouterr().out.split("\r")[-1]
    assert " 3/3 " in shown
    assert f"{last['loss']:.3f}" in shown
    assert f"{last['validation_accuracy']:.2%}" in shown
    fit_with(net(), *toy, **RECIPE)
    assert capsys.readouterr() == ("", "")


# What must not be ignored in silence


def test_on_epoch_stops_by_numpys_true_too(toy):
    history = fit_with(net(), *toy, **RECIPE, on_epoch=lambda history: np.mean([1.0]) > 0.5)
    assert len(history.epochs) == 1


@pytest.mark.parametrize("setting", [{"lr": 0.5}, {"weight_decay": 0.7}])
def test_an_optimizer_with_a_rate_of_its_own_is_refused(toy, setting):
    """The recipe's would replace it."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        fit_with(net(), *toy, **RECIPE, optimizer=partial(torch.optim.SGD, **setting))


def test_fit_moves_the_data_to_a_model_on_another_device(toy):
    """The device "meta" stands in for a GPU. It computes nothing, so the training ends there."""
    moved_to = []

    class Recorded(ImageDataset):
        def to(self, device):
            moved_to.append(torch.device(device).type)
            return self

    train, validation = (Recorded(part.images, part.labels) for part in toy)
    with pytest.raises(ValueError, match="device"):
        fit_with(net().to("meta"), train, validation, **RECIPE)
    assert moved_to == ["meta", "meta"]


def test_evaluate_refuses_a_class_with_the_remedy(toy):
    with pytest.raises(TypeError, match=r"EnhancedNet\(\)"):
        evaluate(EnhancedNet, toy[1])
