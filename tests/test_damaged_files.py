"""Thousands of broken files give nothing but the documented errors, without much memory."""

import copy
import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from helpers import few_or_all, idx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.research.sweep import VERSION, read_record
from mnist_mlp import load, load_weights
from mnist_mlp.checkpoint import load_checkpoint, save_checkpoint, state_bytes

# Pillow and torch warn of some files that they still read.
pytestmark = pytest.mark.filterwarnings("ignore")

TELLING_BYTES = [
    b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0" * 64, b"[" * 5000, b".",
]  # fmt: skip


@st.composite
def broken(draw, whole: bytes) -> bytes:
    """Draw a file with up to four changes: bytes replaced, flipped, doubled or cut out."""
    content = whole
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            start %= 64  # every second change hits the headers

        length = draw(st.sampled_from([0, 1, 1, 2, 4, 8, 100, 10**9]))
        old = content[start : start + length]
        change = draw(st.sampled_from(["replace", "flip", "double", "cut"]))
        if change == "replace":
            new = draw(st.one_of(st.binary(max_size=8), st.sampled_from(TELLING_BYTES)))
        elif change == "flip":
            bit = 1 << draw(st.integers(0, 7))
            new = bytes([old[0] ^ bit]) + old[1:] if old else b""
        elif change == "double":
            new = old * 2
        else:
            new = b""
        content = content[:start] + new + content[start + length :]
    return content


def check_all(contents: st.SearchStrategy, check, count: int) -> None:
    """Call `check` with this many contents, the same ones every time."""
    bounds = settings(
        max_examples=count,
        deadline=5_000,  # milliseconds for one file
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    test = given(contents)(check)
    bounds(test)()


def result_or_none(read, *arguments, **options):
    """Return the result, or None after a ValueError; every other error is raised."""
    try:
        return read(*arguments, **options)
    except ValueError:
        return None


def examples(count: int):
    """Parametrize a test with a small number of examples, and with all: `make test-all`."""
    return pytest.mark.parametrize("count", few_or_all(count // 50, count))


@pytest.fixture(autouse=True)
def bounded_memory():
    resource = pytest.importorskip("resource", reason="Windows does not tell the peak of memory")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 300_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("broken")


def small_net() -> nn.Module:
    """Return a network whose file is small, so that changes hit each part of it."""
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))


WEIGHTS = state_bytes(small_net().state_dict())


def check_weights(folder, content: bytes) -> nn.Module | None:
    """Return the network with the weights that were loaded, or None if they were refused."""
    path = folder / "net.pth"
    path.write_bytes(content)
    model = small_net()
    before = copy.deepcopy(model.state_dict())

    loaded = result_or_none(load_weights, model, path)

    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all()
        assert loaded or torch.equal(tensor, before[name])
    return loaded


@examples(2000)
def test_broken_weights(folder, count):
    """Some bits of the archive's headers mean nothing; all others are refused."""
    saved = torch.load(io.BytesIO(WEIGHTS))

    def check(content):
        loaded = check_weights(folder, content)
        if loaded is not None:
            for name, tensor in loaded.state_dict().items():
                assert torch.equal(tensor, saved[name])

    check_all(broken(WEIGHTS), check, count)


@examples(2500)
def test_broken_weights_with_valid_checksums(folder, count):
    """The pickle in the archive is broken by somebody who means harm."""
    records = {}
    with zipfile.ZipFile(io.BytesIO(WEIGHTS)) as archive:
        for record in archive.infolist():
            records[record.filename] = archive.read(record)

    def check(pickled):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, pickled if name == "archive/data.pkl" else content)
        check_weights(folder, file.getvalue())

    check_all(broken(records["archive/data.pkl"]), check, count)


@examples(1500)
def test_broken_card_in_the_record_of_a_sweep(folder, count):
    """A record that cannot be used is None, and the sweep computes it again."""
    run = {"seed": 0, "epochs": 2}
    record = {
        "model": "Sequential",
        "parameters": 43,
        "versions": {"torch": "2"},
        "saved": "2026-01-01",
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "run": run,
        "version": VERSION,
        "epochs": [{"loss": 0.5}, {"loss": 0.25}],
    }
    whole = json.dumps(record, indent=1).encode()
    (folder / "record.pth").write_bytes(WEIGHTS)

    def check(content):
        (folder / "record.json").write_bytes(content)
        restored = read_record(folder / "record.json", run, VERSION)
        if restored is None:
            assert content != whole
        else:
            assert (restored["run"], restored["version"]) == (run, VERSION)

    check_all(broken(whole), check, count)


@examples(1500)
def test_broken_mnist(small_mnist, count):
    """A file of MNIST is the right one or refused."""
    path = small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()

    def check(content):
        path.write_bytes(content)
        splits = result_or_none(load, "mnist", small_mnist, download=False)
        assert (splits is not None) == (content == whole)

    check_all(broken(whole), check, count)


@examples(1500)
def test_broken_torchvision_data_set(folder, count):
    """torchvision checks no digest of files that are already there."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    images = idx(np.zeros((24, 28, 28), np.uint8))
    labels = idx(np.arange(24, dtype=np.uint8) % 10)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)

    def check(content):
        (raw / "train-images-idx3-ubyte").write_bytes(content)
        splits = result_or_none(load, "fashion", folder, download=False)
        assert splits is None or len(splits.train) + len(splits.validation) == 24

    check_all(broken(images), check, count)


@pytest.mark.parametrize("extension", ["png", "jpeg", "gif", "bmp", "tiff"])
@examples(300)
def test_broken_picture(folder, extension, count):
    y, x = np.mgrid[:60, :50]
    ring = abs(np.hypot(y - 30, x - 25) - 15) < 4
    path = folder / f"digit.{extension}"
    Image.fromarray(np.where(ring, 20, 230).astype(np.uint8)).save(path)

    def check(content):
        path.write_bytes(content)
        image = result_or_none(to_mnist, path)
        assert image is None or image.shape == (28, 28)
        result_or_none(segment_digits, path)

    check_all(broken(path.read_bytes()), check, count)


@examples(1000)
def test_broken_checkpoint(folder, count):
    """A checkpoint restores what was saved, or nothing."""
    path = folder / "run.pt"
    identity = {"epochs": 2}
    state = {"model": small_net().state_dict(), "epochs": [{"loss": 0.5}]}
    save_checkpoint(path, identity, state)

    def check(content):
        path.write_bytes(content)
        restored = result_or_none(load_checkpoint, path, identity)
        if restored is not None:
            assert restored["epochs"] == state["epochs"]
            for name, tensor in state["model"].items():
                assert torch.equal(restored["model"][name], tensor)

    check_all(broken(path.read_bytes()), check, count)
