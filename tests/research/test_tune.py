"""The search for a better default recipe: no trial lost, none twice, and a rule set beforehand."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from statistics import mean

import pytest
import torch
from helpers import ROOT, fit_with, posix, published

from mnist_mlp import EnhancedNet, load
from mnist_mlp.research.sweep import cluster
from mnist_mlp.research.tuning import tuning_plot

optuna = pytest.importorskip("optuna")
ACCURACY = ROOT / "benchmarks" / "accuracy"
IDENTITY = {"version": {"record": 0}, "dataset": "digits", "seconds": 0.3}
FINISHED = "complete", "pruned", "failed"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(ACCURACY)
    import study

    threads = torch.get_num_threads()
    yield study
    torch.set_num_threads(threads)


@pytest.fixture
def tune(study):
    import tune

    return tune


@pytest.fixture
def quick(study, monkeypatch):
    """Four epochs a trial, on digits whose test set nobody can read."""
    digits = replace(load("digits"), test=None)
    monkeypatch.setattr(study, "load", lambda *args, **options: digits)
    monkeypatch.setattr(study, "epoch_seconds", lambda splits, recipe: 0.07)
    return digits


def started(journal, trials: int, processes: int) -> subprocess.Popen:
    code = f"import sys; from pathlib import Path; sys.path.insert(0, {str(ACCURACY)!r})\n"
    code += f"from study import run_study\nrun_study(Path({str(journal)!r}), {IDENTITY}, "
    code += f"{trials}, {processes})"
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def trials_in(journal) -> list:
    """Read the journal as it is, without the locks and the repairs of `open_study`."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    return optuna.load_study(study_name="tune", storage=storage).trials


def wait_for(journal, reached, process) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if reached(trials_in(str(journal))):
                return
        except (KeyError, ValueError):  # not created yet, or in the middle of a line
            pass
        time.sleep(0.05)


