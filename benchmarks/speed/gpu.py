"""Train on a GPU with the whole step captured in a CUDA graph.

`python benchmarks/speed/gpu.py` trains two recipes, one to 98.21% and one to 99%, with ten seeds
each. It writes `benchmarks/speed/gpu.json` with the name of the GPU. The images (as bytes), their
order, the learning rates and the number of the step all stay on the device. So one replay of the
graph takes a whole step: gather, warp, normalise, forward, backward, AdamW, average. Without a GPU
the same steps run on the CPU with one seed, and no record is written.
"""

import time
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.nn import functional as F

from mnist_mlp import EnhancedNet, ImageDataset, evaluate, load
from mnist_mlp.augment import random_warp
from mnist_mlp.data import MEAN, STD
from mnist_mlp.files import write_json

RECIPES = {
    "98.21%": {"epochs": 6, "batch_size": 500, "learning_rate": 0.005, "augment_strength": 0.0},
    "99%": {"epochs": 16, "batch_size": 500, "learning_rate": 0.005, "augment_strength": 1.0},
}
SEEDS = range(10)


def one_cycle(peak: float, steps: int) -> torch.Tensor:
    """Return the learning rate of torch's OneCycleLR at every step, of shape (steps,)."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return torch.tensor(rates)


class CapturedTraining:
    """Train any number of times with one recipe; on a GPU, the step is captured only once.

    The graph reads and writes the memory of tensors that are attributes here. So no method may
    replace one of them; each is changed in place.
    """

    def __init__(
        self,
        train: ImageDataset,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        augment_strength: float,
        ema_decay: float = 0.99,
    ):
        device = train.images.device
        self.on_gpu = device.type == "cuda"
        self.train = train
        self.batch_size = batch_size
        self.augment_strength = augment_strength
        self.ema_decay = ema_decay
        self.steps = epochs * (len(train) // batch_size)

        self.generator = torch.default_generator
        if self.on_gpu:
            self.generator = torch.cuda.default_generators[device.index or 0]

        self.model = EnhancedNet(len(train.classes)).to(device)
        self.parameters = list(self.model.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

        # A replay cannot take arguments, so a step reads these.
        self.order = torch.zeros(self.steps * batch_size, dtype=torch.int64, device=device)
        self.within_batch = torch.arange(batch_size, device=device)
        self.step_number = torch.zeros(1, dtype=torch.int64, device=device)
        self.rates = one_cycle(learning_rate, self.steps).to(device)
        self.rate = torch.tensor(learning_rate, device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.rate if self.on_gpu else learning_rate,
            fused=True,
            capturable=self.on_gpu,
        )

        self.replay = self.capture() if self.on_gpu else self.step

    def capture(self):
        """Capture a step and return the function that replays it."""
        # PyTorch asks for a few warm-up steps on another stream before a capture.
        warm_up_stream = torch.cuda.Stream()
        warm_up_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up_stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(warm_up_stream)

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def step(self) -> None:
        """Take one step."""
        positions = self.step_number * self.batch_size + self.within_batch
        indices = self.order.index_select(0, positions)
        images = self.train.images.index_select(0, indices).float().div_(255)
        labels = self.train.labels.index_select(0, indices)
        if self.augment_strength:
            images = random_warp(images, self.generator, self.augment_strength)
        images = images.sub_(MEAN).div_(STD)

        self.rate.copy_(self.rates.index_select(0, self.step_number)[0])
        if not self.on_gpu:
            self.optimizer.param_groups[0]["lr"] = float(self.rate)

        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad.zero_()

        # The weight of the newest weights falls from 0.9 to 1 - ema_decay, so the average soon
        # forgets the initial weights.
        weight = torch.clamp(9 / (10 + self.step_number[0]), min=1 - self.ema_decay)
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.lerp_(parameter, weight)
        self.step_number.add_(1)

    @torch.no_grad()
    def rewind(self, initial: EnhancedNet) -> None:
        """Start again from the weights of a model."""
        for parameter, average, value in zip(
            self.parameters, self.averages, initial.parameters(), strict=True
        ):
            parameter.copy_(value)
            average.copy_(value)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.step_number.zero_()

    def run(self, initial: EnhancedNet, order: torch.Tensor) -> EnhancedNet:
        """Train from the weights of a model and return the averaged one.

        Args:
            initial: A model on the device of the data; it does not change.
            order: The indices of the images, int64 of shape (steps * batch_size,).
        """
        self.rewind(initial)
        self.order.copy_(order)
        for _ in range(self.steps):
            self.replay()

        result = EnhancedNet(len(self.train.classes)).to(order.device)
        with torch.no_grad():
            for parameter, average in zip(result.parameters(), self.averages, strict=True):
                parameter.copy_(average)
        return result


def random_order(train: ImageDataset, epochs: int, batch_size: int) -> torch.Tensor:
    """Return the indices of all batches of all epochs, one after another.

    An epoch leaves out the images that would not fill a batch.
    """
    images_per_epoch = len(train) // batch_size * batch_size
    epoch_orders = []
    for _ in range(epochs):
        order = torch.randperm(len(train), device=train.images.device)
        epoch_orders.append(order[:images_per_epoch])
    return torch.cat(epoch_orders)


def main() -> None:
    """Time both recipes and write the record."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    synchronize = torch.cuda.synchronize if on_gpu else torch.cpu.synchronize
    splits = load("mnist")
    train = splits.train.to(device)
    test = splits.test.to(device)

    results = {}
    for goal, recipe in RECIPES.items():
        training = CapturedTraining(train, **recipe)
        seconds = []
        accuracies = []
        for seed in SEEDS if on_gpu else SEEDS[:1]:
            torch.manual_seed(seed)
            initial = EnhancedNet(len(train.classes)).to(device)
            order = random_order(train, recipe["epochs"], recipe["batch_size"])

            synchronize()
            start = time.perf_counter()
            model = training.run(initial, order)
            synchronize()
            seconds.append(time.perf_counter() - start)
            accuracies.append(evaluate(model, test).accuracy)
            print(f"{goal}: seed {seed}, {seconds[-1]:.3f} s on {device}, {accuracies[-1]:.2%}")

        results[goal] = {
            **recipe,
            "seeds": len(seconds),
            "seconds": mean(seconds),
            "test_accuracy_mean": mean(accuracies),
            "test_accuracy_stdev": stdev(accuracies) if on_gpu else 0.0,
        }

    if not on_gpu:
        print("No GPU here: this was the CPU, and no record is written.")
        return
    record = {
        "command": "python benchmarks/speed/gpu.py",
        "recipes": results,
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
    }
    write_json(Path(__file__).with_suffix(".json"), record)


if __name__ == "__main__":
    main()
