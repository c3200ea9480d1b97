"""What to try, as text for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from tflite_qdebug.findings import Advice
from tflite_qdebug.wording import signed

__all__ = ["advice_lines", "gain_words"]

_NARROWEST = 40


def gain_words(advice: Advice) -> str:
    """Returns what it brings: ``expected +3.2 dB SQNR``, ``measured +5 points of top_1``; empty without an estimate."""
    if math.isnan(advice.gain):
        return ""
    kind = "at most" if advice.at_most else "measured" if advice.measured else "expected"
    return f"{kind} {signed(advice.gain, 2)} {advice.unit}".rstrip()


def advice_lines(advice: Sequence[Advice], width: int = 100) -> list[str]:
    """Returns what to try as lines; nothing without advice. Commands are never cut or wrapped, all else fits the width.

    Args:
        advice: In the order in which it is shown.
        width: Of the terminal, in characters; at least 40.
    """
    if not advice:
        return []
    lines = ["what to try (gains of several remedies do not add up):"]
    for place, each in enumerate(advice, 1):
        gain = gain_words(each)
        lines += _wrapped(f"{place}. {each.words}" + (f" {gain[0].upper()}{gain[1:]}." if gain else ""), width)
        lines += _wrapped(f"   ({each.how})", width) if each.how else []
        lines += [f"   {each.command}"] if each.command else []
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    width = max(width, _NARROWEST)
    return textwrap.wrap(text, width, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
