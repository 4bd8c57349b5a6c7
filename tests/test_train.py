"""`fit` takes the steps that its formulas say, leaves the best weights, and refuses mistakes."""

import copy
import itertools
import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import DataLoader
from torchvision import transforms

from mnist_mlp import EnhancedNet, History, Recipe, evaluate, fit
from mnist_mlp.data import ImageDataset, Splits, epoch_generator

# The toy data set is small, and some of these runs too short to learn anything.
pytestmark = [
    pytest.mark.filterwarnings("ignore:after epoch"),
    pytest.mark.filterwarnings("ignore:batch_size is"),
]

# The toy data have 130 images: an epoch is batches of 64, 64 and 2.
RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.01, ema_decay=0.9, precision="float32")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def assert_best_weights(model: nn.Module, history: History, validation: ImageDataset) -> None:
    """Assert that the model has the weights of the best epoch, the later one on a tie."""
    best_epoch, best_accuracy = 0, 0.0
    for number, epoch in enumerate(history.epochs, start=1):
        if epoch["validation_accuracy"] >= best_accuracy:
            best_epoch, best_accuracy = number, epoch["validation_accuracy"]

    assert history.best_epoch == best_epoch
    assert history.validation_accuracy == best_accuracy
    assert not model.training
    if best_epoch > 0:
        # Two epochs may agree in accuracy, but not in all bits of the loss.
        result = evaluate(model, validation)
        assert result.loss == history.epochs[best_epoch - 1]["validation_loss"]


# The loop, compared with formulas


def one_cycle_formula(step: int, total_steps: int, peak_rate: float) -> tuple[float, float]:
    """Return the learning rate and the momentum of a step: two half cosines."""
    peak_step = 0.3 * total_steps - 1
    if step <= peak_step:
        edge_rate = peak_rate / 25
        distance = 1 - step / peak_step
    else:
        edge_rate = peak_rate / 25e4
        distance = (step - peak_step) / (total_steps - 1 - peak_step)
    height = (1 + math.cos(math.pi * distance)) / 2
    return edge_rate + (peak_rate - edge_rate) * height, 0.95 - 0.10 * height


def train_by_formulas(model, train, validation, recipe) -> list[tuple[dict, list]]:
    """Train again with each formula written out: AdamW, one cycle, averaged weights.

    Returns:
        For each epoch, its metrics and the averaged weights after it.
    """
    to_input = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    )
    inputs = torch.stack([to_input(image.numpy()) for image in train.images])
    validation_inputs = torch.stack([to_input(image.numpy()) for image in validation.images])

    weights = list(model.parameters())
    first_moments = [torch.zeros_like(w) for w in weights]
    second_moments = [torch.zeros_like(w) for w in weights]
    average = weights
    step = 0
    total_steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
    epochs = []

    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(train), generator=epoch_generator(recipe.seed, epoch))
        losses = []
        hits = []

        for chosen in order.split(recipe.batch_size):
            rate, beta = one_cycle_formula(step, total_steps, recipe.learning_rate)
            step += 1

            logits = model(inputs[chosen])
            labels = train.labels[chosen]
            target = torch.full_like(logits, recipe.label_smoothing / 10)
            target[range(len(chosen)), labels] += 1 - recipe.label_smoothing
            log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
            image_losses = -(target * log_probabilities).sum(1)
            gradients = torch.autograd.grad(image_losses.mean(), weights)
            losses += image_losses.tolist()
            hits += (logits.argmax(1) == labels).tolist()

            with torch.no_grad():
                moments = zip(weights, gradients, first_moments, second_moments, strict=True)
                for w, g, m, v in moments:
                    w *= 1 - rate * recipe.weight_decay
                    m += (1 - beta) * (g - m)
                    v += 0.001 * (g * g - v)
                    w -= rate * (m / (1 - beta**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)

                # The first step starts the average.
                decay = min(recipe.ema_decay, step / (9 + step)) if step > 1 else 0.0
                average = [
                    decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)
                ]

        averaged_model = copy.deepcopy(model)
        with torch.no_grad():
            for w, a in zip(averaged_model.parameters(), average, strict=True):
                w.copy_(a)
            logits = averaged_model(validation_inputs)
        metrics = {
            "loss": np.mean(losses),
            "accuracy": np.mean(hits),
            "validation_loss": nn.CrossEntropyLoss()(logits, validation.labels).item(),
            "validation_accuracy": (logits.argmax(1) == validation.labels).double().mean().item(),
        }
        epochs.append((metrics, average))
    return epochs


