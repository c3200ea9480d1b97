"""Rules on channels and weights: what shares one scale and differs in size, and weights that are not the float ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import Cause, Context, figure, keep_float, listed, percent, rule
from tflite_qdebug.analyses.diagnosis.evidence import LayerEvidence, bulk, outliers
from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.findings import Profile
from tflite_qdebug.operators import WEIGHTED

__all__ = ["broken_bias", "broken_weights", "outlier_channel", "unbalanced_inputs", "uneven_channels", "weight_scales"]

_JOINING = ("ADD", "SUB", "CONCATENATION", "MAXIMUM", "MINIMUM", "PACK", "ADD_N")


@rule("profiles")
def outlier_channel(entry: LayerEvidence, context: Context) -> Cause | None:
    """One or a few channels are far larger than the others, which share one scale with them."""
    return _outlier_activation(entry) or _outlier_weights(entry) or _outlier_inputs(entry)


def _outlier_activation(entry: LayerEvidence) -> Cause | None:
    profile, found = entry.profile, None if entry.profile is None else outliers(entry.profile.channels)
    inherits = entry.sources and (entry.moves_values or _has_outlier(entry.source_profiles))
    if profile is None or found is None or not entry.step > 0 or profile.channels is None or inherits:
        return None
    channels = profile.channels
    spans = np.maximum(channels.maximum, 0.0) - np.minimum(channels.minimum, 0.0)
    steps = float(np.median(np.delete(spans, found.positions))) / entry.step
    if steps >= 2.0 * T.few_steps:
        return None
    return Cause(
        "outlier_channel",
        f"{_channels_words(found.positions)} up to {figure(found.ratio)} times larger than the others, which share its scale "
        f"and keep {figure(steps)} of {int(entry.layer.levels)} steps.",
        (
            (
                f"output channel {listed(found.positions)}: up to {figure(found.largest)}; the others: "
                f"{figure(found.others)} in the median (largest absolute value, real units)"
            ),
            f"step {figure(entry.step)}: {figure(steps)} steps for the median channel of the others",
        ),
        "Make the channel smaller here and the next layer's weights for it larger by the same factor, or keep the layer in "
        "float.",
        keep_float(entry.layer.node),
        # Only where weights follow one another can channels be balanced; a product with constants may be meant as it is.
        is_alarming=steps < T.broken_steps and entry.layer.op_name in WEIGHTED,
        part="output",
    )


def _has_outlier(profiles: Sequence[Profile | None]) -> bool:
    return any(profile is not None and outliers(profile.channels) is not None for profile in profiles)


def _channels_words(positions: np.ndarray) -> str:
    return f"Channel {int(positions[0])} is" if len(positions) == 1 else f"{len(positions)} channels are"


def _outlier_weights(entry: LayerEvidence) -> Cause | None:
    """One output channel of weights with one scale for all."""
    profile = entry.weights
    if profile is None or profile.channels is None or profile.quantized is None or len(profile.channels.scale) != 1:
        return None
    if entry.layer.op_name not in WEIGHTED:
        return None
    found, scale = outliers(profile.channels), float(profile.channels.scale[0])
    if found is None or not scale > 0:
        return None
    return Cause(
        "outlier_channel",
        f"The weights of {_channels_words(found.positions).lower()} up to {figure(found.ratio)} times larger than those of the "
        f"others, and all have one scale: the others keep {figure(found.others / scale)} of 127 steps.".replace(
            "of channel", "of output channel"
        ),
        (
            (
                f"output channel {listed(found.positions)}: weights up to {figure(found.largest)}; the others: "
                f"{figure(found.others)} in the median"
            ),
            f"step of the weights {figure(scale)}: {figure(found.others / scale)} steps for the others",
        ),
        "Quantize weights per channel, or keep the layer in float.",
        keep_float(entry.layer.node),
        is_alarming=found.others / scale < T.broken_steps,
        part="weights",
    )


def _outlier_inputs(entry: LayerEvidence) -> Cause | None:
    """Weights of a few input channels rule the scale of every filter."""
    profile = entry.weights
    lost = _lost_weights(entry)
    if profile is None or lost < T.lost_weights:
        return None
    tiny = next((tiny for source in entry.source_profiles if len(tiny := _tiny_channels(source))), np.zeros(0, np.int64))
    reason = f"{len(tiny)} of its input channels are tiny, and their weights huge" if len(tiny) else "A few weights are huge"
    figures = [
        f"{percent(lost)} of the weights other than 0 are below half a step (normally distributed ones: 2 %)",
        f"kurtosis of the weights {figure(profile.kurtosis)} (a normal distribution has 3)",
    ]
    if len(tiny):
        figures.append(f"input channel {listed(tiny)}: less than {percent(T.tiny_channel)} as large as the median one")
    return Cause(
        "outlier_channel" if len(tiny) else "rare_value",
        f"{reason}: they set the scale of the weights, and {percent(lost)} of the others become 0.",
        tuple(figures),
        "Make these input channels larger in the layer before and their weights smaller by the same factor, or keep the layer "
        "in float.",
        keep_float(entry.layer.node),
        is_alarming=_weights_noise_db(entry) < T.broken_layer_db,
        part="weights",
    )


def _lost_weights(entry: LayerEvidence) -> float:
    """Returns which share of the weights other than zero becomes zero; 0 where that is not known."""
    profile = entry.weights
    if profile is None or not np.isfinite(profile.near_zero) or not profile.values.total:
        return 0.0
    zeros = profile.values.zeros / profile.values.total
    return max(profile.near_zero - zeros, 0.0) / max(1.0 - zeros, 1e-9)


def _tiny_channels(profile: Profile | None) -> np.ndarray:
    if profile is None or profile.channels is None:
        return np.zeros(0, dtype=np.int64)
    largest = profile.channels.largest
    alive = largest[largest > 0]
    if len(alive) < 4:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((largest > 0) & (largest < T.tiny_channel * float(np.median(alive))))


def _weights_noise_db(entry: LayerEvidence) -> float:
    """Returns the SQNR that the weights' error alone leaves; infinite where it is not known."""
    return entry.parts["weights"].sqnr_db if "weights" in entry.parts else float("inf")


