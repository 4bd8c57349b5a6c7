"""Everything that a server, a network or a second process does to a download."""

import contextlib
import hashlib
import http.server
import os
import random
import socket
import struct
import threading
import time

import pytest
import torchvision
from helpers import full_disk, posix, processes, sample, visible
from torchvision.datasets import MNIST

from mnist_mlp.datasets import download, load
from mnist_mlp.datasets import mnist as mnist_files

IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def server(small_archives, monkeypatch):
    """Mirrors on loopback; `faults` are what the next requests for images get, `files` the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        faults, files, log, resetting = [], dict(small_archives), [], "no mirror"

        def do_GET(self):
            name = self.path.rpartition("/")[2]
            content = self.files.get(name)
            probe = self.headers.get("Method") == "HEAD"  # torchvision looks for a redirection
            if self.path.startswith(self.resetting) and name.startswith(IMAGES) and not probe:
                self.faults.insert(0, "reset")
            fault = self.faults[0] if self.faults and name.startswith(IMAGES) else "right"
            if content is None:
                self.send_error(404)
                return
            if probe and not isinstance(fault, int):
                fault = "right"
            elif fault != "right":
                self.faults.pop(0)
            if not probe:
                self.log.append(self.path)
            if isinstance(fault, int):
                self.send_error(fault)
                return
            if fault == "silent":
                time.sleep(1.5)
                return
            half = len(content) // 2
            body = {
                "html": b"<html>Please log in to the network</html>",
                "wrong": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
                "half": content[:half],
            }.get(fault, content)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault in ("short", "reset"):
                self.wfile.write(body[:half])
                if fault == "reset":
                    self.wfile.flush()
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    time.sleep(0.1)  # let the first half arrive
                self.connection.close()
            elif fault == "slow":
                for start in range(0, len(body), len(body) // 10 + 1):
                    self.wfile.write(body[start : start + len(body) // 10 + 1])
                    time.sleep(0.1)
            else:
                self.wfile.write(body)

        def log_message(self, *args):
            pass

        def finish(self):
            with contextlib.suppress(OSError, ValueError):  # a fault has closed it
                super().finish()

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args):
            pass

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Handler.url = f"http://127.0.0.1:{running.server_port}/"
        monkeypatch.setattr(MNIST, "mirrors", [f"{Handler.url}{mirror}/" for mirror in "ab"])
        monkeypatch.setattr(download, "MIRROR", f"{Handler.url}c/")
        monkeypatch.setattr(download, "BACKOFF", 0.01)
        monkeypatch.setattr(download, "TIMEOUT", 0.5)
        yield Handler
        running.shutdown()


@pytest.fixture
def root(small_mnist, tmp_path):
    """A root to download into, the digests being the small MNIST's."""
    return tmp_path / "new" / "root"


def is_whole(root) -> bool:
    splits = load("mnist", root, download=False)
    return len(splits.train) == 660 and visible(root) == ["MNIST"]


FAULTS = [403, 404, 500, 503, "html", "half", "short", "reset", "wrong", "silent", "slow"]


@pytest.mark.parametrize("times", sample(1, 3))
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_files_are_the_right_ones(server, root, fault, times):
    server.faults += [fault] * times
    load("mnist", root)
    assert is_whole(root)


def test_after_one_of_each_fault_the_files_are_the_right_ones(server, root, monkeypatch):
    monkeypatch.setattr(download, "MAX_RETRIES", 7)  # older torchvisions end a try at any fault
    server.faults += [*FAULTS[:4], "html", "reset", "wrong", "short", "silent"]
    load("mnist", root)
    assert is_whole(root)
    assert not server.faults


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "slow"])
def test_a_fault_that_lasts_is_one_clear_error_and_a_later_try_works(server, root, fault):
    server.faults += [fault] * 100
    with pytest.raises(
        FileNotFoundError, match=r"MNIST is not in .* could not be downloaded \(.+\)\. Set MNIST_R"
    ) as found:
        load("mnist", root)
    assert "\n" not in str(found.value)
    assert not (root / "MNIST").exists()
    with pytest.warns(UserWarning, match="NOT MNIST"):
        splits = load("auto", root)
    assert (splits.name, "NOT MNIST" in splits.note) == ("digits", True)
    server.faults.clear()
    load("auto", root)
    assert is_whole(root)


def test_it_is_downloaded_once_and_what_is_whole_is_not_fetched_again(server, root):
    server.faults += ["reset"] * 100
    with pytest.raises(FileNotFoundError):
        load("mnist", root)
    server.faults.clear()
    server.log.clear()
    load("mnist", root)
    load("auto", root)
    assert sorted(path.rpartition("/")[2] for path in server.log) == sorted(server.files)


def test_every_mirror_is_asked(server, root):
    server.faults += [503] * 100
    with pytest.raises(FileNotFoundError, match="503"):
        load("mnist", root)
    server.faults[:] = [503, 503]
    load("mnist", root)
    assert {path for path in server.log if IMAGES in path} == {f"/c/{IMAGES}.gz"}
    assert download.MIRROR not in type(MNIST).__dict__.get("mirrors", [])


def test_a_mirror_that_always_breaks_off_does_not_keep_the_others_from_being_asked(server, root):
    """Its fault escapes torchvision's loop over the mirrors: the next try begins with another."""
    server.resetting = "/a/"
    load("mnist", root)
    assert is_whole(root)
    assert [path for path in server.log if IMAGES in path] == [f"/{m}/{IMAGES}.gz" for m in "ab"]