def test_fit_is_the_loop_of_the_formulas(toy):
    recipe = replace(RECIPE, learning_rate=0.002, label_smoothing=0.1, weight_decay=0.05, seed=7)
    recipe = replace(recipe, augment_strength=0.0)
    torch.manual_seed(0)
    model = EnhancedNet()
    expected = train_by_formulas(copy.deepcopy(model), *toy, recipe)

    history = fit(model, *toy, recipe)

    for epoch, (metrics, _) in zip(history.epochs, expected, strict=True):
        for name, value in metrics.items():
            assert epoch[name] == pytest.approx(value, rel=1e-4), name
    _, best_weights = expected[history.best_epoch - 1]
    for actual, wanted in zip(model.parameters(), best_weights, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=1e-4)
    assert_best_weights(model, history, toy[1])


def roll(images, generator):
    """Roll each batch to the right by a random number of pixels."""
    return images.roll(int(torch.randint(1, 9, (), generator=generator)), 2)


def test_fit_uses_custom_components(toy):
    """SGD with momentum, a cosine, a margin loss and rolled images, compared with formulas."""
    recipe = replace(RECIPE, weight_decay=0.03, ema_decay=0.0, select="last epoch")
    train, validation = toy
    margin_loss = nn.MultiMarginLoss()
    expected = small_net()
    weights = list(expected.parameters())
    velocities = [torch.zeros_like(w) for w in weights]
    step = 0
    for epoch in (1, 2, 3):
        generator = epoch_generator(recipe.seed, epoch)
        losses = []
        for chosen in torch.randperm(130, generator=generator).split(64):
            images = (roll(train.images[chosen] / 255, generator) - 0.1307) / 0.3081
            loss = margin_loss(expected(images.flatten(1)), train.labels[chosen])
            losses += [loss.item()] * len(chosen)
            rate = recipe.learning_rate * (1 + math.cos(math.pi * step / 9)) / 2
            step += 1
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, g, v in zip(weights, gradients, velocities, strict=True):
                    v.copy_(0.9 * v + g + recipe.weight_decay * w)
                    w -= rate * v

    model = small_net()
    history = fit(
        model,
        train,
        validation,
        recipe,
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        schedule=CosineAnnealingLR,
        loss_fn=margin_loss,
        augment=roll,
    )

    assert history.epochs[-1]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for actual, wanted in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-6, rtol=1e-4)
    rate_of_step_3 = recipe.learning_rate * (1 + math.cos(math.pi * 2 / 9)) / 2
    assert history.epochs[0]["learning_rate"] == pytest.approx(rate_of_step_3)
    # The images of the validation are not rolled.
    assert history.epochs[-1]["validation_loss"] == evaluate(model, validation).loss


def full_batch_gradients(model, train) -> list[torch.Tensor]:
    """Return the gradient of each weight for a batch of all training images."""
    inputs = (train.images.flatten(1) / 255 - 0.1307) / 0.3081
    loss = nn.CrossEntropyLoss()(model(inputs), train.labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))


# One step of plain gradient descent for a batch of all images.
ONE_STEP = replace(
    RECIPE,
    epochs=1,
    batch_size=130,
    learning_rate=0.5,
    weight_decay=0.0,
    ema_decay=0.0,
    augment_strength=0.0,
    select="last epoch",
)


