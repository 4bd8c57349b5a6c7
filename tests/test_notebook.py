"""mnist_mlp.notebook: a wrong parameter stops early, outputs keep apart, runs are compared."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import ROOT, not_on_windows, visible
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from mnist_mlp import EnhancedNet, History, Recipe, Splits, compare, evaluate, load, notebook
from mnist_mlp.evaluation import Evaluation

DIFFERENCE = "difference to the first run, in points [95%]"


def evaluation_with(n_correct: int) -> Evaluation:
    """An evaluation of 1,000 images, of which `n_correct` are correct."""
    predicted = torch.zeros(1000, dtype=torch.int64)
    predicted[n_correct:] = 1
    return Evaluation(torch.eye(2)[predicted], torch.zeros_like(predicted), ("0", "1"))


# Parameters


@pytest.fixture
def shell():
    """An IPython shell, as in a notebook's kernel."""
    config = Config()
    config.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(("name", "is_known"), [("epochs", True), ("epoch", False)])
def test_check_parameters_refuses_unknown_name(shell, name, is_known, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    path = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"
    document = parameterize_notebook(load_notebook_node(str(path)), {name: 2})
    for cell in document.cells:
        if "parameters" in str(cell.metadata.tags):
            shell.run_cell(cell.source, store_history=True)

    source = "from mnist_mlp import notebook\nnotebook.check_parameters()"
    result = shell.run_cell(source, store_history=True)

    if is_known:
        result.raise_error()
        assert shell.user_ns["epochs"] == 2
    else:
        with pytest.raises(NameError, match="'epoch': expected one of dataset, epochs"):
            result.raise_error()


# Output files


def test_output_path_creates_folder_and_leaves_it_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))

    assert notebook.output_path("models/net.pth") == tmp_path / "models" / "net.pth"
    assert list((tmp_path / "models").iterdir()) == []


def test_output_path_is_in_repository_by_default(monkeypatch):
    monkeypatch.delenv("MNIST_MLP_OUTPUT", raising=False)

    assert notebook.output_path("models/net.pth") == ROOT / "models" / "net.pth"
    assert notebook.published("models/net.pth") == ROOT / "models" / "net.pth"


