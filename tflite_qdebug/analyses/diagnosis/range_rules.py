"""Rules on the range of an activation: too wide, too narrow, stretched by a few values, or of little use."""

from __future__ import annotations

import dataclasses

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import Cause, Context, figure, keep_float, other_range, percent, rule
from tflite_qdebug.analyses.diagnosis.evidence import LayerEvidence, bulk, outliers, with_zero
from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.findings import Profile
from tflite_qdebug.operators import WEIGHTED

__all__ = ["FIXED_RANGE", "dead_layer", "negative_tail", "range_too_narrow", "range_too_wide", "rare_value"]

#: Their range is fixed by their formula, and the quantizer has no choice.
FIXED_RANGE = ("SOFTMAX", "LOGISTIC", "TANH", "LOG_SOFTMAX", "L2_NORMALIZATION")


@dataclasses.dataclass(frozen=True)
class _Range:
    """The range of an 8-bit activation that its layer is answerable for, and what of it is used; real units, with zero."""

    width: float
    step: float
    seen: tuple[float, float]
    bulk: tuple[float, float]
    profile: Profile | None

    @property
    def seen_width(self) -> float:
        return self.seen[1] - self.seen[0]

    @property
    def bulk_width(self) -> float:
        return self.bulk[1] - self.bulk[0]


def _range(entry: LayerEvidence) -> _Range | None:
    """Returns the range of a layer's output where it is the layer's own affair: neither fixed nor another layer's."""
    op_name = entry.layer.op_name
    if not entry.step > 0 or op_name in FIXED_RANGE or (entry.moves_values and entry.operator is None) or entry.joined_by >= 0:
        return None
    if entry.moves_values and entry.sources:
        return None
    width, profile = entry.step * (entry.layer.levels - 1.0), entry.profile
    if profile is not None and profile.values.total:
        seen = with_zero(profile.values.minimum, profile.values.maximum)
        return _Range(width, entry.step, seen, bulk(profile.values, T.bulk), profile)
    if entry.integers is None or entry.layer.zero_point is None:
        return None
    low, high = ((integer - entry.layer.zero_point) * entry.step for integer in entry.integers)
    seen = with_zero(low, high)
    return _Range(width, entry.step, seen, seen, None)


def _range_figures(entry: LayerEvidence, found: _Range) -> list[str]:
    profile = found.profile
    if profile is not None and np.isfinite(profile.low):
        text = f"range {figure(profile.low)} to {figure(profile.high)}"
    else:
        text = f"range {figure(found.width)} wide"
    text += f", values seen {figure(found.seen[0])} to {figure(found.seen[1])} (real units)"
    figures = [text]
    if profile is not None and profile.integers_used:
        figures.append(f"{profile.integers_used} of {int(entry.layer.levels)} integers used")
    return figures


@rule()
def range_too_wide(entry: LayerEvidence, context: Context) -> Cause | None:
    """The range is much wider than any value that was seen."""
    found = _range(entry)
    if found is None or not found.seen_width > 0 or found.width < T.unseen_range * found.seen_width:
        return None
    ratio, steps = found.width / found.seen_width, found.seen_width / found.step
    if steps >= 4.0 * T.few_steps:  # 16 bits have steps to spare
        return None
    return Cause(
        "range_too_wide",
        f"Its range is {figure(ratio)} times wider than the values need, which leaves {figure(steps)} of "
        f"{int(entry.layer.levels)} steps for them.",
        (*_range_figures(entry, found), f"{figure(steps)} steps of {figure(found.step)} for all values seen"),
        "Calibrate again with samples like those that the model will see, or set the range by hand.",
        other_range(entry, *found.seen),
        is_alarming=steps < T.few_steps,
        part="output",
    )


@rule("profiles")
def rare_value(entry: LayerEvidence, context: Context) -> Cause | None:
    """A rare value stretches the range of an activation, or of weights."""
    found = _range(entry)
    if found is None or found.profile is None or not found.bulk_width > 0 or outliers(found.profile.channels) is not None:
        return None
    within = min(found.width, found.seen_width)  # what is wider than all values is another matter
    ratio, steps = within / found.bulk_width, found.bulk_width / found.step
    if ratio < T.wide_range or steps * T.wide_range >= 256.0:
        return None
    profile = found.profile
    return Cause(
        "rare_value",
        f"A few rare values stretch its range: {percent(T.bulk)} of the values need only {percent(1.0 / ratio)} of it, "
        f"{figure(steps)} of {int(entry.layer.levels)} steps.",
        (
            *_range_figures(entry, found),
            f"{percent(T.bulk)} of the values lie between {figure(found.bulk[0])} and {figure(found.bulk[1])}",
            (
                f"kurtosis {figure(profile.kurtosis)} (a normal distribution has 3), {percent(profile.outliers)} of the values "
                "beyond 6 standard deviations"
            ),
        ),
        "Clip the range to the bulk of the values and quantize again, or keep the layer in float.",
        other_range(entry, *found.bulk),
        is_alarming=steps < T.broken_steps,
        part="output",
    )


