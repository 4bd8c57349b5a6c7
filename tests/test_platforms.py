"""The project works on other systems, or names what is missing."""

import os
import runpy
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT

import mnist_mlp


def run(*command, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


# Several trainings on one machine


@pytest.fixture
def no_policy(monkeypatch):
    """Whoever starts the process has not said how threads wait; the tests have."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


SHOW_POLICY = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_import_lets_waiting_threads_sleep_soon_unless_the_user_decides(no_policy, monkeypatch):
    runpy.run_path(mnist_mlp.__file__)  # another process takes seconds to import torch
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    runpy.run_path(mnist_mlp.__file__)
    assert os.environ["GOMP_SPINCOUNT"] == "77"


def test_execute_starts_this_python_and_no_users_kernel_and_its_idle_threads_sleep(
    no_policy, tmp_path, monkeypatch
):
    users_kernel = tmp_path / "kernels" / "python3"
    users_kernel.mkdir(parents=True)
    (users_kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "x"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")

    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell('dataset = "digits"', metadata={"tags": ["parameters"]})
    show_python = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    notebook.cells = [parameters, show_python, nbformat.v4.new_code_cell(SHOW_POLICY)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "-", "language": "python"}
    nbformat.write(notebook, tmp_path / "where.ipynb")

    process = run(sys.executable, "notebooks/execute.py", tmp_path / "where.ipynb")
    assert process.returncode == 0, process.stderr
    result = nbformat.read(tmp_path / "where-digits.ipynb", as_version=4)
    printed = [cell.outputs[0].text for cell in result.cells[1:]]
    assert printed == [f"{sys.executable}\n", "1000\n"]


TRAIN = """
import sys, time
from mnist_mlp import EnhancedNet, Recipe, fit, load
import torch

splits = load("mnist")
model = EnhancedNet()
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
fit(model, splits.train, splits.validation, Recipe(epochs=2), progress=False)
print(time.perf_counter() - start)
"""


def seconds_of_trainings_at_once(count: int) -> float:
    """Start trainings at the same moment; return the seconds that the slowest one takes."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", TRAIN]
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0]) for process in processes)


@pytest.mark.campaign
def test_two_trainings_at_once_take_no_multiple_of_one(no_policy, mnist):
    """About twice as long, on a quiet machine; with threads that spin, ten times or more."""
    alone = min(seconds_of_trainings_at_once(1) for _ in range(3))
    both = min(seconds_of_trainings_at_once(2) for _ in range(3))
    assert both < 3 * alone


# The Makefile


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


def test_make_lets_idle_threads_sleep(checkout, no_policy):
    (checkout / "show.mk").write_text("include Makefile\nshow:\n\t@echo $$GOMP_SPINCOUNT\n")
    process = run("make", "--no-print-directory", "-f", "show.mk", "show", cwd=checkout)
    assert process.stdout == "1000\n"


def test_make_lab_shows_the_code_beside_the_notebook(checkout):
    process = run("make", "-n", "lab", cwd=checkout)
    assert "jupyter lab --ServerApp.root_dir=. notebooks/Handwritten" in process.stdout


@pytest.fixture
def whole_checkout(tmp_path):
    """A copy of the repository, which is deleted at once: it takes up to 10 GB."""
    if os.name == "nt" or not shutil.which("make"):
        pytest.skip("there is no make here")
    if shutil.disk_usage(tmp_path).free < 15e9:
        pytest.skip("less than 15 GB are free")
    folder = tmp_path / "a copy, été"
    ignored = (".venv*", ".*cache", ".hypothesis", "data", "site", "wheels")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.campaign
def test_make_works_without_network_after_make_wheels(whole_checkout, no_policy, monkeypatch):
    process = run("make", "wheels", f"PYTHON={sys.executable}", cwd=whole_checkout)
    if "Temporary failure in name resolution" in process.stderr:
        pytest.skip("there is no network here")
    assert process.returncode == 0, process.stderr

    # pip reads no settings of this machine, and a network is out of reach.
    for name in os.environ:
        if name.startswith(("PIP_", "PYTEST", "MNIST_MLP", "PYTHONPATH")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    offline = "PIP_ARGS=--no-index --find-links wheels"
    notebook = "NOTEBOOK=notebooks/What-Can-Go-Wrong.ipynb"
    process = run("make", "notebook", notebook, offline, cwd=whole_checkout)
    assert process.returncode == 0, process.stdout + process.stderr
    process = run("make", "setup", offline, cwd=whole_checkout)
    assert process.returncode == 0, process.stdout + process.stderr

    python = whole_checkout / ".venv" / "bin" / "python"
    tests = ("tests/test_story.py", "tests/test_files.py", "tests/test_wheel.py")
    process = run(python, "-m", "pytest", "-n", "0", *tests, cwd=whole_checkout)
    assert process.returncode == 0, process.stdout