@pytest.mark.parametrize("clip_norm", [0.01, 0.3, 1000.0, 0.0])
def test_clip_norm_scales_larger_gradients_down_to_it(toy, clip_norm):
    start = small_net()
    gradients = full_batch_gradients(start, toy[0])
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    assert 0.3 < norm < 1000
    scale = min(1.0, clip_norm / norm) if clip_norm > 0 else 1.0

    model = small_net()
    recipe = replace(ONE_STEP, clip_norm=clip_norm, schedule="constant")
    fit(model, *toy, recipe, optimizer=torch.optim.SGD)

    for weight, first, gradient in zip(
        model.parameters(), start.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close(weight, first - 0.5 * scale * gradient, atol=1e-6, rtol=1e-4)


def test_clip_norm_above_every_gradient_changes_no_bit(toy):
    model, clipped = small_net(), small_net()

    fit(model, *toy, RECIPE)
    fit(clipped, *toy, replace(RECIPE, clip_norm=1e9))

    assert same_weights(model, clipped)


def test_fit_trains_with_an_edited_forward(toy, monkeypatch):
    """A network that ignores the images cannot train its first layer."""
    forward = EnhancedNet.forward
    monkeypatch.setattr(EnhancedNet, "forward", lambda self, images: forward(self, 0 * images))
    torch.manual_seed(0)
    model = EnhancedNet()
    start = copy.deepcopy(model)

    fit(model, *toy, replace(RECIPE, weight_decay=0.0))

    assert torch.equal(model.layer1.weight, start.layer1.weight)
    assert not torch.equal(model.layer5.bias, start.layer5.bias)


def test_fit_trains_with_an_edited_loop(toy, monkeypatch):
    """An epoch without steps leaves the initial weights."""
    monkeypatch.setattr(
        "mnist_mlp.train.train_epoch", lambda *args, **kwargs: (1.5, 0.25, 0.1, False)
    )
    model = small_net()

    history = fit(model, *toy, RECIPE)

    assert same_weights(model, small_net())
    assert [epoch["loss"] for epoch in history.epochs] == [1.5, 1.5, 1.5]


def test_fit_warps_the_training_images_alone(toy):
    model = small_net()

    warped = fit(model, *toy, replace(RECIPE, augment_strength=2.0))
    affine = fit(small_net(), *toy, replace(RECIPE, augment_strength=2.0, elastic_strength=0.0))
    plain = fit(small_net(), *toy, replace(RECIPE, augment_strength=0.0))

    # The more the images are warped, the harder they are.
    assert warped.epochs[-1]["loss"] > affine.epochs[-1]["loss"] > plain.epochs[-1]["loss"]
    assert_best_weights(model, warped, toy[1])


@pytest.mark.parametrize(
    ("cpu_has", "precision", "dtype"),
    [("AMX", "bfloat16", torch.bfloat16), ("none", "float32", torch.float32)],
)
def test_precision_auto_follows_the_processor(toy, monkeypatch, cpu_has, precision, dtype):
    monkeypatch.setattr("mnist_mlp.optim.bfloat16_units", lambda: cpu_has)
    train_dtypes = set()
    model = small_net()

    def record_dtype(module, inputs, logits):
        if module.training:
            train_dtypes.add(logits.dtype)

    model.register_forward_hook(record_dtype)
    history = fit(model, *toy, replace(RECIPE, precision="auto", epochs=20))

    assert history.precision == precision
    assert train_dtypes == {dtype}
    assert model[0].weight.dtype == torch.float32
    assert history.validation_accuracy > 0.9
    assert_best_weights(model, history, toy[1])  # `evaluate` computes in float32


# The weights that the model ends with


def explode_after_9_steps(optimizer, total_steps):
    """Return a rate that soon is much too high, so that the best epoch is an early one."""
    return LambdaLR(optimizer, lambda step: 1.0 if step < 9 else 100.0)


def test_fit_selects_the_best_or_the_last_epoch(toy):
    best_recipe = replace(RECIPE, epochs=6)
    last_recipe = replace(best_recipe, select="last epoch")
    best, last = small_net(), small_net()

    best_history = fit(best, *toy, best_recipe, schedule=explode_after_9_steps)
    last_history = fit(last, *toy, last_recipe, schedule=explode_after_9_steps)

    assert best_history.best_epoch < 6
    assert_best_weights(best, best_history, toy[1])
    assert last_history.best_epoch == 6
    assert evaluate(last, toy[1]).loss == best_history.epochs[-1]["validation_loss"]


def interrupting(dataset: ImageDataset, at_batch: int) -> ImageDataset:
    """Return a training set during whose batch of this number somebody presses Ctrl-C."""
    batch_numbers = itertools.count(1)

    class Interrupting(ImageDataset):
        def get_batch(self, *arguments):
            if next(batch_numbers) == at_batch:
                raise KeyboardInterrupt
            return super().get_batch(*arguments)

    return Interrupting(dataset.images, dataset.labels)


@pytest.mark.parametrize(("at_batch", "complete_epochs"), [(2, 0), (18, 5)])
def test_interrupt_leaves_the_best_weights(toy, at_batch, complete_epochs):
    """KeyboardInterrupt ends a script; in a notebook the model and its history remain."""
    recipe = replace(RECIPE, epochs=7)
    train = interrupting(toy[0], at_batch)
    model = small_net()
    history = History(Recipe())

    with pytest.raises(KeyboardInterrupt):
        fit(model, train, toy[1], recipe, schedule=explode_after_9_steps, history=history)

    assert history.recipe == recipe
    assert len(history.epochs) == complete_epochs
    assert str(complete_epochs + 1) in history.stopped
    assert_best_weights(model, history, toy[1])
    if complete_epochs == 0:
        assert not same_weights(model, small_net())  # those after the first step

    refilled = fit(model, train, toy[1], RECIPE, history=history)
    assert refilled is history
    assert history.stopped == ""
    assert len(history.epochs) == 3


@pytest.mark.parametrize(
    ("at_epoch", "answer", "epochs"),
    [(2, True, 2), (2, np.True_, 2), (3, True, 3), (2, False, 3), (2, 1, 3)],
)
def test_on_epoch_stops_the_training_only_by_true(toy, at_epoch, answer, epochs):
    def answer_at_epoch(history):
        return len(history.epochs) == at_epoch and answer

    model = small_net()
    history = fit(model, *toy, RECIPE, on_epoch=answer_at_epoch)

    assert len(history.epochs) == epochs
    assert bool(history.stopped) == (epochs < 3)
    assert_best_weights(model, history, toy[1])


# A function that is called after each step


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_on_step_gets_the_step_the_loss_and_the_norm_before_clipping(toy, clip_norm):
    train, validation = toy
    recipe = replace(ONE_STEP, epochs=2, batch_size=64, schedule="constant", clip_norm=clip_norm)
    expected = []
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for epoch in (1, 2):
        order = torch.randperm(130, generator=epoch_generator(recipe.seed, epoch))
        for chosen in order.split(64):
            inputs = (train.images[chosen].flatten(1) / 255 - 0.1307) / 0.3081
            loss = nn.CrossEntropyLoss()(model(inputs), train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
            expected.append((len(expected), loss.item(), gradient.norm().item()))
            for weight in model.parameters():
                weight.grad *= min(1, clip_norm / gradient.norm().item()) if clip_norm else 1
            optimizer.step()

    calls = []
    fit(
        small_net(),
        train,
        validation,
        recipe,
        optimizer=torch.optim.SGD,
        on_step=lambda *numbers: calls.append(numbers),
    )

    assert [[type(number) for number in numbers] for numbers in calls] == 6 * [[int, float, float]]
    assert [step for step, _, _ in calls] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(calls, expected, rtol=1e-4)
    assert min(norm for _, _, norm in calls) > 0.1


def test_on_step_changes_no_bit(toy):
    model, watched = small_net(), small_net()

    history = fit(model, *toy, RECIPE)
    watched_history = fit(watched, *toy, RECIPE, on_step=lambda step, loss, norm: 1)

    assert same_weights(model, watched)
    assert watched_history.stopped == history.stopped == ""
    assert watched_history.identity == history.identity


def test_on_step_is_called_after_the_step(toy):
    """The norm leaves out frozen weights, which have no gradient."""
    model = small_net()
    model[2].requires_grad_(False)
    start = small_net()
    differs = []

    def watch(step, loss, gradient_norm):
        norm = math.hypot(model[0].weight.grad.norm(), model[0].bias.grad.norm())
        assert gradient_norm == pytest.approx(norm, rel=1e-5)
        differs.append(not torch.equal(model[0].weight, start[0].weight))

    fit(model, *toy, RECIPE, on_step=watch)

    assert differs == 9 * [True]


# An epoch has three steps: 0, 1, 2; 3, 4, 5; 6, 7, 8.
@pytest.mark.parametrize(
    ("at_step", "answer", "steps", "epochs"),
    [
        (0, True, 1, 0),
        (4, True, 5, 1),
        (5, np.True_, 6, 1),
        (8, True, 9, 2),
        (4, 1, 9, 3),
        (4, False, 9, 3),
    ],
)
def test_on_step_stops_the_training_at_once_and_only_by_true(toy, at_step, answer, steps, epochs):
    seen = []

    def answer_at_step(step, loss, gradient_norm):
        seen.append(step)
        return answer if step == at_step else None

    model = small_net()
    history = fit(model, *toy, RECIPE, on_step=answer_at_step)

    assert seen == list(range(steps))
    assert len(history.epochs) == epochs
    assert history.stopped == (f"in epoch {epochs + 1} of 3" if epochs < 3 else "")
    assert_best_weights(model, history, toy[1])
    if epochs == 0:
        assert not same_weights(model, small_net())  # those after the first step


def test_on_step_that_raises_leaves_the_best_weights(toy):
    def watch(step, loss, gradient_norm):
        if step == 7:
            raise LookupError("my own")

    model = small_net()
    history = History(Recipe())

    with pytest.raises(LookupError, match="my own"):
        fit(model, *toy, RECIPE, history=history, on_step=watch)

    assert len(history.epochs) == 2
    assert_best_weights(model, history, toy[1])


# Trainings that fail


def test_fit_that_diverges_leaves_the_best_weights(toy):
    def explode_in_the_third_epoch(optimizer, total_steps):
        return LambdaLR(optimizer, lambda step: 1.0 if step < 6 else 1e30)

    model = small_net()
    history = History(Recipe())

    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(model, *toy, RECIPE, schedule=explode_in_the_third_epoch, history=history)

    assert len(history.epochs) == 2
    assert_best_weights(model, history, toy[1])


def test_fit_finds_infinite_weights_in_the_validation(toy):
    """The last step of an epoch makes the weights infinite: no training loss has seen them."""

    def explode_at_the_third_step(optimizer, total_steps):
        return LambdaLR(optimizer, lambda step: 1e38 if step == 2 else 0.0)

    recipe = replace(RECIPE, ema_decay=0.0, weight_decay=0.0)
    with pytest.raises(FloatingPointError, match="after epoch 1"):
        fit(small_net(), *toy, recipe, schedule=explode_at_the_third_step)


@pytest.mark.parametrize(("bias", "cause"), [(1e-3, "too few steps"), (1e6, "learning rate")])
def test_fit_warns_of_one_class_for_all_images(toy, bias, cause):
    """After few steps, the steps are named only if the model is better than chance."""
    always_3 = small_net()
    nn.init.zeros_(always_3[2].weight)
    nn.init.zeros_(always_3[2].bias)
    always_3[2].bias.data[3] = bias
    validation = replace(toy[1], labels=torch.full((50,), 3))
    validation.labels[0] = 4
    recipe = replace(RECIPE, learning_rate=1e-9, epochs=1)

    with pytest.warns(UserWarning, match=f"'3' for all.*{cause}") as warnings:
        fit(always_3, toy[0], validation, recipe)

    assert warnings[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_fit_does_not_warn_where_one_class_is_right(toy):
    train, validation = toy
    threes = validation.subset(validation.labels == 3)

    fit(small_net(), train, threes, RECIPE)


# Arguments that do not fit together

SGD = torch.optim.SGD
MARGIN = nn.MultiMarginLoss()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipe": {"epochs": 2}}, TypeError, "recipe"),
        ({"recipe": Recipe}, TypeError, "recipe"),
        ({"loss_fn": nn.MultiMarginLoss}, TypeError, "loss_fn"),
        ({"augment": "flip"}, TypeError, "augment"),
        # Set both in the recipe and by an argument.
        ({"optimizer": partial(SGD, lr=0.5)}, ValueError, "lr"),
        ({"optimizer": partial(SGD, weight_decay=0.7)}, ValueError, "weight_decay"),
        ({"optimizer": SGD, "recipe": Recipe(optimizer="muon")}, ValueError, "muon"),
        (
            {"schedule": CosineAnnealingLR, "recipe": Recipe(schedule="constant")},
            ValueError,
            "constant",
        ),
        ({"loss_fn": MARGIN, "recipe": Recipe(label_smoothing=0.1)}, ValueError, "smoothing"),
        ({"augment": roll, "recipe": Recipe(augment_strength=0)}, ValueError, "augment_strength"),
        ({"augment": roll, "recipe": Recipe(elastic_strength=0.5)}, ValueError, "elastic_strength"),
    ],
)
def test_fit_refuses_arguments_that_do_not_fit_together(toy, arguments, error, message):
    model = small_net()

    with pytest.raises(error, match=message):
        fit(model, *toy, **arguments)

    assert same_weights(model, small_net())


class ReturnsTuple(EnhancedNet):
    def forward(self, images):
        return super().forward(images), images


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (EnhancedNet, TypeError, r"EnhancedNet\(\)"),
        (EnhancedNet(7), ValueError, r"\(N, 10\)"),
        (nn.Conv2d(1, 10, 28), ValueError, r"view\(-1, 1, 28, 28\)"),
        (ReturnsTuple(), TypeError, "tuple"),
    ],
)
def test_fit_refuses_a_model_that_cannot_classify(toy, model, error, message):
    with pytest.raises(error, match=message):
        fit(model, *toy, RECIPE)


