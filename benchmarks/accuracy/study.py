"""The trials of `make tune`: an Optuna study that several processes share in a journal file."""

import json
import time
import warnings
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import optuna
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm import tqdm

from mnist_mlp import EnhancedNet, Recipe, fit, load
from mnist_mlp.data import Splits
from mnist_mlp.research.sweep import end_with_parent
from mnist_mlp.research.trials import run, state_of, train_trial

SEED = 20
SPACE = {
    "learning_rate": FloatDistribution(0.001, 0.1, log=True),
    "batch_size": CategoricalDistribution((128, 256, 512, 1024)),
    "weight_decay": FloatDistribution(0.001, 0.3, log=True),
    "ema_decay": FloatDistribution(0.98, 0.9995),
    "label_smoothing": FloatDistribution(0.0, 0.2),
    "augment_strength": FloatDistribution(0.0, 1.5),
    "elastic_strength": FloatDistribution(0.0, 1.5),
    "optimizer": CategoricalDistribution(("adamw", "muon")),
}
DEFAULT = {name: getattr(Recipe(), name) for name in SPACE}
COUNTED = "complete", "pruned", "failed", "running"


def lock_of(journal: Path, name: str | int) -> FileLock:
    """Return a lock: "ask" to open the study, "write" for the file, a number for its trial.

    The operating system releases it however its process ends; Optuna's own would stay.
    """
    return FileLock(journal.with_name(f".{journal.name}-{name}.lock"))


def open_study(journal: Path, identity: dict) -> optuna.Study:
    """Return the study in the journal, in which no running trial's process has ended.

    Trials whose process was killed fail, and their parameters are queued again. A new study has
    today's default in its queue. A last line that was cut off is removed: its operation had not
    been completed. The caller holds the lock "ask". Raises SystemExit if the journal is damaged or
    its study has another identity.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        _remove_cut_off_line(journal)
        lock = lock_of(journal, "write")
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        hint = "move it away to start anew"
        raise SystemExit(f"{journal} is damaged or no journal ({error!r}): {hint}.") from None
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    options = {"study_name": "tune", "pruner": pruner, "load_if_exists": True}
    study = optuna.create_study(storage=storage, **options)
    if not study.trials:
        study.set_user_attr("identity", identity)
        study.enqueue_trial(DEFAULT)
    if (found := study.user_attrs.get("identity", {})) != identity:
        names = " and ".join(name for name in identity if found.get(name) != identity[name])
        raise SystemExit(f"{journal} is of another {names}: move it away to start anew.")
    for number in [trial.number for trial in study.trials if state_of(trial) == "running"]:
        with suppress(Timeout), lock_of(journal, number).acquire(timeout=0):
            # Its process does not train it, because it has ended, or has just finished the trial.
            if state_of(trial := study.trials[number]) == "running":
                study.tell(number, state=TrialState.FAIL)
                if "failed" not in trial.user_attrs:
                    study.enqueue_trial(trial.params)
    return study


def _remove_cut_off_line(journal: Path) -> None:
    """Keep the next line from being glued to it; raise ValueError for lines that are not JSON."""
    with lock_of(journal, "write"), journal.open("ab+") as file:
        file.seek(0)
        content = file.read()
        whole, _, rest = content.rpartition(b"\n")
        for line in whole.splitlines():
            json.loads(line)
        if rest:
            print(f"{journal} was cut off in its last line: continued without that line.")
            file.truncate(len(content) - len(rest))


def count(study: optuna.Study, *states: str) -> int:
    """Return how many trials are in these states."""
    return sum(state_of(trial) in states for trial in study.trials)


def epoch_seconds(splits: Splits, recipe: Recipe) -> float:
    """Return the processor seconds of one epoch, validation included, by training it."""
    ends: list[float] = []
    warm_up = splits.train.subset(torch.arange(min(recipe.batch_size, len(splits.train))))
    with warnings.catch_warnings(action="ignore"):  # one step learns nothing
        fit(
            EnhancedNet(len(splits.train.classes)), [warm_up, splits.train], splits.validation,
            replace(recipe, epochs=2), progress=False,
            on_epoch=lambda history: ends.append(time.process_time()),
        )  # fmt: skip
    return ends[1] - ends[0]


def train(trial: optuna.Trial, splits: Splits, seconds: float) -> float | None:
    """Return the validation loss after so many processor seconds, or None if it was pruned."""
    recipe = Recipe(**trial.params, seed=SEED)
    epochs = max(1, int(seconds / epoch_seconds(splits, recipe)))
    return train_trial(trial, splits, replace(recipe, epochs=epochs))


def run_trial(journal: Path, identity: dict, trials: int) -> None:
    """Train and record one trial, unless the study has so many that are finished or running."""
    end_with_parent()
    torch.set_num_threads(1)
    with ExitStack() as stack, warnings.catch_warnings(action="ignore"):
        with lock_of(journal, "ask"):
            study = open_study(journal, identity)
            if count(study, *COUNTED) >= trials:
                return
            # Another seed for each trial: a resumed study must not repeat its first suggestions.
            study.sampler = optuna.samplers.TPESampler(
                seed=len(study.trials), multivariate=True, constant_liar=True
            )
            trial = study.ask(SPACE)
            stack.enter_context(lock_of(journal, trial.number))
        splits = load(identity["dataset"], download=False)
        run(study, trial, train, splits, identity["seconds"])


def run_study(journal: Path, identity: dict, trials: int, processes: int) -> optuna.Study:
    """Return the study with so many trials finished; raise SystemExit if others still train."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock_of(journal, "ask"):
            study = open_study(journal, identity)
        if (todo := trials - count(study, *COUNTED)) <= 0:
            break
        tasks = (delayed(run_trial)(journal, identity, trials) for _ in range(todo))
        done = Parallel(processes, return_as="generator_unordered")(tasks)
        list(tqdm(done, "Trials", trials, initial=trials - todo))
    if n := count(study, "running"):
        raise SystemExit(f"{n} trials still train in another process, which goes on alone.")
    return study
