"""The error at the outputs of the whole quantized model, from whichever analysis measured it best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tflite_qdebug.findings import Findings

__all__ = ["AtOutput", "output_errors", "worst_output_sqnr"]


class AtOutput(NamedTuple):
    """The error at one output of the quantized model.

    Attributes:
        sqnr_db: Of all samples, pooled.
        cosine: The same.
        broken: True where values are NaN or infinite.
        samples: How many.
    """

    sqnr_db: float
    cosine: float
    broken: bool
    samples: int


def output_errors(findings: Findings) -> dict[str, AtOutput]:
    """Returns the error at each output of the quantized model, by name; nothing where it was not measured.

    Of the samples analysis where that was made, since it measures all samples; else of the run.
    """
    if findings.samples is not None and "quantized" in findings.samples.errors.variants:
        errors = findings.samples.errors
        row = errors.variants.index("quantized")
        sqnr, cosine = errors.metric("sqnr_db")[row], errors.metric("cosine")[row]
        broken = ~np.isfinite(errors.sums[row]).all(axis=-1)
        names, samples = errors.outputs, errors.samples
    elif "quantized" in findings.run.whole and findings.run.outputs:
        statistics = findings.run.whole["quantized"]
        sqnr, cosine = statistics.sqnr_db, statistics.cosine
        broken = ~np.isfinite(statistics.sums).all(axis=1)
        names, samples = tuple(findings.run.outputs), statistics.samples
    else:
        return {}
    return {name: AtOutput(float(sqnr[i]), float(cosine[i]), bool(broken[i]), samples) for i, name in enumerate(_unique(names))}


def _unique(names: Sequence[str]) -> list[str]:
    """Returns the names, with a number behind one that came before."""
    found: list[str] = []
    for name in names:
        found.append(name if name not in found else f"{name} ({found.count(name) + 1})")
    return found


def worst_output_sqnr(findings: Findings) -> float | None:
    """Returns the SQNR of the worst output in dB; None where no output has one."""
    values = np.array([entry.sqnr_db for entry in output_errors(findings).values()])
    return float(np.nanmin(values)) if np.isfinite(values).any() else None