def test_evaluate_refuses_a_class_with_the_remedy(toy):
    with pytest.raises(TypeError, match=r"EnhancedNet\(\)"):
        evaluate(EnhancedNet, toy[1])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda dataset: [], (TypeError, ValueError), "ImageDataset"),
        (lambda dataset: DataLoader(dataset, 10), TypeError, "DataLoader"),
        (lambda dataset: dataset.images, TypeError, "Tensor"),
        (lambda dataset: Splits("toy", dataset, dataset, dataset), TypeError, "or test"),
        (lambda dataset: replace(dataset, classes=tuple("abcdefghij")), ValueError, "classes"),
    ],
)
def test_fit_refuses_data_that_does_not_fit(toy, wrong, error, message):
    train, validation = toy

    with pytest.raises(error, match=f"train .*{message}"):
        fit(small_net(), wrong(train), validation, RECIPE)
    with pytest.raises(error, match=f"validation .*{message}"):
        fit(small_net(), train, wrong(validation), RECIPE)


@pytest.mark.filterwarnings("ignore:train has teacher logits")
def test_fit_refuses_settings_that_it_would_ignore(toy):
    train, validation = toy
    taught = replace(train, teacher_logits=torch.randn(130, 10))
    temperature = replace(RECIPE, distillation_temperature=2.0)
    smoothing = replace(RECIPE, label_smoothing=0.1)
    elastic = replace(RECIPE, augment_strength=0.0, elastic_strength=0.5)

    with pytest.raises(ValueError, match="teacher"):
        fit(small_net(), taught, validation, RECIPE, loss_fn=MARGIN)
    with pytest.raises(ValueError, match="label_smoothing"):
        fit(small_net(), taught, validation, smoothing)
    with pytest.raises(ValueError, match="distillation_temperature"):
        fit(small_net(), train, validation, temperature)
    with pytest.raises(ValueError, match="elastic_strength"):
        fit(small_net(), train, validation, elastic)

    # Where they have an effect they are taken: the second set has no teacher.
    both = replace(temperature, label_smoothing=0.1)
    assert fit(small_net(), [taught, train], validation, both).epochs


