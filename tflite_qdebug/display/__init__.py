"""What a notebook shows of each public result: a card with its verdict, figures, tables and plots.

It is made when a cell's result is shown, and not before. Nothing here runs a model or loads TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

from tflite_qdebug.display.card import Card, card_of, render
from tflite_qdebug.errors import MissingPackageError

__all__ = ["Card", "card_of", "html_of"]

#: Each registers its cards with `card_of`, by class.
_MODULES = ("analyses", "devices", "models", "remedies", "runs")


def html_of(value: Any) -> str | None:
    """Returns a result as HTML, or None where jinja2 is not installed.

    The HTML has no script, asks for nothing from elsewhere, and all texts in it are escaped.

    Raises:
        TypeError: For a value that has no card.
    """
    for name in _MODULES:
        importlib.import_module(f"tflite_qdebug.display.{name}")
    try:
        return render(card_of(value))
    except MissingPackageError:
        return None
