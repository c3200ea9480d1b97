"""The diagnosis as text for the terminal: verdict, layer and cause, and remedy in the first three lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from tflite_qdebug.findings import Diagnosis, Suspect
from tflite_qdebug.wording import shortened

__all__ = ["diagnosis_lines"]

_NARROWEST = 40


def diagnosis_lines(diagnosis: Diagnosis, width: int = 100) -> list[str]:
    """Returns the diagnosis as lines.

    The first three are the verdict, the first suspect with its cause, and its remedy; with no suspect, the verdict alone and
    the figures that it rests on. These three and what is meant to be copied are never cut or wrapped; all else fits the width.

    Args:
        diagnosis: What `analyses.diagnosis.diagnose` gave.
        width: Of the terminal, in characters; at least 40.
    """
    width = max(width, _NARROWEST)
    lines = [diagnosis.verdict]
    if diagnosis.suspects:
        first = diagnosis.suspects[0]
        lines += [_headline(1, first, width), f"   try: {first.remedy}"]
        lines += _details(first, width)
        for number, suspect in enumerate(diagnosis.suspects[1:], 2):
            lines += ["", *_wrapped(_headline(number, suspect, width), width, "   ")]
            lines += _wrapped(f"   try: {suspect.remedy}", width, "        ")
            lines += _details(suspect, width)
    if diagnosis.evidence:
        lines += ["", "The model as a whole:"]
        lines += [line for text in diagnosis.evidence for line in _wrapped(f"  - {text}", width, "    ")]
    if diagnosis.notes:
        lines += ["", "Not judged:"]
        lines += [line for text in diagnosis.notes for line in _wrapped(f"  - {text}", width, "    ")]
    return lines


def _headline(number: int, suspect: Suspect, width: int) -> str:
    cause = suspect.cause.replace("_", " ")
    return f"{number}. {suspect.op_name} {shortened(suspect.node, max(width // 2, 20))}: {cause}. {suspect.words}"


def _details(suspect: Suspect, width: int) -> Iterator[str]:
    for text in suspect.evidence:
        yield from _wrapped(f"   - {text}", width, "     ")
    if suspect.line:
        yield f"   copy: {suspect.line}"


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
