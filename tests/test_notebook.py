"""mnist_mlp.notebook: a wrong parameter stops early, outputs keep apart, runs are compared."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import ROOT, not_on_windows, visible
from IPython import get_ipython
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from mnist_mlp import EnhancedNet, History, Recipe, Splits, compare, evaluate, fit, load, notebook
from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluation import Evaluation

# Small parts of MNIST make an epoch of one step.
pytestmark = pytest.mark.filterwarnings("ignore:batch_size is")

RECIPE = Recipe()
DIFFERENCE = "difference to the first complete run, in points [95%]"


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


@pytest.mark.parametrize("between", ["other = 1", "half a line ="], ids=["valid", "invalid"])
def test_check_parameters_knows_them_after_other_cells(shell, between, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    for source in ("epochs = 45", between, "# Parameters\nepochs = 2\n"):
        shell.run_cell(source, store_history=True)

    source = "from mnist_mlp import notebook\nnotebook.check_parameters()"
    shell.run_cell(source, store_history=True).raise_error()


def test_check_parameters_runs_in_a_plain_script(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    assert get_ipython() is None  # as in a script: another process takes seconds to import torch

    notebook.check_parameters()

    assert capfd.readouterr().err == ""


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


def test_output_path_tries_what_a_writer_needs(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError("no file may be replaced here")

    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    monkeypatch.setattr("os.replace", refuse)

    with pytest.raises(OSError, match="cannot be written"):
        notebook.output_path("models/net.pth")


class WithDropout(EnhancedNet):
    """A network with the same layers and name as the published one, but with dropout."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.1, self.training)


WithDropout.__name__ = WithDropout.__qualname__ = "EnhancedNet"


@pytest.fixture
def few_mnist(small_mnist, monkeypatch) -> Splits:
    """A small data set in the place of MNIST's files."""
    monkeypatch.setenv("MNIST_ROOT", str(small_mnist))
    return load("mnist")


def half(dataset: ImageDataset) -> ImageDataset:
    return dataset.subset(torch.arange(len(dataset) // 2))


def train_briefly(splits, recipe=RECIPE, network=EnhancedNet, weights_seed=0, **functions):
    """The history of a training: one epoch, counted as if it were all epochs of the recipe."""
    torch.manual_seed(weights_seed)
    model = network(len(splits.train.classes))
    history = fit(
        model,
        splits.train,
        splits.validation,
        recipe,
        on_epoch=lambda history: True,
        progress=False,
        **functions,
    )
    history.epochs *= recipe.epochs
    history.stopped = ""
    return history


def test_outputs_are_published_only_for_the_published_training(few_mnist):
    published = train_briefly(few_mnist)
    torch.manual_seed(5)  # what the user does between must not matter, and must not be disturbed
    random_state = torch.get_rng_state()

    outputs = notebook.Outputs(few_mnist, published)

    assert outputs.published
    assert outputs.suffix == ""
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": Recipe(elastic_strength=0.0)},
        {"network": WithDropout},
        {"weights_seed": 1},
        {"loss_fn": torch.nn.MultiMarginLoss()},
        {"augment": lambda images, generator: images},
    ],
    ids=lambda change: next(iter(change)),
)
def test_outputs_of_another_training_are_tweaked(few_mnist, change):
    outputs = notebook.Outputs(few_mnist, train_briefly(few_mnist, **change))

    assert not outputs.published
    assert outputs.suffix == "-tweaked"


def test_outputs_of_further_trained_weights_are_tweaked(few_mnist):
    model = EnhancedNet()
    model.layer5.bias.data += 1

    history = train_briefly(few_mnist, network=lambda classes: model)

    assert not notebook.Outputs(few_mnist, history).published


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_outputs_of_part_of_mnist_are_tweaked(few_mnist, part):
    part_of_mnist = replace(few_mnist, **{part: half(getattr(few_mnist, part))})

    outputs = notebook.Outputs(part_of_mnist, train_briefly(part_of_mnist))

    assert outputs.suffix == "-tweaked"


def test_outputs_of_an_incomplete_training_are_tweaked(few_mnist):
    history = train_briefly(few_mnist)
    outputs = notebook.Outputs(few_mnist, history)
    assert outputs.published

    history.epochs.pop()  # as after an interrupt, or after a loss that diverged

    assert outputs.suffix == "-tweaked"


