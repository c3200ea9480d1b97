"""The rules of the diagnosis: each tells one cause of a layer's error from the others by its figures, in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tflite_qdebug.analyses.evidence import Error, LayerEvidence, amplification, bulk, outliers, with_zero
from tflite_qdebug.analyses.thresholds import T
from tflite_qdebug.findings import Profile

__all__ = ["RULES", "Cause", "Context", "Rule", "bare", "figure", "keep_float", "percent"]


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


#: All rules; of the causes of one layer, the one whose rule stands first comes first, unless another explains more.
RULES: list[Rule] = []
_Judge = Callable[[LayerEvidence, Context], Cause | None]


def _rule(*needs: str, is_last: bool = False) -> Callable[[_Judge], _Judge]:
    def added(judge: _Judge) -> _Judge:
        RULES.append(Rule(judge.__name__, needs, judge, is_last))
        return judge

    return added


# Their range is fixed by their formula, and the quantizer has no choice.
_FIXED_RANGE = ("SOFTMAX", "LOGISTIC", "TANH", "LOG_SOFTMAX", "L2_NORMALIZATION")
# Their weights may have a scale for each channel.
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_JOINING = ("ADD", "SUB", "CONCATENATION", "MAXIMUM", "MINIMUM", "PACK", "ADD_N")


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


def _other_range(entry: LayerEvidence, low: float, high: float) -> str:
    """Returns the Python line that gives an activation another range before quantizing."""
    return (
        f"calibrated = CalibratedModel(calibrated.float_model, edit.with_ranges(calibrated.model, {{tensor.index: "
        f"({low:.6g}, {high:.6g}) for tensor in calibrated.model.main.tensors if tensor.name == {entry.layer.node!r}}}))"
    )


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
    if not entry.step > 0 or op_name in _FIXED_RANGE or (entry.moves_values and entry.operator is None) or entry.joined_by >= 0:
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


@_rule("parts", "graph")
def reciprocal(entry: LayerEvidence, context: Context) -> Cause | None:
    """A steep operator turns a small error of its input into a large one."""
    steep = amplification(entry, context.layers)
    if steep is None or steep[1] < T.amplification * steep[0] or steep[1] < 10.0 ** (-0.1 * T.healthy_layer_db):
        return None
    before, behind = (dataclasses.replace(_UNIT, rmse=float(np.sqrt(noise))).sqnr_db for noise in steep)
    figures = [f"SQNR {figure(before)} dB in front of it, {figure(behind)} dB behind it"]
    for position in entry.sources:
        source, profile = context.layers[position], context.layers[position].profile
        if profile is not None and source.step > 0:
            figures.append(
                f"{source.name}: values {figure(profile.values.minimum)} to {figure(profile.values.maximum)}, "
                f"{percent(profile.near_zero)} of them below half a step of {figure(source.step)}"
            )
    return Cause(
        "reciprocal",
        f"{entry.layer.op_name} is steep where its input is near zero or large: the rounding of its input loses "
        f"{figure(before - behind)} dB here.",
        tuple(figures),
        "Keep it and the layer before it in float, or keep what it reads away from zero (a larger epsilon).",
        keep_float(*(context.layers[position].layer.node for position in entry.sources), entry.layer.node),
        is_alarming=behind < T.broken_layer_db,
    )


_UNIT = Error(rmse=0.0, rms=1.0, largest=0.0, inner=0.0, bias=0.0)


@_rule()
def not_finite(entry: LayerEvidence, context: Context) -> Cause | None:
    """The layer gives NaN or infinity, in float or quantized."""
    first = next((other.position for other in context.layers if _is_broken(other)), None)
    if entry.position != first:  # those behind it have it from there
        return None
    return Cause(
        "not_finite",
        "It gives NaN or infinity.",
        ("the error is not a finite number",),
        "Keep it in float, and look for a division by zero or the logarithm of zero in what it reads.",
        keep_float(entry.layer.node),
        is_alarming=True,
    )


def _is_broken(entry: LayerEvidence) -> bool:
    measured = entry.parts.get("accumulated", entry.own)
    return measured is not None and not np.isfinite(measured.rmse)


@_rule()
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
        _other_range(entry, *found.seen),
        is_alarming=steps < T.few_steps,
        part="output",
    )


@_rule("profiles")
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
        f"A few rare values stretch its range: {percent(T.bulk)} of the values need only 1/{figure(ratio)} of it, "
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
        _other_range(entry, *found.bulk),
        is_alarming=steps < T.broken_steps,
        part="output",
    )


@_rule()
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
        line = _other_range(entry, *with_zero(profile.values.minimum, profile.values.maximum))
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


def _listed(positions: np.ndarray) -> str:
    shown = ", ".join(str(int(position)) for position in positions[:5])
    return shown + (f" and {len(positions) - 5} more" if len(positions) > 5 else "")


@_rule("profiles")
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
                f"output channel {_listed(found.positions)}: up to {figure(found.largest)}; the others: "
                f"{figure(found.others)} in the median (largest absolute value, real units)"
            ),
            f"step {figure(entry.step)}: {figure(steps)} steps for the median channel of the others",
        ),
        "Make the channel smaller here and the next layer's weights for it larger by the same factor, or keep the layer in "
        "float.",
        keep_float(entry.layer.node),
        # Only where weights follow one another can channels be balanced; a product with constants may be meant as it is.
        is_alarming=steps < T.broken_steps and entry.layer.op_name in _WEIGHTED,
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
    if entry.layer.op_name not in _WEIGHTED:
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
                f"output channel {_listed(found.positions)}: weights up to {figure(found.largest)}; the others: "
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
        f"{percent(lost)} of the weights other than 0 are below half a step and become 0",
        f"kurtosis of the weights {figure(profile.kurtosis)} (a normal distribution has 3)",
    ]
    if len(tiny):
        figures.append(f"input channel {_listed(tiny)}: less than {percent(T.tiny_channel)} as large as the median one")
    return Cause(
        "outlier_channel" if len(tiny) else "rare_value",
        f"{reason}: they set the scale of the weights, and of the other weights nearly all become -1, 0 or 1.",
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


@_rule("profiles")
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
                f"output channel {_listed(flat)}: standard deviation {figure(float(deviations[flat].min()))} to "
                f"{figure(float(deviations[flat].max()))} steps of {figure(entry.step)}"
            ),
            f"the largest channel deviates by {figure(float(alive.max()))} steps",
        ),
        "Balance the channels: what is made smaller here is made larger by the next layer's weights; or keep it in float.",
        keep_float(entry.layer.node),
        part="output",
    )


@_rule("profiles")
def weight_scales(entry: LayerEvidence, context: Context) -> Cause | None:
    """Weights of very different size in one tensor with one scale."""
    profile = entry.weights
    if profile is None or profile.channels is None or profile.quantized is None or len(profile.channels.scale) != 1:
        return None
    if entry.layer.op_name not in _WEIGHTED:
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


@_rule("profiles")
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
    shown = f"output channel {_listed(wrong)} of {len(steps)}" if len(wrong) else "no channel's least or greatest weight"
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


@_rule("profiles", "parts")
def broken_bias(entry: LayerEvidence, context: Context) -> Cause | None:
    """The weights are rounded as they should be, and yet the operator with them is far off: it is the bias."""
    profile, part = entry.weights, entry.parts.get("weights")
    if profile is None or profile.error is None or part is None or entry.own is None or not np.isfinite(part.rmse):
        return None
    # Rounded weights cannot give an error that is larger than the values themselves.
    if part.sqnr_db > T.bias_db or part.rmse**2 < T.dominates * entry.own.rmse**2 or _lost_weights(entry) >= T.lost_weights:
        return None
    if broken_weights(entry, context) is not None:
        return None
    return Cause(
        "broken_bias",
        "Its weights are rounded as they should be, and yet they seem to err: its bias is wrong, or saturated.",
        (
            f"rounded weights and bias alone leave {figure(part.sqnr_db)} dB SQNR, off by up to {figure(part.largest)} (real units)",
            f"no weight is off by more than {figure(T.weight_error)} step",
        ),
        "Quantize the model again; a bias that is large against input scale times weight scale does not fit its integers.",
        keep_float(entry.layer.node),
        is_alarming=True,
        part="weights",
    )


@_rule("profiles", "graph")
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


@_rule("profiles")
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
    if steps >= T.few_steps:
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


@_rule()
def dead_layer(entry: LayerEvidence, context: Context) -> Cause | None:
    """The output is one value throughout."""
    profile, size = entry.profile, int(np.prod(entry.layer.shape)) if entry.layer.shape else 1
    if size < 2 or entry.moves_values or entry.integers is None:
        return None
    is_constant = entry.integers[0] == entry.integers[1]
    float_constant = profile is not None and profile.values.total > 0 and profile.values.minimum == profile.values.maximum
    if not is_constant or (not entry.sources and entry.operator is not None and entry.layer.op_name not in _WEIGHTED):
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


@_rule("parts")
def kernel_difference(entry: LayerEvidence, context: Context) -> Cause | None:
    """The operator computes other than its formula, beyond rounding and clipping."""
    output = entry.parts.get("output")
    if output is None or entry.own is None or not entry.step > 0 or not np.isfinite(output.rmse):
        return None
    # In 16 bits the kernels' own constants have fewer bits than the result.
    step = entry.step * max(entry.layer.levels / 256.0, 1.0)
    if min(output.inner, entry.own.inner) < T.kernel_error * step:
        return None
    return Cause(
        "kernel_difference",
        "It computes something else than its float form: the error is far above rounding and not from clipping. Either its "
        "kernel is wrong, or its bias does not fit.",
        (
            (
                f"with the same weights and inputs it is off by up to {figure(output.inner / step)} steps (rounding: 0.5), "
                f"{figure(output.rmse / step)} steps RMS"
            ),
        ),
        "Run it with other kernels: where they differ it is the kernel; where they agree, look at its bias and scales.",
        "tflite-qdebug compare-kernels QUANTIZED.tflite --debug-data DATA",
        is_alarming=output.sqnr_db < T.healthy_layer_db,
        part="output",
    )


@_rule("sensitivity", is_last=True)
def sensitive(entry: LayerEvidence, context: Context) -> Cause | None:
    """An ordinary error that the output depends on more than on others."""
    if entry.dictated_by >= 0:
        return None
    if not entry.is_measured or entry.share < T.stands_out or entry.own is None or entry.sqnr_db < T.healthy_layer_db:
        return None
    return Cause(
        "sensitive",
        "Its own error is ordinary, but the model's output depends on this layer more than on others.",
        (f"own error {figure(entry.sqnr_db)} dB SQNR", _share_words(entry)),
        "Keep it in float.",
        keep_float(entry.layer.node),
    )


@_rule(is_last=True)
def many_small(entry: LayerEvidence, context: Context) -> Cause | None:
    """The layer does not stand out: the rounding of many adds up."""
    if entry.dictated_by >= 0:
        return None
    if not context.is_lossy or entry.own is None or entry.sqnr_db < T.small_error_db or entry.share >= T.stands_out:
        return None
    order = sorted(context.layers, key=lambda other: -other.share)
    needed = int(np.searchsorted(np.cumsum([other.share for other in order]), T.explained)) + 1
    worst = [other.layer.node for other in order[: min(needed, T.most_layers)]]
    return Cause(
        "many_small",
        f"Its error is one of many small ones that add up: it takes {needed} of {len(order)} layers to make "
        f"{percent(T.explained)} of the loss.",
        (f"own error {figure(entry.sqnr_db)} dB SQNR" + _in_steps(entry, entry.own), _share_words(entry)),
        _REMEDIES_FOR_MANY[context.lossy_part],
        keep_float(*worst),
    )


_REMEDIES_FOR_MANY = {
    "activations": "Better ranges help all layers at once; else give activations 16 bits (--kind int16x8), or keep the worst "
    "layers in float.",
    "weights": "It is the weights that lose it: train quantization-aware (tflite-qdebug qat), or keep the worst in float.",
    "": "Better ranges help all layers at once; else keep the worst in float, or train quantization-aware (tflite-qdebug qat).",
}


@_rule(is_last=True)
def large_error(entry: LayerEvidence, context: Context) -> Cause | None:
    """A large error that no other rule explains."""
    if entry.dictated_by >= 0:
        return None
    if entry.own is None:
        return None
    weights, output = entry.parts.get("weights"), entry.parts.get("output")
    figures = [f"own error {figure(entry.sqnr_db)} dB SQNR" + _in_steps(entry, entry.own), _share_words(entry)]
    words = "It errs more than other layers, and no rule tells why."
    if weights is not None and weights.rmse**2 > T.dominates * entry.own.rmse**2:
        words = "Most of its error comes of rounding its weights."
        figures.append(f"weights alone {figure(weights.sqnr_db)} dB SQNR")
    elif output is not None and output.rmse**2 > T.dominates * entry.own.rmse**2:
        words = "Most of its error comes of rounding its output."
        figures.append(f"rounding of the output alone {figure(output.sqnr_db)} dB SQNR")
    return Cause(
        "large_error",
        words,
        tuple(figures),
        "Keep it in float.",
        keep_float(entry.layer.node),
        is_alarming=entry.sqnr_db < T.broken_layer_db,
    )


def _in_steps(entry: LayerEvidence, error: Error) -> str:
    return f", {figure(error.rmse / entry.step)} steps RMS (rounding: 0.289)" if entry.step > 0 else ""


def _share_words(entry: LayerEvidence) -> str:
    how = "measured with this layer alone quantized" if entry.is_measured else "estimated from its own error"
    return f"{percent(entry.share)} of what all layers add to the error at the output ({how})"


@_rule("parts", "graph", is_last=True)
def inherited(entry: LayerEvidence, context: Context) -> Cause | None:
    """The error comes from a layer before it."""
    accumulated = entry.parts.get("accumulated")
    if accumulated is None or entry.own is None or not context.is_lossy or entry.moves_values:
        return None
    if accumulated.sqnr_db > T.broken_layer_db or entry.sqnr_db < accumulated.sqnr_db + 10.0:
        return None
    before = ancestors(entry, context.layers)
    maker = max(before, key=lambda position: context.layers[position].share, default=None)
    if maker is None or context.layers[maker].share <= entry.share:
        return None
    made = context.layers[maker]
    return Cause(
        "inherited",
        f"Its error is inherited, not made here; most of it was made in {made.name}.",
        (
            f"{figure(accumulated.sqnr_db)} dB SQNR with all before it quantized, {figure(entry.sqnr_db)} dB by itself",
            f"{made.name}: {figure(made.sqnr_db)} dB SQNR by itself",
        ),
        f"Leave it as it is, and look at {made.name}.",
        keep_float(made.layer.node),
    )


def ancestors(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> set[int]:
    """Returns the positions of all layers that a layer's values come from."""
    found: set[int] = set()
    waiting = list(entry.sources)
    while waiting:
        position = waiting.pop()
        if position not in found:
            found.add(position)
            waiting += layers[position].sources
    return found
