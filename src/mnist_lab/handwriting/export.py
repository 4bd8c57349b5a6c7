"""Export of a trained model for use without PyTorch."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mnist_mlp.data import ImageDataset, normalise
from mnist_mlp.files import atomic_write


class Classifier(nn.Module):
    """A model with its preprocessing and softmax: from uint8 images to probabilities."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, classes), rows that sum to 1, for uint8 images (N, 28, 28)."""
        return self.model(normalise(images).flatten(1)).softmax(dim=1)


def export_onnx(
    model: nn.Module, path: str | Path, classes: Sequence[str] = ImageDataset.classes
) -> None:
    """Save the model as one ONNX file, for any number of images.

    Its input is `images`, uint8 of shape (N, 28, 28). Its output is `probabilities`, float32 of
    shape (N, classes). Its metadata has the names of the classes as `classes`, a list in JSON.

    Raises:
        ModuleNotFoundError: The extra `[onnx]` is not installed.
        ValueError: The model has another number of classes.
        OSError: The file cannot be written; an earlier file is then intact.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX needs an extra: pip install -e '.[onnx]'.") from error

    classifier = Classifier(copy.deepcopy(model)).eval()
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    outputs = classifier(images).shape[1]
    if outputs != len(classes):
        raise ValueError(f"the model has {outputs} classes, expected {len(classes)}: name them.")

    program = torch.onnx.export(
        classifier,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program
    onnx_model = program.model_proto
    onnx_model.metadata_props.add(key="classes", value=json.dumps(list(classes)))

    with atomic_write(Path(path)) as file:
        file.write_bytes(onnx_model.SerializeToString())
