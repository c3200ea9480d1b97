"""The worst samples as CSV and as a table for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tflite_qdebug.findings import SampleError, Samples
from tflite_qdebug.reports.glossary import heading
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import number, percent, shortened

__all__ = ["flip_sentence", "sample_table", "write_samples_csv"]

_SHOWN = ("sqnr_db", "cosine", "mse")


def sample_table(samples: Samples, flips: bool = False) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the worst samples, or of those whose prediction flips, as text.

    ``class`` is the position of the greatest value of the first output, in the float and in the quantized model.
    """
    more = samples.metric not in _SHOWN
    shown = [samples.metric, *_SHOWN] if more else _SHOWN
    header = ["sample", "label", *map(heading, shown), "class float", "class quantized", "flips"]
    rows = []
    for sample in samples.flips if flips else samples.worst:
        values = [sample.value] if more else []
        values += [getattr(sample, name) for name in _SHOWN]
        classes = ["-" if place < 0 else str(place) for place in (sample.float_class, sample.quantized_class)]
        label = "-" if sample.label is None else shortened(str(sample.label), 24)
        rows.append([str(sample.index), label, *(number(value) for value in values), *classes, "yes" if sample.flipped else ""])
    return header, rows


def flip_sentence(samples: Samples) -> str:
    """Returns in one sentence how many predictions flip; empty where the first output has no classes."""
    known: Sequence[SampleError] = (*samples.worst, *samples.flips)
    total = samples.errors.samples
    if not any(sample.float_class >= 0 for sample in known) or not total:
        return ""
    return f"the prediction flips on {samples.flip_count} of {total} samples ({percent(samples.flip_count / total)})"


def write_samples_csv(samples: Samples, path: str | os.PathLike[str]) -> None:
    """Writes the worst samples, worst first, then the flips that are not among them, in the order of the dataset.

    Units: ``sqnr_db`` in dB, ``mse`` in squared real units; ``rank`` is 1 for the worst, empty for a flip beyond them.

    Raises:
        OutputError: Where it cannot be written.
    """
    listed = [(str(rank), sample) for rank, sample in enumerate(samples.worst, 1)]
    known = {sample.index for sample in samples.worst}
    listed += [("", sample) for sample in samples.flips if sample.index not in known]
    columns: dict[str, list[Any]] = {"rank": [rank for rank, _ in listed]}
    for name in ("index", "label", *_SHOWN, "float_class", "quantized_class", "flipped"):
        columns[name] = [getattr(sample, name) for _, sample in listed]
    if samples.metric not in _SHOWN:
        columns[samples.metric] = [sample.value for _, sample in listed]
    write_columns(columns, path)
