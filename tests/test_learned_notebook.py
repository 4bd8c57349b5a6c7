"""The notebook that looks inside the network: its figures, its claims, and without its extra."""

import ast
import re
import sys
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from helpers import ROOT, code_cells

from mnist_lab import figures
from mnist_lab.research import understanding
from mnist_mlp import EnhancedNet, load_weights

PATH = ROOT / "notebooks" / "What-Has-It-Learned.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def sections(committed) -> dict[str, list]:
    """The code cells under each second-level heading, by heading."""
    sections = {}
    for cell in committed.cells:
        if cell.source.startswith("## "):
            heading = cell.source.splitlines()[0]
            sections[heading] = []
        if sections and cell.cell_type == "code":
            sections[heading].append(cell)
    return sections


def names(tree: ast.AST) -> set[str]:
    """The names in a piece of syntax."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def assigned(source: str) -> set[str]:
    """The names that a cell assigns to."""
    targets = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                targets |= names(target)
    return targets


def test_each_section_has_one_figure_with_a_title(sections):
    _, *stories, _ = sections.values()  # without the parameters and the checks
    for cells in stories:
        outputs = [output for cell in cells for output in cell.outputs]
        assert ["image/png" in o.get("data", {}) for o in outputs].count(True) == 1
        source = "\n".join(cell.source for cell in cells)
        assert re.search(r"plt\.(sup)?title\(", source)


def test_results_that_are_not_compared_are_checked_at_the_end(committed, sections):
    *_, cells = sections.values()
    checks = "\n".join(cell.source for cell in cells)
    checked = names(ast.parse(checks)) - assigned(checks)
    for cell in code_cells(committed):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            assert assigned(cell.source) & checked, cell.source


def test_every_printed_check_holds(sections):
    *_, cells = sections.values()
    text = "".join(output.text for cell in cells for output in cell.outputs)
    assert text.count(": True\n") >= 10
    assert "False" not in text


def test_without_captum_its_section_prints_what_to_install(sections, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    (heading,) = [heading for heading in sections if "pixels decide" in heading]
    namespace = {
        "torch": torch,
        "understanding": understanding,
        "figures": figures,
        "model": load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth"),
        "pixels": torch.rand(100, 28, 28),
        "evaluation": SimpleNamespace(predicted=torch.arange(100) % 10),
    }
    for cell in sections[heading]:
        exec(cell.source, namespace)
    assert "pip install -e '.[understand]'" in capsys.readouterr().out


@pytest.mark.campaign
def test_without_captum_the_rest_of_the_notebook_runs(committed, tmp_path):
    hide_captum = nbformat.v4.new_code_cell("import sys\nsys.modules['captum'] = None")
    notebook = nbformat.from_dict({**committed, "cells": [hide_captum, *committed.cells]})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", cwd=str(PATH.parent), progress_bar=False
    )
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert text.count("pip install -e '.[understand]'") == 1
    assert ": False" not in text
    assert ["image/png" in output.get("data", {}) for output in outputs].count(True) == 6
