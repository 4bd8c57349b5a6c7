"""The curves that are drawn while a training runs, in a kernel of their own."""

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

from mnist_mlp import Recipe, notebook
from mnist_mlp.recipe import History

CODE = """
from mnist_mlp import notebook
from mnist_mlp.recipe import History, Recipe

epoch = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}
notebook.DRAWING_SHARE = SHARE
history = History(Recipe(epochs=4))
draw = notebook.live_curves({"before": History(Recipe(), epochs=[epoch] * 4)})
for _ in range(EPOCHS):
    history.epochs.append(epoch)
    draw(history)
"""


@pytest.mark.parametrize(
    ("epochs", "share", "drawn", "left"),
    [
        (2, 10.0, 2, True),
        (4, 10.0, 3, False),  # complete: the notebook draws the final figure itself
        (3, 0.0, 1, True),  # the first figure has used up the time for drawing
    ],
)
def test_live_curves_show_each_epoch_until_the_training_is_complete(epochs, share, drawn, left):
    source = CODE.replace("EPOCHS", str(epochs)).replace("= SHARE", f"= {share}")
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    shown = []

    class Watching(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "update_display_data":
                shown.append("image/png" in msg["content"]["data"])
            return super().process_message(msg, cell, cell_index)

    Watching(document, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    assert sum(shown) == drawn
    (output,) = document.cells[0].outputs
    assert ("image/png" in output.data) is left


def test_live_curves_are_silent_outside_of_a_notebook(capsys):
    draw = notebook.live_curves()
    assert draw(History(Recipe(epochs=3), epochs=[{}])) is None
    assert capsys.readouterr() == ("", "")
