"""What is wrong with a quantized model, where, why, and what to try: rules over all that the other analyses found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.causes import Cause, Context, bare, percent
from tflite_qdebug.analyses.diagnosis.evidence import LayerEvidence, gather
from tflite_qdebug.analyses.diagnosis.loss import NO_FAULT, Loss, loss_of, lossy_part
from tflite_qdebug.analyses.diagnosis.rules import INHERITED, RULES
from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.findings import Diagnosis, Findings, Suspect

__all__ = ["diagnose"]


def diagnose(findings: Findings) -> Diagnosis:
    """Names the layers that matter, the likely cause of each, and what to try.

    Args:
        findings: A run is needed; the more of the rest there is, the more is judged. Notes tell what is missing.

    Returns:
        The diagnosis; ``sound`` where neither the output nor any layer shows a fault.
    """
    loss = loss_of(findings)
    layers = gather(findings)
    context = Context(layers, loss.is_lossy, lossy_part(findings))
    causes = {entry.position: _causes(entry, context) for entry in layers}
    ranks = _ranks(layers, causes)
    named = _named(layers, causes, ranks, loss.is_lossy)
    suspects = [
        _suspect(layers[position], cause, ranks[position]) for position in named for cause in causes[position][: T.most_causes]
    ]
    suspects += _inherited(layers, context, named)
    sound = not loss.is_lossy and not suspects
    return Diagnosis(
        _verdict(loss, layers, suspects),
        sound,
        tuple(suspects),
        loss.evidence,
        (*loss.notes, *_missing(findings)),
    )


# -- the layers ------------------------------------------------------------------------------------------------------------


def _causes(entry: LayerEvidence, context: Context) -> list[Cause]:
    """Returns the causes of a layer, those first that alarm and that explain most of its error."""
    found = [cause for rule in RULES if not rule.is_last and (cause := rule.judge(entry, context)) is not None]
    if not any(cause.is_alarming or _explains(entry, cause) for cause in found):
        found += _last_resort(entry, context)
    return sorted(found, key=lambda cause: (not cause.is_alarming, -_explained(entry, cause)))


def _last_resort(entry: LayerEvidence, context: Context) -> list[Cause]:
    rules = (rule for rule in RULES if rule.is_last and rule is not INHERITED)
    return [cause for rule in rules if (cause := rule.judge(entry, context)) is not None][:1]


def _explained(entry: LayerEvidence, cause: Cause) -> float:
    """Returns the share of a layer's squared error that a cause explains; 1 where its part is not known."""
    part, energies = (
        entry.parts.get(cause.part),
        [entry.parts[name].rmse ** 2 for name in ("weights", "output") if name in entry.parts],
    )
    if cause.part not in ("weights", "output") or part is None or not sum(energies) > 0:
        return 1.0
    return part.rmse**2 / sum(energies)


def _explains(entry: LayerEvidence, cause: Cause) -> bool:
    return _explained(entry, cause) > 0.5 * T.dominates


def _ranks(layers: Sequence[LayerEvidence], causes: Mapping[int, Sequence[Cause]]) -> dict[int, float]:
    """Returns how much each layer matters: its share, or that of a reader whose weights make up for what it does wrong."""
    ranks = {entry.position: entry.share for entry in layers}
    for entry in layers:
        names = {cause.name for cause in causes[entry.position]}
        if "not_finite" in names:
            ranks[entry.position] = 1.0
        for position in entry.sources if "outlier_channel" in names else ():
            if any(cause.name == "unbalanced_inputs" for cause in causes[position]):
                ranks[position] = max(ranks[position], ranks[entry.position])
    return ranks


