"""Which charts there are of what was found, and the same as PNG and SVG files in Horizon's tree of folders."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Curve, Findings, Steps
from tflite_qdebug.record import Run
from tflite_qdebug.reports.drawing import FORMATS, checked_format, render
from tflite_qdebug.reports.remedy_charts import front_charts
from tflite_qdebug.reports.run_charts import (
    accumulated_error,
    layer_errors,
    sensitivity_bars,
    sensitivity_steps,
    worst_samples,
)
from tflite_qdebug.reports.value_charts import profile_charts

__all__ = ["all_charts", "known_curves", "mean_width", "notable_nodes", "save_charts", "steps_metrics", "suspected_nodes"]


def suspected_nodes(findings: Findings) -> list[str]:
    """Returns the names of the layers that the diagnosis suspects, the worst first, each once; none without a diagnosis."""
    suspects = findings.diagnosis.suspects if findings.diagnosis else ()
    return list(dict.fromkeys(suspect.node for suspect in suspects))


def known_curves(findings: Findings) -> tuple[Curve, ...]:
    """Returns the accumulated-error curves that there are: the analysis's, else the one that the run itself holds, if any."""
    run = findings.run
    if findings.curves:
        return findings.curves
    if run.verify == "whole_model":
        return (Curve("all", (), (), run),)
    if "accumulated" in run.parts:
        return (Curve("all", (), (), Run("whole_model", run.layers, run.parts["accumulated"])),)
    return ()


def mean_width(findings: Findings) -> int:
    """Returns over how many nodes a running mean shows the trend of accumulated error; 0 where there are too few nodes."""
    count = len(findings.run.layers)
    return max(3, count // 12) if count >= 10 else 0


def steps_metrics(steps: Steps) -> list[str]:
    """Returns the metrics that are drawn of a sensitivity analysis: the one that has the threshold, and the user's."""
    return list(dict.fromkeys((steps.metric, *steps.errors.task_metrics)))


def notable_nodes(findings: Findings, count: int = 20) -> list[str]:
    """Returns the names of the layers that deserve a page: suspects first, then the most sensitive five, then the worst layers.

    Args:
        findings: Of a run.
        count: How many layers that are no suspects.
    """
    layers = {layer.node for layer in findings.run.layers}
    suspects, others = suspected_nodes(findings), []
    for mode in ("node", "weights", "activation"):
        if mode in findings.sensitivity:
            found = findings.sensitivity[mode]
            others += [found.nodes[position] for position in found.order()[:5]]
    others += [findings.run.layers[position].node for position in findings.run.worst(count=count + len(suspects))]
    chosen = [node for node in suspects if node in layers]
    more = [node for node in dict.fromkeys(others) if node in layers and node not in chosen]
    return chosen + more[:count]


def _safe(name: str, width: int = 60) -> str:
    """Returns a name that any file system takes: ASCII letters, digits, single dots, dashes and underscores.

    Of the names that the converter joined with semicolons it is the first; of a long one the end, which tells layers apart.
    """
    kept = re.sub(r"[^A-Za-z0-9.-]+|\.{2,}", "_", name.partition(";")[0])
    return re.sub("_+", "_", kept)[-width:].strip("._-") or "node"


def all_charts(findings: Findings, nodes: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields ``(path without suffix, chart)`` of every chart that the findings allow, in Horizon's tree of folders.

    Args:
        findings: Of a run.
        nodes: Whose tensors to show; None: `notable_nodes`.

    Raises:
        OptionError: For a node that the run does not have.
    """
    known = {layer.node: position for position, layer in enumerate(findings.run.layers)}
    known.update({profile.node: known.get(profile.node, len(known)) for profile in findings.profiles})
    for node in nodes or ():
        if node not in known:
            raise OptionError(f"the run has no node {node!r}.{did_you_mean(node, known)}")
    chosen = notable_nodes(findings) if nodes is None else list(nodes)
    yield from _run_charts(findings)
    for profile in findings.profiles:
        if profile.node in chosen or (nodes is None and profile.role == "input"):
            name = f"{known[profile.node]:04d}_{_safe(profile.node)}"
            for folder, what, chart in profile_charts(profile):
                yield f"{folder}/{name}_{what}", chart


def _run_charts(findings: Findings) -> Iterator[tuple[str, Any]]:
    """Yields the charts that are of no single tensor."""
    suspects, order = suspected_nodes(findings), [layer.node for layer in findings.run.layers]
    if order:
        yield "layer_error", layer_errors(findings.run, suspects)
    for mode, sensitivity in findings.sensitivity.items():
        yield f"node_sensitivity/{mode}", sensitivity_bars(sensitivity)
    curves = known_curves(findings)
    if curves:
        yield "accumulate_error/curves", accumulated_error(curves, marked=suspects, order=order)
        if mean_width(findings):
            mean = accumulated_error(curves, mean_over=mean_width(findings), order=order)
            yield "accumulate_error/running_mean", mean
    if findings.steps is not None:
        for metric in steps_metrics(findings.steps):
            yield f"sensitivity_analysis/{_safe(metric)}", sensitivity_steps(findings.steps, metric)
    if findings.samples is not None and findings.samples.worst:
        yield "worst_samples", worst_samples(findings.samples)
    if findings.fix is not None:
        for cost, chart in front_charts(findings.fix):
            yield f"fix/front_{cost}", chart


def save_charts(
    findings: Findings, folder: str | os.PathLike[str], formats: Sequence[str] = FORMATS, nodes: Sequence[str] | None = None
) -> list[Path]:
    """Writes every chart that the findings allow as files, in Horizon's tree of folders, and returns their paths.

    Args:
        findings: Of a run.
        folder: Is made where it is missing.
        formats: Of ``png`` and ``svg``.
        nodes: Whose tensors to show; None: `notable_nodes`.

    Raises:
        OptionError: For a format or a node that there is not.
        OutputError: Where a file cannot be written.
    """
    for kind in formats:
        checked_format(kind)
    paths: dict[Path, None] = {}
    for name, chart in all_charts(findings, nodes):
        for kind in formats:
            path = _unused(Path(folder) / f"{name}.{kind}", paths)
            write_atomically(path, render(chart, kind))
            paths[path] = None
    return list(paths)


def _unused(path: Path, used: dict[Path, None]) -> Path:
    """Returns a path that none of this run's files has; an operator may have several weights."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if candidate not in used)
