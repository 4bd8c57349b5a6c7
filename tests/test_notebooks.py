"""The committed notebooks are one clean run, and run again with other parameters."""

import ast
import json
import re
import runpy
import sys
from types import SimpleNamespace

import nbformat
import papermill
import pytest
import torch
from helpers import ROOT, assert_same_picture, code_cells, skip_unless_published, visible
from nbclient import NotebookClient
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from mnist_lab import figures
from mnist_lab.handwriting.folder import load_folder
from mnist_lab.handwriting.synthetic import write_samples
from mnist_mlp import EnhancedNet, Recipe, evaluate, load, load_weights, notebook, plots

FOLDER = ROOT / "notebooks"
MAIN = FOLDER / "Handwritten-Digits-Classifier.ipynb"
WHAT_LEARNED = FOLDER / "What-Has-It-Learned.ipynb"
OWN_DIGITS = FOLDER / "Your-Own-Digits.ipynb"
FURTHER = FOLDER / "How-Far-Can-It-Go.ipynb"
WHAT_WRONG = FOLDER / "What-Can-Go-Wrong.ipynb"
TRY_IDEA = FOLDER / "Try-An-Idea.ipynb"
SOLUTIONS = FOLDER / "teacher" / "Exercises-with-solutions.ipynb"
solutions = pytest.param(
    SOLUTIONS,
    marks=pytest.mark.skipif(
        not SOLUTIONS.exists(), reason="notebooks/teacher/ is removed, such as for a class"
    ),
)
NOTEBOOKS = [MAIN, WHAT_LEARNED, OWN_DIGITS, FURTHER, WHAT_WRONG, TRY_IDEA, solutions]

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
    document = read(path)
    cells = code_cells(document)
    outputs = [output for cell in cells for output in cell.outputs]

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "widgets" not in document.metadata
    assert "papermill" not in document.metadata
    assert "NOT MNIST" not in str(cells)


@for_each_notebook
def test_most_cells_are_compared(path):
    cells = code_cells(read(path))
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    compared = [cell for cell in cells if cell.outputs and not is_ignored(cell)]

    assert len(compared) > len(cells) / 2
    assert "nbval-skip" not in tags
    assert "raises-exception" not in tags


@pytest.mark.parametrize(
    "path", [MAIN, WHAT_LEARNED, OWN_DIGITS, WHAT_WRONG, TRY_IDEA], ids=lambda path: path.stem
)
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
        "model_name": "MNIST",
        "classes": mnist.train.classes,
        "test": evaluate(model, mnist.test),
        "outputs": SimpleNamespace(save_figure=notebook.save_figure),
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
    "batch_size": 256,
    "learning_rate": 0.003,
    "weight_decay": 0.02,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
    "augment_strength": 0.5,
    "optimizer": "muon",
    "seed": 1,
}
# A search for the learning rate takes 100 steps, and those of Muon are slow.
FEW_STEPS = """
from functools import partial

tuning.find_learning_rate = partial(tuning.find_learning_rate, steps=10)
"""


def results(cell) -> list:
    """What a cell shows: its text in one piece, and its figures and tables."""
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    figures = [output.data for output in cell.outputs if output.output_type != "stream"]
    return [text, *figures]


