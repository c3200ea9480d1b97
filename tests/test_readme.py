"""What the README and the documents show runs, from its first command to its last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug.cli import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_opens_with_two_commands() -> None:
    first, second = blocks(README, "sh")[0].strip().splitlines()
    assert first.endswith("tflite-qdebug demo")
    assert second.endswith("pytest -n auto")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """One for each page, as for a reader who goes through it: what a block writes a later one may read."""
    return {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(
    page: Path, folders: dict[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders[page])
    shown = blocks(page, "sh")[1 if page == README else 0 :]
    lines = [line for block in shown for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("tflite-qdebug")]
    assert commands
    for command in commands:
        assert main([*shlex.split(command)[1:], "--no-progress"]) == 0, command
    if page == README:
        assert "denylisted node" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs(
    page: Path, folders: dict[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders[page])
    shown = blocks(page, "python")
    assert shown
    for number, block in enumerate(shown):
        exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": page.stem})
        assert capsys.readouterr().out, number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
