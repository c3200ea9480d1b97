"""Rules on where an error comes from: made here, made by a kernel, made larger here, or inherited."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import Cause, Context, figure, keep_float, percent, rule
from tflite_qdebug.analyses.diagnosis.evidence import Error, LayerEvidence, amplification
from tflite_qdebug.analyses.diagnosis.thresholds import T

__all__ = ["inherited", "kernel_difference", "large_error", "many_small", "not_finite", "reciprocal", "sensitive"]


@rule("parts", "graph")
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


@rule()
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


@rule("parts")
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


@rule("sensitivity", is_last=True)
def sensitive(entry: LayerEvidence, context: Context) -> Cause | None:
    """An ordinary error that the output depends on more than on others."""
    if entry.dictated_by >= 0:
        return None
    if not entry.is_measured or entry.share < T.stands_out or entry.own is None or entry.sqnr_db < T.healthy_layer_db:
        return None
    return Cause(
        "sensitive",
        "Its own error is ordinary, but the model's output depends on this layer more than on others.",
        (f"own error {figure(entry.sqnr_db)} dB SQNR" + _in_steps(entry, entry.own), _share_words(entry)),
        "Keep it in float.",
        keep_float(entry.layer.node),
    )


@rule(is_last=True)
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


@rule(is_last=True)
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
    """Returns the error in steps, and which part makes most of it, as far as that is known."""
    steps = f", {figure(error.rmse / entry.step)} steps RMS (rounding: 0.289)" if entry.step > 0 else ""
    parts = {name: entry.parts[name].rmse ** 2 for name in ("weights", "output") if name in entry.parts}
    most = max(parts, key=parts.__getitem__, default="")
    if len(parts) < 2 or not parts[most] > T.dominates * sum(parts.values()):
        return steps
    return steps + f", {percent(parts[most] / sum(parts.values()))} of its energy by rounding its {most}"


def _share_words(entry: LayerEvidence) -> str:
    how = "measured with this layer alone quantized" if entry.is_measured else "estimated from its own error"
    return f"{percent(entry.share)} of what all layers add to the error at the output ({how})"


@rule("parts", "graph", is_last=True)
def inherited(entry: LayerEvidence, context: Context) -> Cause | None:
    """The error comes from a layer before it."""
    accumulated = entry.parts.get("accumulated")
    if accumulated is None or entry.own is None or not context.is_lossy or entry.moves_values:
        return None
    if accumulated.sqnr_db > T.broken_layer_db or entry.sqnr_db < accumulated.sqnr_db + 10.0:
        return None
    before = _ancestors(entry, context.layers)
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


def _ancestors(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> set[int]:
    """Returns the positions of all layers that a layer's values come from."""
    found: set[int] = set()
    waiting = list(entry.sources)
    while waiting:
        position = waiting.pop()
        if position not in found:
            found.add(position)
            waiting += layers[position].sources
    return found
