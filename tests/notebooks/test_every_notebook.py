"""What holds for every notebook."""

import ast

import nbformat
import pytest
from helpers import ROOT, code_cells

PATHS = sorted((ROOT / "notebooks").glob("[A-Z]*.ipynb"))
OURS = [path for path in PATHS if not path.stem.endswith(("-digits", "-tweaked"))]


@pytest.fixture(params=OURS, ids=lambda path: path.stem)
def committed(request):
    return nbformat.read(request.param, as_version=4)


def test_the_readme_names_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(OURS) >= 3
    for path in OURS:
        assert f"(notebooks/{path.name})" in readme


def test_the_committed_outputs_are_one_clean_run_from_top_to_bottom(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    silent = [cell for cell in cells if not cell.outputs]
    assert len(silent) <= 5  # imports, parameters, trials before their figure, nothing recomputed
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert "widgets" not in committed.metadata
    assert "papermill" not in committed.metadata
    assert "NOT MNIST" not in str(cells)


def test_the_notebook_only_calls(committed):
    for cell in code_cells(committed):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda}
        assert len(cell.source.splitlines()) <= 10, cell.source


def test_the_notebook_ends_with_its_checks(committed):
    titles = [c.source.splitlines()[0] for c in committed.cells if c.source.startswith("## ")]
    assert titles[-1].endswith("Checks")
    before = [c for c in code_cells(committed) if "assert" in c.source]
    last = next(i for i, c in enumerate(committed.cells) if c.source.startswith(titles[-1]))
    assert all(c in committed.cells[last:] or "if recompute:" in c.source for c in before)
