"""A pad to draw a digit on in a notebook, read by the kernel's model while one draws."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnist_mlp.data import MEAN, STD
from mnist_mlp.images import to_mnist

SENTENCE = "The drawing pad needs an extra: pip install -e '.[draw]', then restart the kernel."
GLUE = """
export default {
  render({ model, el }) {
    const { pad } = drawingPad(el, (canvas) => {
      const picture = canvas?.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const grey = new Uint8Array(picture ? canvas.width * canvas.height : 0);
      for (let i = 0; i < grey.length; i++) grey[i] = picture.data[4 * i];
      model.set("canvas", new DataView(grey.buffer));
      model.save_changes();
    });
    const show = answers(pad, model.get("classes"));
    const update = () => {
      const bytes = model.get("seen"), probabilities = model.get("probabilities");
      const image = bytes?.byteLength ? new Uint8Array(bytes.buffer, bytes.byteOffset, 784) : null;
      show(probabilities.length ? probabilities : null, image);
    };
    model.on("change:answer", update);
    update();
  },
};
"""


def drawing_pad(model: nn.Module, classes: tuple[str, ...] = tuple("0123456789")):
    """Return a widget to draw a digit on; what the model makes of it follows the strokes.

    `classes`: the model's class names. Its `image` is what the network saw last, uint8 of shape
    (28, 28), or None. Where the extra `[draw]` is not installed, it is a sentence that says so.
    """
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError:
        from IPython.display import Markdown

        return Markdown(SENTENCE)

    class DrawingPad(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("pad.js").read_text(encoding="utf-8") + GLUE
        classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
        canvas = traitlets.Any(b"").tag(sync=True)  # 280 x 280 bytes in a memoryview, or none
        seen = traitlets.Bytes().tag(sync=True)
        probabilities = traitlets.List(traitlets.Float()).tag(sync=True)
        answer = traitlets.Int(0).tag(sync=True)  # counts up when the other two are there
        image = None

        def __repr__(self) -> str:
            return "A drawing pad: run this notebook to draw on it."

        @traitlets.observe("canvas")
        def _read(self, change) -> None:
            try:
                grey = np.frombuffer(change["new"], np.uint8).reshape(280, 280)
                self.image = to_mnist(grey)
                normalised = (self.image.float() / 255 - MEAN) / STD
                with torch.inference_mode():
                    found = model(normalised[None]).softmax(1)[0].tolist()
                self.seen, self.probabilities = self.image.numpy().tobytes(), found
            except ValueError:  # nothing drawn, or all of it erased
                self.image, self.seen, self.probabilities = None, b"", []
            self.answer += 1

    return DrawingPad(classes=list(classes))
