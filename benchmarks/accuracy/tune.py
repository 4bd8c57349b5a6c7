"""Search for a better default recipe with Optuna, and compare what it finds with today's default.

`make tune`, about 12 minutes; writes `benchmarks/accuracy/tune.json` and `figures/tuning.png`. If
it is killed, it starts again.

**Budget.** Each trial trains for the same processor seconds, on one core. It times one epoch, which
is not used, and takes as many epochs as the budget holds at that rate, at least one; so its
learning-rate schedule is always complete. Processor seconds vary less than seconds of the clock on
a machine with other work. A trial is judged on the validation loss of the weights that it ends with
(accuracy on 5,000 images is too noisy), and stopped at half or three quarters of its epochs if its
loss is above the median there. A trial that diverges is recorded as failed. The test set is not
read.

**Rule.** Five seeds that the study did not use train the default recipe and the best one, for the
processor seconds of the default's 45 epochs. The default is replaced only if the best one's mean
validation loss is lower by more than two standard errors of the paired difference, and its mean
validation accuracy is not lower.
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
SEED = 20  # of the study
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
    """Return the processor seconds of one epoch, validation included, by training it."""
    ends: list[float] = []

    def on_epoch(history: History) -> None:
        ends.append(time.process_time())

    one_batch = splits.train.subset(torch.arange(min(recipe.batch_size, len(splits.train))))
    with warnings.catch_warnings(action="ignore"):  # one step learns nothing
        fit(
            EnhancedNet(len(splits.train.classes)),
            [one_batch, splits.train],  # the first epoch warms up
            splits.validation,
            replace(recipe, epochs=2),
            on_epoch=on_epoch,
            progress=False,
        )
    return ends[1] - ends[0]


def search(splits: Splits, trials: int, seconds: float) -> optuna.Study:
    """Return a study with so many trials of so many processor seconds; the first is the default."""
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
    """Return the results of the default and of the best recipe after equal processor seconds."""
    torch.set_num_threads(1)
    default = Recipe()
    default_seconds = min(epoch_seconds(splits, default) for _ in range(3))
    best_seconds = min(epoch_seconds(splits, Recipe(**best_params)) for _ in range(3))
    best_epochs = max(1, int(default.epochs * default_seconds / best_seconds))

    recipes = {"default": {}, "best": {**best_params, "epochs": best_epochs}}
    runs = [
        {**recipe, "dataset": splits.name, "seed": seed}
        for recipe in recipes.values()
        for seed in CONFIRMATION_SEEDS[:seeds]
    ]

    results = []
    for record in sweep(runs, folder):
        if "failed" in record:
            raise SystemExit("The best recipe is not reliable: the default stays.")
        best_epoch = record["epochs"][record["best_epoch"] - 1]
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
    """Return the mean differences, best minus default, and whether the rule replaces the default.

    Both lists have the results of the same seeds in the same order.
    """
    pairs = list(zip(default, best, strict=True))
    loss = [b["validation_loss"] - d["validation_loss"] for d, b in pairs]
    accuracy = [b["validation_accuracy"] - d["validation_accuracy"] for d, b in pairs]
    error = stdev(loss) / math.sqrt(len(loss))
    return {
        "loss_difference": mean(loss),
        "loss_standard_error": error,
        "accuracy_difference": mean(accuracy),
        "replace": mean(loss) < -2 * error and round(mean(accuracy), 9) >= 0,
    }


def make_record(study: optuna.Study, settings: dict, confirmation: dict[str, list[dict]]) -> dict:
    """Return what `tune.json` holds."""
    importance = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=0),
        target=lambda trial: math.log(trial.value),
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
    """Search, confirm, write the record and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=12, help="processor seconds of a trial")
    parser.add_argument("--seeds", type=int, default=5, help="of the confirmation")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the record")
    args = parser.parse_args()

    splits = load(args.dataset)
    study = search(splits, args.trials, args.seconds)
    confirmation = confirm(study.best_params, splits, args.folder / "runs", args.seeds)
    settings = {
        "version": {**VERSION, "optuna": optuna.__version__},
        "machine": machine(),
        "dataset": args.dataset,
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
