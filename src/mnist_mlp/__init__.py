"""Reproducible MNIST classification with a five-layer MLP.

    torch.manual_seed(0)  # for the initial weights
    splits = load("mnist")
    model = EnhancedNet()
    history = fit(model, splits.train, splits.validation, Recipe(epochs=5))
    print(evaluate(model, splits.test).accuracy)

Read the modules in this order: `data`, `augment`, `model`, `recipe`, `optim`, `evaluation`,
`train`, `checks`, `checkpoint`, `identity`, `files`, `datasets`, `comparison`, `plots`, `notebook`.
More is in `mnist_lab`.
"""

import os

# How often a thread that waits for others looks before it sleeps. By default, GNU's OpenMP looks
# 300,000 times. If two trainings share a machine, such threads take the cores from those that work,
# and both trainings take many times as long. (A thread that sleeps at once slows down a training
# that is alone.) torch reads this when it is imported, so import this package first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from mnist_mlp.checkpoint import load_weights, save_weights
from mnist_mlp.comparison import compare
from mnist_mlp.data import ImageDataset, Splits
from mnist_mlp.datasets import load
from mnist_mlp.evaluation import evaluate
from mnist_mlp.model import EnhancedNet
from mnist_mlp.recipe import History, Recipe
from mnist_mlp.train import fit

__all__ = [
    "EnhancedNet",
    "History",
    "ImageDataset",
    "Recipe",
    "Splits",
    "compare",
    "evaluate",
    "fit",
    "load",
    "load_weights",
    "save_weights",
]
