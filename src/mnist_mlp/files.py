"""Where this repository's files are, and how they are written: whole or not at all."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def repo_root() -> Path:
    """Return the repository that contains this package, else the working directory."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").exists():
        return root
    return Path.cwd()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path` in one step.

    Whatever happens, even a power loss, `path` has either its old content or the whole new
    content. If several processes write at once, the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")

    try:
        yield temporary

        # Without this, a power loss could leave the new name with no content.
        with temporary.open("r+b") as file:  # Windows flushes only files open for writing
            os.fsync(file.fileno())

        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    """Write an object as a .json file, atomically."""
    with atomic_write(path) as file:
        file.write_bytes(json.dumps(content, indent=indent).encode() + b"\n")


def read_json(path: Path, schema: dict[str, type]) -> dict:
    """Return the object in a .json file.

    Args:
        path: The file.
        schema: The entries that it must have at least, each with its type.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else, or numbers that are not finite.
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
