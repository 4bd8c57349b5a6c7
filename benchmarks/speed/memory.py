"""Train one epoch in one of several ways and print the peak of this process's memory.

`python benchmarks/speed/memory.py "one float32 tensor"` prints the peak of the resident memory in
bytes, without that of child processes. `scaling.py` starts one process per way. Each way imports
what it needs itself, so that nothing else counts.
"""

import os
import sys

import torch


def import_torch_alone() -> None:
    """Train nothing."""


def fit_on_uint8(augment_strength: float) -> None:
    """Train with `fit`, which keeps the images as one uint8 tensor."""
    from mnist_mlp import EnhancedNet, Recipe, fit, load

    splits = load("mnist")
    recipe = Recipe(epochs=1, augment_strength=augment_strength)
    fit(EnhancedNet(), splits.train, splits.validation, recipe, progress=False)


def train_on_float32() -> None:
    """Train on one tensor of normalised float32 images."""
    from mnist_mlp import load

    splits = load("mnist")
    inputs = (splits.train.images.flatten(1).float() / 255 - 0.1307) / 0.3081
    order = torch.randperm(len(inputs)).split(512)
    train_epoch((inputs[indices], splits.train.labels[indices]) for indices in order)


def train_with_data_loader(num_workers: int) -> None:
    """Train on torchvision's MNIST behind a DataLoader."""
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    mnist = datasets.MNIST(os.environ["MNIST_ROOT"], transform=transforms.Compose(steps))
    train_epoch(torch.utils.data.DataLoader(mnist, 512, shuffle=True, num_workers=num_workers))


def train_epoch(batches) -> None:
    """Take one step with AdamW per batch."""
    from mnist_mlp import EnhancedNet

    model = EnhancedNet()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for images, labels in batches:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


WAYS = {
    "import torch alone": import_torch_alone,
    "one uint8 tensor, plain": lambda: fit_on_uint8(augment_strength=0.0),
    "one uint8 tensor, augmented": lambda: fit_on_uint8(augment_strength=1.0),
    "one float32 tensor": train_on_float32,
    "DataLoader, image by image": lambda: train_with_data_loader(num_workers=0),
    "DataLoader, two workers (theirs apart)": lambda: train_with_data_loader(num_workers=2),
}


if __name__ == "__main__":
    import resource  # Windows does not have it

    WAYS[sys.argv[1]]()

    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    print(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
