"""Search for a better default recipe with Optuna, and compare the best one with the default.

`make tune` takes about 12 minutes and writes `benchmarks/accuracy/tune.json` and
`figures/tuning.png`. If it is killed, it starts from the beginning.

**Budget.** Each trial trains for the same number of processor seconds, on one core. It first times
one epoch, whose weights are discarded. Then it trains as many epochs as fit into the budget, at
least one. So its learning-rate schedule is always complete. Wall-clock time varies more when the
machine is busy.

A trial is judged on the validation loss of the weights that it ends with, because accuracy on 5,000
images is too noisy. It is stopped after half or three quarters of its epochs if its loss is above
the median of the earlier trials at that point. If a trial diverges, the record says that it failed.
The search does not read the test set.

**Rule.** The default recipe and the best one train with five seeds that the search did not use.
Each training gets the processor seconds that 45 epochs of the default take. The best one replaces
the default only if its mean validation loss is lower by more than two standard errors of the paired
difference, and its mean validation accuracy is not lower.
"""

import argparse
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import optuna
import torch
from ideas import machine
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from mnist_lab.research.sweep import VERSION, sweep
from mnist_lab.research.trials import describe_space, suggest, train_trial, trial_records
from mnist_lab.research.tuning import tuning_plot
from mnist_mlp import EnhancedNet, Recipe, fit, load, plots
from mnist_mlp.data import Splits
from mnist_mlp.files import repo_root, write_json
from mnist_mlp.recipe import History

HERE = Path(__file__).parent
SEED = 20  # of the search
CONFIRMATION_SEEDS = range(30, 35)
SPACE = {
    "learning_rate": (0.001, 0.1, "log"),
    "batch_size": [128, 256, 512, 1024],
    "weight_decay": (0.001, 0.3, "log"),
    "ema_decay": (0.98, 0.9995),
    "label_smoothing": (0.0, 0.2),
    "augment_strength": (0.0, 1.5),
    "elastic_strength": (0.0, 1.5),
    "optimizer": ["adamw", "muon"],
}
DEFAULT = {name: getattr(Recipe(), name) for name in SPACE}


def epoch_seconds(splits: Splits, recipe: Recipe) -> float:
    """Train one epoch and return its processor seconds, including the validation."""
    epoch_ends: list[float] = []

    def on_epoch(history: History) -> None:
        epoch_ends.append(time.process_time())

    # `fit` gets a data set for each of two epochs. The first one only warms up, with one batch.
    n_warm_up = min(recipe.batch_size, len(splits.train))
    warm_up = splits.train.subset(torch.arange(n_warm_up))

    with warnings.catch_warnings(action="ignore"):  # that one batch teaches nothing
        fit(
            EnhancedNet(len(splits.train.classes)),
            [warm_up, splits.train],
            splits.validation,
            replace(recipe, epochs=2),
            on_epoch=on_epoch,
            progress=False,
        )
    return epoch_ends[1] - epoch_ends[0]


def search(splits: Splits, trials: int, seconds: float) -> optuna.Study:
    """Run a study and return it. Its first trial is the default recipe.

    Args:
        splits: The data set.
        trials: The number of trials.
        seconds: The processor seconds that each trial may train.
    """
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=SEED, multivariate=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    )
    study.enqueue_trial(DEFAULT)

    def objective(trial: optuna.Trial) -> float:
        recipe = suggest(trial, SPACE, Recipe(seed=SEED))
        epochs = max(1, int(seconds / epoch_seconds(splits, recipe)))
        return train_trial(trial, splits, replace(recipe, epochs=epochs))

    with warnings.catch_warnings(action="ignore"):  # a bad recipe may learn nothing
        study.optimize(objective, trials, catch=(FloatingPointError,), show_progress_bar=True)
    return study


