import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn import metrics
from torch import nn

from mnist_mlp.data import ImageDataset
from mnist_mlp.evaluation import Evaluation, evaluate
from mnist_mlp.model import EnhancedNet


def test_accuracy_loss_and_report_are_scikit_learns(random_evaluation):
    e = random_evaluation
    labels, predicted = e.labels.numpy(), e.logits.numpy().argmax(1)
    assert e.accuracy == metrics.accuracy_score(labels, predicted)
    assert e.n_correct == metrics.accuracy_score(labels, predicted, normalize=False)
    assert e.loss == pytest.approx(
        metrics.log_loss(labels, special.softmax(e.logits.double().numpy(), 1))
    )
    assert f"{metrics.f1_score(labels, predicted, average='macro'):.4f}" in e.report()


def test_the_rows_of_the_confusion_matrix_are_the_true_classes():
    labels = torch.tensor([0, 0, 0, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 0])
    e = Evaluation(torch.eye(3)[predicted], labels, tuple("abc"))
    assert e.confusion.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]


def test_the_interval_is_wilsons(random_evaluation):
    e = random_evaluation
    expected = stats.binomtest(e.n_correct, len(e.labels)).proportion_ci(0.95, "wilson")
    assert e.interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_the_misclassified_are_all_that_is_wrong_the_most_confident_first(random_evaluation):
    e = random_evaluation
    found = e.misclassified()
    assert set(found.tolist()) == set(
        np.flatnonzero(e.logits.numpy().argmax(1) != e.labels.numpy())
    )
    confidence = e.logits.softmax(1).amax(1)[found]
    assert (confidence.diff() <= 0).all()


def test_the_logits_are_those_of_every_image_normalised_in_order():
    """More than one batch, the last one short: none may be dropped."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2051, 28, 28), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.zeros(2051, dtype=torch.int64))
    model = EnhancedNet()
    with torch.no_grad():
        expected = model((images / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(evaluate(model, dataset).logits, expected, atol=1e-5, rtol=1e-5)


def test_dropout_and_batch_norm_are_off_while_evaluating_and_on_again_after(toy):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(784, 10), nn.BatchNorm1d(10))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = evaluate(model, toy[0]), evaluate(model, toy[0])
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    model[0].eval()
    evaluate(model, toy[0])
    assert [module.training for module in model] == [False, True, True]
    assert not evaluate(model.eval(), toy[0]).logits.requires_grad
    assert not model.training


@pytest.mark.filterwarnings("error")
def test_the_report_has_a_line_for_each_class_the_missing_too():
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [0, 4, 0], [0, 0.5, 0]])
    found = Evaluation(logits, torch.tensor([0, 1, 1, 1]), ("ant", "bee", "cow"))
    lines = {line.split()[0]: line.split()[1:] for line in found.report().splitlines() if line}
    assert lines["ant"] == ["0.5000", "1.0000", "0.6667", "1"]
    assert lines["bee"] == ["1.0000", "0.6667", "0.8000", "3"]
    assert lines["cow"] == ["0.0000", "0.0000", "0.0000", "0"]


def test_equally_confident_errors_come_in_order():
    found = Evaluation(torch.tensor([[1.0, 0.0]] * 300), torch.ones(300).long(), ("a", "b"))
    assert found.misclassified().tolist() == list(range(300))
