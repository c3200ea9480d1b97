"""The charts of a tensor's values: histograms of weights, activations and errors, and boxes of channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Channels, Profile
from tflite_qdebug.reports.drawing import (
    BLUE,
    DARK_GREY,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    WIDTH,
    load_altair,
    plain,
    rows_chart,
    sized,
    titled,
    tooltips,
    unchecked,
)
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.wording import number, percent, shortened

__all__ = [
    "activation_histogram",
    "channel_boxes",
    "error_histogram",
    "output_histogram",
    "profile_charts",
    "weight_histogram",
]

# A wider chart says no more; in finer bins the grid of the integers shows as a comb.
_BINS = 96
# Where bars of a logarithmic count start: an empty bin lies on the axis, a single value is seen.
_LOG_FLOOR = 0.5
# Of more channels than the first number the second is shown.
_ALL_CHANNELS, _EXTREME_CHANNELS = 128, 64
_VALUE = "value (real units)"


class _Binned(NamedTuple):
    """Counts in bins of one width.

    Attributes:
        width: Of a bin.
        first: Position of the first bin, which starts at ``first * width``.
        counts: One per bin.
    """

    width: float
    first: int
    counts: np.ndarray


def _bin_width(histograms: Sequence[Histogram]) -> float:
    """Returns a power of two in which all the values need at most `_BINS` bins, and that is no finer than any histogram."""
    known = [histogram for histogram in histograms if histogram.exponent is not None]
    if not known:
        return 1.0
    low = min(0.0 if histogram.zeros else math.inf for histogram in known)
    low = min(low, *(histogram.edges()[0] for histogram in known))
    high = max(histogram.edges()[-1] for histogram in known)
    least = max(2.0 ** (histogram.exponent or 0) for histogram in known)
    return float(max(least, 2.0 ** math.ceil(math.log2((high - low) / _BINS))))


def _binned(histogram: Histogram, width: float) -> _Binned:
    """Brings a histogram to wider bins; zeros go into the bin that starts at zero."""
    counted = np.flatnonzero(histogram.counts)
    places = np.floor(histogram.edges()[:-1][counted] / width).astype(np.int64)
    if histogram.zeros:
        places = np.append(places, 0)
    weights = np.append(histogram.counts[counted], histogram.zeros) if histogram.zeros else histogram.counts[counted]
    if not len(places):
        return _Binned(width, 0, np.zeros(1, dtype=np.int64))
    first = int(places.min())
    return _Binned(width, first, np.bincount(places - first, weights=weights).astype(np.int64))


def _histogram(series: Sequence[tuple[str, Histogram]], title: Any, axis: str, log: bool, extra: Sequence[Any] = ()) -> Any:
    """Returns the first series as an area of bars, the second as the outline of steps."""
    altair = load_altair()
    width = _bin_width([histogram for _, histogram in series])
    floor = _LOG_FLOOR if log else 0.0
    binned = [(name, _binned(histogram, width)) for name, histogram in series]
    names = [name for name, _ in binned]
    colours = altair.Scale(domain=names, range=[SKY, VERMILION][: len(names)])
    legend = altair.Legend(title=None, symbolType="square") if len(names) > 1 else None
    shared = {
        "x": altair.X("left:Q", title=axis, scale=altair.Scale(zero=False, nice=False)),
        "y": _counts(max(int(counts.counts.max()) for _, counts in binned), log),
        "color": altair.Color("series:N", scale=colours, legend=legend, sort=names),
        "tooltip": tooltips(
            ("series", "nominal", "values"),
            ("left", "quantitative", "from"),
            ("right", "quantitative", "to"),
            ("count", "quantitative", "count"),
        ),
    }
    bars = rows_chart(_bar_rows(names[0], binned[0][1], floor)).mark_rect(stroke=None)
    layers = [bars.encode(x2=altair.X2("right:Q"), y2=altair.Y2("floor:Q"), **shared)]
    for name, counts in binned[1:]:
        outline = rows_chart(_step_rows(name, counts, floor)).mark_line(interpolate="step-after", strokeWidth=1.5)
        layers.append(outline.encode(**shared))
    return sized(altair.layer(*layers, *extra), title, 220)


def _counts(top: int, log: bool) -> Any:
    """Returns the axis of counts up to ``top``."""
    altair = load_altair()
    if not log:
        axis, scale = altair.Axis(format="~s"), altair.Scale(zero=True)
        return altair.Y("count:Q", title="values (count)", scale=scale, axis=axis)
    powers = [10**power for power in range(math.ceil(math.log10(max(top, 2))) + 1)]
    scale = altair.Scale(type="log", domain=[_LOG_FLOOR, max(top * 1.5, 2)], nice=False)
    return altair.Y("count:Q", title="values (count, log scale)", scale=scale, axis=altair.Axis(values=powers, format="~s"))


def _bar_rows(name: str, binned: _Binned, floor: float) -> list[dict[str, Any]]:
    return [
        {
            "series": name,
            "left": plain((binned.first + place) * binned.width),
            "right": plain((binned.first + place + 1) * binned.width),
            "count": int(count),
            "floor": floor,
        }
        for place, count in enumerate(binned.counts)
        if count
    ]


def _step_rows(name: str, binned: _Binned, floor: float) -> list[dict[str, Any]]:
    """Returns the corners of the outline, which starts and ends on the axis."""
    counts = [0, *binned.counts.tolist(), 0]
    rows = []
    for place, count in enumerate(counts):
        left = (binned.first + place - 1) * binned.width
        # In a stretch of empty bins its corners do.
        if 0 < place < len(counts) - 1 and count == 0 and counts[place - 1] == 0:
            continue
        rows.append({"series": name, "left": plain(left), "right": plain(left + binned.width), "count": max(count, floor)})
    rows[0]["left"] = rows[1]["left"]
    return rows


def _largest(profile: Profile) -> float:
    """Returns the value that is farthest from zero, with its sign."""
    return max((profile.values.minimum, profile.values.maximum), key=abs)


def _range_marks(profile: Profile) -> list[Any]:
    """Returns dashed lines at the ends of the calibrated range, and a triangle at the largest absolute value."""
    altair = load_altair()
    marks = []
    ends = [
        {"left": plain(end), "what": what}
        for end, what in ((profile.low, "least"), (profile.high, "greatest"))
        if math.isfinite(end)
    ]
    if ends:
        rule = rows_chart(ends).mark_rule(color=VERMILION, strokeDash=[6, 3], strokeWidth=2)
        tips = tooltips(("what", "nominal", "the integers can hold"), ("left", "quantitative", "real units"))
        marks.append(rule.encode(x=altair.X("left:Q"), tooltip=tips))
    if math.isfinite(_largest(profile)):
        point = rows_chart([{"left": plain(_largest(profile))}])
        point = point.mark_point(shape="triangle-down", filled=True, size=130, color=BLUE, opacity=1)
        tips = tooltips(("left", "quantitative", "largest by size (real units)"))
        marks.append(point.encode(x=altair.X("left:Q"), y=altair.YValue(8), tooltip=tips))
    return marks


def _range_words(profile: Profile) -> str:
    words = f"triangle: largest value {number(_largest(profile), 3)}"
    if math.isfinite(profile.low):
        clipped = percent(profile.clipped_low + profile.clipped_high, 2)
        words = f"dashed: calibrated range {number(profile.low, 3)} to {number(profile.high, 3)}, clipped {clipped}; {words}"
    return words


def _compared(profile: Profile) -> list[tuple[str, Histogram]]:
    """Returns the float values, and the quantized ones where there are any."""
    both = ("float", profile.values), ("quantized", profile.quantized)
    return [(name, histogram) for name, histogram in both if histogram is not None]


@unchecked
def weight_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns a weight before quantization (bars) and after (outline).

    Args:
        profile: With role ``weights``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    words = "not quantized" if profile.quantized is None else "before and after quantization"
    title = titled(f"Weights of {shortened(profile.node, 52)}", words)
    return _histogram(_compared(profile), title, "weight (real units)", log)


@unchecked
def activation_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns an activation's float values with its calibrated range and its largest absolute value.

    Args:
        profile: With role ``output`` or ``input``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    title = titled(f"Float {profile.role} of {shortened(profile.node, 52)}", _range_words(profile))
    return _histogram([("float", profile.values)], title, _VALUE, log, _range_marks(profile))


@unchecked
def output_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns an operator's float and quantized output, with its calibrated range.

    Args:
        profile: With role ``output`` or ``input``.
        log: Counts on a logarithmic scale, since tails matter.
    """
    title = titled(f"{profile.role.capitalize()} of {shortened(profile.node, 52)}", _range_words(profile))
    return _histogram(_compared(profile), title, _VALUE, log, _range_marks(profile))


