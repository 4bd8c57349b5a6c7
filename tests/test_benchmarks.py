"""The speed benchmarks measure what they say, survive a crash, and README quotes their records."""

import copy
import hashlib
import itertools
import json
import re
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same_picture, idx, skip_unless_published
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mnist_mlp import (
    EnhancedNet,
    ImageDataset,
    Recipe,
    datasets,
    evaluate,
    load_weights,
    plots,
)
from mnist_mlp.data import normalise

SPEED = ROOT / "benchmarks" / "speed"
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
SETTINGS = {"epochs": 2, "batch_size": 26, "learning_rate": 0.003}


@pytest.fixture(autouse=True)
def speed_scripts(monkeypatch):
    """Let a test import the scripts of the benchmark."""
    monkeypatch.syspath_prepend(SPEED)


@pytest.fixture
def blob_mnist(toy, tmp_path, monkeypatch):
    """Files of MNIST with a few images that a network learns quickly."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digests = {}
    for prefix, dataset in zip(("train", "t10k"), toy, strict=True):
        contents = {
            f"{prefix}-images-idx3-ubyte": idx(dataset.images.numpy()),
            f"{prefix}-labels-idx1-ubyte": idx(dataset.labels.numpy().astype(np.uint8)),
        }
        for name, content in contents.items():
            (raw / name).write_bytes(content)
            digests[name] = (len(content), hashlib.sha256(content).hexdigest())

    monkeypatch.setattr(datasets, "MNIST_FILES", digests)
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def bench(blob_mnist, monkeypatch):
    """The benchmark with two contestants, of which one crashes, and two rounds."""
    import bench

    contestants = {
        bench.FAST: {"contestant": "numpy", "candidates": [], "settings": {}},
        "crashing": {"contestant": "numpy", "candidates": [], "settings": {"colour": "red"}},
    }
    tuned = {label: {"chosen": SETTINGS, "cleared": True} for label in contestants}
    (blob_mnist / "tuning.json").write_text(json.dumps({"contestants": tuned}))
    monkeypatch.setattr(bench, "TUNING", blob_mnist / "tuning.json")
    monkeypatch.setattr(bench, "RECORD", blob_mnist / "bench.json")
    monkeypatch.setattr(bench, "GOAL_ROWS", contestants)
    monkeypatch.setattr(bench, "EQUAL_ROWS", contestants)
    monkeypatch.setattr(bench, "EQUAL_SETTINGS", SETTINGS)
    monkeypatch.setattr(bench, "SEEDS", range(2))
    return bench


def read_record(name: str) -> dict:
    """Return a published record of the benchmark."""
    skip_unless_published(f"benchmarks/speed/{name}")
    return json.loads((SPEED / name).read_bytes())


# The contestants


@pytest.mark.parametrize("name", ["mnist_mlp", "tutorial", "scikit-learn", "numpy"])
def test_baselines_contestant_learns(blob_mnist, monkeypatch, name):
    import baselines
    import bench

    split = bench.write_splits(range(1), str(blob_mnist))[0]
    monkeypatch.setenv("SPLIT", str(split))
    settings = {"seed": 0, "epochs": 15, "batch_size": 17, "learning_rate": 0.003}
    result = baselines.main(name, settings)

    assert result["test_accuracy"] > 0.8
    assert len(result["epoch"]) == 15
    assert min(result["epoch"]) > 0


def test_baselines_learning_rate_is_that_of_torch():
    import baselines

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40)
    rate = baselines.learning_rates("one-cycle", 0.5, 40)
    for step in range(40):
        assert rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        schedule.step()


# The race


def test_bench_race_survives_a_crash_and_records_a_whole_race(bench, capsys):
    bench.measure("equal", ["crashing"])
    printed = capsys.readouterr().out
    assert "| crashing |" in printed
    assert bench.FAST not in printed
    assert not bench.RECORD.exists()

    bench.measure("both", [])
    record = next(iter(json.loads(bench.RECORD.read_bytes()).values()))
    for table in (record["time_to_goal"], record["equal_settings"]):
        assert "unexpected keyword argument 'colour'" in table["crashing"]["error"]
        assert table[bench.FAST]["rounds"] == 2
        assert table[bench.FAST]["settings"] == SETTINGS
    assert f"| {bench.FAST} |" in capsys.readouterr().out


def test_bench_contestant_runs_at_full_speed(bench, monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OPENBLAS_CORETYPE" not in bench.contestant_environment(bench.TUNING, threads=None)
    assert bench.contestant_environment(bench.TUNING, threads=3)["OMP_NUM_THREADS"] == "3"


def test_bench_does_without_avx512_in_all_libraries(bench, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    environment = bench.contestant_environment(bench.TUNING, threads=None)
    assert environment["OPENBLAS_CORETYPE"] == "Haswell"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_bench_measures_from_the_start_of_the_process(bench, blob_mnist):
    """The time from the shell has the imports, which the time of the training leaves out."""
    split = bench.write_splits(range(1), str(blob_mnist))[0]
    began = time.perf_counter()
    run = bench.train("numpy", {**SETTINGS, "seed": 0}, split)
    waited = time.perf_counter() - began
    assert run["import"] + run["load"] + sum(run["epoch"]) < run["shell"] < waited


def test_bench_table_shows_medians_of_the_rounds(bench):
    runs = []
    for slowdown, accuracy in ((1, 0.98), (4, 0.97), (2, 0.99)):
        epochs = [slowdown * 13.0, slowdown * 10.0, slowdown * 10.0]
        runs.append(
            {
                "shell": 4.5 + sum(epochs),
                "load": 0.5,
                "epoch": epochs,
                "test_accuracy": accuracy,
            }
        )
    fast_run = {"shell": 10.0, "load": 0.1, "epoch": [4.9, 4.0], "test_accuracy": 0.985}
    slow = bench.Row("numpy", {"epochs": 3}, cleared=False, runs=runs).summary()
    fast = bench.Row("speedrun", {"epochs": 2}, cleared=True, runs=[fast_run]).summary()

    assert slow["shell_seconds"] == 4.5 + 26 + 20 + 20
    assert slow["seconds"] == 0.5 + 26 + 20 + 20  # the median slowdown is 2
    assert slow["epoch_seconds"] == 20
    spread = (4 - 1) * 33 / 66.5  # slowest minus fastest, over the median
    assert slow["spread"] == pytest.approx(spread)

    rows = {bench.FAST: fast, "slow": slow}
    load = {"on_a_machine_under_load": True, "load_average_before": 1.5}
    printed = bench.tables_as_markdown(
        {"time_to_goal": rows, "equal_settings": rows, "goal": 0.9821, **load}
    )
    assert f"| {bench.FAST} | 10.00 | 1.0 | 9.00 | 1.0 | 2 | 98.50% |" in printed
    at_least = "at least 70.50 | at least 7.0 | at least 66.50 | at least 7.4"
    assert f"| slow | {at_least} | 3 | 98.00% ± 1.00 (missed) |" in printed
    assert f"| {bench.FAST} | 13,750 |\n| slow | 2,750 |" in printed
    assert "load average 1.5" in printed


@pytest.mark.parametrize(("goal", "epochs", "cleared"), [(0.0, 1, True), (2.0, 2, False)])
def test_bench_tune_takes_the_first_settings_that_clear(bench, monkeypatch, goal, epochs, cleared):
    bench.GOAL_ROWS[bench.FAST]["candidates"] = [SETTINGS | {"epochs": 1}, SETTINGS]
    monkeypatch.setattr(bench, "GOAL", goal)
    monkeypatch.setattr(bench, "TUNING_SEEDS", range(1))
    bench.tune([bench.FAST])

    results = json.loads(bench.TUNING.read_bytes())["contestants"]
    assert results[bench.FAST]["chosen"]["epochs"] == epochs
    assert results[bench.FAST]["cleared"] is cleared
    assert results["crashing"]["chosen"] == SETTINGS  # untouched


def test_bench_one_long_training_judges_all_candidates(bench, blob_mnist, monkeypatch):
    row = {
        "contestant": "numpy",
        "candidates": [SETTINGS | {"epochs": epochs} for epochs in (1, 8)],
        "settings": {"schedule": "constant"},
    }
    files = bench.write_splits(range(1), str(blob_mnist))
    separate_trainings = list(bench.judge_candidates(row, files))
    monkeypatch.setattr(bench, "CONSTANT_RATE", ("numpy",))
    one_training = list(bench.judge_candidates(row, files))

    assert one_training == separate_trainings
    assert one_training[0][1] != one_training[1][1]


@pytest.mark.parametrize(("units", "has_units"), [("none", False), ("AMX", True)])
def test_bench_uses_bfloat16_only_with_units_for_it(units, has_units):
    import bench

    to_goal = bench.rows_to_goal(bench.GOAL_ROWS, units)
    equal = bench.rows_at_equal_settings(bench.EQUAL_ROWS, units)
    for rows in (to_goal, equal):
        assert any(row.settings.get("bfloat16") for row in rows.values()) is has_units


# The speedrun


def test_speedrun_gradients_are_those_of_torch():
    import speedrun

    captured = []

    class Capture:
        def __init__(self, weights, settings):
            self.weights = weights

        def step(self, gradient, fraction):
            captured.append((self.weights, gradient.copy()))

    random = np.random.default_rng(0)
    sizes = (7, *speedrun.SIZES[1:])
    weights = [speedrun.initial_weights(a, b, random) for a, b in itertools.pairwise(sizes)]
    components = random.standard_normal((20, 7), np.float32)
    targets = random.integers(0, 10, 20).astype(np.uint8)
    order = random.permutation(20)
    settings = {**speedrun.SETTINGS, "batch_size": 20}
    optimizers = [Capture(matrix, settings) for matrix in weights]
    speedrun.descend(weights, optimizers, components, targets, order, settings)

    parameters = [torch.tensor(matrix, requires_grad=True) for matrix in weights]
    x = torch.tensor(components)
    for parameter in parameters[:-1]:
        x = (x @ parameter).relu()
    labels = torch.tensor(targets, dtype=torch.int64)
    smoothing = settings["smoothing"]
    logits = x @ parameters[-1]
    F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum").backward()
    for parameter, (_, gradient) in zip(parameters, captured, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_speedrun_muon_changes_only_the_singular_values(shape):
    import speedrun

    matrix = np.random.default_rng(0).standard_normal(shape, np.float32)
    muon = speedrun.Muon(np.zeros_like(matrix), speedrun.SETTINGS)
    result = muon.orthogonalise(matrix, factor=0.5)

    u, values, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(speedrun.SETTINGS["iterations"]):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    np.testing.assert_allclose(result, 0.5 * (u * values) @ v, rtol=0, atol=1e-5)


def test_speedrun_learns_and_saves_what_torch_loads(mnist, tmp_path):
    """Its own evaluation agrees with torch's, of the file that it saves."""
    import speedrun

    images, labels = speedrun.read_mnist("train", 60_000)
    state = speedrun.train(images, labels, seed=3)
    left_out = speedrun.left_out_block(3)
    predicted = speedrun.predict(state, images[left_out])
    assert (predicted == labels[left_out]).mean() > 0.975

    speedrun.save_pth(state, tmp_path / "speedrun.pth")
    loaded = torch.load(tmp_path / "speedrun.pth", weights_only=True)
    for name, weights in EnhancedNet().state_dict().items():
        assert loaded[name].shape == weights.shape
        assert loaded[name].dtype == weights.dtype
    model = load_weights(EnhancedNet(), tmp_path / "speedrun.pth")

    int64_labels = torch.tensor(labels[left_out], dtype=torch.int64)
    dataset = ImageDataset(torch.tensor(images[left_out]), int64_labels)
    evaluation = evaluate(model, dataset)
    assert (evaluation.predicted.numpy() == predicted).mean() > 0.999