def test_outputs_of_another_data_set_have_its_name():
    digits = load("digits")

    outputs = notebook.Outputs(digits, History(Recipe()))

    assert outputs.suffix == "-digits"
    assert not outputs.published


def test_outputs_save_figure_and_model_with_card(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    digits = load("digits")
    model = EnhancedNet()
    test = evaluate(model, digits.test)
    epochs = [{"validation_accuracy": 0.5, "seconds": 2.04}]
    epochs.append({"validation_accuracy": 0.4, "seconds": 2.04})
    history = History(Recipe(epochs=2), "float32", epochs, best_epoch=1)
    outputs = notebook.Outputs(digits, history)

    plt.subplots()
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
        "precision": "float32",
        "best_epoch": 1,
        "epochs_done": 2,
        "validation_accuracy": 0.5,
        "training_seconds": 4.1,
        "test_correct": test.n_correct,
        "test_images": 360,
    }
    assert {name: card[name] for name in expected} == expected


def test_card_names_own_functions_in_the_place_of_the_recipes(few_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    model = EnhancedNet()
    history = train_briefly(
        few_mnist,
        Recipe(learning_rate=0.1),
        network=lambda classes: model,
        optimizer=torch.optim.SGD,
        loss_fn=torch.nn.MultiMarginLoss(),
    )

    path = notebook.Outputs(few_mnist, history).save_model(model, evaluate(model, few_mnist.test))

    recipe = json.loads(path.with_suffix(".json").read_bytes())["recipe"]
    assert "SGD" in recipe["optimizer"]
    assert "MultiMarginLoss" in recipe["loss_fn"]
    assert recipe["learning_rate"] == 0.1


def test_banner_warns_of_anything_but_mnist():
    digits = load("digits")
    fake_mnist = Splits("mnist", digits.train, digits.validation, digits.test)

    assert "NOT MNIST" in notebook.banner(digits).data
    assert "1,797 images" in notebook.banner(digits).data
    assert "&lt;why&gt;" in notebook.banner(replace(digits, warning="<why>")).data
    assert "NOT" not in notebook.banner(fake_mnist).data


# The log of runs


def splits_named(name: str, seed: int = 0) -> Splits:
    """Splits of random images with this name, and the labels of `evaluation_with`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (1000, 28, 28), generator=generator, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(1000, dtype=torch.int64))
    return Splits(name, dataset, dataset, dataset)


MNIST = splits_named("mnist")
DIGITS = splits_named("digits", seed=1)


def add_run(log, recipe=RECIPE, n_correct=950, splits=MNIST, done=None, **identity):
    """Add a run of which `done` epochs are trained; None: all."""
    n_epochs = recipe.epochs if done is None else done
    history = History(recipe, epochs=[{"seconds": 0.5}] * n_epochs)
    history.identity = {**recipe.asdict(), "data (SHA-256)": splits.name, **identity}
    log.add(splits, history, evaluation_with(n_correct))
    return history


def test_run_log_names_run_by_changed_fields():
    log = notebook.RunLog()
    first = add_run(log)
    second = add_run(log, Recipe(seed=1))
    third = add_run(log, Recipe(epochs=2, schedule="constant"), splits=DIGITS)

    expected = {
        "run 1": first,
        "run 2 (seed=1)": second,
        "run 3 (dataset=digits, epochs=2, schedule=constant)": third,
    }
    assert log.histories() == expected
    assert list(log.table().index) == list(expected)


def test_run_log_tells_trainings_with_equal_recipes_apart(few_mnist):
    changes = [
        ({}, ""),
        ({"weights_seed": 1}, "other initial weights"),
        ({"network": WithDropout}, "other network"),
        ({"loss_fn": torch.nn.MultiMarginLoss()}, "loss_fn=MultiMarginLoss"),
        ({"splits": replace(few_mnist, train=half(few_mnist.train))}, "other data"),
    ]
    log = notebook.RunLog()
    for change, _ in changes:
        change = {"splits": few_mnist, **change}
        history = train_briefly(**change)
        log.add(change["splits"], history, evaluate(EnhancedNet(), few_mnist.validation))

    names = list(log.histories())

    expected = ["run 1"]
    for number, (_, difference) in enumerate(changes[1:], start=2):
        expected.append(f"run {number} ({difference})")
    assert names == expected


def test_run_log_compares_each_run_with_first_on_its_data():
    log = notebook.RunLog()
    add_run(log, Recipe(seed=0), 950)
    add_run(log, Recipe(seed=1), 980)
    add_run(log, Recipe(seed=2), 951)
    add_run(log, Recipe(seed=3), 900)
    add_run(log, Recipe(seed=0), 900, DIGITS)
    add_run(log, Recipe(seed=1), 990, DIGITS)
    add_run(log, Recipe(seed=2), 990, splits_named("digits", seed=2))  # other validation images

    table = log.table()

    verdicts = ["", "better", "no significant difference", "worse", "", "better", ""]
    assert list(table["verdict"]) == verdicts
    assert table["validation accuracy"].iloc[1] == "98.00%"
    expected = compare(evaluation_with(950).correct, evaluation_with(980).correct)
    assert table[DIFFERENCE].iloc[1] == str(expected)
    assert table[["epochs", "seconds"]].iloc[1].tolist() == [45, "22"]


def test_run_log_replaces_equal_run_but_keeps_stopped_one():
    log = notebook.RunLog()
    add_run(log, Recipe(epochs=9), 950)
    add_run(log, Recipe(epochs=9), 960)
    add_run(log, Recipe(epochs=9), 940, done=1)

    assert list(log.histories()) == ["run 1", "run 2 (epochs=1 of 9)"]
    assert list(log.table()["validation accuracy"]) == ["96.00%", "94.00%"]

    log.clear()
    assert log.histories() == {}


def test_run_log_compares_with_the_first_complete_run():
    log = notebook.RunLog()
    add_run(log, Recipe(epochs=9), 700, done=1)
    add_run(log, Recipe(epochs=9), 950)
    add_run(log, Recipe(epochs=9, seed=1), 980)

    table = log.table()

    assert list(table.index) == ["run 1 (epochs=1 of 9)", "run 2", "run 3 (seed=1)"]
    assert list(table["verdict"]) == ["worse", "", "better"]
    expected = compare(evaluation_with(950).correct, evaluation_with(980).correct)
    assert table[DIFFERENCE].iloc[2] == str(expected)


def test_comparison_table_compares_models_on_each_data_set():
    before = {"a": evaluation_with(900), "b": evaluation_with(950)}
    after = {"a": evaluation_with(950), "b": evaluation_with(949)}

    table = notebook.comparison_table(before, after)

    expected = compare(before["a"].correct, after["a"].correct)
    assert list(table.loc["a"]) == ["900 of 1,000", "950 of 1,000", str(expected)]
    assert table.loc["a"].iloc[-1].startswith("+5.00 [")
    assert table.loc["b"].iloc[-1].startswith("-0.10 [")


# Live curves, which need a kernel


def curves_cell(epochs: int, pause: float = 0.0, end: str = "", earlier: str = "{}"):
    """A cell that shows the curves of a training of four epochs.

    Args:
        epochs: How many epochs are trained.
        pause: The shortest time between two drawings, in seconds.
        end: The last line of the cell.
        earlier: The earlier runs.
    """
    source = f"""
from mnist_mlp import History, Recipe, notebook

notebook.SECONDS_BETWEEN_DRAWINGS = {pause}
notebook.DRAWING_SHARE = 1e9
epoch = {{"loss": 1.0, "accuracy": 0.5, "validation_loss": 0.9, "validation_accuracy": 0.6}}
history = History(Recipe(epochs=4))
watch = notebook.live_curves({earlier})
for _ in range({epochs}):
    history.epochs.append(epoch)
    watch(history)
{end}
"""
    return nbformat.v4.new_code_cell(source, metadata={"tags": ["raises-exception"]})


@pytest.fixture(scope="module")
def curves() -> dict[str, tuple[int, str | None]]:
    """How often each cell has drawn, and the figure that stays, by the name of the cell.

    A kernel takes seconds to start, so one runs all cells.
    """
    earlier = '{"earlier": History(Recipe(epochs=4), epochs=[epoch] * 4)}'
    stop = "raise KeyboardInterrupt"
    cells = {
        "one epoch": curves_cell(1),
        "two epochs": curves_cell(2),
        "two epochs beside earlier ones": curves_cell(2, earlier=earlier),
        "complete": curves_cell(4),
        "complete, rarely drawn": curves_cell(4, pause=1000.0),
        "interrupted": curves_cell(2, pause=1000.0, end=stop),
        "interrupted at once": curves_cell(1, pause=1000.0, end=stop),
    }
    n_drawn = [0] * len(cells)

    class CountingClient(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] == "update_display_data":
                n_drawn[cell_index] += "image/png" in msg["content"]["data"]
            return super().process_message(msg, cell, cell_index)

    document = nbformat.v4.new_notebook(cells=list(cells.values()))
    CountingClient(document, kernel_name="python3").execute()
    figures = [cell.outputs[0].data.get("image/png") for cell in document.cells]
    return dict(zip(cells, zip(n_drawn, figures, strict=True), strict=True))


def test_live_curves_are_drawn_until_training_is_complete(curves):
    n_drawn, figure = curves["two epochs"]
    n_drawn_with_earlier, figure_with_earlier = curves["two epochs beside earlier ones"]

    assert n_drawn == n_drawn_with_earlier == 2
    assert figure != figure_with_earlier
    assert curves["complete"] == (3, None)


def test_live_curves_show_all_epochs_after_an_interrupt(curves):
    _, figure_of_one_epoch = curves["one epoch"]
    _, figure_of_two_epochs = curves["two epochs"]

    assert curves["interrupted"] == (2, figure_of_two_epochs)
    assert curves["interrupted at once"] == (1, figure_of_one_epoch)
    assert figure_of_one_epoch != figure_of_two_epochs


def test_live_curves_are_drawn_at_most_once_per_pause(curves):
    n_drawn, _ = curves["complete"]

    assert n_drawn == 3
    assert curves["complete, rarely drawn"] == (1, None)


def test_live_curves_are_silent_outside_a_notebook(capsys):
    watch = notebook.live_curves()

    watch(History(Recipe(epochs=3), epochs=[{}]))

    assert capsys.readouterr() == ("", "")


def test_save_figure_refuses_a_blank_figure(tmp_path, monkeypatch):
    """The figure of another cell is closed by the time that the next one runs."""
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    plt.close("all")

    with pytest.raises(RuntimeError, match="no figure"):
        notebook.save_figure("confusion_matrix")

    assert not (tmp_path / "figures").exists()


def test_numbers_of_other_images_are_refused(few_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    history = train_briefly(few_mnist)
    model = EnhancedNet()
    validation = evaluate(model, few_mnist.validation)
    test = evaluate(model, few_mnist.test)
    outputs = notebook.Outputs(few_mnist, history)

    with pytest.raises(ValueError, match="test"):
        outputs.save_model(model, validation)
    with pytest.raises(ValueError, match="of this model"):
        outputs.save_model(EnhancedNet(), test)
    with pytest.raises(ValueError, match="history"):
        notebook.Outputs(few_mnist, History(RECIPE)).save_model(model, test)
    with pytest.raises(ValueError, match="same images"):
        notebook.comparison_table({"a": validation}, {"a": test})


def test_run_log_refuses_other_images_and_an_empty_history(few_mnist):
    log = notebook.RunLog()
    history = train_briefly(few_mnist)
    model = EnhancedNet()

    with pytest.raises(ValueError, match=r"splits\.validation"):
        log.add(few_mnist, history, evaluate(model, few_mnist.test))
    with pytest.raises(ValueError, match="empty"):
        log.add(few_mnist, History(RECIPE), evaluate(model, few_mnist.validation))


def test_run_log_keeps_a_history_that_is_filled_again(few_mnist):
    log = notebook.RunLog()
    history = train_briefly(few_mnist)
    n_epochs = len(history.epochs)
    log.add(few_mnist, history, evaluate(EnhancedNet(), few_mnist.validation))

    history.epochs.clear()

    assert log.table()["epochs"].tolist() == [n_epochs]


def test_output_path_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MNIST_MLP_OUTPUT", "~/out")

    assert notebook.output_path("models/net.pth") == tmp_path / "out" / "models" / "net.pth"