@unchecked
def error_histogram(profile: Profile, log: bool = True) -> Any:
    """Returns the error of a tensor, quantized less float.

    Raises:
        OptionError: Where the tensor is not quantized.
    """
    if profile.error is None:
        raise OptionError(f"{profile.tensor!r} is not quantized: it has no error to show")
    words = f"one step is {number(profile.scale, 3)}" if math.isfinite(profile.scale) else ""
    title = titled(f"Error of {profile.role} of {shortened(profile.node, 48)}", words)
    return _histogram([("error", profile.error)], title, "quantized less float (real units)", log)


@unchecked
def channel_boxes(profile: Profile, quantized: bool = False) -> Any:
    """Returns a box for each channel: least to greatest, the quartiles, the median in red and the mean in blue.

    Of more than 128 channels the 64 that are largest by absolute value are shown, and the chart says so.

    Args:
        profile: Whose ``channels`` are shown.
        quantized: Show those of the quantized values.

    Raises:
        OptionError: Where the tensor has no axis of channels.
    """
    altair = load_altair()
    channels = profile.quantized_channels if quantized else profile.channels
    if channels is None:
        raise OptionError(f"{profile.tensor!r} has no axis of channels")
    rows, note = _channel_rows(channels)
    named = [row["channel"] for row in rows[:: math.ceil(len(rows) / 24)]]
    axis = altair.Axis(values=named, labelOverlap="greedy", labelAngle=0, grid=False)
    base = rows_chart(rows).encode(
        x=altair.X("channel:O", title=f"channel (dimension {channels.axis})", axis=axis, sort=None),
        tooltip=tooltips(
            ("channel", "ordinal", "channel"),
            ("minimum", "quantitative", "least"),
            ("lower", "quantitative", "first quartile"),
            ("median", "quantitative", "median"),
            ("mean", "quantitative", "mean"),
            ("upper", "quantitative", "third quartile"),
            ("maximum", "quantitative", "greatest"),
            ("kind", "nominal", "kind"),
        ),
    )
    title = titled(
        f"Channels of {'quantized ' if quantized else ''}{profile.role} of {shortened(profile.node, 44)}",
        f"box: quartiles; line: least to greatest; red: median; blue: mean; spread {number(channels.spread, 3)} times",
        note,
    )
    return sized(altair.layer(*_box_marks(base, rows)), title, 240)


