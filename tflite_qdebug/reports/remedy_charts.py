"""The Pareto front of a search for remedies: what each candidate reaches, against what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.outcome import Candidate, Outcome
from tflite_qdebug.reports.drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    load_altair,
    plain,
    rows_chart,
    sized,
    titled,
    tooltips,
    unchecked,
)
from tflite_qdebug.reports.glossary import GLOSSARY, label
from tflite_qdebug.reports.remedies import difference_words, float_model, main_metric, measured, metric_words, plain_int8
from tflite_qdebug.wording import byte_size, number

__all__ = ["COSTS", "front_by", "front_charts", "pareto_front"]

#: What may stand on the axis of costs: the name of the axis.
COSTS = {"size": "size of the file", "latency": "time for one sample on this machine (ms, one thread)"}
# What was done last, as colour and shape: each kind differs from the others in both, so that grey paper tells them apart.
_KINDS = {
    "int8": (VERMILION, "cross"),
    "ranges": (BLUE, "circle"),
    "bias": (SKY, "square"),
    "rounding": (ORANGE, "diamond"),
    "equalization": (PURPLE, "triangle-down"),
    "float nodes": (GREEN, "triangle-up"),
    "16x8": (BLACK, "triangle-right"),
    "training": (DARK_GREY, "triangle-left"),
    "weights": (GREY, "wedge"),
}
_OTHER = (GREY, "stroke")
_HEIGHT = 320
# Pixels between the names of two lines.
_LINE_HEIGHT = 13.0


def front_by(outcome: Outcome, cost: str) -> list[int]:
    """Returns the positions of the quantized candidates that none beats at the same cost or a smaller one, cheapest first.

    Args:
        outcome: Of a search.
        cost: A key of `COSTS`; by ``size`` it is the outcome's own front where that has one.
    """
    metric, sign = main_metric(outcome), 1.0 if outcome.large_is_good.get(main_metric(outcome), True) else -1.0
    chosen = outcome.front if cost == "size" and outcome.front else range(len(outcome.candidates))
    usable = []
    for position in chosen:
        candidate = outcome.candidates[position]
        value, paid = measured(candidate, metric).value, _cost(candidate, cost)
        if candidate.kind != "float" and math.isfinite(value) and math.isfinite(paid):
            usable.append((paid, -sign * value, position))
    front, best = [], math.inf
    for _, badness, position in sorted(usable):
        if badness < best:
            front.append(position)
            best = badness
    return front


def _cost(candidate: Candidate, cost: str) -> float:
    return float(candidate.size) if cost == "size" else candidate.milliseconds


def front_charts(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    """Yields ``(cost, chart)``: of size, and of latency where it was measured of two candidates at least."""
    yield "size", pareto_front(outcome)
    if sum(math.isfinite(candidate.milliseconds) for candidate in outcome.candidates if candidate.kind != "float") > 1:
        yield "latency", pareto_front(outcome, "latency")


@unchecked
def pareto_front(outcome: Outcome, cost: str = "size") -> Any:
    """Returns all candidates by kind, the front as a steps, float, plain int8 and target as lines, and what is handed back.

    The float model is a line and no point: it is so much larger that the others would stand in one heap.

    Args:
        outcome: Of a search.
        cost: A key of `COSTS`.

    Raises:
        OptionError: For a cost that there is not.
    """
    if cost not in COSTS:
        raise OptionError(f"got cost {cost!r}, expected one of {', '.join(COSTS)}.{did_you_mean(cost, COSTS)}")
    altair = load_altair()
    metric, front = main_metric(outcome), front_by(outcome, cost)
    rows = _rows(outcome, cost, front)
    unit, divisor = _unit(rows, cost)
    for row in rows:
        row["cost"] = plain(row["cost"] / divisor)
    title = f"{COSTS[cost]} ({unit})" if cost == "size" else COSTS[cost]
    x = altair.X("cost:Q", title=title, scale=altair.Scale(zero=False, nice=False, padding=24), axis=altair.Axis(tickCount=8))
    words = label(metric, metric not in GLOSSARY)
    y = altair.Y("value:Q", title=words, scale=altair.Scale(zero=False, nice=True, padding=8))
    by_kind = _by_kind([row["kind"] for row in rows])
    base = rows_chart(rows).encode(x=x, y=y, tooltip=_tooltips(cost))
    on_front = base.transform_filter(altair.datum.front)
    # Above its last step the front goes on: who pays more has at least as much.
    line = on_front.mark_line(interpolate="step-after", color=BLACK, strokeWidth=1.5, opacity=0.75, tooltip=False)
    whiskers = on_front.mark_rule(color=BLACK, strokeWidth=1, opacity=0.45).encode(
        y=altair.Y("low:Q", title=words), y2=altair.Y2("high:Q")
    )
    points = base.mark_point(filled=True, size=75, opacity=0.9).encode(**by_kind)
    best = base.transform_filter(altair.datum.best)
    ring = best.mark_point(filled=False, shape="circle", size=340, strokeWidth=2.5, color=BLACK, opacity=1)
    values = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    rules = _rules(outcome, cost, divisor, x, words, values)
    subtitle = f"points: all candidates on {outcome.samples} debug samples; steps: the front, with its 90 % intervals"
    where = "ring: what is handed back" if any(row["best"] for row in rows) else ""
    name = GLOSSARY[metric].name if metric in GLOSSARY else metric
    chart = altair.layer(*rules, whiskers, line, points, ring)
    return sized(chart, titled(f"{name} against {cost}", subtitle, where), _HEIGHT)


def _factor(metric: str) -> float:
    """Returns what a value is multiplied by to be drawn: shares are drawn in %."""
    return 100.0 if metric in GLOSSARY and GLOSSARY[metric].kind == "share" else 1.0


def _rows(outcome: Outcome, cost: str, front: Sequence[int]) -> list[dict[str, Any]]:
    metric, factor = main_metric(outcome), _factor(main_metric(outcome))
    rows: list[dict[str, Any]] = []
    for position, candidate in enumerate(outcome.candidates):
        found, paid = measured(candidate, metric), _cost(candidate, cost)
        if candidate.kind == "float" or not math.isfinite(found.value) or not math.isfinite(paid):
            continue
        difference = candidate.differences.get(metric)
        rows.append(
            {
                "candidate": candidate.name,
                "kind": candidate.kind,
                "cost": paid,
                "value": plain(factor * found.value),
                "low": plain(factor * found.low),
                "high": plain(factor * found.high),
                "shown": metric_words(metric, found.value),
                "difference": "-" if difference is None else difference_words(metric, difference.value),
                "size": byte_size(candidate.size),
                "time": "-" if math.isnan(candidate.milliseconds) else f"{number(candidate.milliseconds, 3)} ms",
                "float": f"{candidate.float_operators} of {candidate.operators}",
                "met": "yes" if candidate.met else "no",
                "front": position in front,
                "best": position == outcome.best,
            }
        )
    return rows


def _unit(rows: Sequence[dict[str, Any]], cost: str) -> tuple[str, float]:
    """Returns the unit of the axis and what a cost is divided by to be in it."""
    if cost != "size":
        return "ms", 1.0
    return ("MB", 1e6) if max((row["cost"] for row in rows), default=0.0) >= 1e6 else ("kB", 1e3)


def _by_kind(kinds: Sequence[str]) -> dict[str, Any]:
    altair = load_altair()
    names = [*[kind for kind in _KINDS if kind in kinds], *sorted({kind for kind in kinds if kind not in _KINDS})]
    looks = [_KINDS.get(name, _OTHER) for name in names]
    legend = altair.Legend(title="what was done last", columns=4, symbolSize=110)
    colours = altair.Scale(domain=names, range=[colour for colour, _ in looks])
    shapes = altair.Scale(domain=names, range=[shape for _, shape in looks])
    return {
        "color": altair.Color("kind:N", scale=colours, legend=legend, sort=names),
        "shape": altair.Shape("kind:N", scale=shapes, legend=legend, sort=names),
    }


def _tooltips(cost: str) -> list[Any]:
    return tooltips(
        ("candidate", "nominal", "candidate"),
        ("shown", "nominal", "reaches"),
        ("difference", "nominal", "less float"),
        ("size", "nominal", "size"),
        ("time", "nominal", "time"),
        ("float", "nominal", "operators in float"),
        ("met", "nominal", "meets the target"),
    )


def _rules(outcome: Outcome, cost: str, divisor: float, x: Any, words: str, values: Sequence[float]) -> list[Any]:
    """Returns the lines of float, plain int8 and target, each with its name; and that of a target on the cost."""
    altair = load_altair()
    metric = main_metric(outcome)
    levels = [
        ("float", measured(float_model(outcome), metric).value, GREEN, (1, 0)),
        ("target", outcome.goals.get(metric, math.nan), BLUE, (6, 3)),
        ("plain int8", measured(plain_int8(outcome), metric).value, VERMILION, (2, 2)),
    ]
    shown = sorted((level for level in levels if math.isfinite(level[1])), key=lambda level: -level[1])
    factor = _factor(metric)
    drops = _drops([factor * value for _, value, _, _ in shown], values)
    layers, y = [], altair.Y("value:Q", title=words)
    for (name, value, colour, dash), drop in zip(shown, drops, strict=True):
        row = [{"value": plain(factor * value), "text": f"{name} {metric_words(metric, value)}"}]
        layers.append(rows_chart(row).mark_rule(color=colour, strokeDash=list(dash), strokeWidth=1.5).encode(y=y))
        text = rows_chart(row).mark_text(align="left", dx=6, dy=drop, color=colour, fontSize=11)
        layers.append(text.encode(x=altair.XValue("width"), y=y, text="text:N"))
    goal = outcome.goals.get(cost, math.nan)
    if math.isfinite(goal):
        row = [{"cost": plain(goal / divisor), "text": f"target {metric_words(cost, goal)}"}]
        layers.append(rows_chart(row).mark_rule(color=BLUE, strokeDash=[6, 3], strokeWidth=1.5).encode(x=x))
        text = rows_chart(row).mark_text(align="right", dx=-5, color=BLUE, fontSize=11, baseline="bottom")
        layers.append(text.encode(x=x, y=altair.YValue("height"), text="text:N"))
    return layers


def _drops(levels: Sequence[float], values: Sequence[float]) -> list[float]:
    """Returns by how many pixels the name of each line is moved down, so that those of lines that lie close can be read.

    Args:
        levels: Where the lines are, the highest first.
        values: What else the axis has to hold.
    """
    if not levels:
        return []
    every = [*levels, *values]
    span = (max(every) - min(every)) or 1.0
    ideal = [_HEIGHT * (max(every) - level) / span for level in levels]
    placed: list[float] = []
    for place in ideal:
        placed.append(max(place, placed[-1] + _LINE_HEIGHT) if placed else place)
    # A heap of names is moved up by half of what its last one was moved down.
    excess = max((new - old for new, old in zip(placed, ideal, strict=True)), default=0.0)
    crowded = [
        new > old or (place + 1 < len(placed) and placed[place + 1] > ideal[place + 1])
        for place, (new, old) in enumerate(zip(placed, ideal, strict=True))
    ]
    return [
        round(new - old - (excess / 2 if moved else 0.0), 1) for new, old, moved in zip(placed, ideal, crowded, strict=True)
    ]