@posix
@pytest.mark.campaign
def test_a_study_killed_three_times_loses_no_trial_and_finishes_none_twice(study, tmp_path):
    journal, before = tmp_path / "tune.journal", {}

    def finished() -> dict:
        trials = [t for t in trials_in(str(journal)) if study.state_of(t) in FINISHED]
        return {t.number: (study.state_of(t), t.params, t.value) for t in trials}

    for goal in (1, 3, 5):

        def reached(trials, goal=goal) -> bool:
            states = list(map(study.state_of, trials))
            return "running" in states and sum(state in FINISHED for state in states) >= goal

        killed = started(journal, 8, 2)
        wait_for(journal, reached, killed)
        os.killpg(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert before == {k: v for k, v in finished().items() if k in before}
        before = finished()
    assert started(journal, 8, 2).wait() == 0
    found = finished()
    assert len(found) == 8
    assert before == {number: found[number] for number in before}
    parameters = [json.dumps(params) for _, params, _ in found.values()]
    assert len(set(parameters)) == 8
    states = {t.number: study.state_of(t) for t in trials_in(str(journal))}
    assert set(states.values()) <= {"complete", "pruned", "killed"}
    again = [t for t in trials_in(str(journal)) if states[t.number] == "killed" and t.params]
    assert len(again) >= 3
    for trial in again:  # it may have been killed before it had all its parameters
        assert any(trial.params.items() <= params.items() for _, params, _ in found.values())


@posix
@pytest.mark.campaign
def test_two_processes_on_one_journal_share_its_trials(study, tmp_path):
    journal = tmp_path / "tune.journal"
    ends = [process.wait() for process in [started(journal, 6, 1) for _ in range(2)]]
    assert 0 in ends
    trials = trials_in(str(journal))
    assert {study.state_of(trial) for trial in trials} <= {"complete", "pruned"}
    assert len({json.dumps(trial.params) for trial in trials}) == len(trials) == 6


@pytest.mark.campaign
def test_a_cluster_trains_the_trials_of_the_same_journal(study, tmp_path):
    local = pytest.importorskip("distributed").LocalCluster
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with local(**options) as workers, cluster(workers.scheduler_address) as client:
        client.upload_file(study.__file__)
        done = study.run_study(tmp_path / "tune.journal", IDENTITY, 4, 2)
    assert study.count(done, *FINISHED) == len(done.trials) == 4


def test_a_trial_has_the_epochs_of_its_budget_and_the_loss_of_its_weights(study, quick, tmp_path):
    """The first trial is today's default."""
    (trial,) = study.run_study(tmp_path / "tune.journal", IDENTITY, 1, 1).trials
    torch.manual_seed(study.SEED)
    recipe = study.DEFAULT | {"epochs": 4, "seed": study.SEED, "precision": "auto"}
    history = fit_with(EnhancedNet(), quick.train, quick.validation, **recipe)
    losses = [epoch["validation_loss"] for epoch in history.epochs]
    assert trial.params == study.DEFAULT
    assert trial.user_attrs["epochs"] == 4
    assert trial.intermediate_values == dict(zip((1, 2, 3, 4), losses, strict=True))
    assert trial.value == losses[history.best_epoch - 1]


def test_an_epoch_is_timed_in_processor_seconds_without_the_warm_up(study, monkeypatch):
    digits = load("digits")
    clock = iter([3.0, 5.5])
    monkeypatch.setattr(study.time, "process_time", lambda: next(clock))
    assert study.epoch_seconds(digits, study.Recipe()) == 2.5


def test_a_trial_above_the_median_is_stopped_at_half(study, quick, tmp_path):
    journal = tmp_path / "tune.journal"
    with study.lock_of(journal, "ask"):
        opened = study.open_study(journal, IDENTITY)
    for _ in range(5):
        better = dict.fromkeys((1, 2, 3, 4), 1e-9)
        options = {"params": study.DEFAULT, "distributions": study.SPACE, "value": 1e-9}
        opened.add_trial(optuna.trial.create_trial(intermediate_values=better, **options))
    pruned = study.run_study(journal, IDENTITY, 6, 1).trials[0]
    assert study.state_of(pruned) == "pruned"
    assert list(pruned.intermediate_values) == [1, 2]


def test_a_trial_that_diverges_is_recorded_and_the_next_one_goes_on(
    study, quick, tmp_path, monkeypatch
):
    monkeypatch.setitem(study.DEFAULT, "learning_rate", 1e6)
    trials = study.run_study(tmp_path / "tune.journal", IDENTITY, 2, 1).trials
    assert [study.state_of(trial) for trial in trials] == ["failed", "complete"]
    assert "try a tenth" in trials[0].user_attrs["failed"]


def test_a_journal_that_was_cut_off_in_its_last_line_is_continued(study, quick, tmp_path, capsys):
    journal = tmp_path / "tune.journal"
    study.run_study(journal, IDENTITY, 1, 1)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.rindex(b'"op_code":6') + 9])  # it says "complete"
    trials = study.run_study(journal, IDENTITY, 2, 1).trials
    assert [study.state_of(trial) for trial in trials] == ["killed", "complete", "complete"]
    assert trials[1].params == trials[0].params
    assert capsys.readouterr().out.count("was cut off in its last line: continued without") == 1
    for line in journal.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_only_a_trial_whose_process_has_ended_is_trained_anew(study, tmp_path, monkeypatch):
    journal, lock_of = tmp_path / "tune.journal", study.lock_of

    def states() -> list[str]:
        return [study.state_of(trial) for trial in study.open_study(journal, IDENTITY).trials]

    opened = study.open_study(journal, IDENTITY)
    opened.ask(study.SPACE)
    with lock_of(journal, 0):
        assert states() == ["running"]

    def finished_meanwhile(journal, name):
        if name == 0:
            opened.tell(0, 0.5)
        return lock_of(journal, name)

    with monkeypatch.context() as patch:
        patch.setattr(study, "lock_of", finished_meanwhile)
        assert states() == ["complete"]
    opened.ask(study.SPACE)
    assert states() == ["complete", "killed", "waiting"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:3], lines[3][:20], *lines[4:]],
        lambda lines: [*lines, "{"],
        lambda lines: [line.replace('"op_code"', '"code"') for line in lines],
        lambda lines: [line.replace('"op_code":0', '"op_code":99') for line in lines],
        lambda lines: ["[]"],
    ],
)
def test_a_damaged_journal_is_refused_in_one_sentence_and_stays(study, quick, tmp_path, damage):
    journal = tmp_path / "tune.journal"
    study.run_study(journal, IDENTITY, 1, 1)
    journal.write_text("\n".join(damage(journal.read_text().splitlines())) + "\n")
    content = journal.read_bytes()
    with pytest.raises(SystemExit, match=r"is damaged or no journal .*: move it away"):
        study.run_study(journal, IDENTITY, 2, 1)
    assert journal.read_bytes() == content


@pytest.mark.parametrize("name", ["version", "seconds"])
def test_a_study_of_another_version_or_budget_is_refused(study, quick, tmp_path, name):
    journal = tmp_path / "tune.journal"
    study.run_study(journal, IDENTITY, 1, 1)
    with pytest.raises(SystemExit, match=f"is of another {name}: move it away"):
        study.run_study(journal, IDENTITY | {name: 1}, 2, 1)


def results(*pairs: tuple[float, float]) -> list[dict]:
    return [{"validation_loss": loss, "validation_accuracy": share} for loss, share in pairs]


@pytest.mark.parametrize(
    ("best", "replaced"),
    [
        ([(0.021, 0.992), (0.022, 0.993), (0.023, 0.994)], True),
        ([(0.021, 0.992), (0.022, 0.993), (0.023, 0.993)], False),  # less accurate
        ([(0.005, 0.992), (0.029, 0.993), (0.035, 0.994)], False),  # within two standard errors
        ([(0.041, 0.999), (0.042, 0.999), (0.043, 0.999)], False),
        ([(0.030, 0.992), (0.031, 0.993), (0.032, 0.994)], False),  # equal
    ],
)
def test_the_default_is_replaced_only_by_a_clearly_better_recipe(tune, best, replaced):
    default = results((0.030, 0.992), (0.031, 0.993), (0.032, 0.994))
    verdict = tune.judge(default, results(*best))
    assert verdict["replace"] is replaced
    assert verdict["loss_difference"] == pytest.approx(mean(loss for loss, _ in best) - 0.031)


