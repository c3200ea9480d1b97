"""Laws that several classes obey, each written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from models import outputs


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


def check_edit_keeps_outputs(
    before: bytes, after: bytes, samples: Sequence[list[np.ndarray]], kernels: str = "reference"
) -> None:
    """Checks that a model's own outputs, the first ones, are the same bit for bit after an edit."""
    for inputs in samples:
        expected = outputs(before, inputs, kernels)
        got = outputs(after, inputs, kernels)
        assert len(got) >= len(expected)
        for ours, theirs in zip(got, expected, strict=False):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
