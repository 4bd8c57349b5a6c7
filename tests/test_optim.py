"""Muon moves hidden matrices as torch's Muon does, and all else as AdamW."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from mnist_mlp import Recipe, fit
from mnist_mlp.optim import Muon, newton_schulz, one_cycle


def small_net() -> nn.Module:
    """Return a network whose first matrix is wide, the second tall, and the last one neither."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 80), nn.ReLU(), nn.Linear(80, 10)
    )


def set_random_gradients(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_moves_weights_as_torchs_muon_and_adamw():
    model = small_net()
    start = copy.deepcopy(model.state_dict())
    optimizer = Muon(model.parameters(), lr=0.08, weight_decay=0.2)

    expected = copy.deepcopy(model)
    hidden = [expected[0].weight, expected[2].weight]
    rest = [expected[0].bias, expected[2].bias, expected[4].weight, expected[4].bias]
    torch_muon = torch.optim.Muon(hidden, lr=0.08, weight_decay=0.2, ns_steps=3)
    torch_adamw = torch.optim.AdamW(rest, lr=0.08 / 16, weight_decay=0.2)

    for seed in (1, 2, 3):
        set_random_gradients(model, seed)
        set_random_gradients(expected, seed)
        optimizer.step()
        torch_muon.step()
        torch_adamw.step()

    for name, wanted in expected.state_dict().items():
        expected_move = wanted - start[name]
        move = model.state_dict()[name] - start[name]
        # torch's Muon computes in bfloat16: the moves agree to its rounding.
        tolerance = 0.05 if name in ("0.weight", "2.weight") else 1e-5
        assert (move - expected_move).norm() <= tolerance * expected_move.norm(), name


def test_muon_in_bfloat16_moves_as_in_float32_to_its_rounding():
    moves = []
    for bfloat16 in (False, True):
        model = small_net()
        set_random_gradients(model)
        Muon(model.parameters(), lr=0.05, weight_decay=0.0, bfloat16=bfloat16).step()
        moves.append((model[0].weight - small_net()[0].weight).detach())

    assert 0 < (moves[0] - moves[1]).norm() < 0.02 * moves[0].norm()


def test_muon_takes_a_convolution_as_the_matrix_of_its_filters():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 4, 6, 6))
    before = model[0].weight.detach().clone()
    set_random_gradients(model)
    gradient = model[0].weight.grad.flatten(1)

    Muon(model.parameters(), lr=0.01, weight_decay=0.0).step()

    move = (before - model[0].weight.detach()).flatten(1) / 0.01
    torch.testing.assert_close(move, newton_schulz(gradient), atol=1e-3, rtol=0)


def test_muon_leaves_a_frozen_layer_as_it_is():
    model = small_net()
    set_random_gradients(model)
    model[2].weight.grad = None

    Muon(model.parameters(), lr=0.05, weight_decay=0.1).step()

    assert torch.equal(model[2].weight, small_net()[2].weight)
    assert not torch.equal(model[0].weight, small_net()[0].weight)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
def test_newton_schulz_agrees_with_the_svd(shape):
    """To the accuracy of its iterations, which leave singular values of about 0.7 to 1.2."""
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.double)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)

    five = newton_schulz(matrix, iterations=5)

    assert (five - u @ v).norm() < 0.35 * (u @ v).norm()
    torch.testing.assert_close(newton_schulz(matrix.T), newton_schulz(matrix).T)


@pytest.mark.filterwarnings("ignore:after epoch")
def test_fit_learns_with_muon(toy):
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.05, ema_decay=0.9, optimizer="muon")
    recipe = replace(recipe, precision="float32", augment_strength=0.0)

    history = fit(small_net(), *toy, recipe)

    assert history.validation_accuracy > 0.9


def test_one_cycle_moves_the_rates_of_both_parts_of_muon():
    model = small_net()
    set_random_gradients(model)
    optimizer = Muon(model.parameters(), lr=0.05, weight_decay=0.0)
    schedule = one_cycle(optimizer, total_steps=20)

    for _ in range(4):
        optimizer.step()
        schedule.step()

    group = optimizer.param_groups[0]
    assert 0.05 / 25 < group["lr"] <= 0.05
    assert 0.85 <= group["momentum"] < 0.95
    assert optimizer.adamw.param_groups[0]["lr"] == pytest.approx(group["lr"] / 16)


@pytest.mark.parametrize(("momentum", "cycled"), [(0.9, True), (0.0, False)])
def test_one_cycle_cycles_momentum_only_where_there_is_one(momentum, cycled):
    optimizer = torch.optim.SGD(small_net().parameters(), lr=0.1, momentum=momentum)

    one_cycle(optimizer, total_steps=20)

    assert (optimizer.param_groups[0]["momentum"] != momentum) == cycled
