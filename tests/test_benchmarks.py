import ast
import json
import math
import re
import sys
import tomllib
from statistics import mean, stdev

import pytest
import torch
from helpers import ROOT, published
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnist_mlp import EnhancedNet, Recipe, evaluate
from mnist_mlp.optim.hardware import bfloat16_units

SPEED = ROOT / "benchmarks" / "speed"
FAKE_BASELINES = """
import json, os, sys
name, settings = sys.argv[1], json.loads(sys.argv[2])
if name == "missing":
    import a_package_that_nobody_has
if name == "crashing":
    os.abort()
assert os.path.exists(os.environ["SPLIT"])
seconds = {"mnist_mlp": 1.0, "slow": 10.0}[name] * (1 + (settings["seed"] == 100))
print("a library's chatter")
print(json.dumps({"epoch": [seconds + 3, seconds, seconds], "validation_accuracy": [0.99],
                  "import": 1.5, "load": 0.5, "test_accuracy": 0.98 if name == "slow" else 0.985}))
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.setenv("MNIST_ROOT", str(ROOT))
    for name in ("bench", "gpu", "baselines", "epoch_profile", "search"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def bench(benchmarks, monkeypatch, tmp_path):
    """The benchmark with peers of its own, in a folder of its own."""
    import bench

    (tmp_path / "baselines.py").write_text(FAKE_BASELINES)
    (tmp_path / "split.npz").write_text("")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "RECORD", tmp_path / "bench.json")
    monkeypatch.setattr(bench, "TUNING", tmp_path / "tuning.json")
    files = dict.fromkeys(bench.SEEDS, tmp_path / "split.npz")
    monkeypatch.setattr(bench, "splits", lambda seeds, folder: files)
    names = ("mnist_mlp", "missing", "crashing", "slow")
    monkeypatch.setattr(bench, "PEERS", {f"{n}, to goal": (n, []) for n in names})
    monkeypatch.setattr(bench, "EQUAL", {n: (n, {}) for n in names})
    chosen = {"chosen": bench.settings(3, 64, 0.1)}
    tuned = {f"{n}, to goal": chosen | {"cleared": n != "slow"} for n in names}
    (tmp_path / "tuning.json").write_text(json.dumps({"peers": tuned}))
    return bench


def test_a_missing_or_crashing_peer_is_reported_and_stops_no_other(bench, capsys, tmp_path):
    bench.bench(str(tmp_path), [])
    record = json.loads(bench.RECORD.read_bytes())[bfloat16_units()]
    goal, same = record["time_to_goal"], record["equal_settings"]
    assert "No module named 'a_package_that_nobody_has'" in goal["missing, to goal"]["error"]
    assert goal["crashing, to goal"]["error"]
    assert "No module named" in same["missing"]["error"]
    ours, slow = goal["mnist_mlp, to goal"], goal["slow, to goal"]
    assert (ours["seconds"], slow["seconds"]) == (6.5, 33.5)  # 0.5 + 4 + 1 + 1: the median of five
    assert ours["spread"] == pytest.approx(3 / 6.5)
    assert (same["slow"]["epoch_seconds"], ours["first_epoch_extra_seconds"]) == (10, 3)
    printed = capsys.readouterr().out
    assert "a_package_that_nobody_has" in printed
    row = "| slow, to goal | at least 33.5 | at least 5.2 | 3.0 | 3 | 98.00% ± 0.00 (missed) |"
    assert row in printed


@pytest.mark.parametrize(("load", "loaded"), [(0.01, False), (64.0, True)])
def test_a_machine_under_load_says_so(bench, monkeypatch, capsys, tmp_path, load, loaded):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    bench.bench(str(tmp_path), [])
    record = json.loads(bench.RECORD.read_bytes())[bfloat16_units()]
    assert record["load_average_before"] == load
    assert record["on_a_machine_under_load"] is loaded
    assert ("under load" in capsys.readouterr().out) is loaded


def test_the_records_of_other_kinds_of_processors_stay(bench, monkeypatch, tmp_path):
    for units in ("AMX", "none", "AMX"):
        monkeypatch.setattr(bench, "bfloat16_units", lambda units=units: units)
        bench.bench(str(tmp_path), [])
    records = json.loads(bench.RECORD.read_bytes())
    assert list(records) == ["AMX", "none"]
    assert {name: r["machine"]["bfloat16_units"] for name, r in records.items()} == {
        "AMX": "AMX",
        "none": "none",
    }


@pytest.mark.parametrize(("units", "has"), [("none", False), ("AMX", True)])
def test_peers_compute_in_bfloat16_only_where_the_processor_has_units(
    bench, monkeypatch, tmp_path, units, has
):
    """Emulated, one training of a peer takes longer than all others together."""
    seen = {}

    def train(peer, what, split):
        seen[peer] = what
        return {"error": "not needed here"}

    monkeypatch.setattr(bench, "bfloat16_units", lambda: units)
    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "PEERS", {"JAX, bfloat16": ("jax", [])})
    monkeypatch.setattr(bench, "EQUAL", {"torch, bfloat16": ("torch", {"bfloat16": True})})
    chosen = {"chosen": bench.settings(3, 64, 0.1, bfloat16=True), "cleared": True}
    bench.TUNING.write_text(json.dumps({"peers": {"JAX, bfloat16": chosen}}))
    bench.bench(str(tmp_path), [])
    assert seen["jax"]["bfloat16"] is has
    assert ("torch" in seen) is has
    found = json.loads(bench.RECORD.read_bytes())[units]
    assert list(found["time_to_goal"]) == ["JAX, bfloat16" if has else "JAX"]


def test_a_run_of_some_peers_alone_leaves_the_record_as_it_is(bench, capsys, tmp_path):
    bench.bench(str(tmp_path), ["slow"])
    assert "| slow | 5,500 |" in capsys.readouterr().out
    assert not bench.RECORD.exists()


def test_a_peer_that_was_not_tuned_is_not_timed(bench, capsys, tmp_path):
    bench.TUNING.write_text(json.dumps({"peers": {}}))
    bench.bench(str(tmp_path), [])
    assert "| slow, to goal | was not tuned |" in capsys.readouterr().out


def test_peers_without_torch_get_torchs_one_cycle_rate(benchmarks):
    import baselines

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40)
    rate = baselines.one_cycle(0.5, 40)
    for step in range(40):
        assert rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        schedule.step()


def test_the_floors_operations_are_those_that_torch_counts(benchmarks):
    import epoch_profile

    model = EnhancedNet()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.rand(7, 784)), torch.zeros(7, dtype=torch.int64)).backward()
        model(torch.rand(3, 784))
    assert epoch_profile.epoch_operations(model, 7, 3) == counter.get_total_flops()


def test_the_step_that_a_gpu_captures_trains_anew_each_time(benchmarks, toy):
    """On the CPU, uncaptured."""
    import gpu

    train, validation = toy
    torch.manual_seed(0)
    recipe = {"epochs": 20, "batch_size": 26, "learning_rate": 0.003}
    order = gpu.order_of(train, recipe["epochs"], recipe["batch_size"])
    assert order.view(20, 130).sort(1).values.tolist() == [list(range(130))] * 20
    train_anew = gpu.prepare(train, **recipe, augment_strength=0.0, ema_decay=0.9)
    initial = EnhancedNet()
    first, again = train_anew(initial, order), train_anew(initial, order)
    assert evaluate(first, validation).accuracy > 0.9
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    warped = gpu.prepare(train, **recipe, augment_strength=1.0)(initial, order)
    assert evaluate(warped, train).accuracy > 0.5


def record(name: str) -> dict:
    path = f"benchmarks/speed/{name}"
    published(path)
    return json.loads((ROOT / path).read_bytes())


@pytest.mark.parametrize("content", [None, b"short"])
def test_without_mnist_the_benchmark_says_what_to_do(benchmarks, monkeypatch, tmp_path, content):
    import bench

    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    if content:
        (tmp_path / "MNIST" / "raw").mkdir(parents=True)
        (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(SystemExit, match="MNIST_ROOT"):
        bench.splits(range(1), str(tmp_path))


def test_the_tables_are_as_recorded(benchmarks):
    import bench

    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    newest = next(iter(record("bench.json").values()))
    for line in bench.table(newest).splitlines():  # also that the machine was under load
        assert line in readme


def test_the_search_is_of_the_fast_recipe_and_as_the_readme_says(benchmarks):
    import search

    found = record("search.json")
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for line in search.table(found).splitlines():
        assert line in readme
    variants = found["variants"]
    assert {name: variant["changes"] for name, variant in variants.items()} == search.VARIANTS
    assert found["recipe"] == record("tuning.json")["peers"]["mnist_mlp, fast"]["chosen"]
    accuracy = {name: variant["validation_accuracy"] for name, variant in variants.items()}
    loss = {name: 100 * (accuracy["the fast recipe"] - found) for name, found in accuracy.items()}
    named = ("two Newton-Schulz iterations", "no label smoothing", "one epoch of batch 512")
    assert all(0.3 <= round(loss.pop(name), 1) <= 0.5 for name in named)
    assert max(loss.values()) < 0.25
    assert len(variants) == 1 + 15


def test_the_readme_quotes_the_profile():
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    profile = record("epoch_profile.json")
    for part in profile["plain_parts"]:
        row = f"| {profile['plain_parts'][part]:.3f} | {profile['augmented_parts'][part]:.3f} |"
        assert row in readme, part
    for name, digits in (("seconds", 3), ("over_floor", 2)):
        plain, augmented = (
            profile[profile["precision"]][f"{kind}_{name}"] for kind in ("plain", "augmented")
        )
        assert f"| {plain:.{digits}f} | {augmented:.{digits}f} |" in readme


def test_each_idea_for_a_faster_step_trains_the_same_and_is_as_the_readme_says(benchmarks):
    import step_ideas

    found = record("step_ideas.json")
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for line in step_ideas.table(found).splitlines():
        assert line in readme
    assert list(found["ideas"]) == list(step_ideas.IDEAS)
    losses = [idea["loss"] for idea in found["ideas"].values()]
    assert losses == pytest.approx(losses[:1] * len(losses), rel=1e-6)


def test_the_records_are_of_what_bench_would_run(benchmarks):
    """A changed setting without a new measurement turns this red."""
    import bench

    units, newest = next(iter(record("bench.json").items()))
    goal, same = newest["time_to_goal"], newest["equal_settings"]
    tuned = record("tuning.json")["peers"]
    assert list(goal) == [bench.named(label, units) for label in bench.PEERS]
    assert {k: v["settings"] for k, v in same.items()} == {
        label: bench.SAME | more
        for label, (_, more) in bench.EQUAL.items()
        if units != "none" or "bfloat16" not in label
    }
    for label, (_, tried, *_) in bench.PEERS.items():
        if isinstance(tried, list):
            assert tuned[label]["chosen"] in tried
            settings = goal[bench.named(label, units)]["settings"]
            changed = {"bfloat16": False} if units == "none" and "bfloat16" in settings else {}
            assert settings == tuned[label]["chosen"] | changed
            assert tuned[label] == tuned[label] | bench.chosen(tuned[label]["tried"])
    for entry in (*goal.values(), *same.values()):
        if "error" not in entry:
            *before, last = (sum(run["epoch"]) > bench.SLOW for run in entry["runs"])
            assert not any(before)
            assert last or len(entry["runs"]) == len(bench.SEEDS)
            assert math.isfinite(entry["epoch_seconds"])


def test_the_readmes_quote_the_ratios_and_the_recipe_of_the_record():
    front, readme = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "benchmarks/README.md")
    )
    for units, found in record("bench.json").items():
        goal = {k: v for k, v in found["time_to_goal"].items() if "error" not in v}
        ours, tutorial = (
            goal[name]["seconds"] for name in ("mnist_mlp, fast", "the usual tutorial")
        )
        fastest = min(entry["seconds"] for entry in goal.values() if entry["peer"] != "mnist_mlp")
        kind = found["machine"]["instructions"] if units == "none" else units
        row = f"| {kind} | {ours:.1f} | {fastest:.1f} ({fastest / ours:.1f} times) "
        row += f"| at least {tutorial:.1f} ({tutorial / ours:.0f} times) |"
        assert row in front
        assert row in readme
    ours = next(iter(record("bench.json").values()))["time_to_goal"]["mnist_mlp, fast"]
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "muon" in c)
    (call,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Recipe"
    )
    found = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    Recipe(**found)
    assert found == ours["settings"] | {"augment_strength": 0.0}


def test_the_readme_quotes_the_record_of_the_gpu(benchmarks):
    import gpu

    found = record("gpu.json")["recipes"]
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert list(found) == list(gpu.RECIPES)
    for goal, recipe in gpu.RECIPES.items():
        run = found[goal]
        assert run == run | recipe
        spread = f"± {100 * stdev(run['test_accuracy']):.2f} in {mean(run['seconds']):.2f}"
        assert f"{mean(run['test_accuracy']):.2%} {spread}" in readme


def test_nine_in_ten_mutants_are_killed_and_each_that_is_not_is_explained():
    published("tests/mutants.json")
    found = json.loads((ROOT / "tests" / "mutants.json").read_bytes())
    total = killed = 0
    for name, counts in found["files"].items():
        lived = [s for s in found["survivors"] if s["file"] == name]
        fell = counts["killed"] + counts["hung"]
        assert counts["mutants"] == fell + len(lived)
        assert fell >= 0.9 * counts["mutants"], name
        total, killed = total + counts["mutants"], killed + fell
        code = (ROOT / "src" / "mnist_mlp" / name).read_text(encoding="utf-8")
        for survivor in lived:
            assert survivor["why"], survivor["change"]
            for line in survivor["change"].splitlines():
                assert line[0] == "+" or line[2:] in code, f"{name} has changed: make mutants"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    paths = settings["tool"]["mutmut"]["only_mutate"]
    assert set(found["files"]) == {path.removeprefix("src/mnist_mlp/") for path in paths}
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"Of {total:,} mutants {killed:,} were killed ({killed / total:.1%})" in readme
