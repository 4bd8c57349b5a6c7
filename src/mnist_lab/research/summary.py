"""Tables, verdicts and figures from the records of a `sweep`, and how many seeds it needs."""

import hashlib
import json
import math
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from mnist_lab.research.sweep import RUN_DEFAULTS
from mnist_mlp.checkpoint import CARD_SCHEMA, read_card
from mnist_mlp.files import read_json
from mnist_mlp.plots import BLUE
from mnist_mlp.recipe import Recipe

SIGNIFICANT = 0.05
METRICS = ("validation_accuracy", "test_accuracy")
HAND_IN_SCHEMA: dict[str, type] = {
    "student": str,
    "exercises_right": list,
}  # of a card without a network
MOST_SEEDS = 1_000_000  # a difference that needs more is none

# The values of each configuration by seed. A configuration is its data set and its name.
Values = dict[tuple[str, str], dict[int, float]]


def read_records(folder: str | Path) -> list[dict]:
    """Return the records that sweeps have written into a folder, and name the damaged ones.

    Example:
        >>> summarise(read_records("records"))
    """
    records = []
    for path in sorted(Path(folder).expanduser().glob("*.json")):
        try:
            records.append(read_json(path, {"run": dict, "version": dict}))
        except (OSError, ValueError) as error:
            print(f"{path} is left out: {error}")
    return records


def read_cards(folder: str | Path) -> pd.DataFrame:
    """Return a table with a row for each card in a folder and its sub-folders, the best first.

    A card is the .json file that `save_weights` writes beside weights, such as those that a class
    hands in. The weights may be missing. If they are there, they must be those of the card. A
    student without a network hands in a card that says only which exercises are right.

    Args:
        folder: The folder with the cards. Hidden files are left out.

    Returns:
        A table whose index is the file, relative to the folder, without its suffix. Accuracies are
        from 0 to 1; what a card does not say is missing (None or NaN).

        * `student` and `exercises right`, which `mnist_lab.exercises.hand_in` writes.
        * `data set`, and `recipe`: the hyperparameters that differ from the default.
        * `validation accuracy`, `test accuracy`, `epochs`, `seconds`.
        * `problem`: why the file is no card, or "". Such rows come last, and a warning names them.

        The rows are sorted by validation accuracy; where it is missing, by test accuracy.

    Raises:
        ValueError: There is no such folder, or no .json file in it.

    Example:
        >>> read_cards("hand-in").to_csv("class.csv")
    """
    folder = Path(folder).expanduser()
    paths = []
    for path in sorted(folder.rglob("*.json")):
        names = path.relative_to(folder).parts
        if not any(name.startswith(".") for name in names):
            paths.append(path)
    if not paths:
        raise ValueError(f"{folder} must be a folder with cards, found no .json file in it.")

    rows = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            rows[name] = _row_of_card(path)
        except (OSError, ValueError) as error:
            rows[name] = {"problem": str(error)}

    damaged = [name for name, row in rows.items() if row.get("problem")]
    if damaged:
        warnings.warn(
            f"no cards, or damaged ones: {', '.join(damaged)}. The column `problem` says why.",
            stacklevel=2,
        )

    columns = {
        "student": None,
        "exercises right": None,
        "data set": None,
        "recipe": None,
        "validation accuracy": math.nan,
        "test accuracy": math.nan,
        "epochs": math.nan,
        "seconds": math.nan,
        "problem": "",
    }
    table = pd.DataFrame([{**columns, **row} for row in rows.values()], index=list(rows))
    table.index.name = "file"

    accuracy = table["validation accuracy"].fillna(table["test accuracy"])
    return table.loc[accuracy.sort_values(ascending=False, kind="stable", na_position="last").index]


