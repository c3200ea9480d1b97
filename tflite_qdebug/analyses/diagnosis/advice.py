"""What to try, each with a quick estimate of what it brings, from what the analyses found already: no model is run for it.

The estimates take errors for small and independent of each other, so that their energies add up: what takes a share ``s`` of
the squared error at the outputs away gains ``10 log10(1 / (1 - s))`` dB. What share a layer has is measured where the
sensitivity is known, else guessed from the layer's own error.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import bare, figure, percent
from tflite_qdebug.analyses.diagnosis.evidence import LayerEvidence, bulk, gather, with_zero
from tflite_qdebug.analyses.diagnosis.loss import loss_of
from tflite_qdebug.analyses.diagnosis.range_rules import FIXED_RANGE
from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.analyses.diagnosis.verdict import diagnose
from tflite_qdebug.findings import Advice, Findings, Profile, Sensitivity, Steps
from tflite_qdebug.operators import WEIGHTED

__all__ = ["advise", "gain_db"]

#: dB. A remedy that brings less is not worth trying.
WORTH = 0.3
#: Nodes left float, at most: more is no remedy but another model.
MOST_NODES = 20
#: Shares of the values that a range may be chosen to hold.
SHARES = (0.99999, 0.9999, 0.999, 0.998, 0.995, 0.99)
_DB = "dB SQNR"
# Share of an input's values at the ends of its range, and how far they reach beyond, as a share of the range: calibration on
# other samples clips fewer, and by less.
_AT_ENDS, _BEYOND = 0.05, 0.25


def advise(findings: Findings, run: str = "RUN") -> tuple[Advice, ...]:
    """Returns what to try, what is expected to bring most first, then bounds; nothing where nothing is wrong.

    Args:
        findings: A run is needed; with sensitivities, steps and profiles the estimates are better.
        run: The folder of the run, for the commands.
    """
    misfit = _misfit(findings)
    if misfit is not None:
        return (misfit,)
    known, loss = _is_loss_known(findings), loss_of(findings)
    if known and not loss.is_lossy and not loss.is_doubtful and (findings.diagnosis or diagnose(findings)).sound:
        return ()
    if findings.run.layers and all(layer.reference != "float model" for layer in findings.run.layers):
        words = "Run again with the float model: remedies are worked out against it."
        command = "tflite-qdebug run --float FLOAT.tflite --quantized QUANTIZED.tflite --debug-data DATA --output RUN"
        return (Advice(words, command, how="not estimated: the run has no float model"),)
    layers = gather(findings)
    found = [_float_nodes(findings, layers, run), _ranges(findings, layers, run), _biases(findings, layers, run)]
    found += [_weights(findings, layers, run), _sixteen_bits(findings, run)]
    worth = [advice for advice in found if advice is not None and not advice.gain < _least(advice)]
    worth.sort(key=_place)
    if not any(" fix " in advice.command for advice in worth):
        how = "not estimated: no remedy that keeps all operators int8 stands out"
        worth.append(Advice("Let the search try all remedies, alone and together.", _fix(findings, run), how=how))
    if not known:
        words = "Measure what the model loses at its outputs before you mend it."
        how = "not estimated: this run tells of layers alone"
        worth.append(Advice(words, f"tflite-qdebug runall {shlex.quote(run)}", how=how))
    return tuple(worth)


def _misfit(findings: Findings) -> Advice | None:
    """Returns what to say of samples that are scaled otherwise than the model's input: nothing else can be judged then."""
    columns = findings.run.columns()
    for position, layer in enumerate(findings.run.layers):
        if layer.op_name != "QUANTIZE" or layer.scale is None or layer.zero_point is None:
            continue
        integers = np.iinfo(layer.dtype)
        ends = columns["saturated_low"][position] + columns["saturated_high"][position]
        beyond = columns["max_abs_error"][position]
        if ends > _AT_ENDS and beyond > _BEYOND * (integers.max - integers.min) * layer.scale:
            low, high = ((end - layer.zero_point) * layer.scale for end in (integers.min, integers.max))
            range_, share = f"{figure(low)} to {figure(high)}", percent(float(ends))
            words = (
                f"Look at the samples first: {share} of the values of {bare(layer.node)} are at the ends of what the model "
                f"takes, {range_}, and reach up to {figure(float(beyond))} beyond. They seem to be scaled otherwise than those "
                "that the model was made for (scale and offset of the data)."
            )
            return Advice(words, "", how="nothing else is advised: what these samples show is no fault of the model's")
    return None


