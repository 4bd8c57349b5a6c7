"""A pad for drawing digits in a notebook; the model classifies them while you draw."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, normalise
from mnist_mlp.evaluation import class_names_of

NOT_INSTALLED = "The drawing pad needs an extra: pip install -e '.[draw]', then restart the kernel."


def drawing_pad(model: nn.Module):
    """Return a widget to draw a digit on; the model's probabilities follow the strokes.

    Args:
        model: A network. The names of its classes are `model.class_names`, or the ten digits.

    Returns:
        A widget. Its `image` is the image that the network saw last, uint8 of shape (28, 28), or
        None while the pad is empty. Without the extra `[draw]`, a sentence that says so.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError:
        from IPython.display import Markdown

        return Markdown(NOT_INSTALLED)

    pad_script = Path(__file__).with_name("pad.js").read_text(encoding="utf-8")
    widget_script = Path(__file__).with_name("widget.js").read_text(encoding="utf-8")

    class DrawingPad(anywidget.AnyWidget):
        _esm = pad_script + widget_script
        classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
        # Grey values, 280 x 280 bytes; b"": no drawing. Any, because they arrive as a memoryview.
        canvas = traitlets.Any(b"").tag(sync=True)
        seen = traitlets.Bytes().tag(sync=True)  # `image` as bytes; b"" for None
        probabilities = traitlets.List(traitlets.Float()).tag(sync=True)
        # Incremented after `seen` and `probabilities`.
        answer_count = traitlets.Int(0).tag(sync=True)
        image = None

        def __repr__(self) -> str:
            return "A drawing pad: run this notebook to draw on it."

        @traitlets.observe("canvas")
        def _classify(self, change) -> None:
            self.image = None
            grey = np.frombuffer(change["new"], np.uint8)
            if grey.size:
                with suppress(ValueError):  # there is no ink: the eraser has taken it all
                    self.image = to_mnist(grey.reshape(280, 280))

            if self.image is None:
                self.seen = b""
                self.probabilities = []
            else:
                with torch.inference_mode():
                    logits = model(normalise(self.image[None]).flatten(1))
                self.seen = self.image.numpy().tobytes()
                self.probabilities = logits.softmax(dim=1)[0].tolist()
            self.answer_count += 1

    return DrawingPad(classes=list(class_names_of(model) or ImageDataset.classes))
