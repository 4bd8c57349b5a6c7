"""The exercises: the solutions pass, empty cells are named, and wrong answers are rejected."""

import copy
import json
import platform
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT, code_cells
from torch import nn
from torch.nn import functional as F

from mnist_lab import exercises
from mnist_lab.exercises import NOT_DONE, RIGHT, WRONG
from mnist_lab.research.summary import read_cards
from mnist_lab.research.understanding import logits_of
from mnist_mlp import EnhancedNet, Recipe, compare, evaluate, fit, load
from mnist_mlp.data import ImageDataset, concatenate
from mnist_mlp.evaluation import Evaluation

FOLDER = ROOT / "notebooks"
STUDENTS = FOLDER / "Exercises.ipynb"
SOLUTIONS = FOLDER / "teacher" / "Exercises-with-solutions.ipynb"

needs_solutions = pytest.mark.skipif(
    not SOLUTIONS.exists(), reason="notebooks/teacher/ is removed, such as on a student's computer"
)

# The embedded digits make small trainings.
pytestmark = pytest.mark.filterwarnings("ignore:batch_size is", "ignore:MNIST")


def read(path):
    return nbformat.read(path, as_version=4)


def cell_of(document, grade_id):
    """The cell that nbgrader knows under this name."""
    cells = [cell for cell in document.cells if "nbgrader" in cell.metadata]
    return next(cell for cell in cells if cell.metadata.nbgrader.grade_id == grade_id)


def check_cells(document) -> list:
    """The cells with the checks, in the order of the exercises."""
    cells = [cell for cell in document.cells if "nbgrader" in cell.metadata]
    return [cell for cell in cells if cell.metadata.nbgrader.grade]


# The two notebooks


@needs_solutions
def test_students_notebook_is_made_from_the_solutions():
    make = runpy.run_path(str(FOLDER / "teacher" / "make_exercises.py"))
    made = make["student_version"](read(SOLUTIONS))
    committed = read(STUDENTS)

    assert [cell.source for cell in committed.cells] == [cell.source for cell in made.cells]
    assert [cell.metadata for cell in committed.cells] == [cell.metadata for cell in made.cells]


@needs_solutions
def test_students_notebook_holds_no_solution_and_no_output():
    solutions = read(SOLUTIONS)
    students = read(STUDENTS)
    text = "\n".join(cell.source for cell in students.cells)

    assert "SOLUTION" not in text
    assert not any(cell.outputs for cell in code_cells(students))
    for cell in code_cells(solutions):
        _, marker, rest = cell.source.partition("### BEGIN SOLUTION\n")
        if marker:
            solution = rest.split("### END SOLUTION")[0].strip()
            assert solution not in text
            assert cell.metadata.nbgrader.solution


@needs_solutions
def test_committed_solutions_pass_every_check():
    checks = check_cells(read(SOLUTIONS))

    assert len(checks) == 5
    for number, cell in enumerate(checks, start=1):
        (output,) = cell.outputs
        assert output.data["text/plain"].startswith(f"✓ Exercise {number} is {RIGHT}")


def on_embedded_digits(path):
    """A notebook whose parameters name the embedded digits."""
    document = read(path)
    for cell in code_cells(document):
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = 'dataset = "digits"\nseed = 0'
    return document


def execute_here(document, folder, monkeypatch) -> tuple[dict, list[str]]:
    """Execute a notebook's cells in this process; return its variables, and its errors' names.

    As in Jupyter, only an error in a cell with the tag "raises-exception" stops no other cell.
    """
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(folder))
    names = {}
    errors = []
    for cell in code_cells(document):
        try:
            exec(cell.source, names)
        except Exception as error:
            if "raises-exception" not in cell.metadata.tags:
                raise
            errors.append(type(error).__name__)
    return names, errors


