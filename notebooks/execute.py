"""Execute a notebook from top to bottom in a new kernel and show the progress.

`python notebooks/execute.py NOTEBOOK`: the outputs replace those in the file. If MNIST can be
neither found nor downloaded it runs on the embedded digits and writes a file of another name.
"""

import ast
import os
import sys
import textwrap
import time
import warnings
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from mnist_mlp import load
from mnist_mlp.files import atomic_write

os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # our kernel, not one of the user's own


class Client(NotebookClient):
    """Prints each section's title as it begins, and what the cells with a progress bar print."""

    cell_with_bar = None

    def process_message(self, msg, cell, cell_index):
        """Print the text if it is a progress bar's; then continue as usual."""
        text = msg["content"].get("text", "") if msg["msg_type"] == "stream" else ""
        if "\r" in text:
            self.cell_with_bar = cell_index
        if self.cell_with_bar == cell_index:
            print(text, end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def announce(cell, cell_index):
    """Print the title of the section that a cell opens."""
    for line in cell.source.splitlines():
        if cell.cell_type == "markdown" and line.startswith("## "):
            print(line.removeprefix("## "), flush=True)


def execute(path: Path) -> Path:
    """Execute the notebook and return the path of the result, written only if no cell failed."""
    notebook = nbformat.read(path, as_version=4)
    result = path
    dataset = ast.literal_eval(inspect_notebook(str(path))["dataset"]["default"])
    with warnings.catch_warnings(action="ignore"):
        splits = load(dataset)  # here, where the progress of a download can be seen

    if splits.warning:
        line = "*" * 79
        print(f"\n{line}\n{textwrap.fill(splits.warning, 79)}\n{line}\n")
    if splits.name != "mnist":
        notebook = parameterize_notebook(load_notebook_node(str(path)), {"dataset": splits.name})
        result = path.with_stem(f"{path.stem}-{splits.name}")

    Client(
        notebook,
        kernel_name="python3",
        timeout=None,
        resources={"metadata": {"path": path.parent}},
        coalesce_streams=True,  # of a progress bar, keep the last state
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        on_cell_start=announce,
    ).execute()

    with atomic_write(result) as file:
        nbformat.write(notebook, file)
    return result


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        sys.exit()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    started = time.perf_counter()
    try:
        written = execute(Path(sys.argv[1]))
    except CellExecutionError as error:
        sys.exit(f"{error}\nThe notebook was not written: a cell failed.")
    except (OSError, ValueError) as error:
        sys.exit(f"The notebook was not executed: {error}")
    except (KeyboardInterrupt, AssertionError):  # nbclient, interrupted, fails its own assertion
        sys.exit("\nThe notebook was not written: interrupted.")
    print(f"Executed in {time.perf_counter() - started:.0f} s: {written}")
