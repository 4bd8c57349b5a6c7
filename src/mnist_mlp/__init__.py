"""Reproducible MNIST classification with a five-layer MLP.

    splits, model = load("mnist"), EnhancedNet()
    history = fit(model, splits.train, splits.validation, Recipe(epochs=5))
    print(evaluate(model, splits.test).accuracy)

Read the core, the modules beside this file, in this order: `data`, `augment`, `model`, `optim`,
`recipe`, `evaluation`, `train`, `plots`. Of the subpackages it imports only `storage`.
"""

from importlib import import_module

_MODULES = {
    "EnhancedNet": "model", "ImageDataset": "data", "Recipe": "recipe", "Splits": "data",
    "compare": "research.comparison", "evaluate": "evaluation", "fit": "train",
    "load": "datasets", "load_weights": "storage.weights", "save_weights": "storage.weights",
}  # fmt: skip

__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    """Import a public name when it is first used, so that `import mnist_mlp` takes no time."""
    if name not in _MODULES:
        raise AttributeError(f"module 'mnist_mlp' has no attribute {name!r}")
    return getattr(import_module(f"mnist_mlp.{_MODULES[name]}"), name)
