"""Execute a notebook from top to bottom in a new kernel and show the progress.

`python notebooks/execute.py NOTEBOOK`: the outputs replace those in the file. If MNIST is not
there and cannot be downloaded, the notebook runs on the embedded digits, and the result goes to
another file, such as NOTEBOOK-digits.ipynb.
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
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from mnist_mlp import load
from mnist_mlp.files import atomic_write

# Use this environment's kernel, and not a kernel with the same name in the user's home.
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"


class ProgressClient(NotebookClient):
    """A client that also prints what the cells with a progress bar print."""

    cell_with_bar = None

    def process_message(self, msg, cell, cell_index):
        """Print the text if a cell with a progress bar has sent it; then continue as usual."""
        text = ""
        if msg["msg_type"] == "stream":
            text = msg["content"]["text"]

        # A progress bar returns to the start of the line.
        if "\r" in text:
            self.cell_with_bar = cell_index
        if self.cell_with_bar == cell_index:
            print(text, end="", flush=True)

        return super().process_message(msg, cell, cell_index)


def print_title(cell, cell_index):
    """Print the titles of the sections that begin in this cell."""
    if cell.cell_type != "markdown":
        return
    for line in cell.source.splitlines():
        if line.startswith("## "):
            print(line.removeprefix("## "), flush=True)


def read_dataset(path: Path) -> str:
    """Return the notebook's parameter `dataset`.

    Raises:
        ValueError: There is no such parameter, or it is not the name of a data set.
    """
    expected = "expected a name that load() takes, in quotes, such as 'auto'"
    parameters = inspect_notebook(str(path))
    if "dataset" not in parameters:
        raise ValueError(f"{path} has no parameter `dataset`: {expected}.")

    source = parameters["dataset"]["default"]
    try:
        dataset = ast.literal_eval(source)
    except (ValueError, SyntaxError):  # it is code, which only the kernel may run
        dataset = None
    if not isinstance(dataset, str):
        raise ValueError(f"in {path} the parameter `dataset` is {source}: {expected}.")

    is_path = Path(dataset).name != dataset
    if is_path:
        raise ValueError(
            f"in {path} the parameter `dataset` is the path {dataset!r}: {expected}; "
            "for your own pictures, set `pictures` in notebooks/Your-Own-Digits.ipynb."
        )
    return dataset


def execute(path: Path) -> Path:
    """Execute the notebook and return the path of the result, which is written if no cell fails."""
    content = path.read_bytes()
    notebook = nbformat.reads(content.decode("utf-8"), as_version=4)
    result = path
    dataset = read_dataset(path)

    # Load the data here as well: a download in the kernel would show no progress.
    with warnings.catch_warnings(action="ignore"):
        splits = load(dataset)
    if splits.warning:
        line = "*" * 79
        print(f"\n{line}\n{textwrap.fill(splits.warning, 79)}\n{line}\n")

    if splits.name != "mnist":
        result = path.with_stem(f"{path.stem}-{splits.name}")
    if dataset == "auto" and splits.name != "mnist":
        notebook = parameterize_notebook(load_notebook_node(str(path)), {"dataset": "digits"})

    client = ProgressClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        resources={"metadata": {"path": path.parent}},
        coalesce_streams=True,  # keep only the last state of a progress bar
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        on_cell_start=print_title,
    )
    client.execute()

    # Somebody may have edited the notebook in the meantime.
    if result == path and path.read_bytes() != content:
        result = path.with_stem(f"{path.stem}-executed")
        print(f"{path} was edited while it ran, so the result is written beside it.")

    with atomic_write(result) as file:
        nbformat.write(notebook, file)
    return result


def main():
    """Execute the notebook that the command line names."""
    if "-h" in sys.argv or "--help" in sys.argv:
        print(__doc__)
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)

    start = time.perf_counter()
    try:
        result = execute(Path(sys.argv[1]))
    except CellExecutionError as error:
        sys.exit(f"{error}\nThe notebook was not written: a cell failed.")
    except DeadKernelError:
        sys.exit(
            "The notebook was not written: its kernel died, often because the memory was full. "
            "Close other programs, or use less data or a smaller network."
        )
    except nbformat.ValidationError as error:
        sys.exit(f"The notebook was not executed: it is damaged: {error.message}")
    except (OSError, ValueError) as error:
        sys.exit(f"The notebook was not executed: {error}")
    except (KeyboardInterrupt, AssertionError):
        # An interrupt can make an assertion of nbclient fail.
        sys.exit("\nThe notebook was not written: interrupted.")

    print(f"Executed in {time.perf_counter() - start:.0f} s: {result}")


if __name__ == "__main__":
    main()
