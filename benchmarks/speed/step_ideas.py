"""What each idea for a faster step saves of a plain epoch of the textbook loop.

`make profile` runs it, a minute; writes `benchmarks/speed/step_ideas.json`. In each round every
variant trains one epoch, in one process.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mnist_mlp import EnhancedNet, Recipe, fit, load, state
from mnist_mlp.optim import OPTIMIZERS, AdamW
from mnist_mlp.optim.hardware import bfloat16_units
from mnist_mlp.storage.files import write_json

RECORD = Path(__file__).with_suffix(".json")
ROUNDS = 15


class DirectAdamW(AdamW):
    """torch's fused kernel without what `torch.optim.AdamW` does around it."""

    @torch.no_grad()
    def step(self, closure=None):
        """Update the weights."""
        (group,) = self.param_groups
        weights = [p for p in group["params"] if p.grad is not None]
        for p in weights:
            if not self.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.state[p] = {"step": torch.zeros(())} | zeros
        names = ("exp_avg", "exp_avg_sq", "step")
        means, squares, steps = ([self.state[p][name] for p in weights] for name in names)
        update(group, weights, [p.grad for p in weights], means, squares, steps)


class FlatAdamW(AdamW):
    """All weights as one tensor, so that the kernel has one large tensor to update."""

    def __init__(self, params, lr, weight_decay):
        self.parts = list(params)
        self.flat = torch.cat([p.detach().flatten() for p in self.parts])
        sizes = [p.numel() for p in self.parts]
        for p, values in zip(self.parts, self.flat.split(sizes), strict=True):
            p.data = values.view_as(p)
        super().__init__([nn.Parameter(self.flat)], lr, weight_decay)
        self.moments = torch.zeros_like(self.flat), torch.zeros_like(self.flat), torch.zeros(())

    def zero_grad(self, set_to_none=True):
        """Free the gradients of the weights, which are parts of the one tensor."""
        for p in self.parts:
            p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        """Update the one tensor."""
        gradient = torch.cat([p.grad.flatten() for p in self.parts])
        update(self.param_groups[0], [self.flat], [gradient], *([m] for m in self.moments))


def update(group: dict, weights: list, gradients: list, means: list, squares: list, steps: list):
    torch._foreach_add_(steps, 1)
    (beta1, beta2), settings = group["betas"], {k: group[k] for k in ("lr", "weight_decay", "eps")}
    torch._fused_adamw_(
        weights, gradients, means, squares, [], steps, beta1=beta1, beta2=beta2, **settings,
        amsgrad=False, maximize=False,
    )  # fmt: skip


def relu_in_place(self, images):
    x = images.flatten(1)
    for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
        x = F.relu(layer(x), inplace=True)
    return self.layer5(x)


class EveryFourthStep(AveragedModel):
    """An average that is updated every fourth step, by four steps' worth."""

    calls = 0

    def update_parameters(self, model):
        """Update the average after every fourth call."""
        self.calls += 1
        if self.calls % 4 == 0:
            super().update_parameters(model)


def gradients_stay(self, set_to_none=True):
    gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
    if gradients:
        torch._foreach_zero_(gradients)


class Subclass(EnhancedNet):
    """The same network, which `fit` trains by the textbook loop."""


TEXTBOOK, BUILT_IN = "the textbook loop", "the step without autograd"
FOUR = {"ema_decay": Recipe().ema_decay ** 4}
# name: what it changes in the recipe, and what it replaces.
IDEAS: dict[str, tuple[dict, list[Callable]]] = {
    TEXTBOOK: ({}, []),
    "ReLU in place": ({}, [lambda: patch.object(EnhancedNet, "forward", relu_in_place)]),
    "AdamW's kernel called directly": ({}, [lambda: patch.dict(OPTIMIZERS, adamw=DirectAdamW)]),
    "all weights as one tensor": ({}, [lambda: patch.dict(OPTIMIZERS, adamw=FlatAdamW)]),
    "gradients set to zero, not freed": (
        {},
        [lambda: patch.object(AdamW, "zero_grad", gradients_stay)],
    ),
    "average every fourth step": (
        FOUR,
        [lambda: patch.object(state, "AveragedModel", EveryFourthStep)],
    ),
}
TOGETHER = "ReLU in place", "AdamW's kernel called directly"
IDEAS["these two and the average"] = (
    FOUR,
    [make for name in (*TOGETHER, "average every fourth step") for make in IDEAS[name][1]],
)
IDEAS[BUILT_IN] = ({}, [])


def trained(splits, name: str, **more) -> tuple[float, float]:
    """Return the seconds of one plain epoch with an idea, and its loss."""
    changes, patches = IDEAS[name]
    with ExitStack() as stack:
        for make in patches:
            stack.enter_context(make())
        torch.manual_seed(0)
        recipe = Recipe(epochs=1, augment_strength=0.0, **changes | more)
        model = EnhancedNet() if name == BUILT_IN else Subclass()
        history = fit(model, splits.train, splits.validation, recipe, progress=False)
    return history.seconds, history.epochs[0]["loss"]


def table(record: dict) -> str:
    """Return the ideas as a Markdown table."""
    lines = ["| idea | seconds per plain epoch | saved |", "|---|---|---|"]
    usual = record["ideas"][TEXTBOOK]["seconds"]
    for name, found in record["ideas"].items():
        lines.append(f"| {name} | {found['seconds']:.3f} | {1 - found['seconds'] / usual:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every idea in every round, and record the medians."""
    splits, runs = load("mnist"), {name: [] for name in IDEAS}
    for _ in tqdm(range(1 + ROUNDS), "Rounds", file=sys.stdout):
        for name in IDEAS:
            runs[name].append(trained(splits, name))
    found = {
        name: {"seconds": median(s for s, _ in each[1:]), "loss": each[0][1]}
        for name, each in runs.items()
    }
    record = {"command": "make profile", "bfloat16_units": bfloat16_units(), "ideas": found}
    write_json(RECORD, record, indent=2)
    print(table(record))


if __name__ == "__main__":
    main()
