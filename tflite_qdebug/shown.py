"""What makes a notebook show a result as more than a line of text. Part of the board, where nothing is shown."""

from __future__ import annotations

import importlib
from typing import Optional

__all__ = ["Shown"]


class Shown:
    """A result that a notebook shows with its verdict, a table and a plot; how, `tflite_qdebug.display` knows."""

    __slots__ = ()

    def _repr_html_(self) -> Optional[str]:
        """Returns HTML without scripts that needs nothing from elsewhere; None, for the `repr`, where jinja2 is missing."""
        # By its name: what is imported by a statement would be packed for boards.
        display = importlib.import_module("tflite_qdebug.display")
        html: Optional[str] = display.html_of(self)
        return html
