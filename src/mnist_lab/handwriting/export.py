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
    """A model with its preprocessing and a softmax: from uint8 images to probabilities."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, float32 (N, classes), of uint8 images of shape (N, 28, 28)."""
        logits = self.model(normalise(images).flatten(1))
        return logits.softmax(dim=1)


def export_onnx(
    model: nn.Module, path: str | Path, classes: Sequence[str] = ImageDataset.classes
) -> None:
    """Save a model as one ONNX file that takes any number of images.

    The input of the file is `images`, uint8 of shape (N, 28, 28). Its output is `probabilities`,
    float32 of shape (N, classes). Its metadata holds the class names under `classes`, as a JSON
    list.

    Args:
        model: A network that takes normalised images of shape (N, 784). It is not changed.
        path: The file to write.
        classes: The names of the model's classes.

    Raises:
        ModuleNotFoundError: The extra `[onnx]` is not installed.
        ValueError: The model's number of classes differs from `len(classes)`.
        OSError: The file cannot be written. An existing file is then left unchanged.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX needs an extra: pip install -e '.[onnx]'.") from error

    classifier = Classifier(copy.deepcopy(model)).eval()  # a copy: the model keeps its mode
    # Two images: for an example of one, PyTorch would fix the number of images at one.
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    n_outputs = classifier(images).shape[1]
    if n_outputs != len(classes):
        raise ValueError(
            f"the model has {n_outputs} classes, but `classes` names {len(classes)}: "
            "pass the names of the model's classes."
        )

    program = torch.onnx.export(
        classifier,
        (images,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    onnx_model = program.model_proto
    onnx_model.metadata_props.add(key="classes", value=json.dumps(list(classes)))

    with atomic_write(Path(path)) as file:
        file.write_bytes(onnx_model.SerializeToString())
