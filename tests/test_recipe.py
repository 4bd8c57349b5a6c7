"""A recipe holds valid plain values; its defaults are those of the published weights."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_mlp import History, Recipe
from mnist_mlp.checkpoint import read_card
from mnist_mlp.train import resolve_precision

# Each field: valid values, values out of range, and values of another type.
VALUES = {
    "epochs": ([1, np.int64(3)], [0, -1], [2.5, True, "3"]),
    "batch_size": ([1, 1300], [0], [64.0]),
    "learning_rate": ([1e-9, 2, np.float64(0.1)], [0.0, -0.1, np.nan, np.inf], ["fast"]),
    "weight_decay": ([0, 1.5], [-1e-9, np.nan, np.inf], [None]),
    "clip_norm": ([0, 1, 0.5], [-1e-9, np.nan, np.inf], [None, "1"]),
    "label_smoothing": ([0, 0.99], [-1e-9, 1, np.nan], ["0.1"]),
    "ema_decay": ([0, 0.999], [-1e-9, 1], [False]),
    "augment_strength": ([0, 1.5], [-1e-9, np.inf], [None]),
    "elastic_strength": ([0, 1.5], [-1e-9], [None]),
    "optimizer": (["adamw", "muon"], ["sgd"], [None, torch.optim.SGD]),
    "schedule": (["one-cycle", "constant"], ["cosine"], [None, len]),
    "select": (["best epoch", "last epoch"], ["first"], [1]),
    "distillation_temperature": ([1e-9, 20], [0, -1], ["warm"]),
    "precision": (["auto", "float32", "bfloat16"], ["float16"], [16]),
    "device": ([None, "cpu", "cuda:0", "mps"], ["gpu", "cpux", "cuda:", "cuda:x"], [0]),
    "seed": ([0, 7, np.int64(5)], [-1], [0.5, None]),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_recipe_refuses_invalid_values_and_names_the_field(name):
    valid, out_of_range, of_other_types = VALUES[name]

    for value in valid:
        assert getattr(Recipe(**{name: value}), name) == value
    for value in out_of_range:
        with pytest.raises(ValueError, match=name) as error:
            Recipe(**{name: value})
        assert f"found {value!r}" in str(error.value)
    for value in of_other_types:
        with pytest.raises(TypeError, match=name):
            replace(Recipe(), **{name: value})


def test_recipe_survives_json():
    recipe = Recipe(epochs=np.int64(3), learning_rate=np.float64(0.1), optimizer="muon")

    assert Recipe(**json.loads(json.dumps(recipe.asdict()))) == recipe


def test_diff_from_default_has_the_changed_fields_alone():
    assert Recipe().diff_from_default() == {}
    recipe = Recipe(epochs=3, select="last epoch")
    assert recipe.diff_from_default() == {"epochs": 3, "select": "last epoch"}


def test_default_recipe_is_that_of_the_published_weights():
    card = read_card(ROOT / "models" / "enhanced_model.pth")

    assert Recipe(**card["recipe"]) == Recipe()


def test_history_sums_seconds_and_has_the_best_accuracy():
    epochs = [
        {"seconds": 1.5, "validation_accuracy": 0.9},
        {"seconds": 2.0, "validation_accuracy": 0.8},
    ]

    history = History(Recipe(), epochs=epochs, best_epoch=1)

    assert history.seconds == 3.5
    assert history.validation_accuracy == 0.9
    assert History(Recipe()).validation_accuracy == 0.0


@pytest.mark.parametrize(("has_units", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_precision_auto_is_bfloat16_where_the_gpu_has_units(monkeypatch, has_units, expected):
    """Elsewhere torch emulates bfloat16, which is slow and does not count."""

    def is_bf16_supported(including_emulation):
        return has_units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    assert resolve_precision("auto", "cuda") == expected
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("float32", "cuda") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
