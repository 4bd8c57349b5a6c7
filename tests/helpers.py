"""Helpers that several test files share."""

import io
import multiprocessing
import os
import re
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path

# pytest-xdist starts one process per core, so each gets one thread. torch reads this on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # our kernel, not one of the user's own

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

# Notebook kernels would inherit MPLBACKEND, and would then show no figures.
matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
CLASSES = tuple("abc")  # of the small evaluation in conftest.py


def texts(ax) -> list[str]:
    """Return the texts that are written on the axes."""
    return [text.get_text() for text in ax.texts]


def code_cells(notebook) -> list:
    """Return a notebook's code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def assert_same_picture(new: Path, published: Path) -> None:
    """Compare a figure with the published one, which the pinned version of matplotlib drew."""
    pinned = re.search(
        r"matplotlib==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8")
    )
    if matplotlib.__version__ != pinned[1]:
        pytest.skip(f"the published figures were drawn with matplotlib {pinned[1]}")
    one = plt.imread(new)
    other = plt.imread(published)
    assert one.shape == other.shape
    assert abs(one - other).mean() < 0.001


def fresh_process_context(*preload: str):
    """Return a multiprocessing context whose processes share nothing with this one."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(list(preload))
    return context


def visible(folder: Path) -> list[str]:
    """The names of the files in a folder, without lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@contextmanager
def full_disk(size: int):
    """Limit files to `size` bytes: writes beyond it fail as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def few_or_all(few, many):
    """Parametrize a test with a few cases, and with all of them under `make test-all`."""
    return [few, pytest.param(many, marks=pytest.mark.campaign)]


# Windows has no SIGKILL, and its error messages differ.
not_on_windows = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


def changed(*paths: str) -> list[str] | None:
    """Return which of these files are not as committed, or None if git cannot tell."""
    command = ["git", "-c", "core.quotePath=off", "status", "--porcelain", "--", *paths]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return None
    return None if done.returncode else [line[3:] for line in done.stdout.splitlines()]


def skip_unless_published(*paths: str) -> None:
    """Skip the test if one of these files differs from the commit.

    `make` commands overwrite published files with the user's own results.
    """
    found = changed(*paths)
    if found is None:
        assert not os.environ.get("CI"), "git cannot tell whether the files are as committed"
        pytest.skip("this is not a git checkout, so published files cannot be told from your own")
    if found:
        pytest.skip(
            f"{', '.join(found)} differ from what is published; "
            f"`git restore {' '.join(paths)}` restores them"
        )


def idx(array: np.ndarray) -> bytes:
    """Return the array in the IDX format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def paste_digit(digit: np.ndarray, random: np.random.Generator, rough: bool) -> np.ndarray:
    """Paste a digit at a random size and place, dark on light or light on dark.

    If `rough`, add uneven light, noise and JPEG artefacts.
    """
    side = int(random.integers(60, 261))
    top, left = random.integers(0, 281 - side, 2)
    ink = np.zeros((280, 280))
    big = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink[top : top + side, left : left + side] = np.asarray(big) / 255
    paper = random.uniform(0, 0.3)
    pen = random.uniform(0.6, 1.0)
    grey = paper + (pen - paper) * ink
    if random.random() < 0.5:
        grey = 1 - grey
    if not rough:
        return (255 * grey).round().astype(np.uint8)
    y, x = np.mgrid[:280, :280] / 279 - 0.5
    angle = random.uniform(0, 2 * np.pi)
    light = 1 - random.uniform(0, 0.4) * (0.5 + np.cos(angle) * x + np.sin(angle) * y)
    light -= random.uniform(0, 0.6) * (x**2 + y**2)
    texture = ndimage.gaussian_filter(random.standard_normal((280, 280)), 1)
    texture *= random.uniform(0, 0.03) / texture.std()
    speckle = random.standard_normal((280, 280)) * random.uniform(0, 0.02)
    grey = np.clip(grey * light + texture + speckle, 0, 1)
    file = io.BytesIO()
    Image.fromarray((255 * grey).round().astype(np.uint8)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def write_shapes(folder, classes=("crosses", "rings", "élan vital"), count=24):
    """Write pictures of three kinds of marks, named with spaces and accents."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:90, :90]
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            down = y - random.integers(35, 55)
            across = x - random.integers(35, 55)
            size = random.integers(18, 30)
            near = np.maximum(abs(down), abs(across)) < size
            marks = [
                near & ((abs(down) < 4) | (abs(across) < 4)),
                abs(np.hypot(down, across) - size + 4) < 4,
                near & (abs(down - across) < 6),
            ]
            grey = np.where(marks[label], 40, 230).astype(np.uint8)
            Image.fromarray(grey).save(folder / name / f"a picture {i}.png")
    return folder