def confirm(best_params: dict, splits: Splits, folder: Path, seeds: int) -> dict[str, list[dict]]:
    """Train the default and the best recipe for equal processor seconds.

    Args:
        best_params: The fields of the best recipe that the search has chosen.
        splits: The data set.
        folder: Where the weights and their records go.
        seeds: The number of seeds.

    Returns:
        The results of the "default" and of the "best" recipe, one for each seed.
    """
    torch.set_num_threads(1)
    default = Recipe()
    best = Recipe(**best_params)

    # Take the shortest of three, as other work on the machine only makes an epoch longer.
    default_seconds = min(epoch_seconds(splits, default) for _ in range(3))
    best_seconds = min(epoch_seconds(splits, best) for _ in range(3))
    best_epochs = max(1, int(default.epochs * default_seconds / best_seconds))

    runs = []
    default_fields = {}
    best_fields = {**best_params, "epochs": best_epochs}
    for fields in (default_fields, best_fields):
        for seed in CONFIRMATION_SEEDS[:seeds]:
            runs.append({**fields, "dataset": splits.name, "seed": seed})

    results = []
    for record in sweep(runs, folder):
        if "failed" in record:
            raise SystemExit("The best recipe is not reliable: the default stays.")
        best_epoch = record["epochs"][record["best_epoch"] - 1]  # the record counts from 1
        results.append(
            {
                "seed": record["run"]["seed"],
                "epochs": record["run"]["epochs"],
                "validation_loss": best_epoch["validation_loss"],
                "validation_accuracy": best_epoch["validation_accuracy"],
                "seconds": record["seconds"],
            }
        )
    return {"default": results[:seeds], "best": results[seeds:]}


def judge(default: list[dict], best: list[dict]) -> dict:
    """Compare the results by the rule at the top of this file.

    Args:
        default: The results of the default recipe.
        best: The results of the best one, with the same seeds in the same order.

    Returns:
        The mean differences, best minus default, and whether the best recipe replaces the default.
    """
    losses = []
    accuracies = []
    for default_run, best_run in zip(default, best, strict=True):
        losses.append(best_run["validation_loss"] - default_run["validation_loss"])
        accuracies.append(best_run["validation_accuracy"] - default_run["validation_accuracy"])

    standard_error = stdev(losses) / math.sqrt(len(losses))
    has_lower_loss = mean(losses) < -2 * standard_error
    is_as_accurate = round(mean(accuracies), 9) >= 0  # up to rounding errors
    return {
        "loss_difference": mean(losses),
        "loss_standard_error": standard_error,
        "accuracy_difference": mean(accuracies),
        "replace": has_lower_loss and is_as_accurate,
    }


def make_record(study: optuna.Study, settings: dict, confirmation: dict[str, list[dict]]) -> dict:
    """Return the content of `tune.json`."""
    importance = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        target=lambda trial: math.log(trial.value),  # the validation loss
    )
    return {
        "command": "make tune",
        **settings,
        "space": describe_space(SPACE),
        "trials": trial_records(study),
        "best": study.best_trial.number,
        "importance": importance,
        "confirmation": confirmation,
        "comparison": judge(**confirmation),
    }


def main() -> None:
    """Search, compare with the default, write the record and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=12, help="processor seconds of a trial")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison with the default")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--folder", type=Path, default=HERE, help="for all files it writes")
    args = parser.parse_args()

    splits = load(args.dataset)
    study = search(splits, args.trials, args.seconds)
    confirmation = confirm(study.best_params, splits, args.folder / "runs", args.seeds)
    settings = {
        "version": {**VERSION, "optuna": optuna.__version__},
        "machine": machine(),
        "dataset": splits.name,  # "auto" may have become another
        "seconds": args.seconds,
    }
    record = make_record(study, settings, confirmation)
    write_json(args.folder / "tune.json", record)
    print(record["comparison"])

    plots.use_style()
    figures = repo_root() / "figures" if args.folder == HERE else args.folder
    tuning_plot(record).savefig(figures / "tuning.png")


if __name__ == "__main__":
    main()
