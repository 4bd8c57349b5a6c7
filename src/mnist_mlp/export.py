"""A trained model for those who have no PyTorch."""

from pathlib import Path

import torch
from torch import nn

from mnist_mlp.checkpoint import atomic
from mnist_mlp.data import MEAN, STD


class Classifier(nn.Module):
    """A model with what it needs before and after: from bytes to probabilities.

    `images`: uint8 of shape (N, 28, 28). Returns float32 of shape (N, classes), each row's sum 1.
    """

    def __init__(self, model: nn.Module, mean: float = MEAN, std: float = STD):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities."""
        return self.model((images.float() / 255 - self.mean) / self.std).softmax(dim=1)


def export_onnx(model: nn.Module, path: str | Path) -> None:
    """Save the model as one ONNX file, from bytes to probabilities, for any number of images.

    Its input is `images`, uint8 of shape (N, 28, 28); its output `probabilities`, float32 of shape
    (N, classes). Raises ModuleNotFoundError where the extra `[onnx]` is not installed, OSError if
    the file cannot be written; then an earlier file is as it was.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX needs an extra: pip install -e '.[onnx]'.") from error
    program = torch.onnx.export(
        Classifier(model).eval(),
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program
    with atomic(Path(path)) as file:
        file.write_bytes(program.model_proto.SerializeToString())
