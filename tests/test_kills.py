"""After SIGKILL at any moment of training and saving, the training continues to the same bits."""

import random
import time
from pathlib import Path

import pytest
import torch
from helpers import few_or_all, fresh_process_context

from mnist_mlp import EnhancedNet, Recipe, fit, load_weights, save_weights
from mnist_mlp.checkpoint import read_card, read_tensors
from mnist_mlp.data import ImageDataset

CONTEXT = fresh_process_context("mnist_mlp.train")
RECIPE = Recipe(epochs=8, batch_size=32, learning_rate=0.01, precision="float32")


def train_and_save(folder: Path) -> tuple:
    """Train with a checkpoint, save the weights, and return everything that must be equal."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (180, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(180) % 10
    train = ImageDataset(images[:130], labels[:130])
    validation = ImageDataset(images[130:], labels[130:])

    torch.manual_seed(0)
    model = EnhancedNet()
    checkpoint = folder / "run.pt"
    history = fit(model, train, validation, RECIPE, checkpoint=checkpoint, progress=False)
    save_weights(model, folder / "net.pth")

    losses = [(epoch["loss"], epoch["validation_loss"]) for epoch in history.epochs]
    weights = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
    return losses, history.best_epoch, weights


def kill_training(folder: Path, seconds: float, after_first_checkpoint: bool) -> bool:
    """Train in another process and kill it after this time; return whether it was too late."""
    process = CONTEXT.Process(target=train_and_save, args=(folder,))
    process.start()
    while after_first_checkpoint and process.is_alive() and not (folder / "run.pt").exists():
        time.sleep(0.002)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == 0


@pytest.mark.filterwarnings("ignore:after epoch")  # noise cannot be learned
@pytest.mark.parametrize("kills", few_or_all(1, 200))
def test_killed_training_continues_to_the_same_bits(tmp_path, kills):
    expected = train_and_save(tmp_path)
    moments = random.Random(0)
    survived = 0

    for attempt in range(4 * kills):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        # Half of the kills come after a checkpoint. The first one follows it at once.
        after_first_checkpoint = attempt % 2 == 0
        longest = 0.5 if after_first_checkpoint else 5.0
        seconds = moments.uniform(0, longest) if attempt > 0 else 0.0
        if kill_training(folder, seconds, after_first_checkpoint):
            continue

        # No file is half written.
        if (folder / "run.pt").exists():
            read_tensors(folder / "run.pt")
        if (folder / "net.pth").exists():
            load_weights(EnhancedNet(), folder / "net.pth")

        torch.manual_seed(99)  # a new process has another random state
        assert train_and_save(folder) == expected
        assert read_card(folder / "net.pth")["parameters"] == 575_050
        survived += 1
        if survived == kills:
            return
    pytest.fail(f"only {survived} of {kills} kills came before the end of the training")
