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

from mnist_lab.handwriting.synthetic import write_samples
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


PRINT_PLACES = """
import json
import sys
from mnist_mlp import notebook
from mnist_mlp.datasets import default_root
from mnist_mlp.files import published

notebook.check_parameters()
places = {name: str(published(name)) for name in sys.argv[1:]}
places["package"] = notebook.__file__
places["output"] = str(notebook.output_path("models/net.pth"))
places["data"] = str(default_root())
print(json.dumps(places))
"""


def test_wheel_reads_published_files_and_writes_to_the_working_directory(
    site, empty_folder, monkeypatch
):
    names = names_of_published_files()
    assert {"models/conv_net.pth", "benchmarks/accuracy/labels.json"} < names

    monkeypatch.delenv("MNIST_ROOT")
    command = [sys.executable, "-c", PRINT_PLACES, *names]
    process = subprocess.run(command, capture_output=True)
    assert process.returncode == 0, process.stderr.decode()
    places = {name: Path(place) for name, place in json.loads(process.stdout).items()}

    assert places["package"].is_relative_to(site)
    assert places["output"] == empty_folder / "models" / "net.pth"
    assert places["data"] == empty_folder / "data"
    for name in names:
        assert places[name].is_relative_to(site), name
        assert places[name].read_bytes() == (ROOT / name).read_bytes(), name
        if name.endswith(".pth"):
            assert places[name].with_suffix(".json").exists(), name


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


def test_wheel_runs_a_notebook_in_an_empty_folder(site, empty_folder, tmp_path):
    # Three pictures of each digit are the fewest that can be trained on. The samples are 200.
    samples = write_samples(tmp_path / "pictures", each=3)
    parameters = {
        "dataset": "digits",
        "pictures": str(tmp_path / "pictures"),
        "corrections": {path.name: digit for path, digit in samples},
        "epochs": 1,
    }
    executed = run_in_empty_folder(OWN_DIGITS, empty_folder, site, **parameters)

    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert len(list((empty_folder / "data" / "own-digits" / "labelled").glob("*/*.jpg"))) == 30
    assert (empty_folder / "models" / "enhanced_model-own-hand.pth").exists()


@pytest.mark.campaign
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_wheel_runs_every_notebook_in_an_empty_folder(path, site, empty_folder, mnist):
    executed = run_in_empty_folder(path, empty_folder, site)

    # As in nbval, all but the cells with this tag print the same on every machine. The students'
    # notebook has no outputs: its open exercises must not stop it.
    published = nbformat.read(path, as_version=4)
    for new, old in zip(code_cells(executed), code_cells(published), strict=True):
        is_compared = "nbval-ignore-output" not in old.metadata.get("tags", [])
        if is_compared and path.stem != "Exercises":
            assert printed(new) == printed(old), old.source
