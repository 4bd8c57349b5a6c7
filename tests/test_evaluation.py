"""The metrics are those of scikit-learn and SciPy; evaluating leaves the model as it was."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn import metrics
from torch import nn

from mnist_mlp.data import ImageDataset, Splits
from mnist_mlp.evaluation import Evaluation, evaluate
from mnist_mlp.model import EnhancedNet


def test_evaluation_metrics_are_those_of_scikit_learn(random_evaluation):
    labels = random_evaluation.labels.numpy()
    predicted = random_evaluation.logits.numpy().argmax(1)
    probabilities = special.softmax(random_evaluation.logits.double().numpy(), 1)

    assert random_evaluation.accuracy == metrics.accuracy_score(labels, predicted)
    assert random_evaluation.n_correct == (labels == predicted).sum()
    assert random_evaluation.loss == pytest.approx(metrics.log_loss(labels, probabilities))
    macro_f1 = metrics.f1_score(labels, predicted, average="macro")
    assert f"{macro_f1:.4f}" in random_evaluation.report()


def test_evaluation_interval_is_wilsons(random_evaluation):
    n = len(random_evaluation.labels)
    expected = stats.binomtest(random_evaluation.n_correct, n).proportion_ci(0.95, "wilson")
    assert random_evaluation.interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_evaluation_confusion_has_true_rows_and_predicted_columns():
    predicted = torch.tensor([0, 1, 1, 1, 0])
    labels = torch.tensor([0, 0, 0, 1, 2])
    evaluation = Evaluation(torch.eye(3)[predicted], labels, ("a", "b", "c"))
    assert evaluation.confusion.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.filterwarnings("error")
def test_evaluation_report_has_a_line_per_class_even_without_images():
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [0, 4, 0], [0, 0.5, 0]])
    report = Evaluation(logits, torch.tensor([0, 1, 1, 1]), ("ant", "bee", "cow")).report()

    lines = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line}
    assert lines["ant"] == ["0.5000", "1.0000", "0.6667", "1"]
    assert lines["bee"] == ["1.0000", "0.6667", "0.8000", "3"]
    assert lines["cow"] == ["0.0000", "0.0000", "0.0000", "0"]


def test_misclassified_are_all_errors_most_confident_first(random_evaluation):
    logits = random_evaluation.logits.numpy()
    errors = np.flatnonzero(logits.argmax(1) != random_evaluation.labels.numpy())

    misclassified = random_evaluation.misclassified()

    assert sorted(misclassified.tolist()) == errors.tolist()
    confidence = special.softmax(logits, 1).max(1)[misclassified]
    assert (np.diff(confidence) <= 0).all()


def test_misclassified_with_equal_confidence_are_in_order():
    evaluation = Evaluation(torch.tensor([[1.0, 0.0]] * 300), torch.ones(300).long(), ("a", "b"))
    assert evaluation.misclassified().tolist() == list(range(300))


def test_evaluate_has_the_logits_of_each_image_in_order():
    """There are three batches, and the last one is short."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2051, 28, 28), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.arange(2051) % 10)
    model = EnhancedNet()

    evaluation = evaluate(model, dataset)

    expected = model((images / 255 - 0.1307) / 0.3081).detach()
    torch.testing.assert_close(evaluation.logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(evaluation.labels, dataset.labels)
    assert not evaluation.logits.requires_grad


def test_evaluate_is_without_dropout_and_restores_each_mode(toy):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(784, 10), nn.BatchNorm1d(10))
    model[2].eval()

    first = evaluate(model, toy[0])
    second = evaluate(model, toy[0])

    assert torch.equal(first.logits, second.logits)
    assert model.training
    assert [module.training for module in model] == [True, True, False]


def test_evaluate_refuses_splits_with_the_remedy(toy):
    with pytest.raises(TypeError, match="train, validation or test"):
        evaluate(EnhancedNet(), Splits("toy", toy[0], toy[1], toy[1]))