def test_fit_warns_of_warps_that_the_teacher_has_not_seen(toy):
    train, validation = toy
    taught = replace(train, teacher_logits=torch.randn(130, 10))

    with pytest.warns(UserWarning, match="same images"):
        fit(small_net(), taught, validation, RECIPE)
    with warnings.catch_warnings(action="error"):
        fit(small_net(), taught, validation, replace(RECIPE, augment_strength=0.0, epochs=1))


# Own functions of another convention


LRS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    "schedule",
    [
        LRS.StepLR,
        LRS.ExponentialLR,
        LRS.MultiStepLR,
        LRS.LambdaLR,
        LRS.CyclicLR,
        LRS.OneCycleLR,
        LRS.LinearLR,
        LRS.ReduceLROnPlateau,
        partial(LRS.StepLR, step_size=1, gamma=0.7),
        partial(LRS.StepLR, gamma=0.7),
        partial(LRS.ExponentialLR, last_epoch=-1),
        lambda optimizer, steps: LRS.CosineAnnealingLR(SGD(small_net().parameters(), 0.1), steps),
        lambda optimizer, steps: LRS.OneCycleLR(optimizer, 0.1, total_steps=steps - 1),
        lambda optimizer, steps: LRS.ReduceLROnPlateau(optimizer),
        lambda optimizer: LRS.ConstantLR(optimizer),
        lambda optimizer, steps: None,
    ],
)
def test_fit_refuses_a_schedule_that_takes_no_number_of_steps(toy, schedule):
    model = small_net()

    with pytest.raises((ValueError, TypeError), match="schedule"):
        fit(model, *toy, RECIPE, schedule=schedule)

    assert same_weights(model, small_net())