@needs_solutions
def test_solutions_pass_on_the_embedded_digits_and_are_handed_in(tmp_path, monkeypatch):
    document = on_embedded_digits(SOLUTIONS)

    # Among so few validation images, only a large improvement is significant on every processor.
    for cell in code_cells(document):
        cell.source = cell.source.replace("Recipe(epochs=10,", "Recipe(epochs=40,")
    names, errors = execute_here(document, tmp_path, monkeypatch)
    answers = names["answers"]

    assert not errors
    assert {number: answer.state for number, answer in answers.items()} == dict.fromkeys(
        range(1, 6), RIGHT
    )
    (row,) = read_cards(tmp_path / "hand-in").to_dict("records")
    assert row["student"] == "Ada"
    assert row["exercises right"] == "1, 2, 3, 4, 5"
    assert row["recipe"].startswith("epochs=40")
    assert row["validation accuracy"] > 0.9
    assert row["seconds"] > 0
    assert row["problem"] == ""


def test_empty_notebook_runs_to_its_end_and_names_each_open_exercise(tmp_path, monkeypatch, capsys):
    names, errors = execute_here(on_embedded_digits(STUDENTS), tmp_path, monkeypatch)
    answers = names["answers"]

    assert not errors
    assert list(answers) == [1, 2, 3, 4, 5]
    for number, answer in answers.items():
        assert answer.exercise == number
        assert answer.state == NOT_DONE
        assert " None" in answer.message
    assert capsys.readouterr().out.count("is right: False") == 5
    assert not (tmp_path / "hand-in").exists()


@needs_solutions
def test_notebook_runs_to_its_end_although_answers_stop_with_an_error(
    tmp_path, monkeypatch, capsys
):
    document = on_embedded_digits(STUDENTS)
    cell_of(document, "train-epoch").source = "def train_epoch(network, optimizer batches):"
    cell_of(document, "confusion").source += "\nwritten = confusion.max()"
    cell_of(document, "recipe").source += "\nmy_recipe = Recipe(epochs=0)"
    cell_of(document, "wrong-labels").source = cell_of(read(SOLUTIONS), "wrong-labels").source
    cell_of(document, "fool").source += "\n    return pixels.gradient"

    names, errors = execute_here(document, tmp_path, monkeypatch)

    # The first error leaves no function, so its check raises the second one.
    assert errors == ["SyntaxError", "NameError", "NameError", "ValueError"]
    states = {number: answer.state for number, answer in names["answers"].items()}
    assert states == {2: NOT_DONE, 3: NOT_DONE, 4: RIGHT, 5: WRONG}
    assert "AttributeError" in names["answers"][5].message
    assert capsys.readouterr().out.count("is right: True") == 1


# Exercise 1

SOLUTION = """
def train_epoch(network, optimizer, batches):
    losses = []
    for images, labels in batches:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
"""


CLEAR = "        optimizer.zero_grad()\n"
BACKWARD = "        loss.backward()\n"
STEP = "        optimizer.step()\n"
OWN_OPTIMIZER = "        optimizer = torch.optim.SGD(network.parameters(), lr=1)\n"
RESULT = "return sum(losses) / len(losses)"


def loop(*replacements):
    """The correct training loop, with some of its text replaced."""
    source = SOLUTION
    for old, new in replacements:
        assert old in source
        source = source.replace(old, new)
    names = {"F": F, "torch": torch, "nn": nn}
    exec(source, names)
    return names["train_epoch"]


@pytest.mark.parametrize(
    "replacements",
    [
        [],
        [(CLEAR, ""), (STEP, STEP + CLEAR)],
        [(RESULT, "return torch.tensor(losses).mean()")],
        [("losses.append(loss.item())", "losses.append(loss)")],
        [("optimizer.zero_grad()", "network.zero_grad()")],
    ],
    ids=["as taught", "cleared afterwards", "a tensor", "a tensor with a gradient", "network"],
)
def test_training_loop_accepts_every_correct_loop(replacements):
    answer = exercises.check_training_loop(loop(*replacements))

    assert answer.state == RIGHT, answer