def test_speedrun_network_for_pixels_is_the_one_that_was_trained_on_components(mnist):
    import speedrun

    trained = []

    class Keep:
        """It keeps the weights and never steps."""

        def __init__(self, weights, settings):
            trained.append(weights)

        def step(self, gradient, fraction):
            pass

    images, labels = speedrun.read_mnist("train", 60_000)
    settings = {**speedrun.SETTINGS, "blocks": 1}
    state = speedrun.train(images, labels, 3, settings, Keep)
    model = EnhancedNet()
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})

    # A training begins with the components of the first block.
    block = images[: speedrun.BLOCK]
    pixels = np.empty((len(block), speedrun.WINDOW**2), np.float32)
    speedrun.cut_window(block, (0, 0), pixels)
    n_components = settings["components"]
    random = np.random.default_rng(3)
    mean, basis = speedrun.principal_components(pixels, n_components, random)
    x = torch.tensor((pixels - mean) @ basis)
    for matrix in trained[:-1]:
        x = (x @ torch.tensor(matrix)).relu()
    logits = x @ torch.tensor(trained[-1])

    with torch.no_grad():
        found = model(normalise(torch.tensor(block)))
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-3)


def test_speedrun_needs_numpy_alone():
    code = "import sys, speedrun; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=SPEED, capture_output=True, text=True, check=True)
    modules = set(process.stdout.split())
    assert "numpy" in modules
    assert not modules & {"torch", "mnist_mlp", "scipy", "sklearn", "matplotlib"}


