"""A folder of pictures with one digit each, to classify, to label and to learn from."""

import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mnist_lab.handwriting.folder import MINIMUM_PER_CLASS
from mnist_lab.handwriting.pictures import read_reduced
from mnist_lab.handwriting.preprocess import to_mnist
from mnist_lab.handwriting.synthetic import write_samples
from mnist_mlp.data import ImageDataset, normalise

DIGITS = ImageDataset.classes


class Pictures:
    """The pictures in a folder, and the images that the network sees of them.

    Args:
        folder: The folder. If it is "", 200 samples are drawn and used instead.
        samples: The folder for these samples. `save_labelled` writes next to it.

    Attributes:
        paths: The files, sorted by name, without hidden ones.
        images: One image per file, uint8 of shape (N, 28, 28).
        inputs: The same images, normalised: float32.
        true_digits: The true digit of each sample, by file name; empty for other pictures.

    Raises:
        FileNotFoundError: The folder is missing or holds no pictures.
        ValueError: A file is not a picture or shows no digit, or `save_labelled` would delete the
            folder.
    """

    def __init__(self, folder: str | Path, samples: Path):
        self.labelled_folder = samples.with_name("labelled")
        self.true_digits: dict[str, str] = {}
        if folder:
            self.paths = self._files_in(Path(folder).expanduser())
        else:
            # Only what was drawn now: the folder may hold other files, whose digits are unknown.
            written = write_samples(samples, each=20)
            self.true_digits = {path.name: digit for path, digit in written}
            self.paths = sorted(path for path, _ in written)

        self.images = torch.stack([to_mnist(path) for path in self.paths])
        self.inputs = normalise(self.images)

    def _files_in(self, folder: Path) -> list[Path]:
        """Return the visible files in a folder of the user's, sorted by name."""
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder.absolute()}: give the folder of your pictures."
            )
        if folder.resolve().is_relative_to(self.labelled_folder.resolve()):
            raise ValueError(
                f"{folder} holds copies that `save_labelled` deletes: "
                "move your pictures to another folder."
            )

        files = [path for path in folder.iterdir() if path.is_file()]
        paths = sorted(path for path in files if path.name[0] != ".")
        if not paths:
            raise FileNotFoundError(
                f"{folder} holds no pictures: expected picture files with one digit each."
            )
        return paths

    def photos(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Return the pictures at these indices as grey values; large ones are reduced."""
        photos = []
        for index in indices:
            grey, _ = read_reduced(self.paths[index])
            photos.append((grey * 255).round().astype(np.uint8))
        return photos

    def labels(
        self, predicted: torch.Tensor, corrections: Mapping[str, str | int] | None
    ) -> list[str] | None:
        """Return the label of each picture, or None if the labels are unknown.

        The label of a sample is its true digit. The label of another picture is the predicted
        digit, unless `corrections` says otherwise: predictions are labels only after somebody has
        looked at all of them.

        Args:
            predicted: The predicted digits, integers of shape (N,).
            corrections: The true digits of the misread pictures, by file name; {} if all are read
                rightly; None if nobody has looked at the predictions yet.

        Raises:
            TypeError: `corrections` is not a dict.
            ValueError: `corrections` names a file that is not in the folder, or a label that is
                not a digit.
        """
        # macOS writes an accent in a file's name as a character of its own; people rarely do.
        names = [unicodedata.normalize("NFC", path.name) for path in self.paths]
        if corrections is None:
            if not self.true_digits:
                return None
            corrections = {}

        if not isinstance(corrections, Mapping):
            raise TypeError(
                f"corrections must be None or a dict such as {{{names[0]!r}: '1'}}, "
                f"found {corrections!r}."
            )
        corrections = {
            unicodedata.normalize("NFC", str(name)): digit for name, digit in corrections.items()
        }
        unknown = sorted(corrections.keys() - set(names))
        if unknown:
            raise ValueError(
                f"corrections has {', '.join(unknown)}, "
                f"expected names of files in the folder, such as {names[0]}."
            )
        for name, digit in corrections.items():
            if str(digit) not in DIGITS:
                raise ValueError(f"corrections[{name!r}] must be a digit, found {digit!r}.")

        labels = {name: str(int(digit)) for name, digit in zip(names, predicted, strict=True)}
        labels.update(self.true_digits)
        labels.update({name: str(digit) for name, digit in corrections.items()})
        return [labels[name] for name in names]

    def obstacle_to_training(self, labels: Sequence[str] | None) -> str:
        """Return why no network can be trained on these labels, in one sentence; "" if one can.

        Args:
            labels: What `labels` has returned.
        """
        needed = f"training needs at least {MINIMUM_PER_CLASS} pictures of each digit"
        if labels is None:
            return (
                "Nothing is counted or trained before you have looked at all predictions and set "
                f"`corrections`, to {{}} if all are right; {needed}."
            )

        counts = Counter(labels)
        if len(counts) < 2:
            return f"Nothing is trained, because all pictures show the digit {labels[0]}."

        rare = sorted(digit for digit, count in counts.items() if count < MINIMUM_PER_CLASS)
        if rare:
            return (
                f"Nothing is trained, because {needed}, and there are fewer of {', '.join(rare)}."
            )
        return ""

    def save_labelled(self, labels: Sequence[str]) -> Path:
        """Copy each picture into a folder that is named by its label.

        Args:
            labels: One label per picture, as `labels` returns them.

        Returns:
            The folder that holds these folders, ready for `load_folder`. Its earlier content is
            deleted.
        """
        # Otherwise copies with earlier labels would stay.
        if self.labelled_folder.exists():
            shutil.rmtree(self.labelled_folder)
        for path, label in zip(self.paths, labels, strict=True):
            folder = self.labelled_folder / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
        return self.labelled_folder
