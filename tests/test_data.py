import numpy as np
import pytest
import torch
from torchvision import transforms

from mnist_mlp.data import (
    ImageDataset,
    batches,
    centre,
    concatenate,
    epoch_generator,
    normalise,
    stratified_split,
)
from mnist_mlp.datasets import load


def torchvision_batch(dataset: ImageDataset) -> torch.Tensor:
    """What torchvision's own transforms make of each image, one at a time."""
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    return torch.stack([transforms.Compose(steps)(image.numpy()) for image in dataset.images])


def test_batches_have_the_bits_of_torchvisions_transforms():
    every_byte = torch.arange(784 * 40).remainder(256).to(torch.uint8).view(40, 28, 28)
    dataset = ImageDataset(every_byte, torch.arange(40) % 10)
    images, labels, teacher_logits = next(batches(dataset, batch_size=40))
    assert teacher_logits is None
    assert torch.equal(images, torchvision_batch(dataset))
    assert torch.equal(images, normalise(every_byte).flatten(1))
    assert torch.equal(labels, dataset.labels)
    assert torch.equal(dataset[7][0], images[7])
    assert dataset[7][1] == 7


def test_the_real_images_have_the_bits_of_torchvisions_transforms(mnist):
    images = torch.cat([images for images, _, _ in batches(mnist.test)])
    assert torch.equal(images, torchvision_batch(mnist.test))


def test_a_plain_dataloader_gives_the_same_images(toy):
    one_by_one = [toy[0][i] for i in range(130)]
    at_once = list(batches(toy[0], batch_size=64))
    assert torch.equal(
        torch.stack([image for image, _ in one_by_one]), torch.cat([b[0] for b in at_once])
    )
    assert [label for _, label in one_by_one] == torch.cat([b[1] for b in at_once]).tolist()


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (3, 45)])
def test_the_generator_of_an_epoch_has_64_bits_of_seed_and_epoch(seed, epoch):
    """Pinned, for all that was ever trained and published depends on it."""
    low, high = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32).tolist()
    assert epoch_generator(seed, epoch).initial_seed() == high << 32 | low


def test_every_image_comes_once_an_epoch_with_its_label_in_an_order_of_seed_and_epoch(small_mnist):
    train = load("mnist", small_mnist, download=False).train
    orders = {}
    for seed, epoch in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        all_batches = list(batches(train, 64, epoch_generator(seed, epoch)))
        assert [len(labels) for _, labels, _ in all_batches] == [64] * 10 + [20]
        images = torch.cat([images for images, _, _ in all_batches])
        labels = torch.cat([labels for _, labels, _ in all_batches])
        first_pixel = (images[:, 0] * 0.3081 + 0.1307) * 255  # holds the label
        assert first_pixel.round().long().tolist() == labels.tolist()
        assert sorted(map(bytes, images.numpy())) == sorted(
            bytes(row) for row in torchvision_batch(train).numpy()
        )
        assert orders.setdefault((seed, epoch), labels.tolist()) == labels.tolist()
    assert len({tuple(order) for order in orders.values()}) == 3


@pytest.mark.parametrize("step", [5, 12])
def test_stratified_split_is_a_stratified_partition(step):
    labels = torch.tensor(np.random.default_rng(0).choice(10, 997, p=np.arange(1, 11) / 55))
    rest, held_out = stratified_split(labels, 1 / step, seed=0)
    assert sorted(rest.tolist() + held_out.tolist()) == list(range(997))
    wanted = torch.bincount(labels) / step
    assert (torch.bincount(labels[held_out]) - wanted).abs().max() < 1


def test_concatenate_has_the_images_of_both_with_their_labels(toy):
    train, validation = toy
    both = concatenate(train, validation)
    assert torch.equal(both.images, torch.cat([train.images, validation.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, validation.labels]))
    assert both.classes == train.classes


def test_batches_have_the_teacher_logits_of_their_images(toy):
    logits = torch.arange(1300.0).view(130, 10)
    taught = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=logits)
    order = torch.randperm(130, generator=epoch_generator(0, 1))
    found = torch.cat([logits for _, _, logits in batches(taught, 64, epoch_generator(0, 1))])
    assert torch.equal(found, logits[order])


def test_augmentation_cannot_change_the_data_set(toy):
    """Also if it returns a tensor that somebody else still uses."""
    kept = torch.full((1, 28, 28), 0.5)

    def constant(images, generator):
        return kept.expand_as(images)

    before = toy[0].images.clone()
    for images, _, _ in batches(toy[0], 64, epoch_generator(0, 1), constant):
        assert torch.allclose(images, torch.tensor((0.5 - 0.1307) / 0.3081))
    assert torch.equal(toy[0].images, before)
    assert torch.equal(kept, torch.full((1, 28, 28), 0.5))


def test_centre_fits_20x20_and_places_the_centre_of_mass_in_the_middle():
    digit = torch.zeros(90, 60)
    digit[10:70, 20:35] = 1.0
    digit[60:70, 20:50] = 1.0
    image = centre(digit).double()
    rows, columns = image.nonzero().T
    assert max(rows.max() - rows.min(), columns.max() - columns.min()) + 1 == 20
    for axis in (0, 1):
        mass = image.sum(1 - axis)
        assert abs((mass * torch.arange(28)).sum() / mass.sum() - 13.5) <= 0.5


def test_a_data_set_without_images_is_refused():
    with pytest.raises(ValueError, match=r"^a data set must .* image, found none\.$"):
        ImageDataset(torch.zeros(0, 28, 28).byte(), torch.zeros(0).long())


def test_fewer_labels_than_images_is_refused():
    with pytest.raises(
        ValueError, match=r"labels must be .*\(5,\), one for each image, found .*\(4,\)"
    ):
        ImageDataset(torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.zeros(2, 28, 28),
            torch.zeros(2, dtype=torch.int64),
            "torch.uint8.*found torch.float32",
        ),
        (torch.zeros(2, 8, 8).byte(), torch.zeros(2).long(), r"found .*\(2, 8, 8\)"),
        (torch.zeros(2, 28, 28).byte(), torch.zeros(2), "torch.int64.*found torch.float32"),
        (torch.zeros(2, 28, 28).byte(), torch.tensor([0, 10]), "0 to 9, found 0 to 10"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageDataset(images, labels)


def test_the_split_is_a_function_of_the_seed_alone():
    labels = torch.arange(10).repeat(60)

    def held_out(seed: int) -> list[int]:
        torch.manual_seed(len(str(seed)) + torch.randint(1000, ()).item())
        return stratified_split(labels, 1 / 12, seed=seed)[1].tolist()

    assert held_out(3) == held_out(3) != held_out(4)


def test_concatenate_refuses_what_it_would_lose(toy):
    train, validation = toy
    other = ImageDataset(validation.images, validation.labels, tuple("abcdefghij"))
    with pytest.raises(ValueError, match="classes"):
        concatenate(train, other)
    taught = ImageDataset(train.images, train.labels, teacher_logits=torch.zeros(130, 10))
    with pytest.raises(ValueError, match="teacher"):
        concatenate(taught, validation)


def test_normalise_leaves_the_tensor_that_it_gets():
    pixels = torch.full((2, 28, 28), 255.0)
    normalise(pixels)
    assert torch.equal(pixels, torch.full((2, 28, 28), 255.0))
