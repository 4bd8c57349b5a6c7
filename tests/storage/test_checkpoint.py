"""The parts of a training checkpoint that `fit` does not show."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mnist_mlp.storage.checkpoint import FORMAT, TrainingCheckpoint, fingerprint


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
        "layers' settings": ".in_features=3 .out_features=2",
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
    with pytest.raises(ValueError, match="not a training checkpoint") as found:
        checkpoint.restore()
    assert str(found.value) == (
        f"{tmp_path / 'notes.txt'} exists and is not a training checkpoint: it is left as it is. "
        "Give checkpoint= a file of its own, for example run.pt."
    )


class Dropping(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share


def test_models_that_differ_in_a_setting_alone_are_different_trainings():
    found = [fingerprint({}, nn.Sequential(Dropping(share)), []) for share in (0.1, 0.1, 0.9)]
    assert found[0] == found[1] != found[2]


def test_a_file_of_zeros_as_a_power_loss_leaves_it_is_damaged_and_the_one_before_it_used(
    saved_twice,
):
    path = saved_twice.path
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.warns(UserWarning, match="run.pt"):
        saved_twice.restore()
    assert value(saved_twice) == 1.0


@pytest.fixture
def saved_twice(tmp_path):
    """A checkpoint that was saved with the weights at 1, and then at 2."""
    layer = nn.Linear(3, 2)
    checkpoint = TrainingCheckpoint(tmp_path / "run.pt", layer, lambda: {"seed": 0, "epochs": 3})
    for value in (1.0, 2.0):
        nn.init.constant_(layer.weight, value)
        checkpoint.save()
    nn.init.zeros_(layer.weight)
    return checkpoint


def value(checkpoint) -> float:
    (found,) = set(checkpoint.state.weight.flatten().tolist())
    return found


def test_the_last_state_is_restored_else_the_one_before_it(saved_twice, tmp_path):
    saved_twice.restore()
    assert value(saved_twice) == 2
    content = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(content[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        saved_twice.restore()
    assert value(saved_twice) == 1
    nn.init.zeros_(saved_twice.state.weight)
    assert not (tmp_path / "run.pt").exists()  # it is run.pt.damaged now
    saved_twice.restore()
    assert value(saved_twice) == 1


def test_a_file_that_cannot_be_restored_in_full_changes_nothing(saved_twice, tmp_path):
    layer = saved_twice.state
    (tmp_path / "run.pt.previous").unlink()
    nn.init.constant_(layer.weight, 5.0)
    load = layer.load_state_dict

    def fail_half_way(state):
        load(state)
        if layer.weight[0, 0] == 2:
            raise RuntimeError("the rest is missing")

    layer.load_state_dict = fail_half_way
    with pytest.warns(UserWarning, match="the rest is missing"):
        saved_twice.restore()
    assert value(saved_twice) == 5


def test_another_training_is_refused_with_every_difference_and_what_to_do(saved_twice, tmp_path):
    other = TrainingCheckpoint(tmp_path / "run.pt", nn.Linear(3, 2), lambda: {"seed": 1, "k": 2})
    with pytest.raises(ValueError, match="another training") as found:
        other.restore()
    assert str(found.value) == (
        f"{tmp_path / 'run.pt'} is the checkpoint of another training: seed was 0, is 1; "
        "k was None, is 2; epochs was 3, is None. "
        "Restore these settings, or delete the file and its .previous to start anew."
    )
