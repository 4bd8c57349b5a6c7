"""The committed notebooks are one clean run, and run again with other parameters."""

import ast
import json
import runpy
import subprocess
import sys

import nbformat
import papermill
import pytest
from helpers import ROOT, assert_same_picture, code_cells, skip_unless_published, visible
from nbclient import NotebookClient
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from mnist_lab.handwriting.folder import load_folder
from mnist_lab.handwriting.synthetic import write_samples
from mnist_mlp import EnhancedNet, History, Recipe, evaluate, load_weights, plots
from mnist_mlp.notebook import Outputs

FOLDER = ROOT / "notebooks"
MAIN = FOLDER / "Handwritten-Digits-Classifier.ipynb"
WHAT_LEARNED = FOLDER / "What-Has-It-Learned.ipynb"
OWN_DIGITS = FOLDER / "Your-Own-Digits.ipynb"
FURTHER = FOLDER / "How-Far-Can-It-Go.ipynb"
NOTEBOOKS = [MAIN, WHAT_LEARNED, OWN_DIGITS, FURTHER]

for_each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def is_ignored(cell) -> bool:
    """Whether nbval does not compare the outputs of the cell."""
    return "nbval-ignore-output" in cell.metadata.get("tags", [])


def printed(cells) -> str:
    """What the cells have printed."""
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def sections(path) -> dict[str, list]:
    """The code cells of each section, by the section's title without its number."""
    title = "Imports"
    cells_by_title = {title: []}
    for cell in read(path).cells:
        if cell.source.startswith("## "):
            title = cell.source.splitlines()[0].split(". ")[1]
            cells_by_title[title] = []
        elif cell.cell_type == "code":
            cells_by_title[title].append(cell)
    return cells_by_title


# What nbval does not see


@for_each_notebook
def test_committed_outputs_are_one_clean_run(path):
    notebook = read(path)
    cells = code_cells(notebook)
    outputs = [output for cell in cells for output in cell.outputs]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata
    assert "papermill" not in notebook.metadata
    assert "NOT MNIST" not in str(cells)


@for_each_notebook
def test_most_cells_are_compared(path):
    cells = code_cells(read(path))
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    compared = [cell for cell in cells if cell.outputs and not is_ignored(cell)]

    assert len(compared) > len(cells) / 2
    assert "nbval-skip" not in tags
    assert "raises-exception" not in tags


@pytest.mark.parametrize("path", [MAIN, WHAT_LEARNED, OWN_DIGITS], ids=lambda path: path.stem)
def test_every_printed_claim_holds(path):
    claims = printed(sections(path)["Checks"])

    assert claims.count(": True\n") >= 5
    assert ": False" not in claims


# The main notebook's committed results


def test_main_parameters_are_literals_and_default_recipe():
    parameters = inspect_notebook(str(MAIN))
    values = {name: ast.literal_eval(p["default"]) for name, p in parameters.items()}

    assert values.pop("dataset") == "auto"
    assert Recipe(**values) == Recipe()


def test_main_reads_test_set_only_in_its_section():
    for title, cells in sections(MAIN).items():
        if title == "The test set":
            return
        for cell in cells:
            nodes = ast.walk(ast.parse(cell.source))
            calls = [node for node in nodes if isinstance(node, ast.Call)]
            arguments = [ast.unparse(argument) for call in calls for argument in call.args]
            assert "splits.test" not in arguments, cell.source
    pytest.fail("there is no section on the test set")


def test_main_outputs_are_those_of_published_weights():
    skip_unless_published("models/enhanced_model.json", f"notebooks/{MAIN.name}")
    card = json.loads((ROOT / "models" / "enhanced_model.json").read_bytes())
    text = printed(code_cells(read(MAIN)))

    assert f"{card['test_correct']:,} of {card['test_images']:,} correct" in text
    assert f"Best epoch: {card['best_epoch']}, {card['validation_accuracy']:.2%}" in text


def test_main_figures_are_those_of_published_weights(mnist, tmp_path, monkeypatch):
    skip_unless_published("models/enhanced_model.pth", "figures", f"notebooks/{MAIN.name}")
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    model = load_weights(EnhancedNet(), ROOT / "models" / "enhanced_model.pth")
    variables = {
        "splits": mnist,
        "data_name": "MNIST",
        "classes": mnist.train.classes,
        "test": evaluate(model, mnist.test),
        "outputs": Outputs(mnist, History(Recipe())),
    }

    plots.use_style()
    for cell in sections(MAIN)["Imports"] + sections(MAIN)["The test set"]:
        if not is_ignored(cell):
            exec(cell.source, variables)

    assert {"confusion_matrix.png", "misclassified.png"} < set(visible(tmp_path / "figures"))
    for figure in (tmp_path / "figures").iterdir():
        assert_same_picture(figure, ROOT / "figures" / figure.name)


