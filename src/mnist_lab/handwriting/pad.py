"""A pad to draw a digit on in a notebook; the model classifies it while one draws."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnist_lab.handwriting.preprocess import to_mnist
from mnist_mlp.data import ImageDataset, normalise

NOT_INSTALLED = "The drawing pad needs an extra: pip install -e '.[draw]', then restart the kernel."


def drawing_pad(model: nn.Module, classes: tuple[str, ...] = ImageDataset.classes):
    """Return a widget to draw a digit on; the model's probabilities follow the strokes.

    Args:
        model: A network that was trained on MNIST.
        classes: The names of the model's classes.

    Returns:
        A widget whose `image` is the last one that the network saw, uint8 of shape (28, 28), or
        None. Without the extra `[draw]`, a sentence.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError:
        from IPython.display import Markdown

        return Markdown(NOT_INSTALLED)

    scripts = [Path(__file__).with_name(name) for name in ("pad.js", "widget.js")]

    class DrawingPad(anywidget.AnyWidget):
        _esm = "".join(script.read_text(encoding="utf-8") for script in scripts)
        classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
        canvas = traitlets.Any(b"").tag(sync=True)  # 280 x 280 bytes in a memoryview, or none
        seen = traitlets.Bytes().tag(sync=True)
        probabilities = traitlets.List(traitlets.Float()).tag(sync=True)
        answer = traitlets.Int(0).tag(sync=True)  # counts up when the other two are set
        image = None

        def __repr__(self) -> str:
            return "A drawing pad: run this notebook to draw on it."

        @traitlets.observe("canvas")
        def _classify(self, change) -> None:
            try:
                grey = np.frombuffer(change["new"], np.uint8).reshape(280, 280)
                self.image = to_mnist(grey)
            except ValueError:  # nothing drawn, or all of it erased
                self.image = None
                self.seen = b""
                self.probabilities = []
            else:
                with torch.inference_mode():
                    logits = model(normalise(self.image[None]).flatten(1))
                self.seen = self.image.numpy().tobytes()
                self.probabilities = logits.softmax(dim=1)[0].tolist()
            self.answer += 1

    return DrawingPad(classes=list(classes))
