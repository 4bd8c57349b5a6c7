"""A sweep trains each run once, exactly as `fit` does, and survives failures and kills."""

import _thread
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from threading import Thread, Timer

import grimp
import numpy as np
import pytest
import torch
from helpers import ROOT, idx, not_on_windows
from joblib import parallel_config
from torch import nn
from torch.nn import functional as F

from mnist_lab.research.convnet import ConvNet
from mnist_lab.research.distillation import precompute_teacher_logits, save_distillation_sets
from mnist_lab.research.strong_augment import strong_augment
from mnist_lab.research.sweep import (
    claim_run,
    cluster,
    describe_run,
    release,
    run_name,
    sweep,
    train_run,
    training_files,
    versions_of,
    with_defaults,
)
from mnist_mlp import EnhancedNet, Recipe, datasets, evaluate, fit, load, load_weights
from mnist_mlp.augment import random_warp
from mnist_mlp.data import concatenate, stratified_split

QUICK = {"dataset": "digits", "epochs": 1, "batch_size": 64}


@pytest.fixture(autouse=True)
def sweep_in_this_process():
    """Worker processes take long to start, so only the campaigns have some."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with parallel_config(backend="sequential"):
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def new_network() -> EnhancedNet:
    torch.manual_seed(0)
    return EnhancedNet()


def modification_times(paths) -> dict:
    return {path: path.stat().st_mtime_ns for path in paths}


def without_times(record: dict) -> dict:
    """Return a record without the entries that differ from one training to the next."""
    ignored = ("seconds", "saved", "machine")
    result = {name: value for name, value in record.items() if name not in ignored}
    result["epochs"] = [{**epoch, "seconds": 0} for epoch in record["epochs"]]
    return result


def assert_same_training(record: dict, folder, history, model) -> None:
    """Compare a run of a sweep with a model that `fit` has trained."""
    assert without_times(record)["epochs"] == without_times({"epochs": history.epochs})["epochs"]
    assert record["validation_accuracy"] == history.validation_accuracy
    saved = load_weights(EnhancedNet(), folder / f"{run_name(record['run'])}.pth").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name])


# Runs


def test_sweep_trains_what_fit_trains(digits, tmp_path):
    torch.set_num_threads(2)
    (record,) = sweep([{**QUICK, "seed": 3}], tmp_path, threads=1)
    assert torch.get_num_threads() == record["threads"] == 1

    torch.manual_seed(3)
    model = EnhancedNet()
    recipe = Recipe(epochs=1, batch_size=64, seed=3)
    history = fit(model, digits.train, digits.validation, recipe, progress=False)
    assert_same_training(record, tmp_path, history, model)
    assert record["run"]["precision"] == history.precision


def test_sweep_trains_on_all_images_strongly_augmented(digits, tmp_path):
    strengths = {"augment_strength": 0.7, "elastic_strength": 0.5, "disturbed_share": 0.5}
    run = {**QUICK, **strengths, "all_images": True, "select": "last epoch"}
    (record,) = sweep([run], tmp_path)

    def augment(images, generator):
        warped = random_warp(images, generator, 0.7, elastic=0.5)
        return strong_augment(warped, generator, 0.5)

    model = new_network()
    images = concatenate(digits.train, digits.validation)
    recipe = Recipe(epochs=1, batch_size=64, select="last epoch")
    history = fit(model, images, digits.validation, recipe, augment=augment, progress=False)
    assert_same_training(record, tmp_path, history, model)
    assert record["run"]["augment_strength"] == 0.7


@pytest.mark.filterwarnings("ignore:after epoch")  # an untrained teacher teaches nothing
def test_sweep_trains_a_student_on_teacher_logits(digits, tmp_path):
    sets = precompute_teacher_logits(digits.train, [EnhancedNet()], copies=2, progress=False)
    save_distillation_sets(sets, digits.train, tmp_path / "sets.pth")
    student = {**QUICK, "epochs": 2, "augment_strength": 0.0}
    (record,) = sweep([{**student, "teacher_logits": str(tmp_path / "sets.pth")}], tmp_path)

    model = new_network()
    recipe = Recipe(epochs=2, batch_size=64, augment_strength=0.0)
    history = fit(model, sets, digits.validation, recipe, progress=False)
    assert_same_training(record, tmp_path, history, model)


@pytest.mark.filterwarnings("ignore:after epoch")  # two steps teach nothing
def test_sweep_trains_the_named_model(digits, tmp_path):
    few = digits.train.subset(torch.arange(128))  # the network takes long
    run = {**QUICK, "dataset": few, "model": "ConvNet", "augment_strength": 0.0}

    sweep([run], tmp_path)

    load_weights(ConvNet(), tmp_path / f"{run_name(run)}.pth")


# Records


def test_run_name_depends_on_the_precision_in_use():
    precision = with_defaults(QUICK)["precision"]
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    assert run_name(QUICK) == run_name({**QUICK, "precision": precision})
    assert run_name(QUICK) != run_name({**QUICK, "precision": other})


def test_run_name_is_that_of_the_number_not_of_its_type():
    plain = {"weight_decay": 0.0, "disturbed_share": 1.0, "learning_rate": 0.5, "epochs": 2}
    others = {"weight_decay": 0, "disturbed_share": np.float32(1), "epochs": np.int64(2)}

    assert run_name({**plain, **others}) == run_name(plain)


def test_sweep_skips_runs_with_a_record_and_keeps_the_order(tmp_path):
    runs = [{**QUICK, "seed": seed} for seed in (1, 0, 1)]
    records = sweep(runs, tmp_path)
    assert [record["run"]["seed"] for record in records] == [1, 0, 1]
    assert json.loads((tmp_path / f"{run_name(runs[1])}.json").read_bytes()) == records[1]

    times = modification_times(tmp_path.iterdir())
    assert len(times) == 4
    assert sweep(runs[::-1], tmp_path) == records[::-1]
    assert modification_times(tmp_path.iterdir()) == times


def cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def remove_weights(path) -> None:
    path.with_suffix(".pth").unlink()


def change_version(part: str):
    """Return a function that makes a record one of another torch, other code or other data."""

    def change(path) -> None:
        record = json.loads(path.read_bytes())
        record["version"][part] = "0.0"
        path.write_text(json.dumps(record))

    return change


@pytest.mark.parametrize("part", ["torch", "code", "data"])
def test_sweep_names_what_differs_and_trains_again(tmp_path, capsys, part):
    (record,) = sweep([QUICK], tmp_path)
    change_version(part)(tmp_path / f"{run_name(QUICK)}.json")
    capsys.readouterr()

    (new_record,) = sweep([QUICK], tmp_path)

    assert without_times(new_record) == without_times(record)
    printed = capsys.readouterr().out
    assert [name for name in ("torch", "code", "data") if f"other {name}" in printed] == [part]


def write_fashion(folder, seed: int) -> None:
    """Write random images in the format of Fashion-MNIST."""
    random = np.random.default_rng(seed)
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        images = random.integers(0, 100, (60, 28, 28), dtype=np.uint8)
        labels = (np.arange(60) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


@pytest.mark.filterwarnings("ignore:after epoch")  # random images teach nothing
def test_sweep_finds_records_by_the_data_not_by_its_name(tmp_path, monkeypatch, capsys):
    run = {"dataset": "fashion", "epochs": 2, "batch_size": 16, "augment_strength": 0.0}
    for name, seed in (("a", 0), ("copy of a", 0), ("b", 1)):
        write_fashion(tmp_path / name, seed)

    def train(root: str, folder: str) -> dict:
        monkeypatch.setenv("MNIST_ROOT", str(tmp_path / root))
        (record,) = sweep([run], tmp_path / folder)
        return record

    first = train("a", "records")
    same = train("copy of a", "records")
    assert same == first
    assert "other data" not in capsys.readouterr().out

    second = train("b", "records")
    afresh = train("b", "other records")
    assert second["sha256"] == afresh["sha256"] != first["sha256"]
    assert "other data" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:after epoch")  # an untrained teacher teaches nothing
def test_sweep_trains_again_if_the_teacher_logits_changed(digits, tmp_path):
    path = tmp_path / "sets.pth"
    student = {**QUICK, "augment_strength": 0.0, "teacher_logits": str(path)}
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sets = precompute_teacher_logits(digits.train, [EnhancedNet()], copies=1, progress=False)
        save_distillation_sets(sets, digits.train, path)
        (record,) = sweep([student], tmp_path)
        weights.append(record["sha256"])

    assert weights[0] != weights[1]


def test_worker_with_other_data_trains_nothing():
    run = with_defaults(QUICK)
    version = versions_of({"run": run})["run"]

    model, record = train_run(run, threads=1, version={**version, "data": "of another machine"})

    assert model is None
    assert "other data" in record["failed"]
    assert record["version"] == version  # its own, so that the next sweep trains the run again


def test_code_digest_covers_every_module_that_a_sweep_imports():
    graph = grimp.build_graph("mnist_mlp", "mnist_lab", cache_dir=None)
    imported = graph.find_upstream_modules("mnist_lab.research.sweep")

    covered = set()
    for path in training_files():
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        covered.add(".".join(parts).removesuffix(".__init__"))
    assert imported <= covered
    assert len(imported) > 10


@pytest.mark.parametrize("damage", [cut_off, remove_weights])
def test_sweep_trains_again_if_the_record_cannot_be_used(tmp_path, capsys, damage):
    (record,) = sweep([QUICK], tmp_path)
    path = tmp_path / f"{run_name(QUICK)}.json"
    damage(path)

    (new_record,) = sweep([QUICK], tmp_path)

    assert without_times(new_record) == without_times(record)
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"epoch": 3}, TypeError),
        ({"epochs": 0}, ValueError),
        ({"all_images": "no"}, TypeError),
        ({"disturbed_share": 1.5}, ValueError),
        ({"disturbed_share": "half"}, ValueError),
        ({"disturbed_share": True}, ValueError),
        ({"model": "Linear"}, ValueError),
        ({"dataset": "auto"}, ValueError),
        ({"dataset": None}, TypeError),
        ({"elastic_strength": 0.5, "augment_strength": 0.0, "disturbed_share": 0.5}, ValueError),
        ({"teacher_logits": "none.pth"}, FileNotFoundError),
    ],
)
def test_sweep_refuses_a_wrong_field_before_the_first_run(tmp_path, field, error):
    with pytest.raises(error, match=next(iter(field)).replace("_", ".")):
        sweep([QUICK, {**QUICK, **field}], tmp_path)
    assert not list(tmp_path.iterdir())


def test_sweep_names_the_run_with_an_unknown_field(tmp_path):
    runs = [{"name": "a"}, {"name": "b", "lr": 0.1}]
    with pytest.raises(TypeError, match=r"'lr' in the run .*'b'.* learning_rate"):
        sweep(runs, tmp_path)


@pytest.mark.parametrize("runs", [QUICK, [Recipe()]])
def test_sweep_refuses_runs_that_are_no_list_of_dicts(tmp_path, runs):
    with pytest.raises(TypeError, match="a run must be a dict"):
        sweep(runs, tmp_path)


@pytest.mark.parametrize("threads", [0, 1.5, None])
def test_sweep_refuses_threads_that_are_no_number(tmp_path, threads):
    with pytest.raises(ValueError, match="threads must be a whole number"):
        sweep([QUICK], tmp_path, threads)


def test_sweep_records_failed_runs_and_goes_on(tmp_path, capsys):
    diverging = {**QUICK, "epochs": 2, "learning_rate": 1e6}
    without_teacher = {**QUICK, "distillation_temperature": 2.0}
    runs = [diverging, without_teacher, QUICK]

    records = sweep(runs, tmp_path)

    assert "FloatingPointError" in records[0]["failed"]
    assert "distillation_temperature" in records[1]["failed"]
    assert len(records[2]["epochs"]) == 1
    printed = capsys.readouterr().out
    assert "2 of 3 runs failed" in printed
    assert "'learning_rate': 1000000.0" in printed

    times = modification_times(tmp_path.iterdir())
    assert sweep(runs, tmp_path) == records
    assert modification_times(tmp_path.iterdir()) == times


# What is your own


class OwnNet(nn.Module):
    """A small network with dropout, so that the order of random numbers matters."""

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 32), nn.SiLU(), nn.Dropout(0.2), nn.Linear(32, classes)
        )

    def forward(self, images):
        return self.layers(images)


def mirrored(images, generator):
    is_mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(is_mirrored[:, None, None], images.flip(2), images)


def smooth_loss(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


OWN = {
    "model": OwnNet,
    "optimizer": partial(torch.optim.SGD, momentum=0.9),
    "schedule": torch.optim.lr_scheduler.CosineAnnealingLR,
    "loss_fn": smooth_loss,
    "augment": mirrored,
}


def test_sweep_trains_your_own_as_fit_does(digits, tmp_path):
    run = {**QUICK, **OWN, "epochs": 2, "learning_rate": 0.1, "dataset": digits, "seed": 3}
    (record,) = sweep([run], tmp_path)

    torch.manual_seed(3)
    model = OwnNet(10)
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.1, seed=3)
    functions = {name: value for name, value in OWN.items() if name != "model"}
    history = fit(model, digits.train, digits.validation, recipe, **functions, progress=False)

    assert without_times(record)["epochs"] == without_times({"epochs": history.epochs})["epochs"]
    saved = load_weights(OwnNet(10), tmp_path / f"{run_name(run)}.pth").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name])
    assert record["run"]["optimizer"].startswith("torch.optim.sgd.SGD (")
    assert record["run"]["dataset"].startswith("digits (")


def test_sweep_holds_a_twelfth_of_an_image_dataset_out(digits, tmp_path):
    (record,) = sweep([{**QUICK, "dataset": digits.train}], tmp_path)

    kept, held_out = stratified_split(digits.train.labels, 1 / 12, seed=0)
    train = digits.train.subset(kept)
    validation = digits.train.subset(held_out)
    model = new_network()
    history = fit(model, train, validation, Recipe(epochs=1, batch_size=64), progress=False)
    assert record["validation_accuracy"] == history.validation_accuracy


FADED = """
def faded(images, generator):
    return images * 0.9  # a comment
