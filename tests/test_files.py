"""Files are written whole or not at all, and the repository is found from every folder."""

import errno
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, visible

from mnist_mlp import EnhancedNet, Recipe, files, fit, load_weights, save_weights
from mnist_mlp.files import atomic_write, read_json, repo_root, write_json


def test_atomic_write_replaces_the_file_in_one_step(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_atomic_write_leaves_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError

    assert path.read_text() == "old"
    assert visible(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows needs a privilege for links")
def test_atomic_write_writes_to_what_a_link_points_to(tmp_path):
    target = tmp_path / "large disk" / "a.txt"
    link = tmp_path / "a.txt"
    link.symlink_to(target)

    for text in ("old", "new"):
        with atomic_write(link) as temporary:
            temporary.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text


@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_atomic_write_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)

    if os.name == "posix":
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_weights_and_checkpoints_are_saved_in_the_home_folder(tmp_path, toy, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    model = EnhancedNet()

    fit(model, *toy, Recipe(epochs=1, batch_size=64), checkpoint="~/run.pt")
    save_weights(model, "~/net.pth")
    load_weights(model, "~/net.pth")

    assert visible(tmp_path / "home") == ["net.json", "net.pth", "run.pt"]
    assert visible(tmp_path) == ["home"]


def refuse(*args, **kwargs):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_weights_are_saved_where_chmod_and_fsync_do_not_exist(tmp_path, monkeypatch):
    """So it is on some network and shared folders."""
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)

    def fsync_is_missing(file):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync_is_missing)
    save_weights(EnhancedNet(), tmp_path / "net.pth")
    assert load_weights(EnhancedNet(), tmp_path / "net.pth")

    def disk_is_broken(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", disk_is_broken)
    with pytest.raises(OSError, match="Input/output"):
        save_weights(EnhancedNet(), tmp_path / "net.pth")


def test_repo_root_is_the_repository_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repo_root().samefile(ROOT)


@pytest.fixture
def installed_files(tmp_path):
    """The module `files` of a package that is installed in another project, with a record."""
    folder = tmp_path / "project" / "lib" / "mnist_mlp"
    (folder / "published" / "models").mkdir(parents=True)
    (folder / "published" / "models" / "net.json").write_text("carried")
    (tmp_path / "project" / "pyproject.toml").touch()
    shutil.copy(files.__file__, folder)

    spec = importlib.util.spec_from_file_location("installed_files", folder / "files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_repo_root_of_installed_package_is_the_working_directory(
    installed_files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert installed_files.repo_root() == Path.cwd()


def test_published_of_installed_package_is_its_copy_unless_there_is_a_newer_one(
    installed_files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert installed_files.published("models/net.json").read_text() == "carried"
    assert installed_files.published("models/other.json") == tmp_path / "models" / "other.json"

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.json").write_text("my own")
    assert installed_files.published("models/net.json").read_text() == "my own"


def test_write_json_is_read_back_and_refuses_what_is_no_json(tmp_path):
    path = tmp_path / "record.json"
    content = {"name": "é", "runs": [1, 2.5]}

    write_json(path, content)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    assert json.loads(path.read_bytes()) == content
    assert read_json(path, {"name": str, "runs": list}) == content
    assert visible(tmp_path) == ["record.json"]


@pytest.mark.parametrize(
    "text", ["{", "[1]", "[" * 100_000, '{"runs": NaN}', '{"name": "a"}', '{"runs": true}']
)
def test_read_json_refuses_other_content_by_name(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        read_json(path, {"runs": int})


def test_atomic_writes_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"

    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")

    assert path.read_text() == "first"  # the block that ends last
    assert visible(tmp_path) == ["a.txt"]
