"""Make the students' notebook from the one with the solutions: `make exercises`.

nbgrader's preprocessors remove the outputs, and what stands between BEGIN SOLUTION and END
SOLUTION.
"""

from pathlib import Path

import nbformat
from nbgrader.preprocessors import ClearOutput, ClearSolutions

from mnist_mlp.files import atomic_write

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "Exercises-with-solutions.ipynb"
RESULT = FOLDER.parent / "Exercises.ipynb"

STUB = "# YOUR CODE HERE"


def student_version(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook without solutions and outputs.

    If an answer or its check stops with an error, the cells after it still run ("Run all cells").
    """
    notebook, resources = ClearSolutions(code_stub={"python": STUB}).preprocess(notebook, {})
    notebook, _ = ClearOutput().preprocess(notebook, resources)

    for cell in notebook.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.tags = [*cell.metadata.get("tags", []), "raises-exception"]
    return notebook


def main() -> None:
    """Write the students' notebook."""
    notebook = student_version(nbformat.read(SOURCE, as_version=4))
    with atomic_write(RESULT) as file:
        nbformat.write(notebook, file)
    print(f"{RESULT.relative_to(FOLDER.parents[1])} is made from {SOURCE.name}")


if __name__ == "__main__":
    main()
