"""Make `web/index.html`: one file with the network and the drawing pad, nothing else to fetch.

`make page`: with the first weights that exist: for handwriting, the best, the default.
"""

import base64
import json
from pathlib import Path

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.data import MEAN, STD
from mnist_mlp.storage.files import atomic_write, repo_root
from mnist_mlp.storage.weights import read_card

HERE = Path(__file__).parent
PAD = repo_root() / "src" / "mnist_mlp" / "handwriting" / "pad.js"


def page(weights: Path) -> str:
    """Return the page for an EnhancedNet's weights, its card's result below.

    16-bit integers with a scale for each tensor: as small as fp16, and three times as exact here.
    """
    model = load_weights(EnhancedNet(), weights)
    card = read_card(weights)
    result = f"{card['test_correct']:,} of {card['test_images']:,} MNIST test images right."
    tensors = [p.detach() for p in model.parameters()]
    scales = [float(t.abs().max()) / 32_767 for t in tensors]
    integers = b"".join(
        (t / scale).round().short().numpy().astype("<i2").tobytes()
        for t, scale in zip(tensors, scales, strict=True)
    )
    parts = {
        "RESULT": result,
        "DIGITS": (HERE / "digits.js").read_text(encoding="utf-8"),
        "NETWORK": (HERE / "network.js").read_text(encoding="utf-8"),
        "PAD": PAD.read_text(encoding="utf-8").replace("export function", "function"),
        "WEIGHTS": base64.b64encode(integers).decode(),
        "SCALES": json.dumps(scales),
        "MEAN": str(MEAN),
        "STD": str(STD),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def main() -> None:
    models = repo_root() / "models"
    names = ("enhanced_model_handwriting", "enhanced_model_best", "enhanced_model")
    text = page(next(path for name in names if (path := models / f"{name}.pth").exists()))
    with atomic_write(HERE / "index.html") as file:
        file.write_text(text, encoding="utf-8", newline="\n")
    print(f"web/index.html: {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
