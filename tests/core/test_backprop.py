"""The step without autograd is the textbook step, and only where it can be."""

from dataclasses import replace

import pytest
import torch
from helpers import fit_with
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.lr_scheduler import LambdaLR

from mnist_mlp import EnhancedNet
from mnist_mlp.optim.adamw import AdamW
from mnist_mlp.optim.hardware import multiplies_bfloat16

RECIPE = {"epochs": 8, "batch_size": 64, "learning_rate": 0.005}


class Subclass(EnhancedNet):
    """The same network, which autograd trains."""


def trained(kind, toy, change=lambda model: None, **recipe):
    """Return the trained weights, and the metrics of each epoch."""
    torch.manual_seed(0)
    model = kind()
    change(model)
    history = fit_with(model, *toy, **RECIPE | recipe)
    metrics = [{k: v for k, v in e.items() if k != "seconds"} for e in history.epochs]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


@pytest.fixture
def no_autograd(monkeypatch):
    def refuse(*args, **more):
        raise AssertionError("autograd was used")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)


@pytest.mark.filterwarnings("ignore:after step")
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"augment_strength": 0.0},
        {"epochs": 1, "batch_size": 130, "schedule": "constant"},
    ],
    ids=["24 warped", "24 plain", "one"],
)
def test_it_has_the_losses_and_weights_of_autograd(toy, precision, ema_decay, steps):
    """Also after one step, when the average is the weights themselves."""
    if precision == "bfloat16" and not multiplies_bfloat16():
        pytest.skip("the processor emulates bfloat16")
    what = {"precision": precision, "ema_decay": ema_decay, **steps}
    expected, metrics = trained(Subclass, toy, **what)
    found, same_metrics = trained(EnhancedNet, toy, **what)
    torch.manual_seed(0)
    start = torch.cat([p.detach().flatten() for p in EnhancedNet().parameters()])
    # Not to the bit, and not weight by weight: another processor may sum the same products in
    # another order, and AdamW turns the rounding of a gradient near 0 into a whole step.
    share = {"float32": 1e-3, "bfloat16": 5e-2}[precision]
    assert (found - expected).norm() < share * (expected - start).norm()
    assert same_metrics == [pytest.approx(epoch, rel=share, abs=0.03) for epoch in metrics]


def test_the_published_recipe_is_trained_without_autograd(toy, no_autograd):
    trained(EnhancedNet, toy)
    with pytest.raises(AssertionError, match="autograd was used"):
        trained(Subclass, toy)


def test_a_batch_size_of_a_billion_needs_no_memory_for_a_billion_images(toy, no_autograd):
    with pytest.warns(UserWarning, match="an epoch is one step"):
        weights, _ = trained(EnhancedNet, toy, batch_size=10**9)
    assert weights.isfinite().all()


def negate(parameter):
    parameter.grad.neg_()


def half(module, inputs, output):
    return output / 2


def replaced(model, layer):
    model.layer2 = layer


# What stands in the way of the step without autograd: changes of the model.
CHANGES = {
    "a frozen layer": lambda model: model.layer1.requires_grad_(False),
    "a layer's hook": lambda model: model.layer3.register_forward_hook(half),
    "a hook before the model": lambda model: model.register_forward_pre_hook(lambda m, x: -x[0]),
    "a gradient's hook": lambda model: model.layer1.weight.register_hook(lambda g: -g),
    "a hook after the gradient": lambda model: (
        model.layer1.weight.register_post_accumulate_grad_hook(negate)
    ),
    "a layer of another kind": lambda model: replaced(
        model, nn.Sequential(nn.Linear(512, 256), nn.Tanh())
    ),
    "no bias": lambda model: replaced(model, nn.Linear(512, 256, bias=False)),
    "pruned": lambda model: prune.l1_unstructured(model.layer2, "weight", 0.5),
    "spectral norm": lambda model: spectral_norm(model.layer2),
    "a forward of your own": lambda model: setattr(
        model, "forward", lambda x: model.layer5(model.layer4.weight.new_ones(len(x), 64))
    ),
}


@pytest.mark.filterwarnings("ignore:after step", "ignore:.*weights_only")
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_is_trained_as_it_is(toy, change):
    expected, metrics = trained(Subclass, toy, CHANGES[change])
    found, same_metrics = trained(EnhancedNet, toy, CHANGES[change])
    assert torch.equal(found, expected)
    assert same_metrics == metrics


@pytest.mark.filterwarnings("ignore:after step")
def test_a_hook_of_all_modules_is_called(toy):
    with register_module_forward_hook(half):
        expected, metrics = trained(Subclass, toy)
        found, same_metrics = trained(EnhancedNet, toy)
    assert torch.equal(found, expected)
    assert same_metrics == metrics


def of_the_last_layers(parameters, **settings):
    return AdamW(list(parameters)[4:], **settings)


def in_reverse(parameters, **settings):
    return AdamW(reversed(list(parameters)), **settings)


def two_rates(optimizer, total_steps):
    """Return a schedule under which the first layer stays as it is."""
    (group,) = optimizer.param_groups
    first, rest = group["params"][:2], group["params"][2:]
    group["params"] = rest
    optimizer.add_param_group({"params": first, "lr": 0.0})
    return LambdaLR(optimizer, lambda step: 1.0)


def with_hook(optimizer, total_steps):
    """Return a schedule under which every step halves the first layer."""
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.register_step_post_hook(lambda *given: weight.detach().mul_(0.5))
    return LambdaLR(optimizer, lambda step: 1.0)


@pytest.mark.filterwarnings("ignore:after step")
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param({"label_smoothing": 0.1}, id="smoothing"),
        pytest.param({"loss_fn": nn.MultiMarginLoss()}, id="loss"),
        pytest.param({"optimizer": torch.optim.SGD}, id="SGD"),
        pytest.param({"optimizer": torch.optim.AdamW}, id="torch's AdamW"),
        pytest.param({"optimizer": "muon"}, id="Muon"),
        pytest.param({"optimizer": of_the_last_layers}, id="AdamW of the last layers"),
        pytest.param({"optimizer": in_reverse}, id="AdamW in another order"),
        pytest.param({"schedule": two_rates}, id="two rates"),
        pytest.param({"schedule": with_hook}, id="an optimizer's hook"),
    ],
)
def test_another_recipe_is_trained_as_it_says(toy, recipe):
    expected, metrics = trained(Subclass, toy, **recipe)
    found, same_metrics = trained(EnhancedNet, toy, **recipe)
    assert torch.equal(found, expected)
    assert same_metrics == metrics


@pytest.mark.filterwarnings("ignore:after step")
def test_a_teachers_logits_are_not_passed_over(toy):
    train, validation = toy
    taught = replace(train, teacher_logits=torch.randn(len(train), 10)), validation
    assert torch.equal(trained(EnhancedNet, taught)[0], trained(Subclass, taught)[0])
