import ast
import json
import re
import sys

import pytest
import torch
from helpers import ROOT, published
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnist_mlp import EnhancedNet, Recipe, evaluate

SPEED = ROOT / "benchmarks" / "speed"

FAKE_BASELINES = """
import json, os, sys

name, settings = sys.argv[1], json.loads(sys.argv[2])
if name == "missing":
    import a_package_that_nobody_has
if name == "crashing":
    os.abort()
assert not any(variable.startswith("OPENBLAS") for variable in os.environ)

seconds = 10.0 if name == "slow" else 1.0
if settings["seed"] == 100:
    seconds *= 2
print("a library's chatter")
print(json.dumps({
    "import": 1.5,
    "load": 0.5,
    "epoch": [seconds + 3, seconds, seconds],
    "validation_accuracy": [0.99],
    "test_accuracy": 0.98 if name == "slow" else 0.985,
}))
"""


@pytest.fixture
def speed_scripts(monkeypatch):
    """Make the scripts of the benchmarks importable, in this test alone."""
    monkeypatch.syspath_prepend(SPEED)
    for name in ("bench", "gpu", "baselines", "epoch_profile"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def bench(speed_scripts, monkeypatch, tmp_path):
    """The benchmark with contestants of its own, in a folder of its own."""
    import bench

    names = {
        bench.FAST: "mnist_mlp",
        "missing": "missing",
        "crashing": "crashing",
        "slow": "slow",
    }
    rows = {
        label: {"contestant": name, "candidates": [], "settings": {}}
        for label, name in names.items()
    }
    chosen = {"epochs": 3, "batch_size": 64, "learning_rate": 0.1}
    tuned = {label: {"chosen": chosen, "cleared": label != "slow"} for label in names}

    (tmp_path / "baselines.py").write_text(FAKE_BASELINES)
    (tmp_path / "tuning.json").write_text(json.dumps({"contestants": tuned}))
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "RECORD", tmp_path / "bench.json")
    monkeypatch.setattr(bench, "TUNING", tmp_path / "tuning.json")
    monkeypatch.setattr(bench, "CONTESTANTS", rows)
    monkeypatch.setattr(bench, "EQUAL", rows)
    monkeypatch.setattr(bench, "write_splits", lambda seeds, _: dict.fromkeys(seeds, tmp_path))
    monkeypatch.setattr(bench, "bfloat16_units", lambda: "AMX")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    return bench


def read_record(name: str) -> dict:
    """Return a published record of the benchmarks."""
    path = f"benchmarks/speed/{name}"
    published(path)
    return json.loads((ROOT / path).read_bytes())


def test_bench_contestant_that_crashes_stops_no_other(bench, capsys):
    bench.race("both", [])

    record = json.loads(bench.RECORD.read_bytes())["AMX"]
    for rows in (record["time_to_goal"], record["equal_settings"]):
        assert "a_package_that_nobody_has" in rows["missing"]["error"]
        assert rows["crashing"]["error"]
        # In the median of the rounds: 0.5 + 4 + 1 + 1, and 0.5 + 13 + 10 + 10.
        assert rows[bench.FAST]["seconds"] == 6.5
        assert rows["slow"]["seconds"] == 33.5
        assert rows["slow"]["epoch_seconds"] == 10
        assert rows["slow"]["first_epoch_extra_seconds"] == 3

    printed = capsys.readouterr().out
    assert "| slow | at least 33.5 | at least 5.2 | 3.0 | 3 | 98.00% ± 0.00 (missed) |" in printed
    assert "| slow | 5,500 |" in printed


def test_bench_keeps_records_of_other_processors(bench, monkeypatch):
    for units in ("AMX", "none", "AMX"):
        monkeypatch.setattr(bench, "bfloat16_units", lambda units=units: units)
        bench.race("both", [])

    records = json.loads(bench.RECORD.read_bytes())
    assert list(records) == ["AMX", "none"]
    for units, record in records.items():
        assert record["machine"]["bfloat16_units"] == units


def test_bench_of_some_contestants_leaves_the_record(bench, capsys):
    bench.race("equal", ["slow"])

    printed = capsys.readouterr().out
    assert "| slow | 5,500 |" in printed
    assert "mnist_mlp" not in printed
    assert not bench.RECORD.exists()


@pytest.mark.parametrize(("units", "has_units"), [("none", False), ("AMX", True)])
def test_bench_uses_bfloat16_only_with_units_for_it(speed_scripts, units, has_units):
    """Emulated, a single training takes longer than all others together."""
    import bench

    rows = [
        *bench.rows_to_goal(bench.CONTESTANTS, units).values(),
        *bench.rows_at_equal_settings(bench.EQUAL, units).values(),
    ]
    assert any(row.settings.get("bfloat16") for row in rows) is has_units


