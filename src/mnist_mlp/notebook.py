"""What only a notebook needs: its parameters, where it writes, and the log of its runs."""

import ast
import html
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from mnist_mlp.data import Splits, home
from mnist_mlp.evaluate import Evaluation, compare
from mnist_mlp.train import History, check_settings, default_settings


def recipe(namespace: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the keyword arguments of `fit` found among a notebook's variables, checked.

    `namespace`: the notebook's `globals()`. To be called where the recipe is used, so that what was
    changed in the parameters cell counts. Raises what `check_settings` raises, and NameError if
    papermill has injected a parameter (`papermill -p NAME VALUE`) that the parameters cell does not
    have: papermill only warns.
    """
    settings = {name: namespace[name] for name in default_settings()}
    known = ["dataset", *settings]
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):  # so begins the cell that papermill adds
            for name in _assigned(source):
                if name not in known:
                    raise NameError(
                        f"unknown parameter {name!r}: expected one of {', '.join(known)}."
                    )
    check_settings(settings)
    return settings


def _assigned(source: str) -> list[str]:
    """Return the names that a cell assigns to."""
    statements = [s for s in ast.parse(source).body if isinstance(s, ast.Assign)]
    return [target.id for s in statements for target in s.targets if isinstance(target, ast.Name)]


def banner(splits: Splits) -> str:
    """Return, as HTML, which data these are, so that nobody takes another data set for MNIST."""
    count = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    if splits.name == "mnist":
        return f"<b>Data: MNIST</b>, {count:,} images, every file verified by its SHA-256."
    return (
        '<div style="border: 4px solid #D55E00; padding: 12px; font-size: 120%; color: #D55E00">'
        f"<b>NOT MNIST. Every number and figure below is about <code>{splits.name}</code>, "
        f"{count:,} images.</b><br>{html.escape(splits.note)}</div>"
    )


def is_published(dataset: str, settings: dict) -> bool:
    """Return whether this is the published recipe on MNIST."""
    return dataset == "mnist" and settings == default_settings()


def variant(dataset: str, history: History) -> str:
    """Return "" for a whole run of the published recipe on MNIST, else what makes it another."""
    if is_published(dataset, history.settings) and not history.interrupted:
        return ""
    return "tweaked" if dataset == "mnist" else dataset


def finished(history: History) -> History:
    """Return the history of a trial, or end the cell if it was interrupted."""
    if history.interrupted:
        raise KeyboardInterrupt("the trials were interrupted; run this cell again to repeat them")
    return history


def output(name: str, variant: str = "") -> Path:
    """Return where to write a file, say "figures/a.png".

    In the repository, or in the folder `$MNIST_MLP_OUTPUT`; a `variant` is added to its name, so
    that nothing else is ever taken for the published files. Raises OSError now, not after the
    training, if its folder cannot be written to.
    """
    path = Path(os.environ.get("MNIST_MLP_OUTPUT") or home()) / name
    if variant:
        path = path.with_stem(f"{path.stem}-{variant}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.probe").open("w") as probe:
            probe.write("?")
        Path(probe.name).unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Make its folder writable.") from error
    return path


class RunLog:
    """The training runs of this kernel, each judged on the validation set, to be compared."""

    def __init__(self):
        self._runs: dict[tuple, tuple[History, Evaluation]] = {}

    def add(self, dataset: str, history: History, validation: Evaluation) -> None:
        """Add a run. The same settings on the same data set replace the earlier such run."""
        settings = dict(history.settings)
        if history.interrupted:
            settings["epochs"] = f"{len(history.epochs)} of {settings['epochs']}"
        key = (dataset, *settings.items())
        self._runs[key] = (history, validation)

    def clear(self) -> None:
        """Forget all runs: the next one is the first."""
        self._runs.clear()

    def histories(self) -> dict[str, History]:
        """Return each run's history under its name: the settings that it changed in the first."""
        return {self._name(i): history for i, (history, _) in enumerate(self._runs.values())}

    def _name(self, index: int) -> str:
        extras = default_settings(extras=True)  # which a history only has where they were changed
        keys = [extras | dict([("dataset", key[0]), *key[1:]]) for key in self._runs]
        changed = {k: v for k, v in keys[index].items() if v != keys[0].get(k)}
        tweaks = ", ".join(f"{name}={value}" for name, value in changed.items())
        return f"run {index + 1}" + (f" ({tweaks})" if tweaks else "")

    def table(self) -> str:
        """Return the comparison of each run with the first as a Markdown table."""
        rows = [
            "| run | epochs | seconds | validation accuracy "
            "| difference to the first run on these data, in points [95%] | verdict |",
            "|:--|--:|--:|--:|:-:|:--|",
        ]
        firsts: dict[str, Evaluation] = {}  # of each data set
        for index, (key, (history, evaluation)) in enumerate(self._runs.items()):
            difference = verdict = ""
            first = firsts.setdefault(key[0], evaluation)
            if first is not evaluation:
                found = compare(first.correct, evaluation.correct)
                points = [f"{100 * v:+.2f}" for v in (found.difference, found.low, found.high)]
                difference = f"{points[0]} [{points[1]}, {points[2]}]"
                verdict = found.verdict
            rows.append(
                f"| {self._name(index)} | {len(history.epochs)} | {history.seconds:.0f} "
                f"| {evaluation.accuracy:.2%} | {difference} | {verdict} |"
            )
        return "\n".join(rows)


def ladder_table(record: dict) -> str:
    """Return the rungs of `benchmarks/ladder.json` as a Markdown table, each beside another.

    Mean and standard deviation over the seeds; the difference to the rung that it is a step from,
    with the p-values of a t-test paired over the seeds and of McNemar's on the images of seed 0.
    """
    from scipy.stats import ttest_rel

    lines = [
        "| rung | test accuracy | validation | seconds | step from | points | p, seeds "
        "| p, images of seed 0 |",
        "|:--|--:|--:|--:|:--|--:|--:|--:|",
    ]
    n = record["test_images"]
    for name, rung in record["rungs"].items():
        accuracy = [run["test_correct"] / n for run in rung["runs"]]
        validation = mean(run["validation_accuracy"] for run in rung["runs"])
        seconds = mean(run["training_seconds"] for run in rung["runs"])
        compared = " | | | "
        if before := rung["step_from"]:
            others = record["rungs"][before]["runs"]
            earlier = [run["test_correct"] / n for run in others]
            p_seeds = ttest_rel(accuracy, earlier).pvalue
            images = compare(*(right(run, n) for run in (others[0], rung["runs"][0])))
            points = 100 * (mean(accuracy) - mean(earlier))
            compared = f"{before} | {points:+.2f} | {p_seeds:.1g} | {images.p_value:.1g}"
        lines.append(
            f"| {name} | {mean(accuracy):.2%} ± {100 * stdev(accuracy):.2f} "
            f"| {validation:.2%} | {seconds:.0f} | {compared} |"
        )
    return "\n".join(lines)


def right(run: dict, images: int) -> torch.Tensor:
    """Return which test images a run of `benchmarks/ladder.json` has right, bool of shape (N,)."""
    correct = torch.ones(images, dtype=torch.bool)
    correct[run["test_wrong"]] = False
    return correct


runs = RunLog()  # here and not in the notebook, so that "Run all cells" does not forget them
