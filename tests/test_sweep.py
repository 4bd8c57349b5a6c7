"""Many runs: none twice, none half, none lost with a worker."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import posix

from mnist_mlp import checkpoint, data, distill, sweep, train
from mnist_mlp.evaluate import evaluate
from mnist_mlp.model import ConvNet, EnhancedNet
from mnist_mlp.run import complete, run_name, train_run

QUICK = {"dataset": "digits", "epochs": 2, "batch_size": 64}


def without_seconds(records: list[dict]) -> list[dict]:
    def bare(part: dict) -> dict:
        return {k: v for k, v in part.items() if k != "seconds"}

    return [bare(record) | {"epochs": list(map(bare, record["epochs"]))} for record in records]


def test_a_run_is_what_fit_gives_and_its_record_and_weights_say_so(tmp_path):
    run = QUICK | {"seed": 3}
    (record,) = sweep.sweep([run], tmp_path)
    digits = data.load("digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = EnhancedNet()
    settings = {k: v for k, v in run.items() if k != "dataset"}
    history = train.fit(model, digits.train, digits.validation, **settings, progress=False)
    torch.set_num_threads(threads)
    assert record["validation_accuracy"] == history.validation_accuracy
    assert [e["loss"] for e in record["epochs"]] == [e["loss"] for e in history.epochs]
    kept = checkpoint.load(EnhancedNet(), tmp_path / f"{run_name(run)}.pth")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in kept.state_dict().items())
    assert json.loads((tmp_path / f"{run_name(run)}.json").read_bytes()) == record


def test_a_run_has_as_many_threads_as_it_is_given():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        record, _ = train_run(complete(QUICK | {"epochs": 1, "seed": 0}), threads=1)
        assert (torch.get_num_threads(), record["threads"]) == (1, 1)
    finally:
        torch.set_num_threads(before)


def test_what_is_done_is_skipped_and_the_order_is_that_of_the_runs(tmp_path, monkeypatch):
    runs = [QUICK | {"seed": seed} for seed in (1, 0)]
    first = sweep.sweep(runs, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(sweep, "_train", None)  # which would fail
    assert sweep.sweep(runs[::-1], tmp_path) == first[::-1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert [record["run"]["seed"] for record in first] == [1, 0]


@posix
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    """The process is killed with SIGKILL once it has a record; the second sweep makes the rest."""
    runs = [QUICK | {"epochs": 12, "seed": seed} for seed in range(8)]
    code = f"from mnist_mlp.sweep import sweep; sweep({runs!r}, {str(tmp_path)!r})"
    killed = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert 0 < len(done) < 8
    records = sweep.sweep(runs, tmp_path)
    assert [record["run"]["seed"] for record in records] == list(range(8))
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (lambda text: text.replace('"record": 1', '"record": 0'), "another version"),
        (lambda text: text.replace('"epochs": 2', '"epochs": 3', 1), "another run"),
        (lambda text: text.replace('"sha256": "', '"sha256": "0'), "another sha256"),
        (lambda text: "[]", "it holds a list, expected an object"),
        (lambda text: "{}", "it holds None, expected"),
    ],
)
def test_a_record_that_is_of_no_use_is_named_and_computed_again(tmp_path, capsys, damage, words):
    run = QUICK | {"seed": 0}
    (record,) = sweep.sweep([run], tmp_path)
    path = tmp_path / f"{run_name(run)}.json"
    path.write_text(damage(path.read_text(encoding="utf-8")))
    assert without_seconds(sweep.sweep([run], tmp_path)) == without_seconds([record])
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert words in printed
    path.with_suffix(".pth").unlink()  # a record alone is not a run
    sweep.sweep([run], tmp_path)
    assert path.with_suffix(".pth").exists()


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"epoch": 3}, ValueError, "unknown field 'epoch' in a run, expected one of dataset, "),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, found 0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be 'adamw' or 'muon', found 'sgd'"),
        ({"schedule": "none"}, ValueError, "schedule must be .*, found 'none'"),
        ({"elastic": "much"}, TypeError, "elastic must be a number of at least 0"),
        ({"model": "Linear"}, ValueError, "model must be 'EnhancedNet' or 'ConvNet', found"),
    ],
)
def test_a_wrong_field_stops_the_sweep_before_its_first_run(tmp_path, wrong, error, words):
    with pytest.raises(error, match=words):
        sweep.sweep([QUICK | {"seed": 0}, QUICK | {"seed": 1} | wrong], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_student_is_swept_with_its_lessons(tmp_path):
    digits = data.load("digits")
    torch.manual_seed(0)
    taught = distill.lessons(digits.train, [ConvNet()], copies=2, progress=False)
    distill.save(taught, tmp_path / "lessons.pth")
    run = QUICK | {"lessons": str(tmp_path / "lessons.pth"), "augment": 0.0, "seed": 0}
    (record,) = sweep.sweep([run], tmp_path / "records")
    torch.manual_seed(0)
    student = EnhancedNet()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {"epochs": 2, "batch_size": 64, "augment": 0.0, "progress": False}
    history = train.fit(student, taught, digits.validation, **settings)
    torch.set_num_threads(threads)
    assert record["epochs"][1]["loss"] == history.epochs[1]["loss"]
    kept = checkpoint.load(EnhancedNet(), tmp_path / "records" / f"{run_name(run)}.pth")
    assert evaluate(kept, digits.test).n_correct == evaluate(student, digits.test).n_correct


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
    expected = sweep.sweep(runs, tmp_path / "local")
    assert address.startswith("tcp://")
    with sweep.cluster(address) as client:
        client.wait_for_workers(2, timeout=60)
        kill_at_the_first_record(workers[0], tmp_path / "cluster")
        found = sweep.sweep(runs, tmp_path / "cluster")
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
        sweep.cluster("tcp://127.0.0.1:9"),
    ):
        pass
    assert time.monotonic() - start < 15
