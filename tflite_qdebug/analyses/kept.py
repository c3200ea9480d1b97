"""What a long analysis has measured so far, in a file: interrupted, it goes on from there."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from tflite_qdebug.files import write_atomically
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.record import decoded, encoded

__all__ = ["Kept"]

# Seconds between two times that it is written.
_SAVED_EVERY = 20.0


class Kept:
    """What has been measured so far.

    Attributes:
        path: The file; None: nothing is kept.
        key: Tells this measurement from others; a file with another key is not read.
        passes: ``{pass: {"errors": ..., "next": sample}}``.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """Reads the file, where there is one."""
        self.path, self.key, self._written = path, key, time.monotonic()
        self.passes: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                content = decoded(json.loads(path.read_bytes()))
                if content["key"] == key:
                    self.passes = content["passes"]

    def state(self, number: int, empty: OutputErrors) -> tuple[OutputErrors, int]:
        """Returns what a pass had measured, and the sample it goes on with."""
        entry = self.passes.get(str(number))
        return (OutputErrors.from_dict(entry["errors"]), int(entry["next"])) if entry else (empty, 0)

    def keep(self, number: int, errors: OutputErrors, following: int, *, now: bool = False) -> None:
        """Writes it, now and then."""
        if self.path is None or not (now or time.monotonic() - self._written > _SAVED_EVERY):
            return
        self.passes[str(number)] = {"errors": errors.to_dict(), "next": following}
        write_atomically(self.path, json.dumps(encoded({"key": self.key, "passes": self.passes}), allow_nan=False).encode())
        self._written = time.monotonic()

    def finish(self) -> None:
        """Removes the file: the result takes its place."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
