"""Attributions, attacks and compression match closed forms and other libraries."""

import copy
import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from mnist_lab.research import understanding
from mnist_lab.research.convnet import ConvNet
from mnist_mlp import EnhancedNet


@pytest.fixture
def pixels():
    """Twelve images, grey enough that an attack of 0.1 is not clipped."""
    generator = torch.Generator().manual_seed(1)
    return 0.2 + 0.6 * torch.rand(12, 28, 28, generator=generator)


@pytest.fixture
def labels():
    return torch.arange(12) % 2


@pytest.fixture
def linear():
    """A linear network with two classes, about which everything is known in closed form."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2)).eval()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return EnhancedNet().eval()


def test_activations_are_outputs_of_each_layer(network, toy):
    images = (toy[0].images.flatten(1) / 255 - 0.1307) / 0.3081
    expected = {"pixels": images}
    x = images
    for name in ("layer1", "layer2", "layer3", "layer4"):
        layer = getattr(network, name)
        x = F.relu(F.linear(x, layer.weight, layer.bias))
        expected[name] = x
    expected["layer5"] = F.linear(x, network.layer5.weight, network.layer5.bias)

    outputs = understanding.activations(network, toy[0])

    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        assert torch.allclose(output, expected[name], atol=1e-5)


def test_activations_refuses_a_network_without_relus(toy):
    smooth = nn.Sequential(nn.Linear(784, 20), nn.Sigmoid(), nn.Linear(20, 10))
    with pytest.raises(ValueError, match="Sequential"):
        understanding.activations(smooth, toy[0])


def test_integrated_gradients_of_linear_network_are_weight_times_pixel(linear, pixels, labels):
    weights = linear[1].weight.detach()[labels].view(12, 28, 28)

    gradients = understanding.attributions(linear, pixels, labels)["integrated gradients"]

    np.testing.assert_allclose(gradients, weights * pixels / 0.3081, atol=1e-5)


def test_occlusion_of_linear_network_is_mean_over_covering_squares(linear, pixels):
    classes = torch.tensor([1, 0])
    weights = linear[1].weight.detach()[classes].view(2, 28, 28)
    contributions = (weights * pixels[:2] / 0.3081).numpy()
    total = np.zeros((2, 28, 28))
    squares = np.zeros((2, 28, 28))
    for top in range(0, 23, 2):
        for left in range(0, 23, 2):
            square = np.s_[:, top : top + 6, left : left + 6]
            total[square] += contributions[square].sum((1, 2), keepdims=True)
            squares[square] += 1

    occlusion = understanding.attributions(linear, pixels[:2], classes, window=6)["occlusion"]

    np.testing.assert_allclose(occlusion, total / squares, atol=1e-4)


def test_attributions_without_captum_name_the_extra(linear, pixels, labels, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        understanding.attributions(linear, pixels, labels)


def test_without_pixels_empties_highest_scores(pixels):
    scores = torch.rand(12, 28, 28, generator=torch.Generator().manual_seed(3))
    thresholds = scores.flatten(1).sort().values[:, -40].view(12, 1, 1)

    emptied = understanding.without_pixels(pixels, scores, 40)

    assert torch.equal(emptied, torch.where(scores >= thresholds, 0.0, pixels))


def test_nearest_neighbours_matches_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(700, 16, generator=generator) + 100  # far from the origin
    queries = vectors[:50] + 1e-3 * torch.rand(50, 16, generator=generator)
    oracle = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(vectors.double())
    expected_distances, expected_indices = oracle.kneighbors(queries.double())

    distances, indices = understanding.nearest_neighbours(queries, vectors, 7)

    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-2)


@pytest.mark.parametrize("attack", [understanding.fgsm, understanding.pgd])
def test_attack_on_linear_network_is_the_closed_form(linear, labels, attack):
    """Each pixel moves by epsilon towards the other class, as far as there is room."""
    pixels = torch.rand(12, 28, 28, generator=torch.Generator().manual_seed(4))
    before = pixels.clone()
    weights = linear[1].weight.detach()
    direction = (weights[1 - labels] - weights[labels]).sign().view(12, 28, 28)

    attacked = attack(linear, pixels, labels, 0.13)

    assert torch.allclose(attacked, (pixels + 0.13 * direction).clamp(0, 1), atol=1e-6)
    assert torch.equal(pixels, before)


def test_pgd_raises_loss_more_than_fgsm(network, pixels, labels):
    losses = []
    for attacked in (
        pixels,
        understanding.fgsm(network, pixels, labels, 0.1),
        understanding.pgd(network, pixels, labels, 0.1),
    ):
        assert (attacked - pixels).abs().max() <= 0.1 + 1e-6
        losses.append(F.cross_entropy(understanding.logits_of(network, attacked), labels))

    assert losses[0] < losses[1] < losses[2]


def test_accuracy_under_attack_is_accuracy_of_each_model_and_epsilon(linear, pixels):
    with torch.no_grad():
        logits = understanding.logits_of(linear, pixels)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    # FGSM with epsilon lowers the margin by epsilon times the sum of the weights' differences.
    weights = linear[1].weight.detach()
    epsilon = float(margin.median() * 0.3081 / (weights[0] - weights[1]).abs().sum()) * 1.001
    opposite = copy.deepcopy(linear)
    opposite[1].weight.data.neg_()
    opposite[1].bias.data.neg_()

    accuracies = understanding.accuracy_under_attack(
        {"linear": linear, "opposite": opposite},
        understanding.fgsm,
        pixels,
        logits.argmax(1),
        [0.0, epsilon],
    )

    assert accuracies == {"linear": [1.0, 0.5], "opposite": [0.0, 0.0]}


def test_minimal_adversarial_examples_of_linear_network_follow_from_margin(linear, pixels):
    """The margin falls by epsilon times the sum of the weights' differences."""
    image = pixels[:1]
    with torch.no_grad():
        logits = understanding.logits_of(linear, image)[0]
    predicted = int(logits.argmax())
    other = 1 - predicted
    weights = linear[1].weight.detach()
    slope = (weights[predicted] - weights[other]).abs().sum() / 0.3081
    needed = float((logits[predicted] - logits[other]) / slope)
    epsilons = needed * torch.tensor([0.5, 0.9, 1.1, 1.5])

    changed, smallest = understanding.minimal_adversarial_examples(linear, image, epsilons)
    failed, impossible = understanding.minimal_adversarial_examples(linear, image, epsilons[:2])

    assert float(smallest[predicted]) == pytest.approx(0.5 * needed)
    assert float(smallest[other]) == pytest.approx(1.1 * needed)
    assert float((changed[other] - image).abs().max()) == pytest.approx(1.1 * needed, rel=1e-3)
    assert understanding.logits_of(linear, changed).argmax(1).tolist() == [0, 1]
    assert impossible[other] == torch.inf
    assert float((failed[other] - image).abs().max()) == pytest.approx(0.9 * needed, rel=1e-3)