@pytest.mark.parametrize(
    "schedule",
    [
        LRS.PolynomialLR,
        LRS.CosineAnnealingWarmRestarts,
        partial(LRS.CosineAnnealingLR, eta_min=1e-5),
    ],
)
def test_fit_takes_a_schedule_over_the_number_of_steps(toy, schedule):
    history = fit(small_net(), *toy, RECIPE, schedule=schedule)

    rates = [epoch["learning_rate"] for epoch in history.epochs]
    assert rates[0] > rates[1] > rates[2] > 0


def test_fit_warns_of_a_schedule_that_was_meant_for_epochs(toy):
    def decay(optimizer, steps):
        return LRS.StepLR(optimizer, step_size=1, gamma=0.001)

    with pytest.warns(UserWarning, match="every batch"):
        fit(small_net(), *toy, RECIPE, schedule=decay)


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.LBFGS,
        torch.optim.Rprop,
        torch.optim.Muon,
        torch.optim.SGD(small_net().parameters(), lr=0.1),
        lambda parameters, lr, weight_decay: torch.optim.LBFGS(parameters, lr),
        lambda parameters, lr, weight_decay: None,
        lambda parameters, lr, weight_decay: SGD(list(parameters)[:2], lr),
        lambda parameters, lr, weight_decay: SGD(small_net().parameters(), lr),
    ],
)
def test_fit_refuses_an_optimizer_that_it_cannot_step(toy, optimizer):
    model = small_net()

    with pytest.raises((ValueError, TypeError), match="optimizer"):
        fit(model, *toy, RECIPE, optimizer=optimizer)

    assert same_weights(model, small_net())


def test_fit_warns_of_a_learning_rate_for_another_optimizer(toy):
    default_rate = replace(RECIPE, learning_rate=Recipe.learning_rate)

    with pytest.warns(UserWarning, match="suits AdamW"):
        fit(small_net(), *toy, default_rate, optimizer=SGD)
    with pytest.warns(UserWarning, match="suits AdamW"):
        fit(small_net(), *toy, replace(default_rate, optimizer="muon"))


@pytest.mark.parametrize(
    ("loss_fn", "remedy"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), "mean"),
        (nn.CrossEntropyLoss(reduction="none"), "mean"),
        (nn.NLLLoss(), "CrossEntropyLoss"),
        (nn.BCEWithLogitsLoss(), "labels"),
        (lambda logits: logits.mean(), "labels"),
        (lambda logits, labels: 0.5, "number"),
        (lambda logits, labels: (logits.argmax(dim=1) == labels).float().mean(), "gradient"),
        (lambda logits, labels: -nn.functional.cross_entropy(logits, labels), "sign"),
    ],
)
def test_fit_refuses_a_loss_of_another_convention(toy, loss_fn, remedy):
    model = small_net()

    with pytest.raises(ValueError, match=f"loss_fn .*{remedy}"):
        fit(model, *toy, RECIPE, loss_fn=loss_fn)

    assert same_weights(model, small_net())


def one_hot_error(logits, labels):
    return (logits.softmax(1) - nn.functional.one_hot(labels, 10)).square().mean()


