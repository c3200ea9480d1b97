"""The first screen of a report: how it was measured, the verdict, the numbers of the whole model, the layers that matter."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tflite_qdebug.findings import Findings, Score, Scores
from tflite_qdebug.record import Run
from tflite_qdebug.reports.content.boards import board_tiles
from tflite_qdebug.reports.content.parts import Culprit, Tile
from tflite_qdebug.reports.content.view import View, cause_of
from tflite_qdebug.reports.glossary import GLOSSARY, figure, task_term
from tflite_qdebug.reports.outputs import worst_output_sqnr
from tflite_qdebug.wording import number, percent

__all__ = ["culprits", "facts", "plain_verdict", "tiles"]

# More than this share of samples, or of a score, lost is bad: one percentage point.
_BAD_LOSS = 0.01
_CULPRITS = 5


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yields how the run was measured, in short: ``(name, value)``."""
    provenance = run.provenance
    yield "layers", str(len(run.layers))
    yield "samples", str(run.statistics.samples)
    if provenance.get("debug_dataset"):
        yield "data", str(provenance["debug_dataset"]).removeprefix("function ")
    if provenance.get("kernels"):
        yield "kernels", str(provenance["kernels"])
    if provenance.get("created"):
        yield "made", str(provenance["created"]).replace("T", " ").replace("+00:00", " UTC")


def plain_verdict(findings: Findings) -> str:
    """Returns a sentence of what was measured, for a run that was not diagnosed."""
    run = findings.run
    if not run.layers:
        return "Nothing was measured: the run has no layer."
    worst = run.worst(count=1)[0]
    layer, sqnr = run.layers[worst], worst_output_sqnr(findings)
    pair = _pair(findings.scores)
    if pair is not None and findings.scores is not None and findings.scores.metrics:
        name = findings.scores.metrics[0]
        before, after = (figure(task_term(name), score.metrics[name]) for score in pair)
        words = f"The {before.name} is {before.shown} with the float model and {after.shown} with the quantized one."
    elif sqnr is not None:
        decibels = figure("sqnr_db", sqnr)
        words = f"At the model's worst output the signal stands {decibels.shown} above the error of quantization."
    else:
        steps = figure(run.default_criterion, run.columns()[run.default_criterion][worst])
        words = f"The largest error of a layer by itself is {steps.shown} ({steps.name})."
    return f"{words} The layer with the largest error is {layer.op_name} {layer.node}. The causes were not looked for."


def _pair(scores: Scores | None) -> tuple[Score, Score] | None:
    """Returns the scores of the float and of the quantized model, where there are both."""
    before, after = (scores.score(name) if scores else None for name in ("float", "quantized"))
    return None if before is None or after is None else (before, after)


def tiles(findings: Findings) -> Iterator[Tile]:
    """Yields the numbers of the whole model, as far as they were measured."""
    if findings.scores is not None:
        yield from _score_tiles(findings.scores)
    yield from board_tiles(findings.boards)
    sqnr = worst_output_sqnr(findings)
    if sqnr is not None:
        found = figure("sqnr_db", sqnr)
        yield Tile("SQNR at the outputs", None, found, "the worst output; 20 dB is an error of a tenth", found.bad)
    if findings.samples is not None:
        samples, flips = findings.samples.errors.samples, findings.samples.flip_count
        share = flips / max(samples, 1)
        words = f"of {samples} samples, {percent(share)}"
        yield Tile("Flipped predictions", None, figure("flip_count", flips), words, share > _BAD_LOSS)
    run = findings.run
    if run.layers:
        bad = int((run.columns()[run.default_criterion] > 1.0).sum())
        yield Tile("Layers off by over a step", None, figure("layers", bad), f"of {len(run.layers)} layers", bad > 0)


def _score_tiles(scores: Scores) -> Iterator[Tile]:
    pair = _pair(scores)
    if pair is None:
        return
    before, after = pair
    for name in scores.metrics:
        if name in before.metrics and name in after.metrics:
            yield _metric_tile(name, before.metrics[name], after.metrics[name], scores.samples)
    words = f"{number(before.size / after.size, 3)} times smaller" if 0 < after.size < before.size else "no smaller"
    yield Tile("Size", figure("size", before.size), figure("size", after.size), words, after.size >= before.size)
    if math.isfinite(before.milliseconds) and math.isfinite(after.milliseconds):
        times = figure("milliseconds", before.milliseconds), figure("milliseconds", after.milliseconds)
        yield Tile("Time", *times, "median, one sample")


def _metric_tile(name: str, before: float, after: float, samples: int) -> Tile:
    term, loss = task_term(name), before - after
    known = term == name
    title = GLOSSARY[term].name if known else name
    words = f"float less quantized: {number(loss)}"
    if known:
        words = f"{'loses' if loss >= 0 else 'gains'} {number(abs(100 * loss), 3)} percentage points"
    both = figure(term, before, title), figure(term, after, title)
    return Tile(title, *both, f"{words}, {samples} samples", known and loss > _BAD_LOSS)


def culprits(view: View) -> Iterator[Culprit]:
    """Yields the layers that matter: those that are suspected, or without any the worst."""
    nodes = [node for node in view.causes if node in view.places]
    nodes = nodes or list(dict.fromkeys(view.run.layers[place].node for place in view.run.worst()))
    for node in nodes[:_CULPRITS]:
        keys = view.run.default_criterion, "sqnr_db"
        figures = tuple(figure(key, view.columns[key][view.places[node]]) for key in keys)
        yield Culprit(view.link(node), tuple(cause_of(suspect) for suspect in view.causes.get(node, ())), figures)