def _place(advice: Advice) -> tuple[bool, float]:
    """Returns what puts advice in order. What has no estimate because it makes NaN finite comes first: nothing is worse."""
    if math.isnan(advice.gain):
        return False, -math.inf if advice.nodes else math.inf
    return advice.at_most, -advice.gain


def gain_db(share: float) -> float:
    """Returns what is gained, in dB SQNR, by taking away a share, 0..1, of the squared error; infinite for all of it."""
    return math.inf if share >= 1.0 else -10.0 * math.log10(1.0 - share)


def _least(advice: Advice) -> float:
    return WORTH if advice.unit == _DB else 0.0


def _is_loss_known(findings: Findings) -> bool:
    return findings.scores is not None or findings.samples is not None or "quantized" in findings.run.whole


# -- commands --------------------------------------------------------------------------------------------------------------


def _fix(findings: Findings, run: str) -> str:
    """Returns the search, with a target on what the user measures, else on the outputs."""
    words = ["tflite-qdebug", "fix", run, "--target", _target(findings), *_calibration(findings)]
    return " ".join(map(shlex.quote, words))


def _calibration(findings: Findings) -> tuple[str, ...]:
    """Returns what has to be said of a model that was quantized elsewhere: nobody but the user knows what calibrated it."""
    known = "calibration_dataset" in findings.run.provenance.get("options", {})
    return () if known else ("--representative-data", "DATA")


def _target(findings: Findings) -> str:
    if findings.scores is None or not findings.scores.metrics:
        return "sqnr_db >= 20 dB"
    metric = findings.scores.metrics[0]
    sensitivity = findings.sensitivity.get("node")
    turned = sensitivity is not None and sensitivity.metric == metric and bool(sensitivity.large_is_bad)
    return f"{metric} <= float + 1%" if turned else f"{metric} >= float - 0.5%"


def _convert(findings: Findings, run: str, *options: str) -> str:
    return " ".join(map(shlex.quote, ["tflite-qdebug", "convert", run, *options, *_calibration(findings)]))


def _leave_float(findings: Findings, run: str, nodes: Sequence[str]) -> str:
    kind = findings.run.provenance.get("options", {}).get("kind", "int8")
    if kind != "int8":  # the other kinds take no denylist
        return _fix(findings, run)
    return _convert(findings, run, *(word for node in nodes for word in ("--denylisted-node", node)))


def _basis(findings: Findings, run: str) -> str:
    """Returns where the shares of the layers come from."""
    sensitivity = findings.sensitivity.get("node")
    if sensitivity is not None:
        return f"estimated from the sensitivity of each node, measured on {sensitivity.errors.samples} samples"
    return (
        "estimated from the layers' own errors alone, as if each reached the outputs as it is; for a better estimate: "
        f"tflite-qdebug sensitivity {shlex.quote(run)}"
    )


# -- nodes left float ------------------------------------------------------------------------------------------------------


