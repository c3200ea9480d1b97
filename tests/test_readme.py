"""What the README and the pages of the site show runs, from first to last, and prints what is shown as its output."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
#: What the site makes while it is built, where tests/test_site.py looks at all links.
MADE = ("api/", "notebooks/", "project/", "verbs/")
#: Languages of what is neither run nor printed.
SHOWN_ALONE = {"diff", "json"}
#: Pages that only lead to others.
WITHOUT_EXAMPLES = {"index.md"}
#: What makes an environment is run by .ci/run in a fresh one; what a shell does by itself, by the tests of completion.
OF_THE_SHELL = (
    r"git clone |cd |python3? -m venv |(\.venv/bin/|\.venv/bin/python -m )?pip install |\. |source |eval |#|pytest|export "
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block, and the one before it where nothing but empty lines stand between the two."""

    language: str
    text: str
    line: int
    after: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = -1
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        follows = end >= 0 and not text[end : match.start()].strip()
        language = match[1].strip()
        found.append(Block(language, match[2], text[: match.start()].count("\n") + 1, found[-1].language if follows else ""))
        end = match.end()
    return found


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def check_shown(shown: str, printed: str, where: str) -> None:
    """Each line that is shown was printed, in this order; ``...`` stands for anything, numbers may differ by a tenth."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in shown.splitlines():
        wanted = " ".join(line.split())
        if wanted in ("", "..."):
            continue
        place = next((place for place, got in enumerate(lines) if agrees(wanted, got)), None)
        assert place is not None, f"{where}: {line!r} is shown, and not printed; left of what is:\n" + "\n".join(lines[:60])
        del lines[: place + 1]


NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def agrees(shown: str, printed: str) -> bool:
    pattern = r"[-+]?[\d.]+(?:e[-+]?\d+)?".join(re.escape(part).replace(r"\.\.\.", ".*") for part in NUMBER.split(shown))
    # What rules a table is as wide as its columns happen to be.
    match = re.fullmatch(re.sub(r"(\\-){2,}", "-+", pattern), printed)
    if not match or "..." in shown:
        return bool(match)
    pairs = zip(map(float, NUMBER.findall(shown)), map(float, NUMBER.findall(printed)), strict=True)
    return all(abs(a - b) <= max(0.1 * max(abs(a), abs(b)), 0.02) for a, b in pairs)


@pytest.mark.parametrize(("shown", "printed", "same"), [
    ("top_1 is 74.5 %", "top_1 is 75.5 %", True),
    ("top_1 is 74.5 %", "top_1 is 99 %", False),
    ("conv2d_1 1.0", "conv2d_2 1.0", False),
    ("45 layers, ... 2 workers", "45 layers, 150 samples; 2 workers", True),
    ("a ---- b", "a --- b", True),
    ("done", "not done", False),
])  # fmt: skip
def test_what_counts_as_shown(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def test_opens_with_two_commands() -> None:
    first, second = commands(next(block for block in blocks(README) if block.language == "sh").text)
    assert first.endswith("tflite-qdebug demo")
    assert second.endswith("pytest -n auto")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In one folder and one session, as for a reader who goes through it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")  # narrower terminals have shorter names
    session: dict[str, Any] = {"__name__": page.stem}
    ran = 0
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "sh":
            for command in commands(block.text):
                if command.startswith("tflite-qdebug "):
                    assert main([*shlex.split(command)[1:], "--no-progress"]) == 0, f"{where}: {command}"
                    ran += 1
                else:
                    assert re.match(OF_THE_SHELL, command), f"{where}: nothing runs {command!r}"
            printed = capsys.readouterr().out
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), session)
            printed = capsys.readouterr().out
            assert printed, f"{where}: prints nothing"
            ran += 1
        elif block.language in ("", "text"):
            if block.after in ("sh", "python"):
                check_shown(block.text, printed, where)
        else:
            assert block.language.startswith("{") or block.language in SHOWN_ALONE, (
                f"{where}: a block of {block.language!r} is neither run nor output"
            )
    assert ran or page.name in WITHOUT_EXAMPLES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        if page.parent.name == "docs" and target.startswith(MADE):
            continue
        assert (page.parent / target).exists(), target
