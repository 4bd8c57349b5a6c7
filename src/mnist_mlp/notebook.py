"""What only a notebook needs: parameters, outputs, the log of runs, live curves."""

import ast
import html
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, display
from torch import nn

from mnist_mlp.checkpoint import save_weights
from mnist_mlp.comparison import compare
from mnist_mlp.data import Splits
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.files import repo_root
from mnist_mlp.plots import training_metrics
from mnist_mlp.recipe import History, Recipe

DRAWING_SHARE = 0.02  # of the training time that drawing live curves may take


def check_parameters() -> None:
    """Check the parameters that papermill has injected, and that outputs can be written.

    `papermill -p NAME VALUE` adds a cell after the one with the parameters, and only warns about
    an unknown name. The output folders are checked now, not after the training.

    Raises:
        NameError: A parameter is unknown.
        OSError: The outputs cannot be written.
    """
    output_path("models/enhanced_model.pth")
    output_path("figures/training_metrics.png")

    cells = get_ipython().user_ns["In"]
    for cell, injected in pairwise(cells):
        if not injected.startswith("# Parameters\n"):
            continue
        known = assigned_names(cell)
        for name in assigned_names(injected):
            if name not in known:
                raise NameError(f"unknown parameter {name!r}: expected one of {', '.join(known)}.")


