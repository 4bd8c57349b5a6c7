"""The checks of `notebooks/Exercises.ipynb`: each says whether an answer is right, and what is not.

A check never raises an error because of an answer, and never gives the answer away: it says what
it found, what it expected, and where to look.
"""

import copy
import hashlib
import html
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mnist_lab.research.understanding import logits_of
from mnist_mlp import ImageDataset, compare, evaluate, save_weights
from mnist_mlp.comparison import Comparison
from mnist_mlp.evaluation import Evaluation
from mnist_mlp.files import atomic_write
from mnist_mlp.identity import sha256_of, sha256_of_datasets
from mnist_mlp.notebook import output_path
from mnist_mlp.plots import BLUE, GREY, ORANGE
from mnist_mlp.recipe import History

RIGHT = "right"
WRONG = "not right"
NOT_DONE = "not done yet"

MARKS = {RIGHT: "✓", WRONG: "✗", NOT_DONE: "○"}
COLOURS = {RIGHT: BLUE, WRONG: ORANGE, NOT_DONE: GREY}

MOST_SECONDS = 60  # of a training in exercise 3

# Exercise 4: with this seed, the changed labels have a clearly higher loss than all others.
PUZZLE_SEED = 0
PUZZLE_IMAGES = 300
CHANGED_LABELS = 6

# Exercise 5. An answer may change the pixels a little more than the smallest step that suffices.
IMAGES_TO_FOOL = 10
SMALLEST_STEP = 0.01
TOLERATED_FACTOR = 1.2
TOLERATED_CHANGE = 0.01

LONGEST_NAME = 50  # of a student


