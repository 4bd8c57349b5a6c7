"""Muon: an optimiser that orthogonalises the updates of the hidden layers."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from mnist_mlp.optim.adamw import AdamW, WithoutCompiler


class Muon(WithoutCompiler, torch.optim.Optimizer):
    """Muon for all weight matrices but the last one; fused AdamW for the last and the biases.

    Muon orthogonalises the momentum of a matrix, so that all directions of its gradient count
    alike. A convolution counts as the matrix of its filters. AdamW's learning rate is a sixteenth
    of `lr`. `params`: in the order of the layers. `bfloat16`: orthogonalise in bfloat16.
    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, bfloat16: bool = False
    ):
        params, self.bfloat16 = list(params), bfloat16
        *matrices, last = [p for p in params if p.ndim >= 2]
        others = [last, *(p for p in params if p.ndim < 2)]
        self.adamw = AdamW(others, lr=lr / 16, weight_decay=weight_decay)
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
            update = update.bfloat16() if self.bfloat16 else update
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