@rule()
def range_too_narrow(entry: LayerEvidence, context: Context) -> Cause | None:
    """Values are clipped, and that makes most of the error."""
    if entry.own is None or not entry.step > 0 or not np.isfinite(entry.own.rmse):
        return None
    profile = entry.profile
    if profile is not None and np.isfinite(profile.low) and profile.values.total:
        clipped, rms = profile.clipped_low + profile.clipped_high, _clipped_rms(profile)
        beyond = max(profile.low - profile.values.minimum, profile.values.maximum - profile.high, 0.0) / entry.step
        figures: tuple[str, ...] = (
            (
                f"range {figure(profile.low)} to {figure(profile.high)}, values {figure(profile.values.minimum)} to "
                f"{figure(profile.values.maximum)} (real units)"
            ),
            f"{percent(clipped)} of the values are clipped, by up to {figure(beyond)} steps",
        )
        line = other_range(entry, *with_zero(profile.values.minimum, profile.values.maximum))
    else:
        # Without the values: what the range clips is the difference between all errors and those within the range.
        if entry.own.largest < 4.0 * max(entry.own.inner, entry.step):
            return None
        rms, line = entry.own.rmse, ""
        figures = (
            (
                f"greatest error {figure(entry.own.largest / entry.step)} steps, {figure(entry.own.inner / entry.step)} where "
                "nothing is clipped"
            ),
        )
    if rms < T.clipping * entry.step or rms**2 < T.dominates * entry.own.rmse**2:
        return None
    noise = dataclasses.replace(entry.own, rmse=rms)
    return Cause(
        "range_too_narrow",
        "Its range is too narrow: values beyond it are clipped, and that makes most of its error.",
        (*figures, f"clipping alone leaves {figure(noise.sqnr_db)} dB, {figure(rms / entry.step)} steps RMS (rounding: 0.289)"),
        "Calibrate with more samples, such as those that are clipped, or widen the range by hand.",
        line or keep_float(entry.layer.node),
        is_alarming=noise.sqnr_db < T.broken_layer_db,
        part="output",
    )


def _clipped_rms(profile: Profile) -> float:
    """Returns the root mean square of what the range cuts off, in real units, to the width of a histogram's bin."""
    edges = profile.values.edges()
    centres = np.clip(0.5 * (edges[:-1] + edges[1:]), profile.values.minimum, profile.values.maximum)
    cut = np.maximum(centres - profile.high, 0.0) + np.maximum(profile.low - centres, 0.0)
    return float(np.sqrt((profile.values.counts @ np.square(cut)) / max(profile.values.total, 1)))


@rule("profiles")
def negative_tail(entry: LayerEvidence, context: Context) -> Cause | None:
    """The shallow negative tail of swish gets few steps beside a large positive range."""
    profile = entry.profile
    if profile is None or entry.layer.op_name not in ("HARD_SWISH", "GELU", "MUL", "ELU") or not entry.step > 0:
        return None
    low, high = profile.values.minimum, profile.values.maximum
    steps = -low / entry.step
    if not T.tail_depth <= low < 0.5 * -0.17 or profile.negative < T.negative_tail or high < 10.0 * -low:
        return None
    if entry.layer.op_name == "MUL" and not _looks_like_swish(entry, context):
        return None
    if steps >= T.tail_steps:
        return None
    return Cause(
        "negative_tail",
        f"It has the shape of swish: {percent(profile.negative)} of its values lie in a negative tail that gets "
        f"{figure(steps)} of {int(entry.layer.levels)} steps.",
        (
            f"values {figure(low)} to {figure(high)} (real units), {percent(profile.negative)} of them below zero",
            f"step {figure(entry.step)}: {figure(steps)} steps for the tail",
        ),
        "Use ReLU or ReLU6 instead and train again, or keep the layer in float; a narrower range helps as well.",
        keep_float(entry.layer.node),
        part="output",
    )


def _looks_like_swish(entry: LayerEvidence, context: Context) -> bool:
    """True for x * sigmoid(x): one factor is a function of the other one."""
    if "swish" in entry.layer.node.lower() or "silu" in entry.layer.node.lower():
        return True
    factors = set(entry.sources)
    return any(factors & set(context.layers[position].sources) for position in factors)


@rule()
def dead_layer(entry: LayerEvidence, context: Context) -> Cause | None:
    """The output is one value throughout."""
    profile, size = entry.profile, int(np.prod(entry.layer.shape)) if entry.layer.shape else 1
    if size < 2 or entry.moves_values or entry.integers is None:
        return None
    is_constant = entry.integers[0] == entry.integers[1]
    float_constant = profile is not None and profile.values.total > 0 and profile.values.minimum == profile.values.maximum
    if not is_constant or (not entry.sources and entry.operator is not None and entry.layer.op_name not in WEIGHTED):
        return None
    if float_constant:
        words = "Its output is one value for all samples, in the float model as well: the layer is dead."
        remedy = "Look at the float model: nothing that comes before this layer along its path has any effect."
        line = ""
    elif entry.own is not None and entry.own.rms > 0 and (entry.own.rmse > 0 or "accumulated" in entry.parts):
        words = "Its output is one value for all samples once it is quantized; in the float model it is not."
        remedy = "Keep it in float, and look at its range and at what it reads."
        line = keep_float(entry.layer.node)
    else:
        words = "Its output is one value for all samples: the layer is dead."
        remedy = "Look at the float model: does this layer do anything?"
        line = ""
    value = (entry.integers[0] - (entry.layer.zero_point or 0)) * entry.step
    figures = [f"the integer {entry.integers[0]} alone occurred, which stands for {figure(value)}"]
    if profile is not None and profile.values.total:
        figures.append(f"float values {figure(profile.values.minimum)} to {figure(profile.values.maximum)} (real units)")
    return Cause("dead_layer", words, tuple(figures), remedy, line, is_alarming=True)
