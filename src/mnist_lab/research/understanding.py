"""Understanding a trained network: layers, attributions, neighbours, attacks, compression.

Everywhere `pixels` are float32 images of shape (N, 28, 28) from 0 (background) to 1 (ink), and
`model` is in evaluation mode and takes normalised images, as `EnhancedNet` does.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from mnist_mlp.data import MEAN, STD, ImageDataset
from mnist_mlp.files import published, read_json

# Test images whose label most of five people rejected, with the digit that they chose.
# Source: Northcutt, Athalye & Mueller, "Pervasive label errors in test sets destabilize machine
# learning benchmarks", 2021: mturk/mnist_mturk.json in github.com/cleanlab/label-errors.
KNOWN_TEST_ERRORS = {
    947: 9, 1621: 6, 1901: 4, 2462: 0, 2597: 3, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 9729: 6,
}  # fmt: skip


@torch.no_grad()
def activations(model: nn.Module, dataset: ImageDataset) -> dict[str, torch.Tensor]:
    """Return the input of the network and the output of each layer, for every image, by name.

    The network must consist of layers that follow each other with a ReLU in between, as EnhancedNet
    does. The input is named "pixels", although it is normalised already. Each value is float32 of
    shape (N, width). A layer's output is taken after its ReLU; the last layer has no ReLU, so its
    outputs are the logits.

    Raises ValueError if the model computes something else.
    """
    images, _, _ = dataset.get_batch(torch.arange(len(dataset)))
    outputs = {"pixels": images}
    x = images
    layers = list(model.named_children())
    for i, (name, layer) in enumerate(layers):
        if i > 0:
            x = F.relu(x)
            outputs[layers[i - 1][0]] = x
        x = layer(x)
        outputs[name] = x

    if not torch.allclose(x, model(images), atol=1e-4):
        raise ValueError(
            f"{type(model).__name__} is not a sequence of layers with a ReLU in between, so its "
            "activations are unknown: use an EnhancedNet."
        )
    return outputs


def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits, float32 of shape (N, classes), of images from 0 to 1.

    Raises TypeError if the images are bytes.
    """
    if not pixels.is_floating_point():
        raise TypeError(f"pixels must be floats from 0 to 1, found {pixels.dtype}: divide by 255.")
    return model((pixels - MEAN) / STD)


