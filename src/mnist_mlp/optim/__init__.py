"""Optimisers and learning-rate schedules by name."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mnist_mlp.optim.adamw import AdamW
from mnist_mlp.optim.muon import Muon


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Return a learning rate that rises to the optimizer's own and falls to almost 0."""
    max_lrs = [group["lr"] for group in optimizer.param_groups]
    momentum = bool(optimizer.defaults.get("momentum") or "betas" in optimizer.defaults)
    return OneCycleLR(optimizer, max_lrs, total_steps=total_steps, cycle_momentum=momentum)


OPTIMIZERS: dict[str, Callable] = {"adamw": AdamW, "muon": Muon}
SCHEDULES: dict[str, Callable] = {
    "one-cycle": one_cycle,
    "constant": lambda optimizer, total_steps: LambdaLR(optimizer, lambda step: 1.0),
}
