import copy
import json
import math
import os
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from functools import partial

import numpy as np
import pytest
import torch

from mnist_mlp import EnhancedNet, fit
from mnist_mlp import recipe as recipe_module
from mnist_mlp.recipe import RULES, Recipe

FIELDS = [
    "epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "ema_decay",
    "augment_strength", "optimizer", "seed", "schedule", "loss_fn", "augment", "elastic_strength",
    "keep", "distillation_temperature", "precision", "device",
]  # fmt: skip

# What each field must be, in words; valid values; invalid ones of the right type; of other types.
ALLOWED = {
    "epochs": ("a whole number of at least 1", [1, np.int64(3)], [0, -1], [2.5, True, "3"]),
    "batch_size": ("a whole number of at least 1", [1, 1300], [0, -3], [64.0]),
    "learning_rate": (
        "a number above 0", [1e-9, 2, np.float64(0.1)], [0.0, -0.1, math.nan, math.inf], ["fast"],
    ),
    "weight_decay": ("a number of at least 0", [0, 1.5], [-1e-9, math.nan, math.inf], [None]),
    "label_smoothing": ("a number from 0 to below 1", [0, 0.99], [-1e-9, 1, 1.0], ["0.1"]),
    "ema_decay": ("a number from 0 to below 1", [0, 0.999], [-1e-9, 1, 1.0], [False]),
    "augment_strength": ("a number of at least 0", [0, 1.5], [-1e-9, math.inf], [None]),
    "optimizer": (
        "'adamw' or 'muon', or an optimizer class",
        ["adamw", "muon", torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)],
        ["sgd"], [None, 3],
    ),
    "schedule": (
        "'one-cycle' or 'constant', or a scheduler class",
        ["one-cycle", "constant", torch.optim.lr_scheduler.CosineAnnealingLR],
        ["cosine"], [None],
    ),
    "loss_fn": (
        "'cross-entropy', or a function, not a class",
        ["cross-entropy", torch.nn.MultiMarginLoss(), torch.nn.functional.nll_loss],
        ["hinge", torch.nn.CrossEntropyLoss], [None, 0.5],
    ),
    "augment": (
        "'warp', or a function, not a class", ["warp", lambda x, generator: x],
        ["flip", torch.nn.Identity], [None, 1.0],
    ),
    "elastic_strength": ("a number of at least 0", [0, 1.5], [-1e-9, math.inf], [None]),
    "keep": ("'best' or 'last'", ["best", "last"], ["first"], [1]),
    "distillation_temperature": ("a number above 0", [1e-9, 20], [0, -1, math.inf], ["warm"]),
    "precision": (
        "'auto' or 'float32' or 'bfloat16'", ["auto", "float32", "bfloat16"], ["float16"], [16],
    ),
    "device": (
        "None, 'cpu' or 'cuda'", [None, "cpu", "cuda:0"], ["gpu", "cpux"],
        [0, torch.device("cpu")],
    ),
    "seed": ("a whole number of at least 0", [0, 7], [-1], [0.5, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_an_invalid_value_is_one_sentence(name):
    words, valid, invalid, of_other_types = ALLOWED[name]
    for value in valid:
        assert getattr(Recipe(**{name: value}), name) is value
    for error, values in ((ValueError, invalid), (TypeError, of_other_types)):
        for value in values:
            with pytest.raises(error) as found:
                Recipe(**{name: value})
            assert str(found.value) == f"{name} must be {words}, found {value!r}."


def test_every_field_has_a_rule_and_the_published_recipe_is_valid():
    published = Recipe().asdict()
    assert list(published) == FIELDS
    assert set(published) == set(RULES) == set(ALLOWED)
    assert Recipe(**published | {"precision": "auto"}) == Recipe()
    assert Recipe().changes() == {}


@pytest.mark.parametrize("units", [True, False])
def test_an_automatic_precision_is_recorded_as_the_one_that_is_used(toy, monkeypatch, units):
    """In bfloat16 where the processor has units for it, in float32 elsewhere."""
    monkeypatch.setattr(recipe_module, "multiplies_bfloat16", lambda device: units)
    dtypes = set()

    class Watched(EnhancedNet):
        def forward(self, images):
            logits = super().forward(images)
            dtypes.add(logits.dtype)
            return logits

    recipe = Recipe(epochs=1, batch_size=64)
    used = fit(Watched(), *toy, recipe, progress=False).recipe
    assert used == recipe
    assert used.asdict()["precision"] == ("bfloat16" if units else "float32")
    assert (torch.bfloat16 in dtypes) == units
    assert Recipe(precision="float32").asdict()["precision"] == "float32"
    assert Recipe(precision="bfloat16").asdict()["precision"] == "bfloat16"


@pytest.mark.parametrize(("new", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_too_old_for_bfloat16_trains_in_float32(monkeypatch, new, precision):
    """torch emulates bfloat16 there, which is slow and does not count."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: new or including_emulation
    )
    assert Recipe(device="cuda:0").asdict()["precision"] == precision
    assert Recipe().uses_bfloat16(torch.device("cuda")) == new
    assert not Recipe().uses_bfloat16(torch.device("mps"))


def test_a_processor_without_units_for_bfloat16_trains_in_float32():
    code = """
import torch
from mnist_mlp import EnhancedNet, Recipe, fit, load
digits, recipe, losses = load("digits"), Recipe(epochs=1), []
for each in recipe, Recipe(epochs=1, precision="float32"):
    torch.manual_seed(0)
    history = fit(EnhancedNet(), digits.train, digits.validation, each, progress=False)
    losses.append(history.epochs[0]["loss"])
print(recipe.asdict()["precision"], losses[0] == losses[1])
"""
    without = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command, environment = [sys.executable, "-c", code], os.environ | without
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["float32", "True"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epoch", "Recipe has no field 'epoch': did you mean 'epochs'?"),
        ("learningrate", "did you mean 'learning_rate'?"),
        ("lr_schedule", "did you mean 'schedule'?"),
        ("augmentation", "did you mean 'augment'?"),
        ("augment_strenght", "did you mean 'augment_strength'?"),
        ("loss", "did you mean 'loss_fn'?"),
        ("optimiser", "did you mean 'optimizer'?"),
        ("qqq", f"Recipe has no field 'qqq': expected one of {', '.join(FIELDS)}."),
    ],
)
def test_an_unknown_field_suggests_the_nearest(name, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        Recipe(**{name: 3})
    with pytest.raises(TypeError, match=re.escape(words)):
        replace(Recipe(), **{name: 3})


@pytest.mark.parametrize("name", ALLOWED)
def test_replace_validates_again_and_leaves_the_original(name):
    words, valid, invalid, of_other_types = ALLOWED[name]
    recipe = Recipe(epochs=7, seed=3)
    before = recipe.asdict()
    assert getattr(replace(recipe, **{name: valid[-1]}), name) is valid[-1]
    for value in [*invalid, *of_other_types]:
        with pytest.raises((TypeError, ValueError)) as found:
            replace(recipe, **{name: value})
        assert str(found.value) == f"{name} must be {words}, found {value!r}."
    assert recipe.asdict() == before
    with pytest.raises(FrozenInstanceError):
        setattr(recipe, name, valid[0])


def test_a_replaced_recipe_has_all_other_fields_of_its_original():
    recipe = Recipe(epochs=7, optimizer=torch.optim.SGD, device="cpu")
    found = replace(recipe, seed=5)
    assert found.changes() == recipe.changes() | {"seed": 5}
    assert found.optimizer is torch.optim.SGD


# Records. The module `mine` stands for a user's own.

MINE = """
from torch.optim.lr_scheduler import LambdaLR


class Images:
    def flip(self, images, generator):
        return images.flip(2)

    @staticmethod
    def roll(images, generator, by=1):
        return images.roll(by, 2)


class Counted:
    def __init__(self, k):
        self.k, self._calls = k, 0

    def roll(self, images, generator):
        self._calls += 1
        return images.roll(self.k, 2)


class Inverted:
    def __call__(self, images, generator):
        return 1 - images


class Shifted:
    def __init__(self, by):
        self.by = by
        self._cache = object()

    def __call__(self, images, generator):
        return images.roll(self.by, 2)


class Slotted:
    __slots__ = ()

    def __call__(self, images, generator):
        return images


def halved(step):
    return 0.5


def with_factor(optimizer, total_steps, factor):
    return LambdaLR(optimizer, factor)
"""

# Python source of a recipe -> its changes, in plain values.
RECORDS = {
    "learning_rate=np.float64(0.25), seed=np.int64(3), epochs=np.uint8(7)": {
        "learning_rate": 0.25, "seed": 3, "epochs": 7,
    },
    "weight_decay=np.float32(0.5), ema_decay=np.float16(0.75), batch_size=np.int32(64)": {
        "weight_decay": 0.5, "ema_decay": 0.75, "batch_size": 64,
    },
    "device='cpu', schedule='constant', label_smoothing=0": {
        "device": "cpu", "schedule": "constant",
    },
    "optimizer=torch.optim.SGD": {"optimizer": "torch.optim.sgd.SGD"},
    "optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True)": {
        "optimizer": "torch.optim.sgd.SGD(momentum=0.9, nesterov=True)",
    },
    "optimizer=partial(partial(torch.optim.SGD, momentum=0.9), dampening=0)": {
        "optimizer": "torch.optim.sgd.SGD(momentum=0.9, dampening=0)",
    },
    "schedule=torch.optim.lr_scheduler.CosineAnnealingLR": {
        "schedule": "torch.optim.lr_scheduler.CosineAnnealingLR",
    },
    "loss_fn=torch.nn.MultiMarginLoss()": {"loss_fn": re.compile(r".*MultiMarginLoss\(.*\)")},
    "loss_fn=torch.nn.functional.multi_margin_loss": {
        "loss_fn": "torch.nn.functional.multi_margin_loss",
    },
    "augment=partial(mine.Images.roll, by=2)": {"augment": "mine.Images.roll(by=2)"},
    "augment=partial(mine.Images.roll, mine.halved, 2)": {
        "augment": "mine.Images.roll(mine.halved, 2)",
    },
    "augment=mine.Shifted(3)": {"augment": "mine.Shifted(by=3)"},
    "augment=mine.Slotted()": {"augment": "mine.Slotted()"},
    "augment=mine.Images().flip": {"augment": "mine.Images.flip"},
    "augment=mine.Counted(2).roll": {"augment": "mine.Counted.roll(k=2)"},
    "augment=mine.Slotted().__call__": {"augment": "mine.Slotted.__call__"},
    "augment=mine.Inverted()": {"augment": re.compile(r"mine\.Inverted.*")},
    "augment=lambda images, generator: images": {"augment": re.compile(r".*<lambda>.*")},
}  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    yield mine
    del sys.modules["mine"]


@pytest.mark.parametrize("source", RECORDS)
def test_a_record_is_plain_and_names_functions(mine, source):
    names = {"np": np, "torch": torch, "partial": partial, "mine": mine}
    recipe = eval(f"Recipe({source})", names | {"Recipe": Recipe})
    assert json.loads(json.dumps(recipe.asdict())) == recipe.asdict()
    assert list(recipe.asdict()) == FIELDS
    assert {type(value) for value in recipe.asdict().values()} <= {int, float, str, type(None)}
    changes = recipe.changes()
    assert list(changes) == [name for name in FIELDS if name in RECORDS[source]]
    for name, expected in RECORDS[source].items():
        if isinstance(expected, re.Pattern):
            assert expected.fullmatch(changes[name])
        else:
            assert changes[name] == expected


def records_of_two_processes(sources, folder) -> tuple[list[str], list[str]]:
    """Return the records as JSON, from two processes in which all objects are elsewhere."""
    code = f"""
import json
import sys
from functools import partial

import numpy as np
import torch

elsewhere = [object() for _ in range(1000 * int(sys.argv[1]))]
import mine
from mnist_mlp import Recipe

for recipe in [{", ".join(f"Recipe({source})" for source in sources)}]:
    print(json.dumps(recipe.asdict()))
"""
    shown = []
    for number in ("1", "7"):
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-c", code, number], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": number},
        )  # fmt: skip
        shown.append(done.stdout.splitlines())
    return shown[0], shown[1]


def test_a_record_is_the_same_in_another_process(mine, tmp_path):
    found = records_of_two_processes(RECORDS, tmp_path)
    assert len(found[0]) == len(RECORDS)
    for source, one, other in zip(RECORDS, *found, strict=True):
        assert one == other, source
        assert " at 0x" not in one, source


@pytest.mark.parametrize(
    "source",
    [
        "schedule=partial(mine.with_factor, factor=mine.halved)",
        "augment=partial(mine.Images.roll, by=mine.Inverted())",
    ],
)
def test_a_function_among_the_arguments_of_a_partial_is_recorded_by_its_name(
    mine, tmp_path, source
):
    (one,), (other,) = records_of_two_processes([source], tmp_path)
    assert one == other
    assert " at 0x" not in one
    assert "mine.halved" in one or "mine.Inverted" in one


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("loss_fn", "torch.nn.MultiMarginLoss()", "torch.nn.MultiMarginLoss(margin=2.0)"),
        ("loss_fn", "torch.nn.CrossEntropyLoss()", "torch.nn.CrossEntropyLoss(reduction='sum')"),
        ("augment", "mine.Shifted(1)", "mine.Shifted(2)"),
        ("loss_fn", "torch.nn.CrossEntropyLoss()", "torch.nn.CrossEntropyLoss(torch.ones(10))"),
    ],
)
def test_an_object_with_other_arguments_has_another_record(mine, name, one, other):
    names = {"torch": torch, "mine": mine}
    records = [Recipe(**{name: eval(source, names)}).asdict()[name] for source in (one, other)]
    assert records[0] != records[1]
    assert " at 0x" not in "".join(records)


def test_a_recipe_survives_copying_and_pickling():
    recipe = Recipe(epochs=3, optimizer=partial(torch.optim.SGD, momentum=0.9), device="cpu")
    for found in (copy.copy(recipe), copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert found.asdict() == recipe.asdict()
        assert isinstance(found, Recipe)


def test_a_builtin_and_a_method_of_a_class_have_short_records():
    assert Recipe(loss_fn=math.dist).asdict()["loss_fn"] == "math.dist"
    assert Recipe(augment=Recipe.changes).asdict()["augment"] == "mnist_mlp.recipe.Recipe.changes"


def test_a_choice_is_one_of_the_names_or_where_it_says_so_a_function():
    kinds, allowed, words = recipe_module._choice({"a": 1, "b": 2}, ", or a function")
    assert isinstance("a", kinds)
    assert isinstance(print, kinds)
    assert not isinstance(3, kinds)
    values = "a", "b", "c", print, int
    assert [bool(allowed(value)) for value in values] == [True, True, False, True, True]
    _, allowed, _ = recipe_module._choice({"a": 1}, ", or a function", classes=False)
    assert [bool(allowed(value)) for value in values] == [True, False, False, True, False]
    assert words == "'a' or 'b', or a function"
    kinds, allowed, words = recipe_module._choice(["a", "b"])
    assert not isinstance(print, kinds)
    assert allowed("b")
    assert words == "'a' or 'b'"
