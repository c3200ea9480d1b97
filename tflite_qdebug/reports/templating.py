"""The templates of the HTML files, and what all of them may use."""

from __future__ import annotations

import importlib.resources
from typing import Any

from tflite_qdebug.errors import MissingPackageError
from tflite_qdebug.wording import number, signed

__all__ = ["rendered"]


def rendered(name: str, **values: Any) -> str:
    """Returns a template of ``templates/`` filled in; all texts are escaped, and a name that does not exist is an error.

    Args:
        name: Of the file.
        values: What the template shows.

    Raises:
        MissingPackageError: Where Jinja2 is not installed.
    """
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise MissingPackageError(
            "an HTML file needs jinja2, which is not installed; pip install 'tflite-qdebug[host]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tflite_qdebug.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.globals["source"] = lambda file: markupsafe.Markup(_source(file))
    environment.globals["trusted"] = markupsafe.Markup
    environment.filters.update(number=number, signed=signed)
    text = environment.get_template(name).render(values)
    # A name may hold half of a surrogate pair, which no encoding can write.
    return text.encode("utf-8", "replace").decode()


def _source(name: str) -> str:
    return (importlib.resources.files("tflite_qdebug.reports") / "templates" / name).read_text(encoding="utf-8")
