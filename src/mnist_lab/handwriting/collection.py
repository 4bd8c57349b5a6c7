"""A folder of pictures with one digit each, to classify, to label and to learn from."""

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
    """The pictures in a folder, and the images that the network sees of them.

    Args:
        folder: The folder. If it is "", 200 synthetic photos are written and used instead.
        samples: The folder for these synthetic photos. `save_labelled` writes next to it.

    Attributes:
        paths: The files, sorted by name, without hidden ones.
        images: One image per file, uint8 of shape (N, 28, 28).
        inputs: The same images, normalised: float32.
        true_digits: The true digit of each synthetic photo, by file name; empty for other pictures.

    Raises:
        FileNotFoundError: The folder holds no pictures.
    """

    def __init__(self, folder: str | Path, samples: Path):
        self.samples = samples
        self.true_digits: dict[str, str] = {}
        if not folder:
            self.true_digits = {path.name: digit for path, digit in write_samples(samples, each=20)}
            folder = samples

        files = [path for path in Path(folder).iterdir() if path.is_file()]
        self.paths = sorted(path for path in files if path.name[0] != ".")
        if not self.paths:
            raise FileNotFoundError(
                f"{folder} holds no pictures: expected picture files with one digit each."
            )

        self.images = torch.stack([to_mnist(path) for path in self.paths])
        self.inputs = normalise(self.images)

    def photos(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the original pictures at these indices, as grey values of shape (H, W)."""
        photos = []
        for index in indices:
            upright = ImageOps.exif_transpose(Image.open(self.paths[index]))
            photos.append(np.asarray(upright.convert("L")))
        return photos

    def labels(self, predicted: torch.Tensor, corrections: Mapping[str, str]) -> list[str]:
        """Return the label of each picture.

        It is the correction if there is one, else the true digit of a synthetic photo, else the
        predicted digit.

        Args:
            predicted: The predicted digits, integers of shape (N,).
            corrections: True digits by file name.

        Raises:
            ValueError: `corrections` names a file that is not in the folder.
        """
        names = [path.name for path in self.paths]
        unknown = sorted(corrections.keys() - names)
        if unknown:
            raise ValueError(
                f"corrections has {', '.join(unknown)}, expected names of files in the folder."
            )

        labels = {name: str(int(digit)) for name, digit in zip(names, predicted, strict=True)}
        labels.update(self.true_digits)
        labels.update(corrections)
        return [labels[name] for name in names]

    def save_labelled(self, labels: Iterable[str]) -> Path:
        """Copy each picture into a folder that is named by its label.

        Returns:
            The folder that holds these folders, ready for `load_folder`.
        """
        target = self.samples.with_name("labelled")
        shutil.rmtree(target, ignore_errors=True)  # else copies with earlier labels stay
        for path, label in zip(self.paths, labels, strict=True):
            folder = target / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
        return target
