"""Many runs: none twice, none half, none lost with a worker."""

import json
import os
import signal
import subprocess
import sys
import time
from threading import Thread

import pytest
import torch
from helpers import posix

from mnist_lab.research import sweep as sweep_module
from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import precompute_teacher_logits, save_distillation_sets
from mnist_lab.research.strong_augment import strong_augment
from mnist_lab.research.sweep import cluster, run_name, sweep, train_run, with_defaults
from mnist_mlp import EnhancedNet, Recipe, fit, load, load_weights
from mnist_mlp.augment import random_warp
from mnist_mlp.data import concatenate

QUICK = {"dataset": "digits", "epochs": 2, "batch_size": 64}
RECIPE = {"epochs": 2, "batch_size": 64}


@pytest.fixture(autouse=True)
def one_thread():
    """As the runs of a sweep have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def modification_times(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def without_times(record: dict) -> dict:
    def bare(part: dict) -> dict:
        return {name: v for name, v in part.items() if name not in ("seconds", "saved", "machine")}

    return {**bare(record), "epochs": [bare(epoch) for epoch in record["epochs"]]}


def assert_same_training(record: dict, history, model, folder) -> None:
    assert [e["loss"] for e in record["epochs"]] == [e["loss"] for e in history.epochs]
    assert record["validation_accuracy"] == history.validation_accuracy
    saved = load_weights(EnhancedNet(), folder / f"{run_name(record['run'])}.pth")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])


def test_sweep_trains_what_fit_trains(digits, tmp_path):
    run = {**QUICK, "seed": 3}
    (record,) = sweep([run], tmp_path)

    torch.manual_seed(3)
    model = EnhancedNet()
    recipe = Recipe(**RECIPE, seed=3)
    history = fit(model, digits.train, digits.validation, recipe, progress=False)
    assert_same_training(record, history, model, tmp_path)
    assert record["run"]["precision"] == history.precision
    assert json.loads((tmp_path / f"{run_name(run)}.json").read_bytes()) == record


def test_sweep_trains_on_all_images_strongly_augmented(digits, tmp_path):
    run = {
        **QUICK,
        "seed": 0,
        "all_images": True,
        "disturbed_share": 0.5,
        "augment_strength": 0.7,
        "elastic_strength": 0.5,
    }
    (record,) = sweep([run], tmp_path)
    assert record["run"]["augment_strength"] == 0.7

    def augment(images, generator):
        return strong_augment(random_warp(images, generator, 0.7, elastic=0.5), generator, 0.5)

    torch.manual_seed(0)
    model = EnhancedNet()
    images = concatenate(digits.train, digits.validation)
    history = fit(
        model, images, digits.validation, Recipe(**RECIPE), augment=augment, progress=False
    )
    assert_same_training(record, history, model, tmp_path)


def test_sweep_trains_a_student_on_teacher_logits(digits, tmp_path):
    torch.manual_seed(0)
    sets = precompute_teacher_logits(digits.train, [ConvNet()], copies=2, progress=False)
    save_distillation_sets(sets, tmp_path / "sets.pth")
    student = {"teacher_logits": str(tmp_path / "sets.pth"), "augment_strength": 0.0, "seed": 0}
    (record,) = sweep([{**QUICK, **student}], tmp_path / "records")

    torch.manual_seed(0)
    model = EnhancedNet()
    recipe = Recipe(**RECIPE, augment_strength=0.0)
    history = fit(model, sets, digits.validation, recipe, progress=False)
    assert_same_training(record, history, model, tmp_path / "records")


def test_train_run_sets_the_threads():
    torch.set_num_threads(2)
    _, record = train_run(with_defaults({**QUICK, "epochs": 1}), threads=1)
    assert torch.get_num_threads() == record["threads"] == 1


def test_train_run_passes_an_interrupt_on(monkeypatch):
    """Half a run is no record, neither a good one nor a failed one."""

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_run(with_defaults(QUICK), threads=1)


def test_run_name_is_that_of_the_precision_in_use():
    used = with_defaults(QUICK)["precision"]
    other = {"float32": "bfloat16", "bfloat16": "float32"}[used]
    assert run_name(QUICK) == run_name({**QUICK, "precision": used})
    assert run_name(QUICK) != run_name({**QUICK, "precision": other})


def test_sweep_skips_runs_with_a_record_and_keeps_the_order(tmp_path):
    runs = [{**QUICK, "seed": seed} for seed in (1, 0, 1)]
    records = sweep(runs, tmp_path)
    assert [record["run"]["seed"] for record in records] == [1, 0, 1]
    before = modification_times(tmp_path)
    assert len(before) == 4
    assert sweep(runs[::-1], tmp_path) == records[::-1]
    assert modification_times(tmp_path) == before


@posix
def test_sweep_continues_after_sigkill(tmp_path):
    """It is killed once it has a record; the second sweep makes the rest."""
    runs = [{**QUICK, "epochs": 12, "seed": seed} for seed in range(8)]
    code = f"from mnist_lab.research.sweep import sweep; sweep({runs!r}, {str(tmp_path)!r})"
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


def cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def make_older(path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"record": ', '"record": 9'))


def remove_weights(path) -> None:
    path.with_suffix(".pth").unlink()


@pytest.mark.parametrize("damage", [cut_off, make_older, remove_weights])
def test_sweep_trains_again_if_the_record_cannot_be_used(tmp_path, capsys, damage):
    run = {**QUICK, "seed": 0}
    (record,) = sweep([run], tmp_path)
    path = tmp_path / f"{run_name(run)}.json"
    damage(path)
    (again,) = sweep([run], tmp_path)
    assert without_times(again) == without_times(record)
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"epoch": 3}, TypeError),
        ({"epochs": 0}, ValueError),
        ({"all_images": "no"}, TypeError),
        ({"disturbed_share": 1.5}, ValueError),
        ({"model": "Linear"}, ValueError),
    ],
)
def test_sweep_refuses_a_wrong_field_before_the_first_run(tmp_path, wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        sweep([{**QUICK, "seed": 0}, {**QUICK, "seed": 1, **wrong}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_sweep_records_failed_runs_and_goes_on(tmp_path, capsys):
    diverging = {**QUICK, "learning_rate": 1e6}
    without_file = {**QUICK, "teacher_logits": str(tmp_path / "none.pth")}
    runs = [diverging, without_file, QUICK]
    records = sweep(runs, tmp_path)
    assert records[0]["failed"].startswith("FloatingPointError")
    assert records[1]["failed"].startswith("FileNotFoundError")
    assert len(records[2]["epochs"]) == 2
    printed = capsys.readouterr().out
    assert "2 of 3 runs failed" in printed
    assert "'learning_rate': 1000000.0" in printed

    before = modification_times(tmp_path)
    assert sweep(runs, tmp_path) == records
    assert modification_times(tmp_path) == before


@posix
def test_workers_end_soon_after_sigkill_of_the_sweep(tmp_path):
    """A worker that lives on goes on writing the time."""
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from joblib import Parallel, delayed\n"
        "from mnist_lab.research.sweep import end_with_parent\n"
        "def work(number):\n"
        "    end_with_parent()\n"
        "    while True:\n"
        "        Path(f'{number}.time').write_text(str(time.time()))\n"
        "        time.sleep(0.1)\n"
        "Parallel(2)(delayed(work)(number) for number in range(2))\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.time"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    killed.kill()
    killed.wait()

    time.sleep(3)
    ended = modification_times(tmp_path)
    assert len(ended) == 2
    time.sleep(1)
    assert modification_times(tmp_path) == ended


@pytest.mark.campaign
@posix
def test_cluster_loses_a_worker_but_no_record(tmp_path):
    distributed = pytest.importorskip("distributed")
    runs = [{**QUICK, "epochs": 8, "seed": seed} for seed in range(8)]
    expected = sweep(runs, tmp_path / "local")

    def kill_at_the_first_record(pid: int) -> None:
        while not list((tmp_path / "cluster").glob("*.json")):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with local, cluster(local.scheduler_address) as client:
        before = client.run(os.getpid)
        pid = next(iter(before.values()))
        Thread(target=kill_at_the_first_record, args=(pid,), daemon=True).start()
        records = sweep(runs, tmp_path / "cluster")
        client.wait_for_workers(2, timeout=60)
        assert client.run(os.getpid) != before  # another process took its place

    assert list(map(without_times, records)) == list(map(without_times, expected))


def test_cluster_without_a_scheduler_raises_soon():
    pytest.importorskip("distributed")
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="scheduler"), cluster("tcp://127.0.0.1:9"):
        pass
    assert time.monotonic() - start < 15
