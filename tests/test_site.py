"""The website, opened in a real browser: its links lead somewhere, and it needs no other host."""

import runpy
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

import pytest
from helpers import ROOT

# In a page: its links, the files that it names, the ids that a link can lead to, and its width.
INSPECT = """() => {
  const absolute = (text) => new URL(text, document.baseURI).href;
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    links: all("a[href], area[href]").map((e) => absolute(e.getAttribute("href"))),
    files: all("[src], link[href]").map((e) => absolute(e.getAttribute("src") ?? e.href)),
    ids: all("[id], a[name]").map((e) => e.id || e.name),
    width: document.documentElement.scrollWidth,
  };
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site").resolve()
    build_site = runpy.run_path(str(ROOT / "web" / "build_site.py"))
    build_site["build"](folder)
    return folder


@pytest.fixture(scope="module")
def report_by_page(site, browser) -> dict[Path, dict]:
    """What a phone's browser finds on each page, the requests that it makes, its complaints."""
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    complaints = []
    requests = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.route("http*://**", lambda route: route.abort())  # a test uses no network

    report_by_page = {}
    for path in sorted(site.rglob("*.html")):
        tab.goto(path.as_uri())
        report = tab.evaluate(INSPECT)
        report["requests"] = requests.copy()
        report["complaints"] = complaints.copy()
        report_by_page[path] = report
        requests.clear()
        complaints.clear()
    tab.close()
    return report_by_page


def local_path(url: str) -> Path | None:
    """Return the file of a URL, or None if it leads to another host."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def test_site_has_the_page_every_notebook_and_both_packages(site):
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("[A-Z]*.ipynb")}
    notebooks = {name for name in notebooks if not name.endswith(("-digits", "-tweaked"))}
    assert {path.stem for path in (site / "notebooks").iterdir()} == notebooks
    assert (site / "draw.html").read_bytes() == (ROOT / "web" / "index.html").read_bytes()

    for package in ("mnist_mlp", "mnist_lab"):
        modules = [
            path.relative_to(ROOT / "src") for path in (ROOT / "src" / package).rglob("[a-z]*.py")
        ]
        assert len(modules) > 10
        for module in modules:
            assert (site / "api" / module.with_suffix(".html")).exists(), module


def test_pages_load_nothing_from_other_hosts_and_complain_of_nothing(site, report_by_page):
    for path, report in report_by_page.items():
        for url in report["requests"]:
            if not url.startswith(("data:", "blob:")):
                target = local_path(url)
                assert target, f"{path}: {url}"
                assert target.is_relative_to(site), f"{path}: {url}"
        assert report["complaints"] == [], path


def test_site_names_no_folder_of_the_machine_that_built_it(site):
    for path in site.rglob("*.*"):
        assert ROOT.as_posix().encode() not in path.read_bytes(), path


def test_pages_of_our_own_are_as_narrow_as_a_phone(site, report_by_page):
    for path, report in report_by_page.items():
        if not path.is_relative_to(site / "api"):
            assert report["width"] <= 390, path


def test_links_lead_to_files_and_ids_that_exist(site, report_by_page):
    for path, report in report_by_page.items():
        for url in report["links"] + report["files"]:
            target = local_path(url)
            if target is None:
                continue
            assert target.is_file(), f"{path}: {url}"
            assert target.is_relative_to(site), f"{path}: {url}"
            fragment = unquote(urldefrag(url).fragment)
            if fragment and target in report_by_page:
                assert fragment in report_by_page[target]["ids"], f"{path}: {url}"


def test_every_page_is_reached_from_the_first(site, report_by_page):
    reached = set()
    new = {site / "index.html"}
    while new:
        reached |= new
        linked = {local_path(url) for path in new for url in report_by_page[path]["links"]}
        new = linked & set(report_by_page) - reached
    assert reached == set(report_by_page)
