"""`load` reads each data set's true files, and says what to do if it cannot."""

import bz2
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import idx
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from mnist_mlp import datasets
from mnist_mlp.datasets import TORCHVISION_DATASETS, centre_digit, default_root, load
from mnist_mlp.files import repo_root

FILES = sorted(datasets.MNIST_FILES)


@pytest.fixture
def no_network(monkeypatch):
    def unknown_host(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)


def test_load_mnist_parts_are_the_files_and_disjoint(small_mnist):
    splits = load("mnist", small_mnist, download=False)

    train = {bytes(image) for image in splits.train.images.numpy()}
    validation = {bytes(image) for image in splits.validation.images.numpy()}
    assert (len(train), len(validation), len(splits.test)) == (660, 60, 130)
    assert train.isdisjoint(validation)
    all_images = MNIST(small_mnist, train=True).data
    assert train | validation == {bytes(image) for image in all_images.numpy()}
    assert torch.equal(splits.test.images, MNIST(small_mnist, train=False).data)
    for dataset in (splits.train, splits.validation, splits.test):
        assert torch.equal(dataset.images[:, 0, 0].long(), dataset.labels)


def test_load_mnist_is_55000_5000_10000_stratified(mnist):
    train = torch.bincount(mnist.train.labels)
    validation = torch.bincount(mnist.validation.labels)

    assert (int(train.sum()), int(validation.sum()), len(mnist.test)) == (55_000, 5_000, 10_000)
    assert ((train + validation) / 12 - validation).abs().max() < 1
    published_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (train + validation).tolist() == published_counts


def test_load_split_depends_on_its_seed(small_mnist):
    default = load("mnist", small_mnist).validation.images
    assert torch.equal(load("mnist", small_mnist, seed=0).validation.images, default)
    assert not torch.equal(load("mnist", small_mnist, seed=1).validation.images, default)