def test_a_damaged_file_is_set_aside_and_fetched_again(server, root):
    load("mnist", root)
    path = root / "MNIST" / "raw" / IMAGES
    damaged = path.read_bytes()[:-5]
    path.write_bytes(damaged)
    load("mnist", root)
    assert is_whole(root)
    assert path.with_name(f"{IMAGES}.damaged").read_bytes() == damaged
    assert [p.name for p in path.parent.glob("*.damaged")] == [f"{IMAGES}.damaged"]


def test_what_a_killed_download_left_does_no_harm(server, root, small_files):
    part = root / ".partial-MNIST" / "MNIST" / "raw"
    part.mkdir(parents=True)
    for name, content in small_files.items():  # half extracted
        (part / name).write_bytes(content[:1000])
    (part / f"{IMAGES}.gz").write_bytes(b"half")
    load("mnist", root)
    assert is_whole(root)


def test_a_download_does_not_put_the_half_file_of_another_into_place(server, root, monkeypatch):
    class Half:
        def __init__(self, root, download, **arguments):
            raw = root / "EMNIST" / "raw"
            if download:
                raw.mkdir(parents=True, exist_ok=True)
                (raw / "gzip.zip").write_bytes(b"half")
            raise OSError("the connection is gone")

    monkeypatch.setattr(torchvision.datasets, "EMNIST", Half)
    with pytest.raises(FileNotFoundError, match="the connection is gone"):
        load("emnist-digits", root)
    assert [path.read_bytes() for path in root.rglob("gzip.zip")] == [b"half"]  # for the next try
    load("mnist", root)
    assert not (root / "EMNIST").exists()


def test_without_a_network_it_does_not_try_for_long(root, monkeypatch):
    """A name that cannot be looked up, as torchvision reports it."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://no.such.host.invalid/"])
    monkeypatch.setattr(download, "MIRROR", "http://none.such.host.invalid/")
    monkeypatch.setattr(download, "BACKOFF", 1000)

    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FileNotFoundError, match="Name or service not known"):
        load("mnist", root)


def test_the_pauses_grow(server, root, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "BACKOFF", 1.0)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.files.clear()
    with pytest.raises(FileNotFoundError, match="404"):
        load("mnist", root)
    assert pauses == [1, 2, 4]


def test_a_proxy_in_the_environment_is_used(server, root, monkeypatch):
    """The server is the proxy of mirrors that do not exist: it is asked for them by name."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://mirror.invalid/"])
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setattr("urllib.request._opener", None)  # it is made once, of the environment
    load("mnist", root)
    assert set(server.log) == {f"http://mirror.invalid/{name}" for name in server.files}


@posix
def test_a_folder_that_cannot_be_written_is_named_and_one_that_is_whole_is_only_read(
    server, root, monkeypatch
):
    root.parent.mkdir(parents=True)
    root.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(.*File exists"):
        load("mnist", root)
    root.unlink()
    load("mnist", root)
    (root / ".download.lock").unlink(missing_ok=True)

    def refuse(*args, **kwargs):
        raise PermissionError(30, "Read-only file system", str(root))

    monkeypatch.setattr(download, "FileLock", refuse)
    assert len(load("mnist", root).test) == 130
    (root / "MNIST" / "raw" / IMAGES).unlink()
    with pytest.raises(FileNotFoundError, match="Read-only file system"):
        load("mnist", root)


def test_a_full_disk_is_one_clear_error_and_not_tried_again(server, root, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 1000)
    words = r"could not be downloaded \(.*File too large"
    with full_disk(50_000), pytest.raises(FileNotFoundError, match=words):
        load("mnist", root)
    load("mnist", root)
    assert is_whole(root)


def load_elsewhere(root, mirrors, resources, digests, wait, results):
    """What a second notebook does: download MNIST, or find it, and say what it got."""
    MNIST.mirrors, MNIST.resources, mnist_files.MNIST_FILES = mirrors, resources, digests
    time.sleep(wait)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            images = load("mnist", root).train.images
            results.put(hashlib.sha256(images.numpy()).hexdigest())
        except BaseException as error:
            results.put(repr(error))


@pytest.mark.parametrize("rounds", sample(6, 50))
def test_two_processes_share_one_download(server, root, small_mnist, capsys, rounds):
    """Started at random offsets; in every third round one of them is killed meanwhile."""
    chance = random.Random(0)
    images = load("mnist", small_mnist, download=False).train.images
    expected = hashlib.sha256(images.numpy()).hexdigest()
    context = processes("torchvision.datasets", "mnist_mlp.datasets.mnist")
    broken, shared = [], 0
    for round_ in range(rounds):
        folder, results = root / str(round_), context.Queue()
        server.log.clear()
        arguments = folder, MNIST.mirrors, MNIST.resources, mnist_files.MNIST_FILES
        both = [
            context.Process(target=load_elsewhere, args=(*arguments, wait, results))
            for wait in (0, chance.uniform(0, 0.15))
        ]
        for process in both:
            process.start()
        killed = round_ % 3 == 2
        if killed:
            time.sleep(chance.uniform(0, 0.3))
            both[0].kill()
        for process in both:
            process.join(60)
        found = [results.get(timeout=60) for _ in range(1 if killed else 2)]
        shared += not killed and len(server.log) == len(server.files)
        if set(found) != {expected}:
            broken.append((round_, found))
    with capsys.disabled():
        print(f"\n{len(broken)} of {rounds} concurrent downloads broken, {shared} shared.")
    assert not broken
    assert shared == rounds - rounds // 3
