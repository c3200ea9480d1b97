"""What a search has measured and decided, on disk: interrupted, it comes to the same place again without measuring anew."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.errors import OutputError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.outcome import Difference, Measured
from tflite_qdebug.record import decoded, encoded
from tflite_qdebug.remedies.scoring import Scored

__all__ = ["Logbook"]

# Seconds between two times that it is written where only small steps were made.
_SAVED_EVERY = 5.0


class Logbook:
    """Measurements and decisions by name.

    A search is the same whenever its models, samples and options are; so it need not be stored where it stands. It begins anew,
    and what is in here is not measured again.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        """Reads what there is.

        Args:
            folder: Where it is kept; None: in memory.
            key: What tells this search from others; what another left behind is not read.

        Raises:
            OutputError: Where the folder cannot be written: that is told before the work and not after it.
        """
        self._path = None if folder is None else folder / "logbook.json"
        self._key, self._written = key, 0.0
        self._models: dict[str, Any] = {}
        self._parts: dict[str, dict[str, Any]] = {}
        if self._path is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self._read(self._path)
            self.save(now=True)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
        found = decoded(json.loads(content))
        if found["key"] == self._key:
            for fields in found["models"].values():
                _restored(fields)
            self._models, self._parts = found["models"], found["parts"]

    def scored(self, sha256: str) -> Scored | None:
        """Returns what was measured of a file."""
        fields = self._models.get(sha256)
        return None if fields is None else _restored(fields)

    def put_scored(self, sha256: str, scored: Scored) -> None:
        """Notes what was measured of a file."""
        self._models[sha256] = {
            "objective": scored.objective,
            "objectives": base64.b64encode(scored.objectives.astype("<f8").tobytes()).decode(),
            "metrics": {name: dataclasses.astuple(value) for name, value in scored.metrics.items()},
            "differences": {name: dataclasses.astuple(value) for name, value in scored.differences.items()},
            "notes": list(scored.notes),
        }

    def part(self, name: str) -> MutableMapping[str, Any]:
        """Returns the decisions of one stage, to be read and added to."""
        return self._parts.setdefault(name, {})

    def get(self, part: str, name: str) -> Any:
        """Returns one decision; None where it has not been made."""
        return self._parts.get(part, {}).get(name)

    def put(self, part: str, name: str, value: Any) -> None:
        """Notes one decision."""
        self.part(part)[name] = value
        self.save(now=True)

    def save(self, now: bool = False) -> None:
        """Writes it, now and then.

        Raises:
            OutputError: Where it cannot be written.
        """
        if self._path is None or not (now or time.monotonic() - self._written > _SAVED_EVERY):
            return
        content = {"key": self._key, "models": self._models, "parts": self._parts}
        write_atomically(self._path, json.dumps(encoded(content), allow_nan=False).encode())
        self._written = time.monotonic()


def _restored(fields: dict[str, Any]) -> Scored:
    return Scored(
        float(fields["objective"]),
        np.frombuffer(base64.b64decode(fields["objectives"]), "<f8"),
        {name: Measured(*values) for name, values in fields["metrics"].items()},
        {name: Difference(*values) for name, values in fields["differences"].items()},
        tuple(fields["notes"]),
    )
