"""Time how long each library takes to reach 98.21% on MNIST, side by side.

`make bench` takes 24 minutes on two cores. It fills two tables: the time to the goal, and the speed
at equal settings. Every row trains once in each of five rounds, in a separate process, so that a
change of the machine's speed affects all rows. The command writes `benchmarks/speed/bench.json`,
draws `figures/time_to_accuracy.png` and prints both tables.

The time to the goal is measured twice: *from the shell*, from the start of the process until it has
printed its accuracy on the test images, as a person who types the command sees it; and *training*,
from the files on disk to the trained network, without imports.

`make tune-baselines` must have run before. It decides how many epochs each row of the first table
needs, from validation images alone and with other seeds, and writes `benchmarks/speed/tuning.json`.

`python benchmarks/speed/bench.py equal --only numpy "JAX, bfloat16"` times a few rows of one table
and records nothing. After `--only` come labels of rows, such as "JAX, bfloat16", or contestants:
"numpy" stands for every row whose contestant it is. With `ATEN_CPU_CAPABILITY=avx2`, all libraries
use only the instructions of a processor with AVX2.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median, stdev
from typing import TypedDict

import numpy as np
import speedrun
import torch
from tqdm import tqdm

from mnist_mlp.data import stratified_split
from mnist_mlp.datasets import default_root, load_mnist
from mnist_mlp.files import write_json
from mnist_mlp.optim import bfloat16_units

HERE = Path(__file__).parent
RECORD = HERE / "bench.json"
TUNING = HERE / "tuning.json"

GOAL = 0.9821
MARGIN = 0.001  # a safety margin: test accuracy may be lower than validation accuracy
N_TRAIN = 55_000
SEEDS = range(100, 105)  # one per round
TUNING_SEEDS = range(5)
SLOW_SECONDS = 100  # a row that trains for longer runs in one round only
TIMEOUT_SECONDS = 900
FAST = "speedrun"
OURS = ("speedrun", "mnist_mlp")  # the contestants that are from this repository


class RowPlan(TypedDict, total=False):
    """What to train for one row of a table.

    Attributes:
        contestant: A key of `baselines.TRAINERS`.
        settings: Keyword arguments of that function, for every training of this row.
        candidates: Further keyword arguments to choose from. `make tune-baselines` takes the first
            candidate that clears the goal, so the fastest come first.
        settings_from: The label of another row with the same optimizer and schedule. The candidate
            that was chosen for it is also used here.
    """

    contestant: str
    settings: dict
    candidates: list[dict]
    settings_from: str


ADAMW_CANDIDATES = [
    {"epochs": 4, "batch_size": 512, "learning_rate": 0.005},
    {"epochs": 5, "batch_size": 512, "learning_rate": 0.005},
    {"epochs": 4, "batch_size": 256, "learning_rate": 0.003},
    {"epochs": 6, "batch_size": 512, "learning_rate": 0.005},
    {"epochs": 5, "batch_size": 256, "learning_rate": 0.003},
]

# The rows of the first table. Smoothed labels save each library an epoch. Keras on JAX is faster
# without bfloat16.
GOAL_ROWS: dict[str, RowPlan] = {
    FAST: {"contestant": "speedrun", "settings": speedrun.SETTINGS},
    "mnist_mlp, Muon": {
        "contestant": "mnist_mlp",
        "candidates": [
            {"epochs": 2, "batch_size": 2048, "learning_rate": 0.15},
            {"epochs": 2, "batch_size": 1536, "learning_rate": 0.12},
            {"epochs": 2, "batch_size": 1024, "learning_rate": 0.08},
            {"epochs": 3, "batch_size": 2048, "learning_rate": 0.1},
            {"epochs": 3, "batch_size": 1024, "learning_rate": 0.06},
        ],
        "settings": {
            "ema_decay": 0.9,
            "optimizer": "muon",
            "weight_decay": 0.2,
            "label_smoothing": 0.1,
        },
    },
    "mnist_mlp, AdamW": {
        "contestant": "mnist_mlp",
        "candidates": ADAMW_CANDIDATES,
        "settings": {"ema_decay": 0.9, "label_smoothing": 0.1},
    },
    "JAX, bfloat16": {
        "contestant": "jax",
        "candidates": ADAMW_CANDIDATES,
        "settings": {"label_smoothing": 0.1, "bfloat16": True},
    },
    "JAX, bfloat16, epochs scanned": {
        "contestant": "jax",
        "settings_from": "JAX, bfloat16",
        "settings": {"label_smoothing": 0.1, "bfloat16": True, "scan": True},
    },
    "torch.compile, bfloat16": {
        "contestant": "torch.compile",
        "settings_from": "JAX, bfloat16",
        "settings": {"label_smoothing": 0.1, "bfloat16": True},
    },
    "Keras on JAX": {
        "contestant": "keras",
        "candidates": ADAMW_CANDIDATES,
        "settings": {"label_smoothing": 0.1, "backend": "jax"},
    },
    "Keras on torch, bfloat16": {
        "contestant": "keras",
        "settings_from": "Keras on JAX",
        "settings": {"label_smoothing": 0.1, "backend": "torch", "bfloat16": True},
    },
    "NumPy": {
        "contestant": "numpy",
        "settings_from": "JAX, bfloat16",
        "settings": {"label_smoothing": 0.1},
    },
    "PyTorch Lightning, DataLoader": {
        "contestant": "lightning",
        "settings_from": "JAX, bfloat16",
        "settings": {"label_smoothing": 0.1, "bfloat16": True},
    },
    "scikit-learn": {
        "contestant": "scikit-learn",
        "candidates": [
            {"epochs": epochs, "batch_size": 200, "learning_rate": 0.001} for epochs in range(1, 26)
        ],
        "settings": {},
    },
    "the usual tutorial": {
        "contestant": "tutorial",
        "candidates": [
            {"epochs": epochs, "batch_size": 64, "learning_rate": 0.001} for epochs in range(1, 21)
        ],
        "settings": {},
    },
}

# These contestants train at a constant rate. So the accuracy after each epoch of a long training is
# that of a shorter training.
CONSTANT_RATE = ("scikit-learn", "tutorial")

# The rows of the second table compare the speed after the first epoch, at the same settings. All
# but ours have a constant learning rate; ours follows its one-cycle schedule.
EQUAL_SETTINGS = {"epochs": 3, "batch_size": 512, "learning_rate": 0.001}
EQUAL_ROWS: dict[str, RowPlan] = {
    "mnist_mlp": {
        "contestant": "mnist_mlp",
        "settings": {"ema_decay": 0.0, "validate": False, "precision": "float32"},
    },
    "JAX": {"contestant": "jax", "settings": {"schedule": "constant"}},
    "JAX, epochs scanned": {
        "contestant": "jax",
        "settings": {"schedule": "constant", "scan": True},
    },
    "torch.compile": {"contestant": "torch.compile", "settings": {"schedule": "constant"}},
    "Keras on JAX": {
        "contestant": "keras",
        "settings": {"schedule": "constant", "backend": "jax"},
    },
    "Keras on torch": {
        "contestant": "keras",
        "settings": {"schedule": "constant", "backend": "torch"},
    },
    "NumPy": {"contestant": "numpy", "settings": {"schedule": "constant"}},
    "PyTorch Lightning, DataLoader": {
        "contestant": "lightning",
        "settings": {"schedule": "constant"},
    },
    "scikit-learn": {"contestant": "scikit-learn", "settings": {}},
    "the usual tutorial": {"contestant": "tutorial", "settings": {}},
    "mnist_mlp, bfloat16": {
        "contestant": "mnist_mlp",
        "settings": {"ema_decay": 0.0, "validate": False, "precision": "bfloat16"},
    },
    "JAX, bfloat16": {
        "contestant": "jax",
        "settings": {"schedule": "constant", "bfloat16": True},
    },
    "JAX, bfloat16, epochs scanned": {
        "contestant": "jax",
        "settings": {"schedule": "constant", "bfloat16": True, "scan": True},
    },
    "torch.compile, bfloat16": {
        "contestant": "torch.compile",
        "settings": {"schedule": "constant", "bfloat16": True},
    },
}


class ContestantFailed(Exception):
    """A contestant did not finish; the message is the last line of its error output."""


def contestant_environment(split: Path, threads: int | None) -> dict[str, str]:
    """Return the environment variables of a contestant's process."""
    environment = dict(os.environ)
    environment["MNIST_ROOT"] = str(default_root())
    environment["SPLIT"] = str(split)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
        environment["OMP_WAIT_POLICY"] = "passive"

    # A user may have set these variables, for example to an older processor: NumPy would be slower.
    # And every library shall wait for its threads as it does by default.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "GOMP_SPINCOUNT"):
        environment.pop(name, None)

    # If torch must do without AVX-512, so must the libraries that do not read torch's variable.
    if environment.get("ATEN_CPU_CAPABILITY") == "avx2":
        environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        environment["OPENBLAS_CORETYPE"] = "Haswell"
        environment["XLA_FLAGS"] = "--xla_cpu_max_isa=AVX2"
    return environment


