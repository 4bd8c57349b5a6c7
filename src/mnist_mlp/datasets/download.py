"""torchvision's downloads with a timeout, retries, a lock between processes and verification."""

import contextlib
import errno
import filecmp
import shutil
import socket
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from mnist_mlp.storage.files import replace_file

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # besides torchvision's own
TIMEOUT = 10  # seconds without an answer: torchvision sets none, and a silent mirror hangs
MAX_RETRIES, BACKOFF = 3, 1.0  # the pause before a retry, in seconds, doubles each time
LOCK_TIMEOUT = 900  # seconds to wait for another process that downloads the same
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
ARCHIVES = (".gz", ".zip", ".bz2")
Files = TypeVar("Files")


def remedy(kind: str) -> str:
    """Return what to do if the files of torchvision's class `kind` are missing."""
    held = "usps.bz2 and usps.t.bz2" if kind == "USPS" else f"{kind}/raw/"
    return (
        f"Set MNIST_ROOT to the folder that holds {held}, connect to the network once, "
        "or use load('digits')."
    )


def download_if_missing(
    root: Path, kind: str, read: Callable[[Path], Files], download: bool = True, **arguments
) -> Files:
    """Return `read(root)`, after torchvision's class `kind` has downloaded missing files.

    `read` raises FileNotFoundError or ValueError for missing or damaged files. Downloaded files are
    verified by it before anything in `root` changes; a damaged file is then kept as `.damaged`. One
    process downloads at a time. Complete files of an interrupted download are not fetched again.
    Raises what `read` raises, with the reason, if the download fails.
    """
    try:
        return read(root)
    except (FileNotFoundError, ValueError) as error:
        if not download:
            raise
        before = error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock", timeout=LOCK_TIMEOUT):
            try:
                return read(root)  # another process has fetched it meanwhile
            except (FileNotFoundError, ValueError):
                try:
                    _download(root, kind, read, arguments)
                except BaseException:
                    _tidy(root, kind)
                    raise
        return read(root)
    except (OSError, RuntimeError, ValueError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Timeout):
            reason = f"another process has been downloading for {LOCK_TIMEOUT} seconds"
        if isinstance(before, ValueError):
            raise ValueError(f"{before} It could not be downloaded again ({reason}).") from error
        raise FileNotFoundError(
            f"{kind} is not in {root} and could not be downloaded ({reason}). {remedy(kind)}"
        ) from error


def _tidy(root: Path, kind: str) -> None:
    """Remove what a failed download has left, except complete archives for the next one."""
    part = root / f".partial-{kind}"
    if not any(path.is_file() for path in part.rglob("*")):
        shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        (root / ".download.lock").unlink()


def _download(root: Path, kind: str, read: Callable[[Path], object], arguments: dict) -> None:
    """Download into a separate folder, verify, then move each file to its place."""
    from torchvision import datasets

    part = root / f".partial-{kind}"  # its own: another's may be half done
    original = getattr(datasets, kind)
    mirrors = [*getattr(original, "mirrors", [""]), *([MIRROR] if kind == "MNIST" else [])]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for attempt in range(MAX_RETRIES + 1):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            for path in part.rglob("*"):  # half extracted, or extracted from something else
                if path.is_file() and path.suffix not in ARCHIVES:
                    path.unlink()
            # torchvision's loop does not catch every error of a mirror: begin with another one.
            turned = mirrors[attempt % len(mirrors) :] + mirrors[: attempt % len(mirrors)]
            try:
                type(kind, (original,), {"mirrors": turned})(part, download=True, **arguments)
                read(part)
                break
            except (OSError, RuntimeError, ValueError, HTTPException, EOFError) as error:
                full = getattr(error, "errno", None) in UNWRITABLE
                if attempt == MAX_RETRIES or full or _offline(error):
                    raise
    finally:
        socket.setdefaulttimeout(timeout)
    for path in part.rglob("*"):
        place = root / path.relative_to(part)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists() and not filecmp.cmp(path, place, shallow=False):
                shutil.copyfile(place, place.with_name(f"{place.name}.damaged"))
            replace_file(path, place)
    shutil.rmtree(part)


def _offline(error: Exception) -> bool:
    """Return whether every attempt failed at DNS lookup, whose error numbers are negative."""
    tried = str(error).count("urlopen error")
    return tried > 0 and str(error).count("urlopen error [Errno -") == tried
