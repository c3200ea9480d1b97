"""Cuts of a model on two kernels as CSV and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tflite_qdebug.cut_record import Closeness, CutComparison, CutOutput
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import number, shortened

__all__ = ["cut_table", "write_cut_csv"]


def write_cut_csv(comparison: CutComparison, path: str | os.PathLike[str]) -> None:
    """Writes all columns of a comparison, one row per output of a cut, in execution order.

    Raises:
        OutputError: Where it cannot be written.
    """
    write_columns(comparison.columns(), path)


def cut_table(comparison: CutComparison, positions: Sequence[int], name_width: int = 40) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the cuts at ``positions``, as text: of several outputs of a cut the worst.

    Differences are in steps for quantized results, in real units for floats (``real``); cosine, SNR and PSNR of real values.
    Where cuts ran on their own drifting inputs too, ``isolated`` is the difference on the reference's.
    """
    cumulative = any(output.cumulative is not None for row in comparison.rows for output in row.outputs)
    header = ["cut", "node", "ran", "max diff", *(["isolated"] if cumulative else []), "differing %", "cosine", "SNR dB",
              "PSNR dB", "result"]  # fmt: skip
    rows = []
    for position in positions:
        row = comparison.rows[position]
        kind = row.kind(comparison.limits)
        if not row.outputs:
            rows.append([row.name, *[""] * (len(header) - 2), kind])
            continue
        output = min(row.outputs, key=lambda one: one.judged.snr_db)
        judged = output.judged
        elements = judged.difference.elements
        share = 100 * judged.difference.differing / elements if elements else float("nan")
        rows.append(
            [
                row.name,
                shortened(output.node, name_width),
                output.ran,
                _size(output, judged),
                *([_size(output, output.isolated)] if cumulative else []),
                number(share, 2),
                number(judged.cosine, 6),
                number(judged.snr_db, 3),
                number(judged.psnr_db, 3),
                kind,
            ]
        )
    return header, rows


def _size(output: CutOutput, closeness: Closeness) -> str:
    if closeness.difference.other_shape:
        return "other shape"
    largest = number(closeness.difference.max_absolute, 3)
    return f"{largest} real" if output.is_float else largest
