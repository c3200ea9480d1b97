"""Progress bars with the time left, drawn by rich where it is installed; silent elsewhere."""

from __future__ import annotations

import sys
from typing import Any, Iterable, Iterator, Optional, TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(values: Iterable[T], what: str, total: Optional[int] = None, progress: Optional[bool] = None) -> Iterator[T]:
    """Yields ``values`` and shows on standard error how far it is.

    Args:
        values: Anything iterable.
        what: Words beside the bar.
        total: How many values there are, where that is known; the bar tells the time left then.
        progress: True or False, or None: only where standard error is a terminal.
    """
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    bar = _bar() if progress else None
    if bar is None:
        for value in values:
            yield value
        return
    with bar:
        task = bar.add_task(what, total=total)
        for value in values:
            yield value
            bar.advance(task)


def _bar() -> Any:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=False,
    )