# The main notebook in a reader's hands, on the embedded digits

PARAMETERS = {
    "dataset": "digits",
    "epochs": 1,
    "batch_size": 64,
    "learning_rate": 0.003,
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "augment_strength": 0.5,
    "optimizer": "muon",
    "seed": 1,
}


def results(cell) -> list:
    """What a cell shows: its text in one piece, and its figures and tables."""
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    figures = [output.data for output in cell.outputs if output.output_type != "stream"]
    return [text, *figures]


@pytest.fixture(scope="module")
def main_run(tmp_path_factory):
    """The main notebook, executed with papermill's parameters; its live client; its outputs."""
    folder = tmp_path_factory.mktemp("outputs")
    notebook = parameterize_notebook(load_notebook_node(str(MAIN)), PARAMETERS)
    client = NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_MLP_OUTPUT", str(folder))
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            yield notebook, client, folder


def test_main_uses_every_parameter(main_run):
    _, _, folder = main_run
    card = json.loads((folder / "models" / "enhanced_model-digits.json").read_bytes())
    fields = {name: value for name, value in PARAMETERS.items() if name != "dataset"}

    assert card["recipe"] == Recipe(**fields).asdict()


def test_main_cells_run_again_in_any_order_with_same_results(main_run):
    notebook, client, _ = main_run
    cells = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and "parameters" not in str(cell.metadata.tags):
            cells.append((index, cell))
    compared = [(index, cell) for index, cell in cells if not is_ignored(cell)]
    first_results = {index: results(cell) for index, cell in compared}

    for index, cell in reversed(cells):
        client.execute_cell(cell, index)
        assert is_ignored(cell) or results(cell) == first_results[index], cell.source

    # The training was repeated after the cells that show its results, so run those once more.
    training = next(index for index, cell in cells if " fit(" in cell.source)
    for index, cell in compared:
        if index > training:
            client.execute_cell(cell, index)
            assert results(cell) == first_results[index], cell.source


# The other notebooks


@pytest.mark.campaign
def test_own_digits_learns_the_corrections_of_own_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path / "out"))
    inbox = tmp_path / "my pictures, été"
    digits = {path.name: digit for path, digit in write_samples(inbox, each=8)}
    for name, digit in list(digits.items()):
        if digit not in "1278":  # nobody writes all ten
            (inbox / name).unlink()
            del digits[name]
    parameters = {
        "dataset": "digits",
        "pictures": str(inbox),
        "corrections": {name: digit for name, digit in digits.items() if digit == "1"},
        "weights": "models/enhanced_model_best.pth",  # which has much to learn
        "epochs": 4,
    }

    executed = papermill.execute_notebook(
        OWN_DIGITS, tmp_path / "out.ipynb", parameters, cwd=str(FOLDER), progress_bar=False
    )

    claims = printed(code_cells(executed))
    assert "your handwriting is classified no worse than before: True" in claims
    labelled = tmp_path / "out" / "data" / "own-digits" / "labelled"
    assert {path.name: path.parent.name for path in labelled.glob("*/*")} == digits
    assert set(visible(inbox)) == set(digits)

    test = load_folder(labelled).test
    tuned_weights = tmp_path / "out" / "models" / "enhanced_model-own-hand.pth"
    tuned = evaluate(load_weights(EnhancedNet(), tuned_weights), test)
    best_weights = ROOT / "models" / "enhanced_model_best.pth"
    before = evaluate(load_weights(EnhancedNet(), best_weights), test)
    assert tuned.n_correct > before.n_correct


# The scripts beside the notebooks


@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_nbval_without_mnist_skips_or_fails(required, outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    monkeypatch.setenv("REQUIRE_MNIST", required)
    monkeypatch.setenv("MNIST_MLP_OUTPUT", "")  # which the file sets
    conftest = runpy.run_path(str(FOLDER / "conftest.py"))

    with pytest.raises(outcome, match="MNIST"):
        conftest["collect_if_comparable"]("A-Notebook.ipynb", collect=list)


def test_execute_leaves_file_unchanged_if_a_cell_fails(tmp_path):
    path = tmp_path / "broken.ipynb"
    tags = {"tags": ["parameters"]}
    cells = [
        nbformat.v4.new_code_cell('dataset = "digits"', metadata=tags),
        nbformat.v4.new_markdown_cell("## A title"),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, path)
    content = path.read_bytes()

    command = [sys.executable, FOLDER / "execute.py", path]
    process = subprocess.run(command, capture_output=True, text=True)

    assert process.returncode
    assert "A title" in process.stdout
    assert "ZeroDivisionError" in process.stderr
    assert path.read_bytes() == content
    assert visible(tmp_path) == ["broken.ipynb"]
