"""What a search for remedies found, as tables, as sentences, and as data: what was reached, what it costs, what is proved."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from tflite_qdebug.outcome import Candidate, Difference, Measured, Outcome
from tflite_qdebug.reports.glossary import GLOSSARY, heading, task_term
from tflite_qdebug.reports.tables import write_columns
from tflite_qdebug.wording import byte_size, number, percent, points, probability, shortened, signed

__all__ = [
    "beyond_chance",
    "candidates_table",
    "debug_twin",
    "difference_words",
    "edgetpu_share",
    "evaluation_goal",
    "float_model",
    "front_table",
    "goal_words",
    "is_better",
    "main_metric",
    "measured",
    "metric_words",
    "missed_words",
    "outcome_data",
    "plain_int8",
    "proof_rows",
    "proof_table",
    "recipe_words",
    "size_change",
    "summary",
    "write_candidates_csv",
]

# Goals that are on what a model costs, and not among the metrics of its candidates; and what the candidates call them.
_COSTS = {"size": "size", "latency": "milliseconds", "float_operators": "float_operators"}
# Below it a difference is said to be beyond chance: one in twenty such differences is not.
_CHANCE = 0.05
_NAMES = {"float": "float", "int8": "plain int8"}


# -- what is what ----------------------------------------------------------------------------------------------------------


def main_metric(outcome: Outcome) -> str:
    """Returns the metric that the candidates are judged by; empty where there is none."""
    return next(iter(outcome.metrics), "")


def float_model(outcome: Outcome) -> Candidate | None:
    """Returns the float model among the candidates."""
    return next((candidate for candidate in outcome.candidates if candidate.kind == "float"), None)


def plain_int8(outcome: Outcome) -> Candidate | None:
    """Returns the quantized model without any remedy among the candidates."""
    return next((candidate for candidate in outcome.candidates if candidate.kind == "int8"), None)


def measured(candidate: Candidate | None, metric: str) -> Measured:
    """Returns a metric of a candidate, all NaN where it was not measured."""
    found = None if candidate is None else candidate.metrics.get(metric)
    return found or Measured(math.nan)


def size_change(outcome: Outcome, candidate: Candidate) -> float:
    """Returns the size of a candidate against plain int8, as a share of that: 0.08 is 8 % more; NaN where there is none."""
    base = plain_int8(outcome)
    return candidate.size / base.size - 1.0 if base is not None and base.size > 0 else math.nan


def edgetpu_share(candidate: Candidate) -> float:
    """Returns the share of the operators that map to the Edge TPU, 0..1; NaN where that was not asked for."""
    if candidate.edgetpu_operators is None or not candidate.operators:
        return math.nan
    return candidate.edgetpu_operators / candidate.operators


def is_better(outcome: Outcome, metric: str, value: float, other: float) -> bool:
    """Returns whether a value of a metric is better than another."""
    return value > other if _large_is_good(outcome, metric) else value < other


def _large_is_good(outcome: Outcome, metric: str) -> bool:
    return outcome.large_is_good.get(metric, metric not in _COSTS)


def _value(candidate: Candidate, name: str) -> float:
    """Returns what a candidate has of a metric, or of a cost."""
    if name in candidate.metrics or name not in _COSTS:
        return measured(candidate, name).value
    return float(getattr(candidate, _COSTS[name]))


def debug_twin(outcome: Outcome, candidate: Candidate) -> Candidate | None:
    """Returns the candidate that a model of the proof is, which has the figures on the debug samples."""
    if candidate.sha256:
        for other in outcome.candidates:
            if other.sha256 == candidate.sha256:
                return other
    kin = [other for other in outcome.candidates if other.name == candidate.name]
    return kin[0] if kin else None


def evaluation_goal(outcome: Outcome, metric: str) -> float:
    """Returns what the target asks for on the evaluation samples, where float and plain int8 have other values; else NaN."""
    goal, clause = outcome.goals.get(metric, math.nan), _clause(outcome.target, metric)
    base = re.search(r"\b(float|int8)\b", clause)
    if base is None:
        return goal
    there = next((candidate for candidate in outcome.proof if candidate.kind == base[1]), None)
    here = float_model(outcome) if base[1] == "float" else plain_int8(outcome)
    before, after = measured(here, metric).value, measured(there, metric).value
    if "*" in clause:
        return goal * after / before if before else math.nan
    return goal + after - before


def _clause(target: str, metric: str) -> str:
    found = re.search(rf"(?:^|,)\s*{re.escape(metric)}\s*[<>]=([^,]*)", target)
    return found[1] if found else ""


# -- words -----------------------------------------------------------------------------------------------------------------


def _is_share(metric: str) -> bool:
    return metric in GLOSSARY and GLOSSARY[metric].kind == "share"


def _unit(metric: str) -> str:
    term = GLOSSARY[task_term(metric)]
    return term.unit if term.suffix is None else term.suffix


def metric_words(metric: str, value: float) -> str:
    """Returns a value of a metric, or of a cost, with its unit: ``81.5 %``, ``12.3 dB``, ``2.90 MB``."""
    if math.isnan(value):
        return "-"
    if _is_share(metric):
        return percent(value)
    if metric == "size":
        return byte_size(value)
    unit = {"latency": "ms", "float_operators": "operators"}.get(metric) or _unit(metric)
    return f"{number(value)} {unit}".rstrip()


def difference_words(metric: str, value: float) -> str:
    """Returns a difference of two values of a metric with sign and unit: ``-0.5 points``, ``+1.2 dB``."""
    if math.isnan(value):
        return "-"
    if _is_share(metric):
        return f"{points(100.0 * value)} points"
    return f"{signed(value)} {_unit(metric)}".rstrip()


def _amount_words(metric: str, value: float) -> str:
    """Returns the size of a difference with its unit."""
    if metric in _COSTS:
        return metric_words(metric, abs(value))
    return difference_words(metric, abs(value)).lstrip("+").replace("1.0 points", "1 point")


def _interval(metric: str, found: Measured) -> str:
    if math.isnan(found.low) or math.isnan(found.high):
        return "-"
    factor = 100.0 if _is_share(metric) else 1.0
    return f"{number(factor * found.low, 3)} to {number(factor * found.high, 3)}"


def _signed_interval(metric: str, found: Difference) -> str:
    if math.isnan(found.low) or math.isnan(found.high):
        return "-"
    written = points if _is_share(metric) else signed
    factor = 100.0 if _is_share(metric) else 1.0
    return f"{written(factor * found.low)} to {written(factor * found.high)}"


def _p_words(value: float) -> str:
    return f"p {probability(value)}" if value < 0.001 else f"p = {probability(value)}"


def beyond_chance(difference: Difference | None) -> bool | None:
    """Returns whether a difference is more than another choice of samples explains; None where that was not tested.

    By the paired test where there is one (p at most 0.05), else by whether the 90 % interval leaves out zero.
    """
    if difference is None:
        return None
    if not math.isnan(difference.p_value):
        return difference.p_value <= _CHANCE
    if math.isnan(difference.low) or math.isnan(difference.high):
        return None
    return difference.low > 0.0 or difference.high < 0.0


def _samples(count: int, which: str) -> str:
    return f"{count} {which} sample{'s' if count != 1 else ''}" if count else f"the {which} samples"


def goal_words(outcome: Outcome) -> str:
    """Returns the goals as numbers: ``top_1 at least 81.5 %, size at most 2.93 MB``."""
    parts = [
        f"{name} {'at least' if _large_is_good(outcome, name) else 'at most'} {metric_words(name, goal)}"
        for name, goal in outcome.goals.items()
    ]
    return ", ".join(parts)


def missed_words(outcome: Outcome, candidate: Candidate) -> list[str]:
    """Returns how far a candidate is from each goal that it does not reach."""
    found = []
    for name, goal in outcome.goals.items():
        value, slack = _value(candidate, name), 1e-9 * max(abs(goal), 1.0)
        if math.isnan(value) or math.isnan(goal):
            found.append(f"{name} was not measured")
        elif abs(value - goal) > slack and is_better(outcome, name, goal, value):
            words = "short of" if _large_is_good(outcome, name) else "above"
            found.append(f"{_amount_words(name, goal - value)} {words} {name} {metric_words(name, goal)}")
    return found


def recipe_words(candidate: Candidate) -> list[str]:
    """Returns what was done to a candidate, one entry for each remedy; nothing for float and plain int8."""
    recipe, words = candidate.recipe, []
    if recipe.trained:
        words.append("trained quantization-aware")
    if recipe.equalized:
        words.append("weights of consecutive layers equalized in the float model")
    if not recipe.per_channel:
        words.append("one scale for all channels of weights")
    elif not recipe.per_channel_dense:
        words.append("one scale for all channels of the weights of dense layers")
    if recipe.ranges:
        by = f" ({recipe.ranges_by})" if recipe.ranges_by else ""
        words.append(f"other ranges for {_counted(recipe.ranges, 'activation')}{by}")
    if recipe.split:
        words.append(f"{_counted(recipe.split, 'tensor')} rescaled for one reader")
    if recipe.rounded:
        words.append("weights rounded for the least error at their layer's output")
    if recipe.biases_corrected:
        words.append("biases corrected")
    if recipe.tuned:
        words.append(f"the ranges of {_counted(recipe.tuned, 'activation')} tuned together at the outputs")
    if recipe.int16_nodes:
        words.append(f"{_counted(recipe.int16_nodes, 'node')} with 16-bit activations")
    if recipe.float_nodes:
        kept = ", their weights kept as int8 in the file" if recipe.int8_weights else ""
        words.append(f"{_counted(recipe.float_nodes, 'node')} left float{kept}")
    return words


def _counted(things: Any, name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{number(seconds, 2)} s"


# -- the summary -----------------------------------------------------------------------------------------------------------


def summary(outcome: Outcome) -> str:
    """Returns what a search found, in sentences, a line for each subject: asked, reached, cost, difference, proof, end."""
    best = outcome.candidates[outcome.best]
    lines = [_asked(outcome), _reached(outcome, best), _cost(outcome, best), _against_float(outcome, best)]
    if not outcome.met:
        lines.append(_out_of_reach(outcome, best))
    lines += [_proved(outcome, best), _ended(outcome)]
    return "\n".join(line for line in lines if line)


def _asked(outcome: Outcome) -> str:
    goals = goal_words(outcome)
    return f"Asked for: {outcome.target}" + (f", which is {goals}." if goals else ".")


def _reached(outcome: Outcome, best: Candidate) -> str:
    metric, samples = main_metric(outcome), _samples(outcome.samples, "debug")
    found = measured(best, metric)
    interval = _interval(metric, found)
    more = "" if interval == "-" else f" (90 % interval {interval})"
    others = [
        f"{name} has {metric_words(metric, measured(other, metric).value)}"
        for name, other in (("plain int8", plain_int8(outcome)), ("float", float_model(outcome)))
        if other is not None and other is not best
    ]
    words = f"{metric} {metric_words(metric, found.value)}{more} on {samples}, with {best.name!r}"
    start = "Reached: " if outcome.met else "Best found, which does not meet the target: "
    sentence = f"{start}{words}; {', '.join(others)}." if others else f"{start}{words}."
    if best.kind == "int8":
        sentence += " That is plain int8" + (": nothing needs to be done." if outcome.met else ": no remedy was better.")
    return sentence


def _cost(outcome: Outcome, best: Candidate) -> str:
    base = plain_int8(outcome)
    change = size_change(outcome, best)
    parts = [f"size {byte_size(best.size)}"]
    if base is not None and base is not best and not math.isnan(change):
        against = "the size of" if best.size == base.size else f"{_change_words(change)} than"
        parts = [f"size {byte_size(best.size)}, {against} plain int8 ({byte_size(base.size)})"]
    if best.float_operators:
        islands = f" in {best.islands} island{'s' if best.islands != 1 else ''}" if best.islands else ""
        parts.append(f"{best.float_operators} of {best.operators} operators in float{islands}")
    elif best.kind != "float":
        parts.append("no operator in float")
    if not math.isnan(best.milliseconds):
        other = "" if base is None or base is best or math.isnan(base.milliseconds) else base.milliseconds
        than = f" (plain int8: {number(other, 3)} ms)" if other else ""
        parts.append(f"{number(best.milliseconds, 3)} ms a sample on this machine{than}")
    if best.edgetpu_operators is not None:
        parts.append(f"{best.edgetpu_operators} of {best.operators} operators map to the Edge TPU (predicted)")
    return f"Cost: {'; '.join(parts)}."


def _change_words(change: float) -> str:
    words = percent(abs(change))
    return f"{words} {'more' if change > 0 else 'less'}"


def _against_float(outcome: Outcome, candidate: Candidate, which: str = "debug") -> str:
    metric = main_metric(outcome)
    difference = candidate.differences.get(metric)
    if difference is None or candidate.kind == "float" or math.isnan(difference.value):
        return ""
    samples = _samples(outcome.samples if which == "debug" else outcome.proof_samples, which)
    return f"Against float, on the same {samples}: {_difference_sentence(outcome, metric, difference)}."


def _difference_sentence(outcome: Outcome, metric: str, difference: Difference) -> str:
    """Returns how far a model is from float, and whether that is beyond chance."""
    if difference.value == 0.0:
        words = "no difference"
    else:
        verdict = "better" if is_better(outcome, metric, difference.value, 0.0) else "worse"
        words = f"{_amount_words(metric, difference.value)} {verdict}"
    interval = _signed_interval(metric, difference)
    details = [] if interval == "-" else [f"90 % interval of the difference {interval}"]
    details += [] if math.isnan(difference.p_value) else [_p_words(difference.p_value)]
    words += f" ({'; '.join(details)})" if details else ""
    beyond = beyond_chance(difference)
    if beyond is None:
        return f"{words}; whether that is chance was not tested"
    if beyond:
        return f"{words}: beyond chance"
    return f"{words}: so many samples cannot tell that from chance"


def _out_of_reach(outcome: Outcome, best: Candidate) -> str:
    metric = main_metric(outcome)
    missed = missed_words(outcome, best)
    words = f"The target was not met: {', '.join(missed)}." if missed else "The target was not met."
    bounds = [
        f"{bound.name} {metric_words(metric, measured(bound, metric).value)}"
        f"{'' if bound.met else ', which does not meet it either'}"
        for bound in outcome.upper_bounds
        if not is_better(outcome, metric, measured(best, metric).value, measured(bound, metric).value)  # no bound, as it proved
    ]
    return words + (f" Upper bounds: {'; '.join(bounds)}." if bounds else "")


def _proved(outcome: Outcome, best: Candidate) -> str:
    metric = main_metric(outcome)
    if not outcome.proof:
        return (
            "Not proved: there were no evaluation samples that the search had not seen (--evaluation-data). It chose by the "
            "debug samples, so that their figure flatters."
        )
    rows = proof_rows(outcome)
    parts = [
        f"{label} {metric_words(metric, measured(there, metric).value)}"
        f" (debug {metric_words(metric, measured(here, metric).value)})"
        for label, there, here in rows
    ]
    samples = _samples(outcome.proof_samples, "evaluation")
    line = f"Proof, on {samples} that the search never saw: {metric} {', '.join(parts)}."
    fixed = rows[-1][1]
    line += _there(outcome, metric, fixed)
    further = "" if fixed is None else _against_float(outcome, fixed, "evaluation")
    return f"{line}\n{further}" if further else line


def _there(outcome: Outcome, metric: str, fixed: Candidate | None) -> str:
    """Returns whether the target is met on the evaluation samples too, where float has another value."""
    goal, value = evaluation_goal(outcome, metric), measured(fixed, metric).value
    if math.isnan(goal) or math.isnan(value):
        return ""
    where = f"the target there is {metric_words(metric, goal)}"
    if abs(goal - value) <= 1e-9 * max(abs(goal), 1.0) or not is_better(outcome, metric, goal, value):
        return f" There it meets the target: {where}."
    return f" There it misses the target by {_amount_words(metric, goal - value)}: {where}."


def _ended(outcome: Outcome) -> str:
    took = _duration(outcome.seconds)
    tried = f"{_counted(outcome.candidates, 'candidate')} tried" + (f" in {took}" if took else "")
    words = {
        "time": "The time was up before the search was through: this is the best so far",
        "interrupted": "The search was interrupted: this is the best so far",
        "out of reach": "The search ended without finding more",
    }.get(outcome.stopped)
    return f"{words}; {tried}." if words else f"{tried[0].upper()}{tried[1:]}."


# -- tables ----------------------------------------------------------------------------------------------------------------


def candidates_table(
    outcome: Outcome, positions: Sequence[int] | None = None, name_width: int = 48
) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the candidates, as text, in the order in which they were tried.

    Args:
        outcome: Of a search.
        positions: Of those to be shown; None: all.
        name_width: Of a candidate's name, in characters.
    """
    chosen = range(len(outcome.candidates)) if positions is None else positions
    shown = [outcome.candidates[position] for position in chosen]
    main, others = main_metric(outcome), outcome.metrics[1:]
    timed = any(not math.isnan(candidate.milliseconds) for candidate in outcome.candidates)
    mapped = any(candidate.edgetpu_operators is not None for candidate in outcome.candidates)
    header = ["#", "candidate", heading(main), "interval", "vs float", "its interval", "p", *map(heading, others)]
    header += ["size", "vs int8 %", *(["ms"] if timed else []), "float ops", "islands", *(["Edge TPU %"] if mapped else [])]
    rows = []
    for position, candidate in zip(chosen, shown, strict=True):
        found, difference = measured(candidate, main), candidate.differences.get(main, Difference(math.nan))
        row = [str(position), shortened(candidate.name, name_width), metric_words(main, found.value), _interval(main, found)]
        row += [difference_words(main, difference.value), _signed_interval(main, difference), probability(difference.p_value)]
        row += [metric_words(name, measured(candidate, name).value) for name in others]
        row += [byte_size(candidate.size), signed(100.0 * size_change(outcome, candidate))]
        row += [number(candidate.milliseconds, 3)] if timed else []
        row += [f"{candidate.float_operators}/{candidate.operators}", str(candidate.islands)]
        row += [number(100.0 * edgetpu_share(candidate), 3)] if mapped else []
        rows.append([*row, *_marks(outcome, position)])
    return [*header, "met", ""], rows


