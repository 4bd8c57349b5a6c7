import copy

import pytest
import torch
from torch.nn import functional as F

from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.muon import Muon
from mnist_mlp.train import fit


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
    found = Muon(model, lr=0.08, weight_decay=0.2)
    start = copy.deepcopy(model.state_dict())
    images, labels = torch.randn(3, 40, 784), torch.randint(10, (3, 40))
    for x, y in zip(images, labels, strict=True):
        for network, optimizers in (model, (found,)), (other, expected):
            network.zero_grad()
            F.cross_entropy(network(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
    for name, wanted in other.named_parameters():
        assert torch.equal(model.state_dict()[name], wanted)
        assert not torch.equal(start[name], wanted)


def test_one_step_turns_a_matrix_by_an_orthogonal_one():
    """All directions of the momentum's row space count alike, to what three iterations leave."""
    torch.manual_seed(0)
    model = EnhancedNet()
    before = model.layer3.weight.detach().clone()
    optimizer = Muon(model, lr=0.01, weight_decay=0.0)
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
    settings = {"epochs": 8, "batch_size": 32, "learning_rate": 0.05, "averaging": 0.9}
    history = fit(model, *toy, **settings, augment=0.0, optimizer="muon", progress=False)
    assert history.settings["optimizer"] == "muon"
    assert evaluate(model, toy[1]).accuracy > 0.9
    muon, adamw = made[0].parts
    last = muon.param_groups[0]["lr"]
    assert last < 0.05 / 25  # the rate of the first step
    assert adamw.param_groups[0]["lr"] == pytest.approx(last / 16)
    assert muon.param_groups[0]["momentum"] != 0.95  # which is cycled too