def negative_probability(logits, labels):
    return -logits.softmax(1).gather(1, labels[:, None]).mean()


@pytest.mark.parametrize(
    ("end", "loss_fn"),
    [
        (nn.Identity(), nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))),
        (nn.Identity(), nn.MultiMarginLoss()),
        (nn.Identity(), one_hot_error),
        (nn.Identity(), negative_probability),
        (nn.LogSoftmax(dim=1), nn.NLLLoss()),
    ],
)
def test_fit_takes_every_mean_of_logits_as_a_loss(toy, end, loss_fn):
    history = fit(nn.Sequential(small_net(), end), *toy, RECIPE, loss_fn=loss_fn)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


@pytest.mark.parametrize(
    "augment",
    [
        lambda images: images,
        lambda images, generator: images[:, None],
        lambda images, generator: images.numpy(),
        lambda images, generator: images.double(),
        lambda images, generator: images / 0,
    ],
)
def test_fit_refuses_an_augmentation_that_returns_no_images(toy, augment):
    with pytest.raises(ValueError, match="augment must"):
        fit(small_net(), *toy, RECIPE, augment=augment)


def test_fit_warns_of_an_augmentation_that_scales_the_pixels(toy):
    with pytest.warns(UserWarning, match="from 0 to 1, found pixels of up to"):
        fit(small_net(), *toy, RECIPE, augment=lambda images, generator: 255 * images)


def frozen_net() -> nn.Module:
    return small_net().requires_grad_(False)


def batch_norm_net() -> nn.Module:
    return nn.Sequential(small_net(), nn.BatchNorm1d(10))


@pytest.mark.parametrize(
    ("new_net", "remedy"),
    [
        (frozen_net, r"nn\.ModuleList.*requires_grad_"),
        (lambda: small_net().half(), "float"),
        (lambda: small_net().double(), "float"),
        (batch_norm_net, "batch_size"),
        (lambda: nn.Sequential(small_net(), nn.LazyBatchNorm1d()), "batch_size"),
    ],
)
def test_fit_refuses_a_network_that_cannot_be_trained(toy, new_net, remedy):
    train = toy[0].subset(torch.arange(65))  # a batch of 64 and one of 1

    with pytest.raises(ValueError, match=remedy):
        fit(new_net(), train, toy[1], RECIPE)


class AlwaysDropout(nn.Dropout):
    def forward(self, x):
        return nn.functional.dropout(x)


@pytest.mark.parametrize("end", [nn.Softmax(dim=0), AlwaysDropout()])
def test_fit_warns_of_logits_that_depend_on_the_batch_or_on_chance(toy, end):
    with pytest.warns(UserWarning, match="depend on the other images"):
        fit(nn.Sequential(small_net(), end), *toy, RECIPE)


def test_fit_refuses_gradients_that_are_switched_off(toy):
    with torch.no_grad(), pytest.raises(RuntimeError, match="switched off"):
        fit(small_net(), *toy, RECIPE)


def test_fit_refuses_batch_norm_with_batches_of_one(toy):
    with pytest.raises(ValueError, match="batch norm needs two"):
        fit(batch_norm_net(), *toy, replace(RECIPE, batch_size=1))


def test_fit_trains_a_network_whose_first_layer_is_frozen(toy):
    network = small_net()
    network[0].requires_grad_(False)

    fit(network, *toy, RECIPE)

    assert torch.equal(network[0].weight, small_net()[0].weight)
    assert not torch.equal(network[2].weight, small_net()[2].weight)


@pytest.mark.parametrize("argument", ["on_epoch", "on_step", "history"])
def test_fit_refuses_a_watcher_before_the_training(toy, argument):
    with pytest.raises(TypeError, match=argument):
        fit(small_net(), *toy, RECIPE, **{argument: "watch"})


def test_fit_and_evaluate_refuse_probabilities(toy):
    network = nn.Sequential(small_net(), nn.Softmax(dim=1))

    with pytest.raises(ValueError, match="softmax"):
        fit(network, *toy, RECIPE)
    with pytest.raises(ValueError, match="softmax"):
        evaluate(network, toy[1])


def test_fit_warns_of_validation_images_that_are_training_images(toy):
    train, validation = toy
    overlapping = ImageDataset(
        torch.cat([train.images, validation.images[:5]]),
        torch.cat([train.labels, validation.labels[:5]]),
    )

    with pytest.warns(UserWarning, match="5 of the 50 validation images"):
        fit(small_net(), overlapping, validation, RECIPE)


@pytest.mark.filterwarnings("error")
def test_fit_does_not_warn_of_training_images_if_nothing_is_chosen_by_them(toy):
    train, _ = toy
    fit(small_net(), train, train.subset(torch.arange(50)), replace(RECIPE, select="last epoch"))


