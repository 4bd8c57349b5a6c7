"""Helpers for notebooks: parameters, output files, a log of runs, live curves."""

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

DRAWING_SHARE = 0.02  # how much of a training's time may go into drawing live curves


def check_parameters() -> None:
    """Check the parameters that papermill has injected, and that outputs can be written.

    Raises:
        NameError: A parameter is unknown.
        OSError: The outputs cannot be written.
    """
    # A folder that cannot be written to must not be noticed only after the training.
    output_path("models/enhanced_model.pth")
    output_path("figures/training_metrics.png")

    # `papermill -p NAME VALUE` adds a cell after the one that declares the parameters. If no
    # parameter has this name, papermill only warns.
    executed_cells = get_ipython().user_ns["In"]
    for declaring_cell, injected_cell in pairwise(executed_cells):
        if not injected_cell.startswith("# Parameters\n"):
            continue

        known_names = assigned_names(declaring_cell)
        for name in assigned_names(injected_cell):
            if name not in known_names:
                raise NameError(
                    f"unknown parameter {name!r}: expected one of {', '.join(known_names)}."
                )


def assigned_names(source: str) -> list[str]:
    """Return the names to which a cell assigns values."""
    names = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names.append(statement.targets[0].id)
    return names


def banner(splits: Splits) -> HTML:
    """Return a line that says which data set was loaded, so that nobody mistakes it for MNIST."""
    n_images = len(splits.train) + len(splits.validation) + len(splits.test)
    if splits.name == "mnist":
        return HTML(f"<b>Data: MNIST</b>, {n_images:,} images, every file verified by its SHA-256.")

    return HTML(
        '<div style="border: 4px solid #D55E00; padding: 12px; font-size: 120%; color: #D55E00">'
        f"<b>NOT MNIST. Every number and figure below is about <code>{splits.name}</code>, "
        f"{n_images:,} images.</b><br>{html.escape(splits.warning)}</div>"
    )


