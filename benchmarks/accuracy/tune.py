"""Search for a better default recipe with Optuna, and compare what it finds with today's default.

`make tune`, 10 minutes; writes `benchmarks/accuracy/tune.json` and `figures/tuning.png`.

**Budget.** Each trial trains for the same processor seconds, on one core. It times one epoch, which
is not used, and takes as many epochs as the budget holds at that rate, at least one; so its
learning-rate schedule is always complete. Processor seconds vary less than seconds of the clock on
a machine with other work. A trial is judged on the validation loss of the weights that it ends with
(accuracy on 5,000 images is too noisy), and stopped at half or three quarters of its epochs if its
loss is above the median there. The test set is not read.

**Rule.** Five seeds that the study did not use train the default recipe and the best one, for the
processor seconds of the default's 45 epochs. The default is replaced only if the best one's mean
validation loss is lower by more than two standard errors of the paired difference, and its mean
validation accuracy is not lower.

**Interruptions.** `study.py` keeps the study in a journal in `benchmarks/accuracy/runs/`. A killed
command continues there; killed trials are trained anew. Several commands, here or with `--cluster`
on Dask workers that share the folder and are machines like this one, work on one study. A trial
that diverges is recorded as failed.
"""

import argparse
import json
import math
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev

import optuna
import torch
from ideas import machine
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from study import SPACE, epoch_seconds, run_study, state_of

from mnist_mlp import Recipe, load, plots
from mnist_mlp.research.sweep import VERSION, cluster, sweep
from mnist_mlp.research.tuning import tuning_plot
from mnist_mlp.storage.files import repo_root, write_json

HERE = Path(__file__).parent
SEEDS = range(30, 35)  # the study has another one


def confirm(study: optuna.Study, dataset: str, folder: Path, seeds: int) -> dict[str, list[dict]]:
    """Return the results of the default and of the best recipe after equal processor seconds."""
    key, default = f"epochs of trial {study.best_trial.number}", Recipe()
    if key not in study.user_attrs:  # a resumed confirmation must not measure others
        torch.set_num_threads(1)
        recipes, splits = (default, Recipe(**study.best_params)), load(dataset)
        ours, best = (min(epoch_seconds(splits, r) for _ in range(3)) for r in recipes)
        study.set_user_attr(key, max(1, int(default.epochs * ours / best)))
    best = study.best_params | {"epochs": study.user_attrs[key]}
    runs = [
        recipe | {"dataset": dataset, "seed": seed}
        for recipe in ({}, best) for seed in SEEDS[:seeds]
    ]  # fmt: skip
    results = []
    for record in sweep(runs, folder):
        if "failed" in record:
            raise SystemExit("The best recipe is not reliable: the default stays.")
        last = record["epochs"][record["best_epoch"] - 1]
        names = ("validation_loss", "validation_accuracy")
        run = {name: record["run"][name] for name in ("seed", "epochs")}
        results.append(run | {n: last[n] for n in names} | {"seconds": record["seconds"]})
    return {"default": results[:seeds], "best": results[seeds:]}


def judge(default: list[dict], best: list[dict]) -> dict:
    """Return the mean differences, best minus default, and whether the rule replaces the default.

    Both lists have the results of the same seeds in the same order.
    """
    loss, accuracy = (
        [b[name] - d[name] for d, b in zip(default, best, strict=True)]
        for name in ("validation_loss", "validation_accuracy")
    )
    error = stdev(loss) / len(loss) ** 0.5
    return {
        "loss_difference": mean(loss),
        "loss_standard_error": error,
        "accuracy_difference": mean(accuracy),
        "replace": mean(loss) < -2 * error and round(mean(accuracy), 9) >= 0,
    }


def record_of(study: optuna.Study, identity: dict, confirmation: dict[str, list[dict]]) -> dict:
    """Return what `tune.json` holds."""
    trials = [
        {"number": t.number, "state": state_of(t), "params": t.params}
        | {"validation_loss": t.value if state_of(t) == "complete" else None}
        | {"epochs": 0, "seconds": 0.0} | t.user_attrs
        for t in study.trials
    ]  # fmt: skip
    evaluator = FanovaImportanceEvaluator(seed=0)
    importance = get_param_importances(
        study, evaluator=evaluator, target=lambda trial: math.log(trial.value)
    )
    best = min((t for t in trials if t["state"] == "complete"), key=lambda t: t["validation_loss"])
    return {"command": "make tune", **identity, "trials": trials, "best": best["number"]} | {
        "importance": importance,
        "confirmation": confirmation,
        "comparison": judge(**confirmation),
    }


def main() -> None:
    """Search, confirm, write the record and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=40, help="finished trials in all")
    parser.add_argument("--seconds", type=float, default=12, help="processor seconds of a trial")
    parser.add_argument("--processes", type=int, default=2, help="that train at a time")
    parser.add_argument("--seeds", type=int, default=5, help="of the confirmation")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--folder", type=Path, default=HERE, help="of record and journal")
    parser.add_argument("--cluster", help="address of a Dask scheduler")
    args = parser.parse_args()
    load(args.dataset)  # which may have to be downloaded, once, not by each process
    space = {k: json.loads(json.dumps(vars(v))) for k, v in SPACE.items()}
    identity = {
        "version": VERSION | {"optuna": optuna.__version__}, "machine": machine(),
        "dataset": args.dataset, "seconds": args.seconds, "space": space,
    }  # fmt: skip
    runs = args.folder.resolve() / "runs"
    with cluster(args.cluster) if args.cluster else nullcontext() as client:
        if client:
            client.upload_file(str(HERE / "study.py"))
        study = run_study(runs / "tune.journal", identity, args.trials, args.processes)
        confirmation = confirm(study, args.dataset, runs, args.seeds)
    record = record_of(study, identity, confirmation)
    write_json(args.folder / "tune.json", record)
    print(record["comparison"])
    plots.use_style()
    figures = repo_root() / "figures" if args.folder == HERE else args.folder
    tuning_plot(record).savefig(figures / "tuning.png")


if __name__ == "__main__":
    main()
