"""A folder with pictures of one digit each, to be classified, labelled and learned from."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from mnist_mlp.handwriting.preprocess import normalise, to_mnist
from mnist_mlp.handwriting.synthetic import write_samples


class Pictures:
    """The pictures in `folder`, or, if that is "", 200 samples that are drawn into `samples`.

    `paths`: the files. `images`: as the network sees them, uint8 of shape (N, 28, 28). `inputs`:
    the same normalised. Raises FileNotFoundError for a folder without pictures.
    """

    def __init__(self, folder: str | Path, samples: Path):
        self.samples = samples
        self.known = {} if folder else {p.name: digit for p, digit in write_samples(samples, 20)}
        folder = Path(folder or samples)
        self.paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
        if not self.paths:
            raise FileNotFoundError(f"{folder} holds no pictures: expected one digit on each.")
        self.images = torch.stack([to_mnist(path) for path in self.paths])
        self.inputs = normalise(self.images)

    def photos(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the pictures themselves as grey values of shape (H, W)."""
        pictures = (ImageOps.exif_transpose(Image.open(self.paths[i])) for i in indices)
        return [np.asarray(picture.convert("L")) for picture in pictures]

    def labels(self, predicted: torch.Tensor, corrections: Mapping[str, str]) -> list[str]:
        """Return each picture's digit: corrected, or known, or else the predicted one."""
        if unknown := corrections.keys() - {path.name for path in self.paths}:
            raise ValueError(f"corrections of files that are not there: {', '.join(unknown)}.")
        known = self.known | dict(corrections)
        pairs = zip(self.paths, predicted, strict=True)
        return [known.get(path.name, str(int(digit))) for path, digit in pairs]

    def save_labelled(self, labels: Iterable[str]) -> Path:
        """Copy each picture into a folder named by its label; return the folder of these."""
        target = self.samples.with_name("labelled")
        shutil.rmtree(target, ignore_errors=True)  # copies with earlier labels
        for path, label in zip(self.paths, labels, strict=True):
            (target / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / label / path.name)
        return target