def train(contestant: str, settings: dict, split: Path, threads: int | None = None) -> dict:
    """Train a contestant in a separate process and return what it measured.

    Args:
        contestant: A key of `baselines.TRAINERS`.
        settings: The keyword arguments of that function.
        split: The file with the indices of the training and validation images.
        threads: The number of threads; by default, the library chooses.

    Raises:
        ContestantFailed: The contestant crashed or took too long.
    """
    command = [sys.executable, str(HERE / "baselines.py"), contestant, json.dumps(settings)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            env=contestant_environment(split, threads),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
        timer.start()

        # A library may print other lines before the answer. What it does after the answer, such as
        # its own shutdown, nobody waits for.
        answer = ""
        for line in process.stdout:
            answer = line
            answered = time.perf_counter()
        process.wait()
        timer.cancel()

        errors.seek(0)
        error_lines = errors.read().strip().splitlines()

    if time.perf_counter() - started > TIMEOUT_SECONDS:
        raise ContestantFailed(f"took more than {TIMEOUT_SECONDS} seconds")
    if process.returncode:
        if not error_lines:
            raise ContestantFailed(f"ended with status {process.returncode}")
        raise ContestantFailed(error_lines[-1][:300])
    return {**json.loads(answer), "shell": answered - started}


def write_splits(seeds: range, folder: str) -> dict[int, Path]:
    """Write a file per seed with the indices of its training and validation images.

    Args:
        seeds: The seeds of the splits.
        folder: Where the files go.

    Returns:
        The file of each seed.
    """
    try:
        training_images, _ = load_mnist(default_root(), download=False)
    except (OSError, ValueError) as error:
        raise SystemExit(f"The benchmark needs MNIST. {error}") from error

    files = {}
    for seed in seeds:
        train_indices, validation_indices = stratified_split(
            training_images.labels, holdout_fraction=1 / 12, seed=seed
        )
        files[seed] = Path(folder) / f"{seed}.npz"
        np.savez(files[seed], train=train_indices.numpy(), validation=validation_indices.numpy())
    return files


def select(rows: dict[str, RowPlan], only: list[str]) -> dict[str, RowPlan]:
    """Return the rows whose label or contestant is in `only`, or all rows if it is empty."""
    if not only:
        return rows
    return {label: row for label, row in rows.items() if label in only or row["contestant"] in only}


def machine() -> dict:
    """Describe the processor, the threads and the versions that the record was measured with."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "jax", "optax", "keras", "lightning", "scikit-learn", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16_units(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def tune(only: list[str]) -> None:
    """Choose the settings of each row that has candidates, and record them.

    Args:
        only: Labels or contestants of the rows to tune, or all if it is empty. The record keeps the
            results of the others.
    """
    labels = [label for label, row in select(GOAL_ROWS, only).items() if "candidates" in row]
    labels.sort(key=lambda label: label != "the usual tutorial")  # the longest one starts first

    contestants = {}
    if only:
        for label, result in json.loads(TUNING.read_bytes())["contestants"].items():
            if label in GOAL_ROWS:
                contestants[label] = result

    # Nothing is timed here, so two trainings may share the machine.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        files = write_splits(TUNING_SEEDS, folder)
        results = pool.map(lambda label: choose_settings(label, files), labels)
        contestants.update(zip(labels, results, strict=True))

    record = {
        "command": "make tune-baselines",
        "goal": GOAL,
        "margin": MARGIN,
        "contestants": contestants,
        "machine": machine(),
    }
    write_json(TUNING, record)


def choose_settings(label: str, files: dict[int, Path]) -> dict:
    """Return the first candidate whose mean validation accuracy clears the goal by the margin.

    If none does, return the best one. The time that it takes is then a lower bound.

    Args:
        label: A key of `GOAL_ROWS`.
        files: The file of each seed, from `write_splits`.
    """
    row = GOAL_ROWS[label]
    best = {"validation_accuracy": 0.0}
    try:
        for candidate, accuracies in judge_candidates(row, files):
            accuracy = mean(accuracies)
            print(label, candidate, f"{accuracy:.4f}", flush=True)
            cleared = accuracy >= GOAL + MARGIN
            if accuracy > best["validation_accuracy"]:
                best = {"chosen": candidate, "validation_accuracy": accuracy, "cleared": cleared}
            if cleared:
                break
    except ContestantFailed as error:
        return {"error": str(error)}
    return best


def judge_candidates(row: RowPlan, files: dict[int, Path]):
    """Yield each candidate with a list of its validation accuracies, one for each seed."""

    def train_all(settings: dict) -> list[list[float]]:
        """Return a curve for each seed: the validation accuracy after each epoch or the last."""
        curves = []
        for seed, file in files.items():
            run = train(row["contestant"], {**settings, "seed": seed}, file, threads=1)
            curves.append(run["validation_accuracy"])
        return curves

    if row["contestant"] in CONSTANT_RATE:
        # The last candidate has the most epochs. Its training judges the shorter ones too.
        longest = row["candidates"][-1]
        curves = train_all({**longest, **row["settings"], "validate_after": "each epoch"})
        for candidate in row["candidates"]:
            yield candidate, [curve[candidate["epochs"] - 1] for curve in curves]
        return

    for candidate in row["candidates"]:
        curves = train_all({**candidate, **row["settings"], "validate_after": "last epoch"})
        yield candidate, [curve[-1] for curve in curves]


@dataclass
class Row:
    """Measure one row of a table.

    Attributes:
        contestant: A key of `baselines.TRAINERS`.
        settings: The keyword arguments of that function.
        cleared: Whether the settings clear the goal on validation images; None in the second table.
        runs: What `train` returned in each round.
        error: Why there is no result.
    """

    contestant: str
    settings: dict
    cleared: bool | None = None
    runs: list[dict] = field(default_factory=list)
    error: str = ""

    def run(self, seed: int, split: Path) -> None:
        """Train once more, unless an earlier run failed or took too long."""
        if self.error or any(sum(run["epoch"]) > SLOW_SECONDS for run in self.runs):
            return
        try:
            self.runs.append(train(self.contestant, {**self.settings, "seed": seed}, split))
        except ContestantFailed as error:
            self.error = str(error)

    def summary(self) -> dict:
        """Return what is recorded: medians over the rounds, and spreads as a fraction of them."""
        summary = {"contestant": self.contestant, "settings": self.settings}
        if self.cleared is not None:
            summary["cleared"] = self.cleared
        if self.error:
            summary["error"] = self.error
            return summary

        shell = [run["shell"] for run in self.runs]
        seconds = [run["load"] + sum(run["epoch"]) for run in self.runs]
        accuracies = [run["test_accuracy"] for run in self.runs]
        summary["rounds"] = len(self.runs)
        summary["shell_seconds"] = median(shell)
        summary["shell_spread"] = (max(shell) - min(shell)) / median(shell)
        summary["seconds"] = median(seconds)
        summary["spread"] = (max(seconds) - min(seconds)) / median(seconds)
        summary["test_accuracy_mean"] = mean(accuracies)
        summary["test_accuracy_stdev"] = stdev(accuracies) if len(accuracies) > 1 else 0.0

        # The first epoch includes the compilation, so the usual seconds of an epoch leave it out.
        if len(self.runs[0]["epoch"]) > 1:
            epoch_seconds = [median(run["epoch"][1:]) for run in self.runs]
            summary["epoch_seconds"] = median(epoch_seconds)
            summary["epoch_spread"] = (max(epoch_seconds) - min(epoch_seconds)) / median(
                epoch_seconds
            )
            summary["images_per_second"] = N_TRAIN / median(epoch_seconds)
        return summary


def rows_to_goal(plans: dict[str, RowPlan], units: str) -> dict[str, Row]:
    """Return the rows of the first table, with their tuned settings.

    On a processor without units for bfloat16, all rows are in float32. With emulated bfloat16, one
    training would take longer than all others together.

    Args:
        plans: `GOAL_ROWS` or some of them.
        units: What `bfloat16_units` returns.
    """
    tuning = json.loads(TUNING.read_bytes())["contestants"]
    rows = {}
    for label, plan in plans.items():
        tuned = tuning.get(plan.get("settings_from", label), {"error": "was not tuned"})
        if plan["contestant"] == "speedrun":
            tuned = {"cleared": True}  # `make speedrun-ideas` shows its validation accuracy
        settings = {**tuned.get("chosen", {}), **plan["settings"]}
        if units == "none" and "bfloat16" in settings:
            settings["bfloat16"] = False
            label = label.replace(", bfloat16", "")
        rows[label] = Row(
            plan["contestant"],
            settings,
            cleared=tuned.get("cleared", False),
            error=tuned.get("error", ""),
        )
    return rows


def rows_at_equal_settings(plans: dict[str, RowPlan], units: str) -> dict[str, Row]:
    """Return the rows of the second table.

    On a processor without units for bfloat16, only those in float32.

    Args:
        plans: `EQUAL_ROWS` or some of them.
        units: What `bfloat16_units` returns.
    """
    rows = {}
    for label, plan in plans.items():
        if units == "none" and "bfloat16" in label:
            continue
        rows[label] = Row(plan["contestant"], {**EQUAL_SETTINGS, **plan["settings"]})
    return rows


def measure(tables: str, only: list[str]) -> None:
    """Run every row in every round, and print the tables.

    The measurement is recorded only if it has all rows of both tables.

    Args:
        tables: "goal" for the first table, "equal" for the second one, or "both".
        only: Labels or contestants of the rows to run, or all if it is empty.
    """
    units = bfloat16_units()
    to_goal = {}
    equal = {}
    if tables in ("both", "goal"):
        to_goal = rows_to_goal(select(GOAL_ROWS, only), units)
    if tables in ("both", "equal"):
        equal = rows_at_equal_settings(select(EQUAL_ROWS, only), units)
    rows = [*to_goal.values(), *equal.values()]

    # The trainings keep all cores busy, so load from others can only be seen before them.
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = write_splits(SEEDS, folder)
        with tqdm(total=len(rows) * len(SEEDS), unit="run", file=sys.stdout) as bar:
            for seed in SEEDS:
                for row in rows:
                    bar.set_postfix_str(row.contestant)
                    row.run(seed, files[seed])
                    bar.update()

    record = {
        "command": "make bench",
        "goal": GOAL,
        "rounds": len(SEEDS),
        "load_average_before": round(load_average, 2),
        "on_a_machine_under_load": load_average > 0.5 * os.cpu_count(),
        "time_to_goal": {label: row.summary() for label, row in to_goal.items()},
        "equal_settings": {label: row.summary() for label, row in equal.items()},
        "machine": machine(),
    }
    if tables == "both" and not only:
        write_record(units, record)
    print(tables_as_markdown(record))


def write_record(units: str, record: dict) -> None:
    """Add a record to the file, which keeps one for each kind of processor, the newest first.

    Args:
        units: The kind of processor, as `bfloat16_units` names it.
        record: The new record; it replaces an older one of this kind.
    """
    records = {units: record}
    if RECORD.exists():
        for other_units, other_record in json.loads(RECORD.read_bytes()).items():
            records.setdefault(other_units, other_record)
    write_json(RECORD, records)


def tables_as_markdown(record: dict) -> str:
    """Return both tables as Markdown, with a line if the machine was under load."""
    lines = []
    if record["time_to_goal"]:
        lines += goal_table(record["time_to_goal"], record["goal"])
        lines.append("")
    if record["equal_settings"]:
        lines += equal_table(record["equal_settings"])
    if record["on_a_machine_under_load"]:
        load = record["load_average_before"]
        lines += ["", f"The machine was under load (load average {load}) before it began."]
    return "\n".join(lines)


def goal_table(rows: dict[str, dict], goal: float) -> list[str]:
    """Return the lines of the first table."""
    lines = [
        f"| to {goal:.2%} | from the shell, s | times ours | training, s | times ours | epochs "
        "| test accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = rows.get(FAST, {})
    our_shell_seconds = ours.get("shell_seconds", float("nan"))
    our_seconds = ours.get("seconds", float("nan"))
    for label, row in rows.items():
        if "error" in row:
            lines.append(f"| {label} | {row['error']} | | | | | |")
            continue

        at_least = "" if row["cleared"] else "at least "
        accuracy = f"{row['test_accuracy_mean']:.2%}"
        if row["rounds"] > 1:
            accuracy += f" ± {100 * row['test_accuracy_stdev']:.2f}"
        if row["test_accuracy_mean"] < goal:
            accuracy += " (missed)"
        cells = [
            label,
            f"{at_least}{row['shell_seconds']:.2f}",
            f"{at_least}{row['shell_seconds'] / our_shell_seconds:.1f}",
            f"{at_least}{row['seconds']:.2f}",
            f"{at_least}{row['seconds'] / our_seconds:.1f}",
            f"{epochs(row['settings']):g}",
            accuracy,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def epochs(settings: dict) -> float:
    """Return how often a row sees the training images."""
    if "blocks" in settings:  # the speedrun
        return round(settings["blocks"] * speedrun.BLOCK / N_TRAIN, 1)
    return settings["epochs"]


def equal_table(rows: dict[str, dict]) -> list[str]:
    """Return the lines of the second table, the fastest row first."""
    lines = ["| equal settings | images a second |", "|---|---|"]
    for label, row in sorted(rows.items(), key=lambda item: -item[1].get("images_per_second", 0)):
        if "error" in row:
            lines.append(f"| {label} | {row['error']} |")
        else:
            lines.append(f"| {label} | {row['images_per_second']:,.0f} |")
    return lines


def main() -> None:
    """Read the command line."""
    names = {*GOAL_ROWS, *EQUAL_ROWS}
    for row in (*GOAL_ROWS.values(), *EQUAL_ROWS.values()):
        names.add(row["contestant"])

    parser = argparse.ArgumentParser(description="Time how long each library takes to 98.21%.")
    parser.add_argument(
        "command",
        nargs="?",
        choices=("both", "goal", "equal", "tune"),
        default="both",
        help="the tables to measure; tune chooses the settings instead",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[],
        choices=sorted(names),
        help="labels or contestants of the rows to run; only tune records such a run",
    )
    arguments = parser.parse_args()

    if arguments.command == "tune":
        tune(arguments.only)
    else:
        measure(arguments.command, arguments.only)


if __name__ == "__main__":
    main()