"""


@pytest.mark.parametrize(
    ("old", "new", "trainings"), [("a comment", "another", 1), ("0.9", "0.8", 2)]
)
def test_sweep_trains_an_edited_function_again(tmp_path, old, new, trainings):
    for source in (FADED, FADED.replace(old, new)):
        names = {"__name__": "notebook"}
        exec(source, names)
        sweep([{**QUICK, "augment": names["faded"]}], tmp_path)

    assert len(list(tmp_path.glob("*.pth"))) == trainings


def test_sweep_trains_again_on_edited_data(digits, tmp_path):
    brighter = digits.train.images // 4 * 5
    edited = replace(digits, train=replace(digits.train, images=brighter.clamp(0, 255)))
    records = sweep([{**QUICK, "dataset": data} for data in (digits, edited, digits)], tmp_path)

    assert records[0] == records[2]
    assert records[0]["sha256"] != records[1]["sha256"]
    assert len(list(tmp_path.glob("*.pth"))) == 2


def test_run_name_is_alike_for_a_model_and_its_name():
    assert run_name({**QUICK, "model": ConvNet}) == run_name({**QUICK, "model": "ConvNet"})
    assert run_name({**QUICK, "name": "mine"}) == run_name(QUICK)


def test_sweep_returns_the_names_of_this_call(tmp_path):
    (first,) = sweep([{**QUICK, "name": "one"}], tmp_path)
    (second,) = sweep([{**QUICK, "name": "two"}], tmp_path)

    assert (first["name"], second["name"]) == ("one", "two")
    assert first["sha256"] == second["sha256"]


def test_sweep_tests_only_if_asked_and_trains_nothing_for_it(digits, tmp_path):
    without_test = sweep([QUICK], tmp_path)
    weights = tmp_path / f"{run_name(QUICK)}.pth"
    times = modification_times([weights])

    (record,) = sweep([QUICK], tmp_path, test=True)

    assert "test_accuracy" not in without_test[0]
    assert modification_times([weights]) == times
    result = evaluate(load_weights(EnhancedNet(), weights), digits.test)
    assert record["test_accuracy"] == result.accuracy
    assert record["test_correct"] == result.n_correct
    assert sweep([QUICK], tmp_path) == [record]


def test_sweep_refuses_to_test_without_a_test_set(digits, tmp_path):
    for dataset in (digits.train, replace(digits, test=None)):
        with pytest.raises(ValueError, match="no test set"):
            sweep([{**QUICK, "dataset": dataset}], tmp_path, test=True)
    assert not list(tmp_path.iterdir())


def test_sweep_calls_on_epoch_and_ignores_what_it_returns(tmp_path):
    run = {**QUICK, "epochs": 2}
    path = tmp_path / "log.txt"

    def log(name, history):
        with path.open("a") as file:
            file.write(f"{name} {len(history.epochs)}\n")
        return True  # which would stop `fit`

    (record,) = sweep([run], tmp_path / "records", on_epoch=log)

    assert path.read_text() == f"{run_name(run)} 1\n{run_name(run)} 2\n"
    assert len(record["epochs"]) == 2


@pytest.mark.parametrize("field", ["model", "optimizer", "schedule", "loss_fn", "augment"])
def test_sweep_says_what_cannot_be_sent_to_workers(tmp_path, field):
    log = (tmp_path / "log.txt").open("w")

    def own(*args, **kwargs):
        log.write("called")

    with pytest.raises(TypeError, match=f"{field}=.*cannot be sent to the workers"):
        sweep([QUICK, {**QUICK, field: own}], tmp_path / "records")
    assert not list(tmp_path.glob("records/*"))


def test_sweep_records_a_model_without_the_number_of_classes_as_failed(tmp_path):
    (record,) = sweep([{**QUICK, "model": lambda: nn.Linear(784, 10)}], tmp_path)

    assert "model must take the number of classes" in record["failed"]


def test_sweep_says_at_once_that_data_is_missing(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("no network")

    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "empty"))
    monkeypatch.setattr(datasets, "_download", fail)

    with pytest.raises(FileNotFoundError, match=r"MNIST is missing.*no network"):
        sweep([QUICK, {"epochs": 1}], tmp_path / "records")
    assert not list(tmp_path.glob("records/*"))


def test_worker_with_other_functions_trains_nothing():
    run = with_defaults({**QUICK, "augment": mirrored})
    described = describe_run(run)
    version = versions_of({"run": run})["run"]
    elsewhere = {**described, "augment": "of another machine"}

    model, record = train_run(run, 1, version, elsewhere)

    assert model is None
    assert "other augment" in record["failed"]


SCRIPT = """
import sys
import time
from pathlib import Path
from joblib import parallel_config
from torch import nn
from mnist_lab.research.sweep import sweep

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, classes))