@not_on_windows
@pytest.mark.parametrize("folder", ["models", "figures"])
def test_check_parameters_refuses_folder_it_cannot_write(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    (tmp_path / folder).write_text("a file where the folder should be")

    with pytest.raises(OSError, match=rf"{folder}.* cannot be written"):
        notebook.check_parameters()


def test_outputs_name_files_by_recipe_and_data_set():
    digits = load("digits")
    fake_mnist = Splits("mnist", digits.train, digits.validation, digits.test)
    cases = [
        (fake_mnist, History(Recipe()), ""),
        (fake_mnist, History(Recipe(), stopped="after epoch 2 of 45"), "-tweaked"),
        (fake_mnist, History(Recipe(elastic_strength=0.0)), "-tweaked"),
        (digits, History(Recipe()), "-digits"),
    ]
    for splits, history, suffix in cases:
        outputs = notebook.Outputs(splits, history)
        assert outputs.suffix == suffix
        assert outputs.published == (suffix == "")


def test_outputs_save_figure_and_model_with_card(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    digits = load("digits")
    model = EnhancedNet()
    test = evaluate(model, digits.test)
    epochs = [{"validation_accuracy": 0.5, "seconds": 2.04}]
    epochs.append({"validation_accuracy": 0.4, "seconds": 2.04})
    history = History(Recipe(epochs=2), "float32", epochs, best_epoch=1)
    outputs = notebook.Outputs(digits, history)

    plt.figure()
    outputs.save_figure("curve")
    path = outputs.save_model(model, test)

    assert visible(tmp_path / "figures") == ["curve-digits.png"]
    assert path == tmp_path / "models" / "enhanced_model-digits.pth"
    weights = torch.load(path, weights_only=True)
    assert torch.equal(weights["layer1.weight"], model.layer1.weight)
    card = json.loads(path.with_suffix(".json").read_bytes())
    expected = {
        "recipe": Recipe(epochs=2).asdict(),
        "dataset": "digits",
        "classes": [*"0123456789"],
        "precision": "float32",
        "best_epoch": 1,
        "epochs_done": 2,
        "validation_accuracy": 0.5,
        "training_seconds": 4.1,
        "test_correct": test.n_correct,
        "test_images": 360,
    }
    assert {name: card[name] for name in expected} == expected


def test_banner_warns_of_anything_but_mnist():
    digits = load("digits")
    fake_mnist = Splits("mnist", digits.train, digits.validation, digits.test)

    assert "NOT MNIST" in notebook.banner(digits).data
    assert "1,797 images" in notebook.banner(digits).data
    assert "&lt;why&gt;" in notebook.banner(replace(digits, warning="<why>")).data
    assert "NOT" not in notebook.banner(fake_mnist).data


# The log of runs


def add_run(log: notebook.RunLog, recipe: Recipe, n_correct=950, dataset="mnist", stopped=""):
    history = History(recipe, epochs=[{"seconds": 2.0}], stopped=stopped)
    log.add(dataset, history, evaluation_with(n_correct))
    return history


def test_run_log_names_run_by_changed_fields():
    log = notebook.RunLog()
    first = add_run(log, Recipe())
    second = add_run(log, Recipe(seed=1))
    third = add_run(log, Recipe(epochs=2, schedule="constant"), dataset="digits")

    expected = {
        "run 1": first,
        "run 2 (seed=1)": second,
        "run 3 (dataset=digits, epochs=2, schedule=constant)": third,
    }
    assert log.histories() == expected
    assert list(log.table().index) == list(expected)


def test_run_log_compares_each_run_with_first_on_its_data():
    log = notebook.RunLog()
    add_run(log, Recipe(seed=0), 950)
    add_run(log, Recipe(seed=1), 980)
    add_run(log, Recipe(seed=2), 951)
    add_run(log, Recipe(seed=3), 900)
    add_run(log, Recipe(seed=0), 900, dataset="digits")
    add_run(log, Recipe(seed=1), 990, dataset="digits")

    table = log.table()

    verdicts = ["", "better", "no significant difference", "worse", "", "better"]
    assert list(table["verdict"]) == verdicts
    assert table["validation accuracy"].iloc[1] == "98.00%"
    expected = compare(evaluation_with(950).correct, evaluation_with(980).correct)
    assert table[DIFFERENCE].iloc[1] == str(expected)
    assert table[["epochs", "seconds"]].iloc[1].tolist() == [1, "2"]


def test_run_log_replaces_equal_run_but_keeps_stopped_one():
    log = notebook.RunLog()
    add_run(log, Recipe(epochs=9), 950)
    add_run(log, Recipe(epochs=9), 960)
    add_run(log, Recipe(epochs=9), 940, stopped="after epoch 1 of 9")

    assert list(log.histories()) == ["run 1", "run 2 (epochs=1 of 9)"]
    assert list(log.table()["validation accuracy"]) == ["96.00%", "94.00%"]

    log.clear()
    assert log.histories() == {}


def test_comparison_table_compares_models_on_each_data_set():
    before = {"a": evaluation_with(900), "b": evaluation_with(950)}
    after = {"a": evaluation_with(950), "b": evaluation_with(949)}

    table = notebook.comparison_table(before, after)

    expected = compare(before["a"].correct, after["a"].correct)
    assert list(table.loc["a"]) == ["900 of 1,000", "950 of 1,000", str(expected)]
    assert table.loc["a"].iloc[-1].startswith("+5.00 [")
    assert table.loc["b"].iloc[-1].startswith("-0.10 [")


# Live curves, which need a kernel


def curves_cell(epochs: int, share: float, earlier: str = "{}"):
    """A cell that shows the curves of a training of four epochs."""
    return nbformat.v4.new_code_cell(f"""
from mnist_mlp import History, Recipe, notebook

notebook.DRAWING_SHARE = {share}
epoch = {{"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}}
history = History(Recipe(epochs=4))
watch = notebook.live_curves({earlier})
for _ in range({epochs}):
    history.epochs.append(epoch)
    watch(history)
""")


def test_live_curves_are_drawn_until_training_is_complete():
    cells = [
        curves_cell(2, share=10.0),  # interrupted
        curves_cell(2, share=10.0, earlier='{"earlier": History(Recipe(), epochs=[epoch] * 4)}'),
        curves_cell(4, share=10.0),  # complete
        curves_cell(3, share=0.0),  # the first figure has used up the time for drawing
    ]
    n_drawn = [0, 0, 0, 0]

    class CountingClient(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "update_display_data":
                n_drawn[cell_index] += "image/png" in msg["content"]["data"]
            return super().process_message(msg, cell, cell_index)

    CountingClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3").execute()

    assert n_drawn == [2, 2, 3, 1]
    interrupted, with_earlier, complete, last = [
        output.data.get("image/png") for cell in cells for output in cell.outputs
    ]
    assert interrupted != with_earlier
    assert complete is None
    assert last is not None


def test_live_curves_are_silent_outside_a_notebook(capsys):
    watch = notebook.live_curves()

    watch(History(Recipe(epochs=3), epochs=[{}]))

    assert capsys.readouterr() == ("", "")
