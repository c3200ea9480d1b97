"""A run as node data for Google's Model Explorer: colours and numbers on the graph of the quantized and of the float model.

The format is that of ai-edge-model-explorer 0.1: ``{graph: {"results": {node: {"value": ...}}, "gradient": [...]}}``. Nodes
are called by the position of their operator, since names of tensors need not be unique.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Findings, GraphNode, Sensitivity
from tflite_qdebug.output_error import BADNESS
from tflite_qdebug.record import Run

__all__ = ["SIDES", "mapping", "metrics", "node_data", "write_model_explorer"]

SIDES = ("quantized", "float")
# Columns of a run, and whether large is bad.
_COLUMNS = {"rmse_over_scale": 1.0, "severity": 1.0, "sqnr_db": -1.0, "cosine": -1.0}
# From fine to bad in one hue, ever darker (ColorBrewer's Oranges), so that it can be told apart without seeing colours.
_SHADES = (("#fff5eb", "#000000"), ("#fdae6b", "#000000"), ("#d94801", "#ffffff"), ("#7f2704", "#ffffff"))
_BROKEN = {"bgColor": "#000000", "textColor": "#ffffff"}
_ACCUMULATED = "accumulated_sqnr_db"


class _Value(NamedTuple):
    """A metric of one operator: its value, and how bad that is; ``broken`` where values were NaN or infinite."""

    value: float
    badness: float
    broken: bool


def metrics(findings: Findings) -> list[str]:
    """Returns the metrics that there is node data for.

    These are ``rmse_over_scale``, ``severity``, ``sqnr_db`` (dB) and ``cosine`` of each layer, ``sensitivity_<mode>`` where
    that was measured, and ``accumulated_sqnr_db`` (dB) of each curve of accumulated error, with the curve's name behind it
    where it is not the quantized model's.
    """
    return [*_COLUMNS, *(f"sensitivity_{mode}" for mode in findings.sensitivity), *_curves(findings)]


def node_data(findings: Findings, metric: str, which: str = "quantized") -> dict[str, Any]:
    """Returns the node data of one metric.

    An operator with several outputs has the worst of their values, and a float operator that of the operators that do the same.
    Model Explorer's files hold no NaN and no infinity: what does not apply is left out, a layer whose values are NaN or
    infinite gets the worst value of the others and a black background, and a SQNR without any error the best of the others.

    Args:
        findings: With the graph.
        metric: One of `metrics`.
        which: ``quantized`` or ``float``: the model that the data are for.

    Raises:
        OptionError: For an unknown metric or model, and where the graph was not saved, or the float model is not known.
    """
    known = metrics(findings)
    if metric not in known:
        raise OptionError(f"got metric {metric!r}, expected one of {', '.join(known)}.{did_you_mean(metric, known)}")
    if which not in SIDES:
        raise OptionError(f"got {which!r}, expected one of {', '.join(SIDES)}.{did_you_mean(which, SIDES)}")
    graphs: dict[str, dict[str, _Value]] = {}
    values = _by_operator(findings, metric)
    for node in _graph(findings, which):
        if node.operator not in values:
            continue
        results = graphs.setdefault(node.graph_key if which == "quantized" else node.float_graph_key, {})
        for position in (node.operator,) if which == "quantized" else node.float_operators:
            _take_worse(results, str(position), values[node.operator])
    key = findings.graph[0].graph_key if which == "quantized" else findings.graph[0].float_graph_key
    shades = _gradient(_large_is_bad(findings, metric))
    return {name: {"results": _plain(results), "gradient": shades} for name, results in (graphs or {key: {}}).items()}


def mapping(findings: Findings) -> dict[str, Any]:
    """Returns which nodes belong together, for both models side by side: float on the left, quantized on the right.

    Raises:
        OptionError: Where the graph was not saved, or the float model is not known.
    """
    entries = [
        {"leftNodeIds": [str(position) for position in node.float_operators], "rightNodeIds": [str(node.operator)]}
        for node in _graph(findings, "float")
        if node.float_operators
    ]
    return {"type": "sync_navigation", "mappingEntries": entries}


def write_model_explorer(findings: Findings, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes ``quantized_<metric>.json``, and where the float model is known ``float_<metric>.json`` and ``mapping.json``.

    Returns:
        The files.

    Raises:
        OptionError: Where the graph was not saved.
        OutputError: Where they cannot be written.
    """
    _graph(findings, "quantized")
    sides = [which for which in SIDES if which == "quantized" or any(node.float_operators for node in findings.graph)]
    paths = []
    for which in sides:
        for metric in metrics(findings):
            content = node_data(findings, metric, which)
            if any(graph["results"] for graph in content.values()):
                paths.append(_write(Path(folder) / f"{which}_{_as_file(metric)}.json", content))
    if "float" in sides:
        paths.append(_write(Path(folder) / "mapping.json", mapping(findings)))
    return paths


