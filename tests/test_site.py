"""The site: it builds without a warning, its links lead somewhere, and it has every exported name and every option."""

from __future__ import annotations

import html.parser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_nb")

import tflite_qdebug
from tflite_qdebug import errors

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
from command_pages import examples, verbs  # noqa: E402

from tflite_qdebug.cli.main import parser  # noqa: E402

VERBS = verbs(parser())
#: What the building itself writes beside the pages.
MADE = shutil.ignore_patterns("_build", "api", "notebooks", "project", "verbs", "__pycache__", ".ipynb_checkpoints")


class Page(html.parser.HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.loaded += [found[name] for name in ("src", "href") if name in found and tag in ("script", "img", "link")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Builds the site from a copy, and returns its pages by their places in it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=MADE)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=MADE)
    for name in ("benchmarks/README.md", "CHANGELOG.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "built"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.fail(done.stderr[-4000:], pytrace=False)
    return {path.resolve(): Page(path) for path in (folder / "built").rglob("*.html")}


def of(site: dict[Path, Page], name: str) -> Page:
    return next(page for path, page in site.items() if path.as_posix().endswith(f"/built/{name}.html"))


def test_links_and_anchors_exist(site: dict[Path, Page]) -> None:
    checked = 0
    for path, page in site.items():
        for link in page.links:
            if link.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / unquote(place)).resolve() if place else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in site:
                assert unquote(anchor) in site[target].anchors, f"{path.name}: {link}"
                checked += 1
    assert checked > 100


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert not [loaded for loaded in page.loaded if loaded.startswith(("http:", "https:", "//"))], path.name


def test_the_reference_has_every_exported_name(site: dict[Path, Page]) -> None:
    anchors = set().union(*(page.anchors for path, page in site.items() if path.parent.name == "api"))
    exported = [name for name, module in tflite_qdebug._EXPORTS.items() if module != "errors"]
    assert len(exported) > 50
    assert {f"tflite_qdebug.{name}" for name in exported} <= anchors
    raised = [name for name in errors.__all__ if name.endswith("Error")]
    assert {f"tflite_qdebug.errors.{name}" for name in raised} <= anchors


def test_each_verb_has_a_page_with_all_its_options(site: dict[Path, Page]) -> None:
    assert len(VERBS) > 20
    overview = of(site, "commands").links
    for name, verb in VERBS.items():
        place = name.replace(" ", "-")
        assert f"verbs/{place}.html" in overview, f"docs/commands.md does not lead to {name}"
        anchors = of(site, f"verbs/{place}").anchors
        for option in (option for action in verb._actions for option in action.option_strings if option.startswith("--")):
            if option != "--help":
                assert f"cmdoption-tflite-qdebug-{place}-{option.lstrip('-')}" in anchors, f"{name} {option}"


def test_notebooks_are_shown_with_their_plots(site: dict[Path, Page]) -> None:
    names = [path.stem for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert names
    for name in names:
        assert [image for image in of(site, f"notebooks/{name}").loaded if image.endswith(".png")], name


@pytest.mark.parametrize("name", VERBS)
def test_examples_of_help_are_taken_by_the_parser(name: str) -> None:
    for line in examples(VERBS[name]).replace("\\\n", " ").splitlines():
        if line.startswith("tflite-qdebug "):
            words = shlex.split(line, comments=True)[1:]
            assert " ".join(words).startswith(name)
            parser().parse_args(words)