def assigned_names(source: str) -> list[str]:
    """Return the names that a cell assigns to."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    targets = [assignment.targets[0] for assignment in assignments]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def banner(splits: Splits) -> HTML:
    """Return a line that says which data set was loaded, so that nobody mistakes it for MNIST."""
    count = len(splits.train) + len(splits.validation) + len(splits.test)
    if splits.name == "mnist":
        return HTML(f"<b>Data: MNIST</b>, {count:,} images, every file verified by its SHA-256.")
    return HTML(
        '<div style="border: 4px solid #D55E00; padding: 12px; font-size: 120%; color: #D55E00">'
        f"<b>NOT MNIST. Every number and figure below is about <code>{splits.name}</code>, "
        f"{count:,} images.</b><br>{html.escape(splits.warning)}</div>"
    )


def output_path(name: str) -> Path:
    """Return where to write a file, in the repository or in `$MNIST_MLP_OUTPUT`.

    Raises:
        OSError: Its folder cannot be written to.
    """
    path = Path(os.environ.get("MNIST_MLP_OUTPUT") or repo_root()) / name
    probe = path.parent / f".{path.name}.probe"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("?")
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Make its folder writable.") from error
    return path


def published(name: str) -> Path:
    """Return the path of a file of the repository, for example "models/conv_net.pth"."""
    return repo_root() / name


def save_figure(name: str) -> None:
    """Save the current figure as `figures/NAME.png`."""
    plt.gcf().savefig(output_path(f"figures/{name}.png"))


class Outputs:
    """The files of one training.

    A complete training with the published recipe on MNIST writes the published files. Any other
    one adds "-tweaked" or the name of its data set to their names.
    """

    def __init__(self, splits: Splits, history: History):
        self.splits = splits
        self.history = history

        is_default = history.recipe == Recipe() and not history.stopped
        self.published = splits.name == "mnist" and is_default
        if self.published:
            self.suffix = ""
        elif splits.name == "mnist":
            self.suffix = "-tweaked"
        else:
            self.suffix = f"-{splits.name}"

    def save_figure(self, name: str) -> None:
        """Save the current figure as `figures/NAME.png`, with the suffix if there is one."""
        save_figure(f"{name}{self.suffix}")

    def save_model(self, model: nn.Module, test: Evaluation) -> Path:
        """Save the weights, with a card that says how they were made; return their path."""
        path = output_path(f"models/enhanced_model{self.suffix}.pth")
        history = self.history
        save_weights(
            model,
            path,
            dataset=self.splits.name,
            classes=test.classes,
            recipe=history.recipe.asdict(),
            precision=history.precision,
            best_epoch=history.best_epoch,
            epochs_done=len(history.epochs),
            validation_accuracy=history.validation_accuracy,
            test_correct=test.n_correct,
            test_images=len(test.labels),
            training_seconds=round(history.seconds, 1),
        )
        return path


def comparison_table(
    before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]
) -> pd.DataFrame:
    """Return the accuracy of two models on the same data sets, which are given by name."""
    rows = {}
    for name in before:
        difference = compare(before[name].correct, after[name].correct)
        rows[name] = {
            "before": f"{before[name].n_correct:,} of {len(before[name].labels):,}",
            "after": f"{after[name].n_correct:,} of {len(after[name].labels):,}",
            "difference in points [95%]": str(difference),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass
class Run:
    """One training of a notebook: its settings, its history, and its evaluation."""

    dataset: str
    settings: dict
    history: History
    validation: Evaluation


class RunLog:
    """The trainings of a notebook, each evaluated on the validation set, to be compared."""

    def __init__(self):
        self._runs: dict[str, Run] = {}

    def add(self, dataset: str, history: History, validation: Evaluation) -> None:
        """Add a run. It replaces an earlier run of the same recipe on the same data set."""
        settings = {"dataset": dataset, **history.recipe.asdict()}
        if history.stopped:
            settings["epochs"] = f"{len(history.epochs)} of {settings['epochs']}"
        self._runs[repr(settings)] = Run(dataset, settings, history, validation)

    def clear(self) -> None:
        """Forget all runs; the next one is the first."""
        self._runs.clear()

    def histories(self) -> dict[str, History]:
        """Return the history of each run by its name: what it changes in the first recipe."""
        return dict(zip(self._names(), [run.history for run in self._runs.values()], strict=True))

    def _names(self) -> list[str]:
        names = []
        runs = list(self._runs.values())
        for number, run in enumerate(runs, start=1):
            first = runs[0].settings
            changes = [f"{k}={v}" for k, v in run.settings.items() if v != first[k]]
            names.append(f"run {number} ({', '.join(changes)})" if changes else f"run {number}")
        return names

    def table(self) -> pd.DataFrame:
        """Return the comparison of each run with the first on its data set."""
        first_on: dict[str, Evaluation] = {}
        rows = {}
        for name, run in zip(self._names(), self._runs.values(), strict=True):
            row = {
                "epochs": len(run.history.epochs),
                "seconds": f"{run.history.seconds:.0f}",
                "validation accuracy": f"{run.validation.accuracy:.2%}",
                "difference to the first run, in points [95%]": "",
                "verdict": "",
            }
            if run.dataset in first_on:
                comparison = compare(first_on[run.dataset].correct, run.validation.correct)
                row["difference to the first run, in points [95%]"] = str(comparison)
                row["verdict"] = comparison.verdict
            else:
                first_on[run.dataset] = run.validation
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")


runs = RunLog()  # in a module and not in the notebook, so that "Run all cells" keeps it


def live_curves(earlier: Mapping[str, History] | None = None) -> Callable[[History], None]:
    """Return a function for `fit(on_epoch=...)` that shows the curves so far in a notebook.

    Drawing takes at most a fiftieth of the time. After the last epoch the figure disappears,
    because the notebook draws the final one; it stays if the training is interrupted. Outside of
    a notebook nothing is shown.

    Args:
        earlier: The histories of other runs by name, drawn underneath.
    """
    if getattr(get_ipython(), "kernel", None) is None:
        return lambda history: None

    handle = display(HTML(""), display_id=True)
    began = time.perf_counter()
    drawing_seconds = 0.0

    def draw(history: History) -> None:
        nonlocal drawing_seconds
        start = time.perf_counter()
        if len(history.epochs) == history.recipe.epochs:
            handle.update(HTML(""))
            return
        if drawing_seconds > DRAWING_SHARE * (start - began):
            return

        axes = training_metrics({**(earlier or {}), "this run": history})
        handle.update(axes[0].figure)
        plt.close(axes[0].figure)
        drawing_seconds += time.perf_counter() - start

    return draw
