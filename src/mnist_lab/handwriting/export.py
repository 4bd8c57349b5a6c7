"""Export of a trained model for use without PyTorch."""

import copy
import json
from pathlib import Path

import torch
from torch import nn

from mnist_mlp.data import ImageDataset, normalise
from mnist_mlp.evaluation import class_names_of, evaluate
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


def export_onnx(model: nn.Module, path: str | Path) -> None:
    """Save a model as one ONNX file that takes any number of images.

    The input of the file is `images`, uint8 of shape (N, 28, 28). Its output is `probabilities`,
    float32 of shape (N, classes). Its metadata holds the class names under `classes`, as a JSON
    list: `model.class_names`, which `fit` and `load_weights` set, or else the ten digits.

    Args:
        model: A network that takes normalised images of shape (N, 784). It is not changed.
        path: The file to write.

    Raises:
        ModuleNotFoundError: The extra `[onnx]` is not installed.
        ValueError: The model's weights are not finite, its class names are unknown or not as many
            as its outputs, or it does not return logits.
        OSError: The file cannot be written. An existing file is then left unchanged.

    Example:
        >>> model = load_weights(EnhancedNet(), "models/enhanced_model_best.pth")
        >>> export_onnx(model, "models/best.onnx")
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX needs an extra: pip install -e '.[onnx]'.") from error

    model = copy.deepcopy(model).cpu()  # a copy: the given model keeps its mode and device
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"the model is useless: at {name} it holds numbers that are not finite. "
                "Load good weights, or train it again."
            )

    # Two images: for an example of one, PyTorch would fix the number of images at one.
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    classifier = Classifier(model).eval()
    class_names = names_of_outputs(model, n_outputs=classifier(images).shape[1])
    labels = torch.zeros(2, dtype=torch.int64)
    evaluate(model, ImageDataset(images, labels, class_names))  # raises for anything but logits

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
    onnx_model.metadata_props.add(key="classes", value=json.dumps(class_names))

    with atomic_write(Path(path)) as file:
        file.write_bytes(onnx_model.SerializeToString())


def names_of_outputs(model: nn.Module, n_outputs: int) -> tuple[str, ...]:
    """Return `model.class_names`, or the ten digits if it has none and ten outputs.

    Raises:
        ValueError: The names are unknown.
    """
    class_names = class_names_of(model)
    if class_names is not None:
        return class_names
    if n_outputs == len(ImageDataset.classes):
        return ImageDataset.classes
    raise ValueError(
        f"the names of the model's {n_outputs} classes are unknown: set model.class_names to a "
        "tuple of them, as `fit` does."
    )
