"""What every chart is made with: Altair, the colours and looks, rows of data, titles; and how a chart becomes a file.

Altair (Vega-Lite) is used because one description of a chart serves the browser and the files, and files need no browser.
The colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart; lines
differ in their dashes as well, so that a black-and-white print can be read.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from tflite_qdebug.errors import MissingPackageError, OptionError, did_you_mean

__all__ = [
    "CONFIG",
    "FORMATS",
    "checked_format",
    "load_altair",
    "load_converter",
    "plain",
    "reference_line",
    "render",
    "rows_chart",
    "series_encodings",
    "sized",
    "specification",
    "titled",
    "tooltips",
    "unchecked",
    "vega_lite_version",
]

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, DARK_GREY = "#767676", "#57606a"
# Their eighth, yellow, cannot be seen on white.
_LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4), (4, 2), (1, 3))
#: As files.
FORMATS = ("png", "svg")
#: Looks, the same for every chart; handed to the renderer instead of being written into each chart.
CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, Liberation Sans, DejaVu Sans, Noto Sans CJK SC, sans-serif",
    "background": "#ffffff",
    "view": {"stroke": None},
    "title": {
        "anchor": "start", "fontSize": 14, "fontWeight": 600, "color": "#1b1f24", "subtitleColor": "#57606a",
        "subtitleFontSize": 12, "offset": 10, "frame": "bounds",
    },
    "axis": {
        "labelColor": "#32383f", "titleColor": "#32383f", "titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11,
        "gridColor": "#e6e8eb", "domainColor": "#8c959f", "tickColor": "#8c959f", "titlePadding": 8,
    },
    "legend": {"orient": "top", "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 260, "symbolSize": 120, "offset": 4},
}  # fmt: skip
#: Pixels of the drawing without its axes.
WIDTH, HEIGHT = 720, 260

_Arguments = ParamSpec("_Arguments")


def load_altair() -> Any:
    """Returns the package.

    Raises:
        MissingPackageError: Where it is not installed.
    """
    try:
        import altair
    except ImportError as error:
        raise MissingPackageError(
            "charts need altair, which is not installed; pip install 'tflite-qdebug[host]' (altair, vl-convert-python)"
        ) from error
    return altair


def load_converter() -> Any:
    """Returns vl-convert, which draws without a browser.

    Raises:
        MissingPackageError: Where it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingPackageError(
            "charts as files and in a report need vl-convert-python, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    return vl_convert


def vega_lite_version() -> str | None:
    """Returns the version of Vega-Lite that Altair writes for, as vl-convert calls it; None for its newest."""
    wanted = ".".join(load_altair().SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return wanted if wanted in load_converter().get_vegalite_versions() else None


def unchecked(make: Callable[_Arguments, Any]) -> Callable[_Arguments, Any]:
    """Returns a function that makes a chart without Altair's checks of each of its parts, which take a third of the time.

    What they would find is a mistake in this package: tests check every kind of chart, whole.
    """

    @functools.wraps(make)
    def made(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        load_altair()
        from altair.utils import schemapi

        with schemapi.debug_mode(False):
            return make(*args, **kwargs)

    return made


# Pieces of charts.


def plain(value: Any) -> float | None:
    """Returns a number with five digits, as many as a chart can show; None where JSON has no word for it."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


def rows_chart(rows: Sequence[dict[str, Any]]) -> Any:
    """Returns a chart that has rows of data, and nothing that shows them yet."""
    # As one text: Altair copies a list of rows, value by value, each time that a chart is put together.
    altair = load_altair()
    text = json.dumps(list(rows), allow_nan=False)
    return altair.Chart(altair.Data(values=text, format=altair.JsonDataFormat(type="json")))


def _with_rows(value: Any) -> Any:
    """Returns a specification with rows for the texts that `rows_chart` made of them."""
    if isinstance(value, list):
        return [_with_rows(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == {"type": "json"} and isinstance(value.get("values"), str):
        return {"values": json.loads(value["values"])}
    return {key: _with_rows(entry) for key, entry in value.items()}


def reference_line(value: float | None, axis: str, color: str, dash: Sequence[int], width: float = 2.0) -> Any:
    """Returns a dashed line across the chart.

    Args:
        value: Where it stands.
        axis: On which it stands: ``x`` or ``y``.
        color: Of the line.
        dash: Pixels with and without ink.
        width: Pixels.
    """
    altair = load_altair()
    channel = {"x": altair.X, "y": altair.Y}[axis](f"{axis}:Q")
    line = rows_chart([{axis: value}]).mark_rule(color=color, strokeDash=list(dash), strokeWidth=width)
    return line.encode(**{axis: channel})


def series_encodings(field: str, names: Sequence[str], title: str) -> tuple[Any, Any]:
    """Returns colour and dash of lines, one for each name; with a legend where there are several."""
    altair = load_altair()
    legend = None
    if len(names) > 1:
        legend = altair.Legend(title=title, symbolType="stroke", symbolSize=500, symbolStrokeWidth=2.5)
    colours = altair.Scale(domain=list(names), range=[_LINES[place % len(_LINES)] for place in range(len(names))])
    dashes = altair.Scale(domain=list(names), range=[list(_DASHES[place % len(_DASHES)]) for place in range(len(names))])
    shared = {"legend": legend, "sort": list(names)}
    return altair.Color(f"{field}:N", scale=colours, **shared), altair.StrokeDash(f"{field}:N", scale=dashes, **shared)


def tooltips(*fields: tuple[str, str, str]) -> list[Any]:
    """Returns tooltips of ``(field, type, title)``."""
    altair = load_altair()
    return [altair.Tooltip(field, type=kind, title=title) for field, kind, title in fields]


def titled(text: str, *subtitles: str) -> Any:
    """Returns a title, with those lines below it that are not empty."""
    title = load_altair().TitleParams(text)
    kept = [line for line in subtitles if line]
    if kept:
        title.subtitle = kept
    return title


def sized(chart: Any, title: Any, height: int = HEIGHT) -> Any:
    """Returns the chart with a title and the size that all have; it is changed in place, which costs no copy."""
    chart.title, chart.width, chart.height = title, WIDTH, height
    return chart


# As Vega-Lite and as files.


def specification(chart: Any) -> dict[str, Any]:
    """Returns a chart as Vega-Lite, without what is the same for all of them (`CONFIG`)."""
    with load_altair().data_transformers.enable(consolidate_datasets=False, max_rows=None):
        found: dict[str, Any] = chart.to_dict(validate=False)
    found.pop("config", None)
    return dict(_with_rows(found))


def checked_format(kind: str) -> str:
    """Returns one of `FORMATS`.

    Raises:
        OptionError: For any other.
    """
    if kind not in FORMATS:
        raise OptionError(f"got format {kind!r}, expected one of {', '.join(FORMATS)}.{did_you_mean(kind, FORMATS)}")
    return kind


def render(chart: Any, kind: str) -> bytes:
    """Returns a chart as the content of a file.

    Args:
        chart: Any of this package.
        kind: ``png`` (twice the resolution of a screen) or ``svg``.

    Raises:
        OptionError: For another kind.
    """
    convert, text = load_converter(), json.dumps(specification(chart))
    if checked_format(kind) == "png":
        return bytes(convert.vegalite_to_png(text, config=CONFIG, scale=2.0, vl_version=vega_lite_version()))
    svg: str = convert.vegalite_to_svg(text, config=CONFIG, vl_version=vega_lite_version())
    return svg.encode()
