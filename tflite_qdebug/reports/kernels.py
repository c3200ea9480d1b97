"""A comparison of kernels as CSV and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tflite_qdebug.kernel_record import Difference, KernelComparison, KernelRow
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import number, shortened

__all__ = ["kernel_table", "write_kernel_csv"]

_SHORT = {"first_wrong": "A is wrong", "second_wrong": "B is wrong"}


def write_kernel_csv(comparison: KernelComparison, path: str | os.PathLike[str]) -> None:
    """Writes all columns of a comparison, one row per result of an operator, in execution order.

    Raises:
        OutputError: Where it cannot be written.
    """
    write_columns(comparison.columns(), path)


def kernel_table(
    comparison: KernelComparison, positions: Sequence[int], name_width: int = 40
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the results at ``positions``, as text; A are the first kernels, B the second.

    Differences are in steps for quantized results, and for floats relative to the RMS of the values, marked ``rel``.
    """
    header = ["#", "operator", "node", "max diff", "differing %", "accumulated", "error A", "error B", "verdict"]
    verdicts = comparison.verdicts()
    rows = []
    for position in positions:
        row = comparison.rows[position]
        share = 100 * row.isolated.differing / row.isolated.elements if row.isolated.elements else float("nan")
        rows.append(
            [
                str(position),
                row.op_name,
                shortened(row.node, name_width),
                _size(row, row.isolated),
                number(share, 2),
                _size(row, row.accumulated),
                number(row.first_error.rmse, 3),
                number(row.second_error.rmse, 3),
                _SHORT.get(verdicts[position].kind, verdicts[position].kind),
            ]
        )
    return header, rows


def _size(row: KernelRow, difference: Difference) -> str:
    if difference.other_shape:
        return "other shape"
    return f"{number(difference.relative_rmse, 3)} rel" if row.is_float else number(difference.max_absolute, 3)
