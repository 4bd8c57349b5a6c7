"""The committed notebook, and what happens to it in a reader's hands."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import ROOT, assert_same_picture, posix, published, shapes, visible
from nbclient import NotebookClient

from mnist_mlp import checkpoint, plots
from mnist_mlp import notebook as nb
from mnist_mlp.data import Splits, load
from mnist_mlp.evaluate import Evaluation, evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.train import History, default_settings

PATH = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"


@pytest.fixture
def committed():
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


# What nbval does not see


def test_a_cell_whose_output_is_not_compared_asserts_something(committed):
    ignored = tagged(committed, "nbval-ignore-output")
    assert ignored
    for cell in ignored:
        assert any(isinstance(s, ast.Assert) for s in ast.parse(cell.source).body), cell.source
    assert not tagged(committed, "nbval-skip")
    assert not tagged(committed, "raises-exception")


def test_at_least_fourteen_cells_are_compared(committed):
    ignored = tagged(committed, "nbval-ignore-output")
    compared = [cell for cell in code_cells(committed) if cell.outputs and cell not in ignored]
    assert len(compared) >= 14


def test_the_parameters_are_literals_and_those_of_the_default_recipe(committed):
    (cell,) = tagged(committed, "parameters")
    found = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert found == {"dataset": "auto"} | default_settings()


def text(committed, words):
    """What the one cell whose source has these words has printed."""
    (cell,) = [cell for cell in code_cells(committed) if words in cell.source]
    return "".join(o.get("text", "") for o in cell.outputs)


def test_the_outputs_that_nbval_ignores_are_those_of_the_published_weights(committed):
    published("models/enhanced_model.json", "notebooks/Handwritten-Digits-Classifier.ipynb")
    card = json.loads((ROOT / "models" / "enhanced_model.json").read_bytes())
    correct, images = card["test_correct"], card["test_images"]
    tested = text(committed, "test = evaluate(model, digits.test)")
    assert f"{correct:,} of {images:,} correct: {correct / images:.2%}" in tested
    trained = text(committed, "history = fit(model,")
    assert f"Kept: epoch {card['best_epoch']}, {card['validation_accuracy']:.2%}" in trained


@pytest.mark.parametrize("name", ["confusion_matrix", "reliability", "mistakes"])
def test_the_published_figure_is_of_the_published_weights(committed, mnist, name, tmp_path):
    published("models/enhanced_model.pth", f"figures/{name}.png")
    (cell,) = [cell for cell in code_cells(committed) if f"figures/{name}.png" in cell.source]
    model = checkpoint.load(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")
    test = evaluate(model, mnist.test)
    names = {"plots": plots, "plt": plt, "digits": mnist, "test": test, "kind": ""}
    names |= {"wrong": len(mnist.test) - test.n_correct, "output": lambda *_: tmp_path / "new.png"}
    plots.use_style()
    exec(cell.source, names)
    plt.close("all")
    assert_same_picture(tmp_path / "new.png", ROOT / f"figures/{name}.png")


def test_the_test_set_is_not_evaluated_before_its_section(committed):
    for cell in committed.cells:
        if "## 8. The test set" in cell.source:
            return
        if cell.cell_type == "code":
            uses = [line for line in cell.source.splitlines() if "digits.test" in line]
            assert all(line.startswith("parts = ") for line in uses), uses
    pytest.fail("there is no section 8")


# A person's hands. On the embedded digits, for speed; two epochs.


@pytest.fixture
def on_digits(committed, tmp_path, monkeypatch):
    """The notebook with other parameters, a client for it, and nothing of it executed."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (cell,) = tagged(committed, "parameters")
    cell.source = cell.source.replace('"auto"', '"digits"').replace(
        f"epochs = {default_settings()['epochs']}", "epochs = 2"
    )
    for cell in code_cells(committed):
        cell.outputs, cell.execution_count = [], None
    return committed


def client(notebook) -> NotebookClient:
    return NotebookClient(
        notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": PATH.parent}}
    )


