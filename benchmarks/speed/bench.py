"""Time how long each library takes to reach 98.21% on MNIST, side by side.

`make bench`, 35 minutes on two cores: five rounds, in each of which every baseline runs
once in its own process, so that a change of the machine's speed affects all, and what took more
than 100 seconds is not run again; writes
`benchmarks/speed/bench.json`, draws `figures/time_to_accuracy.png` and prints the table.
`make tune-baselines` decides beforehand, on validation images alone and with other seeds, how many
epochs each one needs, and writes `benchmarks/speed/tuning.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import torch
from tqdm import tqdm

from mnist_mlp.data import stratified_split
from mnist_mlp.datasets import default_root
from mnist_mlp.datasets.mnist import MNIST_FILES
from mnist_mlp.optim.hardware import bfloat16_units
from mnist_mlp.storage.files import write_json

HERE = Path(__file__).parent
RECORD, TUNING = HERE / "bench.json", HERE / "tuning.json"
GOAL = 0.9821
MARGIN = 0.001  # of the mean validation accuracy over the goal, since the test set is another one
SEEDS, TUNING_SEEDS = range(100, 105), range(5)
SLOW = 100  # seconds

OURS = {"ema_decay": 0.9}
FAST = OURS | {"optimizer": "muon", "weight_decay": 0.2, "label_smoothing": 0.1}
FLOAT32 = {"precision": "float32"}
SMOOTH = {"smoothing": 0.1}  # of the labels: it saves every library an epoch


def settings(epochs: int, batch_size: int, learning_rate: float, **more) -> dict:
    """Return a peer's settings."""
    sizes = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    return sizes | more


def cycles(**more) -> list[dict]:
    """Return what is tried for AdamW with a one-cycle rate, the fastest first."""
    tried = (4, 512, 0.005), (5, 512, 0.005), (4, 256, 0.003), (6, 512, 0.005), (5, 256, 0.003)
    return [settings(*sizes, **more) for sizes in tried]


# label: (peer, settings tried in this order; the first to clear the goal is taken). A label instead
# of a list: the settings chosen for that peer, which has the same optimiser and schedule.
# JAX, torch.compile, Keras on torch and Lightning have bfloat16; with JAX Keras is faster without.
ADAMW = "JAX, bfloat16"
PEERS = {
    "mnist_mlp, fast": (
        "mnist_mlp",
        [
            settings(2, 2048, 0.15, **FAST),
            settings(2, 1536, 0.12, **FAST),
            settings(2, 1024, 0.08, **FAST),
            settings(3, 2048, 0.1, **FAST),
            settings(3, 1024, 0.06, **FAST),
        ],
    ),
    "mnist_mlp, AdamW in float32": (
        "mnist_mlp",
        cycles(**OURS, **FLOAT32, label_smoothing=0.1),
    ),
    ADAMW: ("jax", cycles(**SMOOTH, bfloat16=True)),
    "JAX, bfloat16, epochs scanned": ("jax", ADAMW, {"scan": True, "bfloat16": True}),
    "torch.compile, bfloat16": ("torch.compile", ADAMW, {"bfloat16": True}),
    "Keras on JAX": ("keras", cycles(**SMOOTH, backend="jax")),
    "Keras on torch, bfloat16": (
        "keras",
        "Keras on JAX",
        {"backend": "torch", "bfloat16": True},
    ),
    "MLX": ("mlx", ADAMW, {}),
    "NumPy": ("numpy", ADAMW, {}),
    "PyTorch Lightning, DataLoader": ("lightning", ADAMW, {"bfloat16": True}),
    "tinygrad": ("tinygrad", ADAMW, {}),
    "scikit-learn": ("scikit-learn", [settings(e, 200, 0.001) for e in range(1, 26)]),
    "the usual tutorial": ("tutorial", [settings(e, 64, 0.001) for e in range(1, 21)]),
}
# Steady state: one setting for all, constant rate where the peer has no other.
SAME = settings(3, 512, 0.001)
EQUAL = {
    "mnist_mlp": ("mnist_mlp", {"ema_decay": 0.0, "validate": False, **FLOAT32}),
    "JAX": ("jax", {"cycle": False}),
    "JAX, epochs scanned": ("jax", {"cycle": False, "scan": True}),
    "torch.compile": ("torch.compile", {"cycle": False}),
    "Keras on JAX": ("keras", {"cycle": False, "backend": "jax"}),
    "Keras on torch": ("keras", {"cycle": False, "backend": "torch"}),
    "MLX": ("mlx", {"cycle": False}),
    "NumPy": ("numpy", {"cycle": False}),
    "PyTorch Lightning, DataLoader": ("lightning", {"cycle": False}),
    "tinygrad": ("tinygrad", {"cycle": False}),
    "scikit-learn": ("scikit-learn", {}),
    "the usual tutorial": ("tutorial", {}),
    "mnist_mlp, bfloat16": (
        "mnist_mlp",
        {"ema_decay": 0.0, "validate": False, "precision": "bfloat16"},
    ),
    "JAX, bfloat16": ("jax", {"cycle": False, "bfloat16": True}),
    "JAX, bfloat16, epochs scanned": ("jax", {"cycle": False, "scan": True, "bfloat16": True}),
    "torch.compile, bfloat16": ("torch.compile", {"cycle": False, "bfloat16": True}),
}


