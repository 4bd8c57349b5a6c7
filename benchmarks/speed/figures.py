"""Draw the records: `make figures`, or at the end of `make bench` and `make scaling`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from mnist_mlp import plots

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "figures"


def number(value: float, _=None) -> str:
    """Return 0.5 as "0.5", 60000 as "60k"."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def bars(ax: Axes, values: dict[str, float], notes: dict[str, str], unit: str) -> None:
    """Draw a bar for each name, this project's in another colour."""
    colours = [plots.ORANGE if "mnist_mlp" in name else plots.BLUE for name in values]
    ax.barh(list(values), list(values.values()), color=colours, height=0.7)
    ax.set(xlabel=unit)
    ax.xaxis.set_major_formatter(FuncFormatter(number))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    for name, value in values.items():
        ax.annotate(
            notes[name], (value, name), (4, 0), textcoords="offset points", va="center", size=9
        )


def time_to_accuracy(records: dict) -> None:
    """Draw seconds to the goal, and images a second at equal settings, of the newest record."""
    units, record = next(iter(records.items()))
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.4), layout="constrained")
    goal = {k: v for k, v in record["time_to_goal"].items() if "error" not in v}
    goal = dict(sorted(goal.items(), key=lambda item: item[1]["seconds"]))
    ours = goal["mnist_mlp, fast"]["seconds"]
    notes = {
        k: ("" if v["cleared"] else "at least ")
        + f"{v['seconds']:.1f} s"
        + ("" if "fast" in k else f", {v['seconds'] / ours:.1f}x")
        for k, v in goal.items()
    }
    bars(axes[0], {k: v["seconds"] for k, v in goal.items()}, notes, "seconds, logarithmic")
    axes[0].set(xscale="log", xlim=(0.3, 8000))
    axes[0].xaxis.set_major_formatter(FuncFormatter(number))
    axes[0].set_title(f"From files on disk to {record['goal']:.2%} of the test images")
    same = {k: v for k, v in record["equal_settings"].items() if "error" not in v}
    same = dict(sorted(same.items(), key=lambda item: item[1]["epoch_seconds"]))
    notes = {k: number(round(v["images_per_second"], -2)) for k, v in same.items()}
    rates = {k: v["images_per_second"] for k, v in same.items()}
    bars(axes[1], rates, notes, "images a second")
    axes[1].margins(x=0.12)
    axes[1].set_title("Steady state: batch 512, AdamW or Adam")
    cores = record["machine"]["cores"]
    kind = record["machine"]["instructions"] if units == "none" else units
    figure.suptitle(f"{cores} cores with {kind}", x=0.99, ha="right", fontsize=10)
    figure.savefig(FIGURES / "time_to_accuracy.png")
    plt.close(figure)


def scaling(record: dict) -> None:
    """Draw seconds against data, width, batch size and threads, and the peaks of memory."""
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.2), layout="constrained")
    seconds = {
        name: {int(k): v for k, v in points.items()} for name, points in record["seconds"].items()
    }
    for ax, name, what in (
        (axes[0, 0], "images", "training images"),
        (axes[0, 1], "width", "width of the hidden layers, EnhancedNet's = 1"),
    ):
        ax.loglog(seconds[name].keys(), seconds[name].values(), "o-")
        ax.set(xlabel=what, ylabel="seconds an epoch")
    slope = record["exponents"]["images"]
    axes[0, 0].set_title(f"Time grows with the images to the power {slope:.2f}")
    slope = record["exponents"]["width"]
    axes[0, 1].set_ylabel("seconds an epoch of 12,000 images")
    axes[0, 1].set_title(f"and with the width to the power {slope:.2f}")
    axes[0, 1].set_xticks(list(seconds["width"]))
    for ax, ticks in (axes[0, 0], (0.1, 0.3, 1, 3, 10)), (axes[0, 1], (0.1, 0.3, 1, 3)):
        ax.minorticks_off()
        ax.set_yticks(ticks)
    axes[0, 0].set_xticks(list(seconds["images"]))
    ax = axes[1, 0]
    for name in seconds:
        if name.startswith("batch size"):
            points = seconds[name]
            rates = [12_000 / value for value in points.values()]
            ax.plot(points.keys(), rates, "o-", label=name.split(", ")[1])
    ax.set(xscale="log", ylim=(0, None), xlabel="batch size", ylabel="images a second")
    ax.minorticks_off()
    ax.set_xticks(list(points))
    ax.set_title("Larger batches use the cores better")
    ax.legend()
    for ax in axes.flat[:2]:
        ax.xaxis.set_major_formatter(FuncFormatter(number))
        ax.yaxis.set_major_formatter(FuncFormatter(number))
    axes[1, 0].xaxis.set_major_formatter("{x:g}")
    axes[1, 0].yaxis.set_major_formatter(FuncFormatter(number))
    ax = axes[1, 1]
    memory = dict(record["peak_memory_bytes"])
    base = memory.pop("import torch alone")
    extra = {
        name.replace(", ", ",\n").replace(" (", "\n("): (value - base) / 1e6
        for name, value in memory.items()
    }
    colours = [plots.ORANGE if "uint8" in name else plots.BLUE for name in extra]
    ax.barh(list(extra), list(extra.values()), color=colours, height=0.7)
    for name, value in extra.items():
        ax.text(value, name, f" {value:.0f}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="peak memory of training, MB beyond import torch", xlim=(0, None))
    ax.margins(x=0.12)
    ax.set_title("Bytes stay bytes until they are a batch")
    figure.savefig(FIGURES / "scaling.png")
    plt.close(figure)


def main() -> None:
    """Draw what there is a record of."""
    plots.use_style()
    for draw, name in (time_to_accuracy, "bench"), (scaling, "scaling"):
        path = HERE / f"{name}.json"
        if path.exists():
            draw(json.loads(path.read_bytes()))


if __name__ == "__main__":
    main()