@pytest.mark.parametrize("damaged", [True, False])
def test_speedrun_says_that_mnist_is_missing_or_damaged(damaged, tmp_path, monkeypatch):
    import speedrun

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    if damaged:
        (raw / "train-images-idx3-ubyte").write_bytes(bytes(1000))
        (raw / "train-labels-idx1-ubyte").write_bytes(bytes(60_008))
    with pytest.raises(SystemExit, match="make notebook"):
        speedrun.read_mnist("train", 60_000)


# The other scripts


def test_profile_counts_the_operations_that_torch_counts():
    import epoch_profile

    model = EnhancedNet()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.rand(7, 784)), torch.zeros(7, dtype=torch.int64)).backward()
        model(torch.rand(3, 784))
    assert epoch_profile.epoch_operations(model, 7, 3) == counter.get_total_flops()


def test_gpu_step_is_that_of_a_plain_loop(toy):
    """Without a GPU, the same step runs uncaptured."""
    import baselines
    import gpu

    train, _ = toy
    recipe = {"epochs": 4, "batch_size": 25, "learning_rate": 0.003, "ema_decay": 0.6}
    order = gpu.random_order(train, epochs=4, batch_size=25)
    assert [len(epoch.unique()) for epoch in order.view(4, 125)] == [125] * 4

    initial = EnhancedNet()
    training = gpu.CapturedTraining(train, **recipe, augment_strength=0.0)
    trained = training.run(initial, order).state_dict()
    again = training.run(initial, order).state_dict()
    warped = gpu.CapturedTraining(train, **recipe, augment_strength=1.0).run(initial, order)

    model = copy.deepcopy(initial)
    average = copy.deepcopy(initial).state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rate = baselines.learning_rates("one-cycle", 0.003, steps=20)
    for step, indices in enumerate(order.split(25)):
        images, labels, _ = train.get_batch(indices)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        decay = min(0.6, (1 + step) / (10 + step))
        for name, weights in model.state_dict().items():
            average[name].lerp_(weights, 1 - decay)

    for name, weights in average.items():
        torch.testing.assert_close(trained[name], weights, rtol=0, atol=1e-5)
        assert torch.equal(trained[name], again[name])
        assert not torch.equal(trained[name], warped.state_dict()[name])


