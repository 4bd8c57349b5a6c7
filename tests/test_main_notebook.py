"""The committed main notebook, and what happens to it in a reader's hands."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
from helpers import ROOT, assert_same_picture, code_cells, posix, published, visible
from nbclient import NotebookClient

from mnist_lab.research import calibration
from mnist_mlp import (
    EnhancedNet,
    History,
    Recipe,
    Splits,
    evaluate,
    load,
    load_weights,
    notebook,
    plots,
)

PATH = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"


@pytest.fixture
def committed():
    return nbformat.read(PATH, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


# What nbval does not see


def assigned(source: str) -> set[str]:
    """The names that a cell assigns to."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}


def test_the_results_of_cells_that_are_not_compared_are_checked_at_the_end(committed):
    ignored = tagged(committed, "nbval-ignore-output")
    assert ignored
    title = next(i for i, c in enumerate(committed.cells) if c.source.startswith("## 12. Checks"))
    checks = "\n".join(c.source for c in committed.cells[title:] if c.cell_type == "code")
    used = {node.id for node in ast.walk(ast.parse(checks)) if isinstance(node, ast.Name)}
    for cell in ignored:
        assert assigned(cell.source) & used, cell.source
    assert len([s for s in ast.parse(checks).body if isinstance(s, ast.Assert)]) >= 3
    assert not tagged(committed, "nbval-skip")
    assert not tagged(committed, "raises-exception")


def test_at_least_fourteen_cells_are_compared(committed):
    ignored = tagged(committed, "nbval-ignore-output")
    compared = [cell for cell in code_cells(committed) if cell.outputs and cell not in ignored]
    assert len(compared) >= 14


def test_the_parameters_are_literals_and_those_of_the_default_recipe(committed):
    (cell,) = tagged(committed, "parameters")
    found = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    assert found.pop("dataset") == "auto"
    assert Recipe(**found) == Recipe()
    assert len(found) == 9


