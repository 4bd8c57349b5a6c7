"""A training in the middle, on disk: `fit` goes on from there after whatever has stopped it."""

import copy
import hashlib
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import nn

from mnist_mlp.checkpoint import atomic, describe, lock, read, replace, to_bytes
from mnist_mlp.data import ImageDataset

FORMAT = 2
MARK = b"training checkpoint of mnist_mlp"  # stands in each, also in one that is damaged


class Foreign(ValueError):
    """A file that is not a training's checkpoint."""


class Checkpoint:
    """The file of one training, the one before it kept as `.previous`; does nothing without a path.

    `parts`: the "model", and by name whatever else has a `state_dict`. `settings` and `datasets`
    say what the training is: that of others does not go on from its file.
    """

    def __init__(
        self,
        path: str | Path | None,
        parts: dict,
        settings: dict,
        datasets: Iterable[ImageDataset],
    ):
        self.path = Path(path) if path else None
        self.parts = parts
        self.about = _about(settings, parts["model"], datasets) if path else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from the file. Raises OSError if one has it, or for its folder."""
        if not self.path:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self.path, timeout=0):
                for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):  # by a killed one
                    left.unlink()
                yield
        except Timeout as error:
            raise OSError(
                f"{self.path} is in use by another training. Give each a file of its own."
            ) from error

    def restore(self) -> dict:
        """Put the parts where the file left them; return the progress, empty without a file.

        A damaged file is set aside as `.damaged`, and the one before it taken. Raises ValueError
        if it is of another training, and names what differs; nothing is then changed.
        """
        if not self.path:
            return {}
        untouched = copy.deepcopy({name: part.state_dict() for name, part in self.parts.items()})
        for path in (self.path, self._beside(".previous")):
            try:
                self._check_ours(path)
                state = read(path)
                about = state["about"]
                differing = [
                    f"{name} was {about.get(name)!r}, is {self.about.get(name)!r}"
                    for name in (self.about | about)
                    if about.get(name) != self.about.get(name)
                ]
                if not differing:
                    self._load(state["parts"])
                    torch.set_rng_state(state["torch"])
                    return dict(state["progress"])
            except FileNotFoundError:
                continue
            except Foreign:
                raise
            except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
                self._load(untouched)
                aside = self._beside(".damaged")
                replace(path, aside)
                warnings.warn(f"{path} is of no use and now {aside}: {error!r}.", stacklevel=3)
                continue
            raise ValueError(
                f"{path} is the checkpoint of another training: {'; '.join(differing)}. "
                "Restore that, or delete the file and its .previous to begin anew."
            )
        return {}

    def _check_ours(self, path: Path) -> None:
        """Raise Foreign for a file that no training has written: it stays where it is."""
        content = path.read_bytes()
        if content and MARK not in content and path == self.path:
            raise Foreign(
                f"{path} is there already and is no training's checkpoint: it stays as it is. "
                "Give checkpoint= a file of its own, say run.pt."
            )

    def save(self, progress: dict) -> None:
        """Save the parts and the progress in one step; where that fails, warn and go on."""
        if not self.path:
            return
        states = {name: part.state_dict() for name, part in self.parts.items()}
        state = {"about": self.about, "parts": states, "progress": progress, MARK.decode(): True}
        try:
            with atomic(self.path) as file:
                file.write_bytes(to_bytes(state | {"torch": torch.get_rng_state()}))
                if self.path.exists():
                    replace(self.path, self._beside(".previous"))
        except OSError as error:
            warnings.warn(f"{self.path} was not saved, training goes on: {error}.", stacklevel=3)

    def _load(self, states: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(states[name])

    def _beside(self, suffix: str) -> Path:
        assert self.path
        return self.path.with_name(self.path.name + suffix)


def _about(settings: dict, model: nn.Module, datasets: Iterable[ImageDataset]) -> dict:
    """Return what a training is, and what its bits depend on, in plain values."""
    digest, datasets = hashlib.sha256(), list(datasets)
    for dataset in datasets:
        for tensor in (dataset.images, dataset.labels, dataset.answers):
            if tensor is not None:
                digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    shapes = ", ".join(f"{name} {describe(t)}" for name, t in model.state_dict().items())
    own = [name_of(dataset.augment) for dataset in datasets if dataset.augment is not None]
    return settings | {
        "model": f"{type(model).__name__}: {shapes}",
        "layers": " ".join(repr(model).split()),
        "own augmentation": ", ".join(own),
        "data (SHA-256)": digest.hexdigest(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "format": FORMAT,
    }


def name_of(function: object) -> str:
    """Return what a function or class is called, with its module; else what it says of itself."""
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}.{function.__qualname__}"
    return repr(function)


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Yield a list to which Ctrl-C and SIGTERM are added, for the loop to end at its next step.

    The second one acts at once, as it did before. Without effect outside the main thread, which
    alone receives signals.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame) -> None:
        received.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
