"""The benchmark's contestants train one network, each with the usual means of its library.

`python benchmarks/speed/baselines.py NAME '{"seed": 0, "epochs": 3, ...}'` trains one contestant
and prints a line of JSON: the seconds of each phase, and the accuracy on the test images.
`bench.py` sets two environment variables for it: MNIST_ROOT is the folder of MNIST, and SPLIT is
the file with the indices of the training and validation images.

All contestants train 784-512-256-128-64-10 with ReLU on the same 55,000 images; the speedrun
chooses its 55,000 images itself. Each one is a
function in `TRAINERS`; its keyword arguments are its settings. It calls `record_phase("import")`,
then `record_phase("load")`, and after each epoch `record_phase("epoch", predict)`. `predict` takes
uint8 images of shape (N, 28, 28) and returns their labels, of shape (N,).
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

SIZES = (784, 512, 256, 128, 64, 10)


def read_mnist(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, 28, 28), and the labels, int64 (N,), of "train" or "t10k"."""
    path = f"{os.environ['MNIST_ROOT']}/MNIST/raw/{prefix}"

    # The headers of these files have 16 bytes for images and 8 for labels.
    images = np.fromfile(f"{path}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(f"{path}-labels-idx1-ubyte", np.uint8)[8:].astype(np.int64)
    return images, labels


def read_indices(name: str) -> np.ndarray:
    """Return the indices of the "train" or the "validation" images."""
    with np.load(os.environ["SPLIT"]) as split:
        return split[name]


def inputs(images: np.ndarray) -> np.ndarray:
    """Return normalised images, float32 of shape (N, 784)."""
    return (images.reshape(-1, 784) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)


def training_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and the labels of the training images."""
    images, labels = read_mnist("train")
    indices = read_indices("train")
    return inputs(images[indices]), labels[indices]


def random_batches(random: np.random.Generator, count: int, batch_size: int) -> np.ndarray:
    """Return the indices of whole batches in random order, of shape (steps, batch_size)."""
    steps = count // batch_size
    return random.permutation(count)[: steps * batch_size].reshape(steps, batch_size)


def learning_rates(schedule: str, learning_rate: float, steps: int) -> Callable[[int], float]:
    """Return a function that takes the number of a step and returns its learning rate.

    Args:
        schedule: "constant" or "one-cycle", which is torch's OneCycleLR: the rate rises for 30% of
            the steps and then falls, both along a cosine.
        learning_rate: The highest rate.
        steps: The number of steps of the whole training.
    """
    # OneCycleLR starts at 1/25 of the highest rate, and ends at 1/10,000 of that start.
    first = learning_rate / 25
    last = first / 1e4
    peak_step = 0.3 * steps - 1

    def rate(step: int) -> float:
        if schedule == "constant":
            return learning_rate

        if step <= peak_step:
            start, end = first, learning_rate
            progress = step / peak_step
        else:
            start, end = learning_rate, last
            progress = (step - peak_step) / (steps - 1 - peak_step)
        return end + (start - end) * (1 + np.cos(np.pi * progress)) / 2

    return rate


def torch_network():
    """Return the network as a tutorial builds it in torch."""
    from torch import nn

    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(SIZES):
        layers.append(nn.Linear(n_in, n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def torch_predict(model):
    """Return the function that predicts labels with a torch model."""
    import torch

    def predict(images):
        model.eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs(images))).float()
        model.train()
        return logits.argmax(1).numpy()

    return predict


def usual_loader(batch_size: int):
    """Return a DataLoader that reads torchvision's MNIST image by image."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    mnist = datasets.MNIST(os.environ["MNIST_ROOT"], train=True, transform=transform)
    train = torch.utils.data.Subset(mnist, read_indices("train"))
    return torch.utils.data.DataLoader(train, batch_size=batch_size, shuffle=True)


def fast(record_phase, *, seed, **settings):
    """Train as `speedrun.py` does; `settings` are those of that file."""
    import speedrun

    record_phase("import")

    images, labels = speedrun.read_mnist("train", 60_000)
    record_phase("load")

    state = speedrun.train(images, labels, seed, settings)
    record_phase("epoch", partial(speedrun.predict, state))


def ours(record_phase, *, seed, validate=True, **settings):
    """Train with this repository's `fit`; `settings` are fields of its `Recipe`."""
    import torch

    from mnist_mlp import EnhancedNet, Recipe, fit, load

    record_phase("import")

    splits = load("mnist", seed=seed)
    validation = splits.validation
    if not validate:
        validation = validation.subset(torch.arange(1))  # one image takes no time
    record_phase("load")

    start = time.perf_counter()
    torch.manual_seed(seed)
    model = EnhancedNet()
    recipe = Recipe(seed=seed, augment_strength=0.0, **settings)
    history = fit(model, splits.train, validation, recipe, progress=False)

    # `fit` has timed the epochs. The rest of its time counts as part of the first epoch.
    fit_seconds = time.perf_counter() - start
    seconds = [epoch["seconds"] for epoch in history.epochs]
    seconds[0] += fit_seconds - sum(seconds)
    for epoch_seconds in seconds:
        record_phase("epoch", torch_predict(model), seconds=epoch_seconds)


def tutorial(record_phase, *, seed, epochs, batch_size, learning_rate):
    """Train as PyTorch's tutorials do: a DataLoader, and Adam at a constant rate."""
    import torch
    import torchvision  # noqa: F401 (`usual_loader` needs it; here it counts as import)
    from torch.nn import functional as F

    record_phase("import")

    batches = usual_loader(batch_size)
    record_phase("load")

    torch.manual_seed(seed)
    model = torch_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    for _ in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        record_phase("epoch", torch_predict(model))


def torch_compile(
    record_phase,
    *,
    seed,
    epochs,
    batch_size,
    learning_rate,
    label_smoothing=0.0,
    bfloat16=False,
    schedule="one-cycle",
):
    """Train in PyTorch with a compiled network and loss; all images are in one tensor."""
    import torch
    from torch.nn import functional as F

    record_phase("import")

    image_array, label_array = training_arrays()
    images = torch.from_numpy(image_array)
    labels = torch.from_numpy(label_array)
    record_phase("load")

    torch.manual_seed(seed)
    model = torch_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    steps = len(labels) // batch_size
    rate = learning_rates(schedule, learning_rate, epochs * steps)

    @torch.compile(dynamic=False)
    def compiled_loss(images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)

    for epoch in range(epochs):
        order = torch.randperm(len(labels))[: steps * batch_size]
        for step, batch in enumerate(order.split(batch_size), start=epoch * steps):
            optimizer.param_groups[0]["lr"] = rate(step)
            loss = compiled_loss(images[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        record_phase("epoch", torch_predict(model))


def lightning(
    record_phase,
    *,
    seed,
    epochs,
    batch_size,
    learning_rate,
    label_smoothing=0.0,
    bfloat16=False,
    schedule="one-cycle",
):
    """Train with PyTorch Lightning's Trainer and a DataLoader."""
    import lightning
    import torch
    import torchvision  # noqa: F401 (`usual_loader` needs it; here it counts as import)
    from torch.nn import functional as F

    record_phase("import")

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = usual_loader(batch_size)
    record_phase("load")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = torch_network()

        def forward(self, images):
            return self.network(images)

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self(images), labels, label_smoothing=label_smoothing)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, fused=True)
            if schedule == "constant":
                return optimizer
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, learning_rate, total_steps=epochs * len(batches)
            )
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def on_train_epoch_end(self):
            record_phase("epoch", torch_predict(self))

    lightning.seed_everything(seed, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision="bf16-mixed" if bfloat16 else "32-true",
    )
    trainer.fit(Module(), batches)


