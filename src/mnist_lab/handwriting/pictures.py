"""Pictures of the common formats, read safely as brightness from 0 to 1."""

import math
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
HEIC_SUFFIXES = (".heic", ".heif")  # photos of an iPhone: an extra package opens them
HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1")  # where the contents of such a file begin
MAX_PIXELS = 2**27  # 134 million: more than a camera has, less than a decompression bomb
WORK_SIDE = 640  # pixels: larger pictures are reduced first
MIN_CONTRAST = 0.06  # of the whole scale: a picture with less is empty

Picture = str | PathLike | Image.Image | np.ndarray | torch.Tensor


def read_reduced(picture: Picture) -> tuple[np.ndarray, int]:
    """Return the picture's brightness, reduced if it is large, and by how much it was reduced.

    Args:
        picture: A picture as for `to_mnist`.

    Returns:
        The brightness from 0 to 1, float64 of shape (H, W), and the number of the picture's pixels
        along a side of one of these.

    Raises:
        ValueError: The picture is damaged, too large or of an unknown format.
        OSError: The file is missing or not readable.
    """
    if isinstance(picture, (str, PathLike)):
        picture = _open_file(picture)
    elif isinstance(picture, Image.Image):
        picture = _upright(picture)
    else:
        picture = _from_array(picture)

    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"a picture of {picture.width:,} x {picture.height:,} pixels is too large, "
            f"expected at most {MAX_PIXELS:,}."
        )

    if picture.mode == "P":
        picture = picture.convert("RGBA")
    if picture.mode == "1":
        picture = picture.convert("L")

    factor = math.ceil(max(picture.size) / WORK_SIDE)
    # Pillow's modes I, I;16, I;16B ... are integers of 32 or 16 bits, and F are floats.
    has_8_bits = picture.mode not in ("I", "F") and not picture.mode.startswith("I;")
    if has_8_bits:
        return _flatten(picture.reduce(factor)), factor

    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a picture's values must be finite, found infinite ones or NaN.")
    if picture.mode != "F":
        # Pillow may open integers as 16 or 32 bits even if the values fit into 8.
        full_scale = 255 if values.max() <= 255 else 65_535
        values = values / full_scale
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            "a picture's floats must lie between 0 and 1, "
            f"found {values.min():g} to {values.max():g}."
        )
    reduced = Image.fromarray(values.astype(np.float32)).reduce(factor)
    return np.asarray(reduced, np.float64), factor


def _flatten(picture: Image.Image) -> np.ndarray:
    """Return an 8-bit picture's brightness, on white paper where it is transparent."""
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L")) / 255

    picture = picture.convert("RGBA")
    opacity = np.asarray(picture)[:, :, 3] / 255
    strokes, count = ndimage.label(opacity > 0.5, np.ones((3, 3)))
    for brightness, paper in ((1, "white"), (0, "black")):  # black where white would hide white ink
        sheet = Image.new("RGBA", picture.size, paper)
        grey = np.asarray(Image.alpha_composite(sheet, picture).convert("L")) / 255
        contrast = ndimage.median(np.abs(grey - brightness), strokes, range(1, count + 1))
        if np.ptp(grey) >= MIN_CONTRAST and (np.asarray(contrast) >= MIN_CONTRAST).all():
            return grey
    # Either paper would hide some of the strokes: all that is not transparent is ink.
    return 1 - opacity


def _open_file(path: str | PathLike) -> Image.Image:
    """Read a picture's file and apply the camera's rotation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked
            with Image.open(path, formats=(*FORMATS, *_heic_formats())) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(
                        f"{path} has {picture.width:,} x {picture.height:,} pixels, "
                        f"expected at most {MAX_PIXELS:,} in all."
                    )
                # In an MPO file the first frame is the photo and the second a preview; in a HEIC
                # file Pillow starts with the frame that the camera calls the photo.
                frames = getattr(picture, "n_frames", 1)
                if frames > 1 and picture.format not in ("MPO", "HEIF"):
                    raise ValueError(f"{path} has {frames} frames, expected one picture.")
                picture.load()
                return _upright(picture)
    except UnidentifiedImageError as error:
        if not _heic_formats() and _is_heic(path):
            raise ValueError(
                f"{path} is a HEIC picture, which needs an extra: pip install -e '.[heic]', "
                "or save it as JPEG."
            ) from error
        raise ValueError(
            f"{path} is not a picture: expected one of {', '.join(FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has too many pixels, expected at most {MAX_PIXELS:,} in all."
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError):
        raise  # these say clearly what is wrong
    except Exception as error:  # Pillow's decoders raise errors of every class on damaged files
        raise ValueError(f"{path} is damaged: {error}.") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Return a picture as the camera was held. Only a turned one is copied: it may be large."""
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return picture if orientation == 1 else ImageOps.exif_transpose(picture)


def _heic_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that pillow-heif adds, if it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _is_heic(path: str | PathLike) -> bool:
    """Tell by its name or its contents whether a file is a HEIC picture."""
    if Path(path).suffix.lower() in HEIC_SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(12)[4:] in HEIC_BRANDS


def _from_array(values: np.ndarray | torch.Tensor) -> Image.Image:
    """Return an array as a picture: 8 bits, or grey with 16 bits or floats."""
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]

    is_grey = values.ndim == 2
    is_colour = values.ndim == 3 and values.shape[2] in (3, 4)
    if not (is_grey or is_colour) or not values.size:
        raise ValueError(
            f"a picture's array must be (H, W), (H, W, 3) or (H, W, 4), found {values.shape}."
        )

    # Bits of 0 and 1 are ink and paper, not two shades of black.
    if values.dtype == bool or (values.dtype == np.uint8 and values.max() == 1):
        values = values.astype(np.uint8) * np.uint8(255)

    # Pillow has floats and 16 bits for grey pictures only: colours are reduced to 8 bits.
    if is_colour and values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("a picture's floats must lie between 0 and 1.")
        values = (values * 255.0).round().astype(np.uint8)
    if is_colour and values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)

    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    elif values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"a picture's array must be uint8, uint16, bool or float, found {values.dtype}."
        )
    return Image.fromarray(values)
