"""Profiles of values as CSV and as tables for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Profile
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import number, shortened

__all__ = ["channel_table", "profile_columns", "profile_table", "write_channel_csv", "write_profile_csv"]


def profile_columns(profiles: Sequence[Profile]) -> dict[str, list[object]]:
    """Returns the columns of the CSV, one value per profile.

    Units: ``low``, ``high``, ``scale``, ``minimum``, ``maximum``, ``mean`` and ``deviation`` are in the tensor's real units,
    shares between 0 and 1, ``channel_spread`` the largest channel over the median one. What a tensor has not is NaN.
    """
    names = ("node", "op_name", "role", "tensor", "reference", "samples", "low", "high", "scale", "clipped_low", "clipped_high",
             "integers_used", "integers", "mean", "deviation", "kurtosis", "outliers", "negative", "near_zero")  # fmt: skip
    columns: dict[str, list[object]] = {name: [getattr(profile, name) for profile in profiles] for name in names}
    columns["elements"] = [profile.values.total for profile in profiles]
    columns["minimum"] = [profile.values.minimum for profile in profiles]
    columns["maximum"] = [profile.values.maximum for profile in profiles]
    channels = [profile.channels for profile in profiles]
    columns["channel_axis"] = [float("nan") if each is None else each.axis for each in channels]
    columns["channels"] = [0 if each is None else len(each.minimum) for each in channels]
    columns["dead_channels"] = [0 if each is None else len(each.dead) for each in channels]
    columns["dominating_channels"] = [0 if each is None else len(each.dominating) for each in channels]
    columns["channel_spread"] = [float("nan") if each is None else each.spread for each in channels]
    return columns


def write_profile_csv(profiles: Sequence[Profile], path: str | os.PathLike[str]) -> None:
    """Writes all columns, one row per profile.

    Raises:
        OutputError: Where it cannot be written.
    """
    write_columns(profile_columns(profiles), path)


def profile_table(profiles: Sequence[Profile], name_width: int = 40) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows as text, one per profile.

    ``range`` is what the integers can hold, ``values`` what the float model has; both in real units. ``used`` is how many of
    the integers occurred; ``dead`` and ``dominating`` are numbers of channels, ``spread`` the largest channel over the median
    one.
    """
    header = ["role", "operator", "node", "values", "range", "clipped %", "near 0 %", "used", "kurtosis", "outliers %",
              "dead", "dominating", "spread"]  # fmt: skip
    rows = []
    for profile in profiles:
        channels = profile.channels
        rows.append(
            [
                profile.role,
                profile.op_name,
                shortened(profile.node, name_width),
                _span(profile.values.minimum, profile.values.maximum),
                _range(profile),
                number(100 * (profile.clipped_low + profile.clipped_high), 2),
                number(100 * profile.near_zero, 2),
                f"{profile.integers_used}/{profile.integers}" if profile.integers else "-",
                number(profile.kurtosis, 3),
                number(100 * profile.outliers, 2),
                "-" if channels is None else str(len(channels.dead)),
                "-" if channels is None else str(len(channels.dominating)),
                "-" if channels is None else number(channels.spread, 3),
            ]
        )
    return header, rows


def _span(low: float, high: float) -> str:
    return f"{number(low, 3)} .. {number(high, 3)}" if low <= high else "-"


def _range(profile: Profile) -> str:
    if np.isnan(profile.scale):
        return "per channel" if profile.integers else "-"
    return _span(profile.low, profile.high)


def channel_table(profile: Profile, count: int = 10) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the channels that reach farthest from zero, as text, in real units.

    ``share`` is the channel's largest absolute value over that of the whole tensor.

    Args:
        profile: Of one tensor.
        count: How many channels.

    Raises:
        OptionError: Where it has no channels, or for a count below one.
    """
    channels = profile.channels
    if channels is None:
        raise OptionError(f"the {profile.role} of {profile.node!r} has no channels to show")
    if count < 1:
        raise OptionError(f"got count {count}, expected 1 or more channels")
    header = ["channel", "min", "quartile", "median", "quartile", "max", "mean", "deviation", "scale", "share %", "note"]
    dead, dominating = set(channels.dead.tolist()), set(channels.dominating.tolist())
    largest = channels.largest
    whole = float(largest.max(initial=0.0))
    rows = []
    for channel in np.argsort(-largest, kind="stable")[:count].tolist():
        values = (channels.minimum, channels.lower, channels.median, channels.upper, channels.maximum, channels.mean)
        scale = channels.scale[channel if len(channels.scale) > 1 else 0]
        share = 100 * largest[channel] / whole if whole else float("nan")
        note = "dominates" if channel in dominating else "dead" if channel in dead else ""
        row = [*(number(each[channel], 3) for each in values), number(channels.deviation[channel], 3), number(scale, 3)]
        rows.append([str(channel), *row, number(share, 3), note])
    return header, rows


def write_channel_csv(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Writes all channels of a profile, one row each, in order; the quantized ones beside the float ones where there are any.

    Raises:
        OptionError: Where it has no channels.
        OutputError: Where it cannot be written.
    """
    if profile.channels is None:
        raise OptionError(f"the {profile.role} of {profile.node!r} has no channels to write")
    length = len(profile.channels.minimum)
    columns: dict[str, np.ndarray] = {"channel": np.arange(length)}
    for prefix, channels in (("", profile.channels), ("quantized_", profile.quantized_channels)):
        if channels is None:
            continue
        for name in ("minimum", "lower", "median", "upper", "maximum", "mean", "deviation"):
            columns[prefix + name] = getattr(channels, name)
    columns["scale"] = np.broadcast_to(profile.channels.scale, (length,))
    write_columns(columns, path)
