"""What a long analysis has measured so far, in a file: interrupted, it goes on from there."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tflite_qdebug.errors import OutputError, QDebugError
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
        passes: ``{pass: {"errors": ..., "next": sample, "about": ...}}``.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        """Reads the file, where there is one, and writes it: that it cannot be is told before the work and not after it.

        Raises:
            OutputError: Where it cannot be written.
        """
        self.path, self.key, self._written = path, key, time.monotonic()
        self.passes: dict[str, dict[str, Any]] = {}
        if path is not None:
            self._read(path)
            self._write(path)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
        # Another measurement's, an older version's, a broken one: begun anew.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, QDebugError):
            found = decoded(json.loads(content))
            if found["key"] == self.key:
                for entry in found["passes"].values():
                    OutputErrors.from_dict(entry["errors"]), int(entry["next"])
                self.passes = found["passes"]

    def state(self, number: int, empty: OutputErrors) -> tuple[OutputErrors, int]:
        """Returns what a pass had measured, and the sample it goes on with."""
        entry = self.passes.get(str(number))
        return (OutputErrors.from_dict(entry["errors"]), int(entry["next"])) if entry else (empty, 0)

    def about(self, number: int) -> dict[str, Any]:
        """Returns what was kept beside what a pass had measured; empty for a pass that had not begun."""
        return dict(self.passes.get(str(number), {}).get("about") or {})

    def keep(
        self,
        number: int,
        errors: OutputErrors,
        following: int,
        *,
        now: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes it, now and then.

        Args:
            number: Of the pass.
            errors: All that it has measured.
            following: The sample that it goes on with.
            now: Write it in any case.
            about: What else the result needs of the samples so far, as plain data: notes, which code ran.
        """
        if self.path is None or not (now or time.monotonic() - self._written > _SAVED_EVERY):
            return
        self.passes[str(number)] = {"errors": errors.to_dict(), "next": following, "about": dict(about or {})}
        self._write(self.path)

    def _write(self, path: Path) -> None:
        write_atomically(path, json.dumps(encoded({"key": self.key, "passes": self.passes}), allow_nan=False).encode())
        self._written = time.monotonic()

    def finish(self) -> None:
        """Removes the file: the result takes its place."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        """Removes the file after an error that left nothing in it for another run to use."""
        if kind is not None and not self.passes:
            self.finish()
