import copy
import math
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, fit_with
from torch import nn
from torchvision import transforms

from mnist_mlp import state, train
from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.storage.weights import read_card
from mnist_mlp.train import fit

RECIPE = {"epochs": 3, "batch_size": 64, "learning_rate": 0.01, "ema_decay": 0.9}


def net(seed: int = 0) -> EnhancedNet:
    torch.manual_seed(seed)
    return EnhancedNet()


def textbook(model, train_set, validation, epochs, batch_size, lr, ema_decay, smoothing, decay):
    """The loop again from its description: one image at a time, each formula written out.

    Returns a dict per epoch with the averaged weights and the same metrics as a history.
    """
    to_input = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    )
    inputs, validation_inputs = (
        torch.stack([to_input(image.numpy()) for image in part.images])
        for part in (train_set, validation)
    )
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    average, epochs_seen, step = None, [], 0
    total = epochs * math.ceil(len(train_set) / batch_size)
    peak = 0.3 * total - 1
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(train_set), generator=epoch_generator(0, epoch)).tolist()
        losses, n_correct = [], 0
        for start in range(0, len(order), batch_size):
            # the rate and momentum of the one-cycle schedule, two half cosines
            low, high, last = lr / 25, lr, lr / 25e4
            if step <= peak:
                wave = (1 + math.cos(math.pi * step / peak)) / 2
                rate, beta = high + (low - high) * wave, 0.85 + 0.10 * wave
            else:
                wave = (1 + math.cos(math.pi * (step - peak) / (total - 1 - peak))) / 2
                rate, beta = last + (high - last) * wave, 0.95 - 0.10 * wave
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
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p, a in zip(other.parameters(), average, strict=True):
                p.copy_(a)
            logits = other(validation_inputs)
        epochs_seen.append(
            {
                "average": average,
                "loss": sum(losses) / len(losses),
                "accuracy": n_correct / len(losses),
                "validation_loss": float(nn.CrossEntropyLoss()(logits, validation.labels)),
                "validation_accuracy": (logits.argmax(1) == validation.labels)
                .double()
                .mean()
                .item(),
            }
        )
    return epochs_seen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("smoothing", [0.1, 0.0], ids=["autograd", "without autograd"])
def test_fit_is_the_textbooks_loop(toy, smoothing):
    """130 images in batches of 64, 64 and 2: a short batch counts by its examples."""
    expected = textbook(net(), *toy, 3, 64, 0.002, 0.9, smoothing=smoothing, decay=0.05)
    model = net()
    changes = {"learning_rate": 0.002, "label_smoothing": smoothing, "weight_decay": 0.05}
    history = fit_with(model, *toy, **RECIPE | changes, augment_strength=0.0)
    for record, wanted in zip(history.epochs, expected, strict=True):
        for metric in wanted.keys() - {"average"}:
            assert record[metric] == pytest.approx(wanted[metric], rel=1e-4), metric
    best = max(range(3), key=lambda i: (expected[i]["validation_accuracy"], i))
    assert history.best_epoch == best + 1
    for found, wanted in zip(model.parameters(), expected[best]["average"], strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_without_averaging_the_weights_of_the_moment_are_validated_and_returned(toy):
    model = net()
    recipe = RECIPE | {"epochs": 2, "augment_strength": 0.0}
    history = fit_with(model, *toy, **recipe | {"ema_decay": 0.0})
    tiny = net()
    fit_with(tiny, *toy, **recipe | {"ema_decay": 1e-30})
    assert evaluate(model, toy[1]).accuracy == history.validation_accuracy
    for found, wanted in zip(model.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_with_warps_too_what_is_validated_is_the_model_on_the_images_as_they_are(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE, augment_strength=2.0)
    result = evaluate(model, toy[1])
    best = history.epochs[history.best_epoch - 1]
    assert best["validation_accuracy"] == history.validation_accuracy == result.accuracy
    assert best["validation_loss"] == result.loss
    plain = fit_with(net(), *toy, **RECIPE, augment_strength=0.0)
    assert plain.epochs[-1]["loss"] < history.epochs[-1]["loss"]  # warped images are harder


def test_it_learns(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 15, "learning_rate": 0.003})
    assert history.validation_accuracy > 0.9
    assert evaluate(model, toy[0]).accuracy > 0.9


def test_same_seed_same_bits_and_other_seed_other_bits(toy):
    def weights(seed):
        model = net()
        history = fit_with(model, *toy, **RECIPE, seed=seed)
        for record in history.epochs:
            record.pop("seconds")
        return history.epochs, torch.cat([p.flatten() for p in model.parameters()])

    (first, a), (again, b), (_, c) = weights(0), weights(0), weights(1)
    assert first == again
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_model_ends_with_the_epoch_that_validated_best(toy, monkeypatch):
    """Of equally good epochs the last: it has seen most."""
    accuracies, states = iter([0.5, 0.9, 0.9, 0.3]), []

    def pretend(model, dataset):
        states.append(copy.deepcopy(model.state_dict()))
        values = {"predicted": torch.tensor([1, 2]), "loss": 1.0, "accuracy": next(accuracies)}
        return SimpleNamespace(**values)

    monkeypatch.setattr(train, "evaluate", pretend)
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 4})
    assert (history.best_epoch, history.validation_accuracy) == (3, 0.9)
    assert all(torch.equal(states[2][k], v) for k, v in model.state_dict().items())
    assert not torch.equal(states[3]["layer1.weight"], model.layer1.weight)


