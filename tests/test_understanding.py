"""Understanding: attacks, attributions, neighbours and compression against what they must be."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, fit_with, published
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from mnist_lab.research import understanding
from mnist_lab.research.understanding import (
    KNOWN_TEST_ERRORS,
    accuracy,
    activations,
    attributions,
    fgsm,
    logits_of,
    nearest,
    pgd,
    pruned,
    quantised,
    smallest_changes,
    without_pixels,
)
from mnist_mlp import EnhancedNet, ImageDataset, evaluate, load_weights
from mnist_mlp.datasets import default_root, load_mnist

FOLDER = ROOT / "benchmarks" / "accuracy"


@pytest.fixture
def pixels():
    """Twelve images, grey enough that an attack of 0.1 is not clipped."""
    generator = torch.Generator().manual_seed(1)
    return 0.2 + 0.6 * torch.rand(12, 28, 28, generator=generator)


@pytest.fixture
def linear():
    """A linear network of two classes: everything about it is known in closed form."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2)).eval()


@pytest.fixture
def trained(toy):
    """A network that knows the blobs, and the blobs from 0 to 1."""
    train, _ = toy
    torch.manual_seed(0)
    model = EnhancedNet()
    fit_with(model, *toy, epochs=20, batch_size=26, learning_rate=0.003, augment_strength=0.0)
    return model, train.images / 255, train.labels


# Layers


def test_activations_are_those_of_the_layers_one_after_the_other(toy):
    torch.manual_seed(0)
    train, model = toy[0], EnhancedNet().train()
    found = activations(model, train)
    x, names = (train.images.flatten(1) / 255 - 0.1307) / 0.3081, ["pixels"]
    torch.testing.assert_close(found["pixels"], x)
    for number in range(1, 6):
        layer = getattr(model, f"layer{number}")
        x = F.linear(x if number == 1 else F.relu(x), layer.weight, layer.bias)
        names.append(f"layer{number}")
        torch.testing.assert_close(found[names[-1]], F.relu(x) if number < 5 else x)
    assert list(found) == names
    assert model.training
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_the_accuracy_of_pixels_is_that_of_the_evaluation(trained, toy):
    model, pixels, labels = trained
    wrong = labels.clone()
    wrong[:13] = (labels[:13] + 1) % 10
    dataset = replace(toy[0], labels=wrong)
    assert accuracy(model, pixels, wrong) == pytest.approx(evaluate(model, dataset).accuracy)
    assert accuracy(model, pixels, wrong) <= 0.9


# Attributions


def test_integrated_gradients_of_a_linear_network_are_weight_times_pixel(linear, pixels):
    classes = torch.arange(12) % 2
    found = attributions(linear, pixels, classes)["integrated gradients"]
    weights = linear[1].weight.detach()[classes].view(12, 28, 28)
    torch.testing.assert_close(found, weights * pixels / 0.3081, atol=1e-5, rtol=1e-4)


def test_occlusion_of_a_linear_network_is_the_mean_of_the_squares_that_hide_the_pixel(
    linear, pixels
):
    found = attributions(linear, pixels[:2], torch.tensor([1, 0]), window=6)["occlusion"]
    part = (linear[1].weight.detach()[[1, 0]].view(2, 28, 28) * pixels[:2] / 0.3081).numpy()
    total, times = np.zeros((2, 28, 28)), np.zeros((2, 28, 28))
    for top in range(0, 23, 2):
        for left in range(0, 23, 2):
            place = np.s_[:, top : top + 6, left : left + 6]
            total[place] += part[place].sum((1, 2), keepdims=True)
            times[place] += 1
    np.testing.assert_allclose(found, total / times, atol=1e-4)


def test_integrated_gradients_sum_to_what_the_image_adds_to_the_logit(trained):
    model, pixels, labels = trained
    model.zero_grad()
    found = attributions(model, pixels, labels, steps=100)["integrated gradients"]
    with torch.no_grad():
        both = [logits_of(model, x)[torch.arange(130), labels] for x in (pixels, 0 * pixels)]
    torch.testing.assert_close(found.sum((1, 2)), both[0] - both[1], atol=0.1, rtol=0.02)
    assert all(p.grad is None for p in model.parameters())


def test_the_pixels_of_the_highest_scores_are_emptied_and_no_others(pixels):
    scores = torch.rand(12, 28, 28, generator=torch.Generator().manual_seed(3))
    found = without_pixels(pixels, scores, 40)
    for image, before, score in zip(found, pixels, scores, strict=True):
        emptied = score >= score.flatten().sort().values[-40]
        assert torch.equal(image, torch.where(emptied, 0.0, before))


