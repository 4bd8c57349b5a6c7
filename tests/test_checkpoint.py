"""Weights and their card: what is loaded is what was saved, or it is refused."""

import hashlib
import io
import json
import os
import pickle
import threading
import zipfile

import pytest
import torch
from helpers import full_disk, posix, visible
from torch import nn

from mnist_mlp import EnhancedNet, load_weights, save_weights
from mnist_mlp.checkpoint import read_card


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def saved(tmp_path):
    """A saved model and its path, in a folder that was not there."""
    model = EnhancedNet()
    path = tmp_path / "models" / "net.pth"
    save_weights(model, path, dataset="toy", test_correct=7)
    return model, path


def test_load_weights_returns_what_was_saved_as_plain_pytorch_does(saved):
    model, path = saved
    loaded = load_weights(EnhancedNet(), path)
    assert same(loaded, model)
    assert not loaded.training
    plain = EnhancedNet()
    plain.load_state_dict(torch.load(path, weights_only=True))
    assert same(plain, model)


def test_load_weights_needs_no_card(saved):
    model, path = saved
    path.with_suffix(".json").unlink()
    assert same(load_weights(EnhancedNet(), path), model)


def test_card_says_what_the_weights_are(saved):
    card = read_card(saved[1])
    assert (card["model"], card["parameters"]) == ("EnhancedNet", 575_050)
    assert (card["dataset"], card["test_correct"]) == ("toy", 7)
    assert card["sha256"] == hashlib.sha256(saved[1].read_bytes()).hexdigest()
    assert card["versions"]["torch"] == torch.__version__


