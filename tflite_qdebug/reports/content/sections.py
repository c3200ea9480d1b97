"""The sections behind the table of layers, one for each analysis: its charts and tables, or how to make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tflite_qdebug.findings import SampleError, Sensitivity, Steps
from tflite_qdebug.reports.charts import known_curves, mean_width, steps_metrics
from tflite_qdebug.reports.content.boards import boards_section, latency_section
from tflite_qdebug.reports.content.parts import Section, Table
from tflite_qdebug.reports.content.remedies import advice_section, fix_section
from tflite_qdebug.reports.content.view import View, drawn, figure_of, missing, sensitivity_term
from tflite_qdebug.reports.glossary import GLOSSARY, MODES, WHOLE, Term, figure, task_term
from tflite_qdebug.reports.run_charts import accumulated_error, sensitivity_bars, sensitivity_steps, worst_samples
from tflite_qdebug.reports.tables import OUTPUT_FIGURES

__all__ = ["sections"]

# Of a table of nodes the first are shown; the CSV files have them all.
_SHOWN = 20


def sections(view: View) -> Iterator[Section]:
    """Yields all of them."""
    if view.findings.fix is not None:
        yield fix_section(view, view.findings.fix)
    yield _outputs(view)
    yield _sensitivity(view)
    yield _steps(view)
    yield _curves(view)
    yield _samples(view)
    yield boards_section(view)
    yield latency_section(view)
    yield advice_section(view)


def _text(name: str) -> Term:
    """Returns the head of a column of texts."""
    return Term(name, "", "", "")


def _renamed(key: str, name: str) -> Term:
    return dataclasses.replace(GLOSSARY[key], name=name)


def _distinct(notes: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def _outputs(view: View) -> Section:
    words = "Each output of the model against the float model's; and with only the weights, or only the activations, quantized."
    run = view.run
    if not run.whole:
        return Section("outputs", "At the outputs", words, missing="The run did not compare whole models.")
    measured = max(statistics.samples for statistics in run.whole.values())
    if measured != run.statistics.samples:
        words += f" Over the first {measured} of {run.statistics.samples} samples."
    rows = [
        (output, WHOLE.get(kind, kind), *(figure(key, getattr(statistics, key)[place]) for key in OUTPUT_FIGURES))
        for place, output in enumerate(run.outputs)
        for kind, statistics in run.whole.items()
    ]
    header = (_text("output"), _text("quantized"), *(GLOSSARY[key] for key in OUTPUT_FIGURES))
    return Section("outputs", "At the outputs", words, tables=(Table(header, tuple(rows)),))


def _sensitivity(view: View) -> Section:
    words = (
        "Which nodes cost accuracy at the model's outputs, measured by changing one node at a time. A layer may err much and "
        "not matter, or err little and matter."
    )
    found = view.findings.sensitivity
    if not found:
        return Section("sensitivity", "Sensitivity", words, missing=missing("sensitivity", "It was not measured."))
    charts = tuple(drawn(sensitivity_bars(entry)) for entry in found.values())
    tables = tuple(_sensitivity_table(view, entry) for entry in found.values())
    notes = _distinct(note for entry in found.values() for note in entry.notes)
    return Section("sensitivity", "Sensitivity", words, charts, tables, notes)


def _sensitivity_table(view: View, found: Sensitivity) -> Table:
    ranks = found.errors.ranks(found.metric, large_is_bad=found.large_is_bad)
    term, ranked = sensitivity_term(found), found.mode != "float"
    columns = [found.values(), *found.errors.worst_interval(found.metric, found.large_is_bad)]
    rows = []
    for place, position in enumerate(found.order()[:_SHOWN], 1):
        node, op_name = found.nodes[position], found.op_names[position]
        cells: list[Any] = [figure("rank", place), view.link(node, op_name), op_name]
        cells += [figure_of(term, "sensitivity", float(column[position])) for column in columns]
        if ranked:
            cells += [figure("rank", ranks[position, end], name) for end, name in ((1, "best rank"), (2, "worst rank"))]
        rows.append(tuple(cells))
    ends = [dataclasses.replace(term, name=name) for name in ("90 % from", "to")]
    header = [GLOSSARY["rank"], _text("node"), _text("operator"), term, *ends]
    if ranked:
        header += [_renamed("rank", name) for name in ("rank from", "rank to")]
    some = f" (the first {len(rows)} of {len(found.nodes)} nodes)" if len(found.nodes) > len(rows) else ""
    return Table(tuple(header), tuple(rows), MODES[found.mode].capitalize() + some)


def _steps(view: View) -> Section:
    words = (
        "What is won at the outputs when the most sensitive nodes are left float, one after another, and what it costs in size."
    )
    steps, title = view.findings.steps, "Leaving nodes float"
    if steps is None:
        return Section("steps", title, words, missing=missing("steps", "It was not measured."))
    charts = tuple(drawn(sensitivity_steps(steps, metric)) for metric in steps_metrics(steps))
    return Section("steps", title, words, charts, (_steps_table(view, steps),), steps.notes)


def _steps_table(view: View, steps: Steps) -> Table:
    # By its own name where the glossary has the metric, else the user's.
    metrics = {metric: "" if metric in GLOSSARY else metric for metric in steps_metrics(steps)}
    values = {metric: steps.errors.worst(metric) for metric in metrics}
    rows = []
    for step in range(len(steps.nodes) + 1):
        last = view.link(steps.nodes[step - 1], steps.op_names[step - 1]) if step else "none: all quantized"
        cells = [figure("steps_float", step), last]
        cells += [figure(task_term(metric), values[metric][step], name) for metric, name in metrics.items()]
        if steps.sizes:
            cells.append(figure("weight_bytes", steps.sizes[step]))
        rows.append(tuple(cells))
    header = [GLOSSARY["steps_float"], _text("the last of them")]
    header += [_renamed("task", name) if name else GLOSSARY[metric] for metric, name in metrics.items()]
    if steps.sizes:
        header.append(GLOSSARY["weight_bytes"])
    return Table(tuple(header), tuple(rows))


def _curves(view: View) -> Section:
    words = "The error at every node's output against the float model, with all that comes before it quantized too."
    curves = known_curves(view.findings)
    if not curves:
        return Section("curves", "Accumulated error", words, missing=missing("curves", "It was not measured."))
    charts = [drawn(accumulated_error(curves, "cosine", order=view.order))]
    width = mean_width(view.findings)
    if width:
        charts.insert(0, drawn(accumulated_error(curves, mean_over=width, order=view.order)))
    notes = _distinct(note for curve in curves for note in curve.run.notes if curve.run is not view.run)
    return Section("curves", "Accumulated error", words, tuple(charts), (), notes)


def _samples(view: View) -> Section:
    words = "The samples on which the quantized model differs most from the float one, and those whose prediction flips."
    samples = view.findings.samples
    if samples is None:
        return Section("samples", "Samples", words, missing=missing("samples", "They were not looked for."))
    flips = f"Flipped predictions ({len(samples.flips)} of {samples.flip_count})"
    both = (("Worst samples", samples.worst), (flips, samples.flips))
    tables = tuple(_samples_table(caption, found) for caption, found in both if found)
    charts = (drawn(worst_samples(samples)),) if samples.worst else ()
    return Section("samples", "Samples", words, charts, tables, samples.notes)


def _samples_table(caption: str, samples: tuple[SampleError, ...]) -> Table:
    keys = ("sqnr_db", "cosine", "mse")
    classes = [_renamed("class", name) for name in ("float class", "quantized class")]
    header = (GLOSSARY["sample_index"], _text("label"), *(GLOSSARY[key] for key in keys), *classes)
    rows = tuple(
        (
            figure("sample_index", sample.index),
            "" if sample.label is None else str(sample.label),
            *(figure(key, getattr(sample, key)) for key in keys),
            figure("class", sample.float_class, "float class"),
            dataclasses.replace(figure("class", sample.quantized_class, "quantized class"), bad=sample.flipped),
        )
        for sample in samples
    )
    return Table(header, rows, caption)
