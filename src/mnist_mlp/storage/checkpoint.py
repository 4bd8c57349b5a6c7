"""Checkpoints for resuming training, and signals that wait for the end of a step."""

import copy
import hashlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import nn

from mnist_mlp.storage.files import atomic_write, locked, replace_file
from mnist_mlp.storage.weights import describe, read_tensors, to_bytes

FORMAT = 4
MARK = b"training checkpoint of mnist_mlp"  # stored as a key, so that damaged files are recognised


class TrainingCheckpoint:
    """The file of one training run, with the one before it kept as `.previous`.

    `state`: has a `state_dict`. `identity`: returns the settings that identify the training; a
    file with other settings is refused. Without a path nothing is done.
    """

    def __init__(self, path: str | Path | None, state: Any, identity: Callable[[], dict]):
        self.path = Path(path) if path else None
        self.state = state
        self.fingerprint = identity() if path else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the file. Raises OSError if another training is using it."""
        if not self.path:
            yield
            return
        try:
            with locked(self.path, timeout=0):
                yield
        except Timeout as error:
            raise OSError(
                f"{self.path} is in use by another training. Give each training its own file."
            ) from error

    def restore(self) -> None:
        """Restore the state from the file, if there is one.

        A damaged file is kept as `.damaged`, and the one before it is used. Raises ValueError,
        naming the differences, if it is of another training; nothing is then changed.
        """
        if not self.path:
            return
        content = self.path.read_bytes() if self.path.exists() else b""
        if any(content) and MARK not in content:  # zeros alone are what a power loss leaves
            raise ValueError(
                f"{self.path} exists and is not a training checkpoint: it is left as it is. "
                "Give checkpoint= a file of its own, for example run.pt."
            )
        untouched = copy.deepcopy(self.state.state_dict())
        for path in (self.path, self._sibling(".previous")):
            try:
                saved = read_tensors(path)
                found = saved["fingerprint"]
                differences = [
                    f"{name} was {found.get(name)!r}, is {self.fingerprint.get(name)!r}"
                    for name in self.fingerprint | found
                    if found.get(name) != self.fingerprint.get(name)
                ]
                if not differences:
                    self.state.load_state_dict(saved["state"])
                    torch.set_rng_state(saved["torch_rng"])
                    return
            except FileNotFoundError:
                continue
            except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
                self.state.load_state_dict(untouched)
                damaged = self._sibling(".damaged")
                replace_file(path, damaged)
                warnings.warn(f"{path} is damaged and now {damaged}: {error!r}.", stacklevel=3)
                continue
            raise ValueError(
                f"{path} is the checkpoint of another training: {'; '.join(differences)}. "
                "Restore these settings, or delete the file and its .previous to start anew."
            )

    def save(self) -> None:
        """Save the state atomically; if that fails, warn and go on."""
        if not self.path:
            return
        content = {"fingerprint": self.fingerprint, "state": self.state.state_dict()}
        content |= {"torch_rng": torch.get_rng_state(), MARK.decode(): True}
        try:
            with atomic_write(self.path) as file:
                file.write_bytes(to_bytes(content))
                if self.path.exists():
                    replace_file(self.path, self._sibling(".previous"))
        except OSError as error:
            warnings.warn(f"{self.path} was not saved: {error}. Training goes on.", stacklevel=3)

    def _sibling(self, suffix: str) -> Path:
        assert self.path
        return self.path.with_name(self.path.name + suffix)


def fingerprint(recipe: dict, model: nn.Module, datasets: Iterable[Any]) -> dict:
    """Return everything that determines the result of a training, in plain values.

    Raises ValueError for a lambda in the recipe, which has the same name as any other.
    """
    for name, value in recipe.items():
        if "<lambda>" in str(value):
            raise ValueError(f"with a checkpoint {name} must be a named function, found {value}.")
    digest = hashlib.sha256()
    for value in [value for dataset in datasets for value in vars(dataset).values()]:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    settings = [
        f"{name}.{key}={value}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (int, float, str)) and key[0] != "_" and key != "training"
    ]
    shapes = ", ".join(f"{name} {describe(t)}" for name, t in model.state_dict().items())
    return recipe | {
        "model": f"{type(model).__name__}: {shapes}",
        "layers": " ".join(repr(model).split()),
        "layers' settings": " ".join(settings),
        "data (SHA-256)": digest.hexdigest(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "format": FORMAT,
    }


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM are added, for the loop to stop at its next step.

    The second one acts at once, as usual. No effect outside the main thread, which alone receives
    signals.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number, frame) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN):
                handlers[number] = handler
                signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
