"""Cards of what the analyses found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tflite_qdebug.analyses.evaluation import Evaluation
from tflite_qdebug.display.card import Card, Table, card_of, counted, table
from tflite_qdebug.display.runs import provenance_facts, run_subtitle, worst_layers
from tflite_qdebug.findings import Advice, Curve, Diagnosis, Findings, Profile, Samples, Scores, Sensitivity, Steps, Suspect
from tflite_qdebug.reports.advice import gain_words
from tflite_qdebug.reports.charts import known_curves, suspected_nodes
from tflite_qdebug.reports.glossary import label
from tflite_qdebug.reports.outputs import output_errors
from tflite_qdebug.reports.profiles import profile_table
from tflite_qdebug.reports.run_charts import (
    accumulated_error,
    layer_errors,
    sensitivity_bars,
    sensitivity_steps,
    worst_samples,
)
from tflite_qdebug.reports.samples import flip_sentence, sample_table
from tflite_qdebug.reports.sensitivity import curve_table, sensitivity_table, steps_table
from tflite_qdebug.reports.value_charts import channel_boxes, error_histogram, output_histogram, weight_histogram
from tflite_qdebug.study import Study
from tflite_qdebug.wording import byte_size, number, percent, points, shortened

_COUNT = 5
_MODES = {
    "node": "one node alone quantized",
    "weights": "the weights of one node alone quantized",
    "activation": "the input activations of one node alone quantized",
    "float": "one node alone left float",
}


@card_of.register
def _(curve: Curve) -> Card:
    """A curve: the error along the model."""
    what = f"quantized: {curve.name}, {run_subtitle(curve.run)}"
    if not curve.run.layers:
        return Card("Curve of accumulated error", what)
    facts = [*provenance_facts(curve.run.provenance)]
    rows = table("along the way, SQNR dB", curve_table([curve], count=8), folded=True)
    return Card(
        "Curve of accumulated error", what, (), None, facts, rows, (lambda: accumulated_error([curve]),), (), curve.run.notes
    )


@card_of.register
def _(found: Sensitivity) -> Card:
    """A sensitivity: the nodes that matter most."""
    subtitle = f"{_MODES[found.mode]}, {counted(len(found.nodes), 'node')}, {counted(found.errors.samples, 'sample')}"
    if not found.nodes:
        return Card("Sensitivity", subtitle, notes=found.notes)
    first = found.order()[0]
    value = f"{label(found.metric)} {number(found.values()[first])} at the worst output"
    which = f"{found.op_names[first]} {shortened(found.nodes[first], 60)}"
    lead = (
        f"{which} helps most where it is left float: {value}." if found.mode == "float" else f"{which} matters most: {value}."
    )
    rows = table(f"the first by {found.metric}", sensitivity_table(found, _COUNT))
    more = "sensitivity.order(metric), sensitivity.values(metric), sensitivity.select(nodes)"
    facts = provenance_facts(found.provenance)
    return Card("Sensitivity", subtitle, (lead,), None, facts, rows, (lambda: sensitivity_bars(found),), (), found.notes, more)


@card_of.register
def _(steps: Steps) -> Card:
    """A sensitivity analysis: how many nodes must stay float."""
    goal = f"{label(steps.metric)} {number(steps.threshold)}"
    subtitle = f"{counted(len(steps.nodes), 'node')} left float one after another, {counted(steps.errors.samples, 'sample')}"
    lead = f"{goal} is met with {counted(steps.met, 'node')} left float." if steps.met is not None else f"{goal} is not met."
    rows = table("each step", steps_table(steps), folded=True)
    facts = provenance_facts(steps.provenance)
    return Card(
        "Steps", subtitle, (lead,), steps.met is not None, facts, rows, (lambda: sensitivity_steps(steps),), (), steps.notes,
        "steps.nodes[:steps.met] are to be left float" if steps.met else "",
    )  # fmt: skip


@card_of.register
def _(samples: Samples) -> Card:
    """The worst samples."""
    subtitle = f"the worst of {samples.errors.samples} by {samples.metric}"
    sentence = flip_sentence(samples)
    lead = (f"{sentence[0].upper()}{sentence[1:]}.",) if sentence else ()
    charts = (lambda: worst_samples(samples),) if samples.worst else ()
    rows = table("", sample_table(samples))
    return Card("Samples", subtitle, lead, None, provenance_facts(samples.provenance), rows, charts, (), samples.notes)


@card_of.register
def _(profile: Profile) -> Card:
    """The values of a tensor."""
    charts = [lambda: weight_histogram(profile) if profile.role == "weights" else output_histogram(profile)]
    if profile.error is not None and profile.role != "weights":
        charts.append(lambda: error_histogram(profile))
    if profile.channels is not None:
        charts.append(lambda: channel_boxes(profile))
    subtitle = f"{profile.role} of {profile.op_name} {profile.node}"
    return Card(
        "Profile", subtitle, tables=table("", profile_table([profile]), without=("role", "operator", "node")), charts=charts
    )


@card_of.register
def _(scores: Scores) -> Card:
    """Float against quantized."""
    subtitle = f"{scores.dataset}, {counted(scores.samples, 'sample')}"
    return Card("Scores", subtitle, [_lost(scores)] if _lost(scores) else (), tables=_score_tables(scores))


def _lost(scores: Scores) -> str:
    """Returns what the main metric is in float and quantized, in a sentence; nothing where one of them was not measured."""
    before, after = scores.score("float"), scores.score("quantized")
    if before is None or after is None or not scores.metrics:
        return ""
    metric = scores.metrics[0]
    values = [score.metrics.get(metric, float("nan")) for score in (before, after)]
    if metric in ("top_1", "top_5"):
        difference = f"{points(100 * (values[1] - values[0]))} points"
        return f"{metric}: {percent(values[0])} in float, {percent(values[1])} quantized ({difference})."
    return f"{metric}: {number(values[0])} in float, {number(values[1])} quantized."


def _score_tables(scores: Scores) -> list[Table]:
    timed = any(score.milliseconds == score.milliseconds for score in scores.scores)
    header = ["model", "size", *scores.metrics, "ms"]
    rows = [
        [
            score.name,
            byte_size(score.size),
            *(number(score.metrics.get(name, float("nan"))) for name in scores.metrics),
            number(score.milliseconds, 3),
        ]
        for score in scores.scores
    ]
    return table("", (header, rows), without=() if timed else ("ms",))


@card_of.register
def _(evaluation: Evaluation) -> Card:
    """Several models on the same samples."""
    subtitle = f"{evaluation.dataset}, {counted(evaluation.samples, 'sample')}"
    facts = [("run by", evaluation.runtime)]
    return Card("Evaluation", subtitle, (), None, facts, table("", evaluation.table()), notes=evaluation.notes)


@card_of.register
def _(diagnosis: Diagnosis) -> Card:
    """What is wrong, why, and what to try."""
    code = [suspect.line for suspect in diagnosis.suspects[:1] if suspect.line]
    return Card(
        "Diagnosis", counted(len(diagnosis.suspects), "layer that matters", "layers that matter"), (diagnosis.verdict,),
        diagnosis.sound, (), _suspect_tables(diagnosis.suspects), (), code, diagnosis.notes,
        "diagnosis.suspects[0].evidence has the figures" if diagnosis.suspects else "",
    )  # fmt: skip


def _suspect_tables(suspects: Sequence[Suspect], count: int = _COUNT) -> list[Table]:
    rows = [
        [f"{suspect.op_name} {shortened(suspect.node, 48)}", suspect.cause.replace("_", " "), suspect.words, suspect.remedy]
        for suspect in suspects[:count]
    ]
    left = f", the first {count} of {len(suspects)}" if len(suspects) > count else ""
    return table(f"layers that matter{left}", (["layer", "cause", "why", "try"], rows))


@card_of.register
def _(advice: Advice) -> Card:
    """One thing to try."""
    gain = gain_words(advice)
    facts = [("gain", gain)] if gain else []
    return Card("Advice", "", (advice.words,), None, facts, code=[advice.command] if advice.command else (),
                notes=[advice.how] if advice.how else ())  # fmt: skip


@card_of.register
def _(findings: Findings) -> Card:
    """All that is known about a run, in the order of the report."""
    run, diagnosis = findings.run, findings.diagnosis
    lead = [diagnosis.verdict] if diagnosis is not None else []
    tables = [] if findings.scores is None else _score_tables(findings.scores)
    if diagnosis is not None and diagnosis.suspects:
        tables += _suspect_tables(diagnosis.suspects, 3)
    elif run.layers:
        tables += worst_layers(run)
    outputs = [f"{name} {number(entry.sqnr_db, 3)} dB" for name, entry in output_errors(findings).items()]
    facts = [
        *([("SQNR of the outputs", ", ".join(outputs))] if outputs else []),
        ("known", ", ".join(findings.known()) or "the run alone"),
    ]
    gains = [(each.words, gain_words(each)) for each in findings.advice[:1]]
    advice = [f"{words} ({gain})" if gain else words for words, gain in gains]
    return Card(
        "Findings", f"{findings.name}: {run_subtitle(run)}", [*lead, *(f"To try first: {words}" for words in advice)],
        None if diagnosis is None else diagnosis.sound, facts, tables, _charts(findings), (), (),
        "tflite_qdebug.write_report(findings, path) writes the report",
    )  # fmt: skip


def _charts(findings: Findings) -> list[Any]:
    suspects = suspected_nodes(findings)
    charts: list[Any] = [lambda: layer_errors(findings.run, suspects)] if findings.run.layers else []
    curves = known_curves(findings)
    if curves:
        charts.append(lambda: accumulated_error(curves, marked=suspects))
    return charts


@card_of.register
def _(study: Study) -> Card:
    """A saved run: what is known about it, and where it lies."""
    card: Card = card_of(study.findings)
    more = "study.sensitivity(), study.curves(), study.diagnosis(), study.all(); study.findings has what is known"
    fields = {**card.__dict__, "title": "Study", "facts": [("folder", str(study.folder)), *card.facts], "more": more}
    return Card(**fields)
