"""An installed wheel runs every notebook in an empty folder, and writes nothing but there."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import papermill
import pytest
from helpers import ROOT, code_cells

from mnist_mlp.datasets import default_root

FOLDER = ROOT / "notebooks"
OWN_RUNS = {*FOLDER.glob("*-digits.ipynb"), *FOLDER.glob("*-Classifier-*.ipynb")}
NOTEBOOKS = sorted(set(FOLDER.glob("*.ipynb")) - OWN_RUNS)
OWN_DIGITS = FOLDER / "Your-Own-Digits.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel. A wheel of pure Python is installed by unpacking it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture
def empty_folder(site, tmp_path, monkeypatch) -> Path:
    """An empty folder in which Python finds the installed wheel, and not the repository."""
    monkeypatch.setenv("MNIST_ROOT", str(default_root().resolve()))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("MNIST_MLP_OUTPUT", raising=False)
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def python(code: str, *arguments: str) -> dict:
    """Run code in a new Python process; return the JSON that it prints."""
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert process.returncode == 0, process.stderr.decode()
    return json.loads(process.stdout)


def names_of_published_files() -> set[str]:
    """The published files that a cell of a notebook or a module names."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    for path in NOTEBOOKS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            lines = cell.source.splitlines()
            sources += [line for line in lines if "output_path(" not in line]

    names = set()
    for source in sources:
        names.update(re.findall(r'published\("([\w./-]+)"\)', source))
        names.update(re.findall(r'^\w+ = "(models/[\w./-]+)"', source))
    return names


def test_wheel_carries_every_published_file_that_is_read(site, empty_folder):
    names = names_of_published_files()
    assert {"models/conv_net.pth", "benchmarks/accuracy/labels.json"} < names

    code = (
        "import json, sys; from mnist_mlp.files import published; "
        "print(json.dumps({name: str(published(name)) for name in sys.argv[1:]}))"
    )
    paths = python(code, *names)
    for name in names:
        assert Path(paths[name]).is_relative_to(site), name
        assert Path(paths[name]).read_bytes() == (ROOT / name).read_bytes(), name
        if name.endswith(".pth"):
            assert Path(paths[name]).with_suffix(".json").exists(), name


def test_wheel_writes_and_downloads_to_the_working_directory(site, empty_folder, monkeypatch):
    monkeypatch.delenv("MNIST_ROOT")
    code = (
        "import json; from mnist_mlp import notebook; from mnist_mlp.datasets import default_root; "
        "notebook.check_parameters(); "
        "places = [notebook.output_path('models/net.pth'), default_root(), notebook.__file__]; "
        "print(json.dumps([str(place) for place in places]))"
    )
    output, data, package = python(code)

    assert Path(output) == empty_folder / "models" / "net.pth"
    assert Path(data) == empty_folder / "data"
    assert Path(package).is_relative_to(site)


def test_wheel_has_types_styles_scripts_and_licence(site):
    for name in (
        "mnist_mlp/py.typed",
        "mnist_lab/py.typed",
        "mnist_mlp/mnist_mlp.mplstyle",
        "mnist_lab/handwriting/pad.js",
        "mnist_lab/handwriting/widget.js",
    ):
        assert (site / name).read_bytes() == (ROOT / "src" / name).read_bytes(), name
    assert list(site.glob("*.dist-info/licenses/LICENSE"))
    assert not list(site.rglob("benchmarks/**/*.py"))


def printed(cell) -> str:
    """What a cell has printed."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def run_in_empty_folder(path: Path, folder: Path, site: Path, **parameters):
    """Run a notebook in a folder that holds nothing else; return the executed notebook."""
    shutil.copy(path, folder)
    installed = sorted(site.rglob("*"))
    executed = papermill.execute_notebook(
        folder / path.name, folder / "out.ipynb", parameters, cwd=str(folder), progress_bar=False
    )
    assert sorted(site.rglob("*")) == installed
    return executed


def test_wheel_runs_a_notebook_in_an_empty_folder(site, empty_folder):
    executed = run_in_empty_folder(OWN_DIGITS, empty_folder, site, dataset="digits", epochs=1)

    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert (empty_folder / "data" / "own-digits").is_dir()


@pytest.mark.campaign
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_wheel_runs_every_notebook_in_an_empty_folder(path, site, empty_folder, mnist):
    executed = run_in_empty_folder(path, empty_folder, site)

    # As in nbval, all but the cells with this tag print the same on every machine.
    published = nbformat.read(path, as_version=4)
    for new, old in zip(code_cells(executed), code_cells(published), strict=True):
        if "nbval-ignore-output" not in old.metadata.get("tags", []):
            assert printed(new) == printed(old), old.source
