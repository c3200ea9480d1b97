"""How long a model takes: the median and the 90 % quantile of many runs, after some that do not count."""

from __future__ import annotations

import itertools
import time
from typing import Any, Iterator, List, NamedTuple, Sequence

import numpy as np

from tflite_qdebug.errors import OptionError

__all__ = ["Timing", "summary", "timed_runs"]

# Caches, clock rates and, on an Edge TPU, the parameters are where they stay after a few runs.
_WARM_UP, _WARM_UP_SECONDS = 10, 1.0
_LEAST = 10


class Timing(NamedTuple):
    """What single runs took, in milliseconds.

    Attributes:
        runs: How many were measured.
        median: Half of them took less.
        percentile_90: Nine of ten took less.
        fastest: The least.
    """

    runs: int
    median: float
    percentile_90: float
    fastest: float


def summary(milliseconds: Sequence[float]) -> Timing:
    """Returns median and 90 % quantile, between the neighbouring values where that lies between two; NaN of nothing."""
    if not len(milliseconds):
        return Timing(0, float("nan"), float("nan"), float("nan"))
    times = np.asarray(milliseconds, dtype=np.float64)
    return Timing(len(times), float(np.median(times)), float(np.percentile(times, 90)), float(times.min()))


def timed_runs(
    interpreter: Any, samples: Sequence[Sequence[np.ndarray]], seconds: float, most: int = 1000, chunk: float = 1.0
) -> Iterator[List[float]]:
    """Yields what runs took in milliseconds, some at once; feeding the inputs is not counted.

    Args:
        interpreter: An `Interpreter`; it runs ten times first, or a second, which does not count.
        samples: Inputs, taken in turn.
        seconds: How long to measure; but ten runs at least.
        most: Runs at most.
        chunk: About how many seconds between what is yielded.

    Raises:
        OptionError: Without a sample, or for seconds that are none.
    """
    if not samples or not seconds > 0:
        raise OptionError(
            "got {} samples and {!r} seconds to measure latency, expected more than 0".format(len(samples), seconds)
        )
    turns = itertools.cycle(samples)
    begun = time.perf_counter()
    for _ in range(_WARM_UP):
        interpreter.timed_invoke(next(turns))
        if time.perf_counter() - begun > _WARM_UP_SECONDS:
            break
    begun = last = time.perf_counter()
    count, times = 0, []
    while count < most and (count < _LEAST or time.perf_counter() - begun < seconds):
        times.append(1000.0 * interpreter.timed_invoke(next(turns)))
        count += 1
        if time.perf_counter() - last > chunk:
            yield times
            times, last = [], time.perf_counter()
    if times:
        yield times