def _row_of_card(path: Path) -> dict:
    """Return the row of a card.

    Raises:
        OSError: A file cannot be read.
        ValueError: The file is no card, belongs to other weights, or holds an impossible value.
    """
    card = _read_card(path)
    has_network = "model" in card
    for suffix in (".pth", ".pt"):
        weights = path.with_suffix(suffix)
        if has_network and weights.exists():
            read_card(weights)  # compares the weights with the card

    row: dict = {"student": card.get("student"), "data set": card.get("dataset")}
    solved = card.get("exercises_right")
    if isinstance(solved, list):
        row["exercises right"] = ", ".join(map(str, solved))

    recipe = card.get("recipe")
    if isinstance(recipe, dict):
        default = Recipe().asdict()
        changes = [f"{key}={value}" for key, value in recipe.items() if value != default.get(key)]
        row["recipe"] = ", ".join(changes) or "default"

    numbers = {
        "validation accuracy": ("validation_accuracy", 1),
        "epochs": ("epochs_done", math.inf),
        "seconds": ("training_seconds", math.inf),
    }
    for column, (entry, highest) in numbers.items():
        if entry in card:
            row[column] = _number_of_card(card, entry, highest)
    if "test_correct" in card:
        total = _number_of_card(card, "test_images", math.inf)
        correct = _number_of_card(card, "test_correct", total)
        row["test accuracy"] = correct / total if total else math.nan
    return row


def _read_card(path: Path) -> dict:
    """Return a card of weights, or one that a student without a network has handed in.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is no card.
    """
    try:
        card = read_json(path, {})
    except ValueError as error:
        raise ValueError(
            "the file is empty, cut off, or not a card: ask for it once more."
        ) from error
    is_without_network = "student" in card and "model" not in card
    schema = HAND_IN_SCHEMA if is_without_network else CARD_SCHEMA

    missing = []
    for entry, expected_type in schema.items():
        if not isinstance(card.get(entry), expected_type):
            missing.append(entry)
    if missing:
        raise ValueError(f"the file is no card: it does not say, or not rightly: {missing}.")
    return card


def _number_of_card(card: Mapping, entry: str, highest: float) -> float:
    value = card.get(entry)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= highest:
        return value
    raise ValueError(
        f"the card says {entry}: {value!r:.40}, expected a number from 0 to {highest:g}."
    )


