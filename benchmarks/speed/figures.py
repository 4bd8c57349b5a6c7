"""Draw the records of the benchmark and of the scaling.

`make figures` runs this, and so do `make bench` and `make scaling` at their end.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from mnist_mlp import plots

HERE = Path(__file__).parent
FIGURES = HERE.parents[1] / "figures"
FAST = "speedrun"


def number(value: float, _=None) -> str:
    """Format 0.5 as "0.5" and 60000 as "60k"."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


# Where the label of a row goes, in points from its dot, if it would else hit another one.
LABEL_OFFSETS = {
    "torch.compile, bfloat16": (30, 72),
    "JAX, bfloat16": (34, 54),
    "JAX, bfloat16, epochs scanned": (30, 36),
    "Keras on torch, bfloat16": (22, 16),
    "the usual tutorial": (-10, -4),
}


def time_to_accuracy(records: dict) -> None:
    """Draw the newest record: test accuracy against seconds from the shell, a point a row."""
    units, record = next(iter(records.items()))
    figure, ax = plt.subplots(figsize=(10.5, 5.4), layout="constrained")

    for label, row in record["time_to_goal"].items():
        if "error" in row:
            continue
        is_ours = label == FAST or "mnist_mlp" in label
        colour = plots.ORANGE if is_ours else plots.BLUE
        seconds = row["shell_seconds"]
        accuracy = 100 * row["test_accuracy_mean"]
        fill = colour if row["cleared"] else "none"
        ax.plot(seconds, accuracy, "o", markersize=9, color=colour, markerfacecolor=fill)

        digits = 1 if seconds < 10 else 0
        at_least = "" if row["cleared"] else "at least "
        offset = LABEL_OFFSETS.get(label, (9, -4))
        line = None
        if offset[1] > 0:
            line = {"arrowstyle": "-", "color": "grey", "linewidth": 0.8, "relpos": (0, 0.5)}
        ax.annotate(
            f"{label}, {at_least}{seconds:.{digits}f} s",
            (seconds, accuracy),
            offset,
            textcoords="offset points",
            ha="right" if offset[0] < 0 else "left",
            size=10,
            arrowprops=line,
        )

    goal = 100 * record["goal"]
    ax.axhline(goal, color="grey", linewidth=1, linestyle="--")
    ax.annotate(
        f"the goal, {goal:.2f}%",
        (1, goal),
        (-4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        size=10,
        color="grey",
    )
    ax.set(xscale="log", xlim=(0.5, 400))
    ax.xaxis.set_major_formatter(FuncFormatter(number))
    ax.yaxis.set_major_formatter("{x:.1f}%")
    ax.set(xlabel="seconds from the shell to the answer, logarithmic", ylabel="test accuracy")

    cores = record["machine"]["cores"]
    processor = record["machine"]["instructions"] if units == "none" else units
    ax.set_title(f"MNIST with five layers, on {cores} cores with {processor}")
    figure.savefig(FIGURES / "time_to_accuracy.png")
    plt.close(figure)


def scaling(record: dict) -> None:
    """Draw the seconds against images, width, batch size and threads, and the peak memory."""
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 7.2), layout="constrained")
    (by_images, by_width), (by_batch_size, by_memory) = axes
    seconds = {}
    for name, points in record["seconds"].items():
        seconds[name] = {int(x): value for x, value in points.items()}

    by_images.loglog(seconds["images"].keys(), seconds["images"].values(), "o-")
    by_images.set(xlabel="training images", ylabel="seconds an epoch")
    slope = record["exponents"]["images"]
    by_images.set_title(f"Time grows with the images to the power {slope:.2f}")
    by_images.set_xticks(list(seconds["images"]))
    by_images.set_yticks((0.1, 0.3, 1, 3, 10))

    by_width.loglog(seconds["width"].keys(), seconds["width"].values(), "o-")
    by_width.set(xlabel="width of the hidden layers, EnhancedNet's = 1")
    by_width.set(ylabel="seconds an epoch of 12,000 images")
    slope = record["exponents"]["width"]
    by_width.set_title(f"and with the width to the power {slope:.2f}")
    by_width.set_xticks(list(seconds["width"]))
    by_width.set_yticks((0.1, 0.3, 1, 3))

    for ax in (by_images, by_width):
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(FuncFormatter(number))
        ax.yaxis.set_major_formatter(FuncFormatter(number))

    for name, points in seconds.items():
        if name.startswith("batch size"):
            rates = [12_000 / value for value in points.values()]
            by_batch_size.plot(points.keys(), rates, "o-", label=name.split(", ")[1])
            by_batch_size.set(xscale="log")
            by_batch_size.set_xticks(list(points))
    by_batch_size.set(ylim=(0, None), xlabel="batch size", ylabel="images a second")
    by_batch_size.minorticks_off()
    by_batch_size.xaxis.set_major_formatter("{x:g}")
    by_batch_size.yaxis.set_major_formatter(FuncFormatter(number))
    by_batch_size.set_title("Larger batches use the cores better")
    by_batch_size.legend()

    memory = dict(record["peak_memory_bytes"])
    torch_alone = memory.pop("import torch alone")
    megabytes = {}
    for name, value in memory.items():
        label = name.replace(", ", ",\n").replace(" (", "\n(")
        megabytes[label] = (value - torch_alone) / 1e6
    colours = [plots.ORANGE if "uint8" in label else plots.BLUE for label in megabytes]
    by_memory.barh(list(megabytes), list(megabytes.values()), color=colours, height=0.7)
    for label, value in megabytes.items():
        by_memory.text(value, label, f" {value:.0f}", va="center", fontsize=9)
    by_memory.invert_yaxis()
    by_memory.grid(visible=False, axis="y")
    by_memory.set(xlabel="peak memory of training, MB beyond import torch", xlim=(0, None))
    by_memory.margins(x=0.12)
    by_memory.set_title("Bytes stay bytes until they are a batch")

    figure.savefig(FIGURES / "scaling.png")
    plt.close(figure)


def main() -> None:
    """Draw both records."""
    plots.use_style()
    time_to_accuracy(json.loads((HERE / "bench.json").read_bytes()))
    scaling(json.loads((HERE / "scaling.json").read_bytes()))


if __name__ == "__main__":
    main()