@dataclass(frozen=True)
class Answer:
    """What a check says about an answer. A notebook shows it as a coloured line.

    Attributes:
        exercise: The number of the exercise.
        state: "right", "not right" or "not done yet".
        message: What was found, what was expected, and a hint.
        training: For exercise 3, a digest of the network and the history that were checked.
    """

    exercise: int
    state: str
    message: str
    training: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the answer is right."""
        return self.state == RIGHT

    def __str__(self) -> str:
        return f"{MARKS[self.state]} Exercise {self.exercise} is {self.state}: {self.message}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = f"border-left: 6px solid {COLOURS[self.state]}; padding: 6px 12px"
        return f'<div style="{style}">{html.escape(str(self))}</div>'


# Exercise 1


def check_training_loop(train_epoch: Callable) -> Answer:
    """Check a function that takes one step for each batch and returns the mean loss.

    It trains a small network on three made-up batches. The weights must then be those of a loop
    that the check has run itself.

    Args:
        train_epoch: A function of a network, its optimizer, and a list of pairs of images and
            labels.
    """
    if not callable(train_epoch):
        return _no_function(1, "train_epoch", train_epoch)

    batches = _made_up_batches()
    weights_by_step, losses = _correct_epoch(batches)
    before = weights_by_step[0]
    expected = weights_by_step[-1]

    mean_loss, weights, calls, problem = _train_briefly(train_epoch, batches)
    if problem:
        return Answer(1, WRONG, problem)

    is_unchanged = torch.allclose(weights, before, atol=1e-6)
    if is_unchanged and mean_loss is None and not calls:
        return Answer(1, NOT_DONE, "`train_epoch` returns None.")
    if is_unchanged:
        return Answer(
            1,
            WRONG,
            f"the weights are the same as before, expected changed ones. {_why_unchanged(calls)}",
        )

    if torch.allclose(weights, expected, atol=1e-6):
        return _check_mean_loss(mean_loss, losses)

    for step, weights_of_step in enumerate(weights_by_step[1:-1], start=1):
        if torch.allclose(weights, weights_of_step, atol=1e-6):
            return Answer(
                1,
                WRONG,
                f"only {step} of {len(batches)} batches changed the weights, expected all. "
                "Where does your loop end?",
            )

    steps = calls.count("step")
    if steps not in (0, len(batches)):
        return Answer(
            1,
            WRONG,
            f"`step` was called {_times(steps)} for {len(batches)} batches, expected once for "
            "each. What stands inside the loop, and what after it?",
        )

    _, weights, _, _ = _train_briefly(train_epoch, batches[:1])
    if torch.allclose(weights, weights_by_step[1], atol=1e-6):
        return Answer(
            1,
            WRONG,
            "the first step is right, and the later ones lead to other weights than expected. "
            f"What is left over from the step before? {_order(calls)}",
        )
    return Answer(
        1,
        WRONG,
        "already the first step leads to other weights than expected. Look at the order of the "
        f"calls, and at what the loss takes. {_order(calls)}",
    )


def _why_unchanged(calls: list[str]) -> str:
    """Return a hint for a loop that has not changed the weights."""
    if "network" not in calls:
        return "The network that your function was given was never called. Which one did you take?"
    if "backward" not in calls:
        return "`backward` never reached this network. Who computes the gradient?"
    if "step" not in calls:
        return "A gradient alone moves nothing: who uses it?"
    return f"Is the gradient there when `step` needs it? {_order(calls)}"


def _order(calls: list[str]) -> str:
    """Return the first calls as a sentence."""
    if not calls:
        return ""
    return f"Your loop begins with: {', '.join(calls[:5])}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _made_up_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return three batches of eight random images and labels."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        images = torch.randn(8, 784, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        batches.append((images, labels))
    return batches


def _small_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network with the same weights at each call, and its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    return network, torch.optim.SGD(network.parameters(), lr=0.1)


def _weights_of(network: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def _correct_epoch(batches: Sequence) -> tuple[list[torch.Tensor], list[float]]:
    """Return the weights before the training and after each step, and the loss of each batch."""
    network, optimizer = _small_network()
    weights_by_step = [_weights_of(network)]
    losses = []
    for images, labels in batches:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        weights_by_step.append(_weights_of(network))
    return weights_by_step, losses


def _train_briefly(
    train_epoch: Callable, batches: Sequence
) -> tuple[Any, torch.Tensor, list[str], str]:
    """Call a student's training loop, and note what it calls.

    Returns:
        What the function returns; the weights that it leaves; the names of its calls in their
        order, "network", "zero_grad", "backward" and "step"; and the error as a sentence, or "".
    """
    network, optimizer = _small_network()
    calls: list[str] = []

    def clear_with(zero_grad: Callable) -> Callable:
        def noted_zero_grad(*arguments, **options):
            calls.append("zero_grad")
            zero_grad(*arguments, **options)

        return noted_zero_grad

    network.register_forward_hook(lambda *_: calls.append("network"))
    list(network.parameters())[-1].register_hook(lambda _: calls.append("backward"))
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    for owner in (network, optimizer):  # there is no hook for this call
        setattr(owner, "zero_grad", clear_with(owner.zero_grad))  # noqa: B010

    result, problem = _call("train_epoch", train_epoch, network, optimizer, list(batches))
    return result, _weights_of(network), calls, problem


def _check_mean_loss(mean_loss, losses: list[float]) -> Answer:
    expected = sum(losses) / len(losses)
    value = _number(mean_loss)
    if value is None:
        return Answer(
            1,
            WRONG,
            f"the weights are right, but `train_epoch` returns {_describe(mean_loss)}, expected "
            "the mean loss, a number.",
        )
    if math.isclose(value, expected, rel_tol=1e-4):
        return Answer(1, RIGHT, "the weights and the mean loss are those of a correct loop.")
    if abs(value - expected) < 0.051 and value in {round(expected, digits) for digits in (1, 2, 3)}:
        return Answer(
            1,
            WRONG,
            f"the weights are right, but `train_epoch` returns {value:g}, a rounded mean, expected "
            "all decimals. Round only what you print.",
        )
    return Answer(
        1,
        WRONG,
        f"the weights are right, but `train_epoch` returns {value:.4f} where the mean of the "
        f"losses is {expected:.4f}. Of which batches is yours?",
    )


# Exercise 2


def check_confusion(validation: Evaluation, written, read_as, hardest, recall) -> Answer:
    """Check what was read from a confusion matrix.

    Args:
        validation: The evaluation that the matrix belongs to.
        written: The true digit of the most frequent confusion.
        read_as: The digit that it is read as.
        hardest: The digit with the lowest recall, or one that has the same recall to two decimals.
        recall: Its recall, from 0 to 1, to two decimals at least, rounded or cut off.
    """
    digits = {"written": written, "read_as": read_as, "hardest": hardest}
    for name, value in {**digits, "recall": recall}.items():
        if value is None or value is ...:
            return Answer(2, NOT_DONE, f"`{name}` is {value}.")

    n_classes = len(validation.classes)
    for name, value in digits.items():
        number = _whole_number(value)
        if number is None or not 0 <= number < n_classes:
            return Answer(
                2,
                WRONG,
                f"`{name}` is {_describe(value)}, expected a whole number from 0 to "
                f"{n_classes - 1}.",
            )
    written = _whole_number(written)
    read_as = _whole_number(read_as)
    hardest = _whole_number(hardest)

    confusion = validation.confusion
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    if written == read_as:
        return Answer(
            2,
            WRONG,
            f"`written` and `read_as` are both {written}, expected two digits that differ. What "
            "do the numbers on the diagonal count?",
        )
    if errors[written, read_as] < errors.max():
        return Answer(
            2,
            WRONG,
            f"a {written} is read as a {read_as} {errors[written, read_as]} times, and another "
            "confusion is more frequent. What does a row stand for, and what a column?",
        )

    images_by_class = confusion.sum(axis=1)
    recalls = confusion.diagonal() / np.maximum(images_by_class, 1)
    recalls[images_by_class == 0] = 1
    lowest = recalls.min()
    is_tie = not _two_decimals(recalls[hardest]).isdisjoint(_two_decimals(lowest))
    if not is_tie:
        hint = "Which images does a recall divide by?"
        if recalls[hardest] - lowest < 0.02:
            hint = "Another one is close: compare more decimals."
        return Answer(2, WRONG, f"the recall of the {hardest} is not the lowest. {hint}")

    value = _number(recall)
    if value is None or not 0 <= value <= 1:
        return Answer(2, WRONG, f"`recall` is {_describe(recall)}, expected a number from 0 to 1.")
    is_cut_off = any(math.isclose(value, share) for share in _two_decimals(recalls[hardest]))
    if abs(value - recalls[hardest]) > 0.0051 and not is_cut_off:  # two decimals are enough
        return Answer(
            2,
            WRONG,
            f"`recall` is {value:.3f}, expected another share. Which images belong above the "
            "line of the fraction, and which below?",
        )
    return Answer(2, RIGHT, "you read the direction and the recall as they are meant.")


def _two_decimals(share: float) -> set[float]:
    """Return a share with two decimals, once rounded and once cut off."""
    cut_off = math.floor(100 * share + 1e-9) / 100
    return {round(float(share), 2), cut_off}


# Exercise 3


def check_recipe(
    given_network: nn.Module,
    given_history: History,
    train: ImageDataset,
    validation: ImageDataset,
    my_network,
    my_history,
    comparison,
) -> Answer:
    """Check that a training beats the given network, and that the comparison is fair.

    Args:
        given_network: The network to beat.
        given_history: What `fit` has returned for it. Both trainings must begin with the same
            weights, so that only the recipe makes the difference.
        train: The images that both networks may be trained on.
        validation: The images that they are compared on.
        my_network: The network that was trained.
        my_history: What `fit` has returned.
        comparison: What `compare` has returned for the given network and this one.
    """
    answers = {
        "my_network": (my_network, nn.Module, "a network"),
        "my_history": (my_history, History, "what `fit` returns"),
        "comparison": (comparison, Comparison, "what `compare` returns"),
    }
    for name, (value, _, _) in answers.items():
        if value is None or value is ...:
            return Answer(3, NOT_DONE, f"`{name}` is {value}.")
    for name, (value, expected_type, expected) in answers.items():
        if not isinstance(value, expected_type):
            return Answer(3, WRONG, f"`{name}` is {_describe(value)}, expected {expected}.")

    if my_network is given_network:
        return Answer(3, WRONG, "`my_network` is the given network, expected one of your own.")

    if my_history.seconds > MOST_SECONDS:
        return Answer(
            3,
            WRONG,
            f"the training took {my_history.seconds:.0f} s, expected at most {MOST_SECONDS} s. "
            "Which of your changes costs most time?",
        )

    if my_history.stopped:
        return Answer(
            3,
            WRONG,
            f"the training was stopped {my_history.stopped}, expected a whole one. Would fewer "
            "epochs do?",
        )

    images = my_history.identity.get("data (SHA-256)")
    if images != sha256_of_datasets([train, validation]):
        return Answer(
            3,
            WRONG,
            "the network was trained or validated on other images than the given one, so the "
            "recipes are not compared. Which images did you give to `fit`?",
        )

    initial = "initial weights (SHA-256)"
    if my_history.identity.get(initial) != given_history.identity.get(initial):
        return Answer(
            3,
            WRONG,
            "the training did not begin with the same weights as the given one, so it is not only "
            "the recipe that differs. Was the network trained before? Use `train(...)`.",
        )

    mine, problem = _call("evaluate(my_network, ...)", evaluate, my_network, validation)
    if problem:
        return Answer(3, WRONG, problem)
    if abs(mine.accuracy - my_history.validation_accuracy) > 0.001:
        return Answer(
            3,
            WRONG,
            f"`my_history` ends with {my_history.validation_accuracy:.1%}, but `my_network` gets "
            f"{mine.accuracy:.1%} right on the same images. Are both from the same training?",
        )

    fair = compare(evaluate(given_network, validation).correct, mine.correct)
    ends = np.array([comparison.difference, comparison.low, comparison.high])
    fair_ends = np.array([fair.difference, fair.low, fair.high])
    if not np.allclose(ends, fair_ends, atol=1e-9):
        return Answer(
            3,
            WRONG,
            f"`comparison` is {comparison}, but on the validation images the two networks differ "
            "by something else. Which images did you take, and which network comes first?",
        )

    if fair.verdict != "better":
        return Answer(
            3,
            WRONG,
            f"the difference is {fair} points: {fair.verdict}. Expected an interval above 0. "
            "Change one value at a time.",
        )
    return Answer(
        3,
        RIGHT,
        "your recipe is better, on the same images, and not by chance.",
        training=_digest_of_training(my_network, my_history),
    )


def _digest_of_training(network: nn.Module, history: History) -> str:
    """Return a digest of the weights and the history: it changes if one of the two does."""
    weights = sha256_of(network.state_dict().values())
    return hashlib.sha256(f"{weights} {history!r}".encode()).hexdigest()


# Exercise 4


def with_wrong_labels(dataset: ImageDataset) -> ImageDataset:
    """Return 300 images of the data set, of which six have a wrong label, always the same ones."""
    puzzle, _ = _puzzle(dataset)
    return puzzle


def _puzzle(dataset: ImageDataset) -> tuple[ImageDataset, set[int]]:
    """Return the images with some wrong labels, and the indices of those labels."""
    generator = torch.Generator().manual_seed(PUZZLE_SEED)
    order = torch.randperm(len(dataset), generator=generator)
    images = dataset.subset(order[:PUZZLE_IMAGES])

    changed = torch.randperm(len(images), generator=generator)[:CHANGED_LABELS]
    shift = torch.randint(1, len(dataset.classes), (CHANGED_LABELS,), generator=generator)
    labels = images.labels.clone()
    labels[changed] = (labels[changed] + shift) % len(dataset.classes)
    return ImageDataset(images.images, labels, images.classes), set(changed.tolist())


def check_wrong_labels(dataset: ImageDataset, suspects) -> Answer:
    """Check which labels were found to be wrong.

    Args:
        dataset: What `with_wrong_labels` was given.
        suspects: The indices of the six images, in any order.
    """
    if suspects is None or suspects is ...:
        return Answer(4, NOT_DONE, f"`suspects` is {suspects}.")

    puzzle, changed = _puzzle(dataset)
    expected = f"expected {CHANGED_LABELS} indices from 0 to {len(puzzle) - 1}"
    if isinstance(suspects, (torch.Tensor, np.ndarray)) and suspects.ndim == 1:
        suspects = suspects.tolist()
    if not isinstance(suspects, (list, tuple, set)):
        return Answer(4, WRONG, f"`suspects` is {_describe(suspects)}, {expected}.")

    indices = set()
    for suspect in suspects:
        index = _whole_number(suspect)
        if index is None or not 0 <= index < len(puzzle):
            return Answer(4, WRONG, f"`suspects` holds {_describe(suspect)}, {expected}.")
        indices.add(index)

    if len(indices) != CHANGED_LABELS or len(suspects) != CHANGED_LABELS:
        return Answer(
            4,
            WRONG,
            f"`suspects` holds {len(indices)} different indices, {expected}.",
        )
    if indices != changed:
        return Answer(
            4,
            WRONG,
            f"{len(indices & changed)} of your {CHANGED_LABELS} labels were changed, expected "
            "all. How much probability does a good network give to a wrong label?",
        )
    return Answer(4, RIGHT, "you found all the labels that were changed, and no other.")


# Exercise 5


def check_fool(network: nn.Module, dataset: ImageDataset, fool: Callable) -> Answer:
    """Check a function that changes an image so little that only the network is fooled.

    It is called with the first ten images that the network reads right. The check compares the
    largest change of a pixel with that of the smallest single step along the sign of the gradient.

    Args:
        network: The network to fool.
        dataset: The images.
        fool: A function of the network, the pixels of one image, float32 of shape (1, 28, 28)
            from 0 to 1, and its label, int64 of shape (1,). It returns the changed pixels.
    """
    if not callable(fool):
        return _no_function(5, "fool", fool)

    right = evaluate(network, dataset).correct.nonzero()[:IMAGES_TO_FOOL, 0]
    changes = []
    smallest_changes = []
    for number, index in enumerate(right, start=1):
        pixels = dataset.images[index : index + 1].float() / 255
        label = dataset.labels[index : index + 1]

        studied = copy.deepcopy(network)  # the answer may leave gradients, or worse
        readings: list[str] = []
        studied.register_forward_hook(_noting(readings))
        changed, problem = _call("fool", fool, studied, pixels.clone(), label.clone())
        if "in-place" in problem:
            problem += " Make a new image, pixels + ..., in place of changing this one (`+=`)."
        if problem:
            return Answer(5, WRONG, problem)
        if changed is None and not readings:
            return Answer(5, NOT_DONE, "`fool` returns None.")
        if changed is None:
            return Answer(
                5,
                WRONG,
                f"`fool` returns None for image {number} of {len(right)}, expected the changed "
                "image. What does it return when its loop has ended?",
            )
        problem = _problem_of_pixels(changed, pixels)
        if problem:
            return Answer(5, WRONG, problem)
        if not torch.equal(_weights_of(studied), _weights_of(network)):
            return Answer(
                5, WRONG, "`fool` changes the weights of the network, expected only the image."
            )

        changed = changed.detach()
        with torch.no_grad():
            prediction = logits_of(network, changed).argmax(dim=1)
        if torch.equal(prediction, label):
            return Answer(
                5,
                WRONG,
                f"the network still reads image {number} of {len(right)} right. "
                f"{_why_not_fooled(network, pixels, changed, label)}",
            )
        changes.append(float((changed - pixels).abs().max()))
        smallest_changes.append(_smallest_change(network, pixels, label))

    change = sum(changes) / len(changes)
    smallest_change = sum(smallest_changes) / len(smallest_changes)
    if change > TOLERATED_FACTOR * smallest_change + TOLERATED_CHANGE:
        return Answer(
            5,
            WRONG,
            f"the network is fooled, but your largest change of a pixel is {change:.2f} on "
            f"average, expected about {smallest_change:.2f}. Do all pixels help, and do you stop "
            "in time?",
        )
    return Answer(5, RIGHT, "the network is fooled by changes as small as these.")


def _noting(readings: list[str]) -> Callable:
    """Return a hook that notes that the network was called."""

    def note(*_):
        readings.append("network")

    return note


def _why_not_fooled(
    network: nn.Module, pixels: torch.Tensor, changed: torch.Tensor, label: torch.Tensor
) -> str:
    """Return a hint that says what the change of the pixels does to the loss."""
    change = float((changed - pixels).abs().max())
    if change == 0:
        return "No pixel has changed."

    with torch.no_grad():
        before = float(F.cross_entropy(logits_of(network, pixels), label))
        after = float(F.cross_entropy(logits_of(network, changed), label))
    found = f"Your largest change of a pixel is {change:.2g}, and the loss goes from {before:.2g}"
    if after <= before:
        return f"{found} to {after:.2g}. In which direction does it rise?"
    return (
        f"{found} to {after:.2g}: it rises, but not enough. How far do you go, and do you ask "
        "`logits_of` what the network reads?"
    )


def _problem_of_pixels(changed, pixels: torch.Tensor) -> str:
    """Return a sentence if this is not an image of the same shape, else ""."""
    expected = f"expected a tensor of shape {tuple(pixels.shape)}"
    if not isinstance(changed, torch.Tensor):
        return f"`fool` returns {_describe(changed)}, {expected}."
    if changed.shape != pixels.shape or not changed.is_floating_point():
        return (
            f"`fool` returns {changed.dtype} of shape {tuple(changed.shape)}, {expected} of floats."
        )
    low = float(changed.detach().min())
    high = float(changed.detach().max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also if they are nan
        return (
            f"`fool` returns pixels from {low:.2f} to {high:.2f}, expected 0 to 1, so that it is "
            "still an image."
        )
    return ""


def _smallest_change(network: nn.Module, pixels: torch.Tensor, label: torch.Tensor) -> float:
    """Return the smallest step along the sign of the gradient that fools the network."""
    start = pixels.clone().requires_grad_()
    loss = F.cross_entropy(logits_of(network, start), label)
    (gradient,) = torch.autograd.grad(loss, start)

    step = 0.0
    while step < 1:
        step += SMALLEST_STEP
        changed = (pixels + step * gradient.sign()).clamp(0, 1)
        with torch.no_grad():
            prediction = logits_of(network, changed).argmax(dim=1)
        if not torch.equal(prediction, label):
            break
    return step


# At the end of the lesson


def hand_in(student: str, answers: Iterable[Answer], network, history, dataset: str) -> str:
    """Save a card with the exercises that are right, and return a sentence that says where.

    If exercise 3 is right, its network is saved as well, and the card says how good it is. The
    teacher makes a table of all cards with `mnist_lab.research.summary.read_cards`.

    Args:
        student: The student's name. The files are named after it, with a suffix by the computer,
            so that two students of the same name can put their files into one folder.
        answers: What the checks have said.
        network: The network of exercise 3, None without one.
        history: What `fit` has returned for it.
        dataset: The name of the data set.
    """
    problem = _problem_of_name(student)
    if problem:
        return f"Nothing is saved: {problem}"
    name = student.strip()

    answers = list(answers)
    exercises_right = [answer.exercise for answer in answers if answer.is_right]
    checked = [answer.training for answer in answers if answer.exercise == 3 and answer.is_right]
    if checked:
        has_both = isinstance(network, nn.Module) and isinstance(history, History)
        if not has_both or checked != [_digest_of_training(network, history)]:
            return (
                "Nothing is saved: the network of exercise 3 has changed since the check. Run the "
                "check of exercise 3 again, then this cell."
            )

    path = output_path(f"hand-in/{_file_name(name)}.json")
    is_there = path.exists()
    if checked:
        save_weights(
            network,
            path.with_suffix(".pth"),
            student=name,
            exercises_right=exercises_right,
            dataset=dataset,
            recipe=history.recipe.asdict(),
            precision=history.precision,
            best_epoch=history.best_epoch,
            epochs_done=len(history.epochs),
            validation_accuracy=history.validation_accuracy,
            training_seconds=round(history.seconds, 1),
        )
        sentence = f"Saved. Hand in the file {_seen_from_here(path)}."
    else:
        card = {"student": name, "exercises_right": exercises_right, "dataset": dataset}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        sentence = (
            "Saved without a network, because exercise 3 is not right yet. Hand in the file "
            f"{_seen_from_here(path)}."
        )
    if is_there:
        sentence += " It replaces the file that was there."
    return sentence


def _problem_of_name(student) -> str:
    """Return a sentence if files cannot be named after a student, else ""."""
    if not isinstance(student, str) or not student.strip():
        return 'write your name in quotes, student = "...".'
    name = student.strip()
    if len(name) > LONGEST_NAME:
        return f"your name has {len(name)} letters, expected at most {LONGEST_NAME}."
    is_printable = name.isprintable() and name[0].isalnum()
    if not is_printable or any(character in name for character in '/\\:*?"<>|'):
        return f"{name!r} cannot be the name of a file. Use letters and spaces."
    return ""


def _seen_from_here(path: Path) -> str:
    """Return the path from the folder of the notebook, such as "../hand-in/Ada-7767.json"."""
    try:
        return os.path.relpath(path)
    except ValueError:  # on Windows, the path may be on another drive
        return str(path)


def _file_name(name: str) -> str:
    """Return the name of a student's files: the same at each call, another on other computers.

    The suffix differs for "Ada" and "ada" as well, which are one file on Windows and macOS.
    """
    origin = f"{name} {platform.node()} {Path.home()}"
    suffix = hashlib.sha256(origin.encode()).hexdigest()[:4]
    return f"{name.replace('.', '')}-{suffix}"  # a dot would end a name that Windows reserves


# What all checks need


def _call(name: str, function: Callable, *arguments) -> tuple[Any, str]:
    """Return what a function returns, and "" or a sentence with the error that it raises."""
    try:
        return function(*arguments), ""
    except Exception as error:  # a student's function may raise anything
        reason = " ".join(str(error).split())[:200]
        sentence = f"`{name}` stopped with {type(error).__name__}: {reason.rstrip('.')}."
        return None, sentence


def _no_function(exercise: int, name: str, value) -> Answer:
    if value is None or value is ...:
        return Answer(exercise, NOT_DONE, f"`{name}` is {value}.")
    return Answer(exercise, WRONG, f"`{name}` is {_describe(value)}, expected a function.")


def _describe(value) -> str:
    """Return a value and its type in words, such as "'4', a str"."""
    if value is None:
        return "None"
    text = " ".join(repr(value).split())
    if len(text) > 40:
        text = text[:40] + "..."
    return f"{text}, a {type(value).__name__}"


def _number(value) -> float | None:
    """Return a number, or a tensor or array that holds one, as a float; None for all else."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return None
    return float(value) if math.isfinite(value) else None


def _whole_number(value) -> int | None:
    """Return a whole number, or a tensor or array that holds one; None for all else."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return None
    return int(value)
