"""What holds for every notebook."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[A-Z]*.ipynb"))
OURS = [path for path in PATHS if not path.stem.endswith(("-digits", "-tweaked"))]


@pytest.fixture(params=OURS, ids=lambda path: path.stem)
def committed(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_three():
    assert len(OURS) == 3


def test_the_committed_outputs_are_one_clean_run_from_top_to_bottom(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    silent = [cell for cell in cells if not cell.outputs]
    assert len(silent) <= 4  # imports, parameters, a model loaded, nothing recomputed
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert "widgets" not in committed.metadata
    assert "papermill" not in committed.metadata
    assert "NOT MNIST" not in str(cells)


def test_the_notebook_only_calls(committed):
    for cell in code_cells(committed):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda}
        lines = [line for line in cell.source.splitlines() if not re.match("import|from", line)]
        assert len(lines) <= 14
