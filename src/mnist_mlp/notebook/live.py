"""Learning curves that are drawn again while a training runs."""

import time
from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import HTML, display

from mnist_mlp.plots import training_metrics
from mnist_mlp.recipe import History

SHARE = 0.02  # of the time that drawing may take


def live_curves(earlier: Mapping[str, History] | None = None) -> Callable[[History], None]:
    """Return a function for `fit(on_epoch=...)` that shows the curves so far in a notebook.

    `earlier`: other runs' histories by name, drawn underneath. Drawing takes at most a fiftieth of
    the time. After the last epoch the figure disappears, because the notebook draws the final one;
    it stays if the training is interrupted. Outside of a notebook nothing is shown.
    """
    if getattr(get_ipython(), "kernel", None) is None:
        return lambda history: None
    handle, spent, began = display(HTML(""), display_id=True), 0.0, time.perf_counter()

    def draw(history: History) -> None:
        nonlocal spent
        started = time.perf_counter()
        if len(history.epochs) == history.recipe.epochs:
            handle.update(HTML(""))
        elif spent <= SHARE * (started - began):
            axes = training_metrics({**(earlier or {}), "this run": history})
            handle.update(axes[0].figure)
            plt.close(axes[0].figure)
            spent += time.perf_counter() - started

    return draw
