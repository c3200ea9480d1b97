"""What a report says of remedies: what came of a search for them, and without one what to try."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Advice, Findings
from tflite_qdebug.outcome import Candidate, Difference, Measured, Outcome
from tflite_qdebug.record import Run
from tflite_qdebug.reports import remedies
from tflite_qdebug.reports.content.parts import FixVerdict, Section, Table, Tile, Trial
from tflite_qdebug.reports.content.view import View, denylist_line, drawn, figure_of, missing
from tflite_qdebug.reports.diff import Diff, diff
from tflite_qdebug.reports.glossary import GLOSSARY, Figure, Term, figure, task_term
from tflite_qdebug.reports.remedy_charts import front_charts
from tflite_qdebug.wording import percent, shortened

__all__ = ["advice_section", "fix_section", "fix_verdict"]

# Of the layers before and after, those that changed most; the command that is named shows all.
_SHOWN_LAYERS = 60
_BEFORE_AFTER = ("plain int8", "fixed")


def _text(name: str) -> Term:
    """Returns the head of a column of texts."""
    return Term(name, "", "", "")


# The first screen.


def fix_verdict(findings: Findings) -> FixVerdict | None:
    """Returns what came of a search for remedies; None where none was made."""
    outcome = findings.fix
    if outcome is None:
        return None
    metric, proved = remedies.main_metric(outcome), bool(outcome.proof)
    before, after, floating = _sides(outcome)
    name = GLOSSARY[metric].name if metric in GLOSSARY else metric
    values = [remedies.metric_words(metric, remedies.measured(side, metric).value) for side in (before, after, floating)]
    samples = (
        f"{outcome.proof_samples} evaluation samples that the search never saw"
        if proved
        else f"{outcome.samples} debug samples"
    )
    words = f"Remedies bring the {name} from {values[0]} to {values[1]} (float: {values[2]}) on {samples}."
    words += f" The target {outcome.target} is {'met' if outcome.met else 'not met'} on the debug samples"
    holds = _holds(outcome, after)
    if proved and holds is not None and holds != outcome.met:
        words += f", and {'met' if holds else 'missed'} on the evaluation samples"
    tone = "bad" if not outcome.met else "unknown" if holds is False else "good"
    said = remedies.summary(outcome).splitlines()
    against = [line for line in said if line.startswith("Against float")]
    lines = [line for line in said if line.startswith(("Cost:", "The target was not", "Not proved"))] + against[-1:]
    return FixVerdict(tone, f"{words}.", tuple(lines), tuple(_tiles(outcome, before, after, floating)))


def _sides(outcome: Outcome) -> tuple[Candidate | None, Candidate | None, Candidate | None]:
    """Returns plain int8, fixed and float, on the evaluation samples where there are any."""
    if not outcome.proof:
        return remedies.plain_int8(outcome), outcome.candidates[outcome.best], remedies.float_model(outcome)
    rows = remedies.proof_rows(outcome)
    by_kind = {candidate.kind: candidate for candidate in outcome.proof}
    return by_kind.get("int8"), rows[-1][1], by_kind.get("float")


def _holds(outcome: Outcome, after: Candidate | None) -> bool | None:
    """Returns whether the target is met on the evaluation samples; None where that cannot be told."""
    if not outcome.proof:
        return None
    metric = remedies.main_metric(outcome)
    goal, value = remedies.evaluation_goal(outcome, metric), remedies.measured(after, metric).value
    if math.isnan(goal) or math.isnan(value):
        return None
    close = abs(goal - value) <= 1e-9 * max(abs(goal), 1.0)
    return close or not remedies.is_better(outcome, metric, goal, value)


def _tiles(outcome: Outcome, before: Candidate | None, after: Candidate | None, floating: Candidate | None) -> Iterator[Tile]:
    """Yields what was reached and what it costs, before and after."""
    metric = remedies.main_metric(outcome)
    term = task_term(metric)
    title = GLOSSARY[metric].name if term == metric else metric
    best, base = outcome.candidates[outcome.best], remedies.plain_int8(outcome)
    both = _figures(metric, before), _figures(metric, after)
    samples = f"{outcome.proof_samples} evaluation samples" if outcome.proof else f"{outcome.samples} debug samples"
    words = f"float: {remedies.metric_words(metric, remedies.measured(floating, metric).value)}; {samples}"
    yield Tile(f"{title} after the fix", *both, words, not outcome.met, _BEFORE_AFTER)
    if outcome.proof:
        here = _figures(metric, base), _figures(metric, best)
        yield Tile("The same where it was searched", *here, f"{outcome.samples} debug samples; flatters", False, _BEFORE_AFTER)
    if base is not None:
        change = remedies.size_change(outcome, best)
        words = "no larger" if change <= 0 else f"{percent(change)} larger"
        yield Tile("Size", figure("size", base.size), figure("size", best.size), words, False, _BEFORE_AFTER)
        if math.isfinite(base.milliseconds) and math.isfinite(best.milliseconds):
            times = figure("milliseconds", base.milliseconds), figure("milliseconds", best.milliseconds)
            yield Tile("Time", *times, "one sample, this machine", False, _BEFORE_AFTER)
    of = f"of {best.operators}; {best.islands} island{'s' if best.islands != 1 else ''}"
    yield Tile("Operators in float", None, figure("float_operators", best.float_operators), of)
    if best.edgetpu_operators is not None:
        yield Tile(
            "On the Edge TPU", None, figure("edgetpu_share", remedies.edgetpu_share(best)), "of the operators, predicted"
        )


def _figures(metric: str, candidate: Candidate | None) -> Figure:
    name = "" if metric in GLOSSARY else metric
    return figure(task_term(metric), remedies.measured(candidate, metric).value, name)


# The section.


def fix_section(view: View, outcome: Outcome) -> Section:
    """Returns all that is known of a search for remedies."""
    words = (
        "What was tried to give back the accuracy, what each candidate reaches and costs, what was handed back, and what is "
        "proved of it on samples that the search never saw."
    )
    tables = [_proof_table(outcome), _candidates_table(outcome)]
    notes = list(outcome.notes)
    fixed = view.findings.fixed
    if fixed is not None:
        compared = _compared(view.run, fixed)
        if isinstance(compared, str):
            notes.append(compared)
        else:
            tables.append(_layers_table(view, compared))
            notes += compared.notes
    return Section(
        "remedies",
        "Remedies",
        words,
        tuple(drawn(chart) for _, chart in front_charts(outcome)),
        tuple(tables),
        tuple(notes),
        paragraphs=(*remedies.summary(outcome).splitlines(), *_done(outcome)),
        lines=tuple(_lines(outcome)),
    )


def _done(outcome: Outcome) -> tuple[str, ...]:
    done = remedies.recipe_words(outcome.candidates[outcome.best])
    return (f"What was done: {'; '.join(done)}.",) if done else ()


def _lines(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yields what is to be copied: what the search handed out, else the denylist alone."""
    snippets = outcome.provenance.get("snippets")
    if isinstance(snippets, Mapping) and snippets:
        yield from ((str(title), str(text)) for title, text in snippets.items())
        return
    nodes = outcome.candidates[outcome.best].recipe.float_nodes
    if nodes:
        yield "Leave them float", denylist_line(nodes)


