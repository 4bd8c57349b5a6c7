import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from helpers import ROOT

from mnist_mlp import Recipe
from mnist_mlp.checkpoint import read_card
from mnist_mlp.train import resolve_precision

# Valid values of each field; values out of range; values of another type.
VALUES = {
    "epochs": ([1, np.int64(3)], [0, -1], [2.5, True, "3"]),
    "batch_size": ([1, 1300], [0, -3], [64.0]),
    "learning_rate": ([1e-9, 2, np.float64(0.1)], [0.0, -0.1, np.nan, np.inf], ["fast"]),
    "weight_decay": ([0, 1.5], [-1e-9, np.nan, np.inf], [None]),
    "label_smoothing": ([0, 0.99], [-1e-9, 1, 1.0], ["0.1"]),
    "ema_decay": ([0, 0.999], [-1e-9, 1, 1.0], [False]),
    "augment_strength": ([0, 1.5], [-1e-9, np.inf], [None]),
    "elastic_strength": ([0, 1.5], [-1e-9, np.inf], [None]),
    "optimizer": (["adamw", "muon"], ["sgd"], [None, 3, torch.optim.SGD]),
    "schedule": (["one-cycle", "constant"], ["cosine"], [None, len]),
    "select": (["best epoch", "last epoch"], ["first"], [1]),
    "distillation_temperature": ([1e-9, 20], [0, -1, np.inf], ["warm"]),
    "precision": (["auto", "float32", "bfloat16"], ["float16"], [16]),
    "device": ([None, "cpu", "cuda:0"], ["gpu", "cpux", "cuda:", "cuda:x"], [0]),
    "seed": ([0, 7, np.int64(5)], [-1], [0.5, None]),
}


def test_recipe_fields_are_all_checked_here():
    assert set(VALUES) == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("name", VALUES)
def test_recipe_refuses_invalid_values_and_names_the_field(name):
    valid, out_of_range, of_other_types = VALUES[name]
    for value in valid:
        assert getattr(Recipe(**{name: value}), name) == value
        assert getattr(replace(Recipe(seed=3), **{name: value}), name) == value

    for error, values in ((ValueError, out_of_range), (TypeError, of_other_types)):
        for value in values:
            with pytest.raises(error, match=f"^{name} must be .*found {value!r}".partition("(")[0]):
                Recipe(**{name: value})
            with pytest.raises(error):
                replace(Recipe(), **{name: value})


def test_recipe_suggests_nothing_for_an_unknown_field_but_names_it():
    with pytest.raises(TypeError, match="'epoch'"):
        Recipe(epoch=3)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(optimizer="muon", select="last epoch", device="cpu", precision="bfloat16"),
        Recipe(epochs=np.int64(3), learning_rate=np.float64(0.1), weight_decay=np.float32(0.1)),
    ],
)
def test_recipe_survives_json_and_pickle(recipe):
    assert Recipe(**recipe.asdict()) == recipe
    assert Recipe(**json.loads(json.dumps(recipe.asdict()))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_recipe_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Recipe().epochs = 3


def test_diff_from_default_has_the_changed_fields_alone():
    assert Recipe().diff_from_default() == {}
    assert Recipe(epochs=3, select="last epoch").diff_from_default() == {
        "epochs": 3,
        "select": "last epoch",
    }


def test_default_recipe_is_that_of_the_published_weights():
    card = read_card(ROOT / "models" / "enhanced_model.pth")
    changed = replace(Recipe(**card["recipe"]), precision="auto").diff_from_default()
    assert changed == {}


@pytest.mark.parametrize(("has_units", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_precision_auto_is_bfloat16_where_the_gpu_has_units(monkeypatch, has_units, expected):
    """torch emulates bfloat16 elsewhere, which is slow and does not count."""
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: has_units or including_emulation,
    )
    assert resolve_precision("auto", "cuda") == expected
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("float32", "cuda") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
