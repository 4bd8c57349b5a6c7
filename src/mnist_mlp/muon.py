"""The Muon optimiser for the matrices of a network, AdamW for the rest."""

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Muon for the model's weight matrices but the last; fused AdamW for the last and the biases.

    A step of Muon moves a matrix by its orthogonalised momentum, so that all directions of its
    gradient count alike: about half as many epochs as AdamW needs, each about twice as long where
    bfloat16 products are fast (AMX, a GPU), and longer elsewhere, for torch's Muon always computes
    in bfloat16. AdamW's rate is a sixteenth of `lr`.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float):
        matrices = [p for p in model.parameters() if p.ndim == 2][:-1]
        rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        self.parts = (
            # Three iterations of Newton-Schulz learn as well here as the usual five.
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, ns_steps=3),
            torch.optim.AdamW(rest, lr=lr / 16, weight_decay=weight_decay, fused=True),
        )
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {"momentum": 0.95})  # shared: a schedule moves those of the parts

    def step(self) -> None:
        """Move the weights by their gradients."""
        for part in self.parts:
            part.step()
