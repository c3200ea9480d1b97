"""The report that people look at: one HTML file that needs nothing else, neither network nor the tool that made it."""

from __future__ import annotations

import functools
import importlib.resources
import os
from pathlib import Path
from typing import Any

from tflite_qdebug.errors import MissingPackageError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports import charts
from tflite_qdebug.reports.pages import describe

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
    environment = _environment()
    template = environment.get_template("report.html")
    text: str = template.render(report=describe(findings, pages), config=charts.CONFIG, library=_library())
    # A name may hold half of a surrogate pair, which no encoding can write.
    return text.encode("utf-8", "replace").decode()


def _environment() -> Any:
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise MissingPackageError(
            "the report needs jinja2, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    loader = jinja2.PackageLoader("tflite_qdebug.reports", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.globals["source"] = lambda name: markupsafe.Markup(_source(name))
    environment.globals["trusted"] = markupsafe.Markup
    return environment


def _source(name: str) -> str:
    return (importlib.resources.files("tflite_qdebug.reports") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Returns Vega, Vega-Lite and vega-embed as one script, which may stand between script tags."""
    converter = charts.converter()
    text: str = converter.javascript_bundle(vl_version=charts.vega_lite_version())
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
