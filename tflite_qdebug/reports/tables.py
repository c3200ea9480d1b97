"""A run as CSV and as a table for the terminal."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.files import write_atomically
from tflite_qdebug.record import Run
from tflite_qdebug.reports.glossary import WHOLE, heading
from tflite_qdebug.wording import number, shortened

__all__ = [
    "OUTPUT_FIGURES",
    "layer_table",
    "part_shares",
    "print_table",
    "text_table",
    "whole_table",
    "write_columns",
    "write_csv",
]

# Columns that the table of layers has only where they rank it.
_RANKED = ("severity", "mse", "mre")
# Those that it always has, and in how many digits.
_FIGURES = {"rmse_over_scale": 3, "sqnr_db": 3, "cosine": 4, "bias": 3, "max_abs_error": 3, "scale": 3}
#: What is shown of the error at an output.
OUTPUT_FIGURES = ("sqnr_db", "cosine", "rmse", "max_abs_error")


def write_csv(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes all columns of a run, one row per layer, in execution order.

    Raises:
        OutputError: Where it cannot be written.
    """
    write_columns(run.columns(), path)


def write_columns(columns: Mapping[str, Sequence[Any] | np.ndarray], path: str | os.PathLike[str]) -> None:
    """Writes columns of one length as CSV, their names first.

    Raises:
        OutputError: Where it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_atomically(path, text.getvalue().encode())


def layer_table(
    run: Run, positions: Sequence[int], name_width: int = 48, criterion: str = ""
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the layers at ``positions``, as text, with the column that ranks them."""
    columns = run.columns()
    shares = part_shares(run)
    header = ["#", "operator", "node", *(heading(name) for name in _FIGURES), "at ends %", "worst"]
    header += [f"{name} %" for name in shares]
    ranked = [criterion] if criterion in _RANKED else []
    header[3:3] = map(heading, ranked)
    rows = []
    for position in positions:
        ends = 100 * (columns["saturated_low"][position] + columns["saturated_high"][position])
        rows.append(
            [
                str(position),
                str(columns["op_name"][position]),
                shortened(str(columns["node"][position]), name_width),
                *(number(columns[name][position], 3) for name in ranked),
                *(number(columns[name][position], digits) for name, digits in _FIGURES.items()),
                number(ends, 2),
                str(columns["worst_sample"][position]),
                *(number(share[position], 3) for share in shares.values()),
            ]
        )
    return header, rows


def part_shares(run: Run) -> dict[str, np.ndarray]:
    """Returns how much of each layer's squared error is of its weights, its output and its input, in %, where it was split.

    Of the sum of the three parts' mean squares, as if they were independent.
    """
    parts = {name: np.nan_to_num(run.parts[name].rmse) ** 2 for name in ("weights", "output", "input") if name in run.parts}
    total = sum(parts.values(), np.zeros(len(run.layers)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: 100.0 * part / total for name, part in parts.items()}


def whole_table(run: Run) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the model's outputs: quantized, with weights alone quantized, with activations alone."""
    header = ["output", "quantized", *map(heading, OUTPUT_FIGURES)]
    rows = [
        [output, WHOLE[what], *(number(getattr(statistics, name)[position]) for name in OUTPUT_FIGURES)]
        for position, output in enumerate(run.outputs)
        for what, statistics in run.whole.items()
    ]
    return header, rows


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", file: Any = None) -> None:
    """Prints a table: with rich where it is installed, in plain columns elsewhere."""
    rows = [list(row) for row in rows]
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        print(text_table(header, rows, title), file=file)
        return
    console = Console(file=file, highlight=False)
    if not console.is_terminal:  # a pipe has no width to fit into
        print(text_table(header, rows, title), file=file)
        return
    columns = _fitting(header, rows, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        name = header[column]
        wraps = name in _WRAPPED
        table.add_column(
            escape(name),
            justify="right" if _is_numeric(rows, column) else "left",
            overflow="fold",
            no_wrap=not wraps,
            min_width=_NARROWEST if wraps else _width(header, rows, column),
        )
    for row in rows:
        table.add_row(*(escape(row[column]) for column in columns))
    if title:
        console.print(title, markup=False)
    console.print(table)
    if len(columns) < len(header):
        left_out = ", ".join(name for column, name in enumerate(header) if column not in columns)
        console.print(f"(the window is too narrow for: {left_out})", markup=False)


# Names may take several lines; of the other columns the first of these go where a window is too narrow.
_WRAPPED = ("node", "model", "file", "output", "candidate")
_NARROWEST = 20
_DISPENSABLE = (
    "worst",
    "at ends %",
    "cosine",
    "max error",
    "bias",
    "scale",
    "size vs first",
    "± s.e.",
    "same answer",
    "kernels",
    "differing %",
    "accumulated",
    "error A",
    "error B",
    "its interval",
    "interval there",
    "interval",
    "islands",
    "p",
)


def _width(header: Sequence[str], rows: Sequence[Sequence[str]], column: int) -> int:
    return max(len(row[column]) for row in [header, *rows])


def _fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Returns the columns that fit into so many characters."""
    columns = list(range(len(header)))

    def needed() -> int:
        return sum(3 + (_NARROWEST if header[c] in _WRAPPED else _width(header, rows, c)) for c in columns)

    for name in _DISPENSABLE:
        if needed() <= width:
            break
        columns = [column for column in columns if header[column] != name]
    return columns


def _is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(row[column][:1].isdigit() or row[column][:1] in "-+i" for row in rows)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Returns a table in plain text, columns aligned."""
    widths = [max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    right = [bool(rows) and _is_numeric(rows, column) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(aligned).rstrip()

    lines = [title] if title else []
    lines += [line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)]
    return "\n".join(lines)
