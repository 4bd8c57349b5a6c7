"""What holds for every notebook."""

import nbformat
import pytest
from helpers import ROOT, code_cells

PATHS = sorted((ROOT / "notebooks").glob("[A-Z]*.ipynb"))
OURS = [path for path in PATHS if not path.stem.endswith(("-digits", "-tweaked"))]


@pytest.fixture(params=OURS, ids=lambda path: path.stem)
def committed(request):
    return nbformat.read(request.param, as_version=4)


def test_readme_names_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in OURS:
        assert f"(notebooks/{path.name})" in readme


def test_committed_outputs_are_one_clean_run(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert len([cell for cell in cells if cell.outputs]) > len(cells) / 2
    assert "widgets" not in committed.metadata
    assert "papermill" not in committed.metadata
    assert "NOT MNIST" not in str(cells)


def test_notebook_asserts_only_in_its_last_section(committed):
    headings = [i for i, cell in enumerate(committed.cells) if cell.source.startswith("## ")]
    checks = committed.cells[headings[-1] :]
    assert checks[0].source.splitlines()[0].endswith("Checks")
    for cell in code_cells(committed):
        if "assert " in cell.source:
            assert cell in checks or "if recompute:" in cell.source, cell.source
