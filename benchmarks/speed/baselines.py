"""The same network, trained with each library's usual means: the baselines of the benchmark.

`python benchmarks/speed/baselines.py NAME '{"seed": 0, "epochs": 3, ...}'` trains one baseline in
this process and prints one line of JSON: seconds of each phase, accuracy on validation and test
images. A baseline is a function of its settings and of `done(phase, predict)`, to be called after
"import", "load" and each "epoch"; `predict` maps uint8 images (N, 28, 28) to labels. The time of
`done` itself is not counted. All train 784-512-256-128-64-10 with ReLU on the same 55,000 images.
"""

import json
import os
import sys
import time
from itertools import pairwise

import numpy as np

ROOT = os.environ["MNIST_ROOT"]
SIZES = (784, 512, 256, 128, 64, 10)


def read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, 28, 28), and labels of one of MNIST's two parts."""
    raw = f"{ROOT}/MNIST/raw/{part}"
    images = np.fromfile(f"{raw}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
    return images, np.fromfile(f"{raw}-labels-idx1-ubyte", np.uint8)[8:].astype(np.int64)


def inputs(images: np.ndarray) -> np.ndarray:
    """Return float32 of shape (N, 784), normalised."""
    return (images.reshape(-1, 784) / np.float32(255) - np.float32(0.1307)) / np.float32(0.3081)


def training_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of the training images."""
    images, labels = read("train")
    return inputs(images[TRAIN]), labels[TRAIN]


def one_cycle(learning_rate: float, steps: int):
    """Return the rate at a step, as torch's OneCycleLR: up for 30% of the steps, then down."""
    peak = 0.3 * steps - 1

    def rate(step: int) -> float:
        low, high, last = learning_rate / 25, learning_rate, learning_rate / 25e4
        if step <= peak:
            return high + (low - high) * (1 + np.cos(np.pi * step / peak)) / 2
        return last + (high - last) * (1 + np.cos(np.pi * (step - peak) / (steps - 1 - peak))) / 2

    return rate


def torch_network():
    """Return the network as a tutorial writes it."""
    from torch import nn

    layers = [nn.Flatten()]
    for n_in, n_out in pairwise(SIZES):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def torch_predict(model):
    """Return a torch model's `predict`."""
    import torch

    def predict(images):
        model.eval()
        with torch.no_grad():
            answer = model(torch.from_numpy(inputs(images))).float().argmax(1).numpy()
        model.train()
        return answer

    return predict


def usual_loader(batch_size: int):
    """Return torchvision's MNIST behind an ordinary DataLoader, image by image."""
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    train = torch.utils.data.Subset(datasets.MNIST(ROOT, train=True, transform=transform), TRAIN)
    return torch.utils.data.DataLoader(train, batch_size=batch_size, shuffle=True)


def ours(
    done, *, seed, validate=True, iterations=3, flush_denormal=False, keep_memory=True, mkl=False,
    **settings,
):  # fmt: skip
    from functools import partial

    import torch

    from mnist_mlp import EnhancedNet, Recipe, fit, load, train
    from mnist_mlp.optim import muon

    done("import")
    torch.set_flush_denormal(flush_denormal)
    muon.newton_schulz = partial(muon.newton_schulz, iterations=iterations)
    if not keep_memory:
        train.keep_freed_memory = lambda: None
    if mkl:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    splits = load("mnist", seed=seed)
    validation = splits.validation if validate else splits.validation.subset(torch.arange(1))
    done("load")
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = EnhancedNet()
    recipe = Recipe(seed=seed, augment_strength=0.0, **settings)
    history = fit(model, splits.train, validation, recipe, progress=False)
    seconds = [epoch["seconds"] for epoch in history.epochs]
    seconds[0] += time.perf_counter() - start - sum(seconds)  # what is done once counts too
    for each in seconds:
        done("epoch", torch_predict(model), seconds=each)


def tutorial(done, *, seed, epochs, batch_size, learning_rate):
    import torch
    import torchvision  # noqa: F401
    from torch.nn import functional as F

    done("import")
    batches = usual_loader(batch_size)
    done("load")
    torch.manual_seed(seed)
    model = torch_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        done("epoch", torch_predict(model))


def torch_compile(
    done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, bfloat16=False, cycle=True
):
    import torch
    from torch.nn import functional as F

    done("import")
    images, labels = map(torch.from_numpy, training_arrays())
    done("load")
    torch.manual_seed(seed)
    model = torch_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    steps = len(labels) // batch_size
    rate = one_cycle(learning_rate, epochs * steps) if cycle else lambda _: learning_rate

    @torch.compile(dynamic=False)
    def loss_of(images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return F.cross_entropy(model(images), labels, label_smoothing=smoothing)

    for epoch in range(epochs):
        order = torch.randperm(len(labels))[: steps * batch_size].split(batch_size)
        for step, batch in enumerate(order, epoch * steps):
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.zero_grad()
            loss_of(images[batch], labels[batch]).backward()
            optimizer.step()
        done("epoch", torch_predict(model))


def lightning(
    done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, bfloat16=False, cycle=True
):
    import logging
    import warnings

    import lightning
    import torch
    import torchvision  # noqa: F401
    from torch.nn import functional as F

    done("import")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = usual_loader(batch_size)
    done("load")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = torch_network()

        def forward(self, images):
            return self.network(images)

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self(images), labels, label_smoothing=smoothing)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, fused=True)
            if not cycle:
                return optimizer
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, learning_rate, total_steps=epochs * len(batches)
            )
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def on_train_epoch_end(self):
            done("epoch", torch_predict(self))

    lightning.seed_everything(seed, verbose=False)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        precision="bf16-mixed" if bfloat16 else "32-true",
    )  # fmt: skip
    trainer.fit(Module(), batches)


