"""A gate for continuous integration: whether a run is good enough, and no worse than an earlier one.

What is missing for a check is an error and never a pass.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.findings import Findings, Score, Scores
from tflite_qdebug.reports.outputs import AtOutput, output_errors
from tflite_qdebug.wording import kilobytes, number

__all__ = ["SQNR_TOLERANCE", "Check", "Drop", "check_gate", "junit_xml", "markdown_summary"]

#: By how many dB an output's SQNR may be below the baseline's unless it is said otherwise: what other samples or kernels do.
SQNR_TOLERANCE = 0.5
#: The same of the task metric.
DROP_TOLERANCE = "0.5%"
# Names that stand for every output, in a model with none that is called so.
_ALL_OUTPUTS = ("", "output", "outputs")


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What was checked, ``SQNR of output 'logits'``.
        passed: Whether it is good enough.
        value: What was found.
        limit: What it was held against.
        unit: Of both: ``dB``, ``steps``...; empty where there is none.
        words: One sentence.
    """

    name: str
    passed: bool
    value: float
    limit: float
    unit: str
    words: str


class Drop(NamedTuple):
    """How much a task metric may be worse.

    Attributes:
        amount: As a plain number; of percent, a hundredth.
        percent: True where it was written with ``%``.
    """

    amount: float
    percent: bool

    @classmethod
    def parse(cls, text: str | float) -> Drop:
        """Reads ``0.5%`` or ``0.005``.

        Raises:
            OptionError: For anything else.
        """
        stripped = str(text).strip()
        try:
            amount = float(stripped.removesuffix("%"))
        except ValueError:
            amount = math.nan
        if not (math.isfinite(amount) and amount >= 0):
            raise OptionError(f"got a drop of {text!r}, expected a number of 0 or more, such as 0.5% or 0.005")
        percent = stripped.endswith("%")
        return cls(amount / 100.0 if percent else amount, percent)

    def require_share(self) -> None:
        """Refuses what would be a hundred percentage points or more, which no model misses.

        Raises:
            OptionError: For such a drop.
        """
        if self.amount >= 1.0:
            got = number(100.0 * self.amount if self.percent else self.amount)
            raise OptionError(
                f"got a drop of {got}{'%' if self.percent else ''}, which of a share between 0 and 1 is all there is or more; "
                f"expected less than 1, or percentage points with their sign, such as {got if float(got) < 100 else 1}%"
            )

    def allowed(self, reference: float) -> tuple[float, str]:
        """Returns how much less than ``reference`` is allowed, in the metric's unit, and what that means in words."""
        if 0.0 <= reference <= 1.0:
            self.require_share()
            return self.amount, f"{number(100 * self.amount, 3)} percentage points"
        if self.percent:
            return self.amount * abs(reference), f"{number(100 * self.amount, 3)} % of {number(reference)}, which is no share"
        return self.amount, f"{number(self.amount, 3)} in the metric's own unit, since {number(reference)} is no share"