@pytest.mark.parametrize(
    "replacements",
    [
        [(CLEAR, "")],
        [(STEP, "")],
        [(BACKWARD, "")],
        [(BACKWARD + STEP, STEP + BACKWARD)],
        [(CLEAR + BACKWARD, BACKWARD + CLEAR)],
        [("network(images)", "network(images).softmax(dim=1)")],
        [("network(images), labels", "network(images), labels, reduction='sum'")],
        [("network(images), labels", "network(images), labels.flip(0)")],
        [("return sum(losses)", "    return sum(losses)")],
        [(CLEAR, OWN_OPTIMIZER + CLEAR)],
        [("in batches", "in batches[:-1]")],
        [("in batches", "in batches * 2")],
        [(RESULT, f"optimizer.step(); {RESULT}")],  # the loss is right
        [(RESULT, "pass")],
        [(RESULT, "return losses")],
        [(RESULT, "return losses[-1]")],
        [(RESULT, "return sum(losses)")],
        [(RESULT, "return str(sum(losses))")],
        [(RESULT, "return float('nan')")],
        [("network(images)", "network(image)")],
        [("optimizer.step()", "raise KeyError")],
        [("optimizer.zero_grad()", "network = nn.Linear(784, 10)")],
    ],
    ids=str,
)
def test_training_loop_rejects_a_wrong_loop(replacements):
    answer = exercises.check_training_loop(loop(*replacements))

    assert answer.state == WRONG, answer


def test_training_loop_tells_one_mistake_from_another():
    changes = [(CLEAR, ""), (STEP, "")]
    changes.append(("return sum(losses)", "    return sum(losses)"))
    changes.append(("network(images)", "network(images).softmax(dim=1)"))

    messages = {exercises.check_training_loop(loop(change)).message for change in changes}

    assert len(messages) == 4


@pytest.mark.parametrize(
    ("replacements", "hint"),
    [
        ([(STEP, ""), (RESULT, f"optimizer.step(); {RESULT}")], "called once for 3 batches"),
        ([(CLEAR + BACKWARD, BACKWARD + CLEAR)], "network, backward, zero_grad, step"),
        ([(CLEAR + BACKWARD, BACKWARD + CLEAR.replace("optimizer", "network"))], "zero_grad, step"),
        ([(BACKWARD + STEP, STEP + BACKWARD)], "network, zero_grad, step, backward"),
        ([(CLEAR, "")], "What is left over"),
        ([("network(images)", "nn.Linear(784, 10)(images)")], "was never called"),
        ([(BACKWARD, "")], "Who computes the gradient"),
        ([(STEP, "")], "who uses it"),
        ([(BACKWARD + STEP, ""), (RESULT, "return None")], "Who computes the gradient"),
        ([(RESULT, f"return round({RESULT[7:]}, 2)")], "a rounded mean"),
    ],
    ids=str,
)
def test_training_loop_hint_leads_to_the_cause(replacements, hint):
    answer = exercises.check_training_loop(loop(*replacements))

    assert answer.state == WRONG
    assert hint in answer.message


@pytest.mark.parametrize("value", [None, ..., lambda network, optimizer, batches: None])
def test_training_loop_not_done(value):
    assert exercises.check_training_loop(value).state == NOT_DONE


# Exercise 2


@pytest.fixture
def confused() -> Evaluation:
    """A 1 is read as a 2 eight times, a 2 as a 1 three times; 0 has the lowest recall.

    The 0 has recall 4/8, and precision 4/6; the 1 has recall 12/20.
    """
    counts = [[4, 2, 2], [0, 12, 8], [2, 3, 25]]
    labels = []
    predicted = []
    for label, row in enumerate(counts):
        for prediction, count in enumerate(row):
            labels += [label] * count
            predicted += [prediction] * count
    logits = F.one_hot(torch.tensor(predicted), 3).float()
    return Evaluation(logits, torch.tensor(labels), ("0", "1", "2"))


@pytest.mark.parametrize(
    "values",
    [
        (1, 2, 0, 0.5),
        (np.int64(1), torch.tensor(2), np.array([0]), np.float64(0.5)),
        (1, 2, 0, 0.504),
    ],
)
def test_confusion_accepts_the_right_answer(values, confused):
    answer = exercises.check_confusion(confused, *values)

    assert answer.state == RIGHT, answer


