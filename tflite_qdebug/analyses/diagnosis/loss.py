"""What a quantized model loses as a whole, and whether that is more than 8 bits and chance explain."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import bare, figure, percent
from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.findings import Findings, Score

__all__ = [
    "CLOSE_COSINE", "CLOSE_SQNR_DB", "NO_FAULT", "OUTPUT_COSINE", "OUTPUT_SQNR_DB", "STANDARD_ERRORS", "TOLERATED_POINTS",
    "TOLERATED_SHARE", "Loss", "loss_of", "lossy_part",
]  # fmt: skip

#: Percentage points that 8 bits may cost: what is quoted for well-quantized networks is less than one.
TOLERATED_POINTS = 1.0
#: For a metric that is no share between 0 and 1, such as PSNR in dB: the share of it that may be lost.
TOLERATED_SHARE = 0.02
#: A drop within two standard errors of the metric may be chance: 95 of 100 such drops are that.
STANDARD_ERRORS = 2.0
#: Without a task metric: below 10 dB the error at an output is more than a third of the output.
OUTPUT_SQNR_DB = 10.0
#: The same for probabilities, which are 0 or 1 for the most part, so that few samples make all the error: MobileNetV1, which
#: loses 3 of 55 points, has 0.93; MobileNetV3-Small, which loses 35 of 82, and the built-in example, 25 of 99, have 0.79.
OUTPUT_COSINE = 0.9
#: Within these an output is what rounding makes of it: an error of less than a tenth of the output.
CLOSE_SQNR_DB = 20.0
CLOSE_COSINE = 0.99


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the quantized model loses as a whole.

    Attributes:
        is_lossy: True where more is lost than chance and 8 bits explain.
        words: What is lost, or kept: a clause that begins in lower case.
        evidence: Figures with units.
        notes: What could not be judged.
        is_doubtful: True where there is something between loss and none, and no telling which.
    """

    is_lossy: bool
    words: str
    evidence: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_doubtful: bool = False


#: What is said where nothing is known of the outputs, and no layer is suspect.
NO_FAULT = "the layers show no fault"


def loss_of(findings: Findings) -> Loss:
    """Returns what the model loses: by its task metric where that was measured, else by its outputs."""
    outputs = _output_figures(findings)
    scored = _score_loss(findings)
    if scored is not None:
        return dataclasses.replace(scored, evidence=(*scored.evidence, *outputs))
    missing: tuple[str, ...] = (
        "judged by the error at the output alone; labelled samples (--evaluation-data) tell what it costs in accuracy",
    )
    worst = _worst_output(findings)
    if worst is None:
        note = "nothing tells what the model loses at its output; it is judged by its layers alone"
        return Loss(False, NO_FAULT, outputs, (note,))
    name, sqnr, cosine, is_probability = worst
    lossy = cosine < OUTPUT_COSINE if is_probability else sqnr < OUTPUT_SQNR_DB
    size = f"cosine {figure(cosine)}" if is_probability else f"{figure(sqnr)} dB SQNR"
    fidelity = "is far from the float model's" if lossy else "is the float model's give or take rounding"
    doubtful = not lossy and (cosine < CLOSE_COSINE if is_probability else sqnr < CLOSE_SQNR_DB)
    if doubtful:
        fidelity = "differs moderately from the float model's"
    judged, samples = _judged_samples(findings)
    what = f"output {bare(name)} {fidelity} ({size})"
    if judged < samples:
        # The few samples may be the good ones: what they show is no verdict on the rest.
        what += f" on the first {judged} of {samples} samples"
        missing = (*missing, "the error at the output is of a few samples; all of them tell more (tflite-qdebug samples RUN)")
    if not math.isfinite(sqnr) and not sqnr > 0:
        return Loss(True, f"output {bare(name)} is NaN, infinite, or without any signal", outputs, missing)
    return Loss(lossy, what, outputs, missing, doubtful)


def _score_loss(findings: Findings) -> Loss | None:
    """Returns the loss by the main task metric, of which large is good unless the sensitivity knows better."""
    scores = findings.scores
    if scores is None or not scores.metrics:
        return None
    name = scores.metrics[0]
    floating, quantized = scores.score("float"), scores.score("quantized")
    if floating is None or quantized is None or name not in floating.metrics or name not in quantized.metrics:
        return None
    sensitivity = findings.sensitivity.get("node")
    turned = sensitivity is not None and sensitivity.metric == name and bool(sensitivity.large_is_bad)
    before, after = floating.metrics[name], quantized.metrics[name]
    drop = (after - before) if turned else (before - after)
    if not math.isfinite(after):
        return Loss(True, f"the {name} of the quantized model is {after}", (f"{name}: float {figure(before)}",))
    if _is_share(name, floating, quantized):
        error = math.sqrt(before * (1.0 - before) / max(scores.samples, 1))
        allowed = max(TOLERATED_POINTS / 100.0, STANDARD_ERRORS * error)
        change = f"its {name} is {percent(after)} against {percent(before)} in float"
        words = (
            f"the quantized model loses {figure(100 * drop)} points of {name} ({percent(before)} to {percent(after)})"
            if drop > 0
            else change
        )
        text = f"{change.removeprefix('its ')}, {scores.samples} samples, standard error {figure(100 * error)} points"
    else:
        allowed = TOLERATED_SHARE * abs(before)
        words = f"the {name} goes from {figure(before)} to {figure(after)}"
        text = f"{name}: {figure(before)} in float, {figure(after)} quantized, {scores.samples} samples"
    notes: tuple[str, ...] = ()
    if 0 < drop <= allowed and _is_share(name, floating, quantized) and drop > TOLERATED_POINTS / 100.0:
        words = f"the {figure(100 * drop)} points of {name} that it loses may be chance with {scores.samples} samples"
        notes = (f"more than {scores.samples} labelled samples would tell whether it loses accuracy",)
    return Loss(drop > allowed, words, (text,), notes, bool(notes))