def test_load_root_is_the_argument_then_the_environment(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    assert load(download=False).name == "mnist"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("mnist", tmp_path / "nowhere", download=False)


def test_default_root_is_relative_to_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    assert default_root() == repo_root() / "data"
    monkeypatch.setenv("MNIST_ROOT", "elsewhere")
    assert default_root() == repo_root() / "elsewhere"


@pytest.mark.parametrize("name", FILES)
def test_load_names_missing_file_and_remedy(small_mnist, name):
    (small_mnist / "MNIST" / "raw" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.*MNIST_ROOT"):
        load("mnist", small_mnist, download=False)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("damage", ["truncated", "longer", "one bit"])
def test_load_refuses_damaged_file(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-9:]
    elif damage == "longer":
        content += b"\0"
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"{name}.*download=True"):
        load("mnist", small_mnist, download=False)
    with pytest.raises(ValueError, match=name):  # damaged is not missing: no fallback to the digits
        load("auto", small_mnist, download=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits", seed=3)


def test_load_digits_has_those_of_scikit_learn_placed_like_mnist(digits):
    parts = (digits.train, digits.validation, digits.test)
    images = torch.cat([dataset.images for dataset in parts])
    labels = torch.cat([dataset.labels for dataset in parts])

    source = load_digits()
    assert [len(dataset) for dataset in parts] == [1317, 120, 360]
    assert torch.bincount(labels).tolist() == np.bincount(source.target).tolist()
    expected = [centre_digit(torch.tensor(image / 16)).numpy().tobytes() for image in source.images]
    assert sorted(image.numpy().tobytes() for image in images) == sorted(expected)


def test_centre_digit_fits_20x20_and_centres_the_mass():
    digit = torch.zeros(90, 60)
    digit[10:70, 20:35] = 1.0
    digit[60:70, 20:50] = 1.0

    image = centre_digit(digit).double()

    rows, columns = image.nonzero().T
    assert rows.max() - rows.min() + 1 == 20
    assert columns.max() - columns.min() + 1 == 10
    for dim in (0, 1):
        mass = image.sum(1 - dim)
        assert abs((mass * torch.arange(28)).sum() / mass.sum() - 13.5) <= 0.5


def test_load_auto_is_silent_with_mnist(small_mnist):
    with warnings.catch_warnings(action="error"):
        splits = load("auto", small_mnist)
    assert (splits.name, splits.warning) == ("mnist", "")


def test_load_auto_without_mnist_warns_and_loads_digits(digits, tmp_path):
    with pytest.warns(UserWarning, match="NOT MNIST") as caught:
        splits = load("auto", tmp_path / "nowhere", download=False, seed=3)

    assert caught[0].filename == __file__
    assert (splits.name, splits.warning) == ("digits", str(caught[0].message))
    assert torch.equal(splits.validation.images, digits.validation.images)


def write_idx(raw, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the two files of MNIST's format."""
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


def write_qmnist(raw, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write labels of eight int32 columns: the class, the writer, the source, ..."""
    columns = np.full((len(labels), 8), 77, ">i4")
    columns[:, 0] = labels
    header = b"\0\0\x0c\2" + np.array(columns.shape, ">u4").tobytes()
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    (raw / f"{prefix}-labels-idx2-int").write_bytes(header + columns.tobytes())


def write_usps(path, labels: np.ndarray, random: np.random.Generator) -> None:
    """Write random images of 16x16 pixels in LIBSVM's text format."""
    lines = []
    for label in labels:
        ink = enumerate(random.uniform(-1, 1, 256), start=1)
        pixels = " ".join(f"{i}:{value:.4f}" for i, value in ink)
        lines.append(f"{label + 1} {pixels}")
    path.write_bytes(bz2.compress("\n".join(lines).encode()))


def write_dataset(root, name: str) -> np.ndarray:
    """Write 240 training and 50 test images in the data set's format; return the test images."""
    random = np.random.default_rng(0)
    raw = root / TORCHVISION_DATASETS[name][0] / "raw"
    raw.mkdir(parents=True)

    for part, count in (("train", 240), ("test", 50)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        if name == "usps":
            write_usps(root / ("usps.bz2" if part == "train" else "usps.t.bz2"), labels, random)
        elif name == "qmnist":
            write_qmnist(raw, f"qmnist-{part}", images, labels)
        elif name == "emnist-digits":
            write_idx(raw, f"emnist-digits-{part}", images.transpose(0, 2, 1), labels)
        else:
            write_idx(raw, "train" if part == "train" else "t10k", images, labels)

    return images


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_load_torchvision_reads_true_format_without_network(name, tmp_path, no_network):
    test_images = write_dataset(tmp_path, name)
    splits = load(name, tmp_path)

    assert (splits.name, splits.warning) == (name, "")
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [220, 20, 50]
    assert splits.test.labels.tolist() == list(range(10)) * 5
    first_class = {"fashion": "T-shirt/top", "kmnist": "o"}.get(name, "0")
    assert splits.test.classes[0] == first_class
    if name == "usps":
        assert (splits.test.images.amax((1, 2)) > 200).all()
    else:
        assert np.array_equal(splits.test.images, test_images)


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_load_torchvision_names_missing_and_damaged_data_set(name, tmp_path):
    class_name = TORCHVISION_DATASETS[name][0]
    with pytest.raises(FileNotFoundError, match=f"{class_name}.*MNIST_ROOT"):
        load(name, tmp_path, download=False)

    write_dataset(tmp_path, name)
    for path in [*tmp_path.glob("usps.bz2"), *tmp_path.glob("*/raw/*train-images*")]:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{class_name}.*damaged"):
        load(name, tmp_path, download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion", "usps"])
def test_load_without_network_is_one_sentence(name, tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match="MNIST_ROOT") as caught:
        load(name, tmp_path / "root")
    assert "not known" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "mnits"}, ValueError, "'usps'.*load_folder"),
        ({"name": None}, TypeError, "load_folder"),
        ({"name": repo_root()}, TypeError, "load_folder"),
        ({"name": "digits", "seed": 1.5}, TypeError, "seed"),
        ({"name": "digits", "seed": -1}, TypeError, "seed"),
    ],
)
def test_load_refuses_wrong_arguments_with_the_remedy(arguments, error, message):
    with pytest.raises(error, match=message):
        load(**arguments)


def test_import_leaves_out_torchvision():
    """It takes twice as long to import as torch."""
    code = "import sys, mnist_mlp; print('torchvision' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_load_digits_draws_its_test_set_by_the_seed(digits):
    assert not torch.equal(load("digits", seed=4).test.images, digits.test.images)


def test_load_digits_returns_images_of_its_own():
    """Whoever changes them changes no later ones."""
    first = load("digits")
    expected = [split.images.clone() for split in (first.train, first.validation, first.test)]
    for split in (first.train, first.validation, first.test):
        split.images.zero_()
        split.labels.zero_()

    again = load("digits")
    for split, images in zip((again.train, again.validation, again.test), expected, strict=True):
        assert torch.equal(split.images, images)
        assert split.labels.unique().tolist() == list(range(10))


def test_load_takes_no_bool_for_its_folder():
    """`load("mnist", False)` is meant to be `download=False`."""
    with pytest.raises(TypeError):
        load("digits", False)
