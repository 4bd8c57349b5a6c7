"""A folder with pictures of one digit each, to be classified, labelled and learned from."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.synthetic import write_samples
from mnist_mlp.data import normalise


class Pictures:
    """The pictures in `folder`, or, if that is "", 200 samples that are drawn into `samples`.

    Attributes:
        paths: The files.
        images: What the network sees of them, uint8 of shape (N, 28, 28).
        inputs: The same, normalised.
        known: The digits of the samples by the names of their files; empty for other pictures.

    Raises:
        FileNotFoundError: The folder holds no pictures.
    """

    def __init__(self, folder: str | Path, samples: Path):
        self.samples = samples
        self.known: dict[str, str] = {}
        if not folder:
            self.known = {path.name: digit for path, digit in write_samples(samples, 20)}
            folder = samples

        files = [path for path in Path(folder).iterdir() if path.is_file()]
        self.paths = sorted(path for path in files if path.name[0] != ".")
        if not self.paths:
            raise FileNotFoundError(f"{folder} holds no pictures: expected one digit on each.")

        self.images = torch.stack([to_mnist(path) for path in self.paths])
        self.inputs = normalise(self.images)

    def photos(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the pictures themselves as grey values of shape (H, W)."""
        pictures = [ImageOps.exif_transpose(Image.open(self.paths[i])) for i in indices]
        return [np.asarray(picture.convert("L")) for picture in pictures]

    def labels(self, predicted: torch.Tensor, corrections: Mapping[str, str]) -> list[str]:
        """Return each picture's digit: corrected, or known, or else the predicted one."""
        names = [path.name for path in self.paths]
        unknown = corrections.keys() - names
        if unknown:
            raise ValueError(f"corrections of files that are not there: {', '.join(unknown)}.")

        labels = {name: str(int(digit)) for name, digit in zip(names, predicted, strict=True)}
        labels.update(self.known)
        labels.update(corrections)
        return [labels[name] for name in names]

    def save_labelled(self, labels: Iterable[str]) -> Path:
        """Copy each picture into a folder named by its label; return the folder of these."""
        target = self.samples.with_name("labelled")
        shutil.rmtree(target, ignore_errors=True)  # copies with earlier labels
        for path, label in zip(self.paths, labels, strict=True):
            folder = target / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
        return target
