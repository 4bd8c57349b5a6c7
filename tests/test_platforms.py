"""What another operating system, Python or environment lacks: it works without, or says so."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT

# What Windows does not have.
AS_ON_WINDOWS = """
import signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["pwd"] = None
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    if hasattr(signal, name):
        delattr(signal, name)
"""
EVERYTHING = f"""{AS_ON_WINDOWS}
import importlib, pathlib, pkgutil, torch, mnist_lab, mnist_mlp
for package in (mnist_mlp, mnist_lab):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print("imported", module.name)
from mnist_mlp import EnhancedNet, Recipe, fit, load, load_weights, save_weights
from mnist_mlp.checkpoint import read_card
digits, network, recipe = load("digits"), EnhancedNet(), Recipe(epochs=2, batch_size=64)
options = dict(checkpoint="run.pt", progress=False)
fit(network, digits.train, digits.validation, recipe, **options)
save_weights(network, "net.pth")
again = load_weights(EnhancedNet(), "net.pth")
assert read_card("net.pth")["parameters"] == 575_050
assert all(map(torch.equal, again.parameters(), network.parameters()))
print(sorted(path.name for path in pathlib.Path().iterdir()))
"""


def run(*command, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "JUPYTER"))}
    return subprocess.run(
        command, cwd=cwd, env=clean | environment, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_without_what_windows_lacks_all_is_imported_trained_saved_and_loaded(tmp_path):
    done = run(sys.executable, "-c", EVERYTHING, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for name in ("run.pt", "net.pth", "net.json"):
        assert f"'{name}'" in done.stdout
    source = ROOT / "src"
    modules = {path.relative_to(source).with_suffix("") for path in source.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in modules}
    imported = re.findall(r"^imported (.*)$", done.stdout, re.MULTILINE)
    assert set(imported) == names - {"mnist_mlp", "mnist_lab"}


@pytest.mark.campaign
def test_without_what_windows_lacks_the_unit_tests_pass():
    rooms = ("core", "datasets", "research", "handwriting")
    # The long ones: of a notebook, of a cluster of processes, of a browser.
    without = ("research/test_ablation.py", "research/test_sweep.py", "handwriting/test_page.py")
    tests = [f"tests/{room}" for room in rooms]
    tests += [f"--ignore=tests/{name}" for name in without]
    start = f"{AS_ON_WINDOWS}\nimport pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    done = run(sys.executable, "-c", start, "-q", "-n", "0", *tests)
    assert done.returncode == 0, done.stdout
    print(done.stdout.splitlines()[-1])


def test_a_users_own_kernel_called_python3_is_not_ours(tmp_path):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "x"}')
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell('dataset = "digits"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import sys; print(sys.executable)"),
    ]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "-", "language": "python"}
    path = tmp_path / "where.ipynb"
    nbformat.write(notebook, path)
    execute = ROOT / "notebooks" / "execute.py"
    theirs = {"JUPYTER_DATA_DIR": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "0"}
    done = run(sys.executable, execute, path, **theirs)
    assert done.returncode == 0, done.stdout
    result = nbformat.read(tmp_path / "where-digits.ipynb", as_version=4)
    assert result.cells[-1].outputs[0].text.strip() == sys.executable


# The Makefile


@pytest.fixture
def checkout(tmp_path):
    """What `make` needs of the repository, in a folder whose name has spaces and an accent."""
    if os.name == "nt" or not shutil.which("make"):
        pytest.skip("there is no make here")
    folder = tmp_path / "a copy, été"
    for name in ("Makefile", "README.md", "LICENSE", "pyproject.toml", "requirements.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(("version", "words"), [((3, 9), "found 3.9"), ((3, 15), "found 3.15")])
def test_a_python_that_is_too_old_or_too_new_is_one_sentence(checkout, tmp_path, version, words):
    fake = tmp_path / "python"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$2"\n')
    fake.chmod(0o755)
    done = run("make", "notebook", f"PYTHON={fake}", cwd=checkout)
    assert done.returncode
    assert f"Python 3.11 to 3.14 is needed, {words}. Try: make PYTHON=" in done.stdout
    assert not (checkout / ".venv").exists()


def test_without_a_network_it_says_so_and_an_environment_of_another_place_is_made_anew(checkout):
    stale = checkout / ".venv" / "bin" / "python"
    stale.parent.mkdir(parents=True)
    stale.symlink_to("/usr/bin/a-python-that-is-gone")
    for name in ("notebook.installed", ".installed"):
        (checkout / ".venv" / name).touch()
    done = run("make", "notebook", "PIP_ARGS=--no-index", f"PYTHON={sys.executable}", cwd=checkout)
    assert done.returncode
    assert "pip could not install what is needed. It takes a network once" in done.stdout
    assert not (checkout / ".venv" / "notebook.installed").exists()
    assert run(str(stale), "-c", "print(5)").stdout == "5\n"
