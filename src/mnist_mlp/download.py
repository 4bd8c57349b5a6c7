"""What torchvision's downloads lack: a timeout, further tries, one at a time, whole files only."""

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

from mnist_mlp.checkpoint import replace

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # besides torchvision's own
TIMEOUT = 10  # seconds without an answer: torchvision sets none, and a silent mirror hangs
TRIES, PAUSE = 4, 1.0  # the pause, in seconds, doubles from one to the next
PATIENCE = 900  # seconds that another process may take to download the same
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
ARCHIVES = (".gz", ".zip", ".bz2")
Files = TypeVar("Files")


def remedy(kind: str) -> str:
    """Return what to do where the files of torchvision's class `kind` are not there."""
    held = "usps.bz2 and usps.t.bz2" if kind == "USPS" else f"{kind}/raw/"
    return (
        f"Set MNIST_ROOT to the folder that holds {held}, connect to the network once, "
        "or use load('digits')."
    )


def ensure(
    root: Path, kind: str, read: Callable[[Path], Files], download: bool = True, **arguments
) -> Files:
    """Return what `read(root)` returns, if need be after torchvision's class `kind` downloads it.

    `read` raises FileNotFoundError or ValueError for missing or damaged files; it verifies what was
    downloaded before anything in `root` changes. A damaged file is then kept as `.damaged`. One
    process at a time downloads; what is whole of an interrupted download is not fetched again.
    Raises what `read` raises if that did not help, with the reason.
    """
    try:
        return read(root)
    except (FileNotFoundError, ValueError) as error:
        if not download:
            raise
        before = error
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock", timeout=PATIENCE):
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
            reason = f"another process has been at it for {PATIENCE} seconds"
        if isinstance(before, ValueError):
            raise ValueError(f"{before} It could not be downloaded afresh ({reason}).") from error
        raise FileNotFoundError(
            f"{kind} is not in {root} and could not be downloaded ({reason}). {remedy(kind)}"
        ) from error


def _tidy(root: Path, kind: str) -> None:
    """Leave nothing of a download that failed but what a later one need not fetch again."""
    part = root / f".partial-{kind}"
    if not any(path.is_file() for path in part.rglob("*")):
        shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        (root / ".download.lock").unlink()


def _download(root: Path, kind: str, read: Callable[[Path], object], arguments: dict) -> None:
    """Download into a folder of its own, verify, and only then move each file to its place."""
    from torchvision import datasets

    part = root / f".partial-{kind}"  # its own: another's may be half done
    original = getattr(datasets, kind)
    mirrors = [*getattr(original, "mirrors", [""]), *([MIRROR] if kind == "MNIST" else [])]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            for path in part.rglob("*"):  # half extracted, or extracted from something else
                if path.is_file() and path.suffix not in ARCHIVES:
                    path.unlink()
            # Some faults of a mirror escape torchvision's loop over them: begin with another.
            turned = mirrors[attempt % len(mirrors) :] + mirrors[: attempt % len(mirrors)]
            try:
                type(kind, (original,), {"mirrors": turned})(part, download=True, **arguments)
                read(part)
                break
            except (OSError, RuntimeError, ValueError, HTTPException, EOFError) as error:
                full = getattr(error, "errno", None) in UNWRITABLE
                if attempt == TRIES - 1 or full or _offline(error):
                    raise
    finally:
        socket.setdefaulttimeout(timeout)
    for path in part.rglob("*"):
        place = root / path.relative_to(part)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists() and not filecmp.cmp(path, place, shallow=False):
                shutil.copyfile(place, place.with_name(f"{place.name}.damaged"))
            replace(path, place)
    shutil.rmtree(part)


def _offline(error: Exception) -> bool:
    """Return whether no name could be looked up, which has negative error numbers."""
    tried = str(error).count("urlopen error")
    return tried > 0 and str(error).count("urlopen error [Errno -") == tried