def _metric_term(metric: str, name: str = "") -> Term:
    term = GLOSSARY[task_term(metric)]
    return dataclasses.replace(term, name=name or (term.name if task_term(metric) == metric else metric))


def _is_share(metric: str) -> bool:
    return GLOSSARY[task_term(metric)].kind == "share"


def _measured_cells(metric: str, found: Measured, difference: Difference | None) -> list[Figure]:
    """Returns a metric, its interval, and its difference from float with interval and probability."""
    less = difference or Difference(math.nan)
    term, share = _metric_term(metric), _is_share(metric)
    against = (
        dataclasses.replace(GLOSSARY["against_float"], kind="points", unit="points") if share else GLOSSARY["against_float"]
    )
    cells = [figure_of(term, task_term(metric), found.value)]
    cells += [
        figure_of(dataclasses.replace(term, name=f"{term.name}, {end}"), "interval_end", value)
        for end, value in (("90 % from", found.low), ("to", found.high))
    ]
    cells += [
        figure_of(dataclasses.replace(against, name=f"less float{end}"), "against_float", 100.0 * value if share else value)
        for end, value in (("", less.value), (", 90 % from", less.low), (", to", less.high))
    ]
    return [*cells, figure("p_value", less.p_value)]


def _measured_header(metric: str, name: str = "") -> list[Term]:
    unit = "points" if _is_share(metric) else GLOSSARY[task_term(metric)].unit
    term = _metric_term(metric, name)
    ends = [dataclasses.replace(GLOSSARY["interval_end"], name=end, unit=term.unit) for end in ("90 % from", "to")]
    less = [
        dataclasses.replace(GLOSSARY["against_float"], name=f"less float{end}", unit=unit) for end in ("", ", from", ", to")
    ]
    return [term, *ends, *less, GLOSSARY["p_value"]]


def _proof_table(outcome: Outcome) -> Table:
    header = [_text("model"), _text("metric")]
    header += _measured_header(remedies.main_metric(outcome), "on evaluation samples")
    header += [_metric_term(remedies.main_metric(outcome), "on debug samples")]
    rows = []
    for name, there, here in remedies.proof_rows(outcome):
        for metric in outcome.metrics:
            found = remedies.measured(there, metric)
            cells = _measured_cells(metric, found, (there.differences if there else {}).get(metric))
            rows.append((name, metric, *cells, _figures(metric, here)))
    caption = (
        f"Proof: {outcome.proof_samples} evaluation samples that the search never saw, beside the {outcome.samples} debug "
        "samples that it chose by"
    )
    return Table(tuple(header), tuple(rows), caption if outcome.proof else f"On {outcome.samples} debug samples; not proved")