def keras(
    done, *, backend, seed, epochs, batch_size, learning_rate, smoothing=0.0, bfloat16=False,
    cycle=True,
):  # fmt: skip
    os.environ["KERAS_BACKEND"] = backend
    import keras

    done("import")
    images, labels = training_arrays()
    labels = keras.utils.to_categorical(labels)
    done("load")
    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if bfloat16 else "float32")
    hidden = [keras.layers.Dense(size, activation="relu") for size in SIZES[1:-1]]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    steps = epochs * -(-len(labels) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 25, int(0.7 * steps), warmup_target=learning_rate,
        warmup_steps=int(0.3 * steps),
    )  # fmt: skip
    model.compile(
        keras.optimizers.AdamW(schedule if cycle else learning_rate, weight_decay=0.01),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing),
    )

    def predict(images):
        return model.predict(inputs(images), batch_size=5000, verbose=0).argmax(1)

    class Epochs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            done("epoch", predict)

    model.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[Epochs()])


def jax(
    done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, scan=False, bfloat16=False,
    cycle=True,
):  # fmt: skip
    import jax
    import jax.numpy as jnp
    import optax

    done("import")
    images, labels = training_arrays()
    done("load")
    kind = jnp.bfloat16 if bfloat16 else jnp.float32
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    params = [
        (jax.random.uniform(key, (n_in, n_out), minval=-1, maxval=1) / n_in**0.5, jnp.zeros(n_out))
        for key, n_in, n_out in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]
    steps = len(labels) // batch_size
    rate = optax.cosine_onecycle_schedule(epochs * steps, learning_rate) if cycle else learning_rate
    optimizer = optax.adamw(rate, weight_decay=0.01)

    def network(params, x):
        for i, (weight, bias) in enumerate(params):
            x = jnp.dot(x.astype(kind), weight.astype(kind), preferred_element_type=jnp.float32)
            x = x + bias
            x = jax.nn.relu(x) if i < len(params) - 1 else x
        return x

    def loss(params, x, y):
        targets = optax.smooth_labels(jax.nn.one_hot(y, SIZES[-1]), smoothing)
        return optax.softmax_cross_entropy(network(params, x), targets).mean()

    def step(state, batch):
        params, moments = state
        gradients = jax.grad(loss)(params, *batch)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    one_step = jax.jit(step, donate_argnums=0)
    state = (params, optimizer.init(params))
    random = np.random.default_rng(seed)
    predict_jit = jax.jit(lambda params, x: network(params, x).argmax(1))
    if scan:
        device_images, device_labels = jnp.asarray(images), jnp.asarray(labels)

        def pick(state, batch):
            return step(state, (device_images[batch], device_labels[batch]))

        one_epoch = jax.jit(lambda state, order: jax.lax.scan(pick, state, order)[0])
    for _ in range(epochs):
        order = random.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        if scan:
            state = one_epoch(state, order)
        else:
            for batch in order:
                state, _ = one_step(state, (images[batch], labels[batch]))
        jax.block_until_ready(state)
        done("epoch", lambda x, p=state[0]: np.asarray(predict_jit(p, inputs(x))))


