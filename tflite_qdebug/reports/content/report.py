"""The whole report, put together of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.charts import known_curves, notable_nodes, suspected_nodes
from tflite_qdebug.reports.content import overview
from tflite_qdebug.reports.content.layers import layer_page, table_columns, table_rows
from tflite_qdebug.reports.content.parts import Culprit, Report
from tflite_qdebug.reports.content.provenance import provenance
from tflite_qdebug.reports.content.remedies import fix_verdict
from tflite_qdebug.reports.content.sections import sections
from tflite_qdebug.reports.content.view import View, denylist_line, drawn, missing
from tflite_qdebug.reports.glossary import GLOSSARY
from tflite_qdebug.reports.run_charts import accumulated_error, layer_errors

__all__ = ["describe"]


def describe(findings: Findings, pages: int = 20) -> Report:
    """Returns the report on a run.

    Args:
        findings: Of the run.
        pages: How many layers that are no suspects get a page with charts; all have one with figures.
    """
    view, run, diagnosis = View(findings), findings.run, findings.diagnosis
    curves, suspects = known_curves(findings), suspected_nodes(findings)
    chosen = [view.places[node] for node in notable_nodes(findings, pages)]
    columns, culprits = tuple(table_columns(view)), tuple(overview.culprits(view))
    curve = accumulated_error(curves, marked=suspects, order=view.order) if curves and run.layers else None
    layer_chart = layer_errors(run, suspects) if run.layers else None
    return Report(
        title=findings.name,
        facts=tuple(overview.facts(run)),
        verdict=diagnosis.verdict if diagnosis else overview.plain_verdict(findings),
        tone="unknown" if diagnosis is None else "good" if diagnosis.sound else "bad",
        evidence=diagnosis.evidence if diagnosis else (),
        tiles=tuple(overview.tiles(findings)),
        culprits=culprits,
        culprits_title="The layers that matter" if suspects else "The layers with the largest error",
        denylist=_denylist(culprits),
        curve=None if curve is None else drawn(curve),
        layer_chart=None if layer_chart is None else drawn(layer_chart),
        columns=columns,
        rows=tuple(table_rows(view, columns)),
        sorted_by=run.default_criterion,
        operators=tuple(sorted({layer.op_name for layer in run.layers})),
        pages=tuple(layer_page(view, place, with_charts=True) for place in chosen),
        light=tuple(layer_page(view, place, with_charts=False) for place in range(len(run.layers)) if place not in chosen),
        sections=tuple(sections(view)),
        notes=tuple(_notes(findings)),
        provenance=tuple(provenance(findings)),
        glossary=tuple(GLOSSARY.items()),
        fix=fix_verdict(findings),
    )


def _denylist(culprits: Sequence[Culprit]) -> str:
    """Returns a line that leaves float what is to blame: a layer that only hands on another's error names that one."""
    nodes = [
        culprit.link.node for culprit in culprits if any(repr(culprit.link.node) in cause.line for cause in culprit.causes)
    ]
    return denylist_line(nodes) if nodes else ""


def _notes(findings: Findings) -> Iterator[str]:
    yield from findings.run.notes
    if findings.diagnosis is not None:
        yield from findings.diagnosis.notes
    else:
        yield missing("diagnosis", "The causes were not looked for.")
    if findings.scores is None:
        yield missing("scores", "Float and quantized model were not compared on a task metric.")
    if not findings.profiles:
        yield missing("profiles", "There are no histograms and box plots.")