def _candidates_table(outcome: Outcome) -> Table:
    main, others = remedies.main_metric(outcome), outcome.metrics[1:]
    timed = any(math.isfinite(candidate.milliseconds) for candidate in outcome.candidates)
    mapped = any(candidate.edgetpu_operators is not None for candidate in outcome.candidates)
    header = [GLOSSARY["position"], _text("candidate"), _text("place"), _text("done last"), *_measured_header(main)]
    header += [_metric_term(metric) for metric in others] + [GLOSSARY["size"], GLOSSARY["size_change"]]
    header += [GLOSSARY["milliseconds"]] if timed else []
    header += [GLOSSARY["float_operators"], GLOSSARY["islands"]]
    header += [GLOSSARY["edgetpu_share"]] if mapped else []
    rows = []
    for position, candidate in enumerate(outcome.candidates):
        mark = "handed back" if position == outcome.best else "front" if position in outcome.front else ""
        cells: list[Any] = [figure("position", position), shortened(candidate.name, 60), mark, candidate.kind]
        cells += _measured_cells(main, remedies.measured(candidate, main), candidate.differences.get(main))
        cells += [_figures(metric, candidate) for metric in others]
        cells += [figure("size", candidate.size), figure("size_change", remedies.size_change(outcome, candidate))]
        cells += [figure("milliseconds", candidate.milliseconds)] if timed else []
        cells += [figure("float_operators", candidate.float_operators), figure("islands", candidate.islands)]
        if mapped:
            cells.append(figure("edgetpu_share", remedies.edgetpu_share(candidate)))
        rows.append((*cells, "yes" if candidate.met else "no"))
    caption = f"All candidates, on {outcome.samples} debug samples; press a column's name to sort by it"
    return Table((*header, _text("meets target")), tuple(rows), caption, True)


# Before and after, layer by layer.


def _compared(before: Run, after: Run) -> Diff | str:
    """Returns the layers before and after, or why there are none."""
    try:
        return diff(Findings(before, name="before"), Findings(after, name="after"))
    except OptionError as error:
        return f"before and after cannot be compared layer by layer: {error}"


def _layers_table(view: View, found: Diff) -> Table:
    keys = ("severity", "sqnr_db", "rmse_over_scale")
    header = [_text("layer"), _text("operator")]
    for key in keys:
        header += [dataclasses.replace(GLOSSARY[key], name=f"{GLOSSARY[key].name} {when}") for when in ("before", "after")]
    header.insert(4, dataclasses.replace(GLOSSARY["severity"], name="change"))
    rows = []
    order = found.order()
    for position in order[:_SHOWN_LAYERS]:
        layer = found.layers[position]
        cells: list[Any] = [view.link(layer.node, layer.op_name), layer.op_name]
        for key in keys:
            both = (("before", getattr(layer, f"old_{key}")), ("after", getattr(layer, f"new_{key}")))
            cells += [figure(key, value, f"{GLOSSARY[key].name} {when}") for when, value in both]
        signed = dataclasses.replace(GLOSSARY["severity"], name="change", kind="signed", above=None)
        cells.insert(4, figure_of(signed, "severity", layer.change))
        rows.append((*cells, layer.verdict or "not known"))
    some = f" (the {len(rows)} of {len(order)} that changed most)" if len(order) > len(rows) else ""
    caption = f"Layer by layer, before and after{some}: {found.sentence}"
    return Table((*header, _text("verdict")), tuple(rows), caption, True)


# What to try.


def advice_section(view: View) -> Section:
    """Returns what to try, with what it is expected to bring."""
    words = (
        "What could give back accuracy, what is expected to bring most first. Estimates are quick ones, from what was measured "
        "already; gains of several remedies do not add up."
    )
    title, found = "What to try", view.findings.advice
    if found:
        return Section("advice", title, words, trials=tuple(_trial(advice) for advice in found))
    diagnosis = view.findings.diagnosis
    if diagnosis is not None and diagnosis.sound:
        return Section("advice", title, "Nothing: the diagnosis finds nothing wrong.")
    return Section("advice", title, words, missing=missing("advice", "It was not worked out."))


def _trial(advice: Advice) -> Trial:
    gain = None
    if not math.isnan(advice.gain):
        unit = advice.unit or GLOSSARY["gain"].unit
        term = dataclasses.replace(GLOSSARY["gain"], unit=unit, suffix=unit)
        gain = figure_of(term, "gain", advice.gain)
    return Trial(advice.words, gain, advice.at_most, advice.how, advice.command)
