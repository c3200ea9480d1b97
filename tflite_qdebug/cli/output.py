"""What the command line writes: text for people or JSON for machines, and the folder of results."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug import __version__
from tflite_qdebug.errors import OutputError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.record import encoded
from tflite_qdebug.reports.tables import print_table


def terminal_width() -> int:
    """Returns how many characters of text stand in a line: as many as the terminal has, but no more than one likes to read."""
    return min(shutil.get_terminal_size((100, 24)).columns, 120)


class Screen:
    """Prints for people on standard output; with JSON wanted, prints nothing until the one result at the end."""

    def __init__(self, wants_json: bool) -> None:
        self.wants_json = wants_json

    def say(self, text: str = "") -> None:
        """Prints a line."""
        if not self.wants_json:
            print(text, flush=True)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
        """Prints a table."""
        if not self.wants_json:
            print_table(header, rows, title)

    def notes(self, notes: Iterable[str]) -> None:
        """Prints what the reader must know."""
        for note in notes:
            self.say(f"note: {note}")

    def result(self, value: Any) -> None:
        """Prints the result as JSON, where that is wanted."""
        if self.wants_json:
            print(json.dumps(encoded(value), indent=1, allow_nan=False, default=str))


class Folder:
    """The folder of results; without one, nothing is written."""

    def __init__(self, path: str | None) -> None:
        """Makes the folder.

        Raises:
            OutputError: Where it cannot be made.
        """
        self.path = Path(path) if path else None
        if self.path is not None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {self.path}: {error.strerror or error}") from error

    def write(self, name: str, content: bytes) -> None:
        """Writes one file."""
        if self.path is not None:
            write_atomically(self.path / name, content)

    def write_repeat(self, command: Sequence[str], **more: Any) -> None:
        """Writes what is needed to repeat the command: its words, versions, and what the verb adds."""
        versions = {"tflite_qdebug": __version__, "python": platform.python_version(), "platform": platform.platform()}
        for name in ("numpy", "tensorflow", "keras", "tf_keras", "ai_edge_litert", "numba"):
            module = sys.modules.get(name)
            if module is not None and hasattr(module, "__version__"):
                versions[name] = module.__version__
        content = {"command": ["tflite-qdebug", *command], "versions": versions, **more}
        self.write("repeat.json", json.dumps(encoded(content), indent=1, allow_nan=False, default=str).encode())