@rule("profiles")
def uneven_channels(entry: LayerEvidence, context: Context) -> Cause | None:
    """Some channels vary by less than the one scale of all can tell."""
    profile = entry.profile
    if profile is None or profile.channels is None or not entry.step > 0 or entry.moves_values:
        return None
    deviations = profile.channels.deviation / entry.step
    alive = deviations[deviations > 0]
    flat = np.flatnonzero((deviations > 0) & (deviations < T.flat_channel))
    if len(alive) < 3 or len(flat) < T.flat_channels * len(alive) or outliers(profile.channels) is not None:
        return None
    return Cause(
        "uneven_channels",
        f"Its channels differ in size but share one scale: {len(flat)} of {len(alive)} vary by less than "
        f"{figure(T.flat_channel)} steps.",
        (
            (
                f"output channel {listed(flat)}: standard deviation {figure(float(deviations[flat].min()))} to "
                f"{figure(float(deviations[flat].max()))} steps of {figure(entry.step)}"
            ),
            f"the largest channel deviates by {figure(float(alive.max()))} steps",
        ),
        "Balance the channels: what is made smaller here is made larger by the next layer's weights; or keep it in float.",
        keep_float(entry.layer.node),
        part="output",
    )


@rule("profiles")
def weight_scales(entry: LayerEvidence, context: Context) -> Cause | None:
    """Weights of very different size in one tensor with one scale."""
    profile = entry.weights
    if profile is None or profile.channels is None or profile.quantized is None or len(profile.channels.scale) != 1:
        return None
    if entry.layer.op_name not in WEIGHTED:
        return None
    largest, scale = profile.channels.largest, float(profile.channels.scale[0])
    alive = largest[largest > 0]
    if len(alive) < 2 or not scale > 0:
        return None
    spread, steps = float(alive.max() / np.median(alive)), float(np.median(alive)) / scale
    if spread < T.weight_spread:
        return None
    return Cause(
        "weight_scales",
        f"Its weights have one scale for all output channels, and the largest is {figure(spread)} times the median one.",
        (
            (
                f"largest weight {figure(float(alive.max()))}, median of the channels' largest "
                f"{figure(float(np.median(alive)))}, least {figure(float(alive.min()))}"
            ),
            f"the median channel keeps {figure(steps)} of 127 steps",
        ),
        "Quantize weights per channel (without --per-tensor, --dense-per-tensor).",
        'calibrated.quantize("int8", per_channel=True, per_channel_dense=True)',
        is_alarming=steps < T.broken_steps,
        part="weights",
    )


