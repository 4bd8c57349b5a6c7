"""A download of MNIST survives bad mirrors, a full disk and a second process."""

import gzip
import http.server
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import few_or_all, full_disk

from mnist_mlp import datasets
from mnist_mlp.datasets import load

IMAGES = "train-images-idx3-ubyte"


class Mirror(http.server.BaseHTTPRequestHandler):
    """Two mirrors, /a/ and /b/; `faults` says how a mirror fails to send the training images."""

    def do_GET(self):
        mirror, name = self.path.removesuffix(".gz").split("/")[-2:]
        self.requests.append((mirror, name))
        content = self.archives[name]
        half = len(content) // 2

        fault = self.faults.get(mirror) if name == IMAGES else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "silent":
            time.sleep(2)  # longer than the client's timeout
        elif fault == "html":
            content = b"<html>Please log in to the network</html>"
        elif fault == "flipped bit":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        elif fault == "broken archive":
            content = content[:10] + b"\xff" + content[11:]
        elif fault == "half an archive":
            content = content[:half]
        elif fault == "another file":
            content = gzip.compress(b"another file")

        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "short":
            content = content[:half]
        if fault != "slow":
            self.wfile.write(content)
            return
        step = len(content) // 10 + 1
        for start in range(0, len(content), step):
            self.wfile.write(content[start : start + step])
            time.sleep(0.1)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(small_files, monkeypatch):
    """The mirrors, running on loopback."""
    Mirror.archives = {name: gzip.compress(content) for name, content in small_files.items()}
    Mirror.faults = {}
    Mirror.requests = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(datasets, "MIRRORS", (f"{url}/a/", f"{url}/b/"))
        monkeypatch.setattr(datasets, "TIMEOUT_SECONDS", 0.5)
        yield Mirror
        running.shutdown()


@pytest.fixture
def root(small_mnist, tmp_path):
    """A folder to download into; the digests of MNIST are those of the small one."""
    return tmp_path / "new" / "root"


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FAULTS = [
    404, 503, "html", "short", "flipped bit", "broken archive", "half an archive", "another file",
    "silent",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_download_continues_at_other_mirror(server, root, small_files, fault):
    server.faults["a"] = fault

    load("mnist", root)

    assert files_in(root) == small_files
    assert [mirror for mirror, name in server.requests if name == IMAGES] == ["a", "b"]


def test_download_waits_for_slow_mirror(server, root, small_files):
    """It takes longer than the timeout, which limits each silence."""
    server.faults["a"] = "slow"

    load("mnist", root)

    assert files_in(root) == small_files
    assert {mirror for mirror, _ in server.requests} == {"a"}


@pytest.mark.parametrize("fault", [503, "short", "another file"])
def test_failed_download_is_one_error_and_can_be_repeated(server, root, small_files, fault):
    server.faults.update(a=fault, b=fault)

    with pytest.raises(FileNotFoundError, match=r"MNIST_ROOT.*download failed") as caught:
        load("mnist", root)
    assert "\n" not in str(caught.value)
    for mirror in datasets.MIRRORS:
        assert mirror in str(caught.value)
    assert not files_in(root)

    server.faults.clear()
    assert load("auto", root).name == "mnist"
    assert files_in(root) == small_files


def test_download_fetches_only_missing_files(server, root, small_files):
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name in set(small_files) - {IMAGES}:
        (root / "MNIST" / "raw" / name).write_bytes(small_files[name])

    load("mnist", root)
    load("mnist", root)
    assert server.requests == [("a", IMAGES)]


@pytest.mark.parametrize("damage", ["truncated", "zeroed"])
def test_download_replaces_damaged_file(server, small_mnist, small_files, damage):
    path = small_mnist / "MNIST" / "raw" / IMAGES
    content = path.read_bytes()
    path.write_bytes(content[:-5] if damage == "truncated" else bytes(len(content)))

    load("mnist", small_mnist)
    assert files_in(small_mnist) == small_files
    assert server.requests == [("a", IMAGES)]


def test_download_to_full_disk_is_one_error(server, root, small_files):
    with full_disk(50_000), pytest.raises(FileNotFoundError, match="File too large"):
        load("mnist", root)
    assert not files_in(root)
    assert server.requests == [("a", IMAGES)]  # the other mirror would not help

    load("mnist", root)
    assert files_in(root) == small_files


@pytest.mark.parametrize("rounds", few_or_all(2, 30))
def test_concurrent_downloads_do_not_break_each_other(server, root, small_files, rounds):
    server.faults["a"] = "slow"
    chance = random.Random(0)

    for i in range(rounds):
        with ThreadPoolExecutor() as executor:
            first = executor.submit(load, "mnist", root / str(i))
            time.sleep(chance.uniform(0, 1))
            second = executor.submit(load, "mnist", root / str(i))
        assert torch.equal(first.result().train.images, second.result().train.images)
        assert files_in(root / str(i)) == small_files
