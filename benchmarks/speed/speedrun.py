"""Train EnhancedNet to more than 98.21% on MNIST as fast as possible, from the shell to the answer.

98.21% is what the course project claims that this repository started from. EnhancedNet is its
network: five fully connected layers of 512, 256, 128, 64 and 10 units.

`python benchmarks/speed/speedrun.py` reads MNIST's files, trains for less than a second, counts the
test images that the network classifies correctly, and saves the network as `speedrun.pth`.

    --seed 1            another seed
    --validate          test on the 5,000 training images that are left out, not on the test images
    --output FILE.pth   where to save the network

The file needs NumPy alone: `import torch` takes longer than this whole program. The ideas, which
`make speedrun-ideas` measures:

1.  NumPy and float32. On a CPU, NumPy's matrix products are as fast as PyTorch's.
2.  64 numbers an image instead of 784. Neighbouring pixels are nearly alike, so the first layer
    sees the image as a sum of 64 patterns, the principal components. At the end, the patterns are
    multiplied into its weights, which gives an ordinary layer for 784 pixels.
3.  Muon: a step of about equal size in all directions of a weight matrix, so it needs fewer steps.
4.  Three Newton-Schulz iterations in a step of Muon instead of the usual five.
5.  Large batches: few steps, and large products, which use the cores well.
6.  Most images are shifted by a pixel. This is free, because it only moves the window that is cut
    out of the image.
7.  Smoothed labels: the network should answer with 89% and not with 100%, which makes it less
    certain of what it has seen, and better on what it has not.
8.  The learning rate is highest at the first step and falls to 0. There is no weight decay.
9.  No layer learns a bias.
10. 85,000 images, which is one and a half epochs. The training looks at no validation
    images, and it keeps no average of the weights.

Sources: LeCun et al., "Efficient BackProp", 1998 (principal components); Jordan et al., "Muon: an
optimizer for hidden layers in neural networks", 2024; Szegedy et al., "Rethinking the Inception
architecture", 2016 (smoothed labels). In the spirit of Jordan, "94% on CIFAR-10 in 3.29 seconds on
a single GPU", 2024.
"""

import argparse
import os
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np

SIZES = (784, 512, 256, 128, 64, 10)
MEAN = 0.1307
STD = 0.3081

BLOCK = 5_000  # images
N_BLOCKS = 12  # of the training images; one of them is left out
BORDER = 2  # pixels that are left out on each side: almost no digit reaches so far
WINDOW = 28 - 2 * BORDER

# Rows and columns by which the window is moved, for one block after another (idea 6).
SHIFTS = ((0, 0), (0, 1), (1, 0), (0, 0), (0, -1), (-1, 0))

# Chosen on validation images.
SETTINGS = {
    "components": 64,
    "blocks": 17,
    "batch_size": 1024,
    "shift": True,
    "smoothing": 0.12,
    "learning_rate": 0.12,
    "momentum": 0.8,
    "iterations": 3,
}