def keras(
    record_phase,
    *,
    backend,
    seed,
    epochs,
    batch_size,
    learning_rate,
    label_smoothing=0.0,
    bfloat16=False,
    schedule="one-cycle",
):
    """Train with Keras's `fit` on the backend "jax" or "torch"."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    record_phase("import")

    images, labels = training_arrays()
    labels = keras.utils.to_categorical(labels)
    record_phase("load")

    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if bfloat16 else "float32")
    hidden = [keras.layers.Dense(size, activation="relu") for size in SIZES[1:-1]]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])

    rate = learning_rate
    if schedule == "one-cycle":
        steps = epochs * int(np.ceil(len(labels) / batch_size))

        # This is one-cycle, except that the rate rises in a straight line and falls to 0.
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / 25,
            decay_steps=int(0.7 * steps),
            warmup_target=learning_rate,
            warmup_steps=int(0.3 * steps),
        )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.01),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing),
    )

    def predict(images):
        return model.predict(inputs(images), batch_size=5000, verbose=0).argmax(1)

    class RecordEpochs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            record_phase("epoch", predict)

    model.fit(
        images,
        labels,
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[RecordEpochs()],
    )


def jax(
    record_phase,
    *,
    seed,
    epochs,
    batch_size,
    learning_rate,
    label_smoothing=0.0,
    scan=False,
    bfloat16=False,
    schedule="one-cycle",
):
    """Train with JAX and Optax, with one compiled call per step or, if `scan`, per epoch."""
    import jax
    import jax.numpy as jnp
    import optax

    record_phase("import")

    images, labels = training_arrays()
    record_phase("load")

    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    params = []
    for key, n_in, n_out in zip(keys, SIZES[:-1], SIZES[1:], strict=True):
        weight = jax.random.uniform(key, (n_in, n_out), minval=-1, maxval=1) / n_in**0.5
        params.append((weight, jnp.zeros(n_out)))

    rate = learning_rate
    if schedule == "one-cycle":
        steps = epochs * (len(labels) // batch_size)
        rate = optax.cosine_onecycle_schedule(steps, learning_rate)
    optimizer = optax.adamw(rate, weight_decay=0.01)

    def network(params, x):
        for i, (weight, bias) in enumerate(params):
            x = jnp.dot(x.astype(dtype), weight.astype(dtype), preferred_element_type=jnp.float32)
            x = x + bias
            if i < len(params) - 1:
                x = jax.nn.relu(x)
        return x

    def loss(params, x, y):
        targets = optax.smooth_labels(jax.nn.one_hot(y, SIZES[-1]), label_smoothing)
        return optax.softmax_cross_entropy(network(params, x), targets).mean()

    def train_step(state, x, y):
        params, moments = state
        gradients = jax.grad(loss)(params, x, y)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    if scan:
        # All images are on the device, so that one compiled call can train for a whole epoch.
        device_images = jnp.asarray(images)
        device_labels = jnp.asarray(labels)

        def scan_step(state, batch):
            return train_step(state, device_images[batch], device_labels[batch]), None

        @jax.jit
        def train_epoch(state, order):
            state, _ = jax.lax.scan(scan_step, state, order)
            return state

    else:
        compiled_step = jax.jit(train_step, donate_argnums=0)

        def train_epoch(state, order):
            for batch in order:
                state = compiled_step(state, images[batch], labels[batch])
            return state

    @jax.jit
    def predicted_labels(params, x):
        return network(params, x).argmax(1)

    def predict(params, images):
        return np.asarray(predicted_labels(params, inputs(images)))

    state = (params, optimizer.init(params))
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        state = train_epoch(state, random_batches(random, len(labels), batch_size))
        jax.block_until_ready(state)
        record_phase("epoch", partial(predict, state[0]))


def scikit_learn(record_phase, *, seed, epochs, batch_size, learning_rate):
    """Train scikit-learn's MLPClassifier, with Adam at a constant rate."""
    from sklearn.neural_network import MLPClassifier

    record_phase("import")

    images, labels = training_arrays()
    record_phase("load")

    model = MLPClassifier(
        SIZES[1:-1], batch_size=batch_size, learning_rate_init=learning_rate, random_state=seed
    )

    def predict(images):
        return model.predict(inputs(images))

    for _ in range(epochs):
        model.partial_fit(images, labels, classes=np.arange(10))
        record_phase("epoch", predict)


