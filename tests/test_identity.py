"""A description of code and settings is the same in every process, and differs where they do."""

import logging
import os
import pickle
import subprocess
import sys
from functools import partial
from types import ModuleType

import cloudpickle
import pytest
import torch
from torch import nn

from mnist_mlp import EnhancedNet, Recipe, fit
from mnist_mlp.identity import describe, describe_training

# A file of somebody's own. CHANGE is replaced by another line in the tests.
OWN_FILE = """
import logging
from collections import Counter
from functools import cached_property
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

SCALE = 2.0
SHIFTS = [0.5]
FACTOR = torch.tensor(0.25)
COUNTS = Counter("aab")
POWERS = {"last": 1}
OPTIONS = SimpleNamespace(width=8)
SQUASH = nn.ReLU()
LOGGER = logging.getLogger("own")
INNER = 1.5

settings = ModuleType("settings")
settings.__file__ = "settings.py"
settings.depth = 5


def scaled(x):
    LOGGER.debug("scaled")
    x = FACTOR * COUNTS["a"] * x
    x = SQUASH(x + SHIFTS[0]) ** POWERS["last"] + OPTIONS.width + settings.depth
    return SCALE * x + sum(INNER * x for _ in range(2))


class Net(nn.Module):
    width = 16
    widths = [512]
    squash = torch.sigmoid

    @cached_property
    def words(self):
        return "seven"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(784, 10)
        self.kernel_sizes = (3, 5)
        self.activation = torch.relu
        self.options = {"a": [1, 2]}

    def forward(self, x):
        if self.kind in {"one", "two", "three"}:
            x = x + 1
        return self.out(scaled(self.activation(x)))

    @property
    def kind(self):
        return "one"
"""


@pytest.fixture
def own(monkeypatch):
    """A function that returns how the network in a source is described."""

    def describe_network_in(source):
        module = ModuleType("own")
        module.__file__ = "own.py"
        monkeypatch.setitem(sys.modules, "own", module)
        exec(source, vars(module))
        return describe(module.Net())

    return describe_network_in


def test_description_is_the_same_in_every_process(own, tmp_path):
    """Also with another order of sets, and another comment."""
    (tmp_path / "own.py").write_text(OWN_FILE.replace("range(2))", "range(2))  # !"))
    program = "import own; from mnist_mlp.identity import describe; print(describe(own.Net()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == own(OWN_FILE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("return SCALE * x", "return SCALE + x"),
        ("(3, 5)", "(3, 7)"),
        ("torch.relu", "torch.tanh"),
        ("[1, 2]", "[1, 3]"),
        ("width = 16", "width = 32"),
        ("[0.5]", "[0.6]"),
        ("0.25", "0.125"),
        ('"aab"', '"abb"'),
        ('{"last": 1}', '{"last": 2}'),
        ("(width=8)", "(width=9)"),
        ("nn.ReLU()", "nn.Tanh()"),
        ("INNER = 1.5", "INNER = 1.6"),
        ("depth = 5", "depth = 6"),
        ("[512]", "[256]"),
        ("torch.sigmoid", "torch.exp"),
        ('"seven"', '"eight"'),
        ('return "one"', 'return "four"'),
        ('"three"', '"four"'),
    ],
)
def test_description_differs_where_the_code_or_a_setting_does(own, old, new):
    assert OWN_FILE.count(old) == 1
    assert own(OWN_FILE.replace(old, new)) != own(OWN_FILE)


class Holder:
    def __init__(self, value):
        self.value = value
        self.itself = self


def test_description_looks_into_objects_and_partials():
    sgd = partial(torch.optim.SGD, momentum=0.9)

    assert describe(sgd) == describe(partial(torch.optim.SGD, momentum=0.9))
    assert describe(sgd) != describe(partial(torch.optim.SGD, momentum=0.8))
    assert describe(Holder(torch.ones(3))) == describe(Holder(torch.ones(3)))
    assert describe(Holder(torch.ones(3))) != describe(Holder(torch.zeros(3)))
    assert describe(Holder(1).__init__) != describe(Holder(2).__init__)


