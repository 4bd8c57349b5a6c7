"""Many runs, each with a record of its own: on this machine's processors or on a cluster's."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread

from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm import tqdm

from mnist_mlp.checkpoint import atomic, read_json
from mnist_mlp.run import RECORD, VERSION, changes, complete, run_name, train_run


def sweep(
    runs: list[dict], folder: str | Path, threads: int = 1, retry_failed: bool = False
) -> list[dict]:
    """Train each run that has no record in the folder yet; return all records in the runs' order.

    A run: arguments of `fit`, its `seed` among them, and if need be `dataset`, `model` (a class of
    `mnist_mlp.model`) and `lessons` (a file of `distill.save`); what it does not name is as
    published. A record is a .json file with the weights beside it, so a killed sweep goes on where
    it was. As many at a time as the processors hold with `threads` each, or as `cluster` has.
    The record of a run whose training failed, one that diverged say, has `run` and `failed`, the
    reason, alone; it is not tried again but with `retry_failed`. Raises TypeError or ValueError for
    an unknown field or an absurd value before the first run.
    """
    named = {Path(folder) / f"{run_name(run)}.json": complete(run) for run in runs}
    found = {path: _read(path, run) for path, run in named.items() if path.exists()}
    done = {p: r for p, r in found.items() if r and not (retry_failed and "failed" in r)}
    todo = {path: run for path, run in named.items() if path not in done}
    workers = Parallel(max(1, cpu_count() // threads), return_as="generator_unordered")
    trained = workers(delayed(_train)(path, run, threads) for path, run in todo.items())
    start, total = len(named) - len(todo), len(named)
    for path, record, weights in tqdm(trained, "Sweep", total, initial=start, file=sys.stdout):
        if weights:
            with atomic(path.with_suffix(".pth")) as file:
                file.write_bytes(weights)
        with atomic(path) as file:  # last: a record says that its weights are there
            file.write_text(json.dumps(record, indent=1) + "\n")
        done[path] = record
    records = [done[Path(folder) / f"{run_name(run)}.json"] for run in runs]
    if failed := [record for record in records if "failed" in record]:
        print(f"{len(failed)} of {len(records)} runs failed; retry_failed=True tries them again:")
        for record in failed:
            print(f"  {run_name(record['run'])} {changes(record['run'])}: {record['failed']}")
    return records


def _train(path: Path, run: dict, threads: int) -> tuple[Path, dict, bytes]:
    _end_with_the_parent()
    return path, *train_run(run, threads)


@cache
def _end_with_the_parent() -> None:
    """End this process soon after the one that started it, which may have been killed.

    Once in a process. Not on Windows, where a process is not told of its parent's end.
    """

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if parent_process() is not None and os.name != "nt":  # not in the process that calls `sweep`
        Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def _read(path: Path, run: dict) -> dict | None:
    """Return the run's record, or None where it or its weights are of no use: then say why."""
    try:
        if "failed" in (record := read_json(path, {"run": dict, "version": dict})):
            return record if (record["run"], record["version"]) == (run, VERSION) else None
        record = read_json(path, RECORD)
        sha256 = hashlib.sha256(path.with_suffix(".pth").read_bytes()).hexdigest()
        expected = {"run": run, "version": VERSION, "sha256": sha256}
        if other := [name for name, value in expected.items() if record[name] != value]:
            raise ValueError(f"another {other[0]} than the one expected")
        return record
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"{path} is computed again, for it is of no use: {error!r}.", flush=True)
        return None


@contextmanager
def cluster(address: str) -> Iterator:
    """Yield the client of the Dask cluster whose scheduler is at `address`: `sweep` runs there.

    Raises ConnectionError if no scheduler answers there within ten seconds.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}.") from error
    with client, parallel_config(backend="dask"):
        yield client
