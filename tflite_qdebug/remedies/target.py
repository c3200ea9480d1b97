"""What a fixed model shall reach, and what it may cost: ``accuracy >= float - 0.5%, size <= int8 + 1%``."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.output_error import BADNESS, METRICS

__all__ = ["ALIASES", "BUDGETS", "Clause", "Target", "parse_target"]

#: Other words for metrics.
ALIASES = {"accuracy": "top_1", "acc": "top_1", "top1": "top_1", "top5": "top_5", "sqnr": "sqnr_db", "disagreement": "flips"}
#: What is no metric but a cost; units of the numbers: bytes, milliseconds, seconds of search.
BUDGETS = ("size", "latency", "time", "float_operators")
# Metrics that are shares of samples: "%" means points there, elsewhere a part of what stands before it.
_SHARES = ("top_1", "top_5", "flips", "agreement")
_UNITS = {
    "size": {"": 1.0, "b": 1.0, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9},
    "latency": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "time": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
    "sqnr_db": {"": 1.0, "db": 1.0},
}
_CLAUSE = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|<=|=>|=<|>|<|≥|≤)\s*(.+?)\s*$")
_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*(%|[a-z]*)"
_VALUE = re.compile(rf"(?:(float|int8)\s*)?(?:([-+*])?\s*{_NUMBER})?$", re.IGNORECASE)
_EXAMPLES = (
    "'accuracy >= float - 0.5%', 'sqnr >= 20 dB', 'kl <= 0.05', 'size <= int8 + 1%', 'latency <= 5 ms', 'time <= 10 min'"
)


@dataclasses.dataclass(frozen=True)
class Clause:
    """One condition.

    Attributes:
        metric: A metric's name, or one of `BUDGETS`.
        at_least: True for ``>=``.
        base: ``float`` or ``int8``: what the model of that kind has; empty: nothing.
        factor: Times the base.
        offset: Added, in the metric's unit.
        points: True where the offset stands for percentage points of a share; only for how it is written.
    """

    metric: str
    at_least: bool
    base: str
    factor: float
    offset: float
    points: bool = False

    def goal(self, float_value: float, int8_value: float) -> float:
        """Returns the number to be reached, from what the float model and plain int8 have."""
        base = {"float": float_value, "int8": int8_value, "": 0.0}[self.base]
        return base * self.factor + self.offset if self.base else self.offset

    def met(self, value: float, goal: float) -> bool:
        """Returns whether a value reaches the goal; NaN never does."""
        slack = 1e-9 * max(abs(goal), 1.0)  # 0.815 - 0.005 is not quite 0.81
        return value >= goal - slack if self.at_least else value <= goal + slack

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if not self.base:
            return f"{self.metric} {sign} {_written(self.offset, self.metric)}"
        words = self.base if self.factor == 1.0 else f"{self.base} * {self.factor:g}"
        if self.offset:
            amount = f"{100.0 * abs(self.offset):g}%" if self.points else _written(abs(self.offset), self.metric)
            words += f" {'-' if self.offset < 0 else '+'} {amount}"
        return f"{self.metric} {sign} {words}"


def _written(value: float, metric: str) -> str:
    if metric in ("top_1", "top_5", "agreement", "flips"):
        return f"{100.0 * value:g}%"
    unit = {"size": " bytes", "latency": " ms", "time": " s", "sqnr_db": " dB"}.get(metric, "")
    return f"{value:.0f}{unit}" if metric == "size" else f"{value:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Target:
    """All conditions.

    Attributes:
        clauses: In the order in which they were given.
    """

    clauses: tuple[Clause, ...]

    @property
    def quality(self) -> tuple[Clause, ...]:
        """Those on metrics; the first is the main one."""
        return tuple(clause for clause in self.clauses if clause.metric not in BUDGETS)

    @property
    def budgets(self) -> tuple[Clause, ...]:
        """Those on what a model costs."""
        return tuple(clause for clause in self.clauses if clause.metric in BUDGETS and clause.metric != "time")

    @property
    def seconds(self) -> float:
        """What the search may take; infinite without such a condition."""
        return min((clause.offset for clause in self.clauses if clause.metric == "time"), default=math.inf)

    def replaced(self, old: Clause, new: Clause) -> Target:
        """Returns the target with another condition in the place of one."""
        return Target(tuple(new if clause == old else clause for clause in self.clauses))

    def __str__(self) -> str:
        return ", ".join(map(str, self.clauses))


def parse_target(text: str | Sequence[str], task_metrics: Iterable[str] = ()) -> Target:
    """Reads a target.

    Args:
        text: Conditions ``METRIC >= VALUE`` or ``<=``, joined by commas or ``and``. METRIC is ``accuracy`` (``top_1``), a task
            metric, one of `output_error.METRICS`, ``agreement`` (the share of rows whose greatest value stayed where the float
            model has it), or one of `BUDGETS`. VALUE is a number with a unit, or ``float`` or ``int8``, alone or with a number
            added, subtracted or multiplied. A percentage added to or subtracted from a share of samples (``accuracy``,
            ``agreement``) is in points; from anything else it is a part of it.
        task_metrics: Names of the user's metrics.

    Raises:
        OptionError: For what means nothing: an unknown metric or unit, a metric that is to be worse than something, no number.
    """
    parts = [part for one in ([text] if isinstance(text, str) else text) for part in re.split(r",|;|&|\band\b", one)]
    clauses = tuple(_clause(part, tuple(task_metrics)) for part in parts if part.strip())
    if not clauses:
        raise OptionError(f"got an empty target, expected conditions such as {_EXAMPLES}")
    if any(not math.isfinite(clause.offset) for clause in clauses):
        raise OptionError(f"got target {text!r} with a number that is not finite, expected conditions such as {_EXAMPLES}")
    doubled = {clause.metric for clause in clauses if sum(other.metric == clause.metric for other in clauses) > 1}
    if doubled:
        raise OptionError(f"got more than one condition for {sorted(doubled)[0]!r}, expected one for each metric")
    return Target(clauses)


def _clause(text: str, task_metrics: Sequence[str]) -> Clause:
    found = _CLAUSE.match(text)
    if found is None:
        raise OptionError(f"got {text.strip()!r} as a target, expected METRIC >= VALUE or METRIC <= VALUE, such as {_EXAMPLES}")
    metric, at_least = _metric(found[1], task_metrics), found[2] in (">=", "=>", ">", "≥")
    _check_direction(text, metric, at_least)
    value = _VALUE.match(found[3].strip())
    if value is None or not (value[1] or value[3]):
        raise OptionError(
            f"got {found[3]!r} in target {text.strip()!r}, expected a number with a unit, or 'float' or 'int8' with a number "
            f"added, subtracted or multiplied, such as {_EXAMPLES}"
        )
    base, sign, amount, unit = (value[1] or "").lower(), value[2], value[3], (value[4] or "").lower()
    if base and amount and not sign:
        raise OptionError(f"got {found[3]!r} in target {text.strip()!r}, expected +, - or * between {base!r} and {amount}")
    if metric == "time" and base:
        raise OptionError(f"got {text.strip()!r}, expected a number for the time of the search, such as 'time <= 10 min'")
    return _valued(text.strip(), metric, at_least, base, sign, float(amount or 0.0), unit)


def _valued(text: str, metric: str, at_least: bool, base: str, sign: str | None, amount: float, unit: str) -> Clause:
    """Returns the condition with its number in the metric's own unit."""
    if not base and sign == "*":
        raise OptionError(f"got '*' without 'float' or 'int8' before it in target {text!r}")
    signed = -amount if sign == "-" else amount
    if sign == "*":
        if unit not in ("", "%"):
            raise OptionError(f"got a factor with unit {unit!r} in target {text!r}, expected a plain number")
        return Clause(metric, at_least, base, amount / (100.0 if unit == "%" else 1.0), 0.0)
    if unit == "%":
        if metric in _SHARES:
            return Clause(metric, at_least, base, 1.0, signed / 100.0, True)
        if not base:
            raise OptionError(
                f"got a percentage of nothing in target {text!r}: {metric} is no share of samples. Expected a number, or a "
                f"percentage behind 'float' or 'int8', such as '{metric} {'>=' if at_least else '<='} float - 1%'"
            )
        return Clause(metric, at_least, base, 1.0 + signed / 100.0, 0.0)
    known = _UNITS.get(metric, {"": 1.0})
    if unit not in known:
        raise OptionError(f"got unit {unit!r} in target {text!r}, expected {', '.join(filter(None, known)) or 'none'}")
    value = signed * known[unit]
    if metric in _SHARES and not base and not 0.0 <= value <= 1.0:
        raise OptionError(
            f"got {text!r}, expected a share between 0 and 1, or a percentage such as {100 * min(1.0, value / 100):g}%"
        )
    return Clause(metric, at_least, base, 1.0, value)


def _metric(name: str, task_metrics: Sequence[str]) -> str:
    known = [*task_metrics, "top_1", "top_5", "agreement", *METRICS, *BUDGETS]
    if name in task_metrics:
        return name
    name = ALIASES.get(name.lower(), name)
    if name not in known:
        choice = [*known, *ALIASES]
        raise OptionError(f"got metric {name!r} in the target, expected one of {', '.join(known)}.{did_you_mean(name, choice)}")
    return name


def _check_direction(text: str, metric: str, at_least: bool) -> None:
    small_is_good = metric in BUDGETS or BADNESS.get(metric, -1.0) > 0.0
    known = metric in BUDGETS or metric in BADNESS or metric in ("top_1", "top_5", "agreement")
    if known and at_least == small_is_good:
        sign = "<=" if small_is_good else ">="
        raise OptionError(f"got {text.strip()!r}, which asks for a worse model, expected {metric} {sign} ...")
