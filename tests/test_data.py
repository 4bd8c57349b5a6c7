"""Batches have torchvision's bits and a reproducible order, and the split is stratified."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from mnist_mlp import EnhancedNet, evaluate
from mnist_mlp.data import (
    ImageDataset,
    batches,
    concatenate,
    epoch_generator,
    normalise,
    stratified_split,
)

EVERY_BYTE = torch.arange(784 * 40).remainder(256).to(torch.uint8).view(40, 28, 28)
LABELS = torch.arange(40) % 10


def torchvision_batch(images: torch.Tensor) -> torch.Tensor:
    """Preprocess each image with torchvision's transforms."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    )
    return torch.stack([transform(image.numpy()) for image in images])


def test_batches_have_the_bits_of_torchvision():
    expected = torchvision_batch(EVERY_BYTE)

    images, _, _ = next(batches(ImageDataset(EVERY_BYTE, LABELS)))

    assert torch.equal(images, expected)
    assert torch.equal(normalise(EVERY_BYTE).flatten(1), expected)
    with pytest.raises(TypeError, match="uint8"):
        normalise(EVERY_BYTE / 255)


def test_batches_in_file_order_are_those_of_a_dataloader(toy):
    loader = DataLoader(toy[0], batch_size=64)
    for batch, expected in zip(batches(toy[0], batch_size=64), loader, strict=True):
        images, labels, teacher_logits = batch
        assert torch.equal(images, expected[0])
        assert torch.equal(labels, expected[1])
        assert teacher_logits is None


def test_batches_have_each_image_once_with_its_label(toy):
    shuffled = list(batches(toy[0], 64, epoch_generator(0, 1)))

    assert [len(labels) for _, labels, _ in shuffled] == [64, 64, 2]
    pairs = []
    for images, labels, _ in shuffled:
        for image, label in zip(images, labels.tolist(), strict=True):
            pairs.append((image.tolist(), label))
    expected = [(toy[0][i][0].tolist(), toy[0][i][1]) for i in range(130)]
    assert pairs != expected
    assert sorted(pairs) == sorted(expected)


def test_batches_have_an_order_of_seed_and_epoch(toy):
    def order(seed: int, epoch: int) -> list[int]:
        _, labels, _ = next(batches(toy[0], 130, epoch_generator(seed, epoch)))
        return labels.tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (3, 45)])
def test_epoch_generator_has_64_bits_of_seed_and_epoch(seed, epoch):
    """Pinned: every published result depends on it."""
    low, high = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32).tolist()
    assert epoch_generator(seed, epoch).initial_seed() == high << 32 | low


def test_batches_and_subset_keep_teacher_logits_with_their_images(toy):
    teacher_logits = torch.arange(1300.0).view(130, 10)
    dataset = ImageDataset(toy[0].images, toy[0].labels, teacher_logits=teacher_logits)
    order = torch.randperm(130, generator=epoch_generator(0, 1))

    shuffled = list(batches(dataset, 64, epoch_generator(0, 1)))

    assert torch.equal(torch.cat([logits for _, _, logits in shuffled]), teacher_logits[order])
    assert torch.equal(dataset.subset(order).teacher_logits, teacher_logits[order])


def test_batches_augment_images_from_0_to_1_and_leave_the_data_set():
    dataset = ImageDataset(EVERY_BYTE, LABELS)
    generator = epoch_generator(0, 1)
    # `augment` returns this same tensor; `batches` must not change it.
    shared = torch.full((40, 28, 28), 0.5)

    def augment(images, generator_given):
        assert generator_given is generator
        assert torch.equal(images.unique(), torch.arange(256) / 255)
        return shared

    images, _, _ = next(batches(dataset, 40, generator, augment))

    torch.testing.assert_close(images, torch.full((40, 784), (0.5 - 0.1307) / 0.3081))
    assert torch.equal(shared, torch.full((40, 28, 28), 0.5))
    assert dataset.images.unique().tolist() == list(range(256))


def test_batches_refuse_augment_without_generator(toy):
    with pytest.raises(ValueError, match="generator"):
        next(batches(toy[0], augment=lambda images, generator: images))


@pytest.mark.parametrize("step", [5, 12])
def test_stratified_split_is_a_stratified_partition(step):
    random = np.random.default_rng(0)
    labels = torch.tensor(random.choice(10, 997, p=np.arange(1, 11) / 55))

    kept, held_out = stratified_split(labels, 1 / step, seed=0)

    assert sorted(kept.tolist() + held_out.tolist()) == list(range(997))
    expected_counts = torch.bincount(labels) / step
    assert (torch.bincount(labels[held_out]) - expected_counts).abs().max() < 1


def test_stratified_split_depends_on_its_seed_alone():
    """Pinned: every published result depends on it."""
    labels = torch.arange(2).repeat(30)

    torch.manual_seed(1)
    _, held_out = stratified_split(labels, 1 / 12, seed=0)
    _, another_seed = stratified_split(labels, 1 / 12, seed=1)

    assert held_out.tolist() == [7, 14, 22, 25, 44]
    assert not torch.equal(held_out, another_seed)