class Interrupting(ImageDataset):
    """Interrupts, as a person does, when its `at`-th batch is asked for."""

    calls, at = 0, 0

    def __getitems__(self, indices, augment=None):
        Interrupting.calls += 1
        if Interrupting.calls == Interrupting.at:
            raise KeyboardInterrupt
        return super().__getitems__(indices, augment)


@pytest.mark.parametrize(("at", "epochs_done"), [(1, 0), (2, 0), (4, 1), (8, 2)])
def test_an_interrupt_leaves_the_best_weights_so_far(toy, monkeypatch, at, epochs_done):
    states = []

    def remember(model, dataset):
        states.append(copy.deepcopy(model.state_dict()))
        return evaluate(model, dataset)

    monkeypatch.setattr(train, "evaluate", remember)
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", at)
    train_set = Interrupting(toy[0].images, toy[0].labels)
    model = net()
    history = fit_with(model, train_set, toy[1], **RECIPE)
    assert history.stopped
    assert len(history.epochs) == epochs_done
    assert 0 <= history.best_epoch <= epochs_done
    if epochs_done:
        best = states[history.best_epoch - 1]
        assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())
    assert not fit_with(model, train_set, toy[1], **RECIPE).stopped  # and a second run works


@pytest.mark.parametrize(("at", "weights"), [(2, "that step"), (8, r"epoch \d")])
def test_after_an_interrupt_it_says_whose_the_weights_are(toy, monkeypatch, capsys, at, weights):
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", at)
    train_set = Interrupting(toy[0].images, toy[0].labels)
    fit_with(net(), train_set, toy[1], progress=True, **RECIPE)
    assert re.search(rf"; the weights are those of {weights}\.$", capsys.readouterr().out, re.M)


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
    history = fit_with(net(), *toy, **RECIPE)
    assert (history.stopped, len(history.epochs)) == (stopped, in_epoch)


def test_the_seconds_are_those_of_the_epochs_also_of_one_that_was_interrupted(
    toy, monkeypatch, tmp_path
):
    ticks = iter(range(0, 10_000, 10))
    for module in (train, state):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert [e["seconds"] for e in fit_with(net(), *toy, **RECIPE).epochs] == [10, 10, 10]
    monkeypatch.setattr(Interrupting, "calls", 0)
    monkeypatch.setattr(Interrupting, "at", 5)
    train_set, path = Interrupting(toy[0].images, toy[0].labels), tmp_path / "run.pt"
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 1)  # the clock is read at each save, too
    assert fit_with(net(), train_set, toy[1], **RECIPE, checkpoint=path).stopped
    history = fit_with(net(), *toy, **RECIPE, checkpoint=path)
    assert [e["seconds"] for e in history.epochs] == [40, 40, 40]
    assert history.seconds == 120


def test_a_diverging_learning_rate_stops_with_the_step_and_the_cause(toy):
    model = net()
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step \d+ .*learning rate"):
        fit_with(model, *toy, **RECIPE | {"learning_rate": 1e6, "epochs": 20})
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_loss_that_is_not_a_number_stops(toy):
    model = net()
    nn.init.constant_(model.layer5.bias, math.nan)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        fit_with(model, *toy, **RECIPE)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"label_smoothing": 1.5}])
def test_with_an_invalid_recipe_nothing_is_trained(toy, wrong):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="must be"):
        fit_with(model, *toy, **RECIPE | wrong)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_without_a_recipe_uses_that_of_the_published_weights(capsys):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (512, 28, 28), dtype=torch.uint8, generator=generator)
    train_set = ImageDataset(images, torch.arange(512) % 10)
    history = fit(net(), train_set, train_set.subset(torch.arange(20)))
    card = read_card(ROOT / "models" / "enhanced_model.pth")
    assert history.recipe == replace(Recipe(**card["recipe"]), precision="auto")
    assert "Training: 100%" in capsys.readouterr().out


