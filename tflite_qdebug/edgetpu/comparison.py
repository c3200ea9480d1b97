"""Prediction and fact side by side."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from tflite_qdebug.edgetpu.compiled import CompiledModel
from tflite_qdebug.edgetpu.compiler_log import CompilerLog
from tflite_qdebug.edgetpu.partition import Partition
from tflite_qdebug.edgetpu.rules import is_builtin
from tflite_qdebug.errors import ModelError
from tflite_qdebug.wording import shortened

__all__ = ["Comparison", "Row", "compare"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One operator, or all of one type where the compiler told no more.

    Attributes:
        operator: Its type.
        node: Name of its output; empty for all of a type.
        index: Position; -1 for all of a type.
        count: How many operators the row stands for.
        predicted: How many of them were predicted to map.
        actual: How many the compiler mapped.
        words: Why it was predicted so; of a type, with what the compiler said.
    """

    operator: str
    node: str
    index: int
    count: int
    predicted: int
    actual: int
    words: str = ""

    @property
    def agrees(self) -> bool:
        """True where prediction and fact are the same."""
        return self.predicted == self.actual


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Prediction and fact.

    Attributes:
        rows: One for each operator, or for each type.
        differences: In sentences; empty where all agrees.
    """

    rows: tuple[Row, ...]
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """True where nothing differs."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {**dataclasses.asdict(self), "agrees": self.agrees}

    def table(self, name_width: int = 40, differing_only: bool = False) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows, as text."""
        rows = [
            [
                str(row.index) if row.index >= 0 else "",
                row.operator,
                shortened(row.node, name_width),
                _side(row.predicted, row.count, row.index >= 0),
                _side(row.actual, row.count, row.index >= 0),
                "" if row.agrees else "differs",
                row.words,
            ]
            for row in self.rows
            if not (differing_only and row.agrees)
        ]
        return ["#", "operator", "node", "predicted", "compiler", "", "why"], rows


def _side(mapped: int, count: int, single: bool) -> str:
    if single:
        return "Edge TPU" if mapped else "CPU"
    return f"{mapped} of {count} on Edge TPU"


def compare(partition: Partition, fact: CompiledModel | CompilerLog) -> Comparison:
    """Puts a prediction beside what the compiler did.

    Args:
        partition: The prediction.
        fact: The compiled model, which tells of every operator, or the compiler's log, which counts them by type.

    Raises:
        ModelError: Where the two are not of the same model: other operators, or another number of them.
    """
    return _with_compiled(partition, fact) if isinstance(fact, CompiledModel) else _with_log(partition, fact)


def _with_compiled(partition: Partition, fact: CompiledModel) -> Comparison:
    if fact.total != partition.total:
        raise ModelError(
            f"the prediction is of a model of {partition.total} operators, the compiled one was made of {fact.total}; expected "
            "the same model"
        )
    rows = tuple(
        Row(placement.operator, placement.output, placement.index, 1, int(placement.mapped), int(mapped), placement.words)
        for placement, mapped in zip(partition.operators, fact.mapped, strict=True)
    )
    differences = [
        f"operator {row.index} ({row.operator}, {row.node!r}): predicted on the {_side(row.predicted, 1, True)}, the compiler "
        f"put it on the {_side(row.actual, 1, True)}" + (f" (predicted because {row.words})" if row.words else "")
        for row in rows
        if not row.agrees
    ]
    return Comparison(rows, (*differences, *_other_segments(partition, fact.segments)))


def _with_log(partition: Partition, fact: CompilerLog) -> Comparison:
    if fact.failures and not fact.rows:
        return _with_failure(partition, fact)
    if not fact.rows:
        raise ModelError(
            "the compiler's log has no table of operators, so that there is nothing to compare with; take the .log file beside "
            "the compiled model, or run edgetpu_compiler with -s"
        )
    predicted, mapped = _predicted(partition)
    counts, actual = Counter[str](), Counter[str]()
    for row in fact.rows:
        counts[row.operator] += row.count
        actual[row.operator] += row.count if row.is_mapped else 0
    if counts != predicted:
        name = next(name for name in [*predicted, *counts] if counts[name] != predicted[name])
        raise ModelError(
            f"the model has {predicted[name]} operators {name}, the compiler's log {counts[name]}; expected the log of the "
            "same model"
        )
    rows = tuple(
        Row(name, "", -1, counts[name], mapped[name], actual[name], _reasons(partition, fact, name)) for name in predicted
    )
    differences = [
        f"{row.operator}: predicted {row.predicted} of {row.count} on the Edge TPU, the compiler mapped {row.actual} "
        f"({row.words})"
        for row in rows
        if not row.agrees
    ]
    segments = () if fact.segments is None else _other_segments(partition, fact.segments)
    return Comparison(rows, (*differences, *segments))


def _with_failure(partition: Partition, fact: CompilerLog) -> Comparison:
    counts, mapped = _predicted(partition)
    rows = tuple(Row(name, "", -1, counts[name], mapped[name], 0) for name in counts)
    said = "; ".join(fact.failures)
    if partition.refused:
        return Comparison(rows, ())
    return Comparison(rows, (f"the compiler refused the model, which was not predicted: {said}",))


def _type(operator: str) -> str:
    return operator if is_builtin(operator) else "CUSTOM"


def _predicted(partition: Partition) -> tuple[Counter[str], Counter[str]]:
    """Returns how many operators of each type there are, and how many are predicted to map."""
    counts = Counter(_type(placement.operator) for placement in partition.operators)
    return counts, Counter(_type(placement.operator) for placement in partition.operators if placement.mapped)


def _reasons(partition: Partition, fact: CompilerLog, name: str) -> str:
    """Returns the statuses of a type's operators: predicted, and as the compiler has them."""
    expected = Counter(placement.reason for placement in partition.operators if _type(placement.operator) == name)
    told = [f"{row.count} {row.status}" for row in fact.rows if row.operator == name]
    return f"predicted: {', '.join(f'{count} {reason}' for reason, count in expected.items())}; compiler: {', '.join(told)}"


def _other_segments(partition: Partition, segments: int) -> tuple[str, ...]:
    expected = 0 if partition.refused else partition.segments
    if expected == segments:
        return ()
    return (f"predicted {expected} pieces on the device, the compiler made {segments}",)
