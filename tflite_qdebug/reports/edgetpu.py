"""What maps to the Edge TPU, as tables for the terminal and as CSV."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tflite_qdebug.edgetpu.comparison import Comparison
from tflite_qdebug.edgetpu.partition import Partition
from tflite_qdebug.edgetpu.prices import FLOAT_PRICE_HEADER, FloatPrice
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import shortened

__all__ = [
    "cause_table",
    "price_columns",
    "price_table",
    "side_by_side_table",
    "status_table",
    "with_prices",
    "write_partition_csv",
]


def status_table(found: Partition) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of how many operators of each type have which status, in the form of the compiler's own log."""
    counts = Counter((each.operator, each.reason or "refused with the whole model") for each in found.operators)
    return ["Operator", "Count", "Status"], [[name, str(count), status] for (name, status), count in counts.items()]


def cause_table(found: Partition, name_width: int = 40) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the operators that run on the CPU for what they are, with how many each of them cuts off.

    Those that lie behind one of them are counted, not listed: they would map if it did.
    """
    behind = Counter(each.behind for each in found.operators if each.behind >= 0)
    rows = [
        [
            str(each.index),
            each.operator,
            shortened(each.output, name_width),
            str(behind[each.index]) if behind[each.index] else "",
            each.reason + ("" if each.sure else " (unsure)"),
            each.words,
        ]
        for each in found.operators
        if not each.would_map and each.behind < 0
    ]
    return ["#", "operator", "node", "cuts off", "status", "why"], rows


def side_by_side_table(compared: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of how many operators of each type map, predicted and by the compiler."""
    sums: dict[str, list[int]] = {}
    for row in compared.rows:
        own = sums.setdefault(row.operator, [0, 0, 0])
        own[:] = own[0] + row.count, own[1] + row.predicted, own[2] + row.actual
    header = ["operator", "count", "predicted on Edge TPU", "compiler", ""]
    return header, [[name, *map(str, own), "" if own[1] == own[2] else "differs"] for name, own in sums.items()]


def price_table(prices: Sequence[FloatPrice], name_width: int = 40) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of what leaves the device for each choice of nodes that are kept float."""
    return list(FLOAT_PRICE_HEADER), [price.row(name_width) for price in prices]


def with_prices(
    header: Sequence[str], rows: Sequence[Sequence[str]], prices: Sequence[FloatPrice]
) -> tuple[list[str], list[list[str]]]:
    """Returns a table with what each row's choice of nodes takes off the Edge TPU; rows beyond the prices stay empty there."""
    added = [[str(price.lost), f"{price.left} of {price.total}"] for price in prices]
    added += [["", ""]] * (len(rows) - len(added))
    whole = [*header, "leave Edge TPU", "stay there"]
    return whole, [[*row, *more] for row, more in zip(rows, added, strict=True)]


def price_columns(prices: Sequence[FloatPrice]) -> dict[str, list[Any]]:
    """Returns what each choice of nodes takes off the Edge TPU, for a CSV."""
    return {
        "edgetpu_operators_lost": [price.lost for price in prices],
        "edgetpu_operators_left": [price.left for price in prices],
        "edgetpu_multiplications_lost": [price.multiplications - price.multiplications_left for price in prices],
    }


def write_partition_csv(
    found: Partition,
    path: str | os.PathLike[str],
    compared: Comparison | None = None,
    floating: Partition | None = None,
    prices: Sequence[FloatPrice] = (),
) -> None:
    """Writes one row for each operator, in execution order.

    Args:
        found: The prediction.
        path: Of the file.
        compared: The prediction beside a compiled model, which adds where the compiler put each operator; that beside a log,
            which counts by type alone, adds nothing.
        floating: The prediction with some nodes float, which adds where each operator runs then.
        prices: Of single operators, which add what each costs in float.

    Raises:
        OutputError: Where it cannot be written.
    """
    columns: dict[str, list[Any]] = {
        "index": [each.index for each in found.operators],
        "operator": [each.operator for each in found.operators],
        "version": [each.version for each in found.operators],
        "node": [each.output for each in found.operators],
        "runs_on": [_place(each.mapped) for each in found.operators],
        "status": [each.reason for each in found.operators],
        "why": [each.words for each in found.operators],
        "behind": [each.behind if each.behind >= 0 else "" for each in found.operators],
        "piece": [each.segment if each.segment >= 0 else "" for each in found.operators],
        "sure": [each.sure for each in found.operators],
    }
    if compared is not None and all(row.index >= 0 for row in compared.rows):
        columns["compiler"] = [_place(bool(row.actual)) for row in compared.rows]
    if floating is not None:
        columns["runs_on_with_float"] = [_place(each.mapped) for each in floating.operators]
    if prices:
        by_operator = {price.operators[0]: price for price in prices}
        known = [by_operator.get(each.index) for each in found.operators]
        columns["float_price_operators"] = ["" if price is None else price.lost for price in known]
        columns["float_price_multiplications"] = [
            "" if price is None else price.multiplications - price.multiplications_left for price in known
        ]
    write_columns(columns, path)


def _place(mapped: bool) -> str:
    return "edgetpu" if mapped else "cpu"
