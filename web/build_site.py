"""Build the website: the page, the notebooks, the API reference, and an index of them.

`make site`, or `python web/build_site.py FOLDER`. The notebooks are shown with their committed
outputs. No page loads anything from another host.
"""

import json
import pkgutil
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
import pdoc
from nbconvert import HTMLExporter

import mnist_mlp

WEB = Path(__file__).resolve().parent
ROOT = WEB.parent
TEMPLATES = WEB / "templates"


def index() -> str:
    """Return the first page, with the record's result and a link to the repository, if known."""
    record = json.loads((ROOT / "benchmarks" / "accuracy" / "seeds.json").read_bytes())
    summary = record["summary"]
    mean = summary["test_accuracy_mean"]
    stdev = summary["test_accuracy_stdev"]

    source = ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"].get("Repository")  # `make address` writes it
    if address:
        source = f' · <a href="{address}">Source code</a>'

    replacements = {
        "ACCURACY": f"{mean:.2%} ± {100 * stdev:.2f}",
        "SECONDS": f"{summary['training_seconds_mean']:.0f}",
        "SOURCE": source,
    }
    text = (TEMPLATES / "index.html").read_text(encoding="utf-8")
    for name, replacement in replacements.items():
        text = text.replace(f"@{name}@", replacement)
    return text


def notebook(name: str) -> str:
    """Return a notebook as a page. Where it names the drawing page, it gets a link to it."""
    document = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    document.metadata.title = name.replace("-", " ")
    exporter = HTMLExporter(template_file=str(TEMPLATES / "notebook.html.j2"))
    text, _ = exporter.from_notebook_node(document)
    return text.replace("<code>web/index.html</code>", '<a href="../draw.html">web/index.html</a>')


def api(folder: Path) -> None:
    """Write the API reference of both packages, from their docstrings, into a folder."""
    # In a package that has an `__all__`, pdoc finds no modules by itself.
    modules = [f"mnist_mlp.{module.name}" for module in pkgutil.iter_modules(mnist_mlp.__path__)]
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("mnist_mlp", *modules, "mnist_lab", output_directory=folder)

    # pdoc shows the values of constants, and those of paths begin with this machine's folders.
    for path in folder.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{ROOT.as_posix()}/", ""), encoding="utf-8")


def build(folder: Path) -> None:
    """Write the whole site into a folder."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)

    first_page = index()
    (folder / "index.html").write_text(first_page, encoding="utf-8")
    shutil.copy(ROOT / "figures" / "page.png", folder)
    shutil.copy(WEB / "index.html", folder / "draw.html")

    for name in re.findall(r'href="notebooks/(.*?)\.html"', first_page):
        (folder / "notebooks" / f"{name}.html").write_text(notebook(name), encoding="utf-8")
    api(folder / "api")


def main() -> None:
    """Write the site into the folder that the command line names, and print its size."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    build(folder)

    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
