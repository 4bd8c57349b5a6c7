"""Find the labels of MNIST's training set that are probably wrong, by confident learning.

`make labels` takes two minutes on one core and writes `benchmarks/accuracy/labels.json` with the
most suspicious labels. Their indices count the images of MNIST's training file. The script needs
cleanlab, which is in the extra `[understand]`.
"""

import platform
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.model_selection import StratifiedKFold

from mnist_mlp import EnhancedNet, ImageDataset, Recipe, evaluate, fit
from mnist_mlp.datasets import default_root, load_mnist
from mnist_mlp.files import write_json

RECORD = Path(__file__).with_suffix(".json")
# Keep the last epoch: choosing one by its accuracy on the held-out fold would use its labels.
RECIPE = Recipe(epochs=12, precision="float32", select="last epoch")
FOLDS = 5
N_LISTED = 100


def cross_validated(dataset: ImageDataset, recipe: Recipe, folds: int) -> torch.Tensor:
    """Return class probabilities, (N, classes), each from a network that did not see the image."""
    probabilities = torch.zeros(len(dataset), len(dataset.classes))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=recipe.seed)

    # scikit-learn ignores the values of the first argument.
    for train_indices, held_out_indices in splitter.split(dataset.labels, dataset.labels):
        train = dataset.subset(torch.from_numpy(train_indices))
        held_out = dataset.subset(torch.from_numpy(held_out_indices))
        torch.manual_seed(recipe.seed)
        model = EnhancedNet(len(dataset.classes))
        fit(model, train, held_out, recipe)
        probabilities[held_out_indices] = evaluate(model, held_out).probabilities

    return probabilities


def suspicious_labels(labels: torch.Tensor, probabilities: torch.Tensor) -> list[dict]:
    """Return the labels that are probably wrong, the least probable first.

    Each entry holds the `index` of the image, the `given` label with its `probability`, and the
    `suggested` label, which is the most probable one.
    Source: Northcutt, Jiang & Chuang, "Confident learning: estimating uncertainty in dataset
    labels", JAIR 2021.
    """
    from cleanlab.filter import find_label_issues

    indices = find_label_issues(
        labels.numpy(),
        probabilities.double().numpy(),
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    entries = []
    for i in indices.tolist():
        entries.append(
            {
                "index": i,
                "given": int(labels[i]),
                "suggested": int(probabilities[i].argmax()),
                "probability": float(f"{probabilities[i, labels[i]]:.3g}"),
            }
        )
    return entries


def main() -> None:
    """Cross-validate on the training file, write the record and print its beginning."""
    training, _ = load_mnist(default_root(), download=True)
    probabilities = cross_validated(training, RECIPE, FOLDS)
    suspicious = suspicious_labels(training.labels, probabilities)
    n_correct = int((probabilities.argmax(1) == training.labels).sum())

    record = {
        "command": "make labels",
        "recipe": RECIPE.asdict(),
        "folds": FOLDS,
        "images": len(training),
        "correct": n_correct,
        "suspicious_labels": len(suspicious),
        "most_suspicious": suspicious[:N_LISTED],
        "machine": {
            "processor": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": str(torch.__version__), "cleanlab": version("cleanlab")},
    }
    write_json(RECORD, record)

    print(f"{n_correct:,} of {len(training):,} correct, {len(suspicious)} suspicious labels:")
    for entry in suspicious[:10]:
        print(entry)


if __name__ == "__main__":
    main()
