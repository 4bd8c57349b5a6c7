"""What somebody meets who tries out the notebook, its script and the README's snippets."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"

# The notebook


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The notebook on the digits, its cells executed one by one by the name of their section."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    )

    def execute(words: str, change=lambda source: source):
        (index,) = [
            i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and words in c.source
        ]
        notebook.cells[index].source = change(notebook.cells[index].source)
        return client.execute_cell(notebook.cells[index], index)

    with client.setup_kernel():
        execute("from mnist_mlp")
        yield execute


def epochs(number: int):
    return lambda source: re.sub(
        r"^epochs = .*$", f"epochs = {number}", source.replace('"auto"', '"digits"'), flags=re.M
    )


def text(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_in_the_notebook_a_changed_parameter_counts_without_the_sections_between(runner):
    runner("label_smoothing = 0.0", epochs(3))
    runner("recipe = Recipe(")
    runner("label_smoothing = 0.0", epochs(1))
    runner("recipe = Recipe(")
    assert " 1/1 " in text(runner("history = fit(model"))


COUNTED = """
trained = []
def counted(model, train, validation, recipe, _fit=fit, **options):
    trained.append(recipe.epochs)
    return _fit(model, train, validation, recipe, **options)
fit = tuning.fit = trials.fit = counted
"""


def test_in_the_notebook_a_quick_look_trains_few_epochs_in_all(runner):
    """`papermill -p epochs 2`: the trials on preprocessing and tuning are quick then, too."""
    runner("label_smoothing = 0.0", epochs(2))
    runner("recipe = Recipe(", lambda source: source + COUNTED)
    runner("by_scale = {")
    runner("small = trials")
    cell = runner("history = fit(model", lambda source: f"{source}\nprint('in all', sum(trained))")
    assert "in all 7" in text(cell)


# The second epoch's images are interrupted, as by the stop button.
INTERRUPTING = """
import signal
from mnist_mlp import train
warp, calls = train.random_warp, []
def interrupting(*arguments, **settings):
    calls.append(1)
    if len(calls) == 5:
        signal.raise_signal(signal.SIGINT)
    return warp(*arguments, **settings)
train.random_warp = interrupting
"""


def test_in_the_notebook_the_stop_button_leaves_a_state_in_which_the_next_cells_work(runner):
    runner("label_smoothing = 0.0", epochs(5))
    runner("recipe = Recipe(", lambda source: source + INTERRUPTING)
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        runner("history = fit(model")
    assert "Best epoch: 1" in text(runner("outputs = notebook.Outputs"))
    runner("plots.training_metrics({")
    runner("parts = {")
    runner("test = evaluate(model")
    path = runner(
        "weights_path = outputs.save_model", lambda source: source + "\nprint(weights_path)"
    )
    assert "enhanced_model-digits.pth" in text(path)
    assert " 5/5 " in text(runner("history = fit(model"))


def test_execute_py_tells_how_it_is_called():
    execute = ROOT / "notebooks" / "execute.py"
    done = subprocess.run([sys.executable, execute, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "`python notebooks/execute.py NOTEBOOK`" in done.stdout


# README


@pytest.fixture
def repository(tmp_path):
    """A folder that looks like the repository, into which a snippet may write."""
    for name in ("figures", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S), ids=len)
def test_readmes_snippets_run_as_pasted(code, repository, mnist):
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
    environment = os.environ | {
        "MNIST_ROOT": os.path.abspath(os.environ.get("MNIST_ROOT", ROOT / "data"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "accuracy)" in code:  # of one seed
        assert float(done.stdout.splitlines()[-1]) > 0.975