def test_two_standard_errors_are_those_of_the_paired_difference(tune):
    default = results((0.010, 0.99), (0.050, 0.99), (0.090, 0.99))
    for differences, replaced in (((-1, -2, -3), True), ((-1, -2, -7), False)):
        pairs = zip(default, differences, strict=True)
        best = results(*((d["validation_loss"] + 0.001 * x, 0.99) for d, x in pairs))
        verdict = tune.judge(default, best)
        assert verdict["replace"] is replaced  # 2 > 2 * 0.58, but 3.33 < 2 * 1.86
    assert verdict["loss_standard_error"] == pytest.approx(0.001856, abs=1e-6)


@pytest.fixture
def record(tune, study):
    """The record of a study with a trial of each state."""
    found, random = optuna.create_study(), optuna.create_study()
    state = optuna.trial.TrialState
    for value, ended, attributes in (
        (0.3, state.COMPLETE, {"seconds": 2.0}), (0.2, state.COMPLETE, {"seconds": 1.0}),
        (0.1, state.PRUNED, {"seconds": 1.0}), (None, state.FAIL, {"failed": "diverged"}),
        (None, state.FAIL, {}), (0.4, state.COMPLETE, {"seconds": 4.0}),
    ):  # fmt: skip
        params = random.ask(study.SPACE).params
        options = {"params": params, "distributions": study.SPACE, "user_attrs": attributes}
        found.add_trial(optuna.trial.create_trial(state=ended, value=value, **options))
    both = results((0.03, 0.99), (0.04, 0.99))
    space = {name: json.loads(json.dumps(vars(domain))) for name, domain in study.SPACE.items()}
    return tune.record_of(found, IDENTITY | {"space": space}, {"default": both, "best": both})


def test_the_published_record_says_that_the_default_stays(tune, study):
    published("benchmarks/accuracy/tune.json")
    found = json.loads((ACCURACY / "tune.json").read_bytes())
    assert found["comparison"] == tune.judge(**found["confirmation"])
    assert not found["comparison"]["replace"]
    assert found["trials"][0]["params"] == study.DEFAULT
    assert found["space"] == {k: json.loads(json.dumps(vars(v))) for k, v in study.SPACE.items()}
    assert [run["seed"] for run in found["confirmation"]["default"]] == list(tune.SEEDS)
    assert sum(trial["state"] in FINISHED for trial in found["trials"]) == 40


def test_the_records_best_is_the_minimum_of_its_complete_trials(record):
    states = [trial["state"] for trial in record["trials"]]
    assert states == ["complete", "complete", "pruned", "failed", "killed", "complete"]
    losses = {t["number"]: t["validation_loss"] for t in record["trials"] if t["validation_loss"]}
    assert losses == {0: 0.3, 1: 0.2, 5: 0.4}
    assert record["best"] == min(losses, key=losses.get) == 1
    assert sum(record["importance"].values()) == pytest.approx(1)


def test_the_figures_titles_are_the_findings_of_the_record(record):
    figure = tuning_plot(record)
    assert figure.get_suptitle().startswith("The default recipe stays: the best one's valid")
    titles = [ax.get_title() or ax.get_title("left") for ax in figure.axes]
    name, share = max(record["importance"].items(), key=lambda item: item[1])
    assert titles[0] == f"{name}: {share:.0%}"
    assert titles[1] == "Best after 38% of the budget"  # 3 of 8 seconds
    best = record["trials"][1]["params"]
    assert titles[2] == f"Best at {best['learning_rate']:.3g}"
    assert titles[3] == f"Best at {best['batch_size']}"
    ticks = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes]
    assert ticks[3] == ["128", "256", "512", "1024"]
    assert list(figure.axes[1].lines[0].get_ydata())[-1] == 0.2


@pytest.mark.campaign
def test_the_command_searches_confirms_records_and_draws(tune, tmp_path, monkeypatch):
    options = "--trials 5 --seconds 0.2 --processes 1 --seeds 2 --dataset digits --folder"
    monkeypatch.setattr(sys, "argv", ["tune.py", *options.split(), str(tmp_path)])
    tune.main()
    record = json.loads((tmp_path / "tune.json").read_bytes())
    assert (tmp_path / "tuning.png").exists()
    default, best = record["confirmation"].values()
    assert [run["seed"] for run in default] == [run["seed"] for run in best] == [30, 31]
    assert [run["epochs"] for run in default] == [45, 45]
    assert record["comparison"] == tune.judge(default, best)
