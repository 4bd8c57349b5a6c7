"""Weights and their card: what is loaded is what was saved, or the file is refused."""

import copy
import hashlib
import io
import os
import pickle
import zipfile

import pytest
import torch
from helpers import full_disk, visible
from torch import nn

from mnist_mlp import EnhancedNet, load_weights, save_weights
from mnist_mlp.checkpoint import load_checkpoint, read_card, save_checkpoint


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def model():
    return EnhancedNet()


@pytest.fixture
def path(model, tmp_path):
    """The weights of `model` and their card, saved in a new folder."""
    path = tmp_path / "models" / "net.pth"
    save_weights(model, path, dataset="toy", test_correct=7)
    return path


def test_load_weights_returns_what_was_saved(model, path):
    loaded = load_weights(EnhancedNet(), path)
    loaded_by_pytorch = EnhancedNet()
    loaded_by_pytorch.load_state_dict(torch.load(path, weights_only=True))

    assert same_weights(loaded, model)
    assert same_weights(loaded_by_pytorch, model)
    assert not loaded.training


def test_card_describes_the_weights(path):
    card = read_card(path)
    assert (card["model"], card["parameters"]) == ("EnhancedNet", 575_050)
    assert (card["dataset"], card["test_correct"]) == ("toy", 7)
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["versions"]["torch"] == torch.__version__


def test_save_weights_on_full_disk_keeps_both_old_files(model, path):
    with full_disk(1_000_000), pytest.raises(OSError, match=r"net\.pth"):
        save_weights(EnhancedNet(), path)

    assert visible(path.parent) == ["net.json", "net.pth"]
    assert same_weights(load_weights(EnhancedNet(), path), model)
    assert read_card(path)["dataset"] == "toy"


@pytest.mark.parametrize("name", ["net.json", "lr0.1", "net"])
def test_save_weights_refuses_a_name_that_is_no_pth(model, tmp_path, name):
    """The cards of lr0.1 and lr0.2 would be the same file."""
    with pytest.raises(ValueError, match=name):
        save_weights(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"dataset": object()}, TypeError),
        ({"dataset": float("nan")}, ValueError),
        ({"machine": "reserved"}, ValueError),
    ],
)
def test_save_weights_refuses_a_card_and_keeps_the_files(model, path, entries, error):
    with pytest.raises(error):
        save_weights(EnhancedNet(), path, **entries)

    assert same_weights(load_weights(EnhancedNet(), path), model)
    assert visible(path.parent) == ["net.json", "net.pth"]


def test_save_weights_refuses_what_load_weights_would(model, path):
    model.layer3.bias.data[0] = torch.inf

    with pytest.raises(ValueError, match=r"layer3\.bias"):
        save_weights(model, path)
    with pytest.raises(TypeError, match="network"):
        save_weights(model.state_dict(), path)

    assert load_weights(EnhancedNet(), path)


def test_class_names_are_in_the_card(model, path):
    assert load_weights(EnhancedNet(), path).class_names is None

    model.class_names = tuple("abcdefghij")
    save_weights(model, path)

    loaded = load_weights(EnhancedNet(), path)
    assert loaded.class_names == model.class_names
    path.with_suffix(".json").unlink()
    assert load_weights(loaded, path).class_names is None  # not those of the weights before


def save_old_format(model, path):
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def save_training_checkpoint(model, path):
    save_checkpoint(path, {"seed": 0}, {"model": model.state_dict()})


def save_with_optimizer(model, path):
    adam = torch.optim.Adam(model.parameters())
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": adam.state_dict()}
    torch.save(content, path)


def save_data_parallel(model, path):
    torch.save(nn.DataParallel(model).state_dict(), path)


def save_compiled(model, path):
    torch.save(torch.compile(model).state_dict(), path)