def check_gate(
    findings: Findings,
    *,
    min_sqnr: Mapping[str, float] | float | None = None,
    min_cosine: Mapping[str, float] | float | None = None,
    max_severity: float | None = None,
    max_drop: str | float | None = None,
    lower_is_better: bool = False,
    baseline: Findings | None = None,
    max_sqnr_loss: float | None = None,
    max_new_suspects: int | None = None,
) -> tuple[Check, ...]:
    """Checks a run.

    Args:
        findings: What is known of it.
        min_sqnr: Least SQNR in dB, for each output, or by the output's name; ``output`` stands for all of them.
        min_cosine: Least cosine similarity, the same.
        max_severity: Greatest severity of a layer, as in `Run.severity`, in steps of 8 bits.
        max_drop: How much less than the float model's the main task metric of the quantized model may be. Of a metric that is a
            share, 0..1, ``0.5%`` are percentage points and the same as 0.005. Of any other, ``0.5%`` is of the float model's
            value, and a plain number in the metric's own unit.
        lower_is_better: The task metric is better where it is lower, as a loss is.
        baseline: An earlier run of the same model, to which this one is held: outputs, task metric, and suspects, as far as the
            baseline has them.
        max_sqnr_loss: By how many dB an output may be below the baseline's; None: `SQNR_TOLERANCE`.
        max_new_suspects: How many layers the diagnosis may suspect that it did not suspect in the baseline; None: none.

    Returns:
        What was checked, never nothing.

    Raises:
        OptionError: Where nothing is to be checked, for an unknown output, a baseline of another model, and where what is to be
            checked was not measured.
    """
    if baseline is None and (max_sqnr_loss is not None or max_new_suspects is not None):
        raise OptionError("got how much worse than a baseline the run may be, and no baseline; expected --baseline RUN too")
    checks: list[Check] = []
    if min_sqnr is not None:
        checks += _least(findings, "sqnr_db", "SQNR", "dB", min_sqnr)
    if min_cosine is not None:
        checks += _least(findings, "cosine", "cosine", "", min_cosine)
    if max_severity is not None:
        checks.append(_severity(findings, max_severity))
    drop = None if max_drop is None else Drop.parse(max_drop)
    if drop is not None:
        checks.append(_drop(findings, drop, lower_is_better))
    if baseline is not None:
        loss = SQNR_TOLERANCE if max_sqnr_loss is None else max_sqnr_loss
        if not loss >= 0:
            raise OptionError(f"got a loss of {loss} dB, expected 0 or more")
        if max_sqnr_loss is not None:
            _required_outputs(baseline, "the comparison of outputs")
        if max_new_suspects is not None and baseline.diagnosis is None:
            raise OptionError(f"the baseline {baseline.name!r} has no diagnosis; 'tflite-qdebug runall' makes it")
        checks += _against(findings, baseline, loss, drop, max_new_suspects or 0, lower_is_better)
    if not checks:
        raise OptionError(
            "got nothing to check, expected one of --min-sqnr, --min-cosine, --max-severity, --max-drop, --baseline"
        )
    return tuple(checks)


def _required_outputs(findings: Findings, what: str) -> dict[str, AtOutput]:
    found = output_errors(findings)
    if not found:
        raise OptionError(
            f"{what} needs the error at the outputs, and run {findings.name!r} has none; 'tflite-qdebug runall', or "
            "'tflite-qdebug run --float ... --quantized ... --parts', measures it"
        )
    return found


def _least(findings: Findings, field: str, title: str, unit: str, limits: Mapping[str, float] | float) -> Iterator[Check]:
    found = _required_outputs(findings, f"a least {title}")
    given = dict(limits) if isinstance(limits, Mapping) else {"": float(limits)}
    wanted: dict[str, float] = {}
    for name, limit in given.items():
        if math.isnan(limit):
            raise OptionError(f"got {limit} as the least {title}, expected a number")
        if name in found:
            wanted[name] = limit
        elif name in _ALL_OUTPUTS:
            wanted = {**dict.fromkeys(found, limit), **wanted}
        else:
            known = ", ".join(map(repr, found))
            raise OptionError(f"got output {name!r}, expected one of {known}.{did_you_mean(name, found)}")
    for name, limit in wanted.items():
        entry = found[name]
        value = getattr(entry, field)
        passed = not entry.broken and (math.isnan(value) or value >= limit)
        words = f"{_worded(value, unit, entry)} over {entry.samples} samples, expected {_with(limit, unit)} or more"
        yield Check(f"{title} of output {name!r}", passed, value, limit, unit, words)


def _worded(value: float, unit: str, entry: AtOutput) -> str:
    if entry.broken:
        return "values are NaN or infinite"
    return "neither signal nor error" if math.isnan(value) else _with(value, unit)


