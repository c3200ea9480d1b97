"""How numbers and names are written for people, the same in every table, chart and sentence."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

__all__ = [
    "byte_size",
    "kilobytes",
    "number",
    "percent",
    "points",
    "probability",
    "short_labels",
    "shortened",
    "signed",
]


def number(value: Any, digits: int = 4) -> str:
    """Returns a number as a person reads it: so many significant digits, no exponent where none is needed."""
    value = float(value)
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    magnitude = abs(value)
    if value and (magnitude >= 1e6 or magnitude < 1e-4):
        return f"{value:.{digits - 2}e}"
    decimals = max(0, digits - 1 - (math.floor(math.log10(magnitude)) if value else 0))
    return f"{value:.{min(decimals, 6)}f}"


def signed(value: float, digits: int = 3) -> str:
    """Returns a number with its sign."""
    text = number(value, digits)
    return text if text[0] == "-" or value == 0 else f"+{text}"


def percent(share: float, digits: int = 3) -> str:
    """Returns a share, 0..1, in %."""
    return f"{number(100.0 * share, digits)} %"


def points(value: float) -> str:
    """Returns percentage points with their sign; finer digits than a tenth, a sample in a thousand, are rarely real."""
    return f"{value:+.1f}" if value == 0.0 or abs(value) >= 0.05 else signed(value, 2)


def probability(value: float) -> str:
    """Returns a probability, ``< 0.001`` where it is that."""
    return "< 0.001" if value < 0.001 else number(value, 2)


def byte_size(count: float) -> str:
    """Returns a number of bytes in the unit that suits it: ``12 B``, ``3.40 kB``, ``1.20 MB``."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{number(count / size, 3)} {unit}"
    return f"{int(count)} B"


def kilobytes(count: float) -> str:
    """Returns a number of bytes in kB of 1000, without the unit: for a column that names it."""
    return f"{count / 1000:.1f}"


def shortened(name: str, width: int, front: float = 1 / 3) -> str:
    """Returns a name with ``…`` for a part of it; a denylist takes it in this form too.

    Of the names that the converter joined with semicolons the first is kept; a long one is cut in its middle, as both ends
    tell layers apart.

    Args:
        name: Of a node.
        width: In characters, at most.
        front: Share of them before the cut. Whole names mostly begin with the model's, so that their ends say more.
    """
    if len(name) <= width:
        return name
    first, semicolon, _ = name.partition(";")
    end = "…" if semicolon else ""
    room = width - len(end)
    if len(first) > room:
        head = int((room - 1) * front)
        first = first[:head] + "…" + first[-(room - 1 - head) :]
    return first + end


def short_labels(names: Sequence[str], width: int = 40) -> dict[str, str]:
    """Returns a label for each name: shortened, without the folder that most of them share."""
    folders = collections.Counter(name.partition("/")[0] for name in set(names) if "/" in name.partition(";")[0])
    folder, count = folders.most_common(1)[0] if folders else ("", 0)
    shared = f"{folder}/" if 2 * count > len(set(names)) > 1 else ""
    return {name: shortened(name.removeprefix(shared), width, 1 / 2) for name in names}
