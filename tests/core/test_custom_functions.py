"""A recipe's own optimizer, schedule, loss, augmentation and device: used, recorded, told apart."""

import copy
import math
from functools import partial

import pytest
import torch
from helpers import fit_with
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR

from mnist_mlp.data import ImageDataset, epoch_generator
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import Recipe
from mnist_mlp.storage.weights import read_tensors

RATE, BATCH_SIZE, EPOCHS = 0.02, 64, 3
RECIPE = {
    "epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": RATE, "weight_decay": 0.03,
    "ema_decay": 0.0, "schedule": "constant", "augment_strength": 0.0,
    "optimizer": partial(torch.optim.SGD, momentum=0.9),
}  # fmt: skip


def net() -> EnhancedNet:
    torch.manual_seed(0)
    return EnhancedNet()


def constant(step: int, steps: int) -> float:
    return RATE


def cosine(step: int, steps: int) -> float:
    """The learning rate of a given step, counted from 0, by the formula of the half cosine."""
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


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
    """Each batch to the right by a number of pixels of its own."""
    return images.roll(int(torch.randint(1, 9, (), generator=generator)), 2)


def by_hand(model, train_set, rate_of=constant, loss_of=cross_entropy, augment=unchanged):
    """SGD with momentum 0.9 from its formula; return each epoch's weights and its mean loss."""
    parameters = list(model.parameters())
    velocities, step, epochs = [torch.zeros_like(p) for p in parameters], 0, []
    steps = EPOCHS * math.ceil(len(train_set) / BATCH_SIZE)
    for epoch in range(1, EPOCHS + 1):
        generator, total = epoch_generator(0, epoch), 0.0
        order = torch.randperm(len(train_set), generator=generator)
        for chosen in order.split(BATCH_SIZE):
            images = augment(train_set.images[chosen] / 255, generator)
            logits = model((images - 0.1307) / 0.3081)
            loss = loss_of(logits, train_set.labels[chosen])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocities, strict=True):
                    v.copy_(0.9 * v + g + 0.03 * p)
                    p -= rate_of(step, steps) * v
            step += 1
            total += loss.item() * len(chosen)
        weights = [p.detach().clone() for p in parameters]
        epochs.append((weights, total / len(train_set)))
    return epochs


def flipped(images, generator):
    return images.flip(2)


CASES = {
    "optimizer": ({}, {}),
    "schedule": ({"schedule": CosineAnnealingLR}, {"rate_of": cosine}),
    "loss_fn": ({"loss_fn": torch.nn.MultiMarginLoss()}, {"loss_of": margin}),
    "augment": ({"augment": rolled, "augment_strength": 1.0}, {"augment": rolled}),
}


@pytest.mark.filterwarnings("ignore:after step")
@pytest.mark.parametrize("name", CASES)
def test_what_is_your_own_is_what_fit_uses(toy, name):
    """The same weights as by hand, and other ones than without it."""
    own, formulas = CASES[name]
    expected, model = by_hand(net(), toy[0], **formulas), net()
    history = fit_with(model, *toy, **RECIPE | own)
    losses = [epoch["loss"] for epoch in history.epochs]
    assert losses == pytest.approx([loss for _, loss in expected], rel=1e-4)
    weights = expected[history.best_epoch - 1][0]
    for found, wanted in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)
    other = net()
    named = {"optimizer": "adamw", "schedule": "one-cycle", "loss_fn": "cross-entropy"}
    fit_with(other, *toy, **RECIPE | own | {name: named.get(name, "warp")})
    difference = (other.layer1.weight - model.layer1.weight).abs().max()
    assert difference > 100 * (weights[0] - model.layer1.weight).abs().max()


def test_your_own_schedule_is_called_once_with_the_number_of_steps(toy):
    calls = []

    def schedule(optimizer, total_steps):
        calls.append((type(optimizer), total_steps))
        return CosineAnnealingLR(optimizer, total_steps)

    history = fit_with(net(), *toy, **RECIPE | {"schedule": schedule})
    assert calls == [(torch.optim.SGD, 9)]
    found = [epoch["learning_rate"] for epoch in history.epochs]
    assert found == pytest.approx([cosine(step, 9) for step in (3, 6, 9)], abs=1e-12)


def test_your_own_optimizer_gets_the_parameters_and_the_recipes_numbers(toy):
    calls = []

    def optimizer(params, *, lr, weight_decay):
        params = list(params)
        calls.append((params, lr, weight_decay))
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)

    model = net()
    fit_with(model, *toy, **RECIPE | {"optimizer": optimizer})
    ((params, lr, weight_decay),) = calls
    assert all(map(torch.Tensor.is_set_to, params, model.parameters()))
    assert (len(params), lr, weight_decay) == (10, RATE, 0.03)