def _with(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def _severity(findings: Findings, limit: float) -> Check:
    if math.isnan(limit):
        raise OptionError("got NaN as the greatest severity, expected a number")
    run = findings.run
    if not run.layers:
        raise OptionError(f"run {findings.name!r} has no layers whose severity could be checked")
    severity = np.where(_broken_layers(findings), np.inf, run.severity())
    if np.isnan(severity).all():
        raise OptionError(f"the severity of no layer of run {findings.name!r} is known: nothing was measured")
    worst = run.worst("severity", 1)[0]
    beyond = int((severity > limit).sum())
    found = f"{number(severity[worst])} steps at layer {run.layers[worst].node!r}"
    more = f", and {beyond - 1} more beyond it" if beyond > 1 else ""
    words = f"{found}{more}, expected {number(limit)} or less"
    return Check("severity of layers", beyond == 0, float(severity[worst]), limit, "steps", words)


def _broken_layers(findings: Findings) -> np.ndarray:
    return np.asarray(~np.isfinite(findings.run.statistics.sums).all(axis=1))


def _main_metric(findings: Findings, what: str) -> tuple[Scores, str, Score, Score]:
    """Returns the scores, the main metric, the float and the quantized model's."""
    scores = findings.scores
    floating, quantized = (scores.score(name) if scores else None for name in ("float", "quantized"))
    if scores is None or not scores.metrics or floating is None or quantized is None:
        raise OptionError(
            f"{what} needs the scores of the float and the quantized model, and run {findings.name!r} has none; "
            "'tflite-qdebug runall ... --evaluation-data DATA' measures them"
        )
    metric = scores.metrics[0]
    for score in (floating, quantized):
        if metric not in score.metrics:
            raise OptionError(f"the {score.name} model of run {findings.name!r} has no value of the main metric {metric!r}")
    return scores, metric, floating, quantized


def _drop(findings: Findings, drop: Drop, lower_is_better: bool) -> Check:
    scores, metric, floating, quantized = _main_metric(findings, "a greatest drop")
    values = floating.metrics[metric], quantized.metrics[metric]
    return _dropped(f"drop of {metric}", metric, values, "the float model", drop, lower_is_better, scores.samples)


def _dropped(
    name: str, metric: str, values: tuple[float, float], what: str, drop: Drop, lower_is_better: bool, samples: int
) -> Check:
    """Checks a value against a reference: ``values`` are reference, value."""
    reference, value = values
    lost = value - reference if lower_is_better else reference - value
    allowed, words = drop.allowed(reference)
    # What was written in decimals is met by what is as much worse in decimals, whatever binary fractions make of it.
    passed = bool(lost <= allowed + 1e-12 * max(1.0, abs(reference)))
    direction = "rose" if lower_is_better == (lost >= 0) else "fell"
    found = (
        f"{metric} is {number(reference)} of {what} and {number(value)} now: {direction} by {number(abs(lost), 3)} over "
        f"{samples} samples, expected {words} at most"
    )
    return Check(name, passed, lost, allowed, "", found)


def _against(
    findings: Findings, baseline: Findings, loss: float, drop: Drop | None, new_suspects: int, lower_is_better: bool
) -> list[Check]:
    ours, theirs = ({layer.node for layer in one.run.layers} for one in (findings, baseline))
    if ours and theirs and not ours & theirs:
        raise OptionError(
            f"the baseline {baseline.name!r} is of another model: none of its {len(theirs)} layers is among the {len(ours)} of "
            f"run {findings.name!r}"
        )
    checks = list(_outputs_against(findings, baseline, loss))
    if baseline.scores is not None:
        checks.append(_score_against(findings, baseline, drop or Drop.parse(DROP_TOLERANCE), lower_is_better))
    if baseline.diagnosis is not None:
        checks.append(_suspects_against(findings, baseline, new_suspects))
    if not checks:
        raise OptionError(
            f"the baseline {baseline.name!r} has neither the error at the outputs, nor scores, nor a diagnosis, so there is "
            "nothing to hold this run against; 'tflite-qdebug runall' makes them"
        )
    return checks


def _outputs_against(findings: Findings, baseline: Findings, loss: float) -> Iterator[Check]:
    before = output_errors(baseline)
    if not before:
        return
    now = _required_outputs(findings, "the baseline")
    for name, old in before.items():
        if name not in now:
            raise OptionError(
                f"the baseline has an output {name!r}, which this run has not; it has {', '.join(map(repr, now))}."
                f"{did_you_mean(name, now)}"
            )
        new = now[name]
        limit = old.sqnr_db - loss
        # A baseline that was broken is no yardstick: anything that is not broken is no worse.
        passed = not new.broken and (old.broken or math.isnan(new.sqnr_db) or not new.sqnr_db < limit)
        if math.isnan(old.sqnr_db) and not old.broken:  # there was no error at all
            passed = not new.broken and math.isnan(new.sqnr_db)
        was, is_ = (_worded(entry.sqnr_db, "dB", entry) for entry in (old, new))
        words = f"{was} in the baseline, {is_} now, expected at most {number(loss, 3)} dB less"
        yield Check(f"SQNR of output {name!r} against the baseline", passed, new.sqnr_db, limit, "dB", words)


def _score_against(findings: Findings, baseline: Findings, drop: Drop, lower_is_better: bool) -> Check:
    scores, metric, _, now = _main_metric(findings, "the baseline")
    _, old_metric, _, before = _main_metric(baseline, "the comparison with it")
    if metric != old_metric:
        raise OptionError(f"the baseline's main metric is {old_metric!r}, and this run's is {metric!r}; expected the same")
    values = before.metrics[metric], now.metrics[metric]
    name = f"{metric} of the quantized model against the baseline"
    return _dropped(name, metric, values, "the baseline", drop, lower_is_better, scores.samples)


def _suspects_against(findings: Findings, baseline: Findings, limit: int) -> Check:
    if findings.diagnosis is None:
        raise OptionError(
            f"the baseline has a diagnosis, and run {findings.name!r} has none; 'tflite-qdebug runall', or 'diagnose', makes it"
        )
    assert baseline.diagnosis is not None
    known = {suspect.node for suspect in baseline.diagnosis.suspects}
    new = list(dict.fromkeys(s.node for s in findings.diagnosis.suspects if s.node not in known))
    listed = ": " + ", ".join(map(repr, new[:3])) + (", ..." if len(new) > 3 else "") if new else ""
    words = f"{len(new)} layers are suspect that were not in the baseline{listed}; expected {limit} at most"
    return Check("new suspects against the baseline", len(new) <= limit, float(len(new)), float(limit), "layers", words)


# -- for machines and for people -------------------------------------------------------------------------------------------

# XML 1.0 has no place for these, escaped or not.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def junit_xml(checks: Sequence[Check], suite: str) -> str:
    """Returns the checks as JUnit's XML, which most CI systems show: one test case each.

    Args:
        checks: As `check_gate` gives them.
        suite: What the suite is called.
    """
    failures = sum(not check.passed for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failures), "errors": "0", "skipped": "0", "time": "0"}
    root = ET.Element("testsuites", {"name": _in_xml(suite), **counts})
    element = ET.SubElement(root, "testsuite", {"name": _in_xml(suite), **counts})
    for check in checks:
        attributes = {"classname": _in_xml(suite), "name": _in_xml(check.name), "time": "0"}
        case = ET.SubElement(element, "testcase", attributes)
        words = _in_xml(check.words)
        if check.passed:
            ET.SubElement(case, "system-out").text = words
        else:
            ET.SubElement(case, "failure", {"message": words, "type": "gate"}).text = words
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _in_xml(text: str) -> str:
    return _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown_summary(checks: Sequence[Check], findings: Findings, baseline: Findings | None = None) -> str:
    """Returns the checks, the scores and what is suspect as Markdown, for the summary of a CI job or a comment."""
    failed = [check for check in checks if not check.passed]
    result = f"failed: {len(failed)} of {len(checks)} checks" if failed else f"passed: {len(checks)} checks"
    lines = [f"## Quantization of {_in_markdown(findings.name)} {result}", ""]
    lines += _markdown_table(
        ["", "check", "found"],
        [["✅" if check.passed else "❌", check.name, check.words] for check in sorted(checks, key=lambda c: c.passed)],
    )
    lines += _score_lines(findings, baseline)
    if findings.diagnosis is not None:
        lines += ["", f"**{_in_markdown(findings.diagnosis.verdict)}**", ""]
        for suspect in findings.diagnosis.suspects[:5]:
            lines.append(
                f"- {_in_markdown(suspect.op_name)} {_in_markdown(suspect.node)}: {_in_markdown(suspect.words)} "
                f"{_in_markdown(suspect.remedy)}"
            )
    lines += ["", *(f"_{_in_markdown(note)}_" for note in _notes(findings, baseline))]
    return "\n".join(lines).rstrip() + "\n"


def _score_lines(findings: Findings, baseline: Findings | None) -> list[str]:
    if findings.scores is None:
        return []
    metrics = findings.scores.metrics
    rows = [[score.name, kilobytes(score.size), *_values(score, metrics)] for score in findings.scores.scores]
    before = baseline.scores.score("quantized") if baseline and baseline.scores else None
    if before is not None:
        rows.append(["quantized, in the baseline", kilobytes(before.size), *_values(before, metrics)])
    return ["", *_markdown_table(["model", "size kB", *metrics], rows)]


def _values(score: Score, metrics: Sequence[str]) -> list[str]:
    return [number(score.metrics[name]) if name in score.metrics else "-" for name in metrics]


def _notes(findings: Findings, baseline: Findings | None) -> list[str]:
    if baseline is None:
        return []
    sides = [one.run.provenance.get("debug_dataset") for one in (baseline, findings)]
    if sides[0] == sides[1]:
        return []
    return [f"The baseline was measured on other samples ({sides[0]}) than this run ({sides[1]})."]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(map(_in_markdown, row)) + " |" for row in rows)]


def _in_markdown(text: str) -> str:
    """Returns a text as Markdown shows it, whatever a layer is called."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", escaped)