@torch.no_grad()
def accuracy(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images, from 0 to 1, that the model classifies as `labels`."""
    return float((logits_of(model, pixels).argmax(1) == labels).double().mean())


def attributions(
    model: nn.Module, pixels: torch.Tensor, classes: torch.Tensor, steps: int = 32, window: int = 5
) -> dict[str, torch.Tensor]:
    """Return by how much each pixel raises the logit of a class, measured with two methods.

    Both compare the image with an empty one.

    Args:
        model: The network to explain.
        pixels: The images.
        classes: For each image the class whose logit to explain, int64 of shape (N,).
        steps: The number of images on the way, over which integrated gradients average.
        window: The side of the square that occlusion empties, in pixels.

    Returns:
        "integrated gradients": the mean gradient on the way from the empty image to the given one,
        times the pixel;
        the values of an image sum to the difference between the two logits.
        "occlusion": by how much the logit falls when a square around the pixel is emptied.
        Both have the shape of `pixels`.

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
    """Return the images with their `count` pixels of the highest scores set to background."""
    highest = scores.flatten(1).topk(count).indices
    return pixels.flatten(1).scatter(1, highest, 0.0).view_as(pixels)


def nearest_neighbours(
    queries: torch.Tensor, vectors: torch.Tensor, count: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` vectors nearest to each query in Euclidean distance.

    Args:
        queries: Float32 of shape (N, width).
        vectors: Float32 of shape (M, width).
        count: How many neighbours to find.

    Returns:
        The distances, ascending, and the indices of the vectors, each of shape (N, count).
    """
    exact = "donot_use_mm_for_euclid_dist"  # a matrix product would round small distances away
    distances = torch.cdist(queries, vectors, compute_mode=exact)
    neighbours = distances.topk(count, largest=False)
    return neighbours.values, neighbours.indices


def pgd(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float | torch.Tensor,
    steps: int = 20,
    step_size: float | torch.Tensor | None = None,
    targeted: bool = False,
) -> torch.Tensor:
    """Return adversarial images by projected gradient descent, started at the images themselves.

    Args:
        model: The network to attack.
        pixels: The images.
        labels: The classes to lead away from, int64 of shape (N,).
        epsilon: By how much each pixel may change: a number, or one per image of shape (N, 1, 1).
        steps: The number of steps along the sign of the gradient.
        step_size: How far one step goes; None means 2.5 `epsilon` / `steps`.
        targeted: If true, lead towards `labels` instead.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.
    """
    low = (pixels - epsilon).clamp(0, 1)
    high = (pixels + epsilon).clamp(0, 1)
    if step_size is None:
        step_size = 2.5 * epsilon / steps

    attacked = pixels
    for _ in range(steps):
        attacked = attacked.detach().requires_grad_()
        objective = F.cross_entropy(logits_of(model, attacked), labels, reduction="sum")
        if targeted:
            objective = -objective
        gradient = torch.autograd.grad(objective, attacked)[0]
        attacked = (attacked + step_size * gradient.sign()).clamp(low, high)
    return attacked.detach()


def fgsm(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the images with each pixel changed by `epsilon` along the sign of the loss's gradient.

    Source: Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", 2015.
    """
    return pgd(model, pixels, labels, epsilon, steps=1, step_size=epsilon)


def accuracy_under_attack(
    models: Mapping[str, nn.Module],
    attack: Callable[..., torch.Tensor],
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[float],
) -> dict[str, list[float]]:
    """Return each model's accuracy, from 0 to 1, under `fgsm` or `pgd` with each epsilon."""
    accuracies: dict[str, list[float]] = {}
    for name, model in models.items():
        accuracies[name] = []
        for epsilon in epsilons:
            attacked = attack(model, pixels, labels, epsilon)
            accuracies[name].append(accuracy(model, attacked, labels))
    return accuracies


def minimal_adversarial_examples(
    model: nn.Module, image: torch.Tensor, epsilons: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn one image into each class, with the smallest epsilon for which targeted `pgd` succeeds.

    Args:
        model: The network to attack.
        image: One image, of shape (28, 28) or (1, 28, 28).
        epsilons: The epsilons to try, ascending, of shape (M,).

    Returns:
        The changed images, (classes, 28, 28), and their epsilons, (classes,). Where no epsilon
        succeeds, the image is that of the last one and the epsilon is infinite.
    """
    with torch.no_grad():
        classes = logits_of(model, image.view(1, 28, 28)).shape[1]

    # Attack with all pairs of a class and an epsilon at once.
    targets = torch.arange(classes).repeat_interleave(len(epsilons))
    images = image.expand(len(targets), 28, 28)
    bounds = epsilons.repeat(classes).view(-1, 1, 1)
    attacked = pgd(model, images, targets, bounds, targeted=True)

    success = (logits_of(model, attacked).argmax(1) == targets).view(classes, -1)
    possible = success.any(1)
    first_success = success.int().argmax(1)  # the first True; epsilons ascend, so the smallest
    smallest = torch.where(possible, first_success, len(epsilons) - 1)
    changed = attacked.view(classes, -1, 28, 28)[torch.arange(classes), smallest]
    return changed, torch.where(possible, epsilons[smallest], torch.inf)


def check_weight_names(model: nn.Module) -> None:
    """Raise ValueError if a weight matrix of the model is not called `weight`."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and name.split(".")[-1] not in ("weight", "bias"):
            raise ValueError(
                f"the weights {name} would be left out: only layers whose matrix is called "
                "`weight` can be pruned, such as Linear and Conv2d."
            )


def prune_weights(model: nn.Module, share: float) -> nn.Module:
    """Return a copy whose smallest weights are zero: a `share`, from 0 to 1, of all weights.

    Biases and normalisation layers are unchanged. Raises ValueError if the model has other weight
    matrices than the `weight` of a layer, as attention and LSTM have. Source: Han et al., "Learning
    both weights and connections for efficient neural networks", 2015.
    """
    check_weight_names(model)
    # torch prunes only weights that are contiguous, and a ConvNet's are not.
    masked = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    weights = []
    for layer in masked.modules():
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.ndim > 1:  # not the factors of a normalisation
            weights.append((layer, "weight"))
    prune.global_unstructured(weights, prune.L1Unstructured, amount=float(share))
    for layer, name in weights:
        prune.remove(layer, name)

    # prune.remove has moved each weight behind its bias: a fresh copy keeps the model's order.
    smaller = copy.deepcopy(model)
    smaller.load_state_dict(masked.state_dict())
    return smaller


@torch.no_grad()
def quantise_weights(model: nn.Module, bits: int = 8) -> nn.Module:
    """Return a copy with each weight tensor rounded to 2^`bits` - 1 evenly spaced values.

    The values lie symmetrically around zero, and the largest one is the largest weight. Biases and
    normalisation layers are unchanged. Source: Jacob et al., "Quantization and training of neural
    networks for efficient integer-arithmetic-only inference", 2018.

    Raises ValueError for fewer than two bits, which leave no value but zero.
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, found {bits}.")

    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        is_weight = parameter.ndim > 1
        if is_weight and parameter.any():
            step = parameter.abs().max() / (2 ** (bits - 1) - 1)
            parameter.copy_((parameter / step).round() * step)
    return rounded


def read_labels() -> dict:
    """Return the record of `make labels`. Raises OSError or ValueError if it is damaged."""
    schema = {"most_suspicious": list, "suspicious_labels": int, "images": int}
    return read_json(published("benchmarks/accuracy/labels.json"), schema)
