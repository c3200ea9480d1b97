"""How each part of a report was made, for those who want to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tflite_qdebug.findings import Findings

__all__ = ["provenance"]

_NAMES = {
    "tflite_qdebug": "tflite_qdebug version", "created": "made", "verify": "kind of error", "debug_dataset": "data",
    "debug_model_sha256": "SHA-256 of the debug model", "float_model_sha256": "SHA-256 of the float model",
    "quantized_model_sha256": "SHA-256 of the quantized model", "runtime_version": "version of the runtime",
}  # fmt: skip


def provenance(findings: Findings) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Yields ``(title of a part, its (name, value) pairs)``."""
    yield "Error of the layers", tuple(_flat(findings.run.provenance))
    for mode, found in findings.sensitivity.items():
        if found.provenance:
            yield f"Sensitivity, {mode}", tuple(_flat(found.provenance))
    if findings.steps is not None and findings.steps.provenance:
        yield "Leaving nodes float", tuple(_flat(findings.steps.provenance))
    if findings.samples is not None and findings.samples.provenance:
        yield "Samples", tuple(_flat(findings.samples.provenance))
    if findings.fix is not None:
        # What is to be copied stands where it can be.
        yield "Remedies", tuple(_flat({key: value for key, value in findings.fix.provenance.items() if key != "snippets"}))
    for board in findings.boards:
        about = {
            **board.about,
            "bundle": board.bundle,
            "models": {f"{m.where}, {m.name}": f"{m.runtime} {m.kernels}" for m in board.models},
        }
        yield f"On {board.name}", tuple(_flat(about))
    if findings.latency is not None:
        yield "Latency", tuple(_flat(findings.latency.provenance))
    if findings.scores is not None:
        yield "Task metric", (("data", findings.scores.dataset), ("samples", str(findings.scores.samples)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields names and values of mappings in mappings, the outer names before the inner ones."""
    for key, value in values.items():
        name = prefix + _NAMES.get(str(key), str(key).replace("_", " "))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            for place, entry in enumerate(value, 1):
                yield from _flat(entry, f"{name} {place}: ")
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if value in ([], (), None, ""):
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