@pytest.fixture(scope="module")
def main_run(tmp_path_factory):
    """The main notebook, executed with papermill's parameters; its live client; its outputs."""
    folder = tmp_path_factory.mktemp("outputs")
    document = parameterize_notebook(load_notebook_node(str(MAIN)), PARAMETERS)
    for cell in document.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source += FEW_STEPS
    client = NotebookClient(
        document, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_MLP_OUTPUT", str(folder))
        with client.setup_kernel():
            for index, cell in enumerate(document.cells):
                client.execute_cell(cell, index)
            yield document, client, folder


def test_main_uses_every_parameter(main_run):
    _, _, folder = main_run
    card = json.loads((folder / "models" / "enhanced_model-digits.json").read_bytes())
    fields = {name: value for name, value in PARAMETERS.items() if name != "dataset"}

    assert card["recipe"] == Recipe(**fields).asdict()


def test_main_cells_run_again_in_any_order_with_same_results(main_run):
    document, client, _ = main_run
    cells = []
    for index, cell in enumerate(document.cells):
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


# What single cells do


def cell_with(path, piece):
    """The only code cell that has this piece in its source."""
    found = [cell for cell in code_cells(read(path)) if piece in cell.source]
    assert len(found) == 1, piece
    return found[0]


def main_variables(splits, **variables) -> dict:
    """The variables of the main notebook before its section on experiments."""
    names = {"splits": splits, "data_name": "DIGITS", "classes": splits.train.classes}
    names |= {"epochs": 1, "recipe": Recipe(epochs=1), "network_class": EnhancedNet, **variables}
    exec(sections(MAIN)["Imports"][0].source, names)
    return names


def test_main_experiment_changes_one_value():
    tree = ast.parse(cell_with(MAIN, "tweak = {").source)

    tweaks = [s.value for s in tree.body if ast.unparse(s).startswith("tweak = ")]
    assert [len(tweak.keys) for tweak in tweaks] == [1]


def test_main_experiment_with_another_seed_has_other_weights():
    names = main_variables(load("digits"))
    source = cell_with(MAIN, "tweak = {").source
    lines = source.splitlines()
    lines[0] = 'tweak = {"seed": seed}'

    weights = []
    for seed in (0, 0, 1):
        names["seed"] = seed
        exec("\n".join(lines), names)
        weights.append(names["tweaked_history"].identity["initial weights (SHA-256)"])

    assert weights[0] == weights[1] != weights[2]


def test_main_table_and_figure_of_runs_are_one_cell():
    assert "training_metrics(" in cell_with(MAIN, "runs.table()").source


def test_main_outputs_belong_to_the_training_of_the_same_cell():
    source = cell_with(MAIN, "history = fit(model").source
    assert source.index("history = History(") < source.index("outputs = notebook.Outputs(")
    assert source.index("outputs = notebook.Outputs(") < source.index("history = fit(")


def test_main_titles_say_where_a_training_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))

    def interrupt(history):
        if len(history.epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(notebook, "live_curves", lambda earlier: interrupt)
    monkeypatch.setattr(notebook, "runs", notebook.RunLog())
    names = main_variables(load("digits"), recipe=Recipe(epochs=4), seed=0)
    with pytest.raises(KeyboardInterrupt):
        exec(cell_with(MAIN, "history = fit(model").source, names)

    exec(cell_with(MAIN, "runs.add(splits, history, validation)").source, names)
    exec(cell_with(MAIN, "plots.training_metrics({").source, names)
    titles = [plots.plt.gcf().get_suptitle()]
    for cell in sections(MAIN)["The test set"]:
        before = plots.plt.get_fignums()
        exec(cell.source, names)
        if plots.plt.get_fignums() != before:
            ax = plots.plt.gcf().axes[0]
            titles.append(ax.get_title(loc="left") + ax.get_title())  # the style says which

    assert len(titles) == 4
    for title in titles:
        assert "stopped in epoch 3 of 4" in title


def test_learned_checks_claim_nothing_of_maps_without_captum(capsys):
    names = {"maps": {}, "kept": {"at random": 0.9}, "favourite": 0.4, "misled": 0.7}
    names |= {"torch": torch, "filters": torch.rand(5, 28, 28)}
    names["probes"] = {"pixels": 0.9, "layer1": 0.97, "layer2": 0.98, "layer3": 0.985}

    exec(sections(WHAT_LEARNED)["Checks"][0].source, names)

    assert "of a map" not in capsys.readouterr().out


@pytest.mark.parametrize("path", [WHAT_LEARNED, FURTHER], ids=lambda path: path.stem)
def test_notebook_on_records_of_mnist_refuses_other_data(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    names = {"dataset": "digits", "weights": "models/enhanced_model_best.pth", "recompute": ""}
    exec(sections(path)["Imports"][0].source, names)

    with pytest.raises(AssertionError, match="MNIST"):
        exec(cell_with(path, "splits = load(dataset)").source, names)


# The other notebooks


@pytest.mark.parametrize("corrections", [None, {}], ids=["not looked at", "all right"])
def test_own_digits_reads_one_picture_per_digit(corrections, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path / "out"))
    shown = []
    monkeypatch.setattr(figures, "input_pairs", lambda photos, images, names: shown.append(names))
    inbox = tmp_path / "photos"
    write_samples(inbox, each=1)

    names = {}
    for cell in code_cells(read(OWN_DIGITS)):
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(dataset="digits", pictures=str(inbox), corrections=corrections)

    text = capsys.readouterr().out
    assert names["obstacle"]
    assert text.count(names["obstacle"]) == 4  # said at once, and in place of each training cell
    assert "tuned" not in names
    assert not (tmp_path / "out" / "models" / "enhanced_model-own-hand.pth").exists()
    assert names["reader"] is names["model"]
    assert len(names["reading"].digits) == 8  # section 9 still runs
    counts = "of 10 wrong" in text
    assert counts == (corrections is not None)

    if corrections is None:
        assert names["labels"] is None
        confidence = names["confidence"][names["shown"]]
        assert len(confidence) == len(shown[-1]) == 10
        assert torch.equal(confidence, confidence.sort().values)


def test_own_digits_shows_every_error_if_labels_are_known(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "input_pairs", lambda photos, images, names: shown.extend(names))
    labels = ["1"] * 70 + ["2"] * 30
    own = SimpleNamespace(
        labels=lambda predicted, corrections: labels,
        obstacle_to_training=lambda labels: "",
        photos=lambda indices: [],
        images=torch.zeros(100, 28, 28),
    )
    names = {"own": own, "figures": figures, "plt": plots.plt, "corrections": {}}
    names |= {"predicted": torch.full((100,), 2), "confidence": torch.rand(100)}
    names["names"] = [f"{i}.jpg" for i in range(100)]

    exec(cell_with(OWN_DIGITS, "labels = own.labels").source, names)

    assert shown == ["1, predicted 2"] * 70


def test_own_digits_measures_forgetting_on_images_never_trained_on():
    digits = load("digits")
    names = {"obstacle": "", "reference": digits, "mine": digits, "evaluate": evaluate}
    names |= {"notebook": notebook, "display": print}
    names |= {"model": EnhancedNet(), "tuned": EnhancedNet()}

    exec(cell_with(OWN_DIGITS, "test_sets = {").source, names)

    assert names["test_sets"]["digits"] is digits.test
    assert torch.equal(names["after"]["digits"].labels, digits.test.labels)


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


# The notebook of mistakes


def mistakes() -> dict[str, str]:
    """The text and code of each section that makes a mistake, by the section's title."""
    text_by_title = {}
    for cell in read(WHAT_WRONG).cells:
        if cell.source.startswith("## "):
            title = cell.source.splitlines()[0].split(". ")[1]
            text_by_title[title] = ""
        if text_by_title:
            text_by_title[title] += cell.source + "\n"
    for title in ("Parameters", "A correct program", "From the symptom to the mistake", "Checks"):
        del text_by_title[title]
    return text_by_title


def test_wrong_sections_name_symptom_cause_remedy_and_catch():
    assert len(mistakes()) == 14
    for title, text in mistakes().items():
        for heading in ("**Symptom.**", "**Cause.**", "**Remedy.**", "**What catches it.**"):
            assert text.count(heading) == 1, title
        assert re.search(r"# .*the mistake", text, re.IGNORECASE), title


def test_wrong_is_a_talk_with_a_slide_for_each_mistake():
    """`make slides`: other cells are below the slide of their section, or left out."""
    slides = []
    for cell in read(WHAT_WRONG).cells:
        assert cell.metadata.slideshow.slide_type in ("slide", "subslide", "-", "skip")
        if cell.metadata.slideshow.slide_type == "slide":
            slides.append(cell.source.splitlines()[0].split(". ")[-1])

    expected = ["# What Can Go Wrong", "A correct program", *mistakes()]
    assert slides == [*expected, "From the symptom to the mistake"]


def test_wrong_names_tests_that_exist():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    named = re.findall(r"`(test_\w+)`", "".join(mistakes().values()))

    assert len(named) >= 8
    for name in named:
        assert any(f"def {name}(" in source for source in sources), name


def test_wrong_table_names_the_sections():
    numbers = {}
    for cell in read(WHAT_WRONG).cells:
        match = re.match(r"## (\d+)\. (.*)", cell.source)
        if match:
            numbers[match[2]] = match[1]
    table = next(cell.source for cell in read(WHAT_WRONG).cells if "| You see |" in cell.source)

    rows = [line for line in table.splitlines() if line.startswith("| ")]
    named = [number for row in rows for number in re.findall(r"\d+", row.split("|")[3])]
    assert set(named) == {numbers[title] for title in mistakes()}


def test_wrong_shows_every_symptom_on_small_digits_in_any_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    names = {}
    printed_by_source = {}
    for cell in code_cells(read(WHAT_WRONG)):
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names.update(dataset="digits", seed=1)
        printed_by_source[cell.source] = capsys.readouterr().out
        plots.plt.close("all")
    claims = "".join(printed_by_source.values())
    assert claims.count(": True\n") >= 30
    assert ": False" not in claims

    by_title = sections(WHAT_WRONG)
    for title in reversed(mistakes()):
        for cell in by_title[title]:
            exec(cell.source, names)
            assert capsys.readouterr().out == printed_by_source[cell.source], title
        plots.plt.close("all")
    for cell in by_title["Checks"]:
        exec(cell.source, names)
        assert capsys.readouterr().out == printed_by_source[cell.source]


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


def write_notebook(path, *sources) -> None:
    """Write a notebook whose first cell holds the parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    document = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(document, path)


@pytest.fixture
def execute(monkeypatch):
    """Run the script in this process: another one takes seconds to import torch."""

    def run_script(path):
        monkeypatch.setattr(sys, "argv", ["execute.py", str(path)])
        runpy.run_path(str(FOLDER / "execute.py"), run_name="__main__")

    return run_script


def test_execute_passes_the_data_set_on_as_it_is_written(tmp_path, execute):
    path = tmp_path / "book.ipynb"
    write_notebook(path, 'dataset = "digits"', "print(dataset)")

    execute(path)

    executed = code_cells(read(tmp_path / "book-digits.ipynb"))
    assert printed(executed) == "digits\n"
    assert [cell.source for cell in executed] == ['dataset = "digits"', "print(dataset)"]


@pytest.mark.parametrize(
    "parameters",
    ['dataset = "/a/folder/of/mine"', 'dataset = "a_folder"', "dataset = str(1)", "epochs = 1"],
)
def test_execute_says_in_one_line_what_is_wrong_with_the_data_set(parameters, tmp_path, execute):
    path = tmp_path / "book.ipynb"
    write_notebook(path, parameters)

    with pytest.raises(SystemExit, match="expected") as stop:
        execute(path)

    assert "\n" not in stop.value.code
    assert visible(tmp_path) == ["book.ipynb"]


def test_execute_says_that_the_kernel_died(tmp_path, execute, capfd):
    path = tmp_path / "book.ipynb"
    write_notebook(path, 'dataset = "digits"', "import os\nos._exit(1)")

    with pytest.raises(SystemExit) as stop:
        execute(path)

    assert stop.value.code.startswith("The notebook was not written: its kernel")
    assert "\n" not in stop.value.code
    assert "Traceback" not in capfd.readouterr().err


def test_execute_refuses_a_file_that_is_no_notebook(tmp_path, execute, capfd):
    path = tmp_path / "book.ipynb"
    path.write_text("{}")

    with pytest.raises(SystemExit, match="was not executed") as stop:
        execute(path)

    assert "Traceback" not in stop.value.code + capfd.readouterr().err


def test_execute_leaves_file_unchanged_if_a_cell_fails(tmp_path, execute, capfd):
    path = tmp_path / "broken.ipynb"
    write_notebook(path, 'dataset = "digits"', "1 / 0")
    document = read(path)
    document.cells.insert(1, nbformat.v4.new_markdown_cell("## A title"))
    nbformat.write(document, path)
    content = path.read_bytes()

    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        execute(path)

    assert "A title" in capfd.readouterr().out
    assert path.read_bytes() == content
    assert visible(tmp_path) == ["broken.ipynb"]