def train(peer: str, settings: dict, split: Path, threads: int | None = None) -> dict:
    """Return what a peer says of its training, or {"error": why} if it says nothing."""
    environment = os.environ | {"MNIST_ROOT": str(default_root()), "SPLIT": str(split)}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(HERE / "baselines.py"), peer, json.dumps(settings)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "took more than 15 minutes"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"error": said[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def splits(seeds: range, folder: str) -> dict[int, Path]:
    """Write which images each seed trains on and is validated on, and return the files."""
    root = default_root()
    name = "train-labels-idx1-ubyte"
    file = root / "MNIST" / "raw" / name
    if not file.exists() or file.stat().st_size != MNIST_FILES[name][0]:
        raise SystemExit(f"{root} does not hold MNIST: set MNIST_ROOT, or `make notebook` first.")
    labels = np.fromfile(file, np.uint8)
    files = {}
    for seed in seeds:
        stay, out = stratified_split(
            torch.from_numpy(labels[8:].astype(np.int64)), every=12, seed=seed
        )
        files[seed] = Path(folder) / f"{seed}.npz"
        np.savez(files[seed], train=stay.numpy(), validation=out.numpy())
    return files


def machine() -> dict:
    """Return what the figures were measured on."""
    names = (
        "torch", "jax", "optax", "keras", "lightning", "mlx", "scikit-learn", "tinygrad", "numpy",
    )  # fmt: skip
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except ImportError:
            versions[name] = "not installed"
    return {
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_units": bfloat16_units(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def chosen(tried: list[dict]) -> dict:
    """Return the settings with the highest mean, and whether they clear the goal: a lower bound."""
    best = max(tried, key=lambda each: each["mean"])
    return {"chosen": best["settings"], "cleared": best["mean"] >= GOAL + MARGIN}


def tune(folder: str, only: list[str]) -> None:
    """Find the first settings of each peer whose mean validation accuracy clears the goal.

    Where none does, the best are taken, and what they take is less than the goal would.
    """
    files = splits(TUNING_SEEDS, folder)
    found = {"command": "make tune-baselines", "goal": GOAL, "margin": MARGIN, "peers": {}}
    own = {label: what for label, what in PEERS.items() if isinstance(what[1], list)}
    if only:
        found["peers"] = json.loads(TUNING.read_bytes())["peers"]
        own = {label: what for label, what in own.items() if what[0] in only}

    def one(label: str) -> dict:
        peer, candidates, *_ = own[label]
        result = {"tried": []}
        if peer in ("scikit-learn", "tutorial"):
            # A constant rate: one long training shows what every shorter one would give.
            longest = candidates[-1] | {"judge_each_epoch": True}
            runs = [train(peer, longest | {"seed": s}, files[s], threads=1) for s in TUNING_SEEDS]
            if any("error" in run for run in runs):
                return result | {"error": next(r["error"] for r in runs if "error" in r)}
            curves = zip(*(run["validation_accuracy"] for run in runs), strict=True)
        else:
            runs = (
                [train(peer, c | {"seed": s}, files[s], threads=1) for s in TUNING_SEEDS]
                for c in candidates
            )
            curves = ([run.get("validation_accuracy", [0.0])[-1] for run in each] for each in runs)
        for candidate, accuracies in zip(candidates, curves, strict=False):
            tried = {"settings": candidate, "validation_accuracy": list(accuracies)}
            result["tried"].append(tried | {"mean": mean(accuracies)})
            print(label, candidate, f"{mean(accuracies):.4f}", flush=True)
            if mean(accuracies) >= GOAL + MARGIN:
                break
        return result | chosen(result["tried"])

    with ThreadPoolExecutor(2) as pool:  # accuracies only: they may share the machine
        slow_first = sorted(own, key=lambda label: label != "the usual tutorial")
        found["peers"] |= dict(zip(slow_first, pool.map(one, slow_first), strict=True))
    write_json(TUNING, found | {"machine": machine()})


def named(label: str, units: str) -> str:
    """Return a peer's label on a processor; without units bfloat16 is emulated, and not used."""
    return label.replace(", bfloat16", "") if units == "none" else label


def bench(folder: str, only: list[str]) -> None:
    """Run every peer in every round, and record the medians; with `only`, print them."""
    files = splits(SEEDS, folder)
    tuned = json.loads(TUNING.read_bytes())["peers"]
    to_goal, equal, loads = {}, {}, []
    jobs, units = [], bfloat16_units()
    for tuned_as, (peer, how, *more) in PEERS.items():
        source = tuned.get(how if isinstance(how, str) else tuned_as, {})
        label = named(tuned_as, units)
        to_goal[label] = {"peer": peer, "settings": None, "runs": []}
        if "chosen" not in source:
            to_goal[label]["runs"].append({"error": source.get("error", "was not tuned")})
            continue
        keep = ("epochs", "batch_size", "learning_rate", *SMOOTH)
        what = source["chosen"]
        if isinstance(how, str):
            what = {k: what[k] for k in keep} | more[0]
        if units == "none" and "bfloat16" in what:
            what = what | {"bfloat16": False}
        to_goal[label] |= {"settings": what, "cleared": source["cleared"]}
        jobs.append((to_goal[label], peer, what))
    for label, (peer, more) in EQUAL.items():
        if named(label, units) != label:
            continue
        equal[label] = {"peer": peer, "settings": SAME | more, "runs": []}
        jobs.append((equal[label], peer, SAME | more))
    if only:
        jobs = [job for job in jobs if job[1] in only]

    with tqdm(total=len(jobs) * len(SEEDS), unit="run", file=sys.stdout) as bar:
        for seed in SEEDS:
            loads.append(os.getloadavg()[0])
            for entry, peer, what in jobs:
                bar.set_postfix_str(peer)
                if not any("error" in run or sum(run["epoch"]) > SLOW for run in entry["runs"]):
                    entry["runs"].append(train(peer, what | {"seed": seed}, files[seed]))
                bar.update()
    for entry in [*to_goal.values(), *equal.values()]:
        summarise(entry)
    record = {
        "command": "make bench",
        "goal": GOAL,
        "rounds": len(SEEDS),
        # The benchmark itself keeps all cores busy, so only what was there before it tells.
        "load_average_before": round(loads[0], 2),
        "on_a_machine_under_load": loads[0] > 0.5 * os.cpu_count(),
        "time_to_goal": to_goal,
        "equal_settings": equal,
        "machine": machine(),
    }
    if not only:  # one record for each kind of processor, the newest first
        others = json.loads(RECORD.read_bytes()) if RECORD.exists() else {}
        write_json(
            RECORD,
            {units: record} | {k: v for k, v in others.items() if k != units},
        )
    print(table(record))


def summarise(entry: dict) -> None:
    """Add the medians over the runs to a peer's entry."""
    runs = [run for run in entry["runs"] if "error" not in run]
    if len(runs) < len(entry["runs"]) or not runs:
        entry["error"] = next((r["error"] for r in entry["runs"] if "error" in r), "did not run")
        return
    seconds = [run["load"] + sum(run["epoch"]) for run in runs]
    steady = [median(run["epoch"][1:]) for run in runs]
    accuracy = [run["test_accuracy"] for run in runs]
    entry |= {
        "seconds": median(seconds),
        "spread": (max(seconds) - min(seconds)) / median(seconds),
        "import_seconds": median(run["import"] for run in runs),
        "load_seconds": median(run["load"] for run in runs),
        "first_epoch_extra_seconds": median(
            run["epoch"][0] - s for run, s in zip(runs, steady, strict=True)
        ),
        "epoch_seconds": median(steady),
        "images_per_second": 55_000 / median(steady),
        "test_accuracy_mean": mean(accuracy),
        "test_accuracy_stdev": stdev(accuracy) if len(accuracy) > 1 else 0.0,
    }


def table(record: dict) -> str:
    """Return both tables as Markdown."""
    goal, same = record["time_to_goal"], record["equal_settings"]
    ours = next(iter(goal.values())).get("seconds", float("nan"))
    lines = [
        f"| to {record['goal']:.2%} | seconds | times ours | first epoch extra | epochs "
        "| test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for label, entry in goal.items():
        if "error" in entry:
            lines.append(f"| {label} | {entry['error']} | | | | |")
            continue
        spread = f" ± {100 * entry['test_accuracy_stdev']:.2f}" if len(entry["runs"]) > 1 else ""
        missed = "" if entry["test_accuracy_mean"] >= record["goal"] else " (missed)"
        least = "" if entry["cleared"] else "at least "
        lines.append(
            f"| {label} | {least}{entry['seconds']:.1f} | {least}{entry['seconds'] / ours:.1f} "
            f"| {max(0, entry['first_epoch_extra_seconds']):.1f} | {entry['settings']['epochs']} "
            f"| {entry['test_accuracy_mean']:.2%}{spread}{missed} |"
        )
    lines += ["", "| equal settings | images a second |", "|---|---|"]
    for label, entry in sorted(same.items(), key=lambda item: item[1].get("epoch_seconds", 1e9)):
        if "error" in entry:
            lines.append(f"| {label} | {entry['error']} |")
        else:
            lines.append(f"| {label} | {entry['images_per_second']:,.0f} |")
    if record["on_a_machine_under_load"]:
        load = record["load_average_before"]
        lines += ["", f"The machine was under load (load average {load}) before it began."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("bench", "tune"), default="bench")
    parser.add_argument(
        "--only", nargs="*", default=[], help="names of baselines.PEERS to run alone, unrecorded"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "tune":
            tune(folder, arguments.only)
        else:
            bench(folder, arguments.only)