class OwnSGD(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_description_leaves_out_objects_of_packages(own):
    """A logger holds all other loggers of the process."""
    before = own(OWN_FILE)

    logging.getLogger("own.another")
    logging.getLogger("own").setLevel(logging.DEBUG)

    assert own(OWN_FILE) == before


def test_description_is_the_same_after_the_first_use():
    """torch puts a function of its own around the `step` of an optimizer that is created."""
    before = describe(OwnSGD)

    OwnSGD(EnhancedNet().parameters())

    assert describe(OwnSGD) == before


def test_description_is_the_same_in_a_worker():
    """cloudpickle drops the file names of code, by which installed functions are known."""
    OwnSGD(EnhancedNet().parameters())
    before = describe(OwnSGD)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    sent = pickle.loads(cloudpickle.dumps(OwnSGD))
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    assert describe(sent) == before


@pytest.mark.filterwarnings("ignore:after epoch")
def test_history_has_the_identity_of_the_training(toy):
    recipe = Recipe(epochs=1, batch_size=64)
    model = EnhancedNet()
    expected = describe_training(
        model, [toy[0]], toy[1], recipe, precision="float32", functions={"fit": fit}
    )

    history = fit(model, *toy, recipe)

    assert history.identity == {**expected, "precision": history.precision}


def frozen_net():
    network = EnhancedNet()
    network.layer1.weight.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ({"model": frozen_net()}, "frozen weights"),
        ({"model": nn.Sequential(nn.Linear(784, 10))}, "network"),
        ({"recipe": Recipe(seed=1)}, "seed"),
        ({"functions": {"loss_fn": nn.CrossEntropyLoss()}}, "loss_fn"),
        ({"precision": "bfloat16"}, "precision"),
    ],
)
def test_identity_has_an_entry_for_each_difference(toy, change, entry):
    arguments = {
        "model": EnhancedNet(),
        "train_sets": [toy[0]],
        "validation": toy[1],
        "recipe": Recipe(),
        "precision": "float32",
        "functions": {},
    }
    before = describe_training(**arguments)

    after = describe_training(**{**arguments, **change})

    assert after.get(entry) != before.get(entry)


def test_describe_sees_a_module_that_is_imported_within_the_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "inner_helper.py").write_text("amount = 0.3\n")

    def augment(images, generator):
        from inner_helper import amount

        return images * amount

    before = describe(augment)
    monkeypatch.setattr("inner_helper.amount", 5.0)
    assert describe(augment) != before


def test_describe_imports_no_installed_module(tmp_path, monkeypatch):
    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "heavy_package.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(package)

    def log(epoch):
        import heavy_package

        heavy_package.log(epoch)

    assert "log" in describe(log)


def test_describe_sees_the_names_of_the_arguments():
    """They decide what `partial(f, a=5)` computes."""

    def first(images, a=1, b=2):
        return images * (a - b)

    def second(images, b=1, a=2):
        return images * (b - a)

    second.__qualname__ = first.__qualname__
    assert describe(partial(first, a=5)) != describe(partial(second, a=5))


SCRIPT_WITH_A_CLASS = """
import cloudpickle
from torch import nn
from mnist_mlp.identity import describe

class Network(nn.Module):
    width = 32
    def __init__(self):
        super().__init__()
    def forward(self, images):
        return self._activation(images)
    def _activation(self, images):
        return images

print(describe(Network))
open("network.pickle", "wb").write(cloudpickle.dumps(Network))
"""

WORKER = """
import pickle
from mnist_mlp.identity import describe

print(describe(pickle.load(open("network.pickle", "rb"))))
"""


def test_describe_gives_a_class_of_a_script_one_digest_in_all_processes(tmp_path):
    digests = []
    for code in (SCRIPT_WITH_A_CLASS, WORKER):
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        digests.append(process.stdout)
    assert digests[0] == digests[1]
