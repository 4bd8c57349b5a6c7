"""Helpers for notebooks: parameters, output files, a log of runs, live curves."""

import ast
import copy
import html
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import HTML, display
from torch import nn

from mnist_mlp.checkpoint import save_weights
from mnist_mlp.comparison import compare
from mnist_mlp.data import Splits
from mnist_mlp.datasets import load
from mnist_mlp.evaluation import Evaluation, evaluate
from mnist_mlp.files import atomic_write, repo_root
from mnist_mlp.files import published as published  # for notebooks
from mnist_mlp.identity import describe_training, sha256_of_datasets
from mnist_mlp.model import EnhancedNet
from mnist_mlp.plots import training_metrics
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.train import fit

# Live curves are drawn at most once in so many seconds, and take at most this share of the time.
SECONDS_BETWEEN_DRAWINGS = 1.0
DRAWING_SHARE = 0.1

# Entries of a training's identity that may name one of the user's own functions, such as
# "torch.optim.sgd.SGD (5c9a2b0f6d31)".
FUNCTIONS = ("optimizer", "schedule", "loss_fn", "augment")


def check_parameters() -> None:
    """Check the parameters that papermill has injected, and that outputs can be written.

    Outside IPython there are no injected parameters, so only the outputs are checked.

    Raises:
        NameError: A parameter is unknown.
        OSError: The outputs cannot be written.
    """
    # A folder that cannot be written to must not be noticed only after the training.
    output_path("models/enhanced_model.pth")
    output_path("figures/training_metrics.png")

    shell = get_ipython()
    if shell is None:
        return

    # `papermill -p NAME VALUE` adds a cell after the one that declares the parameters. If no
    # parameter has this name, papermill only warns.
    executed_cells = shell.user_ns["In"]
    injected_names = []
    known_names = []
    for source in executed_cells:
        if source.startswith("# Parameters\n"):
            injected_names += assigned_names(source)
        else:
            known_names += assigned_names(source)

    for name in injected_names:
        if name not in known_names:
            expected = ", ".join(dict.fromkeys(known_names))
            raise NameError(f"unknown parameter {name!r}: expected one of {expected}.")


