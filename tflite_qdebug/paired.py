"""Two models on the same samples: what the difference of their metric is worth."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["SIGNIFICANT", "PairedDifference", "sign_test"]

#: A difference with a smaller probability of being chance is called measurable.
SIGNIFICANT = 0.05
# From the middle of a normal distribution to the end of the interval that holds 95 % of it.
_STANDARD_ERRORS = 1.96


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A metric of one model less that of another, on the same samples.

    What both find easy or hard cancels, so that the standard error is mostly far below that of either mean.

    Attributes:
        value: Mean of the differences.
        standard_error: Of that mean; NaN for fewer than two samples.
        higher: Samples on which the one model's metric is higher; for accuracy those that it alone gets right.
        lower: Samples on which it is lower; for accuracy those that the other alone gets right.
        p_value: As `sign_test`, of the two counts.
    """

    value: float
    standard_error: float
    higher: int
    lower: int
    p_value: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, where there are samples enough for a normal distribution."""
        half = _STANDARD_ERRORS * self.standard_error
        return self.value - half, self.value + half

    @property
    def is_measurable(self) -> bool:
        """True where chance alone hardly gives so uneven a split."""
        return self.p_value <= SIGNIFICANT


def sign_test(better: int, worse: int) -> float:
    """Returns the two-sided probability of so uneven a split of samples where neither model is better.

    The exact sign test; for a metric that is 0 or 1 it is McNemar's exact test.
    """
    total, fewer = better + worse, min(better, worse)
    if not total:
        return 1.0
    # In logarithms: 2**-n is nothing for a few thousand samples.
    terms = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(term - total * math.log(2.0)) for term in terms))
