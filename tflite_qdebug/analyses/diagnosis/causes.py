"""What a rule of the diagnosis is, what it finds, and how it words figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.evidence import LayerEvidence

__all__ = ["Cause", "Context", "Rule", "bare", "figure", "keep_float", "listed", "other_range", "percent", "rule"]


@dataclasses.dataclass(frozen=True)
class Cause:
    """What a rule found.

    Attributes:
        name: Of the rule.
        words: One sentence.
        evidence: Figures with units.
        remedy: One sentence.
        line: To copy; may be empty.
        is_alarming: True where no sound model has this, even where the output shows no loss.
        part: Of the layer's error that it explains: ``weights``, ``output``, ``input``; empty: all of it.
    """

    name: str
    words: str
    evidence: tuple[str, ...]
    remedy: str
    line: str = ""
    is_alarming: bool = False
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may look at besides the layer itself.

    Attributes:
        layers: All of them.
        is_lossy: True where the model's output shows a loss.
        lossy_part: ``weights`` or ``activations``, where one of them makes most of the error at the output; else empty.
    """

    layers: Sequence[LayerEvidence]
    is_lossy: bool
    lossy_part: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: Of the cause.
        needs: The analyses without which it cannot judge: ``profiles``, ``parts``, ``graph``, ``sensitivity``.
        judge: Returns the cause where it applies.
        is_last: True for a rule that speaks only where no other one does.
    """

    name: str
    needs: tuple[str, ...]
    judge: Callable[[LayerEvidence, Context], Cause | None]
    is_last: bool = False


def rule(*needs: str, is_last: bool = False) -> Callable[[Callable[[LayerEvidence, Context], Cause | None]], Rule]:
    """Makes a function a rule of its name, which needs some analyses."""

    def made(judge: Callable[[LayerEvidence, Context], Cause | None]) -> Rule:
        return Rule(judge.__name__, needs, judge, is_last)

    return made


def figure(value: float) -> str:
    """Returns a number as a person reads it, with three significant digits."""
    if value and np.isfinite(value) and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text else text


def percent(share: float) -> str:
    """Returns a share as per cent."""
    # 99.99 % must not become 100 %.
    return f"{100.0 * share:.4g} %" if 0.99 < share < 1.0 else f"{figure(100.0 * share)} %"


def bare(node: str) -> str:
    """Returns the first of the names that the converter joined."""
    return node.partition(";")[0]


def keep_float(*nodes: str) -> str:
    """Returns the argument that keeps nodes in float."""
    return f"denylisted_nodes={list(nodes)!r}"


def other_range(entry: LayerEvidence, low: float, high: float) -> str:
    """Returns the Python line that gives an activation another range before quantizing."""
    return (
        f"calibrated = CalibratedModel(calibrated.float_model, edit.with_ranges(calibrated.model, {{tensor.index: "
        f"({low:.6g}, {high:.6g}) for tensor in calibrated.model.main.tensors if tensor.name == {entry.layer.node!r}}}))"
    )


def listed(positions: np.ndarray) -> str:
    """Returns the first five of some positions, and how many more there are."""
    shown = ", ".join(str(int(position)) for position in positions[:5])
    return shown + (f" and {len(positions) - 5} more" if len(positions) > 5 else "")