def test_scaling_copies_are_warped_images_with_their_labels(toy):
    import scaling

    train, _ = toy
    copies = scaling.copies(train, 390)
    assert torch.equal(copies.images[:130], train.images)
    assert torch.equal(copies.labels, train.labels.repeat(3))
    assert len(copies.images.unique(dim=0)) == 390
    assert len(scaling.copies(train, 50)) == 50
    assert len(scaling.copies(train, 270)) == 270


def test_scaling_fits_exponent_and_widens_hidden_layers():
    import scaling

    assert scaling.exponent({2: 3 * 2**1.5, 8: 3 * 8**1.5, 32: 3 * 32**1.5}) == pytest.approx(1.5)
    weights = [p.shape for p in scaling.wide(3).parameters() if p.ndim == 2]
    assert weights == [(1536, 784), (768, 1536), (384, 768), (192, 384), (10, 192)]


# The records, and what README quotes of them


@pytest.mark.parametrize(
    ("name", "record"), [("time_to_accuracy", "bench.json"), ("scaling", "scaling.json")]
)
def test_published_figure_shows_the_record(name, record, tmp_path, monkeypatch):
    import figures

    skip_unless_published(f"figures/{name}.png")
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    with plt.rc_context():
        plots.use_style()
        getattr(figures, name)(read_record(record))
    assert_same_picture(tmp_path / f"{name}.png", ROOT / "figures" / f"{name}.png")