def plain_numpy(
    record_phase,
    *,
    seed,
    epochs,
    batch_size,
    learning_rate,
    label_smoothing=0.0,
    schedule="one-cycle",
):
    """Train in NumPy alone, with gradients and AdamW written out."""
    record_phase("import")

    images, labels = training_arrays()
    record_phase("load")

    random = np.random.default_rng(seed)
    params = []  # weight and bias of each layer, in turn
    for n_in, n_out in pairwise(SIZES):
        bound = n_in**-0.5
        params.append(random.uniform(-bound, bound, (n_in, n_out)).astype(np.float32))
        params.append(random.uniform(-bound, bound, n_out).astype(np.float32))
    weights = params[0::2]
    biases = params[1::2]
    first_moments = [np.zeros_like(param) for param in params]
    second_moments = [np.zeros_like(param) for param in params]

    def forward(x):
        """Return the inputs of all layers and the logits."""
        layer_inputs = []
        for weight, bias in zip(weights, biases, strict=True):
            if layer_inputs:  # this is not the first layer
                x = np.maximum(x, 0)
            layer_inputs.append(x)
            x = x @ weight + bias
        return layer_inputs, x

    def backward(layer_inputs, logits, targets):
        """Return the gradients of the mean cross-entropy, in the order of `params`."""
        # The gradient with respect to the logits is the softmax minus the smoothed targets.
        gradient = np.exp(logits - logits.max(1, keepdims=True))
        gradient /= gradient.sum(1, keepdims=True)
        gradient -= label_smoothing / SIZES[-1]
        gradient[np.arange(len(targets)), targets] -= 1 - label_smoothing
        gradient /= len(targets)

        gradients = []
        for layer in reversed(range(len(weights))):
            x = layer_inputs[layer]
            gradients.insert(0, gradient.sum(0))  # of the bias
            gradients.insert(0, x.T @ gradient)  # of the weight
            if layer > 0:
                gradient = gradient @ weights[layer].T * (x > 0)
        return gradients

    def predict(images):
        _, logits = forward(inputs(images))
        return logits.argmax(1)

    steps = len(labels) // batch_size
    rate = learning_rates(schedule, learning_rate, epochs * steps)
    step = 0
    for _ in range(epochs):
        for batch in random_batches(random, len(labels), batch_size):
            layer_inputs, logits = forward(images[batch])
            gradients = backward(layer_inputs, logits, labels[batch])

            # AdamW with betas of 0.9 and 0.999; `scale` corrects the bias of both moments.
            lr = rate(step)
            step += 1
            scale = np.float32((1 - 0.999**step) ** 0.5 / (1 - 0.9**step))
            for param, gradient, first, second in zip(
                params, gradients, first_moments, second_moments, strict=True
            ):
                first += np.float32(0.1) * (gradient - first)
                second += np.float32(0.001) * (gradient * gradient - second)
                param *= np.float32(1 - lr * 0.01)
                param -= np.float32(lr) * scale * first / (np.sqrt(second) + np.float32(1e-8))
        record_phase("epoch", predict)