def summarise(
    records: Iterable[Mapping],
    baseline: str | None = None,
    metric: str = "validation_accuracy",
) -> pd.DataFrame:
    """Return a table with a row for each configuration: its mean, and how it compares.

    Configurations are compared with the baseline on the same data set. The comparison is paired:
    it takes the differences between runs of the same seed, which share the initial weights and the
    order of the images if they have the same network and data.

    Args:
        records: Records of a `sweep`, of one or more data sets. Those of failed runs are left out,
            with a warning.
        baseline: The name of the configuration that the others are compared with. A configuration
            without a name is called by the fields in which it differs, "default" if in none.
        metric: "validation_accuracy" or "test_accuracy".

    Returns:
        A table whose index is the data set and the configuration. Accuracies are from 0 to 1.

        * `n`: the number of seeds.
        * `mean`, `std`: over the seeds, `std` with n - 1.
        * `low`, `high`: the 95% confidence interval of the mean (Student's t).

        With a baseline, also

        * `pairs`: the number of seeds that this configuration and the baseline both have.
        * `difference`: the mean difference to the baseline over these seeds.
        * `difference low`, `difference high`: its 95% interval (t), not corrected.
        * `p`: of the paired t-test.
        * `p, sign flips`: of the permutation test that flips the signs of the differences. With n
            seeds it is at least 2 / 2**n: five seeds cannot make it significant.
        * `p, Holm` and `p, sign flips, Holm`: corrected for the number of comparisons in the table.
        * `verdict`: "better" or "worse" if `p, Holm` is below 0.05.

        `to_latex()` and `to_markdown()` of pandas export the table.

    Raises:
        ValueError: There is no run, no such metric or no such baseline; or a run was trained on the
            validation images.

    Example:
        >>> table = summarise(records, baseline="default")
        >>> print(table.round(4).to_latex())

    Sources: Student, "The probable error of a mean", 1908; Fisher, "The design of experiments",
    1935 (sign flips); Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    records = list(records)
    failed = [record for record in records if "failed" in record]
    if failed:
        name = failed[0].get("name") or failed[0]["run"]
        warnings.warn(
            f"{len(failed)} of {len(records)} runs failed and are left out; the first is {name}: "
            f"{failed[0]['failed']}",
            stacklevel=2,
        )

    values = values_by_configuration(records, metric)
    datasets = list(dict.fromkeys(dataset for dataset, _ in values))
    configurations = list(dict.fromkeys(configuration for _, configuration in values))
    if baseline is not None:
        for dataset in datasets:
            if (dataset, baseline) not in values:
                raise ValueError(
                    f"baseline={baseline!r} has no run on {dataset}: expected one of "
                    f"{', '.join(map(repr, configurations))}."
                )

    rows = []
    for (dataset, configuration), by_seed in values.items():
        comparison = {}
        if baseline is not None and configuration != baseline:
            comparison = _paired_statistics(by_seed, values[dataset, baseline])
        rows.append(
            {
                "data set": dataset,
                "configuration": configuration,
                **_sample_statistics(list(by_seed.values())),
                **comparison,
            }
        )
    table = pd.DataFrame(rows).set_index(["data set", "configuration"])

    if baseline is None or "p" not in table:  # no comparison, or the baseline is alone
        return table
    table["p, Holm"] = holm(table["p"])
    table["p, sign flips, Holm"] = holm(table["p, sign flips"])

    verdicts = []
    for (_, configuration), row in table.iterrows():
        if configuration == baseline:
            verdicts.append("baseline")
        elif math.isnan(row["p"]):
            verdicts.append("too few seeds")
        elif row["p, Holm"] >= SIGNIFICANT:
            verdicts.append("no significant difference")
        else:
            verdicts.append("better" if row["difference"] > 0 else "worse")
    table["verdict"] = verdicts
    return table


def verdicts(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each comparison in a table that `summarise` made with a baseline.

    Example:
        >>> print(*verdicts(table), sep="\\n")
        mnist, Lion: +0.31 points [+0.12, +0.50], p after Holm = 0.02: better.

    Raises:
        ValueError: The table has no comparison.
    """
    if "verdict" not in table:
        raise ValueError(
            "the table compares nothing: call summarise(records, baseline='NAME') with a "
            "configuration that is not alone on its data set."
        )

    sentences = []
    for (dataset, configuration), row in table.iterrows():
        if row["verdict"] == "baseline":
            continue
        points = [100 * row[name] for name in ("difference", "difference low", "difference high")]
        difference, low, high = points
        finding = f"{difference:+.2f} points"
        if not math.isnan(low):
            finding += f" [{low:+.2f}, {high:+.2f}], p after Holm = {row['p, Holm']:.2g}"
        if row["pairs"] < row["n"]:
            finding += f", over the {row['pairs']:.0f} seeds that both have"
        sentences.append(f"{dataset}, {configuration}: {finding}: {row['verdict']}.")
    return sentences


def seeds_needed(difference: float, standard_deviation: float, power: float = 0.8) -> int:
    """Return how many seeds a paired t-test needs to find a difference, at the level of 5%.

    Args:
        difference: The smallest difference that matters to you.
        standard_deviation: That of the differences between two runs of the same seed. If you know
            only that of the accuracies, take 1.4 times as much: then the seeds are independent.
        power: The probability that a true difference of this size becomes significant.

    Raises:
        ValueError: An argument is out of range, or more than a million seeds are needed.

    Example:
        >>> seeds_needed(difference=0.001, standard_deviation=0.001)
        10

    Source: Cohen, "Statistical power analysis for the behavioral sciences", 1988.
    """
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"difference must be a number other than 0, found {difference!r}.")
    if not 0 < standard_deviation < math.inf:
        raise ValueError(f"standard_deviation must be above 0, found {standard_deviation!r}.")
    if not SIGNIFICANT < power < 1:
        raise ValueError(f"power must be above {SIGNIFICANT} and below 1, found {power!r}.")
    effect = abs(difference) / standard_deviation

    def power_of(seeds: int) -> float:
        """Return the probability that the test with this many seeds finds the difference."""
        freedom = seeds - 1
        critical = stats.t.ppf(1 - SIGNIFICANT / 2, freedom)
        shift = effect * math.sqrt(seeds)
        too_low = stats.nct.cdf(-critical, freedom, shift)
        return float(stats.nct.sf(critical, freedom, shift) + too_low)

    numbers = range(2, MOST_SEEDS + 1)
    position = bisect_left(numbers, power, key=power_of)
    if position == len(numbers):
        raise ValueError(
            f"more than {MOST_SEEDS:,} seeds are needed: a difference of {difference:g} is too "
            f"small for a standard deviation of {standard_deviation:g}."
        )
    return numbers[position]


