"""Laws that several classes obey, each written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def check_mergeable(zero: Callable[[], Any], parts: Sequence[Any], whole: Any, same: Callable[[Any, Any], None]) -> None:
    """Checks that ``+`` is associative, has a zero, does not depend on the order and leaves its operands alone.

    Args:
        zero: Makes an empty one.
        parts: At least three, what was measured on parts of the data.
        whole: What was measured on all the data in one go.
        same: Raises AssertionError where two are not the same.
    """
    first, second, third = parts[:3]
    before = [part + zero() for part in parts]  # copies
    same((first + second) + third, first + (second + third))
    same(first + second, second + first)
    for part in parts:
        same(part + zero(), part)
        same(zero() + part, part)
    same(sum(parts, zero()), whole)
    same(sum(reversed(parts), zero()), whole)
    for part, copy in zip(parts, before, strict=True):
        same(part, copy)