def _is_share(name: str, *scores: Score) -> bool:
    return all(0.0 <= score.metrics[name] <= 1.0 for score in scores)


def _output_figures(findings: Findings) -> tuple[str, ...]:
    run, found = findings.run, []
    words = {"quantized": "all quantized", "weights": "weights alone", "activations": "activations alone"}
    for position, output in enumerate(run.outputs):
        figures = [f"{words[name]} {figure(part.sqnr_db[position])} dB" for name, part in run.whole.items() if name in words]
        count = next((part.samples for part in run.whole.values()), 0)
        # The parts are often of a few samples only, and figures of different samples must not pass for the same.
        of = f" on {count} of {run.statistics.samples} samples" if count < run.statistics.samples else ""
        found.append(f"output {bare(output)}, SQNR{of}: " + ", ".join(figures))
    if findings.samples is not None:
        flipped, samples = findings.samples.flip_count, findings.samples.errors.samples
        if flipped or any(sample.float_class >= 0 for sample in findings.samples.worst):
            found.append(f"the predicted class is another one in {flipped} of {samples} samples")
    return tuple(found)


def lossy_part(findings: Findings) -> str:
    """Returns what makes the error at the outputs, ``weights`` or ``activations``; empty where it is both, or not known."""
    whole = findings.run.whole
    if "weights" not in whole or "activations" not in whole or not len(findings.run.outputs):
        return ""
    weights, activations = (
        float(np.min(np.nan_to_num(whole[name].sqnr_db, nan=np.inf))) for name in ("weights", "activations")
    )
    if abs(weights - activations) < T.lossy_part_db or not math.isfinite(weights + activations):
        return ""
    return "weights" if weights < activations else "activations"


def _worst_output(findings: Findings) -> tuple[str, float, float, bool] | None:
    """Returns the output that lost most: its name, SQNR, cosine, and whether it holds probabilities."""
    rows: list[tuple[str, float, float, float]] = []
    if findings.samples is not None:
        errors = findings.samples.errors
        columns = (errors.metric(name)[0].tolist() for name in ("sqnr_db", "cosine", "mse"))
        rows = list(zip(errors.outputs, *columns, strict=True))
    elif "quantized" in findings.run.whole:
        whole = findings.run.whole["quantized"]
        columns = (values.tolist() for values in (whole.sqnr_db, whole.cosine, np.square(whole.rmse)))
        rows = list(zip(findings.run.outputs, *columns, strict=True))
    judged = []
    for name, sqnr, cosine, energy in rows:
        if not math.isfinite(energy):
            sqnr = cosine = -math.inf
        if not math.isnan(sqnr):  # else there is neither signal nor error, and nothing to lose
            judged.append((name, sqnr, cosine, _is_probability(findings, name)))
    return min(judged, key=lambda row: _margin(*row[1:]), default=None)


def _judged_samples(findings: Findings) -> tuple[int, int]:
    """Returns on how many samples the error at the output was measured, and how many the run has."""
    run = findings.run
    if findings.samples is not None:
        return findings.samples.errors.samples, run.statistics.samples
    return run.whole["quantized"].samples, run.statistics.samples


def _margin(sqnr: float, cosine: float, is_probability: bool) -> float:
    """Returns how far an output is from being lossy; negative: it is."""
    return (cosine - OUTPUT_COSINE) / (1.0 - OUTPUT_COSINE) if is_probability else (sqnr - OUTPUT_SQNR_DB) / OUTPUT_SQNR_DB


def _is_probability(findings: Findings, output: str) -> bool:
    """True where the output comes from a SOFTMAX or a LOGISTIC, be it reshaped; without a graph, by the last such layer."""
    by_operator = {node.operator: node for node in findings.graph}
    current = next((node for node in findings.graph if output in node.nodes), None)
    while current is not None and current.op_name in ("RESHAPE", "SQUEEZE", "DEQUANTIZE") and current.inputs:
        current = by_operator.get(current.inputs[0])
    if current is not None:
        return current.op_name in ("SOFTMAX", "LOGISTIC")
    last = [layer.op_name for layer in findings.run.layers if layer.op_name not in ("RESHAPE", "SQUEEZE")]
    return bool(last) and last[-1] in ("SOFTMAX", "LOGISTIC")
