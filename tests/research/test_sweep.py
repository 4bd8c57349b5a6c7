"""Many runs: none twice, none half, none lost with a worker."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import fit_with, posix

from mnist_mlp import EnhancedNet, evaluate, load, load_weights
from mnist_mlp.research.convnet import ConvNet
from mnist_mlp.research.distillation import precompute_teacher_logits, save_distillation_sets
from mnist_mlp.research.disturbances import disturb
from mnist_mlp.research.sweep import cluster, run_name, sweep, train_run, with_defaults

QUICK = {"dataset": "digits", "epochs": 2, "batch_size": 64}


def without_seconds(records: list[dict]) -> list[dict]:
    def bare(part: dict) -> dict:
        return {k: v for k, v in part.items() if k != "seconds"}

    return [bare(record) | {"epochs": list(map(bare, record["epochs"]))} for record in records]


def test_a_run_is_what_fit_gives_and_its_record_and_weights_say_so(tmp_path):
    run = QUICK | {"seed": 3}
    (record,) = sweep([run], tmp_path)
    digits = load("digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = EnhancedNet()
    recipe = {name: value for name, value in run.items() if name != "dataset"}
    parts = digits.train, digits.validation
    history = fit_with(model, *parts, precision="auto", **recipe)
    torch.set_num_threads(threads)
    assert record["validation_accuracy"] == history.validation_accuracy
    assert [e["loss"] for e in record["epochs"]] == [e["loss"] for e in history.epochs]
    saved = load_weights(EnhancedNet(), tmp_path / f"{run_name(run)}.pth")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in saved.state_dict().items())
    assert json.loads((tmp_path / f"{run_name(run)}.json").read_bytes()) == record


def test_a_run_has_as_many_threads_as_it_is_given():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        record, _ = train_run(with_defaults(QUICK | {"epochs": 1, "seed": 0}), threads=1)
        assert (torch.get_num_threads(), record["threads"]) == (1, 1)
    finally:
        torch.set_num_threads(before)


def test_a_run_trains_on_all_images_and_on_disturbed_ones_if_it_says_so(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "mnist_mlp.research.sweep.fit",
        lambda model, train, validation, recipe, progress: seen.append((train, recipe)) or 1 / 0,
    )
    digits = load("digits")
    for more in ({}, {"all_images": True, "disturbed_share": 0.5}):
        record, _ = train_run(with_defaults(QUICK | more), threads=1)
        assert "ZeroDivisionError" in record["failed"]
    ((plain,), recipe), ((everything,), disturbing) = seen
    assert torch.equal(plain.images, digits.train.images)
    assert recipe.augment == "warp"
    both = torch.cat([digits.train.images, digits.validation.images])
    assert torch.equal(everything.images, both)
    assert torch.equal(everything.labels[-50:], digits.validation.labels[-50:])
    batch = both[:100].float() / 255
    found = disturbing.augment_batch(batch, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(found, disturb(recipe.augment_batch(batch, generator), generator, 0.5))


def test_runs_with_a_record_are_skipped_and_the_order_is_that_of_the_runs(tmp_path, monkeypatch):
    runs = [QUICK | {"seed": seed} for seed in (1, 0)]
    first = sweep(runs, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("mnist_mlp.research.sweep._train", None)  # which would fail
    assert sweep(runs[::-1], tmp_path) == first[::-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert [record["run"]["seed"] for record in first] == [1, 0]


@posix
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    """The process is killed with SIGKILL once it has a record; the second sweep makes the rest."""
    runs = [QUICK | {"epochs": 12, "seed": seed} for seed in range(8)]
    code = f"from mnist_mlp.research.sweep import sweep; sweep({runs!r}, {str(tmp_path)!r})"
    killed = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert 0 < len(done) < 8
    records = sweep(runs, tmp_path)
    assert [record["run"]["seed"] for record in records] == list(range(8))
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (
            lambda text: text.replace('"record": 3', '"record": 0'),
            "its version is not the expected",
        ),
        (lambda text: text.replace('"epochs": 2', '"epochs": 3', 1), "its run is not the expected"),
        (
            lambda text: text.replace('"sha256": "', '"sha256": "0'),
            "its sha256 is not the expected",
        ),
        (lambda text: "[]", "it holds a list, expected an object"),
        (lambda text: "{}", "it holds None, expected"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_computed_again(tmp_path, capsys, damage, words):
    run = QUICK | {"seed": 0}
    (record,) = sweep([run], tmp_path)
    path = tmp_path / f"{run_name(run)}.json"
    path.write_text(damage(path.read_text(encoding="utf-8")))
    assert without_seconds(sweep([run], tmp_path)) == without_seconds([record])
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert words in printed
    path.with_suffix(".pth").unlink()  # a record alone is not a run
    sweep([run], tmp_path)
    assert path.with_suffix(".pth").exists()


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"epoch": 3}, TypeError, r"Recipe has no field 'epoch': did you mean 'epochs'\?"),
        ({"optimizer": torch.optim.SGD}, TypeError, "plain values, found a function as 'optimi"),
        ({"qqq": 3}, TypeError, "Recipe has no field 'qqq': expected one of epochs, "),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, found 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be 'adamw' or 'muon', .*, found 'sgd'"),
        ({"schedule": "none"}, ValueError, "schedule must be .*, found 'none'"),
        ({"elastic_strength": "much"}, TypeError, "elastic_strength must be a number of at"),
        ({"all_images": "no"}, TypeError, "all_images must be True or False, found 'no'"),
        ({"disturbed_share": 1.5}, ValueError, "disturbed_share must be a number from 0 to 1, fou"),
        ({"model": "Linear"}, ValueError, "model must be 'EnhancedNet' or 'ConvNet', found"),
    ],
)
def test_a_wrong_field_stops_the_sweep_before_its_first_run(tmp_path, wrong, error, words):
    with pytest.raises(error, match=words):
        sweep([QUICK | {"seed": 0}, QUICK | {"seed": 1} | wrong], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_student_is_swept_with_its_teachers_logits(tmp_path):
    digits = load("digits")
    torch.manual_seed(0)
    sets = precompute_teacher_logits(digits.train, [ConvNet()], copies=2, progress=False)
    save_distillation_sets(sets, tmp_path / "sets.pth")
    run = QUICK | {"teacher_logits": str(tmp_path / "sets.pth"), "augment_strength": 0.0, "seed": 0}
    (record,) = sweep([run], tmp_path / "records")
    torch.manual_seed(0)
    student = EnhancedNet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = {"epochs": 2, "batch_size": 64, "augment_strength": 0.0, "precision": "auto"}
    history = fit_with(student, sets, digits.validation, **recipe)
    torch.set_num_threads(threads)
    assert record["epochs"][1]["loss"] == history.epochs[1]["loss"]
    saved = load_weights(EnhancedNet(), tmp_path / "records" / f"{run_name(run)}.pth")
    assert evaluate(saved, digits.test).n_correct == evaluate(student, digits.test).n_correct


def test_the_same_run_twice_in_a_sweep_gives_its_record_twice(tmp_path):
    run = {"dataset": "digits", "epochs": 1, "batch_size": 64}
    records = sweep([run | {"seed": 0}, run | {"seed": 1}, run | {"seed": 0}], tmp_path)
    assert [record["run"]["seed"] for record in records] == [0, 1, 0]
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_run_of_a_sweep_that_diverges_is_recorded_as_failed_and_the_others_go_on(
    tmp_path, capsys
):
    run = {"dataset": "digits", "epochs": 3, "batch_size": 64}
    runs = [run | {"learning_rate": rate, "seed": s} for rate in (1e6, 0.005) for s in (0, 1)]
    records = sweep(runs, tmp_path)
    assert ["failed" in record for record in records] == [True, True, False, False]
    for record in records[:2]:
        assert re.match(r"FloatingPointError: .*learning rate", record["failed"])
    shown = capsys.readouterr().out
    assert "2 of 4 runs failed" in shown
    assert "'learning_rate': 1000000.0" in shown
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert sweep(runs, tmp_path) == records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == times
    assert sweep(runs, tmp_path, retry_failed=True) == records
    changed = [p for p in times if p.stat().st_mtime_ns != times[p]]
    assert len(changed) == 2


def test_a_run_without_its_files_is_recorded_as_failed_and_the_others_go_on(tmp_path):
    run = {"dataset": "digits", "epochs": 1, "batch_size": 64, "seed": 0}
    records = sweep([run | {"teacher_logits": str(tmp_path / "none.pth")}, run], tmp_path)
    assert records[0]["failed"].startswith("FileNotFoundError: ")
    assert len(records[1]["epochs"]) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the children")
def test_the_workers_of_a_killed_sweep_end_within_seconds(tmp_path):
    run = {"dataset": "digits", "epochs": 300, "batch_size": 64}
    code = "from mnist_mlp.research.sweep import sweep\n"
    code += f"sweep([{run} | dict(seed=s) for s in range(9)], '.')"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)

    def alive(pids) -> list[int]:
        return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and command(pid)]

    def command(pid) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text()
        return ""

    def children() -> list[int]:
        with contextlib.suppress(OSError):
            listed = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text()
            return [int(pid) for pid in listed.split() if "loky" in command(int(pid))]
        return []

    try:
        deadline = time.monotonic() + 60
        workers, busy = [], []
        while not busy and time.monotonic() < deadline:
            time.sleep(0.2)
            workers = [pid for pid in children() if "resource_tracker" not in command(pid)]
            busy = [pid for pid in workers if seconds(pid) > 12]  # past its imports everywhere
        assert busy
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        deadline = time.monotonic() + 6
        while alive(workers) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not alive(workers)
    finally:
        killed.kill()
        for pid in alive(workers):
            os.kill(pid, signal.SIGKILL)


def seconds(pid: int) -> float:
    """How long a process has used the processor."""
    with contextlib.suppress(OSError):
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# A cluster: a scheduler and two worker processes over TCP


@pytest.fixture
def dask(tmp_path):
    """The address of a scheduler, and the two processes that work for it."""
    pytest.importorskip("distributed")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    where = tmp_path / "scheduler.json"
    cli = [sys.executable, "-m"]
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    known = ["--scheduler-file", where]
    started = [
        subprocess.Popen(
            [*cli, "distributed.cli.dask_scheduler", "--port", "0", *local, *known], **quiet
        )
    ]
    try:
        deadline = time.monotonic() + 60
        while not where.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        worker = [*cli, "distributed.cli.dask_worker", *known, *local, "--no-nanny"]
        worker += ["--nthreads", "1", "--local-directory", tmp_path]
        started += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        yield json.loads(where.read_bytes())["address"], started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.campaign
@posix
def test_a_cluster_that_loses_a_worker_gives_the_records_of_this_machine(dask, tmp_path):
    address, workers = dask
    runs = [QUICK | {"epochs": 8, "seed": seed} for seed in range(8)]
    expected = sweep(runs, tmp_path / "local")
    assert address.startswith("tcp://")
    with cluster(address) as client:
        client.wait_for_workers(2, timeout=60)
        kill_at_the_first_record(workers[0], tmp_path / "cluster")
        found = sweep(runs, tmp_path / "cluster")
        assert len(client.scheduler_info()["workers"]) == 1
    assert workers[0].poll() == -signal.SIGKILL
    assert without_seconds(found) == without_seconds(expected)
    print("8 of 8 records, identical to the local ones, one of two workers killed")


def kill_at_the_first_record(worker: subprocess.Popen, folder) -> None:
    """Kill the worker in the middle of its work: while a run of it is under way."""
    watch = (
        "import glob, os, time\n"
        f"while not glob.glob({str(folder / '*.json')!r}): time.sleep(0.01)\n"
        f"time.sleep(0.3); os.kill({worker.pid}, 9)"
    )
    subprocess.Popen([sys.executable, "-c", watch])


def test_an_address_that_does_not_answer_is_one_sentence_within_fifteen_seconds():
    pytest.importorskip("distributed")
    start = time.monotonic()
    with (
        pytest.raises(ConnectionError, match="no Dask scheduler answers at tcp:"),
        cluster("tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - start < 15
