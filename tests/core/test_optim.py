import copy
import platform
import subprocess
import sys

import pytest
import torch
from helpers import fit_with
from torch.nn import functional as F

from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.optim import AdamW, Muon, hardware
from mnist_mlp.optim.hardware import float32_products
from mnist_mlp.optim.muon import newton_schulz
from mnist_mlp.recipe import Recipe
from mnist_mlp.research.convnet import ConvNet


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


def test_adamw_is_torchs_to_the_bit_also_after_a_checkpoint():
    torch.manual_seed(0)
    model = EnhancedNet()
    other = copy.deepcopy(model)
    settings = {"lr": 0.005, "weight_decay": 0.1}
    expected = torch.optim.AdamW(other.parameters(), **settings, fused=True)
    found = AdamW(model.parameters(), **settings)
    for step in range(20):
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            one.grad = two.grad = torch.randn_like(one)
        for optimizer in (found, expected):
            optimizer.param_groups[0]["lr"] = 0.005 + step / 1000
            optimizer.step()
        if step == 10:
            state = copy.deepcopy(found.state_dict())
            found = AdamW(model.parameters(), **settings)
            found.load_state_dict(state)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert found.state_dict()["param_groups"] == expected.state_dict()["param_groups"]
    found.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_does_not_wait_for_the_import_of_torchs_compiler(tmp_path, optimizer):
    code = f"""
import sys, torch
from mnist_mlp import EnhancedNet, ImageDataset, Recipe, fit
images, labels = torch.randint(256, (60, 28, 28), dtype=torch.uint8), torch.arange(60) % 10
part = ImageDataset(images, labels)
recipe = Recipe(epochs=1, batch_size=30, optimizer={optimizer!r})
fit(EnhancedNet(), part, part, recipe, checkpoint={str(tmp_path / "run.pt")!r}, progress=False)
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory")
def test_the_memory_of_a_step_is_not_faulted_in_again():
    code = """
import resource, torch
from statistics import median
from mnist_mlp import EnhancedNet, ImageDataset, Recipe, fit
images, labels = torch.randint(256, (4096, 28, 28), dtype=torch.uint8), torch.arange(4096) % 10
part, faults = ImageDataset(images, labels), []
def count(history):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
recipe = Recipe(epochs=10, batch_size=512)
fit(EnhancedNet(), part, part.subset(torch.arange(512)), recipe, on_epoch=count)
print(median(b - a for a, b in zip(faults[1:], faults[2:])) / 8)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    pages_of_a_batch = 512 * 784 * 4 / 4096
    assert float(done.stdout.split()[-1]) < pages_of_a_batch / 4


def test_products_in_float32_have_float32s_digits_on_every_processor():
    torch.manual_seed(0)
    a, b = torch.randn(512, 784), torch.randn(784, 512)
    exact = a.double() @ b.double()
    with float32_products():
        error = (a @ b - exact).norm() / exact.norm()
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    assert error < 1e-6 < 1e-3 < (rounded - exact).norm() / exact.norm()


@pytest.mark.parametrize("chosen", ["none", "ieee", "tf32"])
def test_the_users_setting_of_float32_products_is_respected_and_restored(chosen, monkeypatch):
    matmul = torch.backends.mkldnn.matmul
    monkeypatch.setattr(hardware, "bfloat16_units", lambda: "AVX-512 BF16")
    matmul.fp32_precision = chosen
    try:
        try:
            with float32_products():
                inside = matmul.fp32_precision
                raise FloatingPointError
        except FloatingPointError:
            assert inside == ("bf16" if chosen == "none" else chosen)
        assert matmul.fp32_precision == chosen
    finally:
        matmul.fp32_precision = "none"


@pytest.mark.parametrize(("units", "expected"), [("AVX-512 BF16", "bf16"), ("AMX", "none")])
def test_training_and_evaluation_multiply_through_onednn_where_it_keeps_float32(
    toy, monkeypatch, units, expected
):
    seen = []

    class Watched(EnhancedNet):
        def forward(self, images):
            seen.append((self.training, torch.backends.mkldnn.matmul.fp32_precision))
            return super().forward(images)

    monkeypatch.setattr(hardware, "bfloat16_units", lambda: units)
    fit_with(Watched(), *toy, epochs=3, batch_size=32, precision="float32")
    assert set(seen) == {(True, expected), (False, expected)}
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    seen.clear()
    evaluate(Watched(), toy[1])
    assert seen == [(False, expected)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_muon_computes_in_the_recipes_precision(precision):
    optimizer = Recipe(optimizer="muon", precision=precision).make_optimizer(EnhancedNet())
    assert optimizer.bfloat16 == (precision == "bfloat16")


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
    assert history.recipe.asdict()["optimizer"] == "muon"
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