TRAINERS = {
    "speedrun": fast,
    "mnist_mlp": ours,
    "tutorial": tutorial,
    "lightning": lightning,
    "keras": keras,
    "jax": jax,
    "torch.compile": torch_compile,
    "scikit-learn": scikit_learn,
    "numpy": plain_numpy,
}


class Stopwatch:
    """Record the phases of one training.

    A phase does not include the time that `record_phase` takes.

    Attributes:
        result: The seconds of "import" and "load", and a list with the seconds of each "epoch".
        predict: The function that predicts labels after the latest epoch.
    """

    def __init__(self, after_epoch: Callable[[Callable], None] | None):
        """Start the first phase.

        Args:
            after_epoch: Called with `predict` after each epoch.
        """
        self.after_epoch = after_epoch
        self.result = {"epoch": []}
        self.predict = None
        self.phase_began = time.perf_counter()

    def record_phase(self, phase, predict=None, seconds=None):
        """End a phase and start the next one.

        Args:
            phase: "import", "load" or "epoch".
            predict: The function that predicts labels, after an epoch.
            seconds: The duration of the phase, if the contestant has measured it itself.
        """
        if seconds is None:
            seconds = time.perf_counter() - self.phase_began

        if phase == "epoch":
            self.result["epoch"].append(seconds)
            self.predict = predict
            if self.after_epoch:
                self.after_epoch(predict)
        else:
            self.result[phase] = seconds

        self.phase_began = time.perf_counter()


def main(name: str, settings: dict) -> dict:
    """Train a contestant and return its seconds and accuracies.

    Args:
        name: A key of `TRAINERS`.
        settings: The keyword arguments of that function. A further one, `validate_after`, is for
            the choice of settings: with "each epoch" or "last epoch", the result has validation
            accuracies and no test accuracy.
    """
    validate_after = settings.pop("validate_after", None)
    accuracies = []

    if validate_after:
        images, labels = read_mnist("train")
        indices = read_indices("validation")
        validation_images = images[indices]
        validation_labels = labels[indices]

    def validate(predict):
        accuracies.append(float((predict(validation_images) == validation_labels).mean()))

    stopwatch = Stopwatch(after_epoch=validate if validate_after == "each epoch" else None)
    TRAINERS[name](stopwatch.record_phase, **settings)

    if validate_after == "last epoch":
        validate(stopwatch.predict)
    if validate_after:
        return {**stopwatch.result, "validation_accuracy": accuracies}

    test_images, test_labels = read_mnist("t10k")
    correct = stopwatch.predict(test_images) == test_labels
    return {**stopwatch.result, "test_accuracy": float(correct.mean())}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))), flush=True)
