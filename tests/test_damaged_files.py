"""Thousands of broken files: nothing but the documented errors, in bounded time and memory."""

import hashlib
import io
import json
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import idx, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mnist_lab.handwriting.preprocess import segment_digits, to_mnist
from mnist_lab.research.sweep import VERSION, read_record
from mnist_mlp import load, load_weights
from mnist_mlp.checkpoint import load_checkpoint, read_card, save_checkpoint, to_bytes

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about what they still read
SECONDS, MEGABYTES = 5, 300  # that one input may take, that all of a kind may take
COUNT = Counter()
EDGES = [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0" * 64, b"[" * 5000, b"."]


@st.composite
def broken(draw, whole: bytes) -> bytes:
    """The file with up to four of its parts changed, cut out, doubled or exchanged."""
    content = whole
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        # As often near the beginning, where the headers are.
        at = at % 64 if draw(st.booleans()) and content else at
        length = draw(st.sampled_from([0, 1, 1, 2, 4, 8, 100, 10**9]))
        put = draw(st.one_of(st.binary(max_size=8), st.sampled_from(EDGES)))
        how = draw(st.sampled_from(["replace", "flip", "double", "cut"]))
        part = content[at : at + length]
        if how == "flip":
            put = bytes(b ^ (1 << draw(st.integers(0, 7))) for b in part[:1])
            length = 1
        elif how == "double":
            put = part * 2
        elif how == "cut":
            put = b""
        content = content[:at] + put + content[at + length :]
    return content


def each(content: st.SearchStrategy, check, examples: int) -> None:
    """Check so many inputs, the same ones every time."""
    bounds = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    bounds(given(content=content)(lambda content: check(content)))()


def examples(number: int):
    return pytest.mark.parametrize("examples", sample(number // 25, number))


def resident(key: str = "VmHWM") -> float:
    """Megabytes that this process has, or with VmHWM has had at most."""
    line = next(
        x for x in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if key in x
    )
    return int(line.split()[1]) / 1024


@pytest.fixture(autouse=True)
def bounded_memory():
    """The highest of the process's memory is begun anew, and read at the end."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        yield
        return
    before = resident("VmRSS")
    yield
    assert resident() - before < MEGABYTES


def outcome(kind: str, action, *allowed):
    """Run it; only the allowed errors may come out, in a sentence, and soon."""
    COUNT[kind] += 1
    start = time.perf_counter()
    result = said = None
    try:
        result = action()
    except allowed as error:
        said = f"{error}"
    assert said != ""
    assert time.perf_counter() - start < SECONDS
    return result


class Small(nn.Module):
    """A network whose file is small, so that changes meet all of its parts."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("broken")


WEIGHTS = to_bytes(Small().state_dict())


def with_right_checksums(pickled: bytes) -> bytes:
    """The archive of torch.save with another pickle in it, as somebody would who means harm."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(WEIGHTS)) as old, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            is_pickle = record.filename.endswith("data.pkl")
            new.writestr(record.filename, pickled if is_pickle else old.read(record))
    return file.getvalue()


with zipfile.ZipFile(io.BytesIO(WEIGHTS)) as archive:
    PICKLED = archive.read("archive/data.pkl")


def check_weights(folder, content):
    path, model = folder / "net.pth", Small()
    path.write_bytes(content)
    before = [p.clone() for p in model.parameters()]
    if outcome("weights", lambda: load_weights(model, path), ValueError):
        assert all(torch.isfinite(p).all() for p in model.parameters())
    else:
        assert all(map(torch.equal, before, model.parameters()))


@examples(2000)
def test_weights(folder, examples):
    each(broken(WEIGHTS), partial(check_weights, folder), examples)


@examples(2500)
def test_weights_whose_checksums_are_right(folder, examples):
    each(broken(PICKLED).map(with_right_checksums), partial(check_weights, folder), examples)


CARD = {
    "model": "Small", "parameters": 43, "versions": {"torch": "2"}, "saved": "2026-01-01",
    "sha256": hashlib.sha256(WEIGHTS).hexdigest(), "test_correct": 9_900,
}  # fmt: skip


@examples(1500)
def test_card(folder, examples):
    def check(content):
        (folder / "card.pth").write_bytes(WEIGHTS)
        (folder / "card.json").write_bytes(content)
        card = outcome("cards", lambda: read_card(folder / "card.pth"), ValueError)
        assert card is None or card["sha256"] == CARD["sha256"]

    each(broken(json.dumps(CARD, indent=2).encode()), check, examples)


RUN = {"seed": 0, "epochs": 2}
RECORD = {
    **CARD, "run": RUN, "version": VERSION, "threads": 1, "validation_accuracy": 0.9,
    "best_epoch": 2, "seconds": 1.5, "epochs": [{"loss": 0.5}, {"loss": 0.25}],
}  # fmt: skip


@examples(1500)
def test_record(folder, examples):
    """A record that cannot be used is named, and the run is trained again."""

    whole = json.dumps(RECORD, indent=1).encode()

    def check(content):
        (folder / "record.pth").write_bytes(WEIGHTS)
        (folder / "record.json").write_bytes(content)
        record = outcome("records", lambda: read_record(folder / "record.json", RUN))
        assert record is None or (record["run"], record["version"]) == (RUN, VERSION)

        assert record is not None or content != whole

    each(broken(whole), check, examples)


@examples(1500)
def test_mnist(small_mnist, examples):
    """A file of MNIST is the right one or refused."""
    path = small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()

    def check(content):
        path.write_bytes(content)
        splits = outcome(
            "MNIST files", lambda: load("mnist", small_mnist, download=False), ValueError
        )
        assert (splits is not None) == (content == whole)

    each(broken(whole), check, examples)


@examples(1500)
def test_sibling(folder, examples):
    """torchvision's own reader, which checks no digest."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((24, 28, 28), np.uint8)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(24, dtype=np.uint8) % 10))

    def check(content):
        (raw / "train-images-idx3-ubyte").write_bytes(content)
        read = outcome("siblings", lambda: load("fashion", folder, download=False), ValueError)
        assert read is None or len(read.train) == 22

    each(broken(idx(np.zeros((24, 28, 28), np.uint8))), check, examples)


def picture(format: str) -> bytes:
    y, x = np.mgrid[:60, :50]
    ink = Image.fromarray(np.where(abs(np.hypot(y - 30, x - 25) - 15) < 4, 20, 230).astype("u1"))
    file = io.BytesIO()
    ink.save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
@examples(300)
def test_picture(folder, format, examples):
    def check(content):
        path = folder / f"digit.{format.lower()}"
        path.write_bytes(content)
        image = outcome("pictures", lambda: to_mnist(path), ValueError)
        assert image is None or image.shape == (28, 28)
        outcome("pictures", lambda: segment_digits(path), ValueError)

    each(broken(picture(format)), check, examples)


@examples(1000)
def test_checkpoint(folder, examples):
    """What a broken checkpoint restores is what was saved, or nothing."""
    path = folder / "run.pt"
    identity = {"epochs": 2}
    state = {"model": Small().state_dict(), "epochs": [{"loss": 0.5}]}
    save_checkpoint(path, identity, state)

    def check(content):
        path.write_bytes(content)
        restored = outcome("checkpoints", lambda: load_checkpoint(path, identity), ValueError)
        if restored is not None:
            assert restored["epochs"] == state["epochs"]
            for name, tensor in state["model"].items():
                assert torch.equal(restored["model"][name], tensor)

    each(broken(path.read_bytes()), check, examples)


@pytest.mark.campaign
def test_these_were_more_than_ten_thousand(capsys):
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in COUNT.items())
    with capsys.disabled():
        print(f"\nOf {COUNT.total():,} mutated inputs 0 gave an undocumented error ({kinds}).")
    assert COUNT.total() >= 10_000 or len(COUNT) < 8  # a selection of the tests