def test_bench_without_mnist_says_what_to_do(speed_scripts, monkeypatch, tmp_path):
    import bench

    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    with pytest.raises(SystemExit, match="MNIST_ROOT"):
        bench.write_splits(range(1), str(tmp_path))


def test_baselines_learning_rate_is_that_of_torch(speed_scripts):
    import baselines

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40)
    rate = baselines.learning_rates("one-cycle", 0.5, 40)
    for step in range(40):
        assert rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        schedule.step()


def test_the_floors_operations_are_those_that_torch_counts(speed_scripts):
    import epoch_profile

    model = EnhancedNet()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.rand(7, 784)), torch.zeros(7, dtype=torch.int64)).backward()
        model(torch.rand(3, 784))
    assert epoch_profile.epoch_operations(model, 7, 3) == counter.get_total_flops()


def test_gpu_step_trains_anew_each_time(speed_scripts, toy):
    """On the CPU, uncaptured."""
    import gpu

    train, validation = toy
    torch.manual_seed(0)
    recipe = {"epochs": 20, "batch_size": 26, "learning_rate": 0.003}
    order = gpu.random_order(train, recipe["epochs"], recipe["batch_size"])
    assert order.view(20, 130).sort(1).values.tolist() == [list(range(130))] * 20

    training = gpu.CapturedTraining(train, **recipe, augment_strength=0.0, ema_decay=0.9)
    initial = EnhancedNet()
    first = training.run(initial, order)
    again = training.run(initial, order)
    assert evaluate(first, validation).accuracy > 0.9
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)

    warped = gpu.CapturedTraining(train, **recipe, augment_strength=1.0).run(initial, order)
    assert evaluate(warped, train).accuracy > 0.5


def test_bench_record_is_of_its_contestants(speed_scripts):
    """A changed setting without a new measurement turns this red."""
    import bench

    units, record = next(iter(read_record("bench.json").items()))
    read_record("tuning.json")
    tables = {
        "time_to_goal": bench.rows_to_goal(bench.CONTESTANTS, units),
        "equal_settings": bench.rows_at_equal_settings(bench.EQUAL, units),
    }
    for name, rows in tables.items():
        recorded = {label: row["settings"] for label, row in record[name].items()}
        assert recorded == {label: row.settings for label, row in rows.items()}


def test_readmes_tables_are_those_of_the_records(speed_scripts):
    import bench

    front = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    records = read_record("bench.json")
    newest = next(iter(records.values()))
    for line in bench.table(newest).splitlines():  # also that the machine was under load
        assert line in readme

    for units, record in records.items():
        rows = {k: v for k, v in record["time_to_goal"].items() if "error" not in v}
        ours = rows[bench.FAST]["seconds"]
        tutorial = rows["the usual tutorial"]["seconds"]
        fastest = min(row["seconds"] for row in rows.values() if row["contestant"] != "mnist_mlp")
        processor = record["machine"]["instructions"] if units == "none" else units
        line = (
            f"| {processor} | {ours:.1f} | {fastest:.1f} ({fastest / ours:.1f} times) "
            f"| at least {tutorial:.1f} ({tutorial / ours:.0f} times) |"
        )
        assert line in front
        assert line in readme

    for recipe in read_record("gpu.json")["recipes"].values():
        accuracy = f"{recipe['test_accuracy_mean']:.2%} ± {100 * recipe['test_accuracy_stdev']:.2f}"
        assert f"{accuracy} in {recipe['seconds']:.2f}" in readme


def test_readmes_profile_is_that_of_the_record():
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    text = " ".join(readme.split())
    record = read_record("epoch_profile.json")
    for precision in ("float32", "bfloat16"):
        seconds = record[precision]["plain_seconds"]
        ratio = seconds / record[precision]["floor_seconds"]
        assert f"{seconds:.2f} s in {precision}, {ratio:.2f} times the floor" in text

    parts = record["bfloat16"]["parts"]
    first, second = sorted(parts.keys() - {"warp", "rest"}, key=parts.get)[:-3:-1]
    words = {
        "backward": "the backward pass",
        "forward_and_loss": "the forward pass with the loss",
    }
    assert (
        f"{words[first]} ({parts[first]:.2f} s) and {words[second]} ({parts[second]:.2f} s)" in text
    )
    assert f"the warps take {parts['warp']:.2f} s more" in text


def test_readmes_fast_recipe_is_the_one_that_was_timed(speed_scripts):
    import bench

    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "muon" in c)
    (call,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Recipe"
    )
    recipe = Recipe(**{word.arg: ast.literal_eval(word.value) for word in call.keywords})

    newest = next(iter(read_record("bench.json").values()))
    assert recipe == Recipe(augment_strength=0.0, **newest["time_to_goal"][bench.FAST]["settings"])
