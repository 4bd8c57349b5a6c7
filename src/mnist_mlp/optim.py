"""Optimizers, learning-rate schedules, and the precision of the matrix products."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class Muon(torch.optim.Optimizer):
    """Muon for the hidden weight matrices; AdamW for the last matrix and all biases.

    Muon orthogonalises the momentum of a matrix, so that all directions of its gradient count
    alike. A convolution counts as the matrix of its filters.

    Args:
        params: The parameters, in the order of the layers.
        lr: The learning rate of Muon. AdamW's is a sixteenth of it.
        weight_decay: The decoupled weight decay of both.
        bfloat16: Whether to orthogonalise in bfloat16.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, bfloat16: bool = False
    ):
        params = list(params)
        matrices = [p for p in params if p.ndim >= 2]
        biases = [p for p in params if p.ndim < 2]

        self.bfloat16 = bfloat16
        self.adamw = torch.optim.AdamW(
            [matrices[-1], *biases], lr=lr / 16, weight_decay=weight_decay, fused=True
        )
        hidden = {"params": matrices[:-1], "lr": lr, "weight_decay": weight_decay}

        # The second group is AdamW's own: a schedule that changes ours changes AdamW's.
        super().__init__([hidden, *self.adamw.param_groups], {"momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        group = self.param_groups[0]
        learning_rate = group["lr"]
        momentum = group["momentum"]

        for weight in group["params"]:
            if weight.grad is None:
                continue

            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            average = state["momentum"]
            average.lerp_(weight.grad, 1 - momentum)

            update = weight.grad.lerp(average, momentum).flatten(1)  # Nesterov momentum
            if self.bfloat16:
                update = update.bfloat16()
            rows, columns = update.shape
            scale = math.sqrt(max(1, rows / columns))

            weight.mul_(1 - learning_rate * group["weight_decay"])
            weight.add_(newton_schulz(update).view_as(weight), alpha=-learning_rate * scale)

        self.adamw.step()

    def state_dict(self) -> dict:
        """Return the state of both optimizers."""
        return {**super().state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        self.adamw.load_state_dict(state["adamw"])
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        self.adamw.param_groups = self.param_groups[1:]  # shared again


def newton_schulz(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return an approximation of U V^T, where U S V^T is the singular value decomposition.

    Three iterations train as well here as the usual five. `torch.optim.Muon` always computes in
    bfloat16, which is slow without hardware for it; this keeps the dtype of the matrix.
    """
    is_wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if is_wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)

    for _ in range(iterations):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)

    return x if is_wide else x.T


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a learning rate that rises to the optimizer's own and then falls to almost 0.

    The momentum falls and rises again, if the optimizer has one.
    Source: Smith & Topin, "Super-convergence", 2018.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    has_momentum = "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))
    return OneCycleLR(optimizer, peaks, total_steps=total_steps, cycle_momentum=has_momentum)


def constant(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a learning rate that stays the optimizer's own."""
    return LambdaLR(optimizer, lambda step: 1.0)


def bfloat16_units() -> str:
    """Return the CPU's units for matrix products in bfloat16: "AMX", "AVX-512 BF16" or "none".

    "none" also if torch is told not to use them (`ATEN_CPU_CAPABILITY=avx2`).
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return "none"

    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        return "AMX"
    if capabilities.get("avx512_bf16"):
        return "AVX-512 BF16"
    return "none"


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Return whether the device has units for products in bfloat16; emulation is slow."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bfloat16_units() != "none"