@pytest.mark.parametrize(("momentum", "cycled"), [(0.9, True), (0.0, False)])
def test_one_cycle_takes_any_optimizer_and_cycles_the_momentum_that_it_has(toy, momentum, cycled):
    made, found = [], []

    def optimizer(params, **numbers):
        made.append(torch.optim.SGD(params, momentum=momentum, **numbers))
        return made[0]

    def remember(history):
        (group,) = made[0].param_groups
        found.append((group["lr"], group["momentum"]))

    one_cycle = RECIPE | {"optimizer": optimizer, "schedule": "one-cycle"}
    fit_with(net(), *toy, **one_cycle, on_epoch=remember)
    other = torch.optim.SGD(net().parameters(), momentum=momentum)
    schedule = OneCycleLR(other, RATE, total_steps=9, cycle_momentum=cycled)
    for lr, beta in found:
        for _ in range(3):
            other.step()
            schedule.step()
        assert (lr, beta) == pytest.approx(
            (schedule.get_last_lr()[0], other.param_groups[0]["momentum"])
        )
    assert len({beta for _, beta in found}) == (3 if cycled else 1)


def test_your_own_loss_gets_float32_logits_and_labels_and_the_validation_is_in_nats(toy):
    seen = []

    def loss_fn(logits, labels):
        seen.append((logits.dtype, tuple(logits.shape), labels.dtype, tuple(labels.shape)))
        return margin(logits, labels)

    model = net()
    own = {"loss_fn": loss_fn, "precision": "bfloat16", "label_smoothing": 0.5}
    history = fit_with(model, *toy, **RECIPE | own)
    shapes = [((n, 10), (n,)) for n in (64, 64, 2)] * 3
    assert seen == [(torch.float32, a, torch.int64, b) for a, b in shapes]
    result, best = evaluate(model, toy[1]), history.epochs[history.best_epoch - 1]
    expected = float(cross_entropy(result.logits, result.labels))
    assert best["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_teacher_logits_go_before_your_own_loss(toy):
    def loss_fn(logits, labels):
        raise AssertionError("not to be called")

    taught = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=torch.randn(len(toy[0]), 10))
    assert len(fit_with(net(), taught, toy[1], **RECIPE | {"loss_fn": loss_fn}).epochs) == EPOCHS


def test_your_own_augmentation_replaces_the_warps_of_the_training_images_alone(toy, monkeypatch):
    seen = []

    def augment(images, generator):
        seen.append((images.clone(), generator))
        return 1 - images

    def warp(*args, **kwargs):
        raise AssertionError("not to be called")

    monkeypatch.setattr("mnist_mlp.recipe.random_warp", warp)
    own = {"augment": augment, "augment_strength": 1.0, "epochs": 1}
    still = RECIPE | {"batch_size": 130, "learning_rate": 1e-9} | own
    model = net()
    history = fit_with(model, *toy, **still)
    ((images, generator),) = seen
    assert (images.dtype, images.shape) == (torch.float32, (130, 28, 28))
    assert isinstance(generator, torch.Generator)
    expected = sorted(bytes(image.numpy()) for image in toy[0].images / 255)
    assert sorted(bytes(image.numpy()) for image in images) == expected
    inverted = ImageDataset(255 - toy[0].images, toy[0].labels)
    assert history.epochs[0]["loss"] == pytest.approx(evaluate(net(), inverted).loss, rel=1e-4)
    assert len(seen) == 1  # not for the validation images
    found = history.epochs[0]["validation_loss"]
    assert found == pytest.approx(evaluate(net(), toy[1]).loss, rel=1e-4)


def test_your_own_random_augmentation_is_the_same_in_a_second_run_and_with_another_seed_another(
    toy,
):
    def weights(seed):
        model = net()
        fit_with(model, *toy, **RECIPE | {"augment": rolled, "seed": seed})
        return torch.cat([p.flatten() for p in model.parameters()])

    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Recording(ImageDataset):
    """Says in `moved` where it was moved to."""

    moved = []  # noqa: RUF012

    def to(self, device):
        Recording.moved.append((len(self), str(device)))
        return super().to(device)


def test_the_device_is_where_model_and_data_are_moved_to(toy, monkeypatch):
    monkeypatch.setattr(Recording, "moved", [])
    train_sets = [
        Recording(part.images, part.labels) for part in (toy[0], toy[0].subset(slice(99)))
    ]
    validation = Recording(toy[1].images, toy[1].labels)
    expected, model = net(), net()
    plain = fit_with(expected, train_sets, validation, **RECIPE)
    assert Recording.moved == []
    moved, to = [], EnhancedNet.to
    monkeypatch.setattr(
        EnhancedNet, "to", lambda self, *a: moved.append((self, *a)) or to(self, *a)
    )
    history = fit_with(model, train_sets, validation, **RECIPE, device="cpu")
    assert moved == [(model, "cpu")]
    assert Recording.moved == [(130, "cpu"), (99, "cpu"), (50, "cpu")]
    assert all(map(torch.equal, expected.parameters(), model.parameters()))
    assert history.best_epoch == plain.best_epoch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_it_trains_from_data_and_a_model_on_the_cpu(toy):
    model = net()
    history = fit_with(model, *toy, **RECIPE | {"epochs": 20}, device="cuda")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert evaluate(model, toy[1].to("cuda")).accuracy == history.validation_accuracy


