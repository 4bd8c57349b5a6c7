"""The project works on other systems, or names what is missing."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT


def test_execute_uses_this_python_and_not_a_users_kernel(tmp_path, monkeypatch):
    users_kernel = tmp_path / "kernels" / "python3"
    users_kernel.mkdir(parents=True)
    (users_kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "x"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")

    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('dataset = "digits"', metadata={"tags": ["parameters"]})
    notebook.cells = [parameters, nbformat.v4.new_code_cell("import sys; print(sys.executable)")]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "-", "language": "python"}
    nbformat.write(notebook, tmp_path / "where.ipynb")

    # Importing the script makes Jupyter prefer this environment.
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    monkeypatch.delitem(sys.modules, "execute", raising=False)
    import execute

    result = nbformat.read(execute.execute(tmp_path / "where.ipynb"), as_version=4)
    assert result.cells[-1].outputs[0].text.strip() == sys.executable


# The Makefile


def run(*command, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the Makefile's inputs, in a folder whose name has spaces and an accent."""
    if os.name == "nt" or not shutil.which("make"):
        pytest.skip("there is no make here")
    folder = tmp_path / "a copy, été"
    folder.mkdir()
    for name in ("Makefile", "README.md", "LICENSE", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.parametrize("version", [(3, 9), (3, 15)])
def test_make_refuses_an_unsupported_python(checkout, version):
    python = checkout / "python"
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$2"\n')
    python.chmod(0o755)
    process = run("make", "notebook", f"PYTHON={python}", cwd=checkout)

    assert process.returncode
    assert "Python 3.11 to 3.14 is needed, found {}.{}".format(*version) in process.stderr
    assert not (checkout / ".venv").exists()


def test_make_replaces_a_moved_environment_and_asks_for_a_network(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/a-python-that-is-gone")
    installed = checkout / ".venv" / "notebook.installed"
    installed.touch()
    offline = "PIP_ARGS=--no-index"
    process = run("make", "notebook", offline, f"PYTHON={sys.executable}", cwd=checkout)

    assert process.returncode
    assert "takes a network once" in process.stdout
    assert not installed.exists()
    assert run(python, "-c", "print(5)").stdout == "5\n"
