"""What the README shows runs, from its first command to its last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SHELL_BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_opens_with_two_commands() -> None:
    first, second = SHELL_BLOCKS[0].strip().splitlines()
    assert first.endswith("tflite-qdebug demo")
    assert second.endswith("pytest -n auto")


def test_there_is_something_to_run() -> None:
    assert len(SHELL_BLOCKS) >= 2
    assert len(PYTHON_BLOCKS) >= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, as for a reader who goes through the page: what a block writes a later one may read."""
    return tmp_path_factory.mktemp("readme")


def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    lines = [line for block in SHELL_BLOCKS[1:] for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("tflite-qdebug")]
    assert commands
    for command in commands:
        assert main([*shlex.split(command)[1:], "--no-progress"]) == 0, command
    assert "denylisted node" in capsys.readouterr().out


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_runs(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out