def _write(path: Path, content: dict[str, Any]) -> Path:
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())
    return path


def _as_file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _graph(findings: Findings, which: str) -> tuple[GraphNode, ...]:
    if not findings.graph:
        raise OptionError(
            f"run {findings.name!r} has no graph, which says which layer is which operator; 'tflite-qdebug runall' saves it"
        )
    if which == "float" and not any(node.float_operators for node in findings.graph):
        raise OptionError(f"run {findings.name!r} was made without a float model, so there are no operators of it")
    return findings.graph


def _curves(findings: Findings) -> dict[str, Run]:
    """Returns the runs of the curves by the name of their metric."""
    found: dict[str, Run] = {}
    for curve in findings.curves:
        whole = not curve.quantized and not curve.left_float
        found.setdefault(_ACCUMULATED if whole else f"{_ACCUMULATED} {curve.name}", curve.run)
    return found


def _by_operator(findings: Findings, metric: str) -> dict[int, _Value]:
    """Returns the metric of each operator of the quantized model that has one."""
    found: dict[int, _Value] = {}
    mode = metric.removeprefix("sensitivity_")
    if metric in _COLUMNS:
        pairs = _of_run(findings, findings.run, metric, _COLUMNS[metric])
    elif mode in findings.sensitivity:
        pairs = _of_sensitivity(findings.sensitivity[mode])
    else:
        pairs = _of_run(findings, _curves(findings)[metric], "sqnr_db", _COLUMNS["sqnr_db"])
    for operator, value in pairs:
        _take_worse(found, operator, value)
    return found


def _of_run(findings: Findings, run: Run, column: str, sign: float) -> Iterator[tuple[int, _Value]]:
    by_node = {name: node for node in findings.graph for name in node.nodes}
    values = run.columns()[column].astype(np.float64)
    broken = [not np.isfinite(row).all() for row in run.statistics.sums]
    for layer, value, bad in zip(run.layers, values.tolist(), broken, strict=True):
        node = by_node.get(layer.node)
        # A QUANTIZE is called by what it rounds, and is no operator of the graph.
        if node is not None and layer.op_name != "QUANTIZE" and (bad or not np.isnan(value)):
            yield node.operator, _Value(value, sign * value, bad)


def _of_sensitivity(sensitivity: Sensitivity) -> Iterator[tuple[int, _Value]]:
    values = sensitivity.values()
    badness = sensitivity.errors.badness(sensitivity.metric, sensitivity.large_is_bad)[: len(sensitivity.nodes)]
    broken = np.isnan(values) & (badness == np.inf)
    # Left float, the node that leaves the least error is the one that matters most.
    badness = -badness if sensitivity.mode == "float" else badness
    for operator, value, bad, is_broken in zip(
        sensitivity.operators, values.tolist(), badness.tolist(), broken.tolist(), strict=True
    ):
        if is_broken or not np.isnan(value):
            yield operator, _Value(value, bad, is_broken)


def _large_is_bad(findings: Findings, metric: str) -> bool:
    """True where the greatest value is to be the darkest."""
    if metric in _COLUMNS:
        return _COLUMNS[metric] > 0
    sensitivity = findings.sensitivity.get(metric.removeprefix("sensitivity_"))
    if sensitivity is None:
        return False
    large = BADNESS.get(sensitivity.metric, 1.0 if sensitivity.large_is_bad else -1.0) > 0
    return large != (sensitivity.mode == "float")


def _take_worse(found: dict[Any, _Value], key: Any, value: _Value) -> None:
    old = found.get(key)
    if old is None or (value.broken, value.badness) > (old.broken, old.badness):
        found[key] = value


def _plain(results: dict[str, _Value]) -> dict[str, dict[str, Any]]:
    """Returns results without NaN and infinity, in the order of the operators."""
    finite = [entry for entry in results.values() if np.isfinite(entry.value) and not entry.broken]
    worst = max(finite, key=lambda entry: entry.badness, default=_Value(0.0, 0.0, False)).value
    best = min(finite, key=lambda entry: entry.badness, default=_Value(0.0, 0.0, False)).value
    plain: dict[str, dict[str, Any]] = {}
    for key in sorted(results, key=int):
        entry = results[key]
        if entry.broken:
            plain[key] = {"value": worst, **_BROKEN}
        elif np.isfinite(entry.value):
            plain[key] = {"value": entry.value}
        else:
            plain[key] = {"value": worst if entry.badness > 0 else best}
    return plain


def _gradient(large_is_bad: bool) -> list[dict[str, Any]]:
    shades = _SHADES if large_is_bad else _SHADES[::-1]
    last = len(shades) - 1
    return [{"stop": i / last, "bgColor": back, "textColor": text} for i, (back, text) in enumerate(shades)]
