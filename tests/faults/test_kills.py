"""SIGKILL at any moment of training and saving; two processes that save to the same file."""

import hashlib
import json
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import fit_with, processes, sample, visible

from mnist_mlp import train
from mnist_mlp.data import ImageDataset
from mnist_mlp.model import EnhancedNet
from mnist_mlp.storage.checkpoint import TrainingCheckpoint
from mnist_mlp.storage.files import atomic_write
from mnist_mlp.storage.weights import load_weights, read_card, read_tensors, save_weights

RECIPE = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01}
CONTEXT = processes("mnist_mlp.train", "torchvision.datasets")


def digest(model) -> str:
    return hashlib.sha256(
        b"".join(t.numpy().tobytes() for t in model.state_dict().values())
    ).hexdigest()


def train_and_save(folder: Path, resumable: bool) -> None:
    """Train, save every two steps, save the weights, and at last write what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # noise cannot be learned
    train.CHECKPOINT_EVERY = 2
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (180, 28, 28), dtype=torch.uint8, generator=generator)
    parts = [
        ImageDataset(images[rows], torch.arange(180)[rows] % 10)
        for rows in (slice(130), slice(130, 180))
    ]
    torch.manual_seed(0)
    model = EnhancedNet()
    file = folder / "run.pt" if resumable else None
    history = fit_with(model, *parts, checkpoint=file, **RECIPE)
    save_weights(model, folder / "models" / "net.pth")
    epochs = [{k: v for k, v in e.items() if k != "seconds"} for e in history.epochs]
    with atomic_write(folder / "end.json") as file:
        file.write_text(json.dumps([epochs, history.best_epoch, digest(model)]))


def run(
    folder: Path, resumable: bool = True, kill_after: float | None = None, saved: bool = False
) -> bool:
    """Run it in a process of its own; return whether it came to its end.

    It is killed so many seconds after its start, or, with `saved`, after its first checkpoint.
    """
    process = CONTEXT.Process(target=train_and_save, args=(folder, resumable))
    process.start()
    while saved and process.is_alive() and not (folder / "run.pt").exists():
        time.sleep(0.002)
    process.join(kill_after)
    process.kill()
    process.join()
    # Not by its exit status: who starts a process asks for that of all others too, and of two
    # threads that ask at once one gets 255.
    return (folder / "end.json").exists()


@pytest.mark.parametrize("kills", sample(4, 200))
def test_a_training_killed_at_any_moment_ends_in_the_same_bits(tmp_path, capsys, kills):
    """After each kill what is on disk is whole, and the next run ends as if nothing had been."""
    (tmp_path / "whole").mkdir()
    assert run(tmp_path / "whole", resumable=False)
    expected = (tmp_path / "whole" / "end.json").read_text(encoding="utf-8")
    seconds = []
    for attempt in range(1 if kills < 100 else 3):
        (tmp_path / f"timed {attempt}").mkdir()
        start = time.perf_counter()
        assert run(tmp_path / f"timed {attempt}")
        seconds.append(time.perf_counter() - start)
    chance = random.Random(0)
    median = sorted(seconds)[len(seconds) // 2]
    # Every second one counts from the first checkpoint: on a busy machine the start takes longest.
    moments = [chance.uniform(0, 0.5 if i % 2 else 1.5 * median) for i in range(8 * kills)]

    def survive(number: int) -> str:
        """Return what was on disk after the kill, or "" if the run was over before it."""
        folder = tmp_path / str(number)
        folder.mkdir()
        if run(folder, kill_after=moments[number], saved=number % 2 == 1):
            return ""
        files = [folder / "run.pt", folder / "run.pt.previous"]
        there = [path for path in files if path.exists()]
        for path in there:
            read_tensors(path)  # both: neither is ever half written
        if (weights := folder / "models" / "net.pth").exists():
            load_weights(EnhancedNet(), weights)
        assert run(folder)
        assert (folder / "end.json").read_text(encoding="utf-8") == expected
        card = read_card(weights)
        assert card["parameters"] == 575_050
        left = {path.name for path in folder.rglob("*") if path.is_file()}
        known = {"run.pt", "run.pt.previous", "end.json", "net.pth", "net.json"}
        assert {name for name in left if not name.startswith(".")} == known
        for path in folder.rglob("*.p*"):
            path.unlink()
        return "a checkpoint" if there else "nothing yet"

    killed = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(moments), 4):
            killed += filter(None, pool.map(survive, range(start, start + 4)))
            if len(killed) >= kills and killed.count("a checkpoint") >= kills / 2:
                break
    with capsys.disabled():
        with_checkpoint = killed.count("a checkpoint")
        print(f"\n{len(killed)} of {len(killed)} kills survived, {with_checkpoint} past a save.")
    assert len(killed) >= kills
    assert killed.count("a checkpoint") >= kills / 2


def save_often(path: Path, value: float, times: int) -> None:
    torch.set_num_threads(1)
    model = EnhancedNet()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    for _ in range(times):
        save_weights(model, path, value=value)


@pytest.mark.parametrize("times", sample(10, 40))
def test_two_processes_save_to_the_same_file_and_a_reader_sees_whole_ones(tmp_path, times):
    path = tmp_path / "models" / "net.pth"
    save_often(path, 0.5, 1)
    writers = [CONTEXT.Process(target=save_often, args=(path, v, times)) for v in (0.25, 0.75)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        weights = load_weights(EnhancedNet(), path).state_dict()
        (value,) = {float(v) for t in weights.values() for v in (t.min(), t.max())}
        assert value in (0.25, 0.5, 0.75)
        seen.add(value)
        assert read_card(path)["value"] in (0.25, 0.5, 0.75)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen >= {0.25, 0.75}
    weights = load_weights(EnhancedNet(), path)
    assert read_card(path)["value"] == weights.layer1.bias[0].item()
    assert visible(path.parent) == ["net.json", "net.pth"]


@pytest.mark.parametrize("epochs", sample(2, 6))
def test_a_checkpoint_every_epoch_costs_little(mnist, tmp_path, monkeypatch, capsys, epochs):
    """Timed where it is spent, the fastest of each part, for a loaded machine stalls some."""
    spent = {name: [] for name in ("__init__", "restore", "save")}

    def timed(function, seconds):
        def call(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                seconds.append(time.perf_counter() - start)

        return call

    for name, seconds in spent.items():
        function = timed(getattr(TrainingCheckpoint, name), seconds)
        monkeypatch.setattr(TrainingCheckpoint, name, function)
    start = time.perf_counter()
    torch.manual_seed(0)
    parts = mnist.train, mnist.validation
    fit_with(EnhancedNet(), *parts, epochs=epochs, checkpoint=tmp_path / "run.pt")
    whole = time.perf_counter() - start - sum(map(sum, spent.values()))
    assert [len(seconds) for seconds in spent.values()] == [1, 1, epochs]
    share = sum(min(seconds) * len(seconds) for seconds in spent.values()) / whole
    with capsys.disabled():
        print(f"\nA checkpoint every epoch costs {share:.1%} of the training's time.")
    assert share < 0.1  # 2% on an idle machine