def test_stratified_split_holds_out_an_image_of_each_class():
    labels = torch.tensor([0] * 100 + [1] * 2 + [2] * 5 + [3])

    kept, held_out = stratified_split(labels, 1 / 12, seed=0)

    assert torch.bincount(labels[held_out], minlength=4)[1:].tolist() == [1, 1, 0]
    assert torch.bincount(labels[kept]).tolist()[1:] == [1, 4, 1]


def test_concatenate_has_the_images_of_both_with_their_labels(toy):
    both = concatenate(toy[0], toy[1])
    assert torch.equal(both.images, torch.cat([toy[0].images, toy[1].images]))
    assert torch.equal(both.labels, torch.cat([toy[0].labels, toy[1].labels]))
    assert both.classes == toy[0].classes


def test_concatenate_keeps_the_teachers_logits(toy):
    parts = []
    for dataset in toy[:2]:
        logits = torch.rand(len(dataset), len(dataset.classes), dtype=torch.float16)
        parts.append(replace(dataset, teacher_logits=logits))

    both = concatenate(*parts)

    expected = torch.cat([part.teacher_logits for part in parts])
    assert torch.equal(both.teacher_logits, expected)


def test_concatenate_refuses_what_it_would_lose(toy):
    other_classes = ImageDataset(EVERY_BYTE, LABELS, tuple("abcdefghij"))
    with_teacher = ImageDataset(EVERY_BYTE, LABELS, teacher_logits=torch.zeros(40, 10))
    with pytest.raises(ValueError, match="classes"):
        concatenate(toy[0], other_classes)
    with pytest.raises(ValueError, match="teacher"):
        concatenate(toy[0], with_teacher)


@pytest.mark.parametrize(
    ("images", "labels", "teacher_logits", "actual"),
    [
        (EVERY_BYTE[:0], LABELS[:0], None, "none"),
        (EVERY_BYTE.float(), LABELS, None, "float32"),
        (EVERY_BYTE[:, :8, :8], LABELS, None, r"\(40, 8, 8\)"),
        (EVERY_BYTE, LABELS.float(), None, "float32"),
        (EVERY_BYTE, LABELS[:4], None, r"\(4,\)"),
        (EVERY_BYTE, LABELS + 1, None, "1 to 10"),
        (EVERY_BYTE, LABELS - 1, None, "-1 to 8"),
        (EVERY_BYTE, LABELS, torch.zeros(40, 9), r"\(40, 9\)"),
    ],
)
def test_dataset_refuses_tensors_that_do_not_fit(images, labels, teacher_logits, actual):
    with pytest.raises(ValueError, match=f"found .*{actual}"):
        ImageDataset(images, labels, teacher_logits=teacher_logits)


def test_numpy_arrays_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"images .*from_numpy"):
        ImageDataset(EVERY_BYTE.numpy(), LABELS)
    with pytest.raises(TypeError, match=r"labels .*from_numpy"):
        ImageDataset(EVERY_BYTE, LABELS.numpy())


@pytest.mark.parametrize("classes", [list("0123456789"), range(10), np.arange(10)])
def test_every_sequence_of_class_names_is_the_same(classes):
    dataset = ImageDataset(EVERY_BYTE, LABELS, classes)
    assert dataset.classes == tuple("0123456789")


@pytest.mark.parametrize("classes", [set("0123456789"), dict.fromkeys("0123456789"), 10, None])
def test_dataset_refuses_classes_without_an_order(classes):
    with pytest.raises(TypeError, match="classes must be a tuple"):
        ImageDataset(EVERY_BYTE, LABELS, classes)


def test_dataset_refuses_two_classes_of_one_name():
    with pytest.raises(ValueError, match="own name"):
        ImageDataset(EVERY_BYTE, LABELS, "0123456788")


def test_dataset_warns_of_pixels_that_cannot_be_ink_on_a_background():
    ink = torch.zeros(4, 28, 28, dtype=torch.uint8)
    ink[:, 8:20, 12:16] = 1

    for largest in (1, 16):
        with pytest.warns(UserWarning, match=f"pixel is {largest}, .* 255"):
            ImageDataset(largest * ink, LABELS[:4])
    with pytest.warns(UserWarning, match="bright"):
        ImageDataset(255 - 255 * ink, LABELS[:4])


def test_dataset_is_indexed_like_a_list(toy):
    train = toy[0]
    last_image, last_label = train[-1]

    assert torch.equal(last_image, train[len(train) - 1][0])
    assert last_label == int(train.labels[-1])
    assert len(list(train)) == len(train)
    with pytest.raises(IndexError):
        train[len(train)]
    with pytest.raises(TypeError, match="subset"):
        train[:9]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(130))])
def test_dataloader_gives_the_batches(toy, wrap):
    images, labels = next(iter(DataLoader(wrap(toy[0]), batch_size=32)))
    expected_images, expected_labels, _ = next(batches(toy[0], 32))

    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)


def test_subset_of_torch_is_refused_with_the_remedy(toy):
    with pytest.raises(TypeError, match=r"subset\(indices\)"):
        evaluate(EnhancedNet(), Subset(toy[0], range(9)))


def test_dataset_refuses_teacher_logits_that_are_not_finite():
    logits = torch.zeros(40, 10)
    logits[3, 4] = torch.nan
    with pytest.raises(ValueError, match="teacher_logits"):
        ImageDataset(EVERY_BYTE, LABELS, teacher_logits=logits)
