"""SIGKILL at any moment of training and saving."""

import hashlib
import json
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import fit_with, processes, sample

from mnist_mlp import EnhancedNet, load_weights, save_weights
from mnist_mlp.checkpoint import read_card, read_tensors
from mnist_mlp.data import ImageDataset
from mnist_mlp.files import atomic_write

RECIPE = {"epochs": 6, "batch_size": 32, "learning_rate": 0.01}
CONTEXT = processes("mnist_mlp.train", "torchvision.datasets")


def train_and_save(folder: Path, resumable: bool) -> None:
    """Train, save every epoch, save the weights, and at last write what came out."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # noise cannot be learned
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (180, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(180) % 10
    train = ImageDataset(images[:130], labels[:130])
    validation = ImageDataset(images[130:], labels[130:])

    torch.manual_seed(0)
    model = EnhancedNet()
    checkpoint = folder / "run.pt" if resumable else None
    history = fit_with(model, train, validation, checkpoint=checkpoint, **RECIPE)
    save_weights(model, folder / "models" / "net.pth")

    epochs = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history.epochs]
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    result = [epochs, history.best_epoch, hashlib.sha256(weights).hexdigest()]
    with atomic_write(folder / "end.json") as file:
        file.write_text(json.dumps(result))


def run(
    folder: Path,
    resumable: bool = True,
    kill_after: float | None = None,
    after_first_checkpoint: bool = False,
) -> bool:
    """Run it in a process of its own; return whether it came to its end.

    It is killed so many seconds after its start, or after its first checkpoint.
    """
    process = CONTEXT.Process(target=train_and_save, args=(folder, resumable))
    process.start()
    while after_first_checkpoint and process.is_alive() and not (folder / "run.pt").exists():
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

    (tmp_path / "timed").mkdir()
    start = time.perf_counter()
    assert run(tmp_path / "timed")
    seconds = time.perf_counter() - start

    # Every second one counts from the first checkpoint: on a busy machine the start takes longest.
    chance = random.Random(0)
    moments = [chance.uniform(0, 0.5 if i % 2 else 1.5 * seconds) for i in range(8 * kills)]

    def survive(number: int) -> str:
        """Return what was on disk after the kill, or "" if the run was over before it."""
        folder = tmp_path / str(number)
        folder.mkdir()
        if run(folder, kill_after=moments[number], after_first_checkpoint=number % 2 == 1):
            return ""
        had_checkpoint = (folder / "run.pt").exists()
        if had_checkpoint:
            read_tensors(folder / "run.pt")  # never half written
        weights = folder / "models" / "net.pth"
        if weights.exists():
            load_weights(EnhancedNet(), weights)

        assert run(folder)
        assert (folder / "end.json").read_text(encoding="utf-8") == expected
        assert read_card(weights)["parameters"] == 575_050
        for path in folder.rglob("*.p*"):
            path.unlink()
        return "a checkpoint" if had_checkpoint else "nothing yet"

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