def holm(p_values: pd.Series) -> pd.Series:
    """Return p-values corrected for their number. Missing ones (NaN) stay and do not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    ascending = p_values.dropna().sort_values()
    factors = np.arange(len(ascending), 0, -1)
    corrected = (ascending * factors).cummax().clip(upper=1)
    return corrected.reindex(p_values.index)


def configurations_plot(
    records: Iterable[Mapping], metric: str = "validation_accuracy"
) -> np.ndarray:
    """Draw each run as a dot, with the mean of each configuration and its 95% interval.

    The mean and the standard deviation stand beside each row.

    Args:
        records: As for `summarise`.
        metric: As for `summarise`.

    Returns:
        The axes, one for each data set.
    """
    values = values_by_configuration(records, metric)
    datasets = list(dict.fromkeys(dataset for dataset, _ in values))
    configurations = list(dict.fromkeys(configuration for _, configuration in values))

    _, axes = plt.subplots(
        1,
        len(datasets),
        figsize=(1.5 + 5 * len(datasets), 1.2 + 0.45 * len(configurations)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, dataset in zip(axes[0], datasets, strict=True):
        for row, configuration in enumerate(configurations):
            by_seed = values.get((dataset, configuration), {})
            if not by_seed:
                continue
            accuracies = list(by_seed.values())
            sample = _sample_statistics(accuracies)
            heights = np.full(len(accuracies), row)
            ax.plot(accuracies, heights, "o", color=BLUE, alpha=0.4, markersize=6)
            ax.plot([sample["low"], sample["high"]], [row, row], color=BLUE, linewidth=2)
            ax.plot(sample["mean"], row, "|", color=BLUE, markersize=18, markeredgewidth=2.5)
            text = f"{sample['mean']:.2%} ± {100 * sample['std']:.2f}"
            place = ax.get_yaxis_transform()
            ax.text(1.02, row, text, transform=place, va="center", fontsize=9.5)

        ax.set_title(dataset)
        ax.set_xlabel(metric.replace("_", " "))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis="y", visible=False)

    axes[0, 0].set_yticks(range(len(configurations)), configurations)
    axes[0, 0].set_ylim(len(configurations) - 0.5, -0.5)  # the first configuration is on top
    return axes[0]


def values_by_configuration(
    records: Iterable[Mapping], metric: str = "validation_accuracy"
) -> Values:
    """Return the metric of each run, by data set and configuration, and then by seed.

    Raises:
        ValueError: As `summarise`.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be {' or '.join(map(repr, METRICS))}, found {metric!r}.")
    complete = [record for record in records if "failed" not in record]
    if not complete:
        raise ValueError("records must hold at least one run that has not failed, found none.")

    for record in complete:
        if metric not in record:
            remedy = "is it a record of a sweep?"
            if metric == "test_accuracy":
                remedy = "call sweep(..., test=True) for it."
            raise ValueError(f"the record of {record['run']} has no {metric}: {remedy}")
        if record["run"]["all_images"] and metric == "validation_accuracy":
            raise ValueError(
                "a run was trained on the validation images too, so its validation accuracy "
                "measures nothing: use metric='test_accuracy'."
            )

    descriptions = [record["run"]["dataset"] for record in complete]
    datasets = _with_digests([_short_name(text) for text in descriptions], descriptions)
    configurations = [""] * len(complete)
    for dataset in dict.fromkeys(datasets):
        positions = [i for i, name in enumerate(datasets) if name == dataset]
        names = _configuration_names([complete[i] for i in positions])
        for i, name in zip(positions, names, strict=True):
            configurations[i] = name

    values: Values = {}
    for record, dataset, configuration in zip(complete, datasets, configurations, strict=True):
        by_seed = values.setdefault((dataset, configuration), {})
        by_seed[record["run"]["seed"]] = record[metric]

    # All rows of a data set stand together.
    order = {dataset: position for position, dataset in enumerate(dict.fromkeys(datasets))}
    return dict(sorted(values.items(), key=lambda item: order[item[0][0]]))


