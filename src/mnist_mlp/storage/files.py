"""Atomic writes, locks between processes, JSON that is checked."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

WINDOWS = os.name == "nt"
PATIENCE = 1.0  # seconds to wait for another process that is using a file


def repo_root() -> Path:
    """Return the repository that contains this package, else the working directory."""
    root = Path(__file__).parents[3]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path` in one step.

    Whatever happens, `path` has either its old content or the whole new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only files open for writing
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that nobody else may read
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(source: Path, target: Path) -> None:
    """Move a file over another in one step; on Windows retry while a process reads the target."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def locked(path: Path, *others: Path, timeout: float = -1) -> Iterator[None]:
    """Keep other processes from these files; remove temporary files that a killed one has left.

    Raises `filelock.Timeout` after `timeout` seconds if that is 0 or more. The operating system
    releases the lock however the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout):
        for file in (path, *others):
            for leftover in file.parent.glob(f".{file.name}.*.tmp"):
                leftover.unlink()
        yield


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    """Write an object as a .json file, atomically."""
    with atomic_write(path) as file:
        file.write_bytes(json.dumps(content, indent=indent).encode() + b"\n")


def read_json(path: Path, schema: dict[str, type]) -> dict:
    """Return the object in a .json file, which has at least the entries of the schema.

    Raises OSError if the file cannot be read and ValueError if it holds anything else.
    """
    try:
        found = json.loads(path.read_bytes(), parse_constant=_refuse)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, expected an object")
        for name, kind in schema.items():
            if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
                raise ValueError(f"at {name!r} it holds {found.get(name)!r:.80}, expected {kind}")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or of another kind: {error!r:.300}.") from error


def _refuse(constant: str):
    raise ValueError(f"it holds {constant}, expected finite numbers")