def test_the_bar_shows_the_epochs_the_loss_and_the_validation(toy, capsys):
    last = fit_with(net(), *toy, **RECIPE, progress=True).epochs[-1]
    shown = capsys.readouterr().out.split("\r")[-1]
    loss, validation = f"{last['loss']:.3f}", f"{last['validation_accuracy']:.2%}"
    assert re.match(
        rf"Training: 100%.* 3/3 .*(epoch/s|s/epoch), loss={loss}, validation={validation}", shown
    )
    fit_with(net(), *toy, **RECIPE)
    assert capsys.readouterr() == ("", "")


def test_the_training_images_are_warped_as_the_recipe_says(toy, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "mnist_mlp.recipe.random_warp",
        lambda x, g, *args, **kwargs: calls.append((args, kwargs)) or x,
    )
    fit_with(net(), *toy, **RECIPE, augment_strength=0.5, elastic_strength=0.3)
    assert calls == [((0.5,), {"elastic": 0.3})] * 9
    calls.clear()
    fit_with(net(), *toy, **RECIPE, augment_strength=0.0)
    assert calls == []


def test_the_history_has_the_learning_rate_of_the_schedule(toy):
    history = fit_with(net(), *toy, **RECIPE)
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=9)
    for record in history.epochs:
        for _ in range(3):
            optimizer.step()
            schedule.step()
        assert record["learning_rate"] == pytest.approx(schedule.get_last_lr()[0])


def test_in_bfloat16_it_learns_as_well_and_is_validated_in_float32(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 20}, precision="bfloat16")
    exact = fit_with(net(), *toy, **RECIPE | {"epochs": 20})
    assert history.recipe.asdict()["precision"] == "bfloat16"
    assert [e["loss"] for e in history.epochs] != [e["loss"] for e in exact.epochs]
    for run in (history, exact):
        assert run.epochs[-1]["loss"] < run.epochs[0]["loss"] / 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    result = evaluate(model, toy[1])
    assert result.logits.dtype == torch.float32
    assert result.accuracy == history.validation_accuracy


def test_the_weights_of_the_last_epoch_are_kept_if_the_recipe_says_so(toy):
    """At a rate that rises until nothing is right, the best epoch is an early one."""
    recipe = RECIPE | {"epochs": 6, "ema_decay": 0.0, "schedule": rising}
    best, last = net(), net()
    early = fit_with(best, *toy, **recipe)
    late = fit_with(last, *toy, **recipe, keep="last")
    accuracies = [epoch["validation_accuracy"] for epoch in early.epochs]
    assert accuracies == [epoch["validation_accuracy"] for epoch in late.epochs]
    assert accuracies[-1] < max(accuracies)
    assert (late.best_epoch, late.validation_accuracy) == (6, accuracies[-1])
    assert evaluate(best, toy[1]).accuracy == early.validation_accuracy == max(accuracies)
    assert evaluate(last, toy[1]).accuracy == accuracies[-1]


def rising(optimizer, total_steps):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 9 else 100.0)


def test_a_model_without_an_output_for_each_class_is_refused(toy):
    words = r"logits of shape \(N, 10\), one per class, found \(N, 7\)"
    with pytest.raises(ValueError, match=words):
        fit_with(EnhancedNet(7), *toy, **RECIPE)


@pytest.mark.parametrize("wrong", [{"epochs": 2}, Recipe, "published", None])
def test_what_is_not_a_recipe_is_refused(toy, wrong):
    with pytest.raises(TypeError, match=r"^recipe must be a Recipe\(\.\.\.\), found "):
        fit(net(), *toy, wrong, progress=False)


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
        (3, r"the validation loss is nan after step 3 of epoch 1: .*useless.*learning rate \("),
        (5, r"the loss became nan at step 3 of epoch 2"),
    ],
)
def test_exploding_gradients_stop_with_the_step_and_the_cause(toy, monkeypatch, at, words):
    monkeypatch.setattr(Exploding, "at", at, raising=False)
    monkeypatch.setattr(Exploding, "steps", 0, raising=False)
    model = net()
    model.layer5.register_forward_hook(lambda layer, inputs, output: Exploding.apply(output))
    with pytest.raises(FloatingPointError, match=words):
        fit_with(model, *toy, **RECIPE)


@pytest.fixture
def always_3() -> EnhancedNet:
    """A model that predicts 3 for everything, and whose gradients are all zero."""
    model = net()
    nn.init.constant_(model.layer5.weight, 0.0)
    model.layer5.bias.data[3] = 1e6
    return model


@pytest.mark.parametrize(
    ("epochs", "at", "cause"),
    [(3, 2, r"too few steps \(6\)"), (68, 34, "learning rate")],
)
def test_one_class_for_all_images_is_noticed_with_the_step_and_the_cause(
    toy, always_3, epochs, at, cause
):
    words = rf"after step 3 of epoch {at} the model predicts '3' for all 50 images of the.*{cause}"
    with pytest.warns(UserWarning, match=words):
        fit_with(always_3, *toy, **RECIPE | {"learning_rate": 1e-9, "epochs": epochs})


