"""Draw the digits of handwriting fonts as one picture. No network here is trained on them.

`python benchmarks/accuracy/fonts.py FOLDER` makes `fonts.png` and `fonts.json` anew. The folder
holds packages of fontsource.org, fetched by `npm pack @fontsource/caveat ...`; nothing else needs
them. Most fonts are free under the SIL Open Font License, some under the Apache License;
`fonts.json` names the licence of each. The 43 Playwrite fonts show the handwriting that the schools
of 35 countries teach; the others are less formal.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_lab.handwriting.fonts import FONT_SHEET, SIDE
from mnist_mlp.files import write_json


def draw(font: ImageFont.FreeTypeFont, digit: str) -> np.ndarray:
    """Return a digit that fills the square except for a margin, uint8 in 16 levels of grey."""
    left, top, right, bottom = font.getbbox(digit)
    side = round(1.1 * max(right - left, bottom - top))
    square = Image.new("L", (side, side))

    # The box of the glyph counts from the corner, so this corner centres the glyph in the square.
    corner = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(square).text(corner, digit, font=font, fill=255)

    small = square.resize((SIDE, SIDE), Image.Resampling.BOX)
    return (np.asarray(small) // 16 * 17).astype(np.uint8)  # few levels compress well


def main(folder: str) -> None:
    fonts = []
    rows = []
    for path in sorted(Path(folder).glob("*.tgz")):
        with tarfile.open(path) as package:
            card = json.load(package.extractfile("package/metadata.json"))
            version = json.load(package.extractfile("package/package.json"))["version"]
            weight = 400 if 400 in card["weights"] else card["weights"][0]
            font_file = f"package/files/{card['id']}-latin-{weight}-normal.woff"
            font = ImageFont.truetype(io.BytesIO(package.extractfile(font_file).read()), 300)

        rows.append(np.concatenate([draw(font, str(digit)) for digit in range(10)], axis=1))
        fonts.append(
            {
                "family": card["family"],
                "package": version,
                "licence": card["license"]["type"],
            }
        )

    Image.fromarray(np.concatenate(rows)).save(FONT_SHEET, optimize=True)
    record = {"command": "python benchmarks/accuracy/fonts.py FOLDER", "fonts": fonts}
    write_json(FONT_SHEET.with_suffix(".json"), record)


if __name__ == "__main__":
    main(sys.argv[1])
