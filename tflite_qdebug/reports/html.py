"""The report that people look at: one HTML file that needs nothing else, neither network nor the tool that made it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.content.report import describe
from tflite_qdebug.reports.drawing import CONFIG, load_converter, vega_lite_version
from tflite_qdebug.reports.templating import rendered

__all__ = ["render_report", "write_report"]

#: How many layers that are no suspects get a page with charts.
PAGES = 20


def write_report(findings: Findings, path: str | os.PathLike[str], pages: int = PAGES) -> Path:
    """Writes the report on a run and returns its path.

    Args:
        findings: Of the run; what is missing is left out, and the report says which command makes it.
        path: Of the file; one that exists is replaced once the new one is whole.
        pages: How many layers that are no suspects get a page with charts; all have one with figures.

    Raises:
        MissingPackageError: Where jinja2, altair or vl-convert-python is not installed.
        OutputError: Where it cannot be written.
    """
    write_atomically(path, render_report(findings, pages).encode())
    return Path(path)


def render_report(findings: Findings, pages: int = PAGES) -> str:
    """Returns the report as HTML; the arguments are those of `write_report`."""
    return rendered("report.html", report=describe(findings, pages), config=CONFIG, library=_library())


@functools.cache
def _library() -> str:
    """Returns Vega, Vega-Lite and vega-embed as one script, which may stand between script tags."""
    text: str = load_converter().javascript_bundle(vl_version=vega_lite_version())
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
