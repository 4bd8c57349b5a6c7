"""The notebook that looks inside the network: its form, its claims, and without its extra."""

import ast
import re
import sys
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from helpers import ROOT, code_cells

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.notebook import figures
from mnist_mlp.research import understanding

PATH = ROOT / "notebooks" / "What-Has-It-Learned.ipynb"
IGNORED = "nbval-ignore-output"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def sections(committed):
    """The cells under each second-level heading, by heading."""
    found = {}
    for cell in committed.cells:
        if cell.source.startswith("## "):
            found[cell.source.splitlines()[0]] = []
        if found:
            list(found.values())[-1].append(cell)
    return found


@pytest.fixture(scope="module")
def stories(sections):
    """The seven sections between the parameters and the checks."""
    return dict(list(sections.items())[1:-1])


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def names(tree):
    """The names in a piece of syntax."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def assigned(source):
    """The names that a cell assigns to, without those inside its comprehensions."""
    statements = [s for s in ast.walk(ast.parse(source)) if isinstance(s, ast.Assign)]
    return set().union(*(names(target) for s in statements for target in s.targets))


def test_each_section_has_one_figure_whose_title_states_what_it_shows(stories):
    assert len(stories) == 7
    for title, cells in stories.items():
        outputs = [output for cell in code(cells) for output in cell.outputs]
        assert ["image/png" in o.get("data", {}) for o in outputs].count(True) == 1, title
        source = "\n".join(cell.source for cell in code(cells))
        assert re.search(r"plt\.(sup)?title\(", source), title


def test_each_section_has_at_most_five_sentences_and_a_value_to_change_at_the_top(stories):
    for title, cells in stories.items():
        prose = " ".join(
            " ".join(cell.source.splitlines()[2 if cell.source.startswith("## ") else 0 :])
            for cell in cells
            if cell.cell_type == "markdown"
        )
        assert 1 <= len(re.findall(r"[.!?](?= |$)", prose)) <= 5, title
        line, statement = code(cells)[0].source.splitlines()[0], ast.parse(code(cells)[0].source)
        ast.literal_eval(statement.body[0].value)
        assert "  # " in line, line
        rest = "\n".join(cell.source for cell in code(cells)).replace(line, "")
        assert statement.body[0].targets[0].id in names(ast.parse(rest)), title


def test_the_notebook_has_at_most_thirty_cells(committed):
    assert len(committed.cells) <= 30


def test_the_results_of_cells_that_are_not_compared_are_checked_at_the_end(committed, sections):
    checks = "\n".join(cell.source for cell in code(list(sections.values())[-1]))
    read = names(ast.parse(checks)) - assigned(checks)
    for cell in code_cells(committed):
        if IGNORED in cell.metadata.get("tags", []):
            assert assigned(cell.source) & read, cell.source
        assert not {"nbval-skip", "raises-exception"} & set(cell.metadata.get("tags", []))
    assert len(re.findall(r"^print\(.*: *\"", checks, re.M)) >= 10


def test_every_printed_check_holds(sections):
    text = "".join(
        output.text for cell in code(list(sections.values())[-1]) for output in cell.outputs
    )
    assert text.count(": True\n") >= 10
    assert "False" not in text


def test_without_captum_the_section_that_needs_it_is_one_sentence(stories, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    (cells,) = [cells for title, cells in stories.items() if "pixels decide" in title]
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model_best.pth")
    pixels = torch.rand(100, 28, 28)
    known = {"torch": torch, "model": model, "understanding": understanding, "figures": figures}
    known |= {"pixels": pixels, "evaluation": SimpleNamespace(predicted=torch.arange(100) % 10)}
    for cell in code(cells):
        exec(cell.source, known)
    (printed,) = capsys.readouterr().out.splitlines()
    assert "pip install -e '.[understand]'" in printed


@pytest.mark.campaign
def test_without_captum_the_rest_of_the_notebook_runs(committed, tmp_path):
    hidden = nbformat.v4.new_code_cell("import sys\nsys.modules['captum'] = None")
    notebook = nbformat.from_dict({**committed, "cells": [hidden, *committed.cells]})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", cwd=str(PATH.parent), progress_bar=False
    )
    outputs = [o for c in code_cells(nbformat.read(tmp_path / "out.ipynb", 4)) for o in c.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert text.count("pip install -e '.[understand]'") == 1
    assert ": False" not in text
    assert ["image/png" in output.get("data", {}) for output in outputs].count(True) == 6
