"""The parts of a training checkpoint that `fit` does not show."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mnist_mlp.storage.checkpoint import FORMAT, NotACheckpoint, TrainingCheckpoint, fingerprint


@dataclass
class Data:
    images: torch.Tensor
    mean: float = 0.5


def test_the_fingerprint_says_everything_that_determines_the_result():
    data = [Data(torch.arange(6)), Data(torch.arange(3))]
    found = fingerprint({"epochs": 3}, nn.Linear(3, 2), data)
    digest = found.pop("data (SHA-256)")
    assert found == {
        "epochs": 3,
        "model": "Linear: weight torch.float32 of shape (2, 3), bias torch.float32 of shape (2,)",
        "layers": "Linear(in_features=3, out_features=2, bias=True)",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "format": FORMAT,
    }
    others = (
        [Data(torch.arange(6)), Data(torch.arange(3) + 1)],
        [Data(torch.arange(6))],
        [Data(torch.arange(6)), Data(torch.arange(3), mean=0.4)],
        data[::-1],
    )
    digests = {fingerprint({}, nn.Linear(3, 2), other)["data (SHA-256)"] for other in others}
    assert len(digests | {digest}) == 5
    assert fingerprint({}, nn.Linear(9, 2), data)["data (SHA-256)"] == digest
    layers = fingerprint({}, nn.Sequential(nn.Linear(3, 2), nn.ReLU()), data)["layers"]
    assert layers == (
        "Sequential( (0): Linear(in_features=3, out_features=2, bias=True) (1): ReLU() )"
    )


def test_a_file_that_is_no_checkpoint_is_named_with_what_to_do(tmp_path):
    (tmp_path / "notes.txt").write_text("not to be lost")
    checkpoint = TrainingCheckpoint(tmp_path / "notes.txt", nn.Linear(3, 2), dict)
    with pytest.raises(NotACheckpoint) as found:
        checkpoint.restore()
    assert str(found.value) == (
        f"{tmp_path / 'notes.txt'} exists and is not a training checkpoint: it is left as it is. "
        "Give checkpoint= a file of its own, for example run.pt."
    )
