"""What several sections of a report need: labels, positions and links of layers, causes, figures, charts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tflite_qdebug.findings import Findings, Sensitivity, Suspect
from tflite_qdebug.reports.content.parts import Cause, Chart, Link
from tflite_qdebug.reports.drawing import specification
from tflite_qdebug.reports.glossary import GLOSSARY, MODES, Figure, Term
from tflite_qdebug.wording import short_labels

__all__ = [
    "COMMANDS",
    "View",
    "cause_of",
    "cause_words",
    "causes_of",
    "denylist_line",
    "drawn",
    "figure_of",
    "missing",
    "sensitivity_term",
]

#: Which command makes a part that is missing.
COMMANDS = {
    "diagnosis": "tflite-qdebug diagnose",
    "scores": "tflite-qdebug evaluate",
    "sensitivity": "tflite-qdebug sensitivity",
    "curves": "tflite-qdebug accumulated-error",
    "steps": "tflite-qdebug sensitivity-analysis",
    "profiles": "tflite-qdebug distribution",
    "samples": "tflite-qdebug samples",
    "advice": "tflite-qdebug diagnose",
    "boards": "tflite-qdebug bundle, and merge what it gives",
    "latency": "tflite-qdebug latency",
}
# What a drawing needs below and above it, in pixels: axis, title, legend.
_AROUND = 110


def missing(part: str, words: str) -> str:
    """Returns that a part is missing, and which command makes it."""
    return f"{words} To make this part: {COMMANDS[part]}"


def drawn(chart: Any) -> Chart:
    """Returns an Altair chart as the page draws it: as wide as there is room."""
    found = specification(chart)
    title = found["title"]
    words = [title] if isinstance(title, str) else [title["text"], *title.get("subtitle", [])]
    found["autosize"] = {"type": "fit-x", "contains": "padding"}
    found.pop("$schema", None)
    return Chart(found, ". ".join(words), int(found["height"]) + _AROUND)


def denylist_line(nodes: Sequence[str]) -> str:
    """Returns the option that leaves nodes float, as it is written in Python."""
    return f"denylisted_nodes={list(nodes)!r}"


def figure_of(term: Term, key: str, value: float) -> Figure:
    """Returns a number by a term that the glossary has not in this form."""
    shown = None if math.isnan(value) else value
    return Figure(
        key, term.name, term.text(value), term.with_unit(value), term.hover(value), term.is_bad(value), shown, listed=False
    )


def sensitivity_term(found: Sensitivity) -> Term:
    """Returns what a sensitivity's numbers are."""
    what = f"The metric at the model's outputs: {MODES[found.mode]}."
    of_metric = GLOSSARY.get(found.metric)
    if of_metric is None:
        name = f"{found.metric}, {found.mode}"
        return dataclasses.replace(GLOSSARY["sensitivity"], name=name, unit="mean over samples", what=what)
    name = f"output {of_metric.name}" if found.mode == "node" else f"output {of_metric.name}, {found.mode}"
    if found.mode == "float":  # where all others are quantized, a bound on one node's error says nothing
        of_metric = dataclasses.replace(of_metric, below=None, above=None)
    return dataclasses.replace(of_metric, name=name, what=what)


def cause_words(cause: str) -> str:
    """Returns the name of a rule in words."""
    return cause.replace("_", " ")


def cause_of(suspect: Suspect) -> Cause:
    """Returns what is said of one suspect."""
    return Cause(cause_words(suspect.cause), suspect.words, suspect.remedy, tuple(suspect.evidence), suspect.line)


def causes_of(suspects: Sequence[Suspect]) -> Iterator[Cause]:
    """Yields the causes of one layer; what is to be copied stands once."""
    lines = set()
    for suspect in suspects:
        yield dataclasses.replace(cause_of(suspect), line="" if suspect.line in lines else suspect.line)
        lines.add(suspect.line)


class View:
    """A run as its report sees it.

    Attributes:
        findings: All that is known.
        run: The error of each layer.
        columns: Of the run.
        places: Position of the first layer of each name.
        labels: Of all nodes, layers or not.
        causes: The suspects of each node.
        sensitive: The metric of each node, by mode.
    """

    def __init__(self, findings: Findings) -> None:
        """Looks up what the sections need."""
        self.findings, self.run = findings, findings.run
        self.columns = findings.run.columns()
        self.places: dict[str, int] = {}
        for place, layer in enumerate(self.run.layers):
            self.places.setdefault(layer.node, place)
        names = [*self.places, *(node for entry in findings.graph for node in entry.nodes)]
        self.labels = short_labels(names, 46)
        self.causes: dict[str, list[Suspect]] = {}
        for suspect in findings.diagnosis.suspects if findings.diagnosis else ():
            self.causes.setdefault(suspect.node, []).append(suspect)
        self.sensitive = {
            mode: dict(zip(found.nodes, found.values().tolist(), strict=True)) for mode, found in findings.sensitivity.items()
        }

    @property
    def order(self) -> list[str]:
        """The names of the layers in execution order."""
        return [layer.node for layer in self.run.layers]

    def link(self, node: str, op_name: str = "", words: str = "") -> Link:
        """Returns a link to the first layer of that name, or a label alone where there is none."""
        place = self.places.get(node, -1)
        if not op_name and place >= 0:
            op_name = self.run.layers[place].op_name
        return Link(node, self.labels.get(node) or node, op_name, place, words)

    def link_to(self, place: int) -> Link:
        """Returns a link to the layer at a position."""
        layer = self.run.layers[place]
        return dataclasses.replace(self.link(layer.node, layer.op_name), layer=place)
