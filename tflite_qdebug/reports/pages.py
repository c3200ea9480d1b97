"""What the HTML report shows, as plain data: the texts, figures, tables and charts of each of its sections."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Channels, Findings, GraphNode, Profile, Sensitivity, Suspect
from tflite_qdebug.record import Run
from tflite_qdebug.reports import charts
from tflite_qdebug.reports.glossary import GLOSSARY, Figure, Term, figure

__all__ = ["COMMANDS", "Page", "Report", "describe"]

#: Which command makes a part that is missing.
COMMANDS = {
    "diagnosis": "tflite-qdebug diagnose",
    "scores": "tflite-qdebug evaluate",
    "sensitivity": "tflite-qdebug sensitivity",
    "curves": "tflite-qdebug accumulated-error",
    "steps": "tflite-qdebug sensitivity-analysis",
    "profiles": "tflite-qdebug distribution",
    "samples": "tflite-qdebug samples",
}
_MODES = {
    "node": "One node alone quantized",
    "weights": "One node's weights alone quantized",
    "activation": "One node's input alone quantized",
    "float": "One node alone left float",
}
# In the table of layers: column of a run, and whether the worst come first in descending order.
_COLUMNS = (("sqnr_db", "asc"), ("cosine", "asc"), ("max_abs_error", "desc"))
_ERROR_FIGURES = (
    "severity", "rmse_over_scale", "sqnr_db", "cosine", "rmse", "bias", "max_abs_error", "scale", "zero_point", "range",
    "saturated_low", "saturated_high", "range_used", "worst_sample", "worst_rmse", "num_elements",
)  # fmt: skip
_PART_FIGURES = ("own_rmse", "weights_rmse", "output_rmse", "input_rmse", "accumulated_rmse")
_PROFILE_FIGURES = (
    "clipped_low", "clipped_high", "integers_used", "mean", "deviation", "kurtosis", "outliers", "negative", "near_zero",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart to be drawn where it comes into view.

    Attributes:
        specification: Vega-Lite.
        label: What it shows, for those who do not see it.
        height: Pixels that it will need, so that the page does not jump.
    """

    specification: dict[str, Any]
    label: str
    height: int


@dataclasses.dataclass(frozen=True)
class Link:
    """A layer's name that leads to its page.

    Attributes:
        node: The whole name.
        label: What is shown of it.
        op_name: Its type.
        layer: Its position among the layers; -1 where it is none, and has no page.
        words: More about it, in short.
    """

    node: str
    label: str
    op_name: str
    layer: int
    words: str = ""


@dataclasses.dataclass(frozen=True)
class Cause:
    """One likely cause."""

    name: str
    words: str
    remedy: str
    evidence: tuple[str, ...]
    line: str