def results(cell) -> list:
    """What a cell shows: its text and pictures, without the numbers that count executions.

    The text in one piece: on a slow machine it comes in as many as the kernel's clock makes of it.
    """
    text = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    return [text, *(o.data for o in cell.outputs if o.output_type != "stream")]


def test_every_cell_may_be_run_again_and_in_any_order_with_the_same_result(on_digits):
    state = (
        "import hashlib; print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in "
        "model.state_dict().values())).hexdigest(), sweep, worth, test.n_correct, "
        "history.validation_accuracy, tweaked_history.validation_accuracy, list(runs.histories()))"
    )
    cells, fingerprint = list(on_digits.cells), nbformat.v4.new_code_cell(state)
    on_digits.cells.append(fingerprint)
    runner = client(on_digits)
    with runner.setup_kernel():
        for index, cell in enumerate(on_digits.cells):
            runner.execute_cell(cell, index)
        ignored = tagged(on_digits, "nbval-ignore-output")
        first = {
            cell.id: results(cell)
            for cell in cells
            if cell.cell_type == "code" and cell not in ignored
        }
        expected = results(fingerprint)
        assert len(first) >= 14
        for index, cell in reversed(list(enumerate(cells))):
            for _ in range(2 if cell.cell_type == "code" else 0):
                runner.execute_cell(cell, index)
                assert results(cell) == first.get(cell.id, results(cell)), cell.source
                runner.execute_cell(fingerprint, len(cells))
                assert results(fingerprint) == expected, cell.source


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["epoch", "3"], "NameError: unknown parameter 'epoch': expected one of dataset, epochs,"),
        pytest.param(
            ["epochs", "0"],
            "ValueError: epochs must be a whole number of at least 1, found 0.",
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            ["learning_rate", "fast"],
            "TypeError: learning_rate must be a number above 0, found 'fast'.",
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_papermill_with_an_absurd_parameter_stops_with_one_sentence(parameters, words, tmp_path):
    done = papermill(tmp_path, "-p", "dataset", "digits", "-p", *parameters)
    assert done.returncode
    assert done.stderr.strip().splitlines()[-1].startswith(words)
    assert not list((tmp_path / "out").rglob("*.pth"))


def test_papermill_with_another_number_of_epochs_works_and_touches_nothing_of_ours(tmp_path):
    before = {p: p.stat().st_mtime_ns for d in ("models", "figures") for p in (ROOT / d).iterdir()}
    done = papermill(tmp_path, "-p", "dataset", "digits", "-p", "epochs", "2")
    assert done.returncode == 0, done.stderr
    assert visible(tmp_path / "out" / "models") == [
        "enhanced_model-digits.json", "enhanced_model-digits.pth",
    ]  # fmt: skip
    assert visible(tmp_path / "out" / "figures") == [
        "confusion_matrix-digits.png", "mistakes-digits.png",
        "reliability-digits.png", "training_metrics-digits.png",
    ]  # fmt: skip
    assert before == {
        p: p.stat().st_mtime_ns for d in ("models", "figures") for p in (ROOT / d).iterdir()
    }


def test_a_folder_of_other_classes_is_followed_into_every_output_and_file(tmp_path):
    folder = shapes(tmp_path / "marks")
    done = papermill(
        tmp_path, "-p", "dataset", folder, "-p", "epochs", "20", "-p", "batch_size", "26"
    )
    assert done.returncode == 0, done.stderr
    text = str(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert "NOT MNIST" in text
    for name in ("crosses", "rings", "élan vital"):
        assert f"{name}  " in text  # in the report
    weights = tmp_path / "out" / "models" / "enhanced_model-folder-marks.pth"
    card = json.loads(weights.with_suffix(".json").read_bytes())
    assert card["classes"] == ["crosses", "rings", "élan vital"]
    checkpoint.load(EnhancedNet(3), weights)


def papermill(tmp_path, *arguments):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "papermill", PATH, tmp_path / "out.ipynb", "--no-progress-bar"]
    environment = os.environ | {"MNIST_MLP_OUTPUT": str(tmp_path / "out")}
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


# The functions behind it


def test_only_a_whole_run_of_the_published_recipe_on_mnist_gets_the_published_names():
    published = default_settings()
    assert nb.variant("mnist", History(published)) == ""
    assert (
        nb.variant("mnist", History(published, stopped="after step 1 of epoch 2 of 9")) == "tweaked"
    )
    assert nb.variant("mnist", History(published | {"epochs": 1})) == "tweaked"
    assert nb.variant("digits", History(published)) == "digits"


def test_what_the_notebook_writes_is_named_after_its_variant(committed):
    writes = [
        line
        for cell in code_cells(committed)
        for line in cell.source.splitlines()
        if "output(" in line and "can be written" not in line
    ]
    assert len(writes) == 5
    assert all(re.search(r'output\("[\w/.]+", kind\)', line) for line in writes)


def test_a_variant_is_part_of_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    assert nb.output("models/net.pth") == tmp_path / "models" / "net.pth"
    assert nb.output("models/net.pth", "digits") == tmp_path / "models" / "net-digits.pth"
    assert list((tmp_path / "models").iterdir()) == []


@posix
def test_a_folder_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(
        OSError, match=r"models/net.pth cannot be written.*Make its folder writable"
    ):
        nb.output("models/net.pth")


def test_the_banner_cannot_be_missed_on_anything_but_mnist():
    digits = load("digits")
    assert "NOT MNIST" in nb.banner(digits)
    assert "1,797 images" in nb.banner(digits)
    assert "&lt;why&gt;" in nb.banner(replace(digits, note="<why>"))
    fake = Splits("mnist", digits.train, digits.validation, digits.test)
    assert "NOT" not in nb.banner(fake)


def test_the_log_compares_each_run_with_the_first():
    labels = torch.zeros(1000, dtype=torch.int64)

    def judged(right):
        predicted = torch.cat([torch.zeros(right), torch.ones(1000 - right)]).long()
        return Evaluation(torch.eye(2)[predicted], labels, ("0", "1"))

    log, settings = nb.RunLog(), {"epochs": 1, "seed": 0}
    epochs = [{"seconds": 2.0}]
    log.add("mnist", History(settings, epochs), judged(950))
    log.add("mnist", History(settings | {"epochs": 2}, epochs), judged(980))
    log.add("mnist", History(settings | {"seed": 1}, epochs), judged(951))
    log.add("mnist", History(settings | {"seed": 2}, epochs), judged(900))
    log.add("digits", History(settings, epochs), judged(999))
    log.add("mnist", History(settings | {"seed": 2}, epochs), judged(900))  # again: no new row
    log.add(
        "mnist",
        History(settings | {"epochs": 9}, epochs, stopped="after step 1 of epoch 2 of 9"),
        judged(940),
    )
    assert list(log.histories()) == [
        "run 1", "run 2 (epochs=2)", "run 3 (seed=1)", "run 4 (seed=2)", "run 5 (dataset=digits)",
        "run 6 (epochs=1 of 9)",
    ]  # fmt: skip
    rows = [row.strip("| ").split(" | ") for row in log.table().splitlines()[2:]]
    assert [row[-1] for row in rows[1:]] == [
        "better", "not told apart", "worse", "99.90%", "worse",
    ]  # fmt: skip
    assert rows[1][3] == "98.00%"
    assert rows[1][4].startswith("+3.00 [+")


def test_execute_py_leaves_the_file_as_it_was_if_a_cell_fails(on_digits, tmp_path):
    code_cells(on_digits)[3].source = "1 / 0"
    path = tmp_path / "broken.ipynb"
    nbformat.write(on_digits, path)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "execute.py", path], capture_output=True, text=True
    )
    assert done.returncode
    assert "ZeroDivisionError" in done.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".ipynb"] == ["broken.ipynb"]