def half(images, generator):
    return images / 2

def log(name, history):
    with (folder / "trained.txt").open("a") as file:
        file.write(name + "\\n")
    time.sleep(0.1)  # meanwhile another process claims a run

folder = Path(sys.argv[1])
"""


def start_script(folder, ending: str) -> subprocess.Popen:
    """Start a process that runs the script with this ending."""
    (folder / "script.py").write_text(SCRIPT + textwrap.dedent(ending))
    command = [sys.executable, folder / "script.py", folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_share_a_folder_train_each_run_once(tmp_path):
    """The processes are this one and a script."""
    runs = [{**QUICK, "seed": seed} for seed in range(6)]
    ending = f"""
        print("ready", flush=True)
        with parallel_config(backend="sequential"):
            records = sweep({runs}, folder / "records", on_epoch=log)
        print(*[record["sha256"] for record in records])
    """
    trained_here = tmp_path / "trained here.txt"

    def log(name, history):
        with trained_here.open("a") as file:
            file.write(name + "\n")
        time.sleep(0.1)

    process = start_script(tmp_path, ending)
    assert process.stdout.readline() == "ready\n"
    records = sweep(runs, tmp_path / "records", on_epoch=log)
    output, _ = process.communicate(timeout=300)

    names_here = trained_here.read_text().split()
    names_there = (tmp_path / "trained.txt").read_text().split()
    assert names_here
    assert names_there
    assert sorted(names_here + names_there) == sorted(run_name(run) for run in runs)
    assert output.splitlines()[-1].split() == [record["sha256"] for record in records]
    assert not list(tmp_path.glob("records/*.claim"))


@not_on_windows
def test_claim_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / f"{run_name(QUICK)}.claim"
    # A claim is a lock of the operating system. This process takes it without importing torch.
    code = (
        "import time; from filelock import FileLock\n"
        f"claim = FileLock({str(path)!r}); claim.acquire()\n"
        "print('claimed', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"claimed\n"
    assert claim_run(path) is None

    # The sweep waits for the claim. Half a second later its process is dead.
    Timer(0.5, process.kill).start()
    (record,) = sweep([QUICK], tmp_path)

    process.communicate()
    assert len(record["epochs"]) == 1
    assert not path.exists()


def test_sweep_waits_for_a_run_that_another_process_trains(tmp_path):
    (record,) = sweep([QUICK], tmp_path / "other")
    name = run_name(QUICK)
    claim = claim_run(tmp_path / f"{name}.claim")

    def finish():
        for suffix in (".pth", ".json"):
            (tmp_path / "other" / (name + suffix)).rename(tmp_path / (name + suffix))
        release(claim)

    Timer(0.5, finish).start()
    assert sweep([QUICK], tmp_path) == [record]


# Interrupts, kills and clusters


def test_sweep_records_nothing_of_an_interrupted_run(tmp_path):
    # A process in the background ignores Ctrl-C unless it says otherwise.
    previous_handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        sweep([{**QUICK, "epochs": 200}], tmp_path)
    signal.signal(signal.SIGINT, previous_handler)
    assert not list(tmp_path.iterdir())


TO_KILL = [{**QUICK, "epochs": epochs} for epochs in (1, 10, 11)]


@pytest.fixture(scope="module")
def killed_script(tmp_path_factory):
    """A script that sweeps over what it defines, and is killed in its second sweep; its folder.

    One script for both, since its workers take long to start.
    """
    folder = tmp_path_factory.mktemp("script")
    ending = f"""
        own = {{**{QUICK}, "model": Net, "augment": half}}
        records = sweep([own, {{**own, "seed": 1}}], folder / "own", on_epoch=log)
        (folder / "returned.txt").write_text(" ".join(record["sha256"] for record in records))
        sweep({TO_KILL}, folder / "killed")
    """
    process = start_script(folder, ending)
    while process.poll() is None and not list(folder.glob("killed/*.json")):
        time.sleep(0.01)
    process.kill()
    return process, folder


def test_workers_train_what_a_script_defines(killed_script):
    _, folder = killed_script

    returned = (folder / "returned.txt").read_text().split()
    saved = [json.loads(path.read_bytes()) for path in folder.glob("own/*.json")]
    assert len(returned) == 2
    assert sorted(record["sha256"] for record in saved) == sorted(returned)
    for record in saved:
        assert record["run"]["model"].startswith("__main__.Net (")
        assert record["run"]["augment"].startswith("__main__.half (")
    assert len((folder / "trained.txt").read_text().split()) == 2


@not_on_windows
def test_sweep_continues_after_sigkill_and_leaves_no_worker(killed_script, tmp_path):
    process, script_folder = killed_script
    folder = script_folder / "killed"
    process.communicate(timeout=60)  # the workers share this pipe, so it ends when they end

    times = modification_times(folder.glob("*.json"))
    assert 0 < len(times) < 3
    records = sweep(TO_KILL, folder)
    assert [record["run"]["epochs"] for record in records] == [1, 10, 11]
    assert modification_times(times) == times

    # A worker trains what this process trains.
    (record,) = sweep(TO_KILL[:1], tmp_path / "here")
    assert without_times(record) == without_times(records[0])


@pytest.mark.campaign
@not_on_windows
def test_cluster_loses_a_worker_but_no_record(tmp_path):
    distributed = pytest.importorskip("distributed")
    runs = [{**QUICK, "epochs": 8, "seed": seed} for seed in range(8)]
    expected = sweep(runs, tmp_path / "local")

    def kill_after_the_first_record(process_id: int) -> None:
        while not list((tmp_path / "cluster").glob("*.json")):
            time.sleep(0.01)
        os.kill(process_id, signal.SIGKILL)

    local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with local, cluster(local.scheduler_address) as client:
        workers = client.run(os.getpid)
        process_id = next(iter(workers.values()))
        Thread(target=kill_after_the_first_record, args=(process_id,), daemon=True).start()
        records = sweep(runs, tmp_path / "cluster")
        client.wait_for_workers(2, timeout=60)
        assert client.run(os.getpid) != workers  # another process took the place of the killed one

    assert list(map(without_times, records)) == list(map(without_times, expected))


@pytest.mark.parametrize(
    "address",
    [
        "nowhere://127.0.0.1:9",
        pytest.param("tcp://127.0.0.1:9", marks=pytest.mark.campaign),  # waits ten seconds
    ],
)
def test_cluster_refuses_an_address_without_scheduler(address):
    pytest.importorskip("distributed")
    with pytest.raises(ConnectionError, match="scheduler"), cluster(address):
        pass


def test_sweep_takes_a_generator_and_names_an_unusable_folder_first(tmp_path):
    records = sweep(({**QUICK, "seed": seed} for seed in (0, 1)), tmp_path / "records")
    assert [record["run"]["seed"] for record in records] == [0, 1]

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        sweep([{"epochs": 10_000}], tmp_path / "file")
