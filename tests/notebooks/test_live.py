"""The curves that are drawn while a training runs, in a kernel of their own."""

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

from mnist_mlp import Recipe
from mnist_mlp.notebook import live
from mnist_mlp.recipe import History

CODE = """
import time
from mnist_mlp.notebook import live
from mnist_mlp.recipe import History, Recipe

epoch = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}
live.SHARE = 10.0
history = History(Recipe(epochs=4))
draw = live.live_curves({"before": History(Recipe(), [epoch] * 4)})
for _ in range(EPOCHS):
    history.epochs.append(epoch)
    draw(history)
"""


@pytest.mark.parametrize(("epochs", "drawn", "left"), [(2, 2, True), (4, 3, False)])
def test_a_notebook_shows_one_figure_after_each_epoch_until_the_training_is_complete(
    epochs, drawn, left
):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(CODE.replace("EPOCHS", str(epochs)))]
    shown = []

    class Watching(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "update_display_data":
                shown.append("image/png" in msg["content"]["data"])
            return super().process_message(msg, cell, cell_index)

    Watching(notebook, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    assert sum(shown) == drawn
    (output,) = notebook.cells[0].outputs
    assert ("image/png" in output.data) is left


def test_drawing_takes_a_fiftieth_of_the_time(monkeypatch):
    """With a clock of our own, on which an epoch takes 1 s and a figure 0.1 s."""
    now, figures = [0.0], []

    class Kernel:
        kernel = True

        def update(self, what):
            pass

    def figure(runs):
        now[0] += 0.1
        figures.append(now[0])
        return real(runs)

    real = live.training_metrics
    monkeypatch.setattr(live, "get_ipython", Kernel)
    monkeypatch.setattr(live, "display", lambda *args, **kwargs: Kernel())
    monkeypatch.setattr(live, "training_metrics", figure)
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    epoch = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}
    history = History(Recipe(epochs=200))
    draw = live.live_curves()
    for _ in range(199):
        now[0] += 1.0
        history.epochs.append(epoch)
        draw(history)
    assert 0.01 < 0.1 * len(figures) / now[0] <= 0.021


def test_outside_of_a_notebook_nothing_is_shown(capsys):
    draw = live.live_curves()
    assert draw(History(Recipe(epochs=3), [{}])) is None
    assert capsys.readouterr() == ("", "")