def test_every_parameter_is_used_in_the_recipe_under_its_own_name(committed):
    (cell,) = tagged(committed, "parameters")
    (build,) = [c for c in code_cells(committed) if "recipe = Recipe(" in c.source]
    (call,) = [
        node
        for node in ast.walk(ast.parse(build.source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Recipe"
    ]
    assert all(keyword.arg == keyword.value.id for keyword in call.keywords)
    assert {keyword.arg for keyword in call.keywords} == assigned(cell.source) - {"dataset"}


def text(committed, words):
    """What the one cell whose source has these words has printed."""
    (cell,) = [cell for cell in code_cells(committed) if words in cell.source]
    return "".join(o.get("text", "") for o in cell.outputs)


def test_the_outputs_that_nbval_ignores_are_those_of_the_published_weights(committed):
    published("models/enhanced_model.json", "notebooks/Handwritten-Digits-Classifier.ipynb")
    card = json.loads((ROOT / "models" / "enhanced_model.json").read_bytes())
    correct, images = card["test_correct"], card["test_images"]
    tested = text(committed, "test = evaluate(model, splits.test)")
    assert f"{correct:,} of {images:,} correct: {correct / images:.2%}" in tested
    trained = text(committed, "validation = evaluate(model, splits.validation)\nnotebook")
    assert f"Best epoch: {card['best_epoch']}, {card['validation_accuracy']:.2%}" in trained


@pytest.mark.parametrize("name", ["confusion_matrix", "reliability", "misclassified"])
def test_the_published_figure_is_of_the_published_weights(
    committed, mnist, name, tmp_path, monkeypatch
):
    published("models/enhanced_model.pth", f"figures/{name}.png")
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (cell,) = [c for c in code_cells(committed) if f'save_figure("{name}")' in c.source]
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")
    test = evaluate(model, mnist.test)
    names = {"plots": plots, "plt": plt, "splits": mnist, "test": test, "data_name": "MNIST"}
    names |= {"calibration": calibration, "classes": mnist.train.classes}
    names |= {"errors": len(mnist.test) - test.n_correct}
    names |= {"outputs": notebook.Outputs(mnist, History(Recipe()))}
    plots.use_style()
    exec(cell.source, names)
    plt.close("all")
    assert_same_picture(tmp_path / f"figures/{name}.png", ROOT / f"figures/{name}.png")


def test_the_test_set_is_not_evaluated_before_its_section(committed):
    for cell in committed.cells:
        if "## 8. The test set" in cell.source:
            return
        if cell.cell_type == "code":
            uses = [line for line in cell.source.splitlines() if "splits.test" in line]
            assert all(line.startswith("parts = ") for line in uses), uses
    pytest.fail("there is no section 8")


# A person's hands. On the embedded digits, for speed; two epochs.


@pytest.fixture
def on_digits(committed, tmp_path, monkeypatch):
    """The notebook with other parameters, a client for it, and nothing of it executed."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (cell,) = tagged(committed, "parameters")
    cell.source = cell.source.replace('"auto"', '"digits"').replace(
        f"epochs = {Recipe().epochs}", "epochs = 2"
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
        "model.state_dict().values())).hexdigest(), by_scale, test.n_correct, "
        "[[t['params'], t['losses']] for t in small['trials']], "
        "history.validation_accuracy, tweaked_history.validation_accuracy, "
        "list(notebook.runs.histories()))"
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
        (
            ["epoch", "3"],
            "NameError: unknown parameter 'epoch': expected one of dataset, epochs, batch_size,",
        ),
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
        "confusion_matrix-digits.png", "misclassified-digits.png",
        "reliability-digits.png", "training_metrics-digits.png",
    ]  # fmt: skip
    assert before == {
        p: p.stat().st_mtime_ns for d in ("models", "figures") for p in (ROOT / d).iterdir()
    }


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


def test_only_a_whole_run_of_the_published_recipe_on_mnist_gets_the_published_names(mnist):
    published, digits = Recipe(), load("digits")
    stopped = "after step 1 of epoch 2 of 9"
    for splits, history, suffix in (
        (mnist, History(published), ""),
        (mnist, History(published, stopped=stopped), "-tweaked"),
        (mnist, History(replace(published, epochs=1)), "-tweaked"),
        (mnist, History(replace(published, elastic_strength=0.0)), "-tweaked"),
        (digits, History(published), "-digits"),
    ):
        outputs = notebook.Outputs(splits, history)
        assert outputs.suffix == suffix
        assert outputs.published == (suffix == "")


def test_the_suffix_is_part_of_every_file_and_the_card_says_how_the_weights_were_made(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    digits, model = load("digits"), EnhancedNet()
    epoch = {"validation_accuracy": 0.5, "seconds": 2.04}
    history = History(Recipe(epochs=1), "float32", [epoch], best_epoch=1)
    outputs = notebook.Outputs(digits, history)
    plt.figure()
    outputs.save_figure("a")
    plt.close()
    test = evaluate(model, digits.test)
    path = outputs.save_model(model, test)
    assert path == tmp_path / "models" / "enhanced_model-digits.pth"
    assert visible(tmp_path / "figures") == ["a-digits.png"]
    card = json.loads(path.with_suffix(".json").read_bytes())
    assert card["recipe"] == Recipe(epochs=1).asdict()
    expected = {
        "dataset": "digits", "precision": "float32", "classes": [*"0123456789"],
        "best_epoch": 1, "epochs_done": 1, "validation_accuracy": 0.5, "training_seconds": 2.0,
        "test_correct": test.n_correct, "test_images": 360,
    }  # fmt: skip
    assert {name: card[name] for name in expected} == expected


def test_a_place_to_write_is_tried_and_left_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    assert notebook.output_path("models/net.pth") == tmp_path / "models" / "net.pth"
    assert list((tmp_path / "models").iterdir()) == []


@posix
def test_a_folder_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (tmp_path / "models").write_text("a file where the folder should be")
    words = r"models/.*pth cannot be written.*Make its folder writable"
    for check in (lambda: notebook.output_path("models/net.pth"), notebook.check_parameters):
        with pytest.raises(OSError, match=words):
            check()


def test_the_banner_cannot_be_missed_on_anything_but_mnist():
    digits = load("digits")
    assert "NOT MNIST" in notebook.banner(digits).data
    assert "1,797 images" in notebook.banner(digits).data
    assert "&lt;why&gt;" in notebook.banner(replace(digits, warning="<why>")).data
    fake = Splits("mnist", digits.train, digits.validation, digits.test)
    assert "NOT" not in notebook.banner(fake).data


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