class KeepsTensor(nn.Module):
    """A network that makes a tensor in its first call, and keeps it."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(784))
        self.out = nn.Linear(784, 10)
        self.mask = None

    def forward(self, images):
        if self.mask is None:
            self.mask = torch.linspace(0.5, 1, 784)
        return self.out(images * (self.gain * self.mask))


@pytest.mark.parametrize(
    "new_net", [KeepsTensor, lambda: nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(10))]
)
def test_checks_leave_a_network_that_can_be_trained(toy, new_net):
    history = fit(new_net(), *toy, RECIPE)
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]


def test_divergence_names_the_learning_rate_of_the_recipe(toy):
    """One cycle has fallen far below its peak by the time that the loss overflows."""
    with pytest.raises(FloatingPointError, match=r"1e\+30"):
        fit(small_net(), *toy, replace(RECIPE, learning_rate=1e30))


def test_nan_weights_are_not_blamed_on_the_learning_rate(toy):
    network = small_net()
    network[0].bias.data[3] = torch.nan

    with pytest.raises(ValueError, match=r"0\.bias"):
        fit(network, *toy, RECIPE)
    with pytest.raises(FloatingPointError, match="weights"):
        evaluate(network, toy[1])


def test_class_names_stay_with_the_weights(toy):
    """The order counts: the same number of classes with other names is another task."""
    letters = tuple("abcdefghij")
    network = small_net()
    fit(network, replace(toy[0], classes=letters), replace(toy[1], classes=letters), RECIPE)

    assert network.class_names == letters
    with pytest.raises(ValueError, match="same classes"):
        evaluate(network, toy[1])
    with pytest.raises(ValueError, match="same classes"):
        evaluate(network, replace(toy[1], classes=letters[::-1]))


def test_fit_warns_of_a_batch_larger_than_the_data(toy):
    train, validation = toy
    sets = [train, train.subset(torch.arange(60))]

    with pytest.warns(UserWarning, match="130 training images"):
        fit(small_net(), train, validation, replace(RECIPE, batch_size=512, epochs=1))
    with pytest.warns(UserWarning, match="60 training images"):
        fit(small_net(), sets, validation, RECIPE)


def test_fit_warns_of_a_training_set_whose_turn_does_not_come(toy):
    with pytest.warns(UserWarning, match="not used"):
        fit(small_net(), [toy[0], toy[0]], toy[1], replace(RECIPE, epochs=1))


def test_fit_computes_the_loss_in_float32(toy):
    dtypes = set()

    def record_dtype(logits, labels):
        dtypes.add(logits.dtype)
        return nn.functional.cross_entropy(logits, labels)

    fit(small_net(), *toy, replace(RECIPE, precision="bfloat16"), loss_fn=record_dtype)

    assert dtypes == {torch.float32}


# Several data sets, devices, the progress bar


def test_fit_takes_data_sets_in_turns(toy):
    train, validation = toy
    hundred = train.subset(torch.arange(100))
    sixty = train.subset(torch.arange(60))
    batch_sizes = []
    step_counts = []

    def record_size(images, generator):
        if len(images) > 2:  # `fit` tries the function on two images before the training
            batch_sizes.append(len(images))
        return images

    def record_steps(optimizer, total_steps):
        step_counts.append(total_steps)
        return LambdaLR(optimizer, lambda step: 1.0)

    sets = [hundred, sixty]
    fit(small_net(), sets, validation, RECIPE, augment=record_size, schedule=record_steps)

    assert batch_sizes == [64, 36, 60, 64, 36]
    assert step_counts == [5]


def test_fit_moves_the_data_to_the_device_of_the_model(toy):
    """The device "meta" stands in for a GPU. It computes nothing, so the training ends there."""
    devices = []

    class Recorded(ImageDataset):
        def to(self, device):
            devices.append(torch.device(device).type)
            return self

    train = Recorded(toy[0].images, toy[0].labels)
    validation = Recorded(toy[1].images, toy[1].labels)
    with pytest.raises(RuntimeError, match="meta"):
        fit(small_net().to("meta"), train, validation, RECIPE)

    assert devices == ["meta", "meta"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_fit_on_a_gpu_learns(toy):
    model = small_net()

    history = fit(model, *toy, replace(RECIPE, epochs=20, device="cuda"))

    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert history.validation_accuracy > 0.9
    assert evaluate(model, toy[1]).accuracy == history.validation_accuracy


def test_progress_bar_shows_the_last_epoch_or_nothing(toy, capsys):
    last_epoch = fit(small_net(), *toy, RECIPE).epochs[-1]

    shown = capsys.readouterr().out.split("\r")[-1]
    assert " 3/3 " in shown
    assert f"{last_epoch['loss']:.3f}" in shown
    assert f"{last_epoch['validation_accuracy']:.2%}" in shown

    fit(small_net(), *toy, RECIPE, progress=False)
    assert capsys.readouterr() == ("", "")