def _sample_statistics(values: Sequence[float]) -> dict[str, float]:
    """Return the number, mean and standard deviation of values, and the interval of the mean."""
    n = len(values)
    if n < 2:
        return {"n": n, "mean": values[0], "std": math.nan, "low": math.nan, "high": math.nan}

    mean = float(np.mean(values))
    error = float(stats.sem(values))
    low, high = (mean, mean) if error == 0 else stats.t.interval(0.95, n - 1, mean, error)
    return {
        "n": n,
        "mean": mean,
        "std": float(np.std(values, ddof=1)),
        "low": float(low),
        "high": float(high),
    }


def _paired_statistics(
    by_seed: Mapping[int, float], baseline: Mapping[int, float]
) -> dict[str, float]:
    """Return the differences of two configurations over their common seeds, and both p-values."""
    seeds = [seed for seed in by_seed if seed in baseline]
    differences = np.array([by_seed[seed] - baseline[seed] for seed in seeds])
    if len(seeds) < 2:
        return {
            "pairs": len(seeds),
            "difference": float(differences.mean()) if seeds else math.nan,
            "difference low": math.nan,
            "difference high": math.nan,
            "p": math.nan,
            "p, sign flips": math.nan,
        }

    # Exact for up to 13 seeds: then there are fewer flips than resamples.
    flips = stats.permutation_test(
        (differences,),
        lambda flipped, axis: flipped.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        random_state=0,
    )
    sample = _sample_statistics(list(differences))
    p_value = float(flips.pvalue)
    if np.ptp(differences) > 1e-12:  # the t-test cannot judge differences that are all equal
        p_value = float(stats.ttest_1samp(differences, 0).pvalue)
    return {
        "pairs": len(seeds),
        "difference": sample["mean"],
        "difference low": sample["low"],
        "difference high": sample["high"],
        "p": p_value,
        "p, sign flips": float(flips.pvalue),
    }


def _configuration_names(records: Sequence[Mapping]) -> list[str]:
    """Return the name of the configuration of each record. All are of the same data set."""
    fields = []
    for record in records:
        fields.append({key: value for key, value in record["run"].items() if key != "seed"})

    names = []
    for record, own in zip(records, fields, strict=True):
        names.append(record.get("name") or _describe_fields(own, fields))

    # Two configurations with one name, such as an idea before and after an edit, are told apart.
    return _with_digests(names, [json.dumps(own, sort_keys=True) for own in fields])


def _describe_fields(own: Mapping, fields: Sequence[Mapping]) -> str:
    """Return the fields that differ from the default, but not those that all runs share."""
    defaults = {**RUN_DEFAULTS, **Recipe().asdict()}
    parts = []
    for name, value in own.items():
        is_shared = all(other.get(name) == value for other in fields)
        if not is_shared and value != defaults.get(name):
            parts.append(f"{name}={_short_name(value)}")
    return ", ".join(parts) or "default"


def _with_digests(names: Sequence[str], identities: Sequence[str]) -> list[str]:
    """Append a digest to each name that stands for more than one identity."""
    identities_of: dict[str, set[str]] = {}
    for name, identity in zip(names, identities, strict=True):
        identities_of.setdefault(name, set()).add(identity)

    unique = []
    for name, identity in zip(names, identities, strict=True):
        if len(identities_of[name]) > 1:
            digest = hashlib.sha256(identity.encode()).hexdigest()
            name = f"{name} [{digest[:6]}]"
        unique.append(name)
    return unique


def _short_name(value) -> str:
    """Return "Lion" for "__main__.Lion (629d88c127a1)"; other values as they are."""
    if not isinstance(value, str):
        return str(value)
    name, bracket, _ = value.partition(" (")
    return name.split(".")[-1] if bracket else value