def read_mnist(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 (count, 28, 28), and labels, uint8 (count,), of "train" or "t10k"."""
    root = os.environ.get("MNIST_ROOT") or Path(__file__).parents[2] / "data"
    folder = Path(root).expanduser() / "MNIST" / "raw"
    try:
        images = np.fromfile(folder / f"{name}-images-idx3-ubyte", np.uint8)
        labels = np.fromfile(folder / f"{name}-labels-idx1-ubyte", np.uint8)
    except OSError as error:
        raise SystemExit(
            f"MNIST is not in {folder} ({error}). "
            "`make notebook` downloads it; or set MNIST_ROOT to the folder that contains MNIST/raw."
        ) from error

    # The files begin with a header: a number for the format, then the sizes.
    image_header = struct.pack(">4I", 0x803, count, 28, 28)
    label_header = struct.pack(">2I", 0x801, count)
    is_right = (
        images[:16].tobytes() == image_header
        and labels[:8].tobytes() == label_header
        and images.size == 16 + count * 784
        and labels.size == 8 + count
        and labels[8:].max() < 10
    )
    if not is_right:
        raise SystemExit(
            f"The files {name}-* in {folder} are damaged: they are not those of {count:,} images "
            "of 28x28 pixels with labels from 0 to 9. Delete them and run `make notebook`."
        )
    return images[16:].reshape(count, 28, 28), labels[8:]


def left_out_block(seed: int) -> slice:
    """Return the training images that a training with this seed does not see."""
    first = seed % N_BLOCKS * BLOCK
    return slice(first, first + BLOCK)


def cut_window(images: np.ndarray, shift: tuple[int, int], out: np.ndarray) -> np.ndarray:
    """Write the windows of a block of images, as float32 rows of 576 pixels, into `out`."""
    top = BORDER + shift[0]
    left = BORDER + shift[1]
    windows = images[:, top : top + WINDOW, left : left + WINDOW]
    np.copyto(out.reshape(-1, WINDOW, WINDOW), windows)
    return out


def principal_components(pixels: np.ndarray, count: int, random: np.random.Generator):
    """Return the mean of the pixels, and a basis of about the directions in which they vary most.

    Multiplying random vectors with the covariance turns them towards its largest eigenvectors; the
    QR decomposition keeps them apart, so that they do not all turn to the same one. Three rounds
    are much cheaper than computing all eigenvectors, and as good here.

    Args:
        pixels: float32 of shape (N, 576).
        count: How many directions.
        random: Draws the first vectors.

    Returns:
        The mean, of shape (576,), and the basis, of shape (576, count), scaled so that the mean of
        the components' variances is 1.
    """
    mean = pixels.mean(axis=0)
    covariance = pixels.T @ pixels / np.float32(len(pixels)) - np.outer(mean, mean)

    basis = random.standard_normal((len(mean), count), np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(covariance @ basis)

    variance = np.trace(basis.T @ covariance @ basis) / count
    return mean, basis / np.sqrt(variance)


def initial_weights(n_in: int, n_out: int, random: np.random.Generator) -> np.ndarray:
    """Return random weights, smaller for more inputs."""
    weights = random.standard_normal((n_in, n_out), np.float32)
    return weights * np.float32(n_in**-0.5)


class Muon:
    """Update one weight matrix with orthogonalised momentum (idea 3)."""

    # The polynomial a x + b x^3 + c x^5 brings all singular values roughly to 1 (idea 4).
    a, b, c = 3.4445, -4.775, 2.0315

    def __init__(self, weights: np.ndarray, settings: dict):
        """Reserve all memory: new arrays in each step would cost page faults."""
        self.weights = weights
        self.settings = settings
        self.momentum = np.zeros_like(weights)
        self.direction = np.empty_like(weights)
        self.products = (np.empty_like(weights), np.empty_like(weights))
        short_side = min(weights.shape)
        self.gram = np.empty((short_side, short_side), np.float32)
        self.polynomial = np.empty((short_side, short_side), np.float32)

    def step(self, gradient: np.ndarray, fraction: float) -> None:
        """Update the weights with this fraction of the highest learning rate."""
        momentum = np.float32(self.settings["momentum"])
        self.momentum *= momentum
        self.momentum += gradient

        # Nesterov momentum: look ahead by one more step.
        np.multiply(self.momentum, momentum, out=self.direction)
        self.direction += gradient

        n_in, n_out = self.weights.shape
        step_size = fraction * self.settings["learning_rate"] * max(1, n_out / n_in) ** 0.5
        self.weights -= self.orthogonalise(self.direction, step_size)

    def orthogonalise(self, matrix: np.ndarray, factor: float) -> np.ndarray:
        """Return about `factor` times U V^T, where U S V^T is the matrix's decomposition.

        With the small matrix G = x x^T, an iteration turns x into (a + b G + c G^2) x. Its cost is
        the large matrix x, so all factors are multiplied into small matrices.
        """
        # G is smaller if x has at most as many rows as columns.
        is_tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if is_tall else matrix

        iterations = self.settings["iterations"]
        for i in range(iterations):
            np.matmul(x, x.T, out=self.gram)

            # The first iteration works on s x, whose singular values are at most 1. Its G is s^2 G,
            # and its result is s (a + b s^2 G + c s^4 G^2) x.
            scale = 1.0
            if i == 0:
                scale = 1 / np.sqrt(np.trace(self.gram) + 1e-12)
                self.gram *= np.float32(scale**2)
            if i == iterations - 1:
                scale *= factor

            np.matmul(self.gram, self.gram, out=self.polynomial)
            self.polynomial *= np.float32(self.c)
            self.gram *= np.float32(self.b)
            self.polynomial += self.gram
            self.polynomial.flat[:: len(self.gram) + 1] += np.float32(self.a)  # the diagonal
            self.polynomial *= np.float32(scale)

            # A product must not overwrite its own input, so two arrays take turns.
            product = self.products[i % 2]
            x = np.matmul(self.polynomial, x, out=product.T if is_tall else product)

        return x.T if is_tall else x


def train(images, labels, seed, settings=SETTINGS, optimizer=Muon) -> dict[str, np.ndarray]:
    """Train on 11 of the 12 blocks of training images.

    Args:
        images: uint8 of shape (60000, 28, 28).
        labels: uint8 of shape (60000,).
        seed: Decides about the initial weights, the order, and the block that is left out.
        settings: Values as in `SETTINGS`.
        optimizer: A class like `Muon`.

    Returns:
        The weights and biases of EnhancedNet's five layers as float32 arrays, with the names and
        shapes of its `state_dict`.
    """
    random = np.random.default_rng(seed)
    blocks = [slice(first, first + BLOCK) for first in range(0, len(images), BLOCK)]
    blocks.remove(left_out_block(seed))
    window = np.empty((BLOCK, WINDOW * WINDOW), np.float32)

    # The principal components, from the first block (idea 2).
    pixels = cut_window(images[blocks[0]], (0, 0), window)
    mean, basis = principal_components(pixels, settings["components"], random)
    offset = mean @ basis

    # The components of all images in the order of the files, some blocks twice (idea 10).
    n_blocks = settings["blocks"]
    components = np.empty((n_blocks * BLOCK, settings["components"]), np.float32)
    targets = np.empty(n_blocks * BLOCK, np.uint8)
    for i in range(n_blocks):
        block = blocks[i % len(blocks)]
        shift = SHIFTS[i % len(SHIFTS)] if settings["shift"] else (0, 0)
        pixels = cut_window(images[block], shift, window)

        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        np.matmul(pixels, basis, out=components[rows])
        components[rows] -= offset
        targets[rows] = labels[block]

    # A random order in which no image comes again before all others have come.
    n_images = n_blocks * BLOCK
    n_first_epoch = min(n_blocks, len(blocks)) * BLOCK
    first_epoch = random.permutation(n_first_epoch)
    second_epoch = n_first_epoch + random.permutation(n_images - n_first_epoch)
    order = np.concatenate([first_epoch, second_epoch])

    sizes = (settings["components"], *SIZES[1:])
    weights = [initial_weights(n_in, n_out, random) for n_in, n_out in pairwise(sizes)]
    optimizers = [optimizer(matrix, settings) for matrix in weights]
    descend(weights, optimizers, components, targets, order, settings)

    # The first layer was trained on (pixel - mean) @ basis. EnhancedNet gets all 784 pixels, and
    # normalised: p = (pixel / 255 - MEAN) / STD, so pixel = 255 * STD * p + 255 * MEAN.
    first = (basis @ weights[0]).reshape(WINDOW, WINDOW, SIZES[1])
    first_full = np.zeros((28, 28, SIZES[1]), np.float32)
    inside = slice(BORDER, 28 - BORDER)
    first_full[inside, inside] = first * np.float32(255 * STD)
    first_bias = (np.float32(255 * MEAN) - mean) @ basis @ weights[0]

    # No layer has learned a bias (idea 9).
    matrices = [first_full.reshape(784, -1), *weights[1:]]
    biases = [first_bias, *[np.zeros(size, np.float32) for size in SIZES[2:]]]

    state = {}
    for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True), start=1):
        state[f"layer{i}.weight"] = np.ascontiguousarray(matrix.T)
        state[f"layer{i}.bias"] = bias
    return state


def descend(weights, optimizers, components, targets, order, settings) -> None:
    """Train the weights in place, with one step for each batch of the order."""
    batch_size = settings["batch_size"]
    smoothing = settings["smoothing"]
    smoothed_labels = np.full((10, 10), smoothing / 10, np.float32)
    smoothed_labels += np.eye(10, dtype=np.float32) * np.float32(1 - smoothing)

    # The large results go to memory that is reserved once.
    sizes = [len(weights[0]), *[matrix.shape[1] for matrix in weights]]
    outputs = [np.empty((batch_size, size), np.float32) for size in sizes]
    gradients = [np.empty((batch_size, size), np.float32) for size in sizes]
    is_positive = [np.empty((batch_size, size), bool) for size in sizes]
    weight_gradients = [np.empty_like(matrix) for matrix in weights]
    zero = np.zeros(1, np.float32)  # NumPy compares with an array faster than with a number
    last = len(weights)

    n_steps = len(order) // batch_size
    for step in range(n_steps):
        batch = order[step * batch_size : (step + 1) * batch_size]

        # Forward: outputs[0] is the batch, outputs[i] the output of layer i.
        # (With the usual mode "raise", `take` would copy the batch once more.)
        np.take(components, batch, axis=0, out=outputs[0], mode="clip")
        for i, matrix in enumerate(weights, start=1):
            np.matmul(outputs[i - 1], matrix, out=outputs[i])
            if i < last:
                np.maximum(outputs[i], zero, out=outputs[i])

        # The gradient of the cross-entropy is the softmax minus the smoothed labels (idea 7). For
        # Muon, it makes no difference whether the loss is a sum or a mean.
        logits = outputs[last]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.subtract(softmax, smoothed_labels[targets[batch]], out=gradients[last])

        # Backward, from the last layer to the first.
        for i in range(last, 0, -1):
            np.matmul(outputs[i - 1].T, gradients[i], out=weight_gradients[i - 1])
            if i > 1:
                np.matmul(gradients[i], weights[i - 1].T, out=gradients[i - 1])
                np.greater(outputs[i - 1], zero, out=is_positive[i - 1])
                gradients[i - 1] *= is_positive[i - 1]

        fraction = 1 - step / n_steps  # of the highest learning rate (idea 8)
        for optimizer, gradient in zip(optimizers, weight_gradients, strict=True):
            optimizer.step(gradient, fraction)


def predict(state: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Return the labels that the finished network gives to uint8 images, in chunks of 1,000."""
    predicted = []
    for start in range(0, len(images), 1000):
        chunk = images[start : start + 1000].reshape(-1, 784)
        x = (chunk / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        for i in range(1, len(SIZES)):
            x = x @ state[f"layer{i}.weight"].T + state[f"layer{i}.bias"]
            if i < len(SIZES) - 1:
                x = np.maximum(x, 0)
        predicted.append(x.argmax(axis=1))
    return np.concatenate(predicted)


def save_pth(state: dict[str, np.ndarray], path: Path) -> None:
    """Write the file that `torch.save` would write, without importing torch.

    It is a ZIP archive with the bytes of each tensor, and a pickle that says how to put them
    together. The pickle is a short program for a stack (Python's module `pickletools` explains it):
    X and J push a text and an integer, c a function, and ) an empty tuple; ( and t begin and end a
    tuple; R calls a function with a tuple; Q stands for a tensor's bytes; u fills a dict.
    """

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def integers(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    def tuple_of(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    ordered_dict = b"ccollections\nOrderedDict\n)R"
    program = b"\x80\x02" + ordered_dict + b"("
    for key, (name, array) in enumerate(state.items()):
        strides = [array[0].size, 1][-array.ndim :]  # of an array whose rows follow each other
        storage = tuple_of(
            text("storage"),
            b"ctorch\nFloatStorage\n",
            text(str(key)),
            text("cpu"),
            integers(array.size),
        )
        tensor = tuple_of(
            storage + b"Q",
            integers(0),
            tuple_of(integers(*array.shape)),
            tuple_of(integers(*strides)),
            b"\x89",  # it needs no gradient
            ordered_dict,
        )
        program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"R"
    program += b"u."

    files = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    for key, array in enumerate(state.values()):
        files[f"data/{key}"] = array.astype("<f4").tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"speedrun/{name}"), content)


def main() -> None:
    """Train once, print the accuracy, and save the network."""
    parser = argparse.ArgumentParser(description="Train EnhancedNet on MNIST in under a second.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="test on images that are left out")
    parser.add_argument("--output", type=Path, default=Path("speedrun.pth"))
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"the seed must be 0 or more, found {arguments.seed}.")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist.")

    images, labels = read_mnist("train", 60_000)
    if arguments.validate:
        left_out = left_out_block(arguments.seed)
        test_images, test_labels = images[left_out], labels[left_out]
    else:
        test_images, test_labels = read_mnist("t10k", 10_000)

    state = train(images, labels, arguments.seed)
    correct = predict(state, test_images) == test_labels
    print(f"{correct.sum():,} of {len(correct):,} images are classified correctly.", flush=True)

    save_pth(state, arguments.output)
    print(f"The network is saved in {arguments.output}.")


if __name__ == "__main__":
    main()