@pytest.mark.parametrize(
    "values",
    [
        (2, 1, 0, 0.5),  # rows and columns swapped
        (0, 2, 0, 0.5),
        (2, 2, 0, 0.5),  # the diagonal
        (1, 2, 1, 0.6),
        (1, 2, 2, 25 / 35),  # the lowest precision is that of another digit
        (1, 2, 0, 4 / 6),  # the precision
        (1, 2, 0, 50),
        (1, 2, 0, 0.49),
        (1, 2, 0, 4),
        ("1", 2, 0, 0.5),
        (1, [2], 0, 0.5),
        (1, 2, 0.0, 0.5),
        (1, 3, 0, 0.5),
        (-2, 2, 0, 0.5),
        (True, 2, 0, 0.5),
        (1, 2, 0, "0.5"),
        (1, 2, 0, float("nan")),
        (1, 2, 0, torch.full((3,), 0.5)),
    ],
    ids=str,
)
def test_confusion_rejects_a_wrong_answer(values, confused):
    answer = exercises.check_confusion(confused, *values)

    assert answer.state == WRONG, answer


def test_confusion_does_not_tell_the_direction(confused):
    swapped = exercises.check_confusion(confused, 2, 1, 0, 0.5).message
    other = exercises.check_confusion(confused, 2, 0, 0, 0.5).message

    assert swapped.split("times")[1] == other.split("times")[1]


def evaluation_with_recalls(correct: list[int], images: int) -> Evaluation:
    """An evaluation in which so many images of each digit are right; the others are read as 9."""
    labels = []
    predicted = []
    for digit, right in enumerate(correct):
        labels += [digit] * images
        predicted += [digit] * right + [9] * (images - right)
    logits = F.one_hot(torch.tensor(predicted), 10).float()
    return Evaluation(logits, torch.tensor(labels), tuple("0123456789"))


@pytest.mark.parametrize("recall", [0.907, 0.908, 0.91, 0.90])
@pytest.mark.parametrize("hardest", [0, 1])
def test_confusion_accepts_either_digit_of_a_tie_at_two_decimals(hardest, recall):
    validation = evaluation_with_recalls([908, 907, 950], 1000)

    answer = exercises.check_confusion(validation, 1, 9, hardest, recall)

    assert answer.state == RIGHT, answer


def test_confusion_asks_for_more_decimals_where_two_digits_are_close():
    validation = evaluation_with_recalls([917, 901, 999], 1000)

    close = exercises.check_confusion(validation, 1, 9, 0, 0.92)
    far = exercises.check_confusion(validation, 1, 9, 2, 0.99)

    assert close.state == far.state == WRONG
    assert "more decimals" in close.message
    assert "divide by" in far.message


@pytest.mark.parametrize("position", range(4))
def test_confusion_not_done(position, confused):
    values = [1, 2, 0, 0.5]
    values[position] = None

    assert exercises.check_confusion(confused, *values).state == NOT_DONE


# Exercise 3


def train(train_set, validation, recipe):
    torch.manual_seed(0)
    network = EnhancedNet()
    history = fit(network, train_set, validation, recipe, progress=False)
    return SimpleNamespace(network=network, history=history)


@pytest.fixture(scope="module")
def lesson():
    """The embedded digits, a short training as the given one, and a better one."""
    splits = load("digits")
    given_recipe = Recipe(epochs=2, batch_size=128, learning_rate=0.002, augment_strength=0.0)
    better_recipe = Recipe(epochs=8, batch_size=64, learning_rate=0.003, augment_strength=0.0)
    given = train(splits.train, splits.validation, given_recipe)
    better = train(splits.train, splits.validation, better_recipe)
    return SimpleNamespace(splits=splits, given=given, better=better, recipe=better_recipe)


def correct(training, dataset):
    return evaluate(training.network, dataset).correct


def check_recipe(lesson, mine, comparison):
    validation = lesson.splits.validation
    return exercises.check_recipe(
        lesson.given.network,
        lesson.given.history,
        lesson.splits.train,
        validation,
        mine.network,
        mine.history,
        comparison,
    )


