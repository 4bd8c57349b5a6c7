"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class Muon(torch.optim.Optimizer):
    """Muon for all weight matrices but the last one; fused AdamW for the last and the biases.

    Muon orthogonalises the momentum of a matrix, so that all directions of its gradient count
    alike. A convolution counts as the matrix of its filters. AdamW's learning rate is a sixteenth
    of `lr`. `params`: in the order of the layers.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float):
        params = list(params)
        *matrices, last = [p for p in params if p.ndim >= 2]
        others = [last, *(p for p in params if p.ndim < 2)]
        self.adamw = torch.optim.AdamW(others, lr=lr / 16, weight_decay=weight_decay, fused=True)
        muon = {"params": matrices, "lr": lr, "weight_decay": weight_decay}
        # The group is shared with AdamW: a schedule that changes ours changes AdamW's.
        super().__init__([muon, *self.adamw.param_groups], {"momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        group = self.param_groups[0]
        lr, momentum = group["lr"], group["momentum"]
        for weights in (p for p in group["params"] if p.grad is not None):
            buffer = self.state[weights].setdefault("momentum", torch.zeros_like(weights))
            buffer.lerp_(weights.grad, 1 - momentum)
            update = weights.grad.lerp(buffer, momentum).flatten(1)  # Nesterov momentum
            aspect = math.sqrt(max(1, update.shape[0] / update.shape[1]))
            weights.mul_(1 - lr * group["weight_decay"])
            weights.add_(newton_schulz(update).view_as(weights), alpha=-lr * aspect)
        self.adamw.step()

    def state_dict(self) -> dict:
        """Return the state of both optimisers."""
        return super().state_dict() | {"adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        self.adamw.load_state_dict(state["adamw"])
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        self.adamw.param_groups = self.param_groups[1:]  # shared again


def newton_schulz(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return an approximation of U V^T, where U S V^T is the matrix's SVD, in its own dtype.

    Three iterations train as well here as the usual five. `torch.optim.Muon` always computes in
    bfloat16, which is slow without hardware for it.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x if wide else x.T


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a learning rate that rises to the optimizer's own and falls to almost 0."""
    max_lrs = [group["lr"] for group in optimizer.param_groups]
    momentum = bool(optimizer.defaults.get("momentum") or "betas" in optimizer.defaults)
    return OneCycleLR(optimizer, max_lrs, total_steps=total_steps, cycle_momentum=momentum)


OPTIMIZERS: dict[str, Callable] = {
    "adamw": lambda params, **settings: torch.optim.AdamW(params, **settings, fused=True),
    "muon": Muon,
}
SCHEDULES: dict[str, Callable] = {
    "one-cycle": one_cycle,
    "constant": lambda optimizer, total_steps: LambdaLR(optimizer, lambda step: 1.0),
}