def assigned_names(source: str) -> list[str]:
    """Return the names to which a cell assigns values; none if the cell is not valid Python."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # the cell did not run either
        return []

    names = []
    for statement in statements:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.append(node.id)
    return names


def banner(splits: Splits) -> HTML:
    """Return a line that says which data set was loaded, so that nobody mistakes it for MNIST."""
    n_images = len(splits.train) + len(splits.validation) + len(splits.test)
    if splits.name == "mnist":
        return HTML(f"<b>Data: MNIST</b>, {n_images:,} images, every file verified by its SHA-256.")

    name = html.escape(splits.name)
    return HTML(
        '<div style="border: 4px solid #D55E00; padding: 12px; font-size: 120%; color: #D55E00">'
        f"<b>NOT MNIST. Every number and figure below is about <code>{name}</code>, "
        f"{n_images:,} images.</b><br>{html.escape(splits.warning)}</div>"
    )


def output_path(name: str) -> Path:
    """Return the path for a file to be written, in `$MNIST_MLP_OUTPUT` or else the repository.

    An installed package writes to the working directory instead of the repository. The folder is
    created if it does not exist.

    Args:
        name: The path within the repository, such as "models/enhanced_model.pth".

    Raises:
        OSError: The folder cannot be written to.
    """
    root = os.environ.get("MNIST_MLP_OUTPUT") or repo_root()
    path = Path(root).expanduser() / name

    # Permissions do not tell whether a disk is read-only or lacks a call that `atomic_write` needs,
    # so try it.
    probe = path.with_name(f".{path.name}.probe")
    try:
        with atomic_write(probe) as temporary:
            temporary.write_text("?")
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Make its folder writable.") from error

    return path


def save_figure(name: str) -> None:
    """Save the current figure as `figures/NAME.png`.

    Raises:
        RuntimeError: There is no figure: it was shown in another cell.
    """
    if not plt.get_fignums() or not plt.gcf().axes:
        raise RuntimeError(
            f"there is no figure to save as {name!r}: save it in the cell that draws it."
        )
    with atomic_write(output_path(f"figures/{name}.png")) as temporary:
        plt.gcf().savefig(temporary, format="png")


def is_published_training(splits: Splits, history: History) -> bool:
    """Return whether this training gives the weights in models/enhanced_model.pth.

    It must be complete, and its identity must be that of the published training: `EnhancedNet` with
    the initial weights of seed 0, the default recipe, and all of MNIST. The name of the data set
    does not tell this: a subset of MNIST has the same name.
    """
    is_complete = len(history.epochs) == Recipe().epochs
    if splits.name != "mnist" or history.recipe != Recipe() or not is_complete:
        return False

    try:
        mnist = load("mnist", download=False)
    except FileNotFoundError:  # so these splits are not MNIST's
        return False
    if sha256_of_datasets([splits.test]) != sha256_of_datasets([mnist.test]):
        return False

    # The user's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = EnhancedNet()

    published_identity = describe_training(
        model,
        train_sets=[mnist.train],
        validation=mnist.validation,
        recipe=Recipe(),
        precision=history.precision,
        functions={"fit": fit},
    )
    return history.identity == published_identity


class Outputs:
    """The files that one training writes.

    The published training, and no other, writes the published files; see `is_published_training`.
    Another network, other initial weights, your own loss, a subset of MNIST or an interrupted
    training writes files of its own: "-tweaked" or the name of the data set is added to the name.

    Args:
        splits: The data set.
        history: What `fit` fills. Create both in one cell: then a training that is interrupted
            cannot write the files of an earlier one.
    """

    def __init__(self, splits: Splits, history: History):
        self.splits = splits
        self.history = history

    @property
    def published(self) -> bool:
        """Whether this training, as far as it has come, writes the published files."""
        return is_published_training(self.splits, self.history)

    @property
    def suffix(self) -> str:
        """What is added to the names of the files: "", "-tweaked" or, for example, "-digits"."""
        if self.published:
            return ""
        if self.splits.name == "mnist":
            return "-tweaked"
        return f"-{self.splits.name}"

    def save_figure(self, name: str) -> None:
        """Save the current figure as `figures/NAME.png`, with the suffix after the name."""
        save_figure(f"{name}{self.suffix}")

    def save_model(self, model: nn.Module, test: Evaluation) -> Path:
        """Save the weights and a card that records how they were made; return the weights' path.

        Args:
            model: The trained network.
            test: Its evaluation on the test set.

        Raises:
            ValueError: The history is not of a training, or `test` is of other images or of
                another model.
        """
        if not self.history.epochs:
            raise ValueError("the history is empty: give it to fit(..., history=history).")
        if not torch.equal(test.labels, self.splits.test.labels):
            raise ValueError("test must be the evaluation of splits.test: the labels differ.")
        if not torch.allclose(evaluate(model, self.splits.test).logits, test.logits, atol=1e-3):
            raise ValueError("test must be the evaluation of this model: the logits differ.")
        path = output_path(f"models/enhanced_model{self.suffix}.pth")
        history = self.history

        # The user's own functions took the place of what the recipe names.
        recipe = history.recipe.asdict()
        for name in FUNCTIONS:
            if name in history.identity:
                recipe[name] = history.identity[name]

        save_weights(
            model,
            path,
            dataset=self.splits.name,
            recipe=recipe,
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
        if not torch.equal(before[name].labels, after[name].labels):
            raise ValueError(
                f"{name!r} must be the same images before and after: the labels differ."
            )
        difference = compare(before[name].correct, after[name].correct)
        rows[name] = {
            "before": f"{before[name].n_correct:,} of {len(before[name].labels):,}",
            "after": f"{after[name].n_correct:,} of {len(after[name].labels):,}",
            "difference in points [95%]": str(difference),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# Entries of a training's identity that are too long to show, and what to say if they differ.
DIGESTS = {
    "network": "other network",
    "initial weights (SHA-256)": "other initial weights",
    "data (SHA-256)": "other data",
    "fit": "other code of fit",
}


def describe_differences(settings: Mapping, reference: Mapping) -> list[str]:
    """Return in a few words each how the settings of a run differ from those of another run."""
    names = {**reference, **settings}
    differing = [name for name in names if settings.get(name) != reference.get(name)]

    # What follows from another difference is not said.
    consequences = {"network": "initial weights (SHA-256)", "dataset": "data (SHA-256)"}
    for cause, consequence in consequences.items():
        if cause in differing and consequence in differing:
            differing.remove(consequence)

    descriptions = []
    for name in differing:
        value: Any = settings.get(name)
        if name in DIGESTS:
            descriptions.append(DIGESTS[name])
        elif name in FUNCTIONS and value is None:
            descriptions.append(f"the recipe's {name}")
        elif name in FUNCTIONS:
            path, _, _ = value.partition(" (")
            descriptions.append(f"{name}={path.split('.')[-1]}")
        else:
            descriptions.append(f"{name}={value}")
    return descriptions


@dataclass
class Run:
    """One training in a notebook.

    Attributes:
        settings: The data set's name, and the training's identity with the number of its epochs.
        history: The metrics of each epoch.
        validation: The evaluation of the trained model on the validation images.
        validation_images: The SHA-256 of these images. Only runs with the same can be compared.
    """

    settings: dict
    history: History
    validation: Evaluation
    validation_images: str

    @property
    def is_complete(self) -> bool:
        """Whether all epochs of the recipe were trained."""
        return len(self.history.epochs) == self.history.recipe.epochs


class RunLog:
    """The trainings in a notebook, to be compared on the validation set."""

    def __init__(self):
        self._runs: dict[str, Run] = {}

    def add(self, splits: Splits, history: History, validation: Evaluation) -> None:
        """Add a run. It replaces an earlier run of the same training.

        Args:
            splits: The data set that the model was trained on.
            history: What `fit` has returned.
            validation: The evaluation of the model on `splits.validation`.

        Raises:
            ValueError: The history is not of a training, or `validation` is of other images.
        """
        if not history.epochs:
            raise ValueError("the history is empty: add what fit has returned.")
        if not torch.equal(validation.labels, splits.validation.labels):
            raise ValueError(
                "validation must be the evaluation of splits.validation: the labels differ."
            )
        history = copy.deepcopy(history)  # `fit` may fill the same one again
        settings = {
            "dataset": splits.name,
            **history.recipe.asdict(),
            **history.identity,
        }
        run = Run(settings, history, validation, sha256_of_datasets([splits.validation]))
        if not run.is_complete:
            settings["epochs"] = f"{len(history.epochs)} of {history.recipe.epochs}"

        self._runs[repr(settings)] = run

    def clear(self) -> None:
        """Remove all runs; the next one is the first."""
        self._runs.clear()

    def histories(self) -> dict[str, History]:
        """Return the history of each run by its name.

        The name says how the run differs from the first complete one.
        """
        return {name: run.history for name, run in self._named_runs().items()}

    def table(self) -> pd.DataFrame:
        """Return a table that compares each run with the first complete run on the same images."""
        references: dict[str, Run] = {}
        for run in self._runs.values():
            if run.is_complete and run.validation_images not in references:
                references[run.validation_images] = run

        rows = {}
        for name, run in self._named_runs().items():
            row = {
                "epochs": len(run.history.epochs),
                "seconds": f"{run.history.seconds:.0f}",
                "validation accuracy": f"{run.validation.accuracy:.2%}",
                "difference to the first complete run, in points [95%]": "",
                "verdict": "",
            }

            reference = references.get(run.validation_images, run)
            if run is not reference:
                comparison = compare(reference.validation.correct, run.validation.correct)
                row["difference to the first complete run, in points [95%]"] = str(comparison)
                row["verdict"] = comparison.verdict

            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def _named_runs(self) -> dict[str, Run]:
        runs = list(self._runs.values())
        complete_runs = [run for run in runs if run.is_complete]
        candidates = complete_runs or runs

        named_runs = {}
        for number, run in enumerate(runs, start=1):
            name = f"run {number}"
            changes = describe_differences(run.settings, candidates[0].settings)
            if changes:
                name += f" ({', '.join(changes)})"
            named_runs[name] = run
        return named_runs


# Here and not in a cell, so that "Run all cells" does not empty it.
runs = RunLog()


def live_curves(earlier: Mapping[str, History] | None = None) -> Callable[[History], None]:
    """Return a function for `fit(on_epoch=...)` that shows the curves so far in a notebook.

    They are drawn at most once per second, and less often if drawing takes long. After the last
    epoch the figure disappears, because the notebook draws the final one. If the training ends
    earlier, the figure stays and shows all complete epochs. Outside a notebook nothing is shown.

    Args:
        earlier: The histories of other runs by name, drawn below this one.

    Example:
        >>> watch = live_curves(runs.histories())
        >>> fit(model, splits.train, splits.validation, recipe, on_epoch=watch)
    """
    shell = get_ipython()
    is_in_notebook = getattr(shell, "kernel", None) is not None
    if not is_in_notebook:
        return lambda history: None

    return LiveCurves(shell, earlier or {})


class LiveCurves:
    """The function that `live_curves` returns.

    Args:
        shell: The notebook's IPython shell.
        earlier: The histories of other runs by name.
    """

    def __init__(self, shell: Any, earlier: Mapping[str, History]):
        self.shell = shell
        self.earlier = earlier
        self.handle = display(HTML(""), display_id=True)
        self.history: History | None = None  # of the training that is running
        self.epochs_drawn = 0
        self.next_drawing = 0.0  # in seconds, as `time.perf_counter` counts

    def __call__(self, history: History) -> None:
        """Draw the curves if it is time to; remove them after the last epoch."""
        if self.history is None:
            self.shell.events.register("post_run_cell", self.end_of_cell)
        self.history = history

        is_last_epoch = len(history.epochs) == history.recipe.epochs
        if is_last_epoch:
            self.handle.update(HTML(""))
            self.epochs_drawn = len(history.epochs)
        elif time.perf_counter() >= self.next_drawing:
            self.draw(history)

    def draw(self, history: History) -> None:
        """Draw the curves of all complete epochs in place of the last figure."""
        start = time.perf_counter()
        axes = training_metrics({**self.earlier, "this run": history})
        figure = axes[0].figure
        self.handle.update(figure)
        plt.close(figure)  # else the cell would show it a second time when it ends
        self.epochs_drawn = len(history.epochs)

        end = time.perf_counter()
        pause = (end - start) / DRAWING_SHARE
        self.next_drawing = end + max(SECONDS_BETWEEN_DRAWINGS, pause)

    def end_of_cell(self, result: object) -> None:
        """Draw the epochs that are still missing if the training did not reach its last one."""
        self.shell.events.unregister("post_run_cell", self.end_of_cell)
        history = self.history
        self.history = None
        if history is not None and len(history.epochs) > self.epochs_drawn:
            self.draw(history)