def fair_comparison(lesson, mine):
    validation = lesson.splits.validation
    return compare(correct(lesson.given, validation), correct(mine, validation))


def test_recipe_accepts_a_better_one(lesson):
    answer = check_recipe(lesson, lesson.better, fair_comparison(lesson, lesson.better))

    assert answer.state == RIGHT, answer


def test_recipe_rejects_other_images_and_exchanged_networks(lesson):
    splits = lesson.splits
    on_test = compare(correct(lesson.given, splits.test), correct(lesson.better, splits.test))
    on_train = compare(correct(lesson.given, splits.train), correct(lesson.better, splits.train))
    exchanged = compare(
        correct(lesson.better, splits.validation), correct(lesson.given, splits.validation)
    )

    for comparison in (on_test, on_train, exchanged):
        assert check_recipe(lesson, lesson.better, comparison).state == WRONG


def test_recipe_rejects_a_training_on_other_images(lesson):
    splits = lesson.splits
    everything = concatenate(splits.train, splits.validation)
    with pytest.warns(UserWarning, match="also training images"):
        on_validation = train(everything, splits.validation, lesson.recipe)
    chosen_on_test = train(splits.train, splits.test, lesson.recipe)

    for mine in (on_validation, chosen_on_test):
        assert check_recipe(lesson, mine, fair_comparison(lesson, mine)).state == WRONG


def test_recipe_rejects_what_is_not_better(lesson):
    recipe = Recipe(epochs=1, batch_size=128, learning_rate=0.0001, augment_strength=0.0)
    worse = train(lesson.splits.train, lesson.splits.validation, recipe)
    equal = train(lesson.splits.train, lesson.splits.validation, lesson.given.history.recipe)

    for mine in (worse, equal, lesson.given):
        assert check_recipe(lesson, mine, fair_comparison(lesson, mine)).state == WRONG


def test_recipe_rejects_a_network_that_was_trained_before(lesson):
    """Two trainings of one network: the second recipe alone did not make it."""
    splits = lesson.splits
    network = copy.deepcopy(lesson.given.network)
    history = fit(network, splits.train, splits.validation, lesson.recipe, progress=False)
    mine = SimpleNamespace(network=network, history=history)

    answer = check_recipe(lesson, mine, fair_comparison(lesson, mine))

    assert answer.state == WRONG
    assert "same weights" in answer.message


def test_recipe_rejects_a_training_that_was_stopped(lesson):
    history = replace(lesson.better.history, stopped="after epoch 8 of 50")
    mine = SimpleNamespace(network=lesson.better.network, history=history)

    answer = check_recipe(lesson, mine, fair_comparison(lesson, mine))

    assert answer.state == WRONG
    assert "stopped after epoch 8 of 50" in answer.message


def test_recipe_rejects_a_long_training(lesson):
    history = lesson.better.history
    epochs = [{**epoch, "seconds": 10.0} for epoch in history.epochs]
    slow = type(history)(
        history.recipe, history.precision, epochs, history.best_epoch, "", history.identity
    )
    mine = SimpleNamespace(network=lesson.better.network, history=slow)

    answer = check_recipe(lesson, mine, fair_comparison(lesson, mine))

    assert answer.state == WRONG
    assert "80 s" in answer.message


def test_recipe_rejects_the_history_of_another_training(lesson):
    mine = SimpleNamespace(network=EnhancedNet(), history=lesson.better.history)

    assert check_recipe(lesson, mine, fair_comparison(lesson, mine)).state == WRONG


@pytest.mark.parametrize("value", ["better", 0.97, [1], EnhancedNet, Recipe()], ids=str)
@pytest.mark.parametrize("name", ["network", "history", "comparison"])
def test_recipe_rejects_another_type(name, value, lesson):
    mine = SimpleNamespace(network=lesson.better.network, history=lesson.better.history)
    comparison = fair_comparison(lesson, mine)
    if name == "comparison":
        comparison = value
    else:
        setattr(mine, name, value)

    assert check_recipe(lesson, mine, comparison).state == WRONG


