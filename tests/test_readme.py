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
    assert second.endswith("pytest")


def test_there_is_something_to_run() -> None:
    assert len(SHELL_BLOCKS) >= 2
    assert len(PYTHON_BLOCKS) >= 2


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in SHELL_BLOCKS[1:] for line in block.splitlines() if line.startswith("tflite-qdebug")]
    assert commands
    for command in commands:
        assert main([*shlex.split(command)[1:], "--no-progress"]) == 0, command
    assert "denylisted node" in capsys.readouterr().out


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out
