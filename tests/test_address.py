"""`make address` writes the repository's address everywhere, and a later one replaces it."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
from helpers import ROOT, code_cells

FIRST = "https://github.com/first-owner/first.repository"
SECOND = "https://github.com/second-owner/second"
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff")
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def copy(tmp_path):
    """A copy of the files that hold the address, and of the script."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=ignored)
    return tmp_path


def write_address(copy, url) -> subprocess.CompletedProcess:
    command = [sys.executable, copy / "notebooks" / "address.py", url]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def project_address(root) -> str:
    """The address in a repository's pyproject.toml; "" if there is none."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"].get("Repository", "")


def contents(copy) -> dict[str, str]:
    """The text of each file but the script, by its name."""
    files = [path for path in copy.rglob("*") if path.suffix in (".toml", ".md", ".cff", ".ipynb")]
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def test_address_is_written_into_every_file(copy):
    process = write_address(copy, FIRST)
    assert process.returncode == 0, process.stderr

    text = contents(copy)
    assert project_address(copy) == FIRST
    assert f"\nrepository-code: {FIRST}\n" in text["CITATION.cff"]
    assert f"git clone {FIRST} && cd first.repository\n" in text["CONTRIBUTING.md"]
    assert f"({FIRST}/actions/workflows/ci.yml/badge.svg)]({FIRST}/actions/" in text["README.md"]

    colab = FIRST.replace("https://github.com", "https://colab.research.google.com/github")
    for name in NOTEBOOKS:
        link = f"]({colab}/blob/main/notebooks/{name})"
        notebook = nbformat.reads(text[name], as_version=4)
        assert link in notebook.cells[0].source
        assert f"git+{FIRST}" in code_cells(notebook)[0].source

    named = re.findall(r"^.*\| \[[\w-]+\]\(notebooks/.*$", text["README.md"], re.M)
    assert len(named) >= 6
    for row in named:
        assert "[![Open in Colab](" in row


def test_address_replaces_an_earlier_one_and_leaves_no_trace(copy):
    write_address(copy, SECOND)
    only_second = contents(copy)

    write_address(copy, FIRST)
    assert "first" in contents(copy)["CONTRIBUTING.md"]
    write_address(copy, f"{SECOND}.git/")

    assert contents(copy) == only_second
    for name, text in only_second.items():
        assert "first-owner" not in text, name
        assert "first.repository" not in text, name


def test_address_changes_no_output_of_a_notebook(copy):
    before = contents(copy)
    write_address(copy, FIRST)
    for name in NOTEBOOKS:
        old = nbformat.reads(before[name], as_version=4)
        path = copy / "notebooks" / name
        new = nbformat.read(path, as_version=4)
        nbformat.validate(new)
        assert nbformat.writes(new) + "\n" == path.read_text(encoding="utf-8")

        for cell in (old.cells[0], new.cells[0], code_cells(old)[0], code_cells(new)[0]):
            cell.source = ""
        assert new == old


@pytest.mark.parametrize(
    "url", ["", "mnist", "https://github.com/you", "http://a b", 'https://github.com/y/"']
)
def test_address_refuses_what_is_no_address_in_one_sentence(copy, url):
    before = contents(copy)
    process = write_address(copy, url)

    assert process.returncode == 1
    assert process.stderr.startswith("Expected an address such as https://github.com/you/mnist")
    assert process.stderr.count("\n") == 1
    assert contents(copy) == before


def test_address_is_the_same_in_all_committed_files(copy):
    before = contents(copy)
    address = runpy.run_path(str(ROOT / "notebooks" / "address.py"))
    address["fill"](copy, project_address(ROOT))
    assert contents(copy) == before


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_address_is_written_into_code_that_passes_lint(command, copy):
    shutil.copytree(ROOT / "src", copy / "src")  # ruff sorts imports by where the module is
    write_address(copy, FIRST)

    process = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "notebooks"], cwd=copy, capture_output=True
    )
    assert process.returncode == 0, process.stdout.decode()


def test_address_is_linked_from_the_site(copy):
    shutil.copytree(ROOT / "web", copy / "web")
    record = copy / "benchmarks" / "accuracy" / "seeds.json"
    record.parent.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "accuracy" / "seeds.json", record)
    index = runpy.run_path(str(copy / "web" / "build_site.py"))["index"]

    write_address(copy, FIRST)
    assert f'<a href="{FIRST}">Source code</a>' in index()


# A notebook that is opened alone


@pytest.mark.parametrize("url", ["", FIRST], ids=["without address", "with address"])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_without_the_package_says_or_does_what_is_needed(copy, name, url, tmp_path):
    address = runpy.run_path(str(ROOT / "notebooks" / "address.py"))
    address["fill"](copy, url)
    notebook = nbformat.read(copy / "notebooks" / name, as_version=4)
    source = code_cells(notebook)[0].source
    start, _, _ = source.partition("\n\n")
    assert len(start.splitlines()) <= 6

    # The package cannot be imported, and the shell only writes down what it is asked to run.
    code = (
        "import json, sys; sys.modules['mnist_mlp'] = None; asked = []\n"
        "class Shell:\n"
        "    def run_line_magic(self, *command): asked.append(command)\n"
        "try:\n"
        "    exec(sys.argv[1], {'get_ipython': Shell})\n"
        "except ModuleNotFoundError as error:\n"
        "    print(json.dumps([asked, str(error)]))\n"
    )
    process = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    asked, message = json.loads(process.stdout)
    if url:
        assert asked == [["pip", f'install "mnist-mlp[notebook] @ git+{FIRST}"']]
    else:
        assert "make lab" in message
        assert "pip install" in message
        assert not asked