def test_one_predicted_class_is_noticed_with_two_classes_too(toy, always_3):
    two = toy[1].subset((toy[1].labels == 3) | (toy[1].labels == 5))
    with pytest.warns(UserWarning, match="the model predicts '3' for all"):
        fit_with(always_3, toy[0], two, **RECIPE | {"learning_rate": 1e-9})


def test_one_predicted_class_is_a_warning_at_the_line_that_called_fit(toy, always_3):
    with pytest.warns(UserWarning, match="the model predicts '3' for all") as found:
        fit(always_3, *toy, Recipe(**RECIPE | {"learning_rate": 1e-9}), progress=False)
    assert {warning.filename for warning in found} == {__file__}


@pytest.mark.filterwarnings("error")
def test_one_predicted_class_is_right_where_there_is_one_class(toy):
    ones = toy[1].subset(toy[1].labels == 3)
    fit_with(net(), toy[0], ones, **RECIPE)


# on_epoch


def test_on_epoch_is_called_after_each_epoch_with_the_history(toy):
    calls = []

    def remember(history):
        calls.append((history, copy.deepcopy(history.epochs), history.best_epoch))

    history = fit_with(net(), *toy, **RECIPE | {"epochs": 4}, on_epoch=remember)
    assert [len(epochs) for _, epochs, _ in calls] == [1, 2, 3, 4]
    for called_with, epochs, best_epoch in calls:
        assert called_with is history
        assert epochs == history.epochs[: len(epochs)]
        accuracies = [epoch["validation_accuracy"] for epoch in epochs]
        assert best_epoch == len(epochs) - accuracies[::-1].index(max(accuracies))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_on_epoch_stops_the_training_by_returning_true_with_the_best_weights(
    toy, monkeypatch, capsys, at
):
    accuracies, states, best_epochs = iter([0.5, 0.9, 0.3, 0.6]), [], [1, 2, 2, 2]

    def pretend(model, dataset):
        states.append(copy.deepcopy(model.state_dict()))
        values = {"predicted": torch.tensor([1, 2]), "loss": 1.0, "accuracy": next(accuracies)}
        return SimpleNamespace(**values)

    monkeypatch.setattr(train, "evaluate", pretend)
    model, recipe = net(), RECIPE | {"epochs": 4}
    history = fit_with(
        model, *toy, **recipe, on_epoch=lambda history: len(history.epochs) == at, progress=True
    )
    best = best_epochs[at - 1]
    assert (len(history.epochs), history.best_epoch) == (at, best)
    assert all(torch.equal(states[best - 1][k], v) for k, v in model.state_dict().items())
    assert not model.training
    shown = capsys.readouterr().out
    if at < 4:
        assert history.stopped == f"after step 0 of epoch {at + 1} of 4"
        assert f"Stopped {history.stopped}; the weights are those of epoch {best}." in shown
    else:  # that was the end anyway
        assert history.stopped == ""
        assert "Stopped" not in shown


@pytest.mark.parametrize("value", [None, False, 1, 0.9, "stop", [True], ValueError])
def test_on_epoch_does_not_stop_the_training_by_returning_anything_else(toy, value):
    expected, model = net(), net()
    fit_with(expected, *toy, **RECIPE)
    history = fit_with(model, *toy, **RECIPE, on_epoch=lambda history: value)
    assert (len(history.epochs), history.stopped) == (3, "")
    assert all(map(torch.equal, expected.parameters(), model.parameters()))


def test_an_error_in_on_epoch_is_raised_and_leaves_the_best_weights(toy, monkeypatch):
    states = []

    def remember(model, dataset):
        states.append(copy.deepcopy(model.state_dict()))
        return evaluate(model, dataset)

    def fail(history):
        if len(history.epochs) == 2:
            raise RuntimeError(f"mine, the best was {history.best_epoch}")

    monkeypatch.setattr(train, "evaluate", remember)
    model = net()
    with pytest.raises(RuntimeError, match=r"^mine, the best was") as found:
        fit_with(model, *toy, **RECIPE, on_epoch=fail)
    best = states[int(str(found.value)[-1]) - 1]
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())


def test_an_interrupt_after_the_last_epoch_leaves_a_complete_run(toy):
    def interrupt(history):
        if len(history.epochs) == 2:
            raise KeyboardInterrupt

    history = fit_with(net(), *toy, **RECIPE | {"epochs": 2}, on_epoch=interrupt)
    assert (history.stopped, len(history.epochs)) == ("", 2)
    assert fit_with(net(), *toy, **RECIPE, on_epoch=interrupt).stopped == (
        "after step 0 of epoch 3 of 3"
    )