def _marks(outcome: Outcome, position: int) -> list[str]:
    mark = "* handed back" if position == outcome.best else "front" if position in outcome.front else ""
    return ["yes" if outcome.candidates[position].met else "no", mark]


def front_table(outcome: Outcome, name_width: int = 48) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the Pareto front, smallest first: none is better at the same size or a smaller one."""
    return candidates_table(outcome, outcome.front, name_width)


def proof_rows(outcome: Outcome) -> list[tuple[str, Candidate | None, Candidate | None]]:
    """Returns ``(what it is, on the evaluation samples, on the debug samples)``: float, plain int8, and fixed as the last."""
    best = outcome.candidates[outcome.best]
    rows: list[tuple[str, Candidate | None, Candidate | None]] = []
    fixed = None
    for candidate in outcome.proof:
        twin = debug_twin(outcome, candidate)
        if twin is best:
            fixed = candidate
        elif candidate.kind in _NAMES:
            rows.append((_NAMES[candidate.kind], candidate, twin))
    if not outcome.proof:
        known = (("float", float_model(outcome)), ("plain int8", plain_int8(outcome)))
        rows = [(name, None, found) for name, found in known if found is not None and found is not best]
    if fixed is None and outcome.proof and outcome.proof[-1].kind not in _NAMES:
        fixed = outcome.proof[-1]
    name = f"fixed ({_NAMES[best.kind]})" if best.kind in _NAMES else "fixed"
    return [*rows, (name, fixed, best)]


def proof_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of float, plain int8 and fixed: on the evaluation samples, and beside them on the debug ones."""
    header = ["model", "metric", f"evaluation ({outcome.proof_samples})", "interval", "vs float", "its interval", "p"]
    header += [f"debug ({outcome.samples})", "interval there"]
    rows = []
    for name, there, here in proof_rows(outcome):
        for metric in outcome.metrics:
            proved, debugged = measured(there, metric), measured(here, metric)
            difference = (there.differences if there else {}).get(metric, Difference(math.nan))
            rows.append(
                [
                    name,
                    metric,
                    metric_words(metric, proved.value),
                    _interval(metric, proved),
                    difference_words(metric, difference.value),
                    _signed_interval(metric, difference),
                    probability(difference.p_value),
                    metric_words(metric, debugged.value),
                    _interval(metric, debugged),
                ]
            )
    return header, rows


