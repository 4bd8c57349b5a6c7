"""The Muon optimiser for the matrices of a network, AdamW for the rest."""

import math

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Muon for the model's weight matrices but the last; fused AdamW for the last and the biases.

    A step of Muon moves a matrix by its orthogonalised momentum, so that all directions of its
    gradient count alike: it learns about twice as much in an epoch as AdamW does. A convolution
    counts as the matrix of its filters. AdamW's rate is a sixteenth of `lr`.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float):
        *matrices, last = [p for p in model.parameters() if p.ndim >= 2]
        rest = [last, *(p for p in model.parameters() if p.ndim < 2)]
        self.rest = torch.optim.AdamW(rest, lr=lr / 16, weight_decay=weight_decay, fused=True)
        muon = {"params": matrices, "lr": lr, "weight_decay": weight_decay}
        # Sharing AdamW's group: a schedule that moves ours moves its.
        super().__init__([muon, *self.rest.param_groups], {"momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients."""
        group = self.param_groups[0]
        rate, momentum = group["lr"], group["momentum"]
        for weights in group["params"]:
            moving = self.state[weights].setdefault("momentum", torch.zeros_like(weights))
            moving.lerp_(weights.grad, 1 - momentum)
            ahead = weights.grad.lerp(moving, momentum).flatten(1)  # Nesterov's momentum
            tall = math.sqrt(max(1, ahead.shape[0] / ahead.shape[1]))
            weights.mul_(1 - rate * group["weight_decay"])
            weights.add_(orthogonalised(ahead).view_as(weights), alpha=-rate * tall)
        self.rest.step()

    def state_dict(self) -> dict:
        """Return the state of both, to be loaded by `load_state_dict`."""
        return super().state_dict() | {"rest": self.rest.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`."""
        self.rest.load_state_dict(state["rest"])
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        self.rest.param_groups = self.param_groups[1:]  # shared again


def orthogonalised(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return about U V^T of the matrix's singular value decomposition U S V^T, in its own dtype.

    By Newton-Schulz iteration: three learn as well here as the usual five. Unlike in
    `torch.optim.Muon`, which always turns to bfloat16, far slower on a processor that
    has no such products, they are of the precision of `torch.set_float32_matmul_precision`.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x if wide else x.T
