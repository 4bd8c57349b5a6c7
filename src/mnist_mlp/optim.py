"""Optimizers, learning-rate schedules, and the precision of the matrix products."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class Muon(torch.optim.Optimizer):
    """Muon for all weight matrices but the last, AdamW for the last one and all biases.

    Muon orthogonalises the momentum of a weight matrix, so that the update is about equally large
    in all directions. The weight of a convolution is flattened to one row per filter.

    Args:
        params: The parameters, in the order of the layers.
        lr: The learning rate of Muon. AdamW uses a sixteenth of it.
        weight_decay: The decoupled weight decay of Muon and AdamW.
        bfloat16: Whether to orthogonalise in bfloat16.

    Raises:
        ValueError: There is no weight matrix.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, bfloat16: bool = False
    ):
        params = list(params)
        matrices = [parameter for parameter in params if parameter.ndim >= 2]
        biases = [parameter for parameter in params if parameter.ndim < 2]
        if not matrices:
            raise ValueError("Muon needs at least one weight matrix, found none.")

        self.bfloat16 = bfloat16
        self.adamw = torch.optim.AdamW(
            [matrices[-1], *biases], lr=lr / 16, weight_decay=weight_decay, fused=True
        )
        muon_group = {"params": matrices[:-1], "lr": lr, "weight_decay": weight_decay}

        # AdamW's groups are shared, so that a schedule that changes our rates changes AdamW's too.
        super().__init__([muon_group, *self.adamw.param_groups], {"momentum": 0.95})

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
            average_gradient = state["momentum"]
            average_gradient.lerp_(weight.grad, 1 - momentum)

            # Nesterov momentum: mix the gradient into the updated average again.
            direction = weight.grad.lerp(average_gradient, momentum).flatten(1)
            if self.bfloat16:
                direction = direction.bfloat16()
            direction = newton_schulz(direction)

            # As in the source, a matrix with more rows than columns takes larger steps.
            rows, columns = direction.shape
            step_size = learning_rate * math.sqrt(max(1, rows / columns))

            weight.mul_(1 - learning_rate * group["weight_decay"])
            weight.add_(direction.view_as(weight), alpha=-step_size)

        self.adamw.step()

    def state_dict(self) -> dict:
        """Return the state of Muon and AdamW."""
        return {**super().state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.adamw.load_state_dict(state["adamw"])
        muon_state = {"state": state["state"], "param_groups": state["param_groups"]}
        super().load_state_dict(muon_state)

        # Loading replaces the groups: share them again.
        self.adamw.param_groups = self.param_groups[1:]


def newton_schulz(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return an approximation of U V^T, where U S V^T is the matrix's singular value decomposition.

    Each iteration applies the polynomial a x + b x^3 + c x^5 to all singular values, which drives
    them towards 1. Three iterations train as well here as the usual five.

    The result has the dtype of the matrix. (`torch.optim.Muon` always computes in bfloat16, which
    is slow without hardware for it.)

    Args:
        matrix: float32 or bfloat16 of shape (rows, columns).
        iterations: How often to apply the polynomial.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = 3.4445, -4.775, 2.0315

    # The products are smaller if the matrix has at most as many rows as columns.
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)

    for _ in range(iterations):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # b * gram + c * gram @ gram
        x = torch.addmm(x, polynomial, x, beta=a)  # a * x + polynomial @ x

    return x.T if is_tall else x


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a scheduler whose rate rises to the optimizer's rate and then falls to almost 0.

    The momentum, if the optimizer has one, falls and rises again.

    Args:
        optimizer: Its learning rates become the peaks of the schedule.
        total_steps: The number of steps of the whole training.

    Source: Smith & Topin, "Super-convergence", 2018.
    """
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    has_momentum = "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))
    return OneCycleLR(optimizer, peak_rates, total_steps=total_steps, cycle_momentum=has_momentum)


def constant_rate(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a scheduler whose rate stays the optimizer's rate."""
    return LambdaLR(optimizer, lambda step: 1.0)


def bfloat16_units() -> str:
    """Return the name of the CPU's bfloat16 unit: "AMX", "AVX-512 BF16" or "none".

    "none" means that the CPU has neither, or that torch must not use them
    (`ATEN_CPU_CAPABILITY=avx2`).
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
    """Return whether bfloat16 is fast: on some GPUs, and on a CPU with AMX or AVX-512 BF16."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bfloat16_units() != "none"
