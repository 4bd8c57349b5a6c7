"""The website, opened in a real browser: its links lead somewhere, and it needs no other host."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import pytest
from helpers import ROOT

# In a page: its links, what else it names, and the places in it that a link can lead to.
LINKS = """() => {
  const absolute = (text) => new URL(text, document.baseURI).href;
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    links: all("a[href], area[href]").map((e) => absolute(e.getAttribute("href"))),
    parts: all("[src], link[href]").map((e) => absolute(e.getAttribute("src") ?? e.href)),
    places: all("[id], a[name]").map((e) => e.id || e.name),
    width: document.documentElement.scrollWidth,
  };
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, ROOT / "web" / "build_site.py", folder]
    process = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site, browser) -> dict[Path, dict]:
    """What a phone's browser finds on each page, the requests that it makes, its complaints."""
    pages = {}
    requests = []
    complaints = []
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.route("http*://**", lambda route: route.abort())  # a test uses no network
    for path in sorted(site.rglob("*.html")):
        tab.goto(path.as_uri())
        pages[path] = {
            **tab.evaluate(LINKS),
            "requests": requests.copy(),
            "complaints": complaints.copy(),
        }
        requests.clear()
        complaints.clear()
    tab.close()
    return pages


def local(url: str) -> Path | None:
    """Return the file of a URL, or None if it leads to another host."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def test_site_has_the_page_every_notebook_and_both_packages(site):
    ours = [path.stem for path in (ROOT / "notebooks").glob("[A-Z]*.ipynb")]
    ours = [name for name in ours if not name.endswith(("-digits", "-tweaked"))]
    assert sorted(path.stem for path in (site / "notebooks").iterdir()) == sorted(ours)
    assert (site / "draw.html").read_bytes() == (ROOT / "web" / "index.html").read_bytes()
    for package in ("mnist_mlp", "mnist_lab"):
        modules = (ROOT / "src" / package).rglob("[a-z]*.py")
        paths = [path.relative_to(ROOT / "src").with_suffix(".html") for path in modules]
        assert len(paths) > 10
        assert [path for path in paths if not (site / "api" / path).exists()] == []


def test_no_page_loads_from_another_host_or_complains(site, pages):
    for path, page in pages.items():
        asked = [url for url in page["requests"] if not url.startswith(("data:", "blob:"))]
        foreign = [url for url in asked if not (local(url) or Path()).is_relative_to(site)]
        assert foreign == [], path
        assert page["complaints"] == [], path


def test_no_page_names_a_folder_of_the_machine_that_built_it(site):
    for path in filter(Path.is_file, site.rglob("*")):
        assert ROOT.as_posix().encode() not in path.read_bytes(), path


def test_our_own_pages_are_as_wide_as_a_phone(site, pages):
    for path, page in pages.items():
        if not path.is_relative_to(site / "api"):
            assert page["width"] <= 390, path


def test_no_link_is_broken(site, pages):
    for path, page in pages.items():
        for url in page["links"] + page["parts"]:
            target = local(url)
            if target:
                assert target.is_file(), f"{path}: {url}"
                assert target.is_relative_to(site), f"{path}: {url}"
            place = unquote(urldefrag(url).fragment)
            if place and target in pages:
                assert place in pages[target]["places"], f"{path}: {url}"


def test_every_page_is_reached_from_the_first(site, pages):
    reached = set()
    new = {site / "index.html"}
    while new:
        reached |= new
        linked = {local(url) for path in new for url in pages[path]["links"]}
        new = linked & set(pages) - reached
    assert reached == set(pages)