def test_recipe_rejects_a_network_that_takes_other_images(lesson):
    mine = SimpleNamespace(network=nn.Linear(3, 10), history=lesson.better.history)

    assert check_recipe(lesson, mine, fair_comparison(lesson, lesson.better)).state == WRONG


def test_recipe_not_done(lesson):
    mine = SimpleNamespace(network=None, history=None)

    assert check_recipe(lesson, mine, None).state == NOT_DONE


# Exercise 4


def changed_labels(dataset: ImageDataset) -> list[int]:
    """The indices of the wrong labels, found by comparing each image with the true ones."""
    puzzle = exercises.with_wrong_labels(dataset)
    true_labels = {}
    for image, label in zip(dataset.images, dataset.labels.tolist(), strict=True):
        true_labels[image.numpy().tobytes()] = label

    changed = []
    for i, image in enumerate(puzzle.images):
        if true_labels[image.numpy().tobytes()] != puzzle.labels[i]:
            changed.append(i)
    return changed


def test_wrong_labels_are_six_and_always_the_same(mnist):
    changed = changed_labels(mnist.validation)

    assert len(changed) == 6
    assert changed == changed_labels(mnist.validation)
    assert len(exercises.with_wrong_labels(mnist.validation)) == 300


def test_wrong_labels_accepts_the_right_answer_in_any_form(mnist):
    changed = changed_labels(mnist.validation)

    forms = [changed, tuple(reversed(changed)), set(changed), torch.tensor(changed)]
    forms += [np.array(changed), list(torch.tensor(changed))]
    for suspects in forms:
        answer = exercises.check_wrong_labels(mnist.validation, suspects)
        assert answer.state == RIGHT, answer


def test_wrong_labels_rejects_a_wrong_answer(mnist):
    changed = changed_labels(mnist.validation)
    other = next(i for i in range(300) if i not in changed)

    wrong_answers = [
        [*changed[:5], other],
        changed[:5],
        [*changed, other],
        [*changed, changed[0]],
        [*changed[:5], changed[0]],
        [*changed[:5], 300],
        [*changed[:5], changed[5] - 300],
        [str(i) for i in changed],
        [float(i) for i in changed],
        list(range(300)),
        str(changed),
        changed[0],
        torch.zeros(300, dtype=torch.bool),
        torch.tensor([changed]),
        torch.tensor(3),
        dict.fromkeys(changed),
        [],
    ]
    for suspects in wrong_answers:
        answer = exercises.check_wrong_labels(mnist.validation, suspects)
        assert answer.state == WRONG, suspects


def test_wrong_labels_not_done(mnist):
    assert exercises.check_wrong_labels(mnist.validation, None).state == NOT_DONE


def test_wrong_labels_stand_out_for_any_good_network(mnist):
    """So the solution does not depend on the bits of a machine."""
    changed = changed_labels(mnist.validation)
    puzzle = exercises.with_wrong_labels(mnist.validation)
    recipe = Recipe(epochs=3, batch_size=128, learning_rate=0.002, augment_strength=0.0)
    network = train(mnist.train.subset(torch.arange(10_000)), mnist.validation, recipe).network
    answer = evaluate(network, puzzle)
    losses = F.cross_entropy(answer.logits, answer.labels, reduction="none")

    is_changed = torch.zeros(len(puzzle), dtype=torch.bool)
    is_changed[changed] = True
    assert losses[is_changed].min() > losses[~is_changed].max() + 2


# Exercise 5


def fgsm(network, pixels, label, sign=1.0, step=0.01, clamp=True, detach=True):
    """The solution, with some changes."""
    start = pixels.clone().requires_grad_()
    F.cross_entropy(logits_of(network, start), label).backward()
    changed = start
    for i in range(1, round(1 / step) + 1):
        changed = start + sign * i * step * start.grad.sign()
        if clamp:
            changed = changed.clamp(0, 1)
        if logits_of(network, changed).argmax() != label:
            break
    return changed.detach() if detach else changed


def random_signs(network, pixels, label):
    torch.manual_seed(0)
    direction = torch.randn_like(pixels).sign()
    for step in range(1, 101):
        changed = (pixels + 0.01 * step * direction).clamp(0, 1)
        if logits_of(network, changed).argmax() != label:
            break
    return changed


