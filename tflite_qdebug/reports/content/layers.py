"""The table of layers, and the page of each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import GraphNode, Profile
from tflite_qdebug.reports.content.parts import Column, Link, Page, Row
from tflite_qdebug.reports.content.view import (
    COMMANDS,
    View,
    cause_words,
    causes_of,
    denylist_line,
    drawn,
    figure_of,
    sensitivity_term,
)
from tflite_qdebug.reports.glossary import GLOSSARY, Figure, figure
from tflite_qdebug.reports.value_charts import profile_charts

__all__ = ["layer_page", "table_columns", "table_rows"]

# In the table of layers: column of a run, and in which order the worst come first.
_COLUMNS = (("sqnr_db", "asc"), ("cosine", "asc"), ("max_abs_error", "desc"), ("saturation", "desc"), ("range_used", "asc"))
_ERROR_FIGURES = (
    "severity", "rmse_over_scale", "sqnr_db", "cosine", "rmse", "bias", "max_abs_error", "scale", "zero_point", "range",
    "saturated_low", "saturated_high", "range_used", "worst_sample", "worst_rmse", "num_elements",
)  # fmt: skip
_PART_FIGURES = ("own_rmse", "weights_rmse", "output_rmse", "input_rmse", "accumulated_rmse")
_PROFILE_FIGURES = (
    "clipped_low", "clipped_high", "integers_used", "mean", "deviation", "kurtosis", "outliers", "negative", "near_zero",
)  # fmt: skip


# The table.


def table_columns(view: View) -> Iterator[Column]:
    """Yields the columns: what ranks first, and the sensitivity last, where it was measured."""
    criterion = view.run.default_criterion
    for key, first in ((criterion, "desc"), *_COLUMNS):
        yield Column(key, GLOSSARY[key], first)
    found = view.findings.sensitivity.get("node")
    if found is not None:
        small_is_bad = found.metric in ("cosine", "sqnr_db") or (found.metric not in GLOSSARY and not found.large_is_bad)
        yield Column("sensitivity", sensitivity_term(found), "asc" if small_is_bad else "desc")


def table_rows(view: View, columns: Sequence[Column]) -> Iterator[Row]:
    """Yields the rows, the worst layer first."""
    for place in view.run.worst():
        figures = tuple(figure_of(column.term, column.key, _value(view, column.key, place)) for column in columns)
        suspects = view.causes.get(view.run.layers[place].node, ())
        yield Row(view.link_to(place), figures, ", ".join(cause_words(suspect.cause) for suspect in suspects))


def _value(view: View, key: str, place: int) -> float:
    if key == "saturation":
        return float(view.columns["saturated_low"][place] + view.columns["saturated_high"][place])
    if key == "sensitivity":
        return float(view.sensitive["node"].get(view.run.layers[place].node, math.nan))
    return float(view.columns[key][place])


# The pages.


def layer_page(view: View, place: int, with_charts: bool) -> Page:
    """Returns all about the layer at a position; with charts it has its histograms and what they say."""
    node = view.run.layers[place].node
    profiles = [profile for profile in view.findings.profiles if profile.node == node] if with_charts else []
    entry = next((entry for entry in view.findings.graph if node in entry.nodes), None)
    before, behind = _neighbours(view, node)
    line, suspects = denylist_line([node]), view.causes.get(node, ())
    return Page(
        link=view.link_to(place),
        causes=tuple(causes_of(suspects)),
        line=line if line not in [suspect.line for suspect in suspects] else "",
        figures=tuple((title, tuple(found)) for title, found in _figures(view, place, profiles, entry) if found),
        facts=tuple(_facts(view, place, entry)),
        charts=tuple(drawn(chart) for profile in profiles for _, _, chart in profile_charts(profile)),
        before=before,
        behind=behind,
        missing="" if profiles or not with_charts else f"no histograms of this layer; to make them: {COMMANDS['profiles']}",
    )


def _neighbours(view: View, node: str) -> tuple[tuple[Link, ...], tuple[Link, ...]]:
    try:
        before, behind = view.findings.neighbours(node)
    except OptionError:  # the graph does not have every layer
        return (), ()
    return tuple(_neighbour(view, entry) for entry in before), tuple(_neighbour(view, entry) for entry in behind)


def _neighbour(view: View, entry: GraphNode) -> Link:
    node = next((name for name in entry.nodes if name in view.places), entry.nodes[0] if entry.nodes else "")
    return view.link(node, entry.op_name, "float" if entry.is_float else "")


def _facts(view: View, place: int, entry: GraphNode | None) -> Iterator[tuple[str, str]]:
    layer = view.run.layers[place]
    yield "output shape", " × ".join("any" if size < 0 else str(size) for size in layer.shape) or "scalar"
    yield "type of the output", layer.dtype
    if entry is not None:
        yield from ((str(name), str(value)) for name, value in entry.options.items())
    yield "held against", layer.reference + (f", matched by {layer.matched_by}" if layer.matched_by else "")
    yield "tensor", f"{layer.tensor_name} (index {layer.tensor_idx})"


def _figures(
    view: View, place: int, profiles: Sequence[Profile], entry: GraphNode | None
) -> Iterator[tuple[str, list[Figure]]]:
    """Yields groups of figures, ``(title, figures)``; some may be empty."""
    node = view.run.layers[place].node
    yield "Error", list(_of_columns(view, _ERROR_FIGURES, place))
    yield "What the error is made of", list(_of_columns(view, _PART_FIGURES, place))
    measured = [(mode, values[node]) for mode, values in view.sensitive.items() if node in values]
    yield (
        "At the model's outputs",
        [figure_of(sensitivity_term(view.findings.sensitivity[mode]), "sensitivity", value) for mode, value in measured],
    )
    for profile in profiles:
        yield f"Values of its {profile.role}", list(_profile_figures(profile))
    if entry is not None and (entry.macs or entry.weight_bytes):
        yield "Cost", [figure("macs", entry.macs), figure("weight_bytes", entry.weight_bytes)]


def _of_columns(view: View, keys: Sequence[str], place: int) -> Iterator[Figure]:
    for key in keys:
        if key in view.columns and not math.isnan(float(view.columns[key][place])):
            yield figure(key, view.columns[key][place])


def _profile_figures(profile: Profile) -> Iterator[Figure]:
    if math.isfinite(profile.low):
        yield figure("tensor_range", profile.low, name="range from")
        yield figure("tensor_range", profile.high, name="range to")
    for key in _PROFILE_FIGURES:
        if not math.isnan(float(getattr(profile, key))):
            yield figure(key, getattr(profile, key))
    if profile.channels is not None:
        yield figure("dead_channels", len(profile.channels.dead))
        yield figure("dominating_channels", len(profile.channels.dominating))
        yield figure("channel_spread", profile.channels.spread)
