import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.datasets import MNIST

from mnist_mlp import data, download

FILES = sorted(data.MNIST_FILES)


def torchvision_batch(dataset: data.ImageDataset) -> torch.Tensor:
    """What torchvision's own transforms make of each image, one at a time."""
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    return torch.stack([transforms.Compose(steps)(image.numpy()) for image in dataset.images])


def test_batches_have_the_bits_of_torchvisions_transforms():
    every_byte = torch.arange(784 * 40).remainder(256).to(torch.uint8).view(40, 28, 28)
    dataset = data.ImageDataset(every_byte, torch.arange(40) % 10)
    images, labels = next(iter(data.loader(dataset, batch_size=40)))
    assert torch.equal(images, torchvision_batch(dataset))
    assert torch.equal(labels, dataset.labels)
    assert torch.equal(dataset[7][0], images[7])
    assert dataset[7][1] == 7


def test_the_real_images_have_the_bits_of_torchvisions_transforms(mnist):
    images = torch.cat([images for images, _ in data.loader(mnist.test)])
    assert torch.equal(images, torchvision_batch(mnist.test))


def test_a_plain_dataloader_gives_the_same_images(toy):
    one_by_one = [toy[0][i] for i in range(130)]
    at_once = list(data.loader(toy[0], batch_size=64))
    assert torch.equal(
        torch.stack([image for image, _ in one_by_one]), torch.cat([b[0] for b in at_once])
    )
    assert [label for _, label in one_by_one] == torch.cat([b[1] for b in at_once]).tolist()


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (3, 45)])
def test_the_generator_of_an_epoch_has_64_bits_of_seed_and_epoch(seed, epoch):
    """Pinned, for all that was ever trained and published depends on it."""
    low, high = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32).tolist()
    assert data.epoch_generator(seed, epoch).initial_seed() == high << 32 | low


def test_every_image_comes_once_an_epoch_with_its_label_in_an_order_of_seed_and_epoch(small_mnist):
    train = data.load("mnist", small_mnist, download=False).train
    orders = {}
    for seed, epoch in [(0, 1), (0, 1), (0, 2), (1, 1)]:
        batches = list(data.loader(train, 64, data.epoch_generator(seed, epoch)))
        assert [len(labels) for _, labels in batches] == [64] * 10 + [20]
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        first_pixel = (images[:, 0] * 0.3081 + 0.1307) * 255  # holds the label
        assert first_pixel.round().long().tolist() == labels.tolist()
        assert sorted(map(bytes, images.numpy())) == sorted(
            bytes(row) for row in torchvision_batch(train).numpy()
        )
        assert orders.setdefault((seed, epoch), labels.tolist()) == labels.tolist()
    assert len({tuple(order) for order in orders.values()}) == 3


def test_the_parts_are_those_of_the_files_and_share_no_image(small_mnist):
    splits = data.load("mnist", small_mnist, download=False)
    parts = [
        {bytes(i) for i in p.images.numpy()} for p in (splits.train, splits.validation, splits.test)
    ]
    train_file, test_file = (
        {bytes(i) for i in MNIST(small_mnist, train=t).data.numpy()} for t in (True, False)
    )
    assert [len(part) for part in parts] == [660, 60, 130]
    assert parts[0] | parts[1] == train_file
    assert not parts[0] & parts[1]
    assert parts[2] == test_file
    for part in (splits.train, splits.validation, splits.test):
        assert torch.equal(part.images[:, 0, 0].long(), part.labels)


