"""What a server, a network, a disk or a second process can do to a download of MNIST."""

import contextlib
import gzip
import http.server
import os
import random
import socket
import struct
import threading
import time

import pytest
import torch
from helpers import full_disk, processes, sample

from mnist_mlp import datasets
from mnist_mlp.datasets import load

IMAGES = "train-images-idx3-ubyte"
FAULTS = [403, 404, 500, 503, "html", "short", "reset", "wrong", "another", "silent"]


@pytest.fixture
def server(small_files, monkeypatch):
    """Two mirrors on loopback; `faults` holds what happens to the images on a mirror."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            mirror, name = self.path.removesuffix(".gz").split("/")[-2:]
            self.log.append((mirror, name))
            content = self.files[name]
            half = len(content) // 2

            fault = self.faults.get(mirror) if name == IMAGES else None
            if isinstance(fault, int):
                self.send_error(fault)
                return
            if fault == "silent":
                time.sleep(3)  # who waits that long gets the file
            if fault == "html":
                content = b"<html>Please log in to the network</html>"
            if fault == "wrong":
                content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            if fault == "another":
                content = gzip.compress(b"another file")

            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault in ("short", "reset"):
                self.wfile.write(content[:half])
                self.wfile.flush()
                if fault == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    time.sleep(0.1)  # let the first half arrive
                self.connection.close()
            elif fault == "slow":
                step = len(content) // 10 + 1
                for start in range(0, len(content), step):
                    self.wfile.write(content[start : start + step])
                    time.sleep(0.1)
            else:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    Handler.files = {name: gzip.compress(content) for name, content in small_files.items()}
    Handler.faults = {}
    Handler.log = []  # (mirror, file) of each request

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Handler.url = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(datasets, "MIRRORS", (f"{Handler.url}/a/", f"{Handler.url}/b/"))
        monkeypatch.setattr(datasets, "TIMEOUT_SECONDS", 0.5)
        yield Handler
        running.shutdown()


@pytest.fixture
def root(small_mnist, tmp_path):
    """A root to download into; the digests are those of the small MNIST."""
    return tmp_path / "new" / "root"


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fault", FAULTS)
def test_download_goes_on_to_other_mirror(server, root, small_files, fault):
    server.faults["a"] = fault
    load("mnist", root)
    assert files_in(root) == small_files
    assert [mirror for mirror, name in server.log if name == IMAGES] == ["a", "b"]


def test_download_waits_for_slow_mirror(server, root, small_files):
    server.faults["a"] = "slow"
    load("mnist", root)
    assert files_in(root) == small_files
    assert {mirror for mirror, _ in server.log} == {"a"}


@pytest.mark.parametrize("fault", FAULTS)
def test_download_failure_is_one_error_and_can_be_repeated(server, root, small_files, fault):
    server.faults.update(a=fault, b=fault)
    with pytest.raises(FileNotFoundError, match=r"MNIST.*MNIST_ROOT.*download failed") as caught:
        load("mnist", root)
    for mirror in datasets.MIRRORS:
        assert mirror in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not files_in(root)

    with pytest.warns(UserWarning, match="NOT MNIST"):
        splits = load("auto", root)
    assert splits.name == "digits"

    server.faults.clear()
    assert load("auto", root).name == "mnist"
    assert files_in(root) == small_files


def test_download_fetches_no_complete_file_again(server, root, small_files, small_mnist):
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name in set(small_files) - {IMAGES}:
        (root / "MNIST" / "raw" / name).write_bytes(small_files[name])
    load("mnist", root)
    load("mnist", root)
    assert server.log == [("a", IMAGES)]


def test_download_replaces_damaged_file(server, small_mnist, small_files):
    path = small_mnist / "MNIST" / "raw" / IMAGES
    for damaged in (path.read_bytes()[:-5], bytes(path.stat().st_size), b""):
        path.write_bytes(damaged)
        load("mnist", small_mnist)
        assert files_in(small_mnist) == small_files
    assert server.log == [("a", IMAGES)] * 3


def test_failed_download_leaves_damaged_file_as_it_is(server, small_mnist):
    path = small_mnist / "MNIST" / "raw" / IMAGES
    path.write_bytes(b"damaged")
    server.faults.update(a=503, b=503)
    for name in ("mnist", "auto"):
        with pytest.raises(ValueError, match=f"{IMAGES} is truncated.*download failed.*503"):
            load(name, small_mnist)
    assert path.read_bytes() == b"damaged"


def test_download_without_network_looks_up_each_mirror_once(root, monkeypatch):
    hosts = []

    def unknown_host(host, *args, **kwargs):
        hosts.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    with pytest.raises(FileNotFoundError, match="Name or service not known"):
        load("mnist", root)
    assert len(hosts) == len(set(hosts)) == 2


def test_download_uses_proxy_of_environment(server, root, monkeypatch):
    """The server is the proxy of a mirror that does not exist: it is asked for it by name."""
    monkeypatch.setattr(datasets, "MIRRORS", ("http://mirror.invalid/c/",))
    monkeypatch.setenv("http_proxy", server.url)
    load("mnist", root)
    assert set(server.log) == {("c", name) for name in server.files}


def test_load_of_complete_files_writes_nothing(server, small_mnist):
    def state():
        paths = [small_mnist, *small_mnist.rglob("*")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = state()
    load("mnist", small_mnist)
    assert state() == before
    assert server.log == []


def test_download_into_unwritable_folder_is_one_error(server, root):
    root.parent.mkdir(parents=True)
    root.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match=r"download failed \(.*root"):
        load("mnist", root)


def test_download_to_full_disk_is_one_error(server, root, small_files):
    with full_disk(50_000), pytest.raises(FileNotFoundError, match="File too large"):
        load("mnist", root)
    assert not files_in(root)
    assert len(server.log) == 1  # the other mirror would not help

    load("mnist", root)
    assert files_in(root) == small_files


def load_elsewhere(root, mirrors, files, delay, results):
    """Download MNIST in another process, as a second notebook does, and send what it got."""
    datasets.MIRRORS = mirrors
    datasets.MNIST_FILES = files
    time.sleep(delay)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            results.put(load("mnist", root).train.images.numpy())
        except Exception as error:
            results.put(repr(error))


@pytest.mark.parametrize("rounds", sample(6, 50))
def test_concurrent_downloads_do_not_break_each_other(server, root, small_mnist, rounds):
    """They start at random offsets; in every third round one of them is killed meanwhile."""
    server.faults["a"] = "slow"
    expected = load("mnist", small_mnist, download=False).train.images
    chance = random.Random(0)
    context = processes(
        "mnist_mlp.datasets", "pooch", "pytest", "matplotlib.pyplot", "scipy.ndimage"
    )

    for number in range(rounds):
        results = context.Queue()
        arguments = (root / str(number), datasets.MIRRORS, datasets.MNIST_FILES)
        both = [
            context.Process(target=load_elsewhere, args=(*arguments, delay, results))
            for delay in (0, chance.uniform(0, 0.5))
        ]
        for process in both:
            process.start()

        survivors = 2
        if number % 3 == 2:
            survivors = 1
            time.sleep(chance.uniform(0, 0.8))
            both[0].kill()

        for _ in range(survivors):
            assert torch.equal(torch.as_tensor(results.get(timeout=60)), expected)
        for process in both:
            process.join(60)
