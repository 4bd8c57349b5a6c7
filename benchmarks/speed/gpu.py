"""Train on a GPU with the whole step captured in a CUDA graph.

`python benchmarks/speed/gpu.py`: ten seeds of two recipes, to 98.21% and to 99%; writes
`benchmarks/speed/gpu.json`. The images stay on the device as bytes, and so do the order, the
learning rates and the number of the step, so that one replay of the graph is a whole step: gather,
normalise, warp, forward, backward, AdamW, average. Without a GPU the same steps run on the CPU,
once, and no record is written. The record has the name of the GPU.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.nn import functional as F

from mnist_mlp import EnhancedNet, ImageDataset, evaluate, load
from mnist_mlp.augment import random_warp
from mnist_mlp.storage.files import write_json

RECIPES = {
    "98.21%": {"epochs": 6, "batch_size": 500, "learning_rate": 0.005, "augment_strength": 0.0},
    "99%": {"epochs": 16, "batch_size": 500, "learning_rate": 0.005, "augment_strength": 1.0},
}


def one_cycle(peak: float, steps: int) -> torch.Tensor:
    """Return the rate at every step, as torch's OneCycleLR gives it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates)


def prepare(
    train: ImageDataset, *, epochs: int, batch_size: int,
    learning_rate: float, augment_strength: float, ema_decay: float = 0.99,
) -> Callable[[EnhancedNet, torch.Tensor], EnhancedNet]:  # fmt: skip
    """Return a function that trains from the weights of a model, in an order of the images.

    It takes a model and the order, int64 of shape (steps * batch_size,), on the device of the data,
    and returns the averaged model. On a GPU a step is captured once, for all trainings.
    """
    device = train.images.device
    on_gpu = device.type == "cuda"
    steps = epochs * (len(train) // batch_size)
    generator = torch.cuda.default_generators[device.index or 0] if on_gpu else None
    generator = generator or torch.default_generator
    model = EnhancedNet(len(train.classes)).to(device)
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    rates = one_cycle(learning_rate, steps).to(device)
    order = torch.zeros(steps * batch_size, dtype=torch.int64, device=device)
    within = torch.arange(batch_size, device=device)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    rate = torch.tensor(learning_rate, device=device)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate if on_gpu else learning_rate, fused=True, capturable=on_gpu
    )

    def step() -> None:
        chosen = order.index_select(0, number * batch_size + within)
        images = train.images.index_select(0, chosen).float().div_(255)
        if augment_strength:
            images = random_warp(images, generator, augment_strength)
        images = images.sub_(train.mean).div_(train.std)
        rate.copy_(rates.index_select(0, number)[0])
        if not on_gpu:
            optimizer.param_groups[0]["lr"] = float(rate)
        F.cross_entropy(model(images), train.labels.index_select(0, chosen)).backward()
        optimizer.step()
        for p in parameters:
            p.grad.zero_()
        # The average forgets its beginning: a weight of 1 at first, of 1 - ema_decay at last.
        weight = torch.clamp(9 / (10 + number[0]), min=1 - ema_decay)
        with torch.no_grad():
            for average, p in zip(averages, parameters, strict=True):
                average.lerp_(p, weight)
        number.add_(1)

    def rewind(initial: EnhancedNet) -> None:
        with torch.no_grad():
            values = initial.parameters()
            for p, average, value in zip(parameters, averages, values, strict=True):
                p.copy_(value)
                average.copy_(value)
            for of_parameter in optimizer.state.values():
                for value in of_parameter.values():
                    value.zero_()
        number.zero_()

    replay = step
    if on_gpu:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay

    def train_anew(initial: EnhancedNet, new_order: torch.Tensor) -> EnhancedNet:
        rewind(initial)
        order.copy_(new_order)
        for _ in range(steps):
            replay()
        result = EnhancedNet(len(train.classes)).to(device)
        with torch.no_grad():
            for p, average in zip(result.parameters(), averages, strict=True):
                p.copy_(average)
        return result

    train_anew.reads = step  # the graph reads its tensors, so they must live as long
    return train_anew


def order_of(train: ImageDataset, epochs: int, batch_size: int) -> torch.Tensor:
    """Return the indices of whole batches of every epoch, one after another."""
    whole = len(train) // batch_size * batch_size
    device = train.images.device
    return torch.cat([torch.randperm(len(train), device=device)[:whole] for _ in range(epochs)])


def main() -> None:
    """Time both recipes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = load("mnist")
    train, test = splits.train.to(device), splits.test.to(device)
    record = {"command": "python benchmarks/speed/gpu.py", "recipes": {}}
    for goal, recipe in RECIPES.items():
        seconds, accuracy, train_anew = [], [], prepare(train, **recipe)
        for seed in range(10 if device.type == "cuda" else 1):
            torch.manual_seed(seed)
            initial = EnhancedNet(len(train.classes)).to(device)
            order = order_of(train, recipe["epochs"], recipe["batch_size"])
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            model = train_anew(initial, order)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            accuracy.append(evaluate(model, test).accuracy)
            print(f"{goal}: seed {seed}, {seconds[-1]:.3f} s on {device}, {accuracy[-1]:.2%}")
        record["recipes"][goal] = recipe | {"seconds": seconds, "test_accuracy": accuracy}
        if device.type == "cuda":
            spread = stdev(accuracy)
            print(f"{goal}: {mean(seconds):.3f} s, {mean(accuracy):.2%} ± {100 * spread:.2f}")
    if device.type != "cuda":
        print("No GPU here: this was the CPU, and no record is written.")
        return
    record |= {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    write_json(Path(__file__).with_suffix(".json"), record)


if __name__ == "__main__":
    main()