def not_the_sign(network, pixels, label):
    start = pixels.clone().requires_grad_()
    F.cross_entropy(logits_of(network, start), label).backward()
    direction = start.grad / start.grad.abs().max()
    for step in range(1, 101):
        changed = (pixels + 0.01 * step * direction).clamp(0, 1)
        if logits_of(network, changed).argmax() != label:
            break
    return changed


def spoil_the_network(network, pixels, label):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return pixels


@pytest.mark.parametrize("options", [{}, {"detach": False}, {"step": 0.005}], ids=str)
def test_fool_accepts_a_small_change(options, lesson):
    def fool(network, pixels, label):
        return fgsm(network, pixels, label, **options)

    answer = exercises.check_fool(lesson.better.network, lesson.splits.validation, fool)

    assert answer.state == RIGHT, answer


@pytest.mark.parametrize(
    "fool",
    [
        lambda network, pixels, label: pixels,
        lambda network, pixels, label: fgsm(network, pixels, label, sign=-1),
        lambda network, pixels, label: fgsm(network, pixels, label, step=0.25),
        lambda network, pixels, label: fgsm(network, pixels, label, clamp=False),
        lambda network, pixels, label: fgsm(network, pixels, label, sign=40, clamp=False),
        lambda network, pixels, label: 1 - pixels,
        lambda network, pixels, label: pixels.roll(14, dims=2),
        random_signs,
        not_the_sign,
        spoil_the_network,
        lambda network, pixels, label: fgsm(network, pixels, label)[0],
        lambda network, pixels, label: fgsm(network, pixels, label).tolist(),
        lambda network, pixels, label: fgsm(network, pixels, label).numpy(),
        lambda network, pixels, label: (255 * fgsm(network, pixels, label)).byte(),
        lambda network, pixels, label: torch.full_like(pixels, float("nan")),
        lambda network, pixels, label: logits_of(network, pixels).argmax(),
        lambda network, pixels, label: pixels.grad.sign(),
        lambda network, pixels: pixels,
        "fool",
    ],
)
def test_fool_rejects_a_wrong_answer(fool, lesson):
    answer = exercises.check_fool(lesson.better.network, lesson.splits.validation, fool)

    assert answer.state == WRONG, answer


def one_small_step(network, pixels, label):
    start = pixels.clone().requires_grad_()
    F.cross_entropy(logits_of(network, start), label).backward()
    return (pixels + 0.001 * start.grad.sign()).clamp(0, 1)


def no_return(network, pixels, label):
    logits_of(network, pixels).argmax()


def change_in_place(network, pixels, label):
    pixels.requires_grad_()
    F.cross_entropy(logits_of(network, pixels), label).backward()
    pixels += 0.1 * pixels.grad.sign()
    return pixels


@pytest.mark.parametrize(
    ("fool", "hint"),
    [
        (lambda network, pixels, label: pixels, "No pixel has changed"),
        (lambda network, pixels, label: fgsm(network, pixels, label, sign=-1), "which direction"),
        (one_small_step, "it rises, but not enough"),
        (no_return, "returns None for image 1 of 10"),
        (change_in_place, "Make a new image"),
    ],
)
def test_fool_hint_leads_to_the_cause(fool, hint, lesson):
    answer = exercises.check_fool(lesson.better.network, lesson.splits.validation, fool)

    assert answer.state == WRONG
    assert hint in answer.message


def test_fool_leaves_the_network_as_it_is(lesson):
    network = lesson.better.network
    before = {name: weight.clone() for name, weight in network.state_dict().items()}

    exercises.check_fool(network, lesson.splits.validation, spoil_the_network)

    for name, weight in network.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("fool", [None, ..., lambda network, pixels, label: None])
def test_fool_not_done(fool, lesson):
    answer = exercises.check_fool(lesson.better.network, lesson.splits.validation, fool)

    assert answer.state == NOT_DONE


# What a notebook shows, and the hand-in