@dataclasses.dataclass(frozen=True)
class Culprit:
    """A layer of the first screen."""

    link: Link
    causes: tuple[Cause, ...]
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures: ``header`` holds terms, ``rows`` hold links, figures and texts."""

    header: tuple[Term, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """All about one layer."""

    link: Link
    causes: tuple[Cause, ...]
    line: str
    figures: tuple[tuple[str, tuple[Figure, ...]], ...]
    facts: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    before: tuple[Link, ...]
    behind: tuple[Link, ...]
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A pair of numbers of the first screen: float and quantized, or one alone."""

    title: str
    float_figure: Figure | None
    figure: Figure
    words: str = ""
    bad: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A section behind the table: an analysis's charts and tables, or why it is not there."""

    anchor: str
    title: str
    words: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table of layers, and in which order the worst come first."""

    key: str
    term: Term
    first: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report."""

    title: str
    facts: tuple[tuple[str, str], ...]
    verdict: str
    tone: str
    evidence: tuple[str, ...]
    tiles: tuple[Tile, ...]
    culprits: tuple[Culprit, ...]
    culprits_title: str
    denylist: str
    curve: Chart | None
    layer_chart: Chart | None
    columns: tuple[Column, ...]
    rows: tuple[tuple[Link, tuple[Figure, ...], str], ...]
    sorted_by: str
    operators: tuple[str, ...]
    pages: tuple[Page, ...]
    light: tuple[Page, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    glossary: tuple[tuple[str, Term], ...]


def describe(findings: Findings, pages: int = 20) -> Report:
    """Returns the report on a run.

    Args:
        findings: Of the run.
        pages: How many layers that are no suspects get a page with charts; all have one with figures.
    """
    view = _View(findings)
    chosen = charts.notable_nodes(findings, pages)
    with_charts = {view.places[node] for node in chosen}
    diagnosis = findings.diagnosis
    curves = charts.known_curves(findings)
    suspects = [suspect.node for suspect in diagnosis.suspects] if diagnosis else []
    culprits = tuple(_culprits(view))
    # A layer that only hands on the error of another names that one in its line.
    to_blame = [culprit.link.node for culprit in culprits if any(repr(culprit.link.node) in c.line for c in culprit.causes)]
    columns, order = tuple(view.table_columns()), [layer.node for layer in findings.run.layers]
    return Report(
        title=findings.name,
        facts=tuple(_facts(findings.run)),
        verdict=diagnosis.verdict if diagnosis else _plain_verdict(findings),
        tone="unknown" if diagnosis is None else "good" if diagnosis.sound else "bad",
        evidence=diagnosis.evidence if diagnosis else (),
        tiles=tuple(_tiles(findings)),
        culprits=culprits,
        culprits_title="The layers that matter" if suspects else "The layers with the largest error",
        denylist=_denylist(to_blame) if to_blame else "",
        curve=_chart(charts.accumulated_error(curves, marked=suspects, order=order))
        if curves and findings.run.layers
        else None,
        layer_chart=_chart(charts.layer_errors(findings.run, suspects)) if findings.run.layers else None,
        columns=columns,
        rows=tuple(view.rows(columns)),
        sorted_by=findings.run.default_criterion,
        operators=tuple(sorted({layer.op_name for layer in findings.run.layers})),
        pages=tuple(view.page(view.places[node], with_charts=True) for node in chosen),
        light=tuple(
            view.page(place, with_charts=False) for place in range(len(findings.run.layers)) if place not in with_charts
        ),
        sections=tuple(_sections(view)),
        notes=tuple(_notes(findings)),
        provenance=tuple(_provenance(findings)),
        glossary=tuple(GLOSSARY.items()),
    )


def _chart(chart: Any) -> Chart:
    found = charts.specification(chart)
    title = found.get("title", {})
    text = title["text"] if isinstance(title, dict) else str(title)
    words = title.get("subtitle", []) if isinstance(title, dict) else []
    label = ". ".join([text, *words])
    found["autosize"] = {"type": "fit-x", "contains": "padding"}
    found.pop("$schema", None)
    return Chart(found, label, int(found.get("height", 260)) + 110)


def _denylist(nodes: Sequence[str]) -> str:
    return f"denylisted_nodes={list(nodes)!r}"


class _View:
    """What several sections need: labels, positions, sensitivities."""

    def __init__(self, findings: Findings) -> None:
        self.findings, self.run = findings, findings.run
        self.columns = findings.run.columns()
        self.places: dict[str, int] = {}
        for place, layer in enumerate(self.run.layers):
            self.places.setdefault(layer.node, place)
        names = [*self.places, *(node for entry in findings.graph for node in entry.nodes)]
        self.labels = charts.short_labels(names, 46)
        suspects = findings.diagnosis.suspects if findings.diagnosis else ()
        self.causes: dict[str, list[Suspect]] = {}
        for suspect in suspects:
            self.causes.setdefault(suspect.node, []).append(suspect)
        self.sensitive = {
            mode: dict(zip(found.nodes, found.values().tolist(), strict=True)) for mode, found in findings.sensitivity.items()
        }

    def link(self, node: str, op_name: str = "", words: str = "") -> Link:
        place = self.places.get(node, -1)
        return Link(node, self.labels.get(node) or node, op_name or self.run.layers[place].op_name, place, words)

    def table_columns(self) -> Iterator[Column]:
        criterion = self.run.default_criterion
        yield Column(criterion, GLOSSARY[criterion], "desc")
        for key, first in _COLUMNS:
            yield Column(key, GLOSSARY[key], first)
        yield Column("saturation", GLOSSARY["saturation"], "desc")
        yield Column("range_used", GLOSSARY["range_used"], "asc")
        if "node" in self.findings.sensitivity:
            yield self.sensitivity_column()

    def sensitivity_column(self) -> Column:
        found = self.findings.sensitivity["node"]
        small_is_bad = found.metric in ("cosine", "sqnr_db") or (found.metric not in GLOSSARY and not found.large_is_bad)
        return Column("sensitivity", sensitivity_term(found), "asc" if small_is_bad else "desc")

    def rows(self, columns: Sequence[Column]) -> Iterator[tuple[Link, tuple[Figure, ...], str]]:
        for place in self.run.worst():
            layer = self.run.layers[place]
            figures = tuple(_figure_of(column.term, column.key, self.value(column.key, place)) for column in columns)
            link = dataclasses.replace(self.link(layer.node, layer.op_name), layer=place)
            yield link, figures, ", ".join(_words(suspect.cause) for suspect in self.causes.get(layer.node, ()))

    def value(self, key: str, place: int) -> float:
        if key == "saturation":
            return float(self.columns["saturated_low"][place] + self.columns["saturated_high"][place])
        if key == "sensitivity":
            return float(self.sensitive["node"].get(self.run.layers[place].node, math.nan))
        return float(self.columns[key][place])

    def page(self, place: int, with_charts: bool) -> Page:
        node = self.run.layers[place].node
        profiles = [profile for profile in self.findings.profiles if profile.node == node] if with_charts else []
        entry = next((entry for entry in self.findings.graph if node in entry.nodes), None)
        before, behind = self.neighbours(node)
        lines = [suspect.line for suspect in self.causes.get(node, ()) if suspect.line]
        return Page(
            link=dataclasses.replace(self.link(node), layer=place),
            causes=tuple(_causes(self.causes.get(node, ()))),
            line=_denylist([node]) if _denylist([node]) not in lines else "",
            figures=tuple((title, tuple(found)) for title, found in self.figures(place, profiles, entry) if found),
            facts=tuple(self.facts(place, entry)),
            charts=tuple(_chart(chart) for profile in profiles for _, _, chart in charts.profile_charts(profile)),
            before=before,
            behind=behind,
            missing="" if profiles or not with_charts else f"no histograms of this layer; to make them: {COMMANDS['profiles']}",
        )

    def neighbours(self, node: str) -> tuple[tuple[Link, ...], tuple[Link, ...]]:
        try:
            before, behind = self.findings.neighbours(node)
        except OptionError:
            return (), ()
        return tuple(self.neighbour(entry) for entry in before), tuple(self.neighbour(entry) for entry in behind)

    def neighbour(self, entry: GraphNode) -> Link:
        node = next((name for name in entry.nodes if name in self.places), entry.nodes[0] if entry.nodes else "")
        return self.link(node, entry.op_name, "float" if entry.is_float else "")

    def facts(self, place: int, entry: GraphNode | None) -> Iterator[tuple[str, str]]:
        layer = self.run.layers[place]
        yield "output shape", " × ".join("any" if size < 0 else str(size) for size in layer.shape) or "scalar"
        yield "type of the output", layer.dtype
        if entry is not None:
            yield from ((str(name), str(value)) for name, value in entry.options.items())
        yield "held against", layer.reference + (f", matched by {layer.matched_by}" if layer.matched_by else "")
        yield "tensor", f"{layer.tensor_name} (index {layer.tensor_idx})"

    def figures(self, place: int, profiles: Sequence[Profile], entry: GraphNode | None) -> Iterator[tuple[str, list[Figure]]]:
        node = self.run.layers[place].node
        yield "Error", [figure(key, self.columns[key][place]) for key in _ERROR_FIGURES if _known(self.columns, key, place)]
        yield (
            "What the error is made of",
            [figure(key, self.columns[key][place]) for key in _PART_FIGURES if _known(self.columns, key, place)],
        )
        yield (
            "At the model's outputs",
            [
                _figure_of(sensitivity_term(self.findings.sensitivity[mode]), "sensitivity", values[node])
                for mode, values in self.sensitive.items()
                if node in values
            ],
        )
        for profile in profiles:
            yield f"Values of its {profile.role}", list(_profile_figures(profile))
        if entry is not None and (entry.macs or entry.weight_bytes):
            yield "Cost", [figure("macs", entry.macs), figure("weight_bytes", entry.weight_bytes)]


def _known(columns: Mapping[str, np.ndarray], key: str, place: int) -> bool:
    return key in columns and not math.isnan(float(columns[key][place]))


def sensitivity_term(found: Sensitivity) -> Term:
    """Returns what a sensitivity's numbers are."""
    own = GLOSSARY["sensitivity"]
    of_metric = GLOSSARY.get(found.metric)
    what = f"The metric at the model's outputs: {_MODES[found.mode].lower()}."
    if of_metric is None:
        return dataclasses.replace(own, name=f"{found.metric}, {found.mode}", unit="mean over samples", what=what)
    return dataclasses.replace(
        of_metric,
        name=f"output {of_metric.name}" if found.mode == "node" else f"output {of_metric.name}, {found.mode}",
        what=what,
        when_bad=of_metric.when_bad,
        below=None if found.mode == "float" else of_metric.below,
        above=None if found.mode == "float" else of_metric.above,
    )


def _figure_of(term: Term, key: str, value: float) -> Figure:
    return Figure(
        key, term.name, term.text(value), term.with_unit(value), term.hover(value), term.is_bad(value),
        None if math.isnan(value) else value, listed=False,
    )  # fmt: skip


def _profile_figures(profile: Profile) -> Iterator[Figure]:
    if math.isfinite(profile.low):
        yield figure("tensor_range", profile.low, name="range from")
        yield figure("tensor_range", profile.high, name="range to")
    for key in _PROFILE_FIGURES:
        if not math.isnan(float(getattr(profile, key))):
            yield figure(key, getattr(profile, key))
    if profile.channels is not None:
        yield from _channel_figures(profile.channels)


def _channel_figures(channels: Channels) -> Iterator[Figure]:
    yield figure("dead_channels", len(channels.dead))
    yield figure("dominating_channels", len(channels.dominating))
    yield figure("channel_spread", channels.spread)


def _words(cause: str) -> str:
    return cause.replace("_", " ")


def _causes(suspects: Sequence[Suspect]) -> Iterator[Cause]:
    """Yields the causes of one layer; what is to be copied stands once."""
    lines = set()
    for suspect in suspects:
        yield dataclasses.replace(_cause(suspect), line="" if suspect.line in lines else suspect.line)
        lines.add(suspect.line)


def _cause(suspect: Suspect) -> Cause:
    return Cause(_words(suspect.cause), suspect.words, suspect.remedy, tuple(suspect.evidence), suspect.line)


# The first screen.


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    provenance = run.provenance
    yield "layers", str(len(run.layers))
    yield "samples", str(run.statistics.samples)
    if provenance.get("debug_dataset"):
        yield "data", str(provenance["debug_dataset"]).removeprefix("function ")
    if provenance.get("kernels"):
        yield "kernels", str(provenance["kernels"])
    if provenance.get("created"):
        yield "made", str(provenance["created"]).replace("T", " ").replace("+00:00", " UTC")


def _plain_verdict(findings: Findings) -> str:
    """Returns a sentence of what was measured, for a run that was not diagnosed."""
    scores, run = findings.scores, findings.run
    if not run.layers:
        return "Nothing was measured: the run has no layer."
    worst = run.layers[run.worst(count=1)[0]]
    tail = f" The layer with the largest error is {worst.op_name} {worst.node}. The causes were not looked for."
    if scores is not None and scores.metrics and scores.score("float") and scores.score("quantized"):
        name = scores.metrics[0]
        before, after = (figure(_task_term(name), scores.score(model).metrics[name]) for model in ("float", "quantized"))  # type: ignore[union-attr]
        return f"The {before.name} is {before.shown} with the float model and {after.shown} with the quantized one." + tail
    if "quantized" in run.whole:
        decibels = figure("sqnr_db", np.nanmin(run.whole["quantized"].sqnr_db))
        return f"At the model's worst output the signal stands {decibels.shown} above the error of quantization." + tail
    steps = figure(run.default_criterion, run.columns()[run.default_criterion][run.worst(count=1)[0]])
    return f"The largest error of a layer by itself is {steps.shown} ({steps.name})." + tail


def _task_term(name: str) -> str:
    return name if name in GLOSSARY else "task"


def _tiles(findings: Findings) -> Iterator[Tile]:
    if findings.scores is not None:
        yield from _score_tiles(findings)
    quality = _output_quality(findings)
    if quality is not None:
        found = figure("sqnr_db", quality)
        yield Tile("SQNR at the outputs", None, found, "the worst output; 20 dB is an error of a tenth", found.bad)
    if findings.samples is not None:
        samples, flips = findings.samples.errors.samples, findings.samples.flip_count
        share = 100.0 * flips / max(samples, 1)
        yield Tile("Flipped predictions", None, figure("flip_count", flips), f"of {samples} samples, {share:.3g} %", share > 1)
    columns = findings.run.columns()
    if findings.run.layers:
        criterion = findings.run.default_criterion
        bad = int((columns[criterion] > 1.0).sum())
        yield Tile("Layers off by over a step", None, figure("layers", bad), f"of {len(findings.run.layers)} layers", bad > 0)


def _score_tiles(findings: Findings) -> Iterator[Tile]:
    scores = findings.scores
    assert scores is not None
    before, after = scores.score("float"), scores.score("quantized")
    if before is None or after is None:
        return
    for name in scores.metrics:
        if name not in before.metrics or name not in after.metrics:
            continue
        term = _task_term(name)
        title = GLOSSARY[term].name if term == name else name
        loss = before.metrics[name] - after.metrics[name]
        words = (
            f"{'loses' if loss >= 0 else 'gains'} {abs(100 * loss):.3g} percentage points"
            if term == name
            else f"float less quantized: {loss:.4g}"
        )
        yield Tile(
            title, figure(term, before.metrics[name], title), figure(term, after.metrics[name], title),
            f"{words}, {scores.samples} samples", term == name and loss > 0.01,
        )  # fmt: skip
    words = f"{before.size / after.size:.3g} times smaller" if 0 < after.size < before.size else "no smaller"
    yield Tile("Size", figure("size", before.size), figure("size", after.size), words, after.size >= before.size)
    if math.isfinite(before.milliseconds) and math.isfinite(after.milliseconds):
        yield Tile(
            "Time",
            figure("milliseconds", before.milliseconds),
            figure("milliseconds", after.milliseconds),
            "median, one sample",
        )


def _output_quality(findings: Findings) -> float | None:
    if findings.samples is not None:
        values = findings.samples.errors.metric("sqnr_db")[0]
    elif "quantized" in findings.run.whole:
        values = findings.run.whole["quantized"].sqnr_db
    else:
        return None
    return float(np.nanmin(values)) if np.isfinite(values).any() else None


def _culprits(view: _View) -> Iterator[Culprit]:
    nodes = [node for node in view.causes if node in view.places][:5]
    if not nodes:
        nodes = list(dict.fromkeys(view.run.layers[place].node for place in view.run.worst()))[:5]
    for node in nodes:
        keys = [view.run.default_criterion, "sqnr_db"]
        figures = tuple(figure(key, view.columns[key][view.places[node]]) for key in keys)
        yield Culprit(view.link(node), tuple(_cause(suspect) for suspect in view.causes.get(node, ())), figures)


# The sections behind the table.


def _sections(view: _View) -> Iterator[Section]:
    yield _outputs_section(view)
    yield _sensitivity_section(view)
    yield _steps_section(view)
    yield _curves_section(view)
    yield _samples_section(view)


def _missing(part: str, what: str) -> str:
    return f"{what} To make this part: {COMMANDS[part]}"


def _outputs_section(view: _View) -> Section:
    words = "Each output of the model against the float model's; and with only the weights, or only the activations, quantized."
    run = view.run
    if not run.whole:
        return Section("outputs", "At the outputs", words, missing="The run did not compare whole models.")
    measured = max(statistics.samples for statistics in run.whole.values())
    if measured != run.statistics.samples:
        words += f" Over the first {measured} of {run.statistics.samples} samples."
    kinds = {"quantized": "all", "weights": "weights alone", "activations": "activations alone"}
    keys = ("sqnr_db", "cosine", "rmse", "max_abs_error")
    rows = [
        (output, kinds.get(kind, kind), *(figure(key, getattr(statistics, key)[place]) for key in keys))
        for place, output in enumerate(run.outputs)
        for kind, statistics in run.whole.items()
    ]
    header = (_text_term("output"), _text_term("quantized"), *(GLOSSARY[key] for key in keys))
    return Section("outputs", "At the outputs", words, tables=(Table(header, tuple(rows)),))


def _text_term(name: str, what: str = "") -> Term:
    return Term(name, "", what, "")


def _sensitivity_section(view: _View) -> Section:
    words = (
        "Which nodes cost accuracy at the model's outputs, measured by changing one node at a time. A layer may err much and "
        "not matter, or err little and matter."
    )
    found = view.findings.sensitivity
    if not found:
        return Section("sensitivity", "Sensitivity", words, missing=_missing("sensitivity", "It was not measured."))
    drawn = tuple(_chart(charts.sensitivity_bars(entry)) for entry in found.values())
    tables = tuple(_sensitivity_table(view, entry) for entry in found.values())
    notes = tuple(dict.fromkeys(note for entry in found.values() for note in entry.notes))
    return Section("sensitivity", "Sensitivity", words, drawn, tables, notes)


def _sensitivity_table(view: _View, found: Sensitivity, count: int = 20) -> Table:
    ranks = found.errors.ranks(found.metric, large_is_bad=found.large_is_bad)
    values, low, high = charts.worst_output(found.errors, found.metric, found.large_is_bad)
    term = sensitivity_term(found)
    rows = []
    for place, position in enumerate(found.order()[:count], 1):
        cells: list[Any] = [
            figure("rank", place),
            view.link(found.nodes[position], found.op_names[position]),
            found.op_names[position],
        ]
        cells += [_figure_of(term, "sensitivity", float(column[position])) for column in (values, low, high)]
        if found.mode != "float":
            cells += [figure("rank", ranks[position, end], name) for end, name in ((1, "best rank"), (2, "worst rank"))]
        rows.append(tuple(cells))
    ends = [dataclasses.replace(term, name=name) for name in ("90 % from", "to")]
    header = [GLOSSARY["rank"], _text_term("node"), _text_term("operator"), term, *ends]
    if found.mode != "float":
        header += [dataclasses.replace(GLOSSARY["rank"], name=name) for name in ("rank from", "rank to")]
    more = len(found.nodes) - len(rows)
    caption = _MODES[found.mode] + (f" (the first {len(rows)} of {len(found.nodes)} nodes)" if more > 0 else "")
    return Table(tuple(header), tuple(rows), caption)


def _steps_section(view: _View) -> Section:
    words = (
        "What is won at the outputs when the most sensitive nodes are left float, one after another, and what it costs in size."
    )
    steps, title = view.findings.steps, "Leaving nodes float"
    if steps is None:
        return Section("steps", title, words, missing=_missing("steps", "It was not measured."))
    metrics = list(dict.fromkeys((steps.metric, *steps.errors.task_metrics)))
    drawn = tuple(_chart(charts.sensitivity_steps(steps, metric)) for metric in metrics)
    values = {metric: charts.worst_output(steps.errors, metric, None)[0] for metric in metrics}
    rows = []
    for step, node in enumerate(["", *steps.nodes]):
        link = view.link(node, steps.op_names[step - 1]) if node else "none: all quantized"
        cells = [figure("steps_float", step), link]
        cells += [
            figure(_task_term(metric), values[metric][step], metric if metric not in GLOSSARY else "") for metric in metrics
        ]
        if steps.sizes:
            cells.append(figure("weight_bytes", steps.sizes[step]))
        rows.append(tuple(cells))
    terms = [
        dataclasses.replace(GLOSSARY[_task_term(metric)], name=GLOSSARY[metric].name if metric in GLOSSARY else metric)
        for metric in metrics
    ]
    header = [
        GLOSSARY["steps_float"],
        _text_term("the last of them"),
        *terms,
        *([GLOSSARY["weight_bytes"]] if steps.sizes else []),
    ]
    return Section("steps", title, words, drawn, (Table(tuple(header), tuple(rows)),), steps.notes)


def _curves_section(view: _View) -> Section:
    words = "The error at every node's output against the float model, with all that comes before it quantized too."
    curves = charts.known_curves(view.findings)
    if not curves:
        return Section("curves", "Accumulated error", words, missing=_missing("curves", "It was not measured."))
    order = [layer.node for layer in view.run.layers]
    drawn = [
        _chart(charts.accumulated_error(curves, "cosine", title="Accumulated error: cosine at each node's output", order=order))
    ]
    if len(order) >= 10:
        width = max(3, len(order) // 12)
        drawn.insert(0, _chart(charts.accumulated_error(curves, running_mean=width, order=order)))
    notes = tuple(dict.fromkeys(note for curve in curves for note in curve.run.notes if curve.run is not view.run))
    return Section("curves", "Accumulated error", words, tuple(drawn), (), notes)


def _samples_section(view: _View) -> Section:
    words = "The samples on which the quantized model differs most from the float one, and those whose prediction flips."
    samples = view.findings.samples
    if samples is None:
        return Section("samples", "Samples", words, missing=_missing("samples", "They were not looked for."))
    keys = ("sqnr_db", "cosine", "mse")
    header = (
        GLOSSARY["sample_index"],
        _text_term("label"),
        *(GLOSSARY[key] for key in keys),
        _class("float class"),
        _class("quantized class"),
    )
    tables = []
    for caption, found in (
        ("Worst samples", samples.worst),
        (f"Flipped predictions ({len(samples.flips)} of {samples.flip_count})", samples.flips),
    ):
        rows = tuple(
            (
                figure("sample_index", sample.index),
                "" if sample.label is None else str(sample.label),
                *(figure(key, getattr(sample, key)) for key in keys),
                figure("class", sample.float_class, "float class"),
                dataclasses.replace(figure("class", sample.quantized_class, "quantized class"), bad=sample.flipped),
            )
            for sample in found
        )
        if rows:
            tables.append(Table(header, rows, caption))
    drawn = (_chart(charts.worst_samples(samples)),) if samples.worst else ()
    return Section("samples", "Samples", words, drawn, tuple(tables), samples.notes)


def _class(name: str) -> Term:
    return dataclasses.replace(GLOSSARY["class"], name=name)


def _notes(findings: Findings) -> Iterator[str]:
    yield from findings.run.notes
    if findings.diagnosis is not None:
        yield from findings.diagnosis.notes
    else:
        yield _missing("diagnosis", "The causes were not looked for.")
    if findings.scores is None:
        yield _missing("scores", "Float and quantized model were not compared on a task metric.")
    if not findings.profiles:
        yield _missing("profiles", "There are no histograms and box plots.")


# How it was made.

_PROVENANCE_NAMES = {
    "tflite_qdebug": "tflite_qdebug version", "created": "made", "verify": "kind of error", "debug_dataset": "data",
    "debug_model_sha256": "SHA-256 of the debug model", "float_model_sha256": "SHA-256 of the float model",
    "quantized_model_sha256": "SHA-256 of the quantized model", "runtime_version": "version of the runtime",
}  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = prefix + _PROVENANCE_NAMES.get(str(key), str(key).replace("_", " "))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            for number, entry in enumerate(value, 1):
                yield from _flat(entry, f"{name} {number}: ")
        else:
            yield (
                name,
                "none"
                if value in ([], (), None, "")
                else ", ".join(map(str, value))
                if isinstance(value, (list, tuple))
                else str(value),
            )


def _provenance(findings: Findings) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    yield "Error of the layers", tuple(_flat(findings.run.provenance))
    for mode, found in findings.sensitivity.items():
        if found.provenance:
            yield f"Sensitivity, {mode}", tuple(_flat(found.provenance))
    if findings.steps is not None and findings.steps.provenance:
        yield "Leaving nodes float", tuple(_flat(findings.steps.provenance))
    if findings.samples is not None and findings.samples.provenance:
        yield "Samples", tuple(_flat(findings.samples.provenance))
    if findings.scores is not None:
        yield "Task metric", (("data", findings.scores.dataset), ("samples", str(findings.scores.samples)))
