import json
import os

import pytest
from helpers import visible
from torch import nn

from mnist_mlp.storage import files
from mnist_mlp.storage.files import atomic_write, read_json, replace_file, repo_root, write_json
from mnist_mlp.storage.weights import save_weights


def test_a_file_that_is_read_by_another_is_replaced_a_little_later_on_windows(
    tmp_path, monkeypatch
):
    """Where Windows refuses, it tries again; elsewhere a refusal is final."""
    source, target, refusals = tmp_path / "a", tmp_path / "b", []
    source.write_text("new")
    move = os.replace

    def busy(source, target):
        refusals.append(1)
        if len(refusals) < 4:
            raise PermissionError(13, "Access is denied")
        move(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    monkeypatch.setattr(files, "WINDOWS", False)
    with pytest.raises(PermissionError):
        replace_file(source, target)
    assert len(refusals) == 1
    monkeypatch.setattr(files, "WINDOWS", True)
    replace_file(source, target)
    assert len(refusals) == 4
    assert target.read_text() == "new"
    refusals.clear()
    monkeypatch.setattr(files, "PATIENCE", 0)
    with pytest.raises(PermissionError):  # but not for ever
        replace_file(target, source)


def test_what_is_flushed_may_be_written_to_as_windows_demands(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: flushed.append(os.write(handle, b"")))
    with atomic_write(tmp_path / "a") as file:
        file.write_bytes(b"whole")
    assert flushed == [0]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_the_root_is_the_repository_from_whatever_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (repo_root() / "tests" / "storage" / "test_files.py").samefile(__file__)


def test_the_root_is_the_working_directory_where_the_package_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "lib" / "site" / "mnist_mlp"
    monkeypatch.setattr(files, "__file__", str(package / "storage" / "files.py"))
    assert repo_root() == tmp_path


def test_json_is_written_whole_with_an_end_of_line_and_read_back(tmp_path):
    path, content = tmp_path / "new" / "record.json", {"name": "é", "runs": [1, 2.5]}
    write_json(path, content)
    assert path.read_bytes() == json.dumps(content, indent=1).encode() + b"\n"
    assert read_json(path, {"name": str, "runs": list}) == content
    write_json(path, content, indent=None)
    assert path.read_bytes() == json.dumps(content).encode() + b"\n"
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path, {}) == content
    assert visible(path.parent) == ["record.json"]


def test_what_killed_processes_have_left_of_these_files_is_removed_and_nothing_else(tmp_path):
    left = [".net.pth.a1.tmp", ".net.json.a1.tmp"]
    kept = [".net2.pth.a1.tmp", ".net.v2.pth.a1.tmp", ".other.json.a1.tmp"]
    for name in left + kept:
        (tmp_path / name).write_text("?")
    save_weights(nn.Linear(2, 2), tmp_path / "net.pth")
    assert visible(tmp_path) == sorted([*kept, "net.json", "net.pth"])
