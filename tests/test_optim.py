import copy

import pytest
import torch
from helpers import fit_with
from torch.nn import functional as F

from mnist_lab.research.convnet import ConvNet
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.optim import Muon, newton_schulz


def test_hidden_matrices_move_by_torchs_muon_and_the_rest_by_adamw():
    torch.manual_seed(0)
    model = EnhancedNet()
    other = copy.deepcopy(model)
    names = [f"layer{i}.weight" for i in (1, 2, 3, 4)]
    hidden = [p for name, p in other.named_parameters() if name in names]
    rest = [p for name, p in other.named_parameters() if name not in names]
    expected = (
        torch.optim.Muon(hidden, lr=0.08, weight_decay=0.2, ns_steps=3),
        torch.optim.AdamW(rest, lr=0.005, weight_decay=0.2, fused=True),
    )
    found = Muon(model.parameters(), lr=0.08, weight_decay=0.2)
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            one.grad = two.grad = torch.randn_like(one)
        for optimizer in (found, *expected):
            optimizer.step()
    for name, wanted in other.named_parameters():
        # torch's Muon computes in bfloat16: the moves agree to its rounding, AdamW's to the bit.
        moved, expected = model.state_dict()[name] - start[name], wanted.detach() - start[name]
        assert (moved - expected).norm() <= (0.05 if name in names else 0) * expected.norm()
        assert expected.norm() > 0


def test_muon_in_bfloat16_moves_as_in_float32_to_its_rounding():
    torch.manual_seed(0)
    start = EnhancedNet()
    moved = []
    for bfloat16 in (False, True):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        optimizer = Muon(model.parameters(), lr=0.05, weight_decay=0.0, bfloat16=bfloat16)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        moved.append((model.layer1.weight - start.layer1.weight).detach())
    assert 0 < (moved[0] - moved[1]).norm() < 0.02 * moved[0].norm()


def test_a_tall_matrix_moves_further_by_the_root_of_its_sides_ratio_as_torchs_does():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 80), torch.nn.Linear(80, 10))
    tall, start = copy.deepcopy(model[0].weight), model[0].weight.detach().clone()
    expected = torch.optim.Muon([tall], lr=0.08, weight_decay=0.0, ns_steps=3)
    found = Muon(model.parameters(), lr=0.08, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    tall.grad = model[0].weight.grad.clone()
    expected.step()
    found.step()
    moved, wanted = model[0].weight.detach() - start, tall.detach() - start
    assert (moved - wanted).norm() <= 0.05 * wanted.norm()


def test_one_step_turns_a_matrix_by_an_orthogonal_one():
    """All directions of the momentum's row space count alike, to what three iterations leave."""
    torch.manual_seed(0)
    model = EnhancedNet()
    before = model.layer3.weight.detach().clone()
    optimizer = Muon(model.parameters(), lr=0.01, weight_decay=0.0)
    F.cross_entropy(model(torch.randn(512, 784)), torch.randint(10, (512,))).backward()
    gradient = torch.linalg.svdvals(model.layer3.weight.grad)
    optimizer.step()
    moved = torch.linalg.svdvals((before - model.layer3.weight.detach()) / 0.01)
    assert gradient[40] / gradient[0] < 0.2
    assert moved[40] / moved[0] > 0.4
    assert 0.6 < moved[0] < 1.4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_learns_with_muon_and_its_schedule_moves_both_parts(toy, monkeypatch):
    made = []
    original = Muon.__init__

    def remember(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Muon, "__init__", remember)
    torch.manual_seed(0)
    model = EnhancedNet()
    recipe = {"epochs": 8, "batch_size": 32, "learning_rate": 0.05, "ema_decay": 0.9}
    history = fit_with(model, *toy, **recipe, augment_strength=0.0, optimizer="muon")
    assert history.recipe.optimizer == "muon"
    assert evaluate(model, toy[1]).accuracy > 0.9
    group = made[0].param_groups[0]
    assert group["lr"] < 0.05 / 25  # the rate of the first step
    assert made[0].adamw.param_groups[0]["lr"] == pytest.approx(group["lr"] / 16)
    assert group["momentum"] != 0.95  # which is cycled too


def test_the_newton_schulz_matrix_is_that_of_the_singular_value_decomposition():
    """To what three iterations leave, and for a tall matrix as for a wide one."""
    torch.manual_seed(0)
    for shape in (30, 80), (80, 30):
        matrix = torch.randn(shape, dtype=torch.double)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = newton_schulz(matrix, iterations=5)
        assert (found - u @ v).norm() < 0.35 * (u @ v).norm()
        assert torch.allclose(newton_schulz(matrix.T), newton_schulz(matrix).T)


def test_a_convolution_counts_as_the_matrix_of_its_filters():
    torch.manual_seed(0)
    model = ConvNet()
    before = model.layers[3].weight.detach().clone()
    optimizer = Muon(model.parameters(), lr=0.01, weight_decay=0.0)
    F.cross_entropy(model(torch.randn(64, 784)), torch.randint(10, (64,))).backward()
    gradient = model.layers[3].weight.grad.flatten(1).clone()
    optimizer.step()
    moved = (before - model.layers[3].weight.detach()).flatten(1) / 0.01
    assert torch.allclose(moved, newton_schulz(gradient), atol=1e-3)


def test_muon_leaves_a_frozen_layer_as_it_is(toy):
    torch.manual_seed(0)
    model = EnhancedNet()
    model.layer2.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit_with(model, *toy, epochs=1, batch_size=64, optimizer="muon", ema_decay=0.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"layer2.weight"}
