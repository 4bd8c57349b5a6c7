"""Mistakes that are easily made in MNIST code: each is made on purpose, and found.

A copy of the source, or of the notebook, is broken in one place; then the test named beside it must
fail. That the same test passes on the unbroken source is seen where it runs for itself.
"""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = ROOT / "notebooks" / "Handwritten-Digits-Classifier.ipynb"

# mistake: (file, what stands there, what is put there, the test that must fail)
IN_THE_PACKAGE = {
    "the optimiser holds another model's parameters": (
        "recipe.py",
        "return factory(model.parameters(), **settings)",
        "return factory(__import__('copy').deepcopy(model).parameters(), **settings)",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "the test set used as the validation set": (
        "datasets/__init__.py",
        "train.subset(held_out), test)",
        "test, test)",
        "datasets/test_mnist.py::test_the_parts_are_those_of_the_files_and_share_no_image",
    ),
    "no zero_grad": (
        "train.py",
        "state.optimizer.zero_grad()",
        "pass",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "no gradient through ReLU": (
        "optim/backprop.py",
        "threshold_backward(before, inputs[i], 0, grad_input=before)",
        "pass",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "no model.eval()": (
        "evaluation.py",
        "    model.eval()\n    try:",
        "    try:",
        "core/test_evaluation.py"
        "::test_dropout_and_batch_norm_are_off_while_evaluating_and_on_again_after",
    ),
    "softmax before the cross-entropy loss": (
        "train.py",
        "loss_fn(logits.float(),",
        "loss_fn(logits.softmax(1).float(),",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "softmax at the end of the model": (
        "model.py",
        "return self.layer5(x)",
        "return self.layer5(x).softmax(1)",
        "core/test_model.py::test_the_logits_are_those_of_the_formula",
    ),
    "labels shuffled apart from images": (
        "data.py",
        "images.flatten(1), self.labels.index_select(0, indices)",
        "images.flatten(1), self.labels[indices][torch.randperm(len(indices))]",
        "core/test_data.py"
        "::test_every_image_comes_once_an_epoch_with_its_label_in_an_order_of_seed_and_epoch",
    ),
    "normalisation at training but not at evaluation": (
        "evaluation.py",
        "in loader(dataset)",
        "in loader(__import__('dataclasses').replace(dataset, mean=0.0, std=1.0))",
        "core/test_evaluation.py::test_the_logits_are_those_of_every_image_normalised_in_order",
    ),
    "the last short batch dropped in evaluation": (
        "data.py",
        "order.to(dataset.images.device).split(batch_size)",
        "order[: len(order) // batch_size * batch_size].split(batch_size)",
        "core/test_evaluation.py::test_the_logits_are_those_of_every_image_normalised_in_order",
    ),
    "averages over batches instead of examples": (
        "state.py",
        "totals.examples += len(labels)",
        "totals.examples += 64",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "the confusion matrix transposed": (
        "evaluation.py",
        "confusion_matrix(self.labels, self.predicted",
        "confusion_matrix(self.predicted, self.labels",
        "core/test_evaluation.py::test_the_rows_of_the_confusion_matrix_are_the_true_classes",
    ),
    "the saved weights not the averaged ones": (
        "state.py",
        "copy.deepcopy(self.eval_model.state_dict())",
        "copy.deepcopy(self.model.state_dict())",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "augmentation left on at evaluation": (
        "evaluation.py",
        "in loader(dataset)",
        "in loader(dataset, augment=lambda images, generator: images.roll(2, 2))",
        "core/test_evaluation.py::test_the_logits_are_those_of_every_image_normalised_in_order",
    ),
    "augmentation left on at validation": (
        "train.py",
        "evaluate(state.eval_model, validation)",
        "evaluate(state.eval_model, __import__('dataclasses').replace("
        "validation, images=validation.images.roll(2, 2)))",
        "core/test_train.py"
        "::test_with_warps_too_what_is_validated_is_the_model_on_the_images_as_they_are",
    ),
    "the same order every epoch": (
        "state.py",
        "epoch_generator(recipe.seed, len(self.history.epochs) + 1)",
        "epoch_generator(recipe.seed, 1)",
        "core/test_train.py::test_fit_is_the_textbooks_loop",
    ),
    "a picture centred by its box and not by its mass": (
        "handwriting/preprocess.py",
        "round(13.5 - centre)",
        "(28 - side) // 2",
        "handwriting/test_preprocess.py::test_its_box_is_20_and_its_centre_of_mass_the_middle",
    ),
    "a folder's digits numbered from 0 whatever they are": (
        "datasets/folder.py",
        "if set(names) <= set(ImageDataset.classes) else names",
        "if len(names) == 10 else names",
        "datasets/test_siblings.py::test_a_folder_of_some_digits_has_the_classes_of_all_ten",
    ),
    "validation images left in training": (
        "datasets/__init__.py",
        "train.subset(kept), train",
        "train, train",
        "datasets/test_mnist.py::test_the_parts_are_those_of_the_files_and_share_no_image",
    ),
}

# mistake: (what stands in a cell, what is put there)
IN_THE_NOTEBOOK = {
    "the trained model is not the one that is saved": (
        "outputs.save_model(model, test)",
        "outputs.save_model(EnhancedNet(len(classes)), test)",
    ),
    "another model is trained than the one that is evaluated": (
        "history = fit(model,",
        "history = fit(EnhancedNet(len(classes)),",
    ),
    "the test set used as the validation set": (
        "history = fit(model, splits.train, splits.validation",
        "history = fit(model, splits.train, splits.test",
    ),
}


# Those that are always tested; the others in `make test-all`.
SAMPLE = ("no zero_grad", "the trained model is not the one that is saved")


def each(mistakes):
    marks = {mistake: () if mistake in SAMPLE else pytest.mark.campaign for mistake in mistakes}
    return [pytest.param(mistake, marks=mark) for mistake, mark in marks.items()]


def test_what_each_mistake_replaces_is_there_once():
    """Also where only the sample of them is tested."""
    for name, right, *_ in IN_THE_PACKAGE.values():
        source = (ROOT / "src" / "mnist_mlp" / name).read_text(encoding="utf-8")
        assert source.count(right) == 1, f"{name} has changed: {right!r} is not there once"


@pytest.mark.parametrize("mistake", each(IN_THE_PACKAGE))
def test_a_mistake_in_the_package_turns_a_test_red(mistake, tmp_path):
    name, right, wrong, test = IN_THE_PACKAGE[mistake]
    shutil.copytree(ROOT / "src", tmp_path / "src")
    path = tmp_path / "src" / "mnist_mlp" / name
    path.write_text(path.read_text(encoding="utf-8").replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", ROOT / "tests" / test],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, f"the mistake was not found:\n{done.stdout}{done.stderr}"
    assert re.search(r"[12] failed", done.stdout)
    assert re.search(r"^E +(AssertionError|assert )", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("mistake", each(IN_THE_NOTEBOOK))
def test_a_mistake_in_the_notebook_turns_it_red(mistake, tmp_path, monkeypatch):
    right, wrong = IN_THE_NOTEBOOK[mistake]
    monkeypatch.setenv("MNIST_MLP_OUTPUT", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if right in cell.source]
    assert len(cells) == 1, f"the notebook has changed: {right!r} is not there once"
    cells[0].source = cells[0].source.replace(right, wrong)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += '\ndataset, epochs = "digits", 4'
    runner = NotebookClient(notebook, kernel_name="python3", timeout=600)
    runner.resources = {"metadata": {"path": NOTEBOOK.parent}}
    with pytest.raises(CellExecutionError, match="AssertionError"):
        runner.execute()