@pytest.mark.parametrize(
    ("save", "what_it_is"),
    [
        (save_old_format, "format"),
        (save_training_checkpoint, "checkpoint of a training"),
        (save_with_optimizer, "'model_state_dict'"),
        (save_data_parallel, r"'module\.'"),
        (save_compiled, r"'_orig_mod\.'"),
    ],
)
def test_load_weights_says_what_a_good_file_of_another_kind_is(model, tmp_path, save, what_it_is):
    save(model, tmp_path / "other.pth")

    with pytest.raises(ValueError, match=what_it_is) as raised:
        load_weights(EnhancedNet(), tmp_path / "other.pth")

    assert "damaged" not in str(raised.value)


class MakesFolder:
    """Makes a folder when it is unpickled: a trace that code was run."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class OtherNet(EnhancedNet):
    pass


def test_load_weights_warns_of_the_weights_of_another_class(path):
    with pytest.warns(UserWarning, match="weights of EnhancedNet, but the model is OtherNet"):
        load_weights(OtherNet(), path)


@pytest.mark.parametrize(
    ("dump", "problem"),
    [(torch.save, r"torch\.save\(model\.state_dict\(\), path\)"), (pickle.dump, "damaged")],
)
def test_load_weights_runs_no_code_in_the_file(tmp_path, dump, problem):
    path = tmp_path / "net.pth"
    with path.open("wb") as file:
        dump({"layer1.weight": MakesFolder(tmp_path / "trace")}, file)

    with pytest.raises(ValueError, match=problem):
        load_weights(EnhancedNet(), path)

    assert visible(tmp_path) == ["net.pth"]


WEIGHTS = EnhancedNet().state_dict()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, r"layer1\.bias.*nothing"),
        ([1, 2], "list"),
        ({3: torch.zeros(3)}, "at 3"),
        (EnhancedNet(classes=26).state_dict(), r"layer5\.bias.*\(26,\).*\(10,\)"),
        ({name: tensor.half() for name, tensor in WEIGHTS.items()}, "float16"),
        ({**WEIGHTS, "layer5.bias": torch.tensor([torch.inf] + [0.0] * 9)}, "finite"),
    ],
)
def test_load_weights_refuses_other_content_and_changes_nothing(model, tmp_path, content, problem):
    torch.save(content, tmp_path / "net.pth")
    before = copy.deepcopy(model)

    with pytest.raises(ValueError, match=problem):
        load_weights(model, tmp_path / "net.pth")

    assert same_weights(model, before)


def compress(content: bytes) -> bytes:
    """Return the same archive with compressed records."""
    file = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    return file.getvalue()


def overlap(content: bytes) -> bytes:
    """Return an archive whose directory names the bytes of one record twice."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        again = copy.copy(max(archive.infolist(), key=lambda record: record.file_size))
        again.filename += " again"
        archive.filelist.append(again)
        archive.comment = b"new"  # so that the directory is written
    return file.getvalue()


@pytest.mark.parametrize("enlarge", [compress, overlap])
def test_load_weights_refuses_an_archive_that_unpacks_to_more(path, enlarge):
    path.with_suffix(".json").unlink()
    path.write_bytes(enlarge(path.read_bytes()))
    with pytest.raises(ValueError, match="more bytes than it has"):
        load_weights(EnhancedNet(), path)


@pytest.mark.parametrize("read", [read_card, lambda path: load_weights(EnhancedNet(), path)])
def test_card_of_other_weights_is_refused(path, read):
    torch.save(EnhancedNet().state_dict(), path)
    with pytest.raises(ValueError, match=r"net\.json belongs to other weights"):
        read(path)


def test_checkpoint_is_restored_for_the_same_training_alone(tmp_path):
    path = tmp_path / "run.pt"
    assert load_checkpoint(path, {"seed": 0}) is None
    save_checkpoint(path, {"seed": 0}, {"epoch": 3, "weights": torch.arange(3)})

    state = load_checkpoint(path, {"seed": 0})

    assert (state["epoch"], state["weights"].tolist()) == (3, [0, 1, 2])
    for other_identity in ({"seed": 1}, {}, {"seed": 0, "epochs": 5}):
        with pytest.raises(ValueError, match="another training"):
            load_checkpoint(path, other_identity)
