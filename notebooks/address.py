"""Write the repository's address everywhere that it belongs.

`make address URL=https://github.com/you/mnist`, or `python notebooks/address.py URL`. The address
is kept in pyproject.toml. From it follow the badges in README.md and in the notebooks, the line to
clone in CONTRIBUTING.md, the entry in CITATION.cff, and the start of each notebook, which installs
the package if it is missing. A later address replaces an earlier one.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ADDRESS = r"https://github\.com/[\w-]+/[\w.-]+"
BADGE = r"\[!\[Open in Colab\]\(\S*\)\]\(\S*\)"  # as a pattern, whatever address it has

# How the first code cell of each notebook begins, without and with an address.
WITHOUT_ADDRESS = """\
try:
    from mnist_mlp import notebook
except ModuleNotFoundError as error:
    advice = "run `make lab` in this notebook's repository, or `pip install 'FOLDER[notebook]'`"
    raise ModuleNotFoundError(f"mnist_mlp is not installed here: {advice}.") from error

"""
WITH_ADDRESS = """\
try:
    from mnist_mlp import notebook
except ModuleNotFoundError:
    package = "mnist-mlp[notebook] @ git+URL"
    get_ipython().run_line_magic("pip", f'install "{package}"')
    from mnist_mlp import notebook

"""


def colab_badge(url: str, name: str) -> str:
    """Return a badge that opens a notebook in Colab, in Markdown; "" without an address."""
    if not url:
        return ""
    repository = url.removeprefix("https://github.com/")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab]({image})]({link})"


def replace(pattern: str, replacement, text: str) -> str:
    """Replace every match of the pattern, of which there must be one.

    Raises:
        ValueError: There is none.
    """
    text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if not count:
        raise ValueError(f"there is no place for the address: nothing matches {pattern!r}.")
    return text


def fill_project(text: str, url: str) -> str:
    """Return pyproject.toml with the address, which may be "" for none."""
    entry = f'Repository = "{url}"\n' if url else ""
    pattern = r'^\[project\.urls\]\n(Repository = ".*"\n)?'
    return replace(pattern, lambda match: f"[project.urls]\n{entry}", text)


def fill_readme(text: str, url: str) -> str:
    """Return README.md with the address."""
    # On GitHub, the relative path leads to the workflows of the repository that shows the file.
    actions = f"{url or '../..'}/actions/"
    text = replace(rf"\((\.\./\.\.|{ADDRESS})/actions/", lambda match: f"({actions}", text)

    def row(match: re.Match) -> str:
        badge = colab_badge(url, match["name"])
        return f"{match['link']} {badge}" if badge else match["link"]

    link = r"(?P<link>\| \[(?P<name>[\w-]+)\]\(notebooks/(?P=name)\.ipynb\))"
    return replace(rf"{link}( {BADGE})?", row, text)


def fill_contributing(text: str, url: str) -> str:
    """Return CONTRIBUTING.md with the address."""
    folder = url.split("/")[-1] or "REPOSITORY"
    line = f"git clone {url or 'ADDRESS'} && cd {folder}"
    return replace(r"^git clone \S+ && cd \S+$", lambda match: line, text)


def fill_citation(text: str, url: str) -> str:
    """Return CITATION.cff with the address."""
    entry = f"repository-code: {url}\n" if url else ""
    pattern = r"^(license: .*\n)(repository-code: .*\n)?"
    return replace(pattern, lambda match: match[1] + entry, text)


def fill_notebook(text: str, url: str, name: str) -> str:
    """Return a notebook, as the text of its file, with the address in its first two cells."""
    document = json.loads(text)
    cells = document["cells"]
    title = cells[0]
    imports = next(cell for cell in cells if cell["cell_type"] == "code")

    badge = colab_badge(url, name)
    paragraph = f"\n{badge}\n" if badge else ""
    source = "".join(title["source"])
    source = replace(rf"\A(# .*\n)(\n{BADGE}\n)?", lambda match: match[1] + paragraph, source)
    title["source"] = source.splitlines(keepends=True)

    start = WITH_ADDRESS.replace("URL", url) if url else WITHOUT_ADDRESS
    pattern = r"\Atry:\n    from mnist_mlp import notebook\nexcept (.*\n)*?\n"
    source = "".join(imports["source"])
    source = replace(pattern, lambda match: start, source)
    imports["source"] = source.splitlines(keepends=True)

    # As nbformat writes it.
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def fill(root: Path, url: str) -> None:
    """Write the address into all files of a repository.

    Args:
        root: The folder of the repository.
        url: The address, or "" for none.

    Raises:
        ValueError: A file has no place for the address. No file is then written.
    """
    fill_file = {
        "pyproject.toml": fill_project,
        "README.md": fill_readme,
        "CONTRIBUTING.md": fill_contributing,
        "CITATION.cff": fill_citation,
    }
    new_text = {}

    for name, function in fill_file.items():
        path = root / name
        new_text[path] = function(path.read_text(encoding="utf-8"), url)
    for path in sorted((root / "notebooks").glob("**/*.ipynb")):
        # The students' notebook is made from the one with the solutions, so both have one badge.
        name = path.stem.removesuffix("-with-solutions")
        new_text[path] = fill_notebook(path.read_text(encoding="utf-8"), url, name)

    for path, text in new_text.items():
        path.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Write the address that the command line gives."""
    url = sys.argv[1].strip() if len(sys.argv) == 2 else ""
    url = url.removesuffix("/").removesuffix(".git")
    if not re.fullmatch(ADDRESS, url):
        sys.exit(f"Expected an address such as https://github.com/you/mnist, found {url!r}.")

    try:
        fill(ROOT, url)
    except (OSError, ValueError) as error:
        sys.exit(f"The address was not written: {error}")
    print(f"{url} is written. Look at the changes with `git diff`, and commit them.")


if __name__ == "__main__":
    main()
