"""The contestants of the benchmark: one network, trained with the usual means of each library.

`python benchmarks/speed/baselines.py NAME '{"seed": 0, "epochs": 3, ...}'` trains one contestant in
this process and prints one line of JSON: the seconds of each phase, and the accuracy on validation
and test images. $MNIST_ROOT holds MNIST, and the file $SPLIT holds the indices of the training and
the validation images; `bench.py` sets both.

A contestant is a function of its settings and of `record_phase(phase, predict)`, which it calls
after "import", after "load" and after each "epoch". `predict` returns the labels, (N,), of uint8
images (N, 28, 28). The time that `record_phase` itself takes is not counted. All contestants train
784-512-256-128-64-10 with ReLU on the same 55,000 images.
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


def read_mnist(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, 28, 28), and the labels, int64 (N,), of "train" or "t10k"."""
    path = f"{os.environ['MNIST_ROOT']}/MNIST/raw/{part}"
    images = np.fromfile(f"{path}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    labels = np.fromfile(f"{path}-labels-idx1-ubyte", np.uint8)[8:].astype(np.int64)
    return images, labels


def read_indices(part: str) -> np.ndarray:
    """Return the indices of the "train" or the "validation" images."""
    with np.load(os.environ["SPLIT"]) as split:
        return split[part]


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
    """Return the function of the step that gives the learning rate.

    Args:
        schedule: "constant", or "one-cycle" as torch's OneCycleLR: up for 30% of the steps along a
            cosine, then down.
        learning_rate: The highest rate.
        steps: The number of all steps.
    """
    first = learning_rate / 25
    last = learning_rate / 25e4
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
    """Return the network as a tutorial writes it."""
    from torch import nn

    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(SIZES):
        layers.append(nn.Linear(n_in, n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


def torch_predict(model):
    """Return the `predict` of a torch model."""
    import torch

    def predict(images):
        model.eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs(images))).float()
        model.train()
        return logits.argmax(1).numpy()

    return predict


def usual_loader(batch_size: int):
    """Return torchvision's MNIST behind an ordinary DataLoader, image by image."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    mnist = datasets.MNIST(os.environ["MNIST_ROOT"], train=True, transform=transform)
    train = torch.utils.data.Subset(mnist, read_indices("train"))
    return torch.utils.data.DataLoader(train, batch_size=batch_size, shuffle=True)


def ours(record_phase, *, seed, validate=True, **settings):
    import torch

    from mnist_mlp import EnhancedNet, Recipe, fit, load

    record_phase("import")

    splits = load("mnist", seed=seed)
    validation = splits.validation
    if not validate:
        validation = validation.subset(torch.arange(1))
    record_phase("load")

    start = time.perf_counter()
    torch.manual_seed(seed)
    model = EnhancedNet()
    recipe = Recipe(seed=seed, augment_strength=0.0, **settings)
    history = fit(model, splits.train, validation, recipe, progress=False)

    # What `fit` does once, before and after the epochs, counts as part of the first one.
    seconds = [epoch["seconds"] for epoch in history.epochs]
    seconds[0] += time.perf_counter() - start - sum(seconds)
    for epoch_seconds in seconds:
        record_phase("epoch", torch_predict(model), seconds=epoch_seconds)


def tutorial(record_phase, *, seed, epochs, batch_size, learning_rate):
    import torch
    import torchvision  # noqa: F401
    from torch.nn import functional as F

    record_phase("import")

    batches = usual_loader(batch_size)
    record_phase("load")

    torch.manual_seed(seed)
    model = torch_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
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
    def loss_of(images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)

    for epoch in range(epochs):
        order = torch.randperm(len(labels))[: steps * batch_size]
        for step, batch in enumerate(order.split(batch_size), start=epoch * steps):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            loss_of(images[batch], labels[batch]).backward()
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
    import lightning
    import torch
    import torchvision  # noqa: F401
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

    if scan:  # one compiled call for a whole epoch, with all images on the device
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
        """Return the input of each layer, and the logits."""
        layer_inputs = []
        for weight, bias in zip(weights, biases, strict=True):
            if layer_inputs:
                x = np.maximum(x, 0)
            layer_inputs.append(x)
            x = x @ weight + bias
        return layer_inputs, x

    def backward(layer_inputs, logits, targets):
        """Return the gradients of the mean cross-entropy, in the order of the parameters."""
        gradient = np.exp(logits - logits.max(1, keepdims=True))
        gradient /= gradient.sum(1, keepdims=True)
        gradient -= label_smoothing / SIZES[-1]
        gradient[np.arange(len(targets)), targets] -= 1 - label_smoothing
        gradient /= len(targets)

        gradients = []
        for layer in reversed(range(len(weights))):
            x = layer_inputs[layer]
            gradients.insert(0, gradient.sum(0))
            gradients.insert(0, x.T @ gradient)
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

            # AdamW, with the corrections of both moments in one factor.
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


CONTESTANTS = {
    "mnist_mlp": ours,
    "tutorial": tutorial,
    "lightning": lightning,
    "keras": keras,
    "jax": jax,
    "torch.compile": torch_compile,
    "scikit-learn": scikit_learn,
    "numpy": plain_numpy,
}


def main(name: str, settings: dict) -> dict:
    """Train a contestant and return its seconds and accuracies.

    With the setting `judge_each_epoch` the validation accuracy after each epoch is returned, and
    the test images are not read.
    """
    judge_each_epoch = settings.pop("judge_each_epoch", False)
    images, labels = read_mnist("train")
    validation = read_indices("validation")
    result = {"epoch": [], "validation_accuracy": []}
    predict = None
    phase_began = time.perf_counter()

    def judge():
        correct = predict(images[validation]) == labels[validation]
        result["validation_accuracy"].append(float(correct.mean()))

    def record_phase(phase, new_predict=None, seconds=None):
        nonlocal predict, phase_began
        if seconds is None:
            seconds = time.perf_counter() - phase_began

        if phase == "epoch":
            result["epoch"].append(seconds)
            predict = new_predict
            if judge_each_epoch:
                judge()
        else:
            result[phase] = seconds

        phase_began = time.perf_counter()

    CONTESTANTS[name](record_phase, **settings)

    if not judge_each_epoch:
        judge()
        test_images, test_labels = read_mnist("t10k")
        result["test_accuracy"] = float((predict(test_images) == test_labels).mean())
    return result


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
