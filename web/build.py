"""Build `web/index.html`: one file with the network and the drawing pad, nothing else to fetch.

`make page` calls it. Of the published weights it takes the first that exist: those for handwriting,
the best ones, or the default ones.
"""

import base64
import json
from pathlib import Path

import torch

from mnist_mlp import EnhancedNet, load_weights
from mnist_mlp.checkpoint import read_card
from mnist_mlp.data import MEAN, STD
from mnist_mlp.files import atomic_write, repo_root

WEB = Path(__file__).parent
PAD = repo_root() / "src" / "mnist_lab" / "handwriting" / "pad.js"
WEIGHTS = ("enhanced_model_handwriting.pth", "enhanced_model_best.pth", "enhanced_model.pth")


def quantize(model: EnhancedNet) -> tuple[str, list[float]]:
    """Return the parameters as 16-bit integers in base64, and the scale of each tensor.

    They take as little space as float16, and are three times as exact here.
    """
    content = b""
    scales = []
    with torch.no_grad():
        for tensor in model.parameters():
            scale = float(tensor.abs().max()) / 32_767
            integers = (tensor / scale).round().short().numpy()
            content += integers.astype("<i2").tobytes()
            scales.append(scale)
    return base64.b64encode(content).decode(), scales


def page(weights: Path) -> str:
    """Return the page for the weights of an EnhancedNet, with the test result from their card."""
    model = load_weights(EnhancedNet(), weights)
    card = read_card(weights)
    parameters, scales = quantize(model)

    # The page is one plain script, which has no exports.
    pad = PAD.read_text(encoding="utf-8").replace("export function", "function")

    replacements = {
        "RESULT": f"{card['test_correct']:,} of {card['test_images']:,}",
        "DIGITS": (WEB / "digits.js").read_text(encoding="utf-8"),
        "NETWORK": (WEB / "network.js").read_text(encoding="utf-8"),
        "PAD": pad,
        "WEIGHTS": parameters,
        "SCALES": json.dumps(scales),
        "MEAN": str(MEAN),
        "STD": str(STD),
    }
    text = (WEB / "page.html").read_text(encoding="utf-8")
    for name, replacement in replacements.items():
        text = text.replace(f"@{name}@", replacement)
    return text


def main() -> None:
    """Write `web/index.html`."""
    paths = [repo_root() / "models" / name for name in WEIGHTS]
    existing_paths = [path for path in paths if path.exists()]
    text = page(existing_paths[0])

    with atomic_write(WEB / "index.html") as file:
        file.write_text(text, encoding="utf-8", newline="\n")
    print(f"web/index.html: {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
