"""What the tests share: small data sets of their own, and the real MNIST where there is one."""

import hashlib
import os
import shutil

from helpers import CLASSES, idx  # before torch: it sets how many threads that has

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mnist_mlp import datasets
from mnist_mlp.data import ImageDataset, Splits
from mnist_mlp.datasets import load
from mnist_mlp.evaluation import Evaluation

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LONGEST = (
    "test_two_commands.py",
    "Handwritten-Digits-Classifier.ipynb",
    "test_notebooks.py",
    "test_sweep.py",
    "Try-An-Idea.ipynb",
    "test_read_pictures.py",
    "test_page.py",
    "What-Has-It-Learned.ipynb",
)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no process ends long after the others."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def small_files() -> dict[str, bytes]:
    """A small MNIST: 720 + 130 images, no two alike, in the four files of the real one."""
    random = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 720), ("t10k", 130)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images[np.arange(count), 0, 0] = labels  # each image says what its label must be
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return files


@pytest.fixture
def small_mnist(small_files, tmp_path, monkeypatch):
    """The root of a folder with the small MNIST, whose digests stand in for the real ones."""
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digests = {}
    for name, content in small_files.items():
        (raw / name).write_bytes(content)
        digests[name] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(datasets, "MNIST_FILES", digests)
    return tmp_path / "root"


@pytest.fixture(scope="session")
def mnist() -> Splits:
    """The real MNIST. Where it is missing the test is skipped, or fails if REQUIRE_MNIST is set."""
    try:
        return load("mnist", download=False)
    except FileNotFoundError as error:
        if os.environ.get("REQUIRE_MNIST"):
            pytest.fail(f"REQUIRE_MNIST is set, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def browser():
    """A Chromium, or the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def toy() -> tuple[ImageDataset, ImageDataset]:
    """130 images to learn from and 50 to validate on, each class a blob in a place of its own."""
    generator = torch.Generator().manual_seed(0)

    def blobs(count: int) -> ImageDataset:
        labels = torch.randint(10, (count,), generator=generator)
        images = torch.randint(0, 60, (count, 28, 28), dtype=torch.uint8, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = 4 + 12 * (label // 5), 2 + 5 * (label % 5)
            image[row : row + 6, column : column + 4] += 90
        return ImageDataset(images, labels)

    return blobs(130), blobs(50)


@pytest.fixture
def evaluation() -> Evaluation:
    """Five images; images 1 and 3 are wrong, 1 with the higher confidence."""
    logits = torch.tensor([[9.0, 0, 0], [5.0, 0, 1], [0, 3.0, 0], [0, 2.0, 1], [0, 0, 9.0]])
    return Evaluation(logits, torch.tensor([0, 2, 1, 0, 2]), CLASSES)


@pytest.fixture
def random_evaluation() -> Evaluation:
    """Random logits of 2,003 images and ten classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (2003,), generator=generator)
    logits = torch.randn(2003, 10, generator=generator)
    logits[torch.arange(2003), labels] += 2.5
    return Evaluation(logits, labels, tuple("abcdefghij"))


@pytest.fixture(autouse=True)
def no_figure_is_left():
    """Close the figures that a test has drawn."""
    yield
    plt.close("all")
