"""Where files are read and written, and how to do so safely.

A package that runs from the repository reads and writes its files there. An installed package
writes to the working directory, and carries copies of the published weights and records.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The published files that an installed package carries (see pyproject.toml). In the repository,
# there is no such folder.
CARRIED = Path(__file__).with_name("published")


def repo_root() -> Path:
    """Return the folder of the repository, or the working directory if the package is installed."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").exists() and not CARRIED.exists():
        return root
    return Path.cwd()


def published(name: str) -> Path:
    """Return the path of a published file, such as "models/conv_net.pth".

    It is in the repository. If the package is installed, it is in the working directory, or else
    the copy that the package carries.
    """
    path = repo_root() / name
    carried = CARRIED / name
    if carried.exists() and not path.exists():
        return carried
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; after the block, it replaces `path` in one step.

    Whatever happens, even a power loss, `path` has either its old content or the complete new
    content. If several processes write at once, the last one wins. If `path` is a link, the file
    that it points to is replaced.

    Example:
        >>> with atomic_write(Path("notes.txt")) as temporary:
        ...     temporary.write_text("complete, or not there")
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")

    try:
        yield temporary

        # Without this, a power loss could leave an empty file under the new name. Windows only
        # flushes files that are open for writing.
        with temporary.open("r+b") as file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                # Some network and shared folders do not have this call. Any other error is real,
                # such as a full disk.
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                    raise

        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    """Write a dict as a .json file, atomically."""
    with atomic_write(path) as file:
        file.write_bytes(json.dumps(content, indent=indent).encode() + b"\n")


def read_json(path: Path, schema: dict[str, type]) -> dict:
    """Return the dict in a .json file.

    Args:
        path: The file.
        schema: The type of each entry that the dict must have.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file does not hold such a dict, or holds a number that is not finite.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")

        for name, expected_type in schema.items():
            value = content.get(name)
            if not isinstance(value, expected_type) or isinstance(value, bool):
                raise ValueError(f"at {name!r} it holds {value!r:.80}, expected {expected_type}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or of another kind: {error!r:.300}.") from error

    return content


def _refuse_constant(constant: str):
    raise ValueError(f"it holds {constant}, expected finite numbers")
