"""What only a notebook needs: its parameters, its banner and the files that it writes."""

import ast
import html
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
from IPython import get_ipython
from torch import nn

from mnist_mlp.data import Splits
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.research.comparison import compare
from mnist_mlp.storage.files import repo_root
from mnist_mlp.storage.weights import save_weights as save_weights  # also for notebooks


def check_parameters() -> None:
    """Raise NameError for an unknown parameter, OSError if the outputs cannot be written.

    `papermill -p NAME VALUE` adds a cell after the one with the parameters, and only warns about an
    unknown name. The output folders are checked now, not after the training.
    """
    for name in ("models/enhanced_model.pth", "figures/training_metrics.png"):
        output_path(name)
    cells = get_ipython().user_ns["In"]
    for cell, injected in pairwise(cells):
        if injected.startswith("# Parameters\n"):
            known = _assigned(cell)
            for name in _assigned(injected):
                if name not in known:
                    expected = ", ".join(known)
                    raise NameError(f"unknown parameter {name!r}: expected one of {expected}.")


def _assigned(source: str) -> list[str]:
    """Return the names that a cell assigns to."""
    targets = [s.targets[0] for s in ast.parse(source).body if isinstance(s, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def banner(splits: Splits) -> str:
    """Return, as HTML, which data set was loaded, so that nobody mistakes it for MNIST."""
    count = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    if splits.name == "mnist":
        return f"<b>Data: MNIST</b>, {count:,} images, every file verified by its SHA-256."
    return (
        '<div style="border: 4px solid #D55E00; padding: 12px; font-size: 120%; color: #D55E00">'
        f"<b>NOT MNIST. Every number and figure below is about <code>{splits.name}</code>, "
        f"{count:,} images.</b><br>{html.escape(splits.note)}</div>"
    )


def output_path(name: str) -> Path:
    """Return where to write a file, in the repository or in `$MNIST_MLP_OUTPUT`.

    Raises OSError if its folder cannot be written to.
    """
    path = Path(os.environ.get("MNIST_MLP_OUTPUT") or repo_root()) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.probe").open("w") as probe:
            probe.write("?")
        Path(probe.name).unlink()
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
    """The files of one training run.

    A complete run of the published recipe on MNIST writes the published files. Any other run adds
    "-tweaked" or the name of its data set to their names.
    """

    def __init__(self, splits: Splits, history: History):
        self.splits, self.history = splits, history
        self.published = history.recipe == Recipe() and not history.stopped
        self.suffix = "" if self.published else "-tweaked"
        if splits.name != "mnist":
            self.published, self.suffix = False, f"-{splits.name}"

    def save_figure(self, name: str) -> None:
        """Save the current figure as `figures/NAME.png`, with the suffix if there is one."""
        save_figure(f"{name}{self.suffix}")

    def save_model(self, model: nn.Module, test: Evaluation) -> Path:
        """Save the weights, with a card that says how they were made; return their path."""
        path, history = output_path(f"models/enhanced_model{self.suffix}.pth"), self.history
        card = {
            "dataset": self.splits.name,
            "mean": self.splits.test.mean,
            "std": self.splits.test.std,
        }
        card |= {"classes": test.classes, "recipe": history.recipe.asdict()}
        card |= {"best_epoch": history.best_epoch, "epochs_done": len(history.epochs)}
        card |= {"validation_accuracy": history.validation_accuracy, "test_correct": test.n_correct}
        card |= {"test_images": len(test.labels), "training_seconds": round(history.seconds, 1)}
        save_weights(model, path, **card)
        return path


def comparison_table(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]) -> str:
    """Return the accuracy of two models on the same data sets, by name, as a Markdown table."""
    rows = ["| data | before | after | difference in points [95%] |", "|:--|--:|--:|:-:|"]
    for name in before:
        one, other = before[name], after[name]
        counts = [f"{e.n_correct:,} of {len(e.labels):,}" for e in (one, other)]
        rows.append(f"| {name} | {' | '.join(counts)} | {compare(one.correct, other.correct)} |")
    return "\n".join(rows)


class RunLog:
    """The training runs of a notebook, each evaluated on the validation set, to be compared."""

    def __init__(self):
        self._runs: dict[str, tuple[str, dict, History, Evaluation]] = {}

    def add(self, dataset: str, history: History, validation: Evaluation) -> None:
        """Add a run. It replaces an earlier run of the same recipe on the same data set."""
        settings = {"dataset": dataset} | history.recipe.asdict()
        if history.stopped:
            settings["epochs"] = f"{len(history.epochs)} of {settings['epochs']}"
        self._runs[repr(settings)] = dataset, settings, history, validation

    def clear(self) -> None:
        """Forget all runs; the next one is the first."""
        self._runs.clear()

    def histories(self) -> dict[str, History]:
        """Return each run's history by its name: what it changes in the recipe of the first."""
        return {self._name(i): history for i, (*_, history, _) in enumerate(self._runs.values())}

    def _name(self, index: int) -> str:
        recipes = [settings for _, settings, *_ in self._runs.values()]
        changes = [f"{k}={v}" for k, v in recipes[index].items() if v != recipes[0][k]]
        return f"run {index + 1}" + (f" ({', '.join(changes)})" if changes else "")

    def table(self) -> str:
        """Return the comparison of each run with the first on its data set, in Markdown."""
        rows = [
            "| run | epochs | seconds | validation accuracy "
            "| difference to the first run on these data, in points [95%] | verdict |",
            "|:--|--:|--:|--:|:-:|:--|",
        ]
        first: dict[str, Evaluation] = {}  # of each data set
        for index, (dataset, _, history, validation) in enumerate(self._runs.values()):
            difference = verdict = ""
            if first.setdefault(dataset, validation) is not validation:
                found = compare(first[dataset].correct, validation.correct)
                difference, verdict = str(found), found.verdict
            rows.append(
                f"| {self._name(index)} | {len(history.epochs)} | {history.seconds:.0f} "
                f"| {validation.accuracy:.2%} | {difference} | {verdict} |"
            )
        return "\n".join(rows)


runs = RunLog()  # in a module and not in the notebook, so that "Run all cells" keeps it