def all_weights(state):
    return torch.cat([tensor.flatten() for tensor in state.values() if tensor.ndim > 1])


@pytest.mark.parametrize("share", [0, 0.9, 1])
def test_prune_weights_zeroes_exactly_the_smallest_weights(network, share):
    before = copy.deepcopy(network.state_dict())

    after = understanding.prune_weights(network, share).state_dict()

    weights = all_weights(before)
    threshold = weights.abs().sort().values[round(share * len(weights)) - 1] if share else 0.0
    expected = torch.where(weights.abs() > threshold, weights, 0.0)
    assert torch.equal(all_weights(after), expected)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(network.state_dict()[name], tensor)
        assert tensor.ndim > 1 or torch.equal(after[name], tensor)


def test_prune_weights_prunes_convolutions_too():
    after = understanding.prune_weights(ConvNet(width=4), 0.5).state_dict()

    weights = torch.cat([tensor.flatten() for tensor in after.values() if tensor.ndim > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert (after["layers.1.weight"] == 1).all()  # the factors of a normalisation


def test_quantise_weights_refuses_one_bit(network):
    with pytest.raises(ValueError, match="bits"):
        understanding.quantise_weights(network, 1)


@pytest.mark.parametrize("bits", [8, 3])
def test_quantise_weights_rounds_weights_to_few_values(network, bits):
    network.layer4.weight.data.zero_()
    before = copy.deepcopy(network.state_dict())

    after = understanding.quantise_weights(network, bits).state_dict()

    assert len(after["layer1.weight"].unique()) == 2**bits - 1
    for name, tensor in before.items():
        assert torch.equal(network.state_dict()[name], tensor)
        if tensor.ndim == 1 or name == "layer4.weight":
            assert torch.equal(after[name], tensor)
        else:
            step = tensor.abs().max() / (2 ** (bits - 1) - 1)
            assert (after[name] - tensor).abs().max() <= step / 2 * 1.001
            assert after[name].abs().max() == pytest.approx(float(tensor.abs().max()))


def test_known_test_errors_differ_from_mnists_labels(mnist):
    errors = understanding.KNOWN_TEST_ERRORS
    assert len(errors) == 10
    assert all(mnist.test.labels[index] != label for index, label in errors.items())


def test_bytes_are_refused_as_pixels():
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    with pytest.raises(TypeError, match="255"):
        understanding.accuracy(EnhancedNet(), images, torch.zeros(2, dtype=torch.int64))


def test_prune_weights_refuses_matrices_that_it_would_leave_out():
    with pytest.raises(ValueError, match="in_proj_weight"):
        understanding.prune_weights(torch.nn.MultiheadAttention(8, 2), 0.5)