def test_the_split_of_mnist_is_55000_5000_10000_and_stratified(mnist):
    assert [len(p) for p in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    train, validation = (torch.bincount(p.labels) for p in (mnist.train, mnist.validation))
    assert ((train + validation) / 12 - validation).abs().max() < 1
    assert (train + validation).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_the_split_depends_on_its_seed_alone(small_mnist):
    first, again, other = (data.load("mnist", small_mnist, seed=s).validation for s in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("every", [5, 12])
def test_hold_out_is_a_stratified_partition(every):
    labels = torch.tensor(np.random.default_rng(0).choice(10, 997, p=np.arange(1, 11) / 55))
    kept, held = data.hold_out(labels, every, seed=0)
    assert sorted(kept.tolist() + held.tolist()) == list(range(997))
    wanted = torch.bincount(labels) / every
    assert (torch.bincount(labels[held]) - wanted).abs().max() < 1


def test_digits_are_the_embedded_ones_made_the_mnist_way():
    from sklearn.datasets import load_digits

    splits = data.load("digits")
    parts = (splits.train, splits.validation, splits.test)
    assert splits.name == "digits"
    assert sum(len(part) for part in parts) == 1797
    labels = torch.cat([part.labels for part in parts])
    assert torch.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()
    images = torch.cat([part.images for part in parts]).double()
    at = torch.arange(28, dtype=torch.float64)
    for axis in (1, 2):
        mass = images.sum(3 - axis)
        centre = (mass * at).sum(1) / mass.sum(1)
        assert (centre - 13.5).abs().median() < 0.3
        inked = (mass > 0).sum(1)
        assert inked.max() <= 20
    longer = torch.maximum(*[(images.sum(d) > 0).sum(1) for d in (1, 2)])
    assert longer.float().mean() > 18  # blank borders of a stroke may round away


def test_root_is_the_argument_then_the_environment_then_data(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert data.load("mnist", download=False).name == "mnist"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load("mnist", tmp_path / "nowhere", download=False)
    monkeypatch.delenv("MNIST_ROOT")
    monkeypatch.setattr(data, "home", lambda: tmp_path)
    small_mnist.rename(tmp_path / "data")
    assert data.load("mnist", download=False).name == "mnist"
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("MNIST_ROOT", "elsewhere")  # relative: from the repository, whatever the cwd
    assert data.load("mnist", download=False).name == "mnist"


def test_home_is_the_repository_from_whatever_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (data.home() / "tests" / "test_data.py").samefile(__file__)


def test_a_data_set_without_images_is_refused():
    with pytest.raises(ValueError, match=r"^a data set must .* image, found none\.$"):
        data.ImageDataset(torch.zeros(0, 28, 28).byte(), torch.zeros(0).long())


def test_a_missing_root_names_what_is_missing_and_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks train-images.*Set MNIST_ROOT"):
        data.load("mnist", tmp_path / "nowhere", download=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "one bit", "longer", "labels for images"])
def test_a_damaged_file_is_named_with_what_was_expected(small_mnist, monkeypatch, name, how):
    path = small_mnist / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[:-9])
    elif how == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "longer":
        path.write_bytes(content + b"\0")
    else:
        path.write_bytes(b"\0" * len(content))
    found = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{name} is .*expected.*Load with download=True"):
        data.load("mnist", small_mnist, download=False)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(download, "MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setattr(download, "PAUSE", 0)
    with pytest.raises(
        ValueError, match=rf"{name} is .*could not be downloaded afresh \(.*refused"
    ):
        data.load("auto", small_mnist)  # a damaged MNIST is no missing MNIST
    assert path.read_bytes() == found


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_each_real_file_is_found(mnist, tmp_path, name):
    root = os.environ.get("MNIST_ROOT") or data.home() / "data"
    shutil.copytree(root, tmp_path / "copy")
    path = tmp_path / "copy" / "MNIST" / "raw" / name
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is altered"):
        data.load("mnist", tmp_path / "copy", download=False)


def test_an_unreadable_folder_is_named(small_mnist, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("numpy.fromfile", refuse)  # root may read anything: permissions won't do
    with pytest.raises(
        PermissionError, match=r"cannot be read.*Permission denied.*holds MNIST/raw/, "
    ):
        data.load("auto", small_mnist)


def test_fewer_labels_than_images_is_refused():
    with pytest.raises(
        ValueError, match=r"labels must be .*\(5,\), one for each image, found .*\(4,\)"
    ):
        data.ImageDataset(
            torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
        )


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
        data.ImageDataset(images, labels)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown data set 'mnits': expected 'mnist'"):
        data.load("mnits")


def test_with_mnist_auto_is_mnist_and_silent(small_mnist):
    with warnings.catch_warnings(action="error"):
        splits = data.load("auto", small_mnist)
    assert (splits.name, splits.note) == ("mnist", "")


def test_loading_mnist_imports_no_torchvision(small_mnist):
    """Which takes longer to import than all the rest of this does. Nor what only figures need."""
    code = f"""
import sys
from mnist_mlp import data, train
data.MNIST_FILES.update({data.MNIST_FILES!r})
assert len(data.load("mnist", {str(small_mnist)!r}, download=False).test) == 130
print({{"torchvision", "matplotlib", "sklearn", "scipy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_data_set_moves_to_a_device_with_its_labels(small_mnist, monkeypatch):
    train = data.load("mnist", small_mnist, download=False).train
    monkeypatch.setattr(data.ImageDataset, "__post_init__", lambda self: None)  # reads values
    moved = replace(train, mean=0.5).to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    assert (moved.mean, len(moved)) == (0.5, len(train))


def test_by_default_it_is_mnist_split_with_seed_0(small_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    monkeypatch.setattr(download, "_download", None)  # not needed
    splits = data.load()
    assert splits.name == "mnist"
    seed_0 = data.load("mnist", small_mnist, seed=0)
    assert torch.equal(splits.validation.images, seed_0.validation.images)


def test_auto_warns_at_the_line_that_called_it(tmp_path):
    with pytest.warns(UserWarning, match="NOT MNIST") as found:
        data.load("auto", tmp_path / "nowhere", download=False)
    assert found[0].filename == __file__


def test_auto_without_mnist_is_the_digits_of_the_same_seed(tmp_path):
    with pytest.warns(
        UserWarning, match=r"NOT MNIST\. MNIST is not there: .*lacks .*holds MNIST/raw/, "
    ) as found:
        splits = data.load("auto", tmp_path / "nowhere", download=False, seed=3)
    assert (splits.name, splits.note) == ("digits", str(found[0].message))
    expected = data.load("digits", seed=3)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, part).images, getattr(expected, part).images)


def test_other_data_sets_get_the_same_arguments(tmp_path, monkeypatch):
    from mnist_mlp import others

    monkeypatch.setattr(others, "load", lambda *arguments: arguments)
    assert data.load("fashion", tmp_path) == ("fashion", tmp_path, True, 0)
    expected = ("usps", tmp_path, False, 7)
    assert data.load("usps", str(tmp_path), download=False, seed=7) == expected


def test_home_is_the_working_directory_where_the_package_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "__file__", str(tmp_path / "lib" / "site" / "mnist_mlp" / "data.py"))
    assert data.home() == tmp_path


def test_what_is_wrong_with_a_file_is_said_in_so_many_words(small_mnist):
    path = small_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content, remedy = path.read_bytes(), "or copy it from a good source."
    for wrong, words in [
        (content[:-1], r"is truncated: 137 bytes, expected 138\. Load with download=True to fetch"),
        (content + b"0", r"is not MNIST's: 139 bytes, expected 138\. Load with download=True"),
        (content[:-1] + b"0", r"SHA-256 begins [0-9a-f]{12}, expected [0-9a-f]{12}\. Load with"),
    ]:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=words) as found:
            data.load("mnist", small_mnist, download=False)
        assert str(found.value).endswith(remedy)
    path.unlink()
    path.with_name("t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-images-idx3-ubyte, t10k-labels-idx1"):
        data.load("mnist", small_mnist, download=False)