@rule("profiles")
def broken_weights(entry: LayerEvidence, context: Context) -> Cause | None:
    """The quantized weights are not the float ones, rounded."""
    profile = entry.weights
    if profile is None or profile.quantized is None or profile.error is None or profile.channels is None:
        return None
    theirs = profile.quantized_channels
    scales = np.broadcast_to(profile.channels.scale, profile.channels.largest.shape)
    if theirs is None or len(theirs.largest) != len(scales) or not (scales > 0).all():
        return None
    off = np.maximum(np.abs(theirs.minimum - profile.channels.minimum), np.abs(theirs.maximum - profile.channels.maximum))
    steps = np.maximum(off, np.abs(theirs.mean - profile.channels.mean)) / scales
    wrong = np.flatnonzero(steps > T.weight_error)
    error = float(max(abs(profile.error.minimum), abs(profile.error.maximum)))
    if not len(wrong) and error <= 2.0 * T.weight_error * float(scales.max()):
        return None
    shown = f"output channel {listed(wrong)} of {len(steps)}" if len(wrong) else "no channel's least or greatest weight"
    return Cause(
        "broken_weights",
        "Its quantized weights are not the float weights, rounded: values or scales are wrong.",
        (
            f"greatest difference {figure(error)}, {figure(error / float(scales.max()))} steps (rounding: 0.5)",
            f"{shown}: least or greatest weight off by up to {figure(float(steps.max()))} steps",
        ),
        "Quantize the model again, and look at what changed the weights or scales in between; is it the same float model?",
        keep_float(entry.layer.node),
        is_alarming=_weights_noise_db(entry) < T.healthy_layer_db or entry.own is None,
        part="weights",
    )


@rule("profiles", "parts")
def broken_bias(entry: LayerEvidence, context: Context) -> Cause | None:
    """The weights are rounded as they should be, and yet the operator with them is far off: it is the bias."""
    profile, part = entry.weights, entry.parts.get("weights")
    if profile is None or profile.error is None or part is None or entry.own is None or not np.isfinite(part.rmse):
        return None
    # Rounded weights cannot give an error that is larger than the values themselves.
    if part.sqnr_db > T.bias_db or part.rmse**2 < T.dominates * entry.own.rmse**2 or _lost_weights(entry) >= T.lost_weights:
        return None
    if broken_weights.judge(entry, context) is not None:
        return None
    return Cause(
        "broken_bias",
        "Its weights are rounded as they should be, and yet they seem to err: its bias is wrong, or saturated.",
        (
            f"weights and bias alone leave {figure(part.sqnr_db)} dB SQNR, off by up to {figure(part.largest)} (real units)",
            f"no weight is off by more than {figure(T.weight_error)} step",
        ),
        "Quantize the model again; a bias that is large against input scale times weight scale does not fit its integers.",
        keep_float(entry.layer.node),
        is_alarming=True,
        part="weights",
    )


@rule("profiles", "graph")
def unbalanced_inputs(entry: LayerEvidence, context: Context) -> Cause | None:
    """Inputs of very different size are joined under one scale."""
    if entry.layer.op_name not in _JOINING or not entry.step > 0:
        return None
    spans = {}
    for position, profile in zip(entry.sources, entry.source_profiles, strict=True):
        if profile is not None and profile.values.total:
            low, high = bulk(profile.values, T.bulk)
            spans[position] = high - low
    if len(spans) < 2 or not min(spans.values()) > 0:
        return None
    small, large = min(spans, key=spans.__getitem__), max(spans, key=spans.__getitem__)
    ratio, steps = spans[large] / spans[small], spans[small] / entry.step
    if ratio < T.outlier_channel or steps >= T.few_steps or entry.layer.levels > 256:
        return None
    if any(other.dictated_by not in (-1, entry.position) for other in context.layers if other.position in spans):
        return None  # a channel of one input is to blame, and not the inputs
    joined = entry.layer.op_name == "CONCATENATION"
    return Cause(
        "unbalanced_inputs",
        f"Its inputs differ {figure(ratio)} times in size but share one scale: the small one keeps {figure(steps)} of "
        f"{int(entry.layer.levels)} steps.",
        (
            f"{context.layers[small].name}: values {figure(spans[small])} wide, {figure(steps)} steps of {figure(entry.step)}",
            f"{context.layers[large].name}: values {figure(spans[large])} wide, {figure(spans[large] / entry.step)} steps",
        ),
        "Scale the inputs to one size before they meet"
        + (", and undo it in the weights behind" if joined else "")
        + ", or keep this operator in float"
        + (" together with what makes its small input." if joined else "."),
        keep_float(entry.layer.node, context.layers[small].layer.node) if joined else keep_float(entry.layer.node),
        # A sum of a large and a small value is the large one, in float too; side by side each has a meaning of its own.
        is_alarming=joined and steps < T.broken_steps,
        part="output",
    )
