"""The card: what there is to show of a result, as data, and the HTML that it becomes."""

from __future__ import annotations

import base64
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from tflite_qdebug.errors import MissingPackageError
from tflite_qdebug.reports import drawing
from tflite_qdebug.reports.templating import rendered

__all__ = ["Card", "Fact", "Table", "card_of", "counted", "render", "table"]

#: A name and its value, in words.
Fact = tuple[str, str]
_VALUE = r"[-+]?(\d[\d.]*(e[-+]?\d+)?|inf)( ?(%|dB|ms|kB|MB|B|points|\*))?"
_NUMBER = re.compile(rf"<? ?{_VALUE}( ?(…|\.\.|-|/|to) ?{_VALUE})?|-|–|")
_CHART_WIDTH = 720
# What programs that read charts aloud would be told; nobody asks an image for it, and it is most of a file.
_SPOKEN = ("aria-label", "aria-roledescription", "aria-hidden", "role")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: Above it.
        header: Of the columns.
        rows: The cells.
        folded: True where only its title is shown until the reader clicks on it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, which stand at its right."""
        columns = list(zip(*self.rows, strict=True))
        return [bool(cells) and all(map(_NUMBER.fullmatch, cells)) for cells in columns]


@dataclasses.dataclass(frozen=True)
class Card:
    """What there is to show of a result.

    Attributes:
        title: What it is.
        subtitle: Of what, and how many.
        lead: What was found, the verdict first.
        sound: Whether that is good; None where it is neither.
        facts: Figures, each with its name.
        tables: Below each other.
        charts: Functions that make an Altair chart each; called where the card is rendered.
        code: Lines to copy.
        notes: What the reader must know.
        more: What can be done with the object, in Python.
    """

    title: str
    subtitle: str = ""
    lead: Sequence[str] = ()
    sound: bool | None = None
    facts: Sequence[Fact] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Callable[[], Any]] = ()
    code: Sequence[str] = ()
    notes: Sequence[str] = ()
    more: str = ""


@functools.singledispatch
def card_of(value: Any) -> Card:
    """Returns the card of a result.

    Raises:
        TypeError: For a value that has none.
    """
    raise TypeError(f"got {type(value).__name__}, expected a result of tflite_qdebug")


def table(
    title: str,
    content: tuple[Sequence[str], Sequence[Sequence[str]]],
    *,
    folded: bool = False,
    without: Collection[str] = (),
) -> list[Table]:
    """Returns header and rows as a table, but for some columns; none where there is no row."""
    header, rows = content
    kept = [place for place, name in enumerate(header) if name not in without]
    shown = [[row[place] for place in kept] for row in rows]
    return [Table(title, [header[place] for place in kept], shown, folded)] if rows else []


def counted(count: int, what: str, plural: str = "") -> str:
    """Returns ``1 layer``, ``2 layers``."""
    return f"{count} {what if count == 1 else plural or what + 's'}"


def render(card: Card) -> str:
    """Returns a card as HTML.

    Raises:
        MissingPackageError: Where Jinja2 is not installed.
    """
    notes, images = list(card.notes), []
    try:
        images = [_image(make()) for make in card.charts]
    except MissingPackageError as error:
        notes.append(str(error))
    return rendered("card.html", card=card, notes=notes, images=images, width=_CHART_WIDTH)


def _image(chart: Any) -> str:
    """Returns a chart as the address of an image that lies in the page: other than SVG in it, it cannot disturb the page."""
    kind, content = "svg+xml", drawing.render(chart, "svg")
    try:
        content = _slim(content)
    except ExpatError:  # a name may have characters that XML does not know, which the renderer writes all the same
        kind, content = "png", drawing.render(chart, "png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _slim(svg: bytes) -> bytes:
    root: Any = minidom.parseString(svg).documentElement
    for element in _elements(root):
        for name in _SPOKEN:
            if element.hasAttribute(name):
                element.removeAttribute(name)
    text: str = root.toxml()
    return text.encode("utf-8", "replace")


def _elements(element: Any) -> Iterator[Any]:
    yield element
    for child in element.childNodes:
        if child.nodeType == child.ELEMENT_NODE:
            yield from _elements(child)