def _channel_rows(channels: Channels) -> tuple[list[dict[str, Any]], str]:
    """Returns a row for each channel that is shown, and what is to be said where that is not all of them."""
    count, shown, note = len(channels.minimum), np.arange(len(channels.minimum)), ""
    if count > _ALL_CHANNELS:
        shown = np.sort(np.argsort(-channels.largest, kind="stable")[:_EXTREME_CHANNELS])
        note = f"the {_EXTREME_CHANNELS} largest of {count} channels, by largest absolute value"
    dead, dominating = set(channels.dead.tolist()), set(channels.dominating.tolist())
    fields = ("minimum", "lower", "median", "upper", "maximum", "mean")
    rows = [
        {
            "channel": int(channel),
            **{field: plain(getattr(channels, field)[channel]) for field in fields},
            "kind": "dominating" if channel in dominating else "dead" if channel in dead else "even",
        }
        for channel in shown.tolist()
    ]
    return rows, note


def _box_marks(base: Any, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns whiskers, boxes, medians and means."""
    altair = load_altair()
    kinds = altair.Scale(domain=["even", "dominating", "dead"], range=[SKY, ORANGE, GREY])
    present = sorted({row["kind"] for row in rows})
    legend = altair.Legend(title="channel", values=present) if present != ["even"] else None
    colour = altair.Color("kind:N", scale=kinds, legend=legend)
    diamond = min(40.0, max(10.0, 3.0 * WIDTH / len(rows)))

    def y(field: str) -> Any:
        return altair.Y(f"{field}:Q", title=_VALUE, scale=altair.Scale(nice=True))

    bar = base.mark_bar(width={"band": 0.7}, stroke=DARK_GREY, strokeWidth=0.5)
    return [
        base.mark_rule(color=DARK_GREY).encode(y=y("minimum"), y2=altair.Y2("maximum:Q")),
        bar.encode(y=y("lower"), y2=altair.Y2("upper:Q"), color=colour),
        base.mark_tick(color=VERMILION, thickness=2, orient="horizontal", width={"band": 0.7}).encode(y=y("median")),
        base.mark_point(shape="diamond", color=BLUE, filled=True, opacity=1, size=diamond).encode(y=y("mean")),
    ]


def profile_charts(profile: Profile) -> Iterator[tuple[str, str, Any]]:
    """Yields ``(folder, what, chart)`` of all charts of one tensor."""
    role = profile.role
    if role == "weights":
        yield "data_distribution", "weights", weight_histogram(profile)
    else:
        yield "data_distribution", role, output_histogram(profile)
    if profile.error is not None and role != "weights":
        yield "data_distribution", f"{role}_error", error_histogram(profile)
    if profile.channels is not None:
        yield "channelwise_distribution", role, channel_boxes(profile)
