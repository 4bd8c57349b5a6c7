"""The main notebook's cells work out of order and after a stop, and README's snippets run."""

import os
import re
import shutil

import nbformat
import pytest
from helpers import ROOT, code_cells
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from mnist_mlp import notebook

PATH = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)


class Reader:
    """Runs cells of the main notebook on the digits.

    A cell is found by a piece of its source that no other cell contains.
    """

    def __init__(self):
        self.cells = code_cells(nbformat.read(PATH, as_version=4))
        self.shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        self.names = self.shell.user_ns
        self.run("from mnist_mlp import")

    def set_epochs(self, epochs: int) -> None:
        """Run the cell with the parameters, with the digits and another number of epochs."""
        self.run("label_smoothing = 0.0")
        self.names["dataset"] = "digits"
        self.names["epochs"] = epochs

    def run(self, piece: str) -> None:
        found = [cell for cell in self.cells if piece in cell.source]
        assert len(found) == 1, piece
        self.shell.run_cell(found[0].source, store_history=True).raise_error()


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(notebook, "runs", notebook.RunLog())
    yield Reader()
    InteractiveShell.clear_instance()


def test_notebook_changed_parameter_counts_at_once(reader):
    """Without the sections between the parameters and the training."""
    reader.set_epochs(3)
    reader.run("recipe = Recipe(")
    reader.set_epochs(1)
    reader.run("recipe = Recipe(")
    reader.run("history = fit(model")

    assert len(reader.names["history"].epochs) == 1


def test_notebook_cells_work_after_the_stop_button(reader, monkeypatch, tmp_path):
    def interrupt(history):
        if len(history.epochs) == 2:
            raise KeyboardInterrupt

    reader.set_epochs(4)
    reader.run("recipe = Recipe(")
    with monkeypatch.context() as patch:
        patch.setattr(notebook, "live_curves", lambda _: interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.run("history = fit(model")

    reader.run("notebook.runs.add(splits, history, validation)")
    reader.run("plots.training_metrics({")
    reader.run("splits_by_name = {")
    reader.run("test = evaluate(model")
    reader.run("weights_path = outputs.save_model")
    assert reader.names["history"].best_epoch in (1, 2)
    assert reader.names["identical"]
    assert (tmp_path / "models" / "enhanced_model-digits.pth").exists()

    reader.run("history = fit(model")
    assert len(reader.names["history"].epochs) == 4


@pytest.mark.parametrize("code", SNIPPETS, ids=len)
def test_readme_snippet_runs_as_pasted(code, mnist, tmp_path, monkeypatch, capsys):
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
    for name in ("figures", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setenv("MNIST_ROOT", os.path.abspath(os.environ.get("MNIST_ROOT", ROOT / "data")))
    monkeypatch.chdir(tmp_path)
    exec(code, {})

    if "accuracy)" in code:
        assert float(capsys.readouterr().out.splitlines()[-1]) > 0.975