def _float_nodes(findings: Findings, layers: Sequence[LayerEvidence], run: str) -> Advice | None:
    """Leaving the worst nodes float: measured where the steps are known, else from sensitivities, else from the layers."""
    if findings.steps is not None and len(findings.steps.nodes):
        return _measured_steps(findings, findings.steps, run)
    sensitivity = findings.sensitivity.get("node")
    if sensitivity is not None and sensitivity.nodes:
        names, noise = list(sensitivity.nodes), _noise(sensitivity)
    else:
        names, noise = [entry.layer.node for entry in layers], np.array([entry.share for entry in layers])
    may = np.array([entry not in ("QUANTIZE", "DEQUANTIZE") for entry in _op_names(findings, layers)], dtype=bool)
    chosen = _worst(noise, may)
    if not chosen:
        return None
    nodes = [names[position] for position in chosen]
    broken = not np.isfinite(noise).all()
    words = f"Leave {_counted(len(nodes), 'node')} float{_named(nodes)}."
    how = _basis(findings, run)
    share, gain = math.nan, math.nan
    if not broken:
        share = float(noise[chosen].sum() / noise.sum())
        gain = gain_db(share)
    if broken:
        how = "not estimated: with each of these nodes alone quantized an output is NaN or infinite"
    elif math.isinf(gain) or len(chosen) == len(names):
        gain, how = math.nan, f"not estimated: all of the error comes from {'it' if len(nodes) == 1 else 'them'}; {how}"
    else:
        how = f"they make {percent(share)} of the squared error at the outputs: {how}"
    return Advice(words, _leave_float(findings, run, nodes), gain, _DB, how, nodes=tuple(nodes))


def _op_names(findings: Findings, layers: Sequence[LayerEvidence]) -> list[str]:
    sensitivity = findings.sensitivity.get("node")
    if sensitivity is not None and sensitivity.nodes:
        return list(sensitivity.op_names)
    return [entry.layer.op_name for entry in layers]


def _noise(sensitivity: Sensitivity) -> np.ndarray:
    """Returns the squared error over the squared float values with each node alone quantized; float64 ``(nodes,)``.

    At the worst output: the one where all nodes together err most. Infinite where values are NaN or infinite.
    """
    count = len(sensitivity.nodes)
    sqnr = sensitivity.errors.metric("sqnr_db")[:count]
    noise = np.where(np.isnan(sqnr), 0.0, 10.0 ** (-0.1 * np.nan_to_num(sqnr, nan=0.0, posinf=np.inf, neginf=-np.inf)))
    noise[~np.isfinite(sensitivity.errors.sums[:count]).all(axis=-1)] = np.inf
    return np.asarray(noise[:, int(noise.sum(axis=0).argmax())])


def _worst(noise: np.ndarray, may: np.ndarray) -> list[int]:
    """Returns the positions of the few that make most of a sum, the worst first; where some are infinite, just these."""
    if not np.isfinite(noise).all():
        return [int(position) for position in np.flatnonzero(~np.isfinite(noise) & may)[:MOST_NODES]]
    chosen: list[int] = []
    for position in np.argsort(-noise, kind="stable"):
        done = noise[chosen].sum() >= T.explained * noise.sum() * (1.0 - 1e-9)
        if not noise[position] > 0 or len(chosen) == MOST_NODES or done:
            break
        if may[position]:
            chosen.append(int(position))
    return chosen


def _measured_steps(findings: Findings, steps: Steps, run: str) -> Advice | None:
    """What leaving nodes float brought, where it was measured; the user's metric tells before the outputs."""
    errors = steps.errors
    best = steps.met if steps.met is not None else int(np.argmin(errors.badness(steps.metric)))
    if best == 0:
        return None
    metric = errors.task_metrics[0] if errors.task_metrics else "sqnr_db"
    before, after = (float(value) for value in errors.worst(metric)[[0, best]])
    is_share = metric in errors.task_metrics and 0.0 <= min(before, after) <= max(before, after) <= 1.0
    gain, unit = after - before, metric if metric in errors.task_metrics else _DB
    if is_share:
        gain, unit = 100.0 * gain, f"points of {metric}"
    nodes = steps.nodes[:best]
    cost = ""
    if steps.sizes and steps.sizes[0]:
        cost = f", for {percent(steps.sizes[best] / steps.sizes[0] - 1.0)} more weights"
    shown = [f"{percent(value)}" if is_share else f"{figure(value)}" for value in (before, after)]
    how = f"measured on {errors.samples} samples: {metric} goes from {shown[0]} to {shown[1]}{cost}"
    if not math.isfinite(gain):
        gain = math.nan
    which = "most sensitive node" if best == 1 else f"{best} most sensitive nodes"
    words = f"Leave the {which} float{_named(nodes)}."
    return Advice(words, _leave_float(findings, run, nodes), gain, unit, how, measured=True, nodes=tuple(nodes))