# -- data ------------------------------------------------------------------------------------------------------------------


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Returns the outcome for JSON: all that it holds, whether it is met, and the summary in sentences."""
    return {"summary": summary(outcome).splitlines(), "met": outcome.met, **dataclasses.asdict(outcome)}


def write_candidates_csv(outcome: Outcome, path: str | os.PathLike[str]) -> None:
    """Writes all candidates as CSV, in the order in which they were tried; shares between 0 and 1, sizes in bytes.

    Raises:
        OutputError: Where it cannot be written.
    """
    candidates = outcome.candidates
    columns: dict[str, list[Any]] = {
        "position": list(range(len(candidates))),
        "candidate": [candidate.name for candidate in candidates],
        "kind": [candidate.kind for candidate in candidates],
    }
    for metric in outcome.metrics:
        values = [measured(candidate, metric) for candidate in candidates]
        differences = [candidate.differences.get(metric, Difference(math.nan)) for candidate in candidates]
        columns[metric] = [found.value for found in values]
        columns[f"{metric} low"] = [found.low for found in values]
        columns[f"{metric} high"] = [found.high for found in values]
        columns[f"{metric} less float"] = [found.value for found in differences]
        columns[f"{metric} less float low"] = [found.low for found in differences]
        columns[f"{metric} less float high"] = [found.high for found in differences]
        columns[f"{metric} p"] = [found.p_value for found in differences]
    columns["size"] = [candidate.size for candidate in candidates]
    columns["size vs int8"] = [size_change(outcome, candidate) for candidate in candidates]
    plain = ("milliseconds", "float_operators", "operators", "islands", "edgetpu_operators", "met", "kept", "seconds", "sha256")
    for name in plain:
        columns[name] = [getattr(candidate, name) for candidate in candidates]
    columns["front"] = [position in outcome.front for position in range(len(candidates))]
    columns["best"] = [position == outcome.best for position in range(len(candidates))]
    write_columns(columns, path)