def test_attributions_without_captum_say_what_to_install(linear, pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        attributions(linear, pixels, torch.zeros(12).long())


# Neighbours


def test_the_nearest_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(700, 16, generator=generator) + 100  # far from the origin
    queries = vectors[:50] + 1e-3 * torch.rand(50, 16, generator=generator)
    distances, indices = nearest(queries, vectors, 7)
    model = NearestNeighbors(n_neighbors=7, algorithm="brute").fit(vectors.double())
    expected, order = model.kneighbors(queries.double())
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-2)


# Attacks


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_on_a_linear_network_the_attack_is_the_closed_form(linear, attack):
    """Each pixel moves by epsilon towards the other class, as far as there is room."""
    pixels = torch.rand(12, 28, 28, generator=torch.Generator().manual_seed(4))
    pixels[0], pixels[1] = 0.0, 1.0
    labels = torch.arange(12) % 2
    weights = linear[1].weight.detach()
    towards = (weights[1 - labels] - weights[labels]).sign().view(12, 28, 28)
    found = attack(linear, pixels, labels, 0.13)
    torch.testing.assert_close(found, (pixels + 0.13 * towards).clamp(0, 1))


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_an_attack_stays_within_its_bounds_and_raises_the_loss(trained, attack):
    model, pixels, labels = trained
    before = pixels.clone()
    for epsilon in (0.02, 0.1, 0.3):
        found = attack(model, pixels, labels, epsilon)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert float((found - pixels).abs().max()) <= epsilon + 1e-6
        loss = [F.cross_entropy(logits_of(model, x), labels) for x in (found, pixels)]
        assert loss[0] > loss[1]
    assert torch.equal(pixels, before)
    assert torch.equal(attack(model, pixels, labels, 0.0), pixels)


def test_a_targeted_attack_makes_the_wanted_class_more_probable(trained):
    model, pixels, labels = trained
    wanted = (labels + 3) % 10
    found = pgd(model, pixels, wanted, 0.2, targeted=True)
    before, after = (logits_of(model, x).log_softmax(1) for x in (pixels, found))
    gain = (after - before).gather(1, wanted[:, None])
    assert (gain > 0).all()
    assert float((found - pixels).abs().max()) <= 0.2 + 1e-6


def test_the_smallest_change_of_a_linear_network_is_its_margin_over_the_sum_of_weights(
    linear, pixels
):
    image = pixels[:1]
    with torch.no_grad():
        logits = logits_of(linear, image)[0]
    own = int(logits.argmax())
    difference = linear[1].weight.detach()[own] - linear[1].weight.detach()[1 - own]
    needed = float((logits[own] - logits[1 - own]) / difference.abs().sum() * 0.3081)
    epsilons = needed * torch.tensor([0.5, 0.9, 1.1, 1.5])
    changed, epsilon = smallest_changes(linear, image, epsilons, classes=2)
    assert float(epsilon[1 - own]) == pytest.approx(1.1 * needed)
    assert float(epsilon[own]) == pytest.approx(0.5 * needed)
    assert float((changed[1 - own] - image).abs().max()) == pytest.approx(1.1 * needed, rel=1e-3)
    assert logits_of(linear, changed).argmax(1).tolist() == [0, 1]
    last, never = smallest_changes(linear, image, epsilons[:2], classes=2)
    assert never[1 - own] == torch.inf
    assert float((last[1 - own] - image).abs().max()) == pytest.approx(0.9 * needed, rel=1e-3)


# Compression


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])


@pytest.mark.parametrize("share", [0, 0.25, 0.9, 1])
def test_pruning_removes_exactly_the_smallest_share_of_all_weights(share):
    torch.manual_seed(0)
    model = EnhancedNet()
    before = copy.deepcopy(model.state_dict())
    smaller = pruned(model, share)
    whole, left = weights_of(model), weights_of(smaller)
    gone = left == 0
    assert int(gone.sum()) == round(share * len(whole))
    assert torch.equal(left[~gone], whole[~gone])
    if 0 < share < 1:
        assert whole[gone].abs().max() <= whole[~gone].abs().min()
    assert list(smaller.state_dict()) == list(before)  # no masks are left
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)
        assert "weight" in name or torch.equal(smaller.state_dict()[name], tensor)