def test_bench_record_has_the_settings_of_its_contestants():
    """A changed setting without a new measurement turns this red."""
    import bench

    units, record = next(iter(read_record("bench.json").items()))
    read_record("tuning.json")
    tables = {
        "time_to_goal": bench.rows_to_goal(bench.GOAL_ROWS, units),
        "equal_settings": bench.rows_at_equal_settings(bench.EQUAL_ROWS, units),
    }
    for name, rows in tables.items():
        recorded = {label: row["settings"] for label, row in record[name].items()}
        assert recorded == {label: row.settings for label, row in rows.items()}


def test_readme_shows_the_tables_of_the_records():
    import bench

    records = read_record("bench.json")
    newest = next(iter(records.values()))
    for line in bench.tables_as_markdown(newest).splitlines():
        assert line in README

    for units, record in records.items():
        rows = {k: v for k, v in record["time_to_goal"].items() if "error" not in v}
        ours = rows[bench.FAST]
        tutorial = rows["the usual tutorial"]
        others = [row for row in rows.values() if row["contestant"] not in bench.OURS]
        cells = [units]
        for key in ("shell_seconds", "seconds"):
            fastest = min(row[key] for row in others)
            cells.append(f"{ours[key]:.2f}")
            cells.append(f"{fastest:.2f} ({fastest / ours[key]:.1f} times)")
            cells.append(f"at least {tutorial[key]:.0f} ({tutorial[key] / ours[key]:.0f} times)")
        assert f"| {' | '.join(cells)} |" in README


def test_first_page_quotes_the_race():
    import bench

    rows = next(iter(read_record("bench.json").values()))["time_to_goal"]
    ours = rows[bench.FAST]
    others = [row for row in rows.values() if row["contestant"] not in bench.OURS]
    fastest = min(row["shell_seconds"] for row in others if "error" not in row)
    tutorial = rows["the usual tutorial"]["shell_seconds"]

    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"classifies {ours['test_accuracy_mean']:.2%} of the test images" in page
    assert f"after {ours['shell_seconds']:.2f} seconds" in page
    assert f"{fastest / ours['shell_seconds']:.1f} times as fast as the fastest other" in page
    assert f"at least {tutorial / ours['shell_seconds']:.0f} times as fast" in page


def test_readme_shows_the_record_of_the_speedrun():
    import speedrun
    import speedrun_ideas

    record = read_record("speedrun.json")
    assert record["settings"] == speedrun.SETTINGS
    variants = {name: row["changes"] for name, row in record["variants"].items()}
    assert variants == {name: row[0] for name, row in speedrun_ideas.VARIANTS.items()}

    for line in speedrun_ideas.table_as_markdown(record).splitlines():
        assert line in README
    accuracy = f"{record['test_accuracy_mean']:.2%} ± {100 * record['test_accuracy_stdev']:.2f}"
    assert accuracy in README


def test_readme_shows_the_gpu_and_profile_records():
    for recipe in read_record("gpu.json")["recipes"].values():
        accuracy = f"{recipe['test_accuracy_mean']:.2%} ± {100 * recipe['test_accuracy_stdev']:.2f}"
        assert f"{accuracy} in {recipe['seconds']:.2f}" in README

    record = read_record("epoch_profile.json")
    for precision in ("float32", "bfloat16"):
        plain = record[precision]["plain_seconds"]
        cells = [plain, plain / record[precision]["floor_seconds"]]
        cells += [record[precision]["parts"][x] for x in ("forward_and_loss", "backward", "warp")]
        row = " | ".join(f"{cell:.2f}" for cell in cells)
        assert f"| {precision} | {row} |" in README


def test_readme_shows_the_fast_recipe_that_was_timed():
    arguments = re.search(r"Recipe\(\n(.*?)\n\)", README, re.S)[1]
    recipe = eval(f"Recipe({arguments})")
    newest = next(iter(read_record("bench.json").values()))
    settings = newest["time_to_goal"]["mnist_mlp, Muon"]["settings"]
    assert recipe == Recipe(augment_strength=0.0, **settings)
