"""Understanding a trained network: layers, attributions, neighbours, attacks, compression.

`pixels` are always float32 images of shape (N, 28, 28) from 0, background, to 1, ink; `model` is in
evaluation mode and takes them normalised, as `EnhancedNet` does.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from mnist_mlp.data import MEAN, STD, ImageDataset
from mnist_mlp.files import read_json, repo_root

# Test images for which most of five people chose another digit than the label, and that digit.
# Source: Northcutt, Athalye & Mueller, "Pervasive label errors in test sets destabilize machine
# learning benchmarks", 2021: mturk/mnist_mturk.json in github.com/cleanlab/label-errors.
KNOWN_TEST_ERRORS = {
    947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6,
}  # fmt: skip


@torch.no_grad()
def activations(model: nn.Module, dataset: ImageDataset) -> dict[str, torch.Tensor]:
    """Return the input and each layer's output for every image, by name, from "pixels" on.

    Float32 of shape (N, width); after the ReLU, but for the last layer: those are the logits.
    """
    x, _, _ = dataset.get_batch(torch.arange(len(dataset)))
    outputs = {"pixels": x}
    *hidden, (last_name, last_layer) = model.named_children()
    for name, layer in hidden:
        x = F.relu(layer(x))
        outputs[name] = x
    outputs[last_name] = last_layer(x)
    return outputs


def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits, float32 of shape (N, classes), of images from 0 to 1."""
    return model((pixels - MEAN) / STD)


@torch.no_grad()
def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images, from 0 to 1, that are classified as `labels`."""
    return float((logits_of(model, pixels).argmax(1) == labels).double().mean())


def attributions(
    model: nn.Module, pixels: torch.Tensor, classes: torch.Tensor, steps: int = 32, window: int = 5
) -> dict[str, torch.Tensor]:
    """Return by how much each pixel raises the logit of its image's class, by two methods.

    Both compare with an empty image and have the shape of `pixels`. "integrated gradients": the
    mean gradient over `steps` images on the way from there, times the pixel; they sum to the
    logit's difference. "occlusion": the logit's fall when a square of `window` pixels is emptied.
    Raises ModuleNotFoundError without Captum, which is in the extra `[understand]`.
    Sources: Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017; Zeiler &
    Fergus, "Visualizing and understanding convolutional networks", 2014.
    """
    try:
        from captum.attr import IntegratedGradients, Occlusion
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Attributions need Captum, an extra: pip install -e '.[understand]'."
        ) from error
    forward = partial(logits_of, model)
    gradients = IntegratedGradients(forward).attribute(
        pixels, baselines=0.0, target=classes, n_steps=steps
    )
    with torch.no_grad():
        occluded = Occlusion(forward).attribute(
            pixels,
            sliding_window_shapes=(window, window),
            strides=(2, 2),
            baselines=0.0,
            target=classes,
        )
    return {"integrated gradients": gradients.float().detach(), "occlusion": occluded}


def without_pixels(pixels: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the images with the `count` pixels that have the highest scores set to background."""
    highest = scores.flatten(1).topk(count).indices
    return pixels.flatten(1).scatter(1, highest, 0.0).view_as(pixels)


def nearest(
    queries: torch.Tensor, vectors: torch.Tensor, count: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and indices, (N, count), of the `count` vectors nearest to each query.

    `queries`: of shape (N, width), `vectors`: of shape (M, width). The distance is Euclidean.
    """
    exact = "donot_use_mm_for_euclid_dist"  # a matrix product would round small distances away
    distances = torch.cdist(queries, vectors, compute_mode=exact)
    nearby = distances.topk(count, largest=False)
    return nearby.values, nearby.indices


def pgd(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | torch.Tensor,
    steps: int = 20,
    step_size: float | torch.Tensor | None = None,
    targeted: bool = False,
) -> torch.Tensor:
    """Return the images, each pixel changed by at most `epsilon`, so that the loss is high.

    Projected gradient descent from the images themselves: `steps` steps along the sign of the
    gradient, of 2.5 `epsilon` / `steps` if `step_size` is not given. `epsilon`: a number, or one
    per image of shape (N, 1, 1). `targeted`: `labels` are what the images shall be taken for.
    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """
    low = (pixels - epsilon).clamp(0, 1)
    high = (pixels + epsilon).clamp(0, 1)
    if step_size is None:
        step_size = 2.5 * epsilon / steps

    attacked = pixels
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        loss = F.cross_entropy(logits_of(model, attacked), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(-loss if targeted else loss, attacked)
        attacked = (attacked + step_size * gradient.sign()).clamp(low, high)
    return attacked.detach()


def fgsm(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the images, each pixel changed by `epsilon` along the sign of the loss's gradient.

    Source: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", 2015.
    """
    return pgd(model, pixels, labels, epsilon, steps=1, step_size=epsilon)


def withstood(
    models: Mapping[str, nn.Module],
    attack: Callable[..., torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[float],
) -> dict[str, list[float]]:
    """Return each named model's accuracy, from 0 to 1, under `fgsm` or `pgd` with each epsilon."""
    return {
        name: [accuracy(model, attack(model, pixels, labels, e), labels) for e in epsilons]
        for name, model in models.items()
    }


def smallest_changes(
    model: nn.Module, image: torch.Tensor, epsilons: torch.Tensor, classes: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one image turned into each class, (classes, 28, 28), and the epsilons, (classes,).

    `pgd` tries all `epsilons`, ascending, of shape (M,); the first that succeeds counts. Where none
    does, epsilon is infinite and the image is that of the last.
    """
    # Each class with each epsilon: all attacks at once.
    targets = torch.arange(classes).repeat_interleave(len(epsilons))
    images = image.expand(len(targets), 28, 28)
    bounds = epsilons.repeat(classes).view(-1, 1, 1)
    attacked = pgd(model, images, targets, bounds, targeted=True)

    success = (logits_of(model, attacked).argmax(1) == targets).view(classes, -1)
    first = torch.where(success.any(1), success.int().argmax(1), len(epsilons) - 1)
    chosen = attacked.view(classes, -1, 28, 28)[torch.arange(classes), first]
    return chosen, torch.where(success.any(1), epsilons[first], torch.inf)


def pruned(model: nn.Module, share: float) -> nn.Module:
    """Return a copy in which this share of all weights, the smallest, is zero; biases stay.

    Source: Han et al., "Learning both weights and connections for efficient neural networks", 2015.
    """
    masked = copy.deepcopy(model)
    smaller = copy.deepcopy(model)
    weights = [(m, "weight") for m in masked.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=float(share))
    for layer, name in weights:
        prune.remove(layer, name)  # this moves the weight behind the bias
    smaller.load_state_dict(masked.state_dict())
    return smaller


@torch.no_grad()
def quantised(model: nn.Module, bits: int = 8) -> nn.Module:
    """Return a copy whose weights are rounded to whole multiples of one step per tensor.

    There are 2^`bits` - 1 of them, as many below zero as above it. Biases stay.
    Source: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", 2018.
    """
    rounded = copy.deepcopy(model)
    for weight in (p for p in rounded.parameters() if p.ndim > 1 and p.any()):
        step = weight.abs().max() / (2 ** (bits - 1) - 1)
        weight.copy_((weight / step).round() * step)
    return rounded


def read_labels() -> dict:
    """Return the record of `make labels`. Raises OSError or ValueError if it is damaged."""
    schema = {"most_suspicious": list, "suspicious_labels": int, "images": int}
    return read_json(repo_root() / "benchmarks" / "accuracy" / "labels.json", schema)
