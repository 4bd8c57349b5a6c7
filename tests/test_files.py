import json

import pytest
from helpers import visible

from mnist_mlp import files
from mnist_mlp.files import atomic_write, read_json, repo_root, write_json


def test_atomic_write_replaces_the_file_or_leaves_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as file:
        file.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:  # noqa: PT012
        file.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert visible(path.parent) == ["a.txt"]


def test_repo_root_is_the_repository_from_whatever_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (repo_root() / "tests" / "core" / "test_files.py").samefile(__file__)


def test_repo_root_is_the_working_directory_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "lib" / "mnist_mlp" / "files.py"))
    assert repo_root() == tmp_path


def test_json_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "record.json"
    content = {"name": "é", "runs": [1, 2.5]}
    write_json(path, content)
    assert json.loads(path.read_bytes()) == content
    assert read_json(path, {"name": str, "runs": list}) == content
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path, {}) == content
    assert visible(tmp_path) == ["record.json"]