# Records and checkpoints


def scaled(factor, power=1):
    def loss(logits, labels):
        return factor * torch.nn.functional.cross_entropy(logits, labels) ** power

    return loss


class Shift:
    def __init__(self, columns):
        self.columns = columns

    def apply(self, images, generator):
        return images.roll(self.columns, 2)


# The field, its value, what its record says; another value and what its record says.
OWN = [
    (
        "optimizer", partial(torch.optim.SGD, momentum=0.9), "torch.optim.sgd.SGD(momentum=0.9)",
        partial(torch.optim.SGD, momentum=0.8), "torch.optim.sgd.SGD(momentum=0.8)",
    ),
    (
        "optimizer", torch.optim.SGD, "torch.optim.sgd.SGD",
        torch.optim.RMSprop, "torch.optim.rmsprop.RMSprop",
    ),
    (
        "schedule", CosineAnnealingLR, "torch.optim.lr_scheduler.CosineAnnealingLR",
        ExponentialLR, "torch.optim.lr_scheduler.ExponentialLR",
    ),
    ("loss_fn", torch.nn.MultiMarginLoss(), "MultiMarginLoss", margin, f"{__name__}.margin"),
    ("augment", rolled, f"{__name__}.rolled", flipped, f"{__name__}.flipped"),
    ("augment", flipped, f"{__name__}.flipped", "warp", "warp"),
    ("loss_fn", scaled(0.5), "loss(factor=0.5, power=1)", scaled(2.0), "loss(factor=2.0, power=1)"),
    ("augment", Shift(1).apply, "apply(columns=1)", Shift(2).apply, "apply(columns=2)"),
    ("device", "cpu", "cpu", None, "None"),
]  # fmt: skip
EACH = pytest.mark.parametrize(
    ("name", "value", "record", "other", "other_record"), OWN,
    ids=[f"{name}-{record}" for name, _, record, *_ in OWN],
)  # fmt: skip


@EACH
def test_a_record_and_a_checkpoint_name_what_is_your_own(
    toy, tmp_path, name, value, record, other, other_record
):
    path = tmp_path / "run.pt"
    history = fit_with(net(), *toy, checkpoint=path, **RECIPE | {name: value, "epochs": 1})
    assert record in history.recipe.asdict()[name]
    fingerprint = read_tensors(path)["fingerprint"]
    assert fingerprint[name] == history.recipe.asdict()[name]
    assert {key: fingerprint[key] for key in history.recipe.asdict()} == history.recipe.asdict()


@EACH
def test_a_checkpoint_with_another_of_your_own_is_refused_and_both_are_named(
    toy, tmp_path, name, value, record, other, other_record
):
    path = tmp_path / "run.pt"
    stop = {"checkpoint": path, "on_epoch": lambda history: True}
    fit_with(net(), *toy, **stop, **RECIPE | {name: value})
    before, model = path.read_bytes(), net()
    untouched = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"run.pt is the checkpoint of another") as found:
        fit_with(model, *toy, checkpoint=path, **RECIPE | {name: other})
    recorded = [Recipe(**{name: v}).asdict()[name] for v in (value, other)]
    assert f"{name} was {recorded[0]!r}, is {recorded[1]!r}" in str(found.value)
    assert record in str(found.value)
    assert other_record in str(found.value)
    assert path.read_bytes() == before
    assert all(torch.equal(untouched[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v, *_ in OWN])
def test_with_what_is_your_own_a_stopped_training_goes_on_to_the_same_bits(
    toy, tmp_path, name, value
):
    recipe, path, expected = RECIPE | {name: value}, tmp_path / "run.pt", net()
    whole = fit_with(expected, *toy, **recipe)
    assert fit_with(net(), *toy, checkpoint=path, on_epoch=lambda h: True, **recipe).stopped
    model = net()
    history = fit_with(model, *toy, checkpoint=path, **recipe)
    assert [e["loss"] for e in history.epochs] == [e["loss"] for e in whole.epochs]
    assert all(map(torch.equal, expected.parameters(), model.parameters()))


def test_a_lambda_is_refused_with_a_checkpoint_for_it_has_no_name_of_its_own(toy, tmp_path):
    recipe = RECIPE | {"augment": lambda images, generator: images}
    fit_with(EnhancedNet(), *toy, **recipe)
    words = r"with a checkpoint augment must be a named function, found .*<lambda>"
    with pytest.raises(ValueError, match=words):
        fit_with(EnhancedNet(), *toy, **recipe, checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.glob("run.pt*"))
