"""torchvision's data sets in their true formats."""

import bz2
import socket

import numpy as np
import pytest
from helpers import idx

from mnist_mlp.datasets import TORCHVISION_DATASETS, load


def write(path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_dataset(root, name: str) -> np.ndarray:
    """Write 240 training and 50 test images; return the test images as they should be read."""
    random = np.random.default_rng(0)
    raw = root / TORCHVISION_DATASETS[name][0] / "raw"

    for train, count in ((True, 240), (False, 50)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        prefix = "train" if train else "test"

        if name in ("fashion", "kmnist"):
            prefix = "train" if train else "t10k"
            write(raw / f"{prefix}-images-idx3-ubyte", idx(images))
            write(raw / f"{prefix}-labels-idx1-ubyte", idx(labels))

        elif name == "emnist-digits":
            write(raw / f"emnist-digits-{prefix}-images-idx3-ubyte", idx(images.transpose(0, 2, 1)))
            write(raw / f"emnist-digits-{prefix}-labels-idx1-ubyte", idx(labels))

        elif name == "qmnist":
            columns = np.full((count, 8), 77, ">i4")  # the class, then the writer, the source, ...
            columns[:, 0] = labels
            header = b"\0\0\x0c\2" + np.array(columns.shape, ">u4").tobytes()  # 12: int32
            write(raw / f"qmnist-{prefix}-images-idx3-ubyte", idx(images))
            write(raw / f"qmnist-{prefix}-labels-idx2-int", header + columns.tobytes())

        else:
            lines = []
            for label in labels:
                ink = random.uniform(-1, 1, 256)
                pixels = " ".join(f"{i + 1}:{value:.4f}" for i, value in enumerate(ink))
                lines.append(f"{label + 1} {pixels}")
            content = bz2.compress("\n".join(lines).encode())
            write(root / ("usps.bz2" if train else "usps.t.bz2"), content)

    return images


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_load_reads_true_format_without_network(name, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used although all files are there")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    expected_images = write_dataset(tmp_path, name)
    splits = load(name, tmp_path)

    assert (splits.name, splits.warning) == (name, "")
    sizes = [len(splits.train), len(splits.validation), len(splits.test)]
    assert sizes == [220, 20, 50]
    assert splits.test.labels.tolist() == [i % 10 for i in range(50)]
    if name != "usps":  # 16x16: it has to be made larger
        assert np.array_equal(splits.test.images, expected_images)
    first_class = {"fashion": "T-shirt/top", "kmnist": "o"}.get(name, "0")
    assert splits.test.classes[0] == first_class


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_load_names_missing_and_damaged_data_set(name, tmp_path):
    class_name = TORCHVISION_DATASETS[name][0]
    with pytest.raises(FileNotFoundError, match=f"{class_name}.*MNIST_ROOT"):
        load(name, tmp_path, download=False)

    write_dataset(tmp_path, name)
    pattern = "usps.bz2" if name == "usps" else f"{class_name}/raw/*train-images*"
    (path,) = tmp_path.glob(pattern)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{class_name} in .* is damaged.*Delete"):
        load(name, tmp_path, download=False)


@pytest.mark.parametrize("name", TORCHVISION_DATASETS)
def test_load_without_network_is_one_sentence(name, tmp_path, monkeypatch):
    def unknown_host(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    with pytest.raises(FileNotFoundError, match=r"not known.*MNIST_ROOT") as caught:
        load(name, tmp_path / "root")
    assert "\n" not in str(caught.value)
