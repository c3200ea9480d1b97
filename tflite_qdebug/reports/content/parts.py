"""What a report is made of; a template shows it as it stands."""

from __future__ import annotations

import dataclasses
from typing import Any

from tflite_qdebug.reports.glossary import Figure, Term

__all__ = [
    "Cause",
    "Chart",
    "Column",
    "Culprit",
    "FixVerdict",
    "Link",
    "Page",
    "Report",
    "Row",
    "Section",
    "Table",
    "Tile",
    "Trial",
]


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
    """One likely cause.

    Attributes:
        name: In one or two words.
        words: The cause in one sentence.
        remedy: What to try.
        evidence: The figures that speak for it.
        line: To be copied; empty where there is none.
    """

    name: str
    words: str
    remedy: str
    evidence: tuple[str, ...]
    line: str


@dataclasses.dataclass(frozen=True)
class Culprit:
    """A layer of the first screen; its likely causes, which may be none, and its worst figures."""

    link: Link
    causes: tuple[Cause, ...]
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of figures: ``header`` holds terms, ``rows`` hold links, figures and texts; some can be sorted by the reader."""

    header: tuple[Term, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""
    sortable: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """All about one layer.

    Attributes:
        link: To itself.
        causes: That are likely, if any.
        line: To be copied, where no cause says so already; empty else.
        figures: Groups of them, ``(title, figures)``.
        facts: About the operator, ``(name, value)``.
        charts: Of its values.
        before: The operators that it reads.
        behind: Those that read it.
        missing: What could be here, and which command makes it; empty where it is here.
    """

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
    """A number of the first screen: the quantized model's, where it applies with the float model's before it.

    Attributes:
        title: What it is.
        float_figure: The one before; None where there is one number alone.
        figure: The one that counts.
        words: More about it.
        bad: Whether it is.
        labels: What the two numbers are of.
    """

    title: str
    float_figure: Figure | None
    figure: Figure
    words: str = ""
    bad: bool = False
    labels: tuple[str, str] = ("float", "quantized")


@dataclasses.dataclass(frozen=True)
class FixVerdict:
    """What came of a search for remedies, for the first screen: its tone is that of `Report`."""

    tone: str
    words: str
    evidence: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One thing to try: the sentence, what it is expected to bring, how that is known, and the command."""

    words: str
    gain: Figure | None
    at_most: bool
    how: str
    line: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section behind the table: an analysis's charts and tables, or in ``missing`` why there are none.

    ``paragraphs`` are its first words, ``lines`` what there is to be copied, ``(title, text)``, ``trials`` what to try.
    """

    anchor: str
    title: str
    words: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""
    paragraphs: tuple[str, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    trials: tuple[Trial, ...] = ()


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table of layers, and in which order the worst come first."""

    key: str
    term: Term
    first: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table of layers: its figures, one for each `Column`, and the names of its causes."""

    link: Link
    figures: tuple[Figure, ...]
    cause: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The whole report.

    Attributes:
        title: The run's name.
        facts: How it was measured, in short: ``(name, value)``.
        verdict: One sentence.
        tone: ``good``, ``bad``, or ``unknown`` without a diagnosis.
        evidence: The figures that the verdict rests on.
        tiles: The numbers of the whole model.
        culprits: The layers that matter.
        culprits_title: What they are.
        denylist: A line that leaves them float; empty where there is none.
        curve: Accumulated error; None where it was not measured.
        layer_chart: The error of each layer; None without layers.
        columns: Of the table of layers.
        rows: Of that table, the worst layer first.
        sorted_by: The key of the column that it is sorted by.
        operators: The types that there are, to choose from.
        pages: Of the layers that have charts.
        light: Of the others.
        sections: One for each analysis.
        notes: What the reader must know.
        provenance: How each part was made, ``(title, ((name, value), ...))``.
        glossary: All terms by their keys.
        fix: What came of a search for remedies; None where none was made.
    """

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
    rows: tuple[Row, ...]
    sorted_by: str
    operators: tuple[str, ...]
    pages: tuple[Page, ...]
    light: tuple[Page, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    provenance: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    glossary: tuple[tuple[str, Term], ...]
    fix: FixVerdict | None = None