@pytest.mark.parametrize("bits", [8, 3])
def test_quantisation_has_few_levels_and_an_error_of_at_most_half_a_step(bits):
    torch.manual_seed(0)
    model = EnhancedNet()
    model.layer4.weight.data.zero_()
    before = copy.deepcopy(model.state_dict())
    rounded = quantised(model, bits)
    for name, whole in before.items():
        other = rounded.state_dict()[name]
        assert torch.equal(whole, model.state_dict()[name])
        if whole.ndim == 1 or name == "layer4.weight":
            assert torch.equal(whole, other)
            continue
        levels = other.unique()
        assert len(levels) <= 2**bits - 1
        assert name != "layer1.weight" or len(levels) == 2**bits - 1
        step = float(whole.abs().max()) / (2 ** (bits - 1) - 1)
        assert float((other - whole).abs().max()) <= step / 2 * 1.001
        assert float(other.abs().max()) == pytest.approx(float(whole.abs().max()))


# Labels


@pytest.fixture
def script(monkeypatch):
    """The module of `make labels`."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "labels", raising=False)
    import labels

    return labels


@pytest.fixture
def record():
    published("benchmarks/accuracy/labels.json")
    return json.loads((FOLDER / "labels.json").read_bytes())


def blobs(count):
    """Like the fixture `toy`, and more of them, with every tenth label wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    images = torch.randint(0, 60, (count, 28, 28), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 + 12 * (label // 5), 2 + 5 * (label % 5)
        image[row : row + 6, column : column + 4] += 90
    wrong = torch.arange(3, count, 23)
    given = labels.clone()
    given[wrong] = (labels[wrong] + 4) % 10
    return ImageDataset(images, given), labels, wrong


def test_make_labels_finds_planted_errors_and_records_them(
    script, record, monkeypatch, tmp_path, capsys
):
    dataset, labels, wrong = blobs(600)
    recipe = replace(script.RECIPE, batch_size=32, augment_strength=0.0, epochs=6)
    monkeypatch.setattr(script, "RECIPE", recipe)
    monkeypatch.setattr(script, "RECORD", tmp_path / "labels.json")
    monkeypatch.setattr(script, "load_mnist", lambda root, download: (dataset, None))
    script.main()
    found = json.loads((tmp_path / "labels.json").read_bytes())
    assert found.keys() == record.keys()
    assert found["images"] == 600
    assert found["suspicious_labels"] == len(wrong) == len(found["most_suspicious"])
    assert sorted(each["index"] for each in found["most_suspicious"]) == wrong.tolist()
    for each in found["most_suspicious"]:
        assert each["suggested"] == labels[each["index"]]
        assert each["given"] == dataset.labels[each["index"]]
        assert each.keys() == record["most_suspicious"][0].keys()
    assert f"{600 - len(wrong)} of 600 correct" in capsys.readouterr().out


def test_cross_validated_uses_networks_that_did_not_see_the_image(script, monkeypatch):
    dataset, labels, _ = blobs(50)
    dataset = replace(dataset, labels=labels)
    folds = []

    def remember(model, train, held_out, recipe):
        folds.append((train.images, held_out.images))
        model.layer5.bias.data[len(folds)] = 99.0  # each fold's network has a class of its own

    monkeypatch.setattr(script, "fit", remember)
    predicted = script.cross_validated(dataset, script.RECIPE, 5).argmax(1)
    assert predicted.bincount().tolist() == [0, 10, 10, 10, 10, 10]
    for fold, (train, held_out) in enumerate(folds, 1):
        assert torch.equal(held_out, dataset.images[predicted == fold])
        assert torch.equal(train, dataset.images[predicted != fold])


def test_record_of_labels_is_of_its_script_and_of_mnist(script, record, mnist):
    assert record["recipe"] == script.RECIPE.asdict()
    assert record["recipe"]["select"] == "last epoch"  # nothing is chosen on the fold
    assert (record["folds"], record["images"]) == (script.FOLDS, 60_000)
    assert understanding.read_labels() == record

    suspicious = record["most_suspicious"]
    assert len(suspicious) == min(script.SHOWN, record["suspicious_labels"])
    assert [e["probability"] for e in suspicious] == sorted(e["probability"] for e in suspicious)
    training, _ = load_mnist(default_root(), download=False)
    images = training.subset(torch.tensor([each["index"] for each in suspicious]))
    assert images.labels.tolist() == [each["given"] for each in suspicious]

    # A network that was trained on these labels has the suggested one among its first two.
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")
    suggested = torch.tensor([each["suggested"] for each in suspicious])
    first_two = evaluate(model, images).logits.topk(2).indices
    assert (first_two == suggested[:, None]).any(1).float().mean() > 0.8


def test_people_chose_another_label_for_the_known_test_errors(mnist):
    assert len(KNOWN_TEST_ERRORS) == 10
    assert all(mnist.test.labels[i] != label for i, label in KNOWN_TEST_ERRORS.items())
