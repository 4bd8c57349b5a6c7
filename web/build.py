"""Make `web/index.html`: one file with the network and the drawing pad, nothing else to fetch.

`make page`: with the first weights that exist: for handwriting, the best, the default.
"""

import base64
import json
from pathlib import Path

import torch

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.checkpoint import read_card
from mnist_mlp.data import MEAN, STD
from mnist_mlp.files import atomic_write, repo_root

HERE = Path(__file__).parent
PAD = repo_root() / "src" / "mnist_lab" / "handwriting" / "pad.js"
WEIGHTS = ("enhanced_model_handwriting.pth", "enhanced_model_best.pth", "enhanced_model.pth")


def page(weights: Path) -> str:
    """Return the page for an EnhancedNet's weights, its card's result below.

    The weights are 16-bit integers with a scale for each tensor: as small as float16, and three
    times as exact here.
    """
    model = load_weights(EnhancedNet(), weights)
    card = read_card(weights)

    content = b""
    scales = []
    with torch.no_grad():
        for tensor in model.parameters():
            scale = float(tensor.abs().max()) / 32_767
            integers = (tensor / scale).round().short().numpy()
            content += integers.astype("<i2").tobytes()
            scales.append(scale)

    parts = {
        "RESULT": f"{card['test_correct']:,} of {card['test_images']:,} MNIST test images right.",
        "DIGITS": (HERE / "digits.js").read_text(encoding="utf-8"),
        "NETWORK": (HERE / "network.js").read_text(encoding="utf-8"),
        "PAD": PAD.read_text(encoding="utf-8").replace("export function", "function"),
        "WEIGHTS": base64.b64encode(content).decode(),
        "SCALES": json.dumps(scales),
        "MEAN": str(MEAN),
        "STD": str(STD),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def main() -> None:
    paths = [repo_root() / "models" / name for name in WEIGHTS]
    text = page(next(path for path in paths if path.exists()))
    with atomic_write(HERE / "index.html") as file:
        file.write_text(text, encoding="utf-8", newline="\n")
    print(f"web/index.html: {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