def _named(nodes: Sequence[str]) -> str:
    return f": {bare(nodes[0])}" if len(nodes) == 1 else f", first of all {bare(nodes[0])}"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count != 1 else ''}"


# -- ranges ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Saved:
    """A share of the squared error at the outputs that a remedy takes away at one layer, and why."""

    entry: LayerEvidence
    share: float
    words: str = ""


def _ranges(findings: Findings, layers: Sequence[LayerEvidence], run: str) -> Advice | None:
    """Better ranges of activations: what a range that rounds and clips least would leave of each layer's error."""
    saved = [found for entry in layers if (found := _better_range(entry)) is not None and found.share > 0]
    profiled = any(found.entry.profile is not None for found in saved)
    how = "rounding and clipping at the best range of each histogram" if profiled else "the integers that no value reached"
    words = "Choose the ranges of activations anew, all operators int8"
    return _summed(findings, saved, run, words, how)


def _better_range(entry: LayerEvidence) -> _Saved | None:
    """Returns what a better range of a layer's output takes away; None where its range is not its own affair, or not known."""
    own_affair = entry.layer.op_name not in FIXED_RANGE and not entry.moves_values and entry.joined_by < 0
    if not own_affair or not entry.step > 0 or entry.layer.levels != 256 or entry.own is None:
        return None
    profile = entry.profile
    if profile is not None and profile.values.total and math.isfinite(profile.low + profile.high):
        now = _range_noise(profile, profile.low, profile.high)
        values = profile.values
        tried = [with_zero(values.minimum, values.maximum), *(bulk(values, share) for share in SHARES)]
        noise, chosen = min((_range_noise(profile, *each), each) for each in tried)
        left = noise / now if now > 0 else 1.0
        words = f"{figure(chosen[0])} to {figure(chosen[1])} instead of {figure(profile.low)} to {figure(profile.high)}"
    elif entry.integers is not None and entry.layer.zero_point is not None:
        low, high = min(entry.integers[0], entry.layer.zero_point), max(entry.integers[1], entry.layer.zero_point)
        used = (high - low) / (entry.layer.levels - 1.0)
        left, words = used**2, f"{percent(used)} of its integers used"
    else:
        return None
    return _Saved(entry, entry.share * _part(entry, "output") * max(1.0 - left, 0.0), words)


def _range_noise(profile: Profile, low: float, high: float) -> float:
    """Returns the mean squared error of 8 bits over a range: a twelfth of a squared step inside, what is cut off outside."""
    values = profile.values
    edges = values.edges()
    centres = np.clip(0.5 * (edges[:-1] + edges[1:]), values.minimum, values.maximum)
    cut = np.maximum(centres - high, 0.0) + np.maximum(low - centres, 0.0)
    inside = float((values.counts * (cut == 0.0)).sum())
    step = (high - low) / 255.0
    # Zeros are held exactly by every range.
    return float((inside * step**2 / 12.0 + values.counts @ np.square(cut)) / values.total)


def _part(entry: LayerEvidence, name: str) -> float:
    """Returns the share of a layer's own squared error that ``weights`` or ``output`` has; all of it where it was not split."""
    energies = {part: entry.parts[part].rmse ** 2 for part in ("weights", "output") if part in entry.parts}
    total = sum(energies.values())
    if not energies:
        return 1.0
    return energies.get(name, 0.0) / total if 0.0 < total < math.inf else 0.0


# -- biases and weights ----------------------------------------------------------------------------------------------------


