"""The errors that the package raises, all below one root.

Every message says what was got, what was expected and what to do next. The classes also derive from the built-in
exception a caller of TensorFlow's debugger would expect (``ValueError`` for wrong input, ``RuntimeError`` for a step that
failed), so that code written for it keeps working.
"""

from __future__ import annotations

import difflib
import re
from typing import Iterable, List

__all__ = [
    "ConversionError",
    "DatasetError",
    "InterpreterError",
    "LimitError",
    "MetricError",
    "MissingPackageError",
    "ModelError",
    "OptionError",
    "OutputError",
    "QDebugError",
    "completed",
    "did_you_mean",
    "nearest_names",
]


class QDebugError(Exception):
    """Root of all errors raised on purpose by this package.

    Attributes:
        exit_code: What the command line returns to the shell for this kind of failure.
    """

    exit_code = 1


class OptionError(QDebugError, ValueError):
    """An option or argument that means nothing here, such as an unknown denylist name."""

    exit_code = 2


class ModelError(QDebugError, ValueError):
    """A model that cannot be read, or is not of the kind that was asked for."""

    exit_code = 3


class DatasetError(QDebugError, ValueError):
    """A sample or a dataset that does not fit the model: count, name, shape, dtype, NaN, empty, exhausted."""

    exit_code = 4


class NoSampleError(DatasetError):
    """A dataset has samples, but none for the signature that is asked for."""


class ConversionError(QDebugError, RuntimeError):
    """TensorFlow could not convert, calibrate or quantize the model."""

    exit_code = 5


class InterpreterError(QDebugError, RuntimeError):
    """An interpreter, its kernels or a delegate could not be opened or failed while running."""

    exit_code = 6


class MissingPackageError(QDebugError, ImportError):
    """A package that is needed for this step is not installed."""

    exit_code = 7


class OutputError(QDebugError, OSError):
    """A result could not be written: full disk, missing folder, no permission."""

    exit_code = 8


class MetricError(QDebugError, ValueError):
    """A metric given by the user raised, or returned something other than one number."""

    exit_code = 9


class LimitError(QDebugError):
    """A quantized model misses a limit that it was held to."""

    exit_code = 11


def nearest_names(name: str, names: Iterable[str], count: int = 3) -> List[str]:
    """Returns the up to ``count`` names most like ``name``, best first."""
    wanted = name.lower()
    scores = {}
    for known in dict.fromkeys(names):
        # A converter joins the names of what it fused; what a person types is like one part of it.
        parts = [known.lower()] + re.split(r"[/;:]", known.lower())
        matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)
        likeness = 0.0
        for part in parts:
            matcher.set_seq1(part)
            likeness = max(likeness, matcher.ratio())
        matcher.set_seq1(parts[0])  # among names with an equal part, the one that is more like as a whole
        scores[known] = likeness + 0.01 * matcher.ratio() + (1.0 if wanted and wanted in parts[0] else 0.0)
    likely = [known for known, score in scores.items() if score > 0.4]
    return sorted(likely, key=lambda known: -scores[known])[:count]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a sentence with the names nearest to ``name``, to be put behind an error message."""
    nearest = nearest_names(name, names)
    if not nearest:
        return ""
    return " Did you mean {}?".format(", or ".join(repr(known) for known in nearest))


def completed(name: str, known: Iterable[str], what: str) -> str:
    """Returns the one of the known names that a table shows as ``name``, with ``…`` for a part of it; else ``name`` itself.

    Raises:
        OptionError: Where several names could be meant; ``what`` they are stands in the message.
    """
    if "…" not in name:
        return name
    pattern = re.compile(".*".join(re.escape(part) for part in name.split("…")), re.DOTALL)
    found = [candidate for candidate in known if pattern.fullmatch(candidate)]
    if len(found) > 1:
        raise OptionError("got {} {!r}, which {} names fit: {}".format(what, name, len(found), ", ".join(map(repr, found[:5]))))
    return found[0] if found else name