def output_path(name: str) -> Path:
    """Return the path for a file to be written, in `$MNIST_MLP_OUTPUT` or else the repository.

    The folder is created if it does not exist.

    Args:
        name: The path within the repository, such as "models/enhanced_model.pth".

    Raises:
        OSError: The folder cannot be written to.
    """
    root = os.environ.get("MNIST_MLP_OUTPUT") or repo_root()
    path = Path(root) / name

    # Permissions do not tell whether a disk is read-only, so try it.
    probe = path.with_name(f".{path.name}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("?")
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Make its folder writable.") from error

    return path


def published(name: str) -> Path:
    """Return the path of a file in the repository, such as "models/conv_net.pth"."""
    return repo_root() / name


def save_figure(name: str) -> None:
    """Save the current figure as `figures/NAME.png`."""
    plt.gcf().savefig(output_path(f"figures/{name}.png"))


class Outputs:
    """The files that one training writes.

    A complete training with the published recipe on MNIST writes the published files. Any other
    training writes files of its own: "-tweaked" or the name of the data set is added to the name.

    Attributes:
        published: Whether this training writes the published files.
        suffix: What is added to the names of the files: "", "-tweaked" or, for example, "-digits".
    """

    def __init__(self, splits: Splits, history: History):
        self.splits = splits
        self.history = history

        is_complete = not history.stopped
        is_default = history.recipe == Recipe()
        self.published = splits.name == "mnist" and is_default and is_complete

        if self.published:
            self.suffix = ""
        elif splits.name == "mnist":
            self.suffix = "-tweaked"
        else:
            self.suffix = f"-{splits.name}"

    def save_figure(self, name: str) -> None:
        """Save the current figure as `figures/NAME.png`, with the suffix after the name."""
        save_figure(f"{name}{self.suffix}")

    def save_model(self, model: nn.Module, test: Evaluation) -> Path:
        """Save the weights and a card that records how they were made; return the weights' path."""
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
    """Return a table that compares two models, one row per data set.

    Args:
        before: The evaluations of the first model, by the name of the data set.
        after: Those of the second model, on the same images and under the same names.
    """
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
    """One training in a notebook: its settings, its history and its evaluation."""

    dataset: str
    settings: dict
    history: History
    validation: Evaluation


class RunLog:
    """The trainings in a notebook, to be compared on the validation set."""

    def __init__(self):
        self._runs: dict[str, Run] = {}

    def add(self, dataset: str, history: History, validation: Evaluation) -> None:
        """Add a run. It replaces an earlier run of the same recipe on the same data set."""
        settings = {"dataset": dataset}
        settings.update(history.recipe.asdict())
        if history.stopped:
            settings["epochs"] = f"{len(history.epochs)} of {settings['epochs']}"

        self._runs[repr(settings)] = Run(dataset, settings, history, validation)

    def clear(self) -> None:
        """Remove all runs; the next one is the first."""
        self._runs.clear()

    def histories(self) -> dict[str, History]:
        """Return the history of each run by its name, which says how it differs from the first."""
        return {name: run.history for name, run in self._named_runs().items()}

    def table(self) -> pd.DataFrame:
        """Return a table that compares each run with the first run on the same data set."""
        first_runs: dict[str, Run] = {}
        rows = {}
        for name, run in self._named_runs().items():
            row = {
                "epochs": len(run.history.epochs),
                "seconds": f"{run.history.seconds:.0f}",
                "validation accuracy": f"{run.validation.accuracy:.2%}",
                "difference to the first run, in points [95%]": "",
                "verdict": "",
            }

            if run.dataset in first_runs:
                first_correct = first_runs[run.dataset].validation.correct
                comparison = compare(first_correct, run.validation.correct)
                row["difference to the first run, in points [95%]"] = str(comparison)
                row["verdict"] = comparison.verdict
            else:
                first_runs[run.dataset] = run

            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def _named_runs(self) -> dict[str, Run]:
        runs = list(self._runs.values())
        named_runs = {}
        for number, run in enumerate(runs, start=1):
            changes = []
            for setting, value in run.settings.items():
                if value != runs[0].settings[setting]:
                    changes.append(f"{setting}={value}")

            name = f"run {number}"
            if changes:
                name += f" ({', '.join(changes)})"
            named_runs[name] = run
        return named_runs


# Here and not in a cell, so that "Run all cells" does not empty it.
runs = RunLog()


def live_curves(earlier: Mapping[str, History] | None = None) -> Callable[[History], None]:
    """Return a function for `fit(on_epoch=...)` that shows the curves so far in a notebook.

    Epochs are skipped so that drawing takes about 2% of the time. After the last epoch the figure
    disappears, because the notebook draws the final one. It stays if the training is interrupted.
    Outside a notebook nothing is shown.

    Args:
        earlier: The histories of other runs by name, drawn below this one.

    Example:
        >>> watch = live_curves(runs.histories())
        >>> fit(model, splits.train, splits.validation, recipe, on_epoch=watch)
    """
    is_in_notebook = getattr(get_ipython(), "kernel", None) is not None
    if not is_in_notebook:
        return lambda history: None

    handle = display(HTML(""), display_id=True)
    began = time.perf_counter()
    drawing_seconds = 0.0

    def draw(history: History) -> None:
        nonlocal drawing_seconds
        start = time.perf_counter()

        is_last_epoch = len(history.epochs) == history.recipe.epochs
        if is_last_epoch:
            handle.update(HTML(""))
            return

        if drawing_seconds > DRAWING_SHARE * (start - began):
            return

        curves = dict(earlier or {})
        curves["this run"] = history
        axes = training_metrics(curves)
        figure = axes[0].figure
        handle.update(figure)
        plt.close(figure)  # else the cell would show it a second time when it ends
        drawing_seconds += time.perf_counter() - start

    return draw