def _biases(findings: Findings, layers: Sequence[LayerEvidence], run: str) -> Advice | None:
    """Corrected biases: the mean of each layer's error, squared, is what a bias can take away."""
    saved = []
    for entry in layers:
        if entry.layer.op_name in WEIGHTED and entry.own is not None:
            share = entry.share * _shift(entry)
            if share > 0:
                saved.append(_Saved(entry, share, f"{percent(_shift(entry))} of its squared error is a shift"))
    words = "Correct the biases, all operators int8"
    return _summed(
        findings, saved, run, words, "the mean error of each layer, or of its channels where they are known, squared"
    )


def _shift(entry: LayerEvidence) -> float:
    """Returns which share of the squared error of a layer is the square of its mean, by channel where that is known."""
    assert entry.own is not None
    energy = entry.own.rmse**2
    whole = entry.own.bias**2 / energy if 0.0 < energy < math.inf else 0.0
    profile, accumulated = entry.profile, entry.parts.get("accumulated")
    if profile is None or profile.channels is None or profile.quantized_channels is None or accumulated is None:
        return min(whole, 1.0)
    shifts = profile.quantized_channels.mean - profile.channels.mean
    energy = accumulated.rmse**2
    by_channel = float(np.mean(np.square(shifts))) / energy if 0.0 < energy < math.inf else 0.0
    return min(max(whole, by_channel), 1.0)


def _weights(findings: Findings, layers: Sequence[LayerEvidence], run: str) -> Advice | None:
    """Better weights: at most what there is with float weights."""
    words = "Round the weights for the least error at their layers' outputs, and equalize channels, all operators int8."
    measured = _with_part_float(findings, "activations", "float weights")
    if measured is not None:
        return Advice(words, _fix(findings, run), measured[0], _DB, measured[1], measured=True, at_most=True)
    saved = [
        _Saved(entry, entry.share * _part(entry, "weights"))
        for entry in layers
        if "weights" in entry.parts and entry.layer.op_name in WEIGHTED
    ]
    advice = _summed(findings, [each for each in saved if each.share > 0], run, words[:-1], "all that rounded weights add")
    return None if advice is None else dataclasses.replace(advice, at_most=True)


def _sixteen_bits(findings: Findings, run: str) -> Advice | None:
    """16-bit activations: at most what there is with float activations, where that was measured."""
    measured = _with_part_float(findings, "weights", "float activations")
    if measured is None or findings.run.provenance.get("options", {}).get("kind", "int8") != "int8":
        return None
    command = _convert(findings, run, "--kind", "int16x8")
    words = "Give activations 16 bits; kernels for it are fewer and slower."
    return Advice(words, command, measured[0], _DB, measured[1], measured=True, at_most=True)


def _with_part_float(findings: Findings, quantized: str, what: str) -> tuple[float, str] | None:
    """Returns what the worst output gains with one part float, in dB, and how that is known; None where it was not measured."""
    whole = findings.run.whole
    if "quantized" not in whole or quantized not in whole or not len(findings.run.outputs):
        return None
    before, after = (
        float(np.min(np.nan_to_num(whole[name].sqnr_db, nan=np.inf, posinf=np.inf, neginf=-np.inf)))
        for name in ("quantized", quantized)
    )
    if not math.isfinite(after - before):
        return None
    how = f"measured on {whole[quantized].samples} samples: {figure(before)} dB now, {figure(after)} dB with {what}"
    return after - before, how


def _summed(findings: Findings, saved: Sequence[_Saved], run: str, words: str, how: str) -> Advice | None:
    """Returns the advice that takes shares of the error away at several layers."""
    if not saved:
        return None
    first = max(saved, key=lambda each: each.share)
    share = min(sum(each.share for each in saved), 1.0)
    gain = gain_db(share)
    words += f", first of all of {first.entry.name}" + (f": {first.words}" if first.words else "")
    how = f"{percent(share)} of the squared error at the outputs, by {how}: {_basis(findings, run)}"
    return Advice(f"{words}.", _fix(findings, run), math.nan if math.isinf(gain) else gain, _DB, how)