def scikit_learn(done, *, seed, epochs, batch_size, learning_rate):
    from sklearn.neural_network import MLPClassifier

    done("import")
    images, labels = training_arrays()
    done("load")
    model = MLPClassifier(
        SIZES[1:-1], batch_size=batch_size, learning_rate_init=learning_rate, random_state=seed
    )
    for _ in range(epochs):
        model.partial_fit(images, labels, classes=np.arange(10))
        done("epoch", lambda images: model.predict(inputs(images)))


def mlx(done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, cycle=True):
    from functools import partial

    import mlx.core as mx
    from mlx import nn, optimizers

    done("import")
    images, labels = training_arrays()
    done("load")
    mx.random.seed(seed)
    random = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(SIZES):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    steps = len(labels) // batch_size
    rate = one_cycle(learning_rate, epochs * steps) if cycle else lambda _: learning_rate
    optimizer = optimizers.AdamW(learning_rate, weight_decay=0.01, bias_correction=True)
    state = [model.state, optimizer.state]

    def loss(model, x, y):
        return nn.losses.cross_entropy(model(x), y, label_smoothing=smoothing, reduction="mean")

    @partial(mx.compile, inputs=state, outputs=state)
    def one_step(x, y):
        value, gradients = nn.value_and_grad(model, loss)(model, x, y)
        optimizer.update(model, gradients)
        return value

    for epoch in range(epochs):
        order = random.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        for step, batch in enumerate(order, epoch * steps):
            optimizer.learning_rate = rate(step)
            one_step(mx.array(images[batch]), mx.array(labels[batch]))
            mx.eval(state)
        done("epoch", lambda x: np.array(model(mx.array(inputs(x))).argmax(1)))


def plain_numpy(done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, cycle=True):
    done("import")
    images, labels = training_arrays()
    done("load")
    random = np.random.default_rng(seed)
    sizes = [shape for pair in pairwise(SIZES) for shape in (pair, pair[1:])]
    bounds = [n_in**-0.5 for n_in in SIZES[:-1] for _ in range(2)]
    params = [
        random.uniform(-bound, bound, shape).astype(np.float32)
        for bound, shape in zip(bounds, sizes, strict=True)
    ]
    firsts, seconds = ([np.zeros_like(p) for p in params] for _ in range(2))
    steps = len(labels) // batch_size
    rate = one_cycle(learning_rate, epochs * steps) if cycle else lambda _: learning_rate

    def forward(x):
        activations = [x]
        for i in range(0, len(params), 2):
            x = x @ params[i] + params[i + 1]
            x = np.maximum(x, 0) if i < len(params) - 2 else x
            activations.append(x)
        return activations

    for epoch in range(epochs):
        order = random.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        for step, batch in enumerate(order, epoch * steps):
            *activations, logits = forward(images[batch])
            gradient = np.exp(logits - logits.max(1, keepdims=True))
            gradient /= gradient.sum(1, keepdims=True)
            gradient -= smoothing / SIZES[-1]
            gradient[np.arange(batch_size), labels[batch]] -= 1 - smoothing
            gradient /= batch_size
            gradients = []
            for x, weights in zip(activations[::-1], params[-2::-2], strict=True):
                gradients[:0] = [x.T @ gradient, gradient.sum(0)]
                gradient = gradient @ weights.T * (x > 0) if weights is not params[0] else None
            lr = rate(step)
            scale = np.float32((1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1)))
            for p, g, m, v in zip(params, gradients, firsts, seconds, strict=True):
                m += np.float32(0.1) * (g - m)
                v += np.float32(0.001) * (g * g - v)
                p *= np.float32(1 - lr * 0.01)
                p -= np.float32(lr) * scale * m / (np.sqrt(v) + np.float32(1e-8))
        done("epoch", lambda x: forward(inputs(x))[-1].argmax(1))