def test_save_weights_leaves_two_files_that_the_umask_allows_to_read(tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(EnhancedNet(), tmp_path / "net.pth")
    finally:
        os.umask(before)
    assert visible(tmp_path) == ["net.json", "net.pth"]
    for file in tmp_path.iterdir():
        assert os.name == "nt" or file.stat().st_mode & 0o777 == 0o644


def test_read_card_writes_nothing(saved):
    folder = saved[1].parent
    before = {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    read_card(saved[1])
    assert {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_save_weights_on_a_full_disk_leaves_both_files(saved):
    """Stood in for by the operating system's limit on a file's size, which fails the same way."""
    model, path = saved
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    with full_disk(1_000_000), pytest.raises(OSError, match=r"net.pth was not saved"):
        save_weights(EnhancedNet(), path, dataset="toy")
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    assert visible(path.parent) == ["net.json", "net.pth"]
    assert same(load_weights(EnhancedNet(), path), model)


@posix
def test_save_weights_names_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"models/net.pth was not saved"):
        save_weights(EnhancedNet(), tmp_path / "models" / "net.pth")


@pytest.mark.parametrize("name", ["net.json", "lr0.1", "net"])
def test_save_weights_refuses_a_name_whose_card_could_be_another_file(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        save_weights(EnhancedNet(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "error"), [(object(), TypeError), (float("nan"), ValueError)])
def test_save_weights_refuses_a_card_that_is_no_json(saved, value, error):
    model, path = saved
    with pytest.raises(error):
        save_weights(EnhancedNet(), path, dataset=value)
    assert same(load_weights(EnhancedNet(), path), model)
    assert visible(path.parent) == ["net.json", "net.pth"]


def test_a_reader_never_sees_a_half_written_file(tmp_path):
    path = tmp_path / "net.pth"
    save_weights(EnhancedNet(), path)
    finished = threading.Event()
    contents = set()

    def read():
        while not finished.is_set():
            contents.add(hashlib.sha256(path.read_bytes()).hexdigest())

    reader = threading.Thread(target=read)
    reader.start()
    written = {read_card(path)["sha256"]}
    for _ in range(20):
        save_weights(EnhancedNet(), path)
        written.add(read_card(path)["sha256"])
    finished.set()
    reader.join()
    assert contents <= written


# Files that are refused


def test_load_weights_of_a_missing_file_says_that_it_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"net.pth"):
        load_weights(EnhancedNet(), tmp_path / "net.pth")


def test_load_weights_refuses_a_truncated_file(saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"net.pth is damaged"):
        load_weights(EnhancedNet(), path)


@pytest.mark.parametrize("with_card", [True, False])
def test_a_flipped_bit_anywhere_changes_no_weight(saved, with_card):
    """In the archive's headers and directory too, where some bits mean nothing."""
    model, path = saved
    content = path.read_bytes()
    if not with_card:
        path.with_suffix(".json").unlink()
    refused = 0
    ends = [*range(0, 2000, 26), *range(len(content) - 2500, len(content), 26)]
    middle = [len(content) // 10, len(content) // 2, len(content) * 9 // 10]
    for at in ends + middle:
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert same(load_weights(EnhancedNet(), path), model)
        except ValueError:
            refused += 1
    assert refused == len(ends + middle) if with_card else refused > len(ends) / 3


class Evil:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("form", ["in a zip", "a bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, form):
    path = tmp_path / "net.pth"
    trace = tmp_path / "trace"
    if form == "in a zip":
        torch.save({"layer1.weight": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(ValueError, match=r"net.pth"):
        load_weights(EnhancedNet(), path)
    assert not trace.exists()

    if form == "in a zip":
        torch.load(path, weights_only=False)  # and it is a trap indeed
    else:
        pickle.loads(path.read_bytes())
    assert trace.exists()


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path):
    torch.save(EnhancedNet(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        load_weights(EnhancedNet(), tmp_path / "net.pth")


OTHER_CONTENT = [
    (nn.Linear(784, 10).state_dict(), r"at bias it holds .* \(10,\), expected nothing"),
    (EnhancedNet(classes=26).state_dict(), r"at layer5.bias it holds .* \(26,\), .* \(10,\)"),
    ({}, r"at layer1.bias it holds nothing, expected .* \(512,\)"),
    ([1, 2], "holds a list, expected a state_dict"),
    ({"epoch": 3}, "epoch"),
    ({3: torch.zeros(3)}, "at 3 it holds"),
    ({"layer1.weight": bytearray(10)}, "layer1"),
    ({k: v.half() for k, v in EnhancedNet().state_dict().items()}, "float16 .*expected .*float32"),
    ({k: v / 0 for k, v in EnhancedNet().state_dict().items()}, "numbers that are not finite"),
]


@pytest.mark.parametrize(("content", "words"), OTHER_CONTENT)
def test_load_weights_refuses_other_content_and_changes_nothing(tmp_path, content, words):
    torch.save(content, tmp_path / "net.pth")
    model = EnhancedNet()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        load_weights(model, tmp_path / "net.pth")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_weights_that_belong_to_another_card_are_refused(saved):
    path = saved[1]
    torch.save(EnhancedNet().state_dict(), path)
    for read in (read_card, lambda path: load_weights(EnhancedNet(), path)):
        with pytest.raises(ValueError, match=r"net.json belongs to other weights"):
            read(path)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "[" * 100_000, '{"model": NaN}', '{"model": "EnhancedNet"}', '{"model": 5}'],
)
def test_a_card_that_is_none_is_refused_by_name(saved, content):
    saved[1].with_suffix(".json").write_text(content)
    with pytest.raises(ValueError, match=r"net.json is damaged or of another kind"):
        read_card(saved[1])


def compressed(content: bytes) -> bytes:
    """Return the same archive with its records compressed, as in a bomb."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(file, "w", compression=zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    return file.getvalue()


def overlapping(content: bytes) -> bytes:
    """Return an archive that names the same bytes four times: small, and once unpacked large."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        for copy in range(3):
            again = zipfile.ZipInfo(f"{largest.filename}{copy}")
            for name in ("header_offset", "CRC", "file_size", "compress_size"):
                setattr(again, name, getattr(largest, name))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    return file.getvalue()


@pytest.mark.parametrize("enlarge", [compressed, overlapping])
def test_an_archive_that_unpacks_to_more_than_it_has_is_refused(saved, enlarge):
    path = saved[1]
    path.with_suffix(".json").unlink()
    path.write_bytes(enlarge(path.read_bytes()))
    with pytest.raises(ValueError, match="more bytes than it has"):
        load_weights(EnhancedNet(), path)


def test_card_is_a_text_that_people_can_read(saved):
    text = saved[1].with_suffix(".json").read_text(encoding="utf-8")
    assert len(text.splitlines()) > len(json.loads(text))


@pytest.mark.parametrize("name", ["parameters", "sha256", "saved"])
def test_save_weights_refuses_an_entry_that_it_writes_itself(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        save_weights(EnhancedNet(), tmp_path / "net.pth", **{name: "mine"})
    assert not list(tmp_path.iterdir())