def _named(
    layers: Sequence[LayerEvidence], causes: Mapping[int, Sequence[Cause]], ranks: Mapping[int, float], is_lossy: bool
) -> list[int]:
    """Returns the layers that are suspects, worst first: those that make the loss, and those that are broken anyway."""
    order = sorted((entry.position for entry in layers), key=lambda position: (-ranks[position], position))
    alarming = [position for position in order if any(cause.is_alarming for cause in causes[position])]
    matter: list[int] = []
    if is_lossy:
        made = 0.0
        for position in order[: T.most_layers]:
            if made >= T.explained or layers[position].share < T.matters:
                break
            made += layers[position].share
            small = sum(causes[other][0].name == "many_small" for other in matter)
            if causes[position] and (causes[position][0].name != "many_small" or small < T.most_small):
                matter.append(position)
    chosen = {*matter, *alarming[: T.most_layers]}
    return [position for position in order if position in chosen]


def _suspect(entry: LayerEvidence, cause: Cause, rank: float) -> Suspect:
    how = "of the error at the output" + ("" if entry.is_measured else ", by its own error")
    evidence = cause.evidence
    if entry.share > 0 and not any("of what all layers add" in line for line in evidence):
        evidence = (*evidence, f"it makes {percent(entry.share)} {how}")
    return Suspect(
        entry.layer.node,
        entry.layer.op_name,
        entry.position,
        cause.name,
        cause.words,
        evidence,
        cause.remedy,
        cause.line,
        rank,
    )


def _inherited(layers: Sequence[LayerEvidence], context: Context, named: Sequence[int]) -> list[Suspect]:
    """Returns the layer that looks worst without being to blame, which who reads the accumulated error asks about."""
    found = [
        (entry, cause)
        for entry in layers
        if entry.position not in named and (cause := INHERITED.judge(entry, context)) is not None
    ]
    if not found:
        return []
    entry, cause = min(found, key=lambda pair: pair[0].parts["accumulated"].sqnr_db)
    return [_suspect(entry, cause, 0.0)]


# -- words -----------------------------------------------------------------------------------------------------------------


def _verdict(loss: Loss, layers: Sequence[LayerEvidence], suspects: Sequence[Suspect]) -> str:
    kept = loss.words[0].upper() + loss.words[1:]
    if not suspects and not loss.is_lossy:
        doubt = " as far as can be told" if loss.is_doubtful else ""
        return f"Nothing is wrong{doubt}: {loss.words}."
    if not suspects:
        return f"{kept}, and no single layer is to blame for it."
    first = suspects[0]
    where = f"{first.op_name} {bare(first.node)}"
    if not loss.is_lossy:
        others = len({suspect.node for suspect in suspects}) - 1
        more = f" and {others} more are" if others else " is"
        words = "what that costs at the output was not measured" if loss.words == NO_FAULT else loss.words
        return f"{where}{more} faulty; {words}."
    shares = np.cumsum(sorted((entry.share for entry in layers), reverse=True))
    needed = int(np.searchsorted(shares, T.explained)) + 1
    share = layers[first.layer].share
    if share >= T.makes_it:
        return f"{kept}; {percent(share)} of it comes from {where}."
    return f"{kept}; {needed} of {len(layers)} layers make {percent(T.explained)} of it, first of all {where}."


_ANALYSES = {
    "profiles": ("the values of weights and activations", "tflite-qdebug distribution RUN"),
    "parts": ("the split of each layer's error", "tflite-qdebug run ... --parts"),
    "graph": ("the graph", "tflite-qdebug diagnose RUN"),
    "sensitivity": ("the sensitivity of the nodes", "tflite-qdebug sensitivity RUN"),
}


def _missing(findings: Findings) -> tuple[str, ...]:
    """Says which rules could not judge, and for want of what."""
    present = {
        "profiles": bool(findings.profiles),
        "parts": bool(findings.run.parts),
        "graph": bool(findings.graph),
        "sensitivity": "node" in findings.sensitivity,
    }
    notes = []
    for name, (what, how) in _ANALYSES.items():
        rules = [rule.name for rule in RULES if name in rule.needs]
        if not present[name]:
            idle = f"; not judged: {', '.join(rules)}" if rules and name != "sensitivity" else ""
            more = ", so that how much a layer matters is estimated from its own error" if name == "sensitivity" else ""
            notes.append(f"without {what} ({how}){more}{idle}")
    return tuple(notes)
