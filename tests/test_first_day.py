"""What somebody meets who tries it out: nothing is ignored or lost, each error is a sentence."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, pasted, shapes, visible
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST

from mnist_mlp import checkpoint, download
from mnist_mlp import notebook as nb
from mnist_mlp.data import ImageDataset, load
from mnist_mlp.evaluate import Evaluation, evaluate
from mnist_mlp.images import find_digits, to_mnist
from mnist_mlp.model import EnhancedNet
from mnist_mlp.samples import photograph, write_samples
from mnist_mlp.sweep import sweep
from mnist_mlp.train import History, default_settings, fit

NOTEBOOK = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"
QUICK = {"epochs": 2, "batch_size": 32, "progress": False}


def net(kind=EnhancedNet, *arguments):
    torch.manual_seed(0)
    return kind(*arguments)


# Told, and done


class Dropping(nn.Sequential):
    def __init__(self, share: float):
        super().__init__(nn.Linear(784, 16), nn.Dropout(share), nn.Linear(16, 10))


def test_a_checkpoint_of_the_same_network_with_other_dropout_is_not_taken_for_its_own(
    toy, tmp_path
):
    path = tmp_path / "run.pt"
    fit(net(Dropping, 0.1), *toy, **QUICK, checkpoint=path)
    with pytest.raises(ValueError, match=r"layers was .*Dropout\(p=0\.1.*, is .*Dropout\(p=0\.9"):
        fit(net(Dropping, 0.9), *toy, **QUICK, checkpoint=path)


def test_a_completed_checkpoint_says_that_nothing_was_trained(toy, tmp_path, capsys):
    settings = QUICK | {"progress": True, "checkpoint": tmp_path / "run.pt"}
    fit(net(), *toy, **settings)
    assert "nothing was trained" not in capsys.readouterr().out
    fit(net(), *toy, **settings)
    assert "run.pt is already complete: nothing was trained." in capsys.readouterr().out


def invert(images: torch.Tensor) -> torch.Tensor:
    return 1 - images


def blank(images: torch.Tensor) -> torch.Tensor:
    return images * 0


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_an_own_augmentation_is_applied_to_the_training_images_after_the_warps(toy, augment):
    seen = []

    def mine(images):
        seen.append(images.clone())
        return invert(images)

    train = replace(toy[0], augment=mine)
    one_step = QUICK | {"epochs": 1, "batch_size": 130, "augment": augment, "learning_rate": 1e-9}
    history = fit(net(), train, toy[1], **one_step)
    (images,) = seen
    still = ImageDataset(toy[0].images, toy[0].labels)
    warped = not any(torch.equal(images[0], image / 255) for image in still.images)
    assert warped == bool(augment)
    if not augment:  # the loss is that of the inverted images
        inverted = replace(still, images=255 - still.images)
        assert history.epochs[0]["loss"] == pytest.approx(evaluate(net(), inverted).loss, rel=1e-4)
    assert evaluate(net(), train).loss == evaluate(net(), still).loss  # not while evaluating


def test_a_checkpoint_with_another_own_augmentation_is_refused_by_its_name(toy, tmp_path):
    path = tmp_path / "run.pt"
    fit(net(), replace(toy[0], augment=invert), toy[1], **QUICK, checkpoint=path)
    words = r"own augmentation was '.*test_first_day\.invert', is '.*test_first_day\.blank'"
    with pytest.raises(ValueError, match=words):
        fit(net(), replace(toy[0], augment=blank), toy[1], **QUICK, checkpoint=path)


def test_the_same_run_twice_in_a_sweep_gives_its_record_twice(tmp_path):
    run = {"dataset": "digits", "epochs": 1, "batch_size": 64}
    records = sweep([run | {"seed": 0}, run | {"seed": 1}, run | {"seed": 0}], tmp_path)
    assert [record["run"]["seed"] for record in records] == [0, 1, 0]
    assert len(list(tmp_path.glob("*.json"))) == 2


# Nothing is lost


def test_a_file_that_is_no_checkpoint_stays_as_it_is(toy, tmp_path):
    checkpoint.save(net(), tmp_path / "weights.pth")
    (tmp_path / "notes.txt").write_text("not to be lost")
    torch.save({"about": 5, "parts": []}, tmp_path / "other.pt")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("weights.pth", "notes.txt", "other.pt"):
        words = f"{name} is there already and is no training's checkpoint: it stays as it is"
        with pytest.raises(ValueError, match=words):
            fit(net(), *toy, **QUICK, checkpoint=tmp_path / name)
    after = {name: (tmp_path / name).read_bytes() for name in before}
    assert after == before
    assert set(visible(tmp_path)) <= set(before)


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the children")
def test_the_workers_of_a_killed_sweep_end_within_seconds(tmp_path):
    run = {"dataset": "digits", "epochs": 300, "batch_size": 64}
    code = (
        f"from mnist_mlp.sweep import sweep\nsweep([{run} | dict(seed=s) for s in range(9)], '.')"
    )
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
            busy = [pid for pid in workers if seconds(pid) > 6]  # well into its first run
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


# The notebook


def judged(right: int) -> Evaluation:
    predicted = torch.cat([torch.zeros(right), torch.ones(1000 - right)]).long()
    return Evaluation(torch.eye(2)[predicted], torch.zeros(1000).long(), ("0", "1"))


def test_any_setting_of_fit_may_be_tweaked_and_the_log_of_runs_goes_on():
    log, published = nb.RunLog(), default_settings()
    log.add("mnist", History(published, [{"seconds": 1.0}]), judged(950))
    for name, value in default_settings(extras=True).items():
        other = {"schedule": "constant", "precision": "bfloat16"}.get(name, 0.5)
        assert other != value
        log.add("mnist", History(published | {name: other}, [{"seconds": 1.0}]), judged(950))
    names = list(log.histories())
    assert "run 2 (schedule=constant)" in names
    assert len(log.table().splitlines()) == 2 + len(names) == 2 + 6


def test_the_log_can_be_emptied_and_each_data_set_is_compared_with_its_own_first_run():
    log, published = nb.RunLog(), default_settings()
    one = [{"seconds": 1.0}]
    log.add("digits", History(published, one), judged(900))
    log.add("mnist", History(published, one), judged(950))
    log.add("mnist", History(published | {"seed": 1}, one), judged(990))
    verdicts = [row.split("|")[-2].strip() for row in log.table().splitlines()[2:]]
    assert verdicts == ["", "", "better"]
    log.clear()
    assert log.histories() == {}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The notebook on the digits, its cells executed one by one by the name of their section."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    )

    def execute(words: str, change=lambda source: source):
        (index,) = [
            i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and words in c.source
        ]
        notebook.cells[index].source = change(notebook.cells[index].source)
        return client.execute_cell(notebook.cells[index], index)

    with client.setup_kernel():
        execute("from mnist_mlp")
        yield execute


def epochs(number: int):
    return lambda source: re.sub(
        r"^epochs = .*$", f"epochs = {number}", source.replace('"auto"', '"digits"'), flags=re.M
    )


def test_in_the_notebook_a_changed_parameter_counts_without_the_cells_between(runner):
    runner("label_smoothing = 0.0", epochs(3))
    runner("digits = data.load(dataset)")
    runner("label_smoothing = 0.0", epochs(1))
    cell = runner("history = fit(model")
    assert " 1/1 " in "".join(output.get("text", "") for output in cell.outputs)


def test_in_the_notebook_a_quick_look_trains_few_epochs_in_all(runner):
    """`papermill -p epochs 2`: the trials on preprocessing and tuning are quick then, too."""
    runner("label_smoothing = 0.0", epochs(2))
    runner("digits = data.load(dataset)")
    counted = "; fit = lambda *a, _fit=fit, **k: trained.append(k['epochs']) or _fit(*a, **k)"
    runner("per class {torch.bincount", lambda source: f"{source}\ntrained = []{counted}")
    runner("worth = {name: {} for name in scales}")
    runner("sweep = {}")
    cell = runner("history = fit(model", lambda source: f"{source}\nprint('in all', sum(trained))")
    assert "in all 7" in "".join(output.get("text", "") for output in cell.outputs)


def test_in_the_notebook_interrupting_the_tuning_says_so(runner):
    runner("label_smoothing = 0.0", epochs(45))
    runner("digits = data.load(dataset)")
    ctrl_c = "lambda images: signal.raise_signal(signal.SIGINT) or images"  # at the first batch
    later = f"import signal\ninterrupting = replace(digits.train, augment={ctrl_c})\n"
    later += "digits = replace(digits, train=interrupting)\n"
    with pytest.raises(CellExecutionError, match=r"interrupted; run this cell again") as found:
        runner("sweep = {}", lambda source: later + source)
    assert "KeyboardInterrupt" in str(found.value)
    assert "AssertionError" not in str(found.value)


# Riddles


class Pair(nn.Linear):
    def forward(self, images):
        return super().forward(images), None


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


def test_a_model_that_cannot_be_meant_is_one_sentence(toy):
    for model, words in {
        EnhancedNet: r"a network, found the class EnhancedNet: did you mean EnhancedNet\(\)\?",
        "net": r"a network, found str",
        Pair(784, 10): r"must return logits, a tensor of shape \(N, 10\), found a tuple",
        nn.Linear(784, 7): r"logits of shape \(N, 10\), one a class, found \(N, 7\)",
        convolutional(): r"take images of shape \(2, 784\).*x\.view\(-1, 1, 28, 28\).*: Expected",
        nn.Sequential(nn.Linear(784, 10), nn.Unflatten(1, (5, 2))): r"found \(N, 5, 2\)\.",
    }.items():
        with pytest.raises((TypeError, ValueError), match=words) as found:
            fit(model, *toy, **QUICK)
        assert "\n" not in str(found.value)
        assert not isinstance(model, nn.Module) or model.training  # as it was


def test_data_that_cannot_be_meant_are_one_sentence(toy):
    digits = load("digits")
    for train, words in (
        (digits, r"train must be an ImageDataset\(images, labels\), found Splits.*'train'"),
        (toy[0].images, r"found Tensor\.$"),
        (DataLoader(toy[0], 10), "found DataLoader"),
        (Subset(toy[0], range(9)), "found Subset"),
    ):
        with pytest.raises(TypeError, match=words):
            fit(net(), train, toy[1], **QUICK)
    with pytest.raises(TypeError, match=r"validation must be .*found Tensor"):
        fit(net(), toy[0], toy[1].images, **QUICK)
    with pytest.raises(TypeError, match=r"train must be .*found Tensor"):
        fit(net(), [toy[0], toy[0].images], toy[1], **QUICK)
    with pytest.raises(ValueError, match=r"^train must be at least one ImageDataset, found"):
        fit(net(), [], toy[1], **QUICK)
    four = ImageDataset(toy[0].images, toy[0].labels % 4, tuple("0123"))
    with pytest.raises(ValueError, match=r"train has the classes 0 1 2 3, validation 0 1 2 3 4"):
        fit(net(), four, toy[1], **QUICK)


def test_what_predict_proba_cannot_take_is_one_sentence():
    model, image = EnhancedNet(), torch.zeros(28, 28)
    with pytest.raises(TypeError, match=r"normalised floats, found torch\.uint8: \(images / 255"):
        model.predict_proba(image[None].byte())
    with pytest.raises(ValueError, match=r"found \(28, 28\): images\[None\] makes one image such"):
        model.predict_proba(image)
    with pytest.raises(
        ValueError, match=r"shape \(N, 784\) or \(N, 28, 28\), found \(2, 30, 30\)\."
    ):
        model.predict_proba(torch.zeros(2, 30, 30))
    for shape in ((3, 784), (3, 28, 28), (3, 1, 28, 28), (0, 784)):
        assert model.predict_proba(torch.zeros(shape)).shape == (shape[0], 10)


def test_what_load_cannot_take_is_one_sentence():
    with pytest.raises(TypeError, match="a data set's name or a folder, found 5"):
        load(5)
    for seed in ("a", 1.5, -1, True):
        with pytest.raises(TypeError, match=f"seed must be a whole number .*, found {seed!r}"):
            load("digits", seed=seed)


def test_a_folder_with_train_and_test_is_read_as_what_it_is(tmp_path):
    shapes(tmp_path / "marks" / "train")
    shapes(tmp_path / "marks" / "test", count=5)
    splits = load(tmp_path / "marks")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [66, 6, 15]
    assert splits.train.classes == ("crosses", "rings", "élan vital")
    (tmp_path / "marks" / "test" / "rings").rename(tmp_path / "marks" / "test" / "squares")
    with pytest.raises(ValueError, match="must hold the same classes twice, found crosses rings"):
        load(tmp_path / "marks")


def test_a_folder_inside_a_class_folder_is_named(tmp_path):
    folder = shapes(tmp_path / "marks")
    (folder / "rings" / "more").mkdir()
    with pytest.raises(
        ValueError, match=r"more is a folder: .*rings must hold the pictures of one"
    ):
        load(folder)


def test_a_batch_larger_than_the_data_is_all_of_them_and_said(tmp_path):
    splits = load(shapes(tmp_path / "marks"))
    words = r"batch_size is 512, but there are only 52 training images: an epoch is one step\."
    with pytest.warns(UserWarning, match=words):
        history = fit(net(EnhancedNet, 3), splits.train, splits.validation, epochs=100, augment=0.5)
    assert history.validation_accuracy > 0.5
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="batch_size")  # for it is just as large
        fit(net(EnhancedNet, 3), splits.train, splits.validation, epochs=1, batch_size=52)


def test_a_batch_larger_than_the_data_is_a_warning_at_the_line_that_called_fit(toy):
    with pytest.warns(UserWarning, match="batch_size is 131") as found:
        fit(net(), *toy, **QUICK | {"batch_size": 131})
    assert found[0].filename == __file__


def test_a_data_set_without_a_network_names_its_own_remedy_and_leaves_nothing(
    tmp_path, monkeypatch
):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://no.such.host.invalid/"])
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FileNotFoundError, match=r"folder that holds FashionMNIST/raw/, connect"):
        load("fashion", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.filterwarnings("ignore:batch_size")
def test_the_cause_of_a_short_trainings_failure_is_that_it_is_short(toy):
    class Always(nn.Linear):
        def forward(self, images):
            return super().forward(images) * 0 + torch.eye(10)[3]

    with pytest.warns(UserWarning, match=r"is that 6 steps, 3 an epoch, are too few: train for"):
        fit(Always(784, 10), *toy, epochs=2, batch_size=50, progress=False)


def test_several_digits_in_one_picture_are_named(recwarn):
    number = photograph("375", np.random.default_rng(0), 220)
    with pytest.warns(UserWarning, match="seems to hold 3 digits, read as one: find_digits parts"):
        to_mnist(number)
    assert len(find_digits(number)) == 3


def test_one_digit_is_not_taken_for_several(tmp_path, recwarn):
    for path, _ in write_samples(tmp_path, each=6):
        to_mnist(path)
    random = np.random.default_rng(0)
    for digit in load("digits").test.images[:100].numpy():
        to_mnist(pasted(digit, random, rough=False))
    assert not [w for w in recwarn if "seems to hold" in str(w.message)]


def test_an_unknown_setting_of_fit_names_the_nearest(toy):
    for name, words in {
        "epoch": "fit has no setting 'epoch': did you mean 'epochs'?",
        "lr_schedule": "did you mean 'schedule'?",
        "checkpoints": "did you mean 'checkpoint'?",
        "show_progress": "did you mean 'progress'?",
        "qqq": "fit has no setting 'qqq': expected one of epochs, ",
    }.items():
        with pytest.raises(TypeError, match=re.escape(words)):
            fit(net(), *toy, **{name: 3})


def test_execute_py_tells_how_it_is_called():
    execute = ROOT / "notebooks" / "execute.py"
    done = subprocess.run([sys.executable, execute, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "`python notebooks/execute.py NOTEBOOK`" in done.stdout


# README


@pytest.fixture
def repository(tmp_path):
    """A folder that looks like the repository, into which a snippet may write."""
    for name in ("figures", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S), ids=len)
def test_readmes_snippets_run_as_pasted(code, repository, mnist):
    if "onnxruntime" in code:
        pytest.importorskip("onnxruntime")
    environment = os.environ | {
        "MNIST_ROOT": os.path.abspath(os.environ.get("MNIST_ROOT", ROOT / "data"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if "accuracy)" in code:  # of one seed
        assert float(done.stdout.splitlines()[-1]) > 0.975