def test_answer_is_shown_as_text_and_as_html():
    answer = exercises.Answer(2, WRONG, "found <b>, expected 3 & 4.")

    assert repr(answer).startswith("✗ Exercise 2")
    assert "&lt;b&gt;" in answer._repr_html_()
    assert not answer.is_right


@pytest.fixture
def hand_in_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    return tmp_path / "hand-in"


BAD_NAMES = ["", "  ", None, 7, "a/b", "..", "C:\\x", ".hidden", "A\nB", "A\x00", "a" * 51]


@pytest.mark.parametrize("student", BAD_NAMES, ids=repr)
def test_hand_in_refuses_what_is_no_name(student, hand_in_folder):
    sentence = exercises.hand_in(student, [], None, None, "digits")

    assert sentence.startswith("Nothing is saved")
    assert "\n" not in sentence
    assert not hand_in_folder.exists()


def test_hand_in_saves_network_and_card(lesson, hand_in_folder):
    mine = lesson.better
    answers = [
        exercises.Answer(1, WRONG, ""),
        exercises.Answer(2, RIGHT, ""),
        check_recipe(lesson, mine, fair_comparison(lesson, mine)),
    ]

    sentence = exercises.hand_in(" Zoë Öz ", answers, mine.network, mine.history, "digits")

    card, weights = sorted(hand_in_folder.iterdir())
    assert card.name.startswith("Zoë Öz-")
    assert weights == card.with_suffix(".pth")
    shown = Path(sentence.removeprefix("Saved. Hand in the file ").removesuffix("."))
    assert shown.resolve() == card.resolve()
    (row,) = read_cards(hand_in_folder).to_dict("records")
    assert row["student"] == "Zoë Öz"
    assert row["exercises right"] == "2, 3"
    assert row["validation accuracy"] == mine.history.validation_accuracy


def test_hand_in_without_a_network(lesson, hand_in_folder):
    answers = [exercises.Answer(1, RIGHT, ""), exercises.Answer(3, WRONG, "")]

    # A network whose check says that it is not right stays out of the card, like none.
    for student, training in [("Ada", (None, None)), ("Bo", (lesson.better.network, None))]:
        sentence = exercises.hand_in(student, answers, *training, "digits")
        assert sentence.startswith("Saved without a network")

    assert all(path.suffix == ".json" for path in hand_in_folder.iterdir())
    table = read_cards(hand_in_folder)
    assert list(table["student"]) == ["Ada", "Bo"]
    assert set(table["exercises right"]) == {"1"}
    assert table["validation accuracy"].isna().all()
    assert set(table["problem"]) == {""}


def test_hand_in_refuses_a_network_that_has_changed_since_the_check(lesson, hand_in_folder):
    mine = lesson.better
    right = check_recipe(lesson, mine, fair_comparison(lesson, mine))
    changed = copy.deepcopy(mine.network)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 0.1

    later_trainings = [
        (changed, mine.history),
        (lesson.given.network, lesson.given.history),
        (mine.network, lesson.given.history),
        (None, None),
    ]
    for network, history in later_trainings:
        sentence = exercises.hand_in("Ada", [right], network, history, "digits")
        assert "has changed since the check" in sentence

    assert not hand_in_folder.exists()


def test_hand_in_again_replaces_only_the_own_files(hand_in_folder, monkeypatch):
    def hand_in(student):
        return exercises.hand_in(student, [], None, None, "digits")

    assert "It replaces" not in hand_in("Ada")
    assert "It replaces" in hand_in("Ada")
    hand_in("ada")
    monkeypatch.setattr(platform, "node", lambda: "another computer")
    assert "It replaces" not in hand_in("Ada")

    names = [path.name.lower() for path in hand_in_folder.iterdir()]
    assert len(set(names)) == 3
    assert set(read_cards(hand_in_folder)["student"]) == {"Ada", "ada"}


def test_hand_in_avoids_names_that_windows_reserves(hand_in_folder):
    exercises.hand_in("CON.", [], None, None, "digits")

    (path,) = hand_in_folder.iterdir()
    assert path.name.split(".")[0].startswith("CON-")
    assert json.loads(path.read_bytes())["student"] == "CON."
