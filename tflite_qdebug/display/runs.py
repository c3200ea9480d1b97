"""Cards of a run and of what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tflite_qdebug.analyses.diagnosis import diagnose
from tflite_qdebug.display.card import Card, Fact, Table, card_of, counted, table
from tflite_qdebug.findings import Curve, Findings
from tflite_qdebug.record import Run
from tflite_qdebug.reports.run_charts import accumulated_error, layer_errors
from tflite_qdebug.reports.tables import layer_table, whole_table
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.wording import number, percent, shortened

__all__ = ["provenance_facts", "run_subtitle", "worst_layers"]

_COUNT = 5


@card_of.register
def _(run: Run) -> Card:
    """A run: its verdict, as far as the run alone tells, the worst layers, and the error of all of them as a plot."""
    subtitle = run_subtitle(run)
    if not run.layers:
        return Card("Run", subtitle, ("There is no quantized layer.",), notes=run.notes)
    worst = worst_layers(run)
    outputs = table("the model's outputs", whole_table(run), folded=True)
    facts = [*provenance_facts(run.provenance), *((name, number(value)) for name, value in run.model_metrics.items())]
    more = f"run.frame() has all {counted(len(run.layers), 'layer')}; run.worst(criterion), run.save(path)"
    if run.verify != "per_layer":
        curve = Curve("all", (), (), run)
        return Card(
            "Run", subtitle, (_farthest(run),), None, facts, worst, (lambda: accumulated_error([curve]),), (), run.notes, more
        )
    diagnosis = diagnose(Findings(run))
    suspects = [suspect.node for suspect in diagnosis.suspects]
    chart = lambda: layer_errors(run, suspects)  # noqa: E731
    return Card(
        "Run", subtitle, (diagnosis.verdict,), diagnosis.sound, facts, [*worst, *outputs], (chart,), (), run.notes, more
    )


def worst_layers(run: Run) -> list[Table]:
    """Returns the worst layers as a table that fits a notebook."""
    accumulated = run.verify != "per_layer"
    criterion = "sqnr_db" if accumulated else run.default_criterion
    rows = layer_table(run, run.worst(criterion, _COUNT), 48, criterion)
    without = (
        "bias",
        "scale",
        "at ends %",
        "worst",
        *(("RMSE/scale",) if accumulated else ()),
        *(("cosine", "max error") if run.parts else ()),
    )
    return table(f"the worst by {criterion}", rows, without=without)


def run_subtitle(run: Run) -> str:
    """Returns what was measured, on how many layers and samples."""
    what = "what each operator adds" if run.verify == "per_layer" else "accumulated error"
    return f"{what}, {counted(len(run.layers), 'layer')}, {counted(run.statistics.samples, 'sample')}"


def _farthest(run: Run) -> str:
    """Returns where the accumulated error is greatest, and what it is in the end."""
    sqnr = run.columns()["sqnr_db"]
    worst, last = run.worst("sqnr_db", 1)[0], len(run.layers) - 1
    node = f"{run.layers[worst].op_name} {shortened(run.layers[worst].node, 60)}"
    words = f"At the last layer the error is {number(sqnr[last], 3)} dB SQNR; it is greatest, {number(sqnr[worst], 3)} dB"
    return f"{words}, at {node}."


def provenance_facts(provenance: Mapping[str, Any]) -> list[Fact]:
    """Returns what a reader asks first of where figures come from: data, kernels, versions."""
    facts = []
    if provenance.get("debug_dataset"):
        facts.append(("data", str(provenance["debug_dataset"])))
    if provenance.get("runtime"):
        version = provenance.get("runtime_version", "")
        facts.append(("kernels", f"{provenance.get('kernels', '')} of {provenance['runtime']} {version}".strip()))
    return facts


@card_of.register
def _(histogram: Histogram) -> Card:
    """A histogram: how many values, from where to where."""
    total = histogram.total
    facts = [("values", str(total)), ("bins", str(len(histogram.counts)))]
    if total:
        facts.append(("range", f"{number(histogram.minimum)} … {number(histogram.maximum)}"))
        facts.append(("zeros", percent(histogram.zeros / total)))
    return Card("Histogram", facts=facts, more="histogram.counts, histogram.edges()")