def tinygrad(done, *, seed, epochs, batch_size, learning_rate, smoothing=0.0, cycle=True):
    from tinygrad import Context, Tensor, TinyJit, nn

    done("import")
    images, labels = training_arrays()
    labels = labels.astype(np.int32)
    done("load")
    Tensor.manual_seed(seed)
    random = np.random.default_rng(seed)
    layers = [nn.Linear(a, b) for a, b in pairwise(SIZES)]

    def network(x):
        for layer in layers[:-1]:
            x = layer(x).relu()
        return layers[-1](x)

    optimizer = nn.optim.AdamW(nn.state.get_parameters(layers), lr=learning_rate)
    steps = len(labels) // batch_size
    rate = one_cycle(learning_rate, epochs * steps) if cycle else lambda _: learning_rate

    @TinyJit
    @Context(TRAINING=1)
    def one_step(images, labels, rate):
        optimizer.lr.assign(rate)
        optimizer.zero_grad()
        logits = network(images)
        loss = logits.sparse_categorical_crossentropy(labels, label_smoothing=smoothing).backward()
        return loss.realize(*optimizer.schedule_step())

    for epoch in range(epochs):
        order = random.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        for step, batch in enumerate(order, epoch * steps):
            arguments = images[batch], labels[batch], [float(rate(step))]
            one_step(*(Tensor(argument).realize() for argument in arguments)).item()
        done("epoch", lambda images: network(Tensor(inputs(images))).argmax(1).numpy())


PEERS = {
    "mnist_mlp": ours,
    "tutorial": tutorial,
    "lightning": lightning,
    "keras": keras,
    "jax": jax,
    "torch.compile": torch_compile,
    "scikit-learn": scikit_learn,
    "tinygrad": tinygrad,
    "mlx": mlx,
    "numpy": plain_numpy,
}


def main(name: str, settings: dict) -> dict:
    """Train a peer and return its seconds and accuracies."""
    images, labels = read("train")
    test_images, test_labels = read("t10k")
    result = {"epoch": [], "validation_accuracy": []}
    each_epoch = settings.pop("judge_each_epoch", False)
    last, final = time.perf_counter(), None

    def done(phase, predict=None, seconds=None):
        nonlocal last, final
        seconds = time.perf_counter() - last if seconds is None else seconds
        if phase == "epoch":
            result["epoch"].append(seconds)
            final = predict
            if each_epoch:
                judge()
        else:
            result[phase] = seconds
        last = time.perf_counter()

    def judge():
        share = np.mean(final(images[VALIDATION]) == labels[VALIDATION])
        result["validation_accuracy"].append(float(share))

    PEERS[name](done, **settings)
    if not each_epoch:
        judge()
    if not each_epoch:
        result["test_accuracy"] = float(np.mean(final(test_images) == test_labels))
    return result


if __name__ == "__main__":
    split = np.load(os.environ["SPLIT"])
    TRAIN, VALIDATION = split["train"], split["validation"]
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
