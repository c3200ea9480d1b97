"""The verb ``gate``: whether a run is good enough, for continuous integration."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from tflite_qdebug.cli.output import Screen
from tflite_qdebug.errors import LimitError, OptionError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.gate import Check, check_gate, junit_xml, markdown_summary
from tflite_qdebug.wording import number


def gate(arguments: argparse.Namespace, screen: Screen) -> None:
    """Checks a saved run.

    Raises:
        LimitError: Where a check fails, after everything is written.
    """
    findings = Findings.load(arguments.saved_run)
    baseline = Findings.load(arguments.baseline) if arguments.baseline else None
    checks = check_gate(
        findings,
        min_sqnr=limits(arguments.min_sqnr, "--min-sqnr"),
        min_cosine=limits(arguments.min_cosine, "--min-cosine"),
        max_severity=arguments.max_severity,
        max_drop=arguments.max_drop,
        lower_is_better=arguments.lower_is_better,
        baseline=baseline,
        max_sqnr_loss=arguments.max_sqnr_loss,
        max_new_suspects=arguments.max_new_suspects,
    )
    if arguments.junit:
        write_atomically(arguments.junit, junit_xml(checks, f"tflite-qdebug {findings.name}").encode())
    if arguments.summary:
        write_atomically(arguments.summary, markdown_summary(checks, findings, baseline).encode())
    show(screen, checks)
    screen.result({"passed": all(c.passed for c in checks), "checks": [dataclasses.asdict(check) for check in checks]})
    failed = [check for check in checks if not check.passed]
    if failed:
        names = "; ".join(check.name for check in failed[:3]) + ("; ..." if len(failed) > 3 else "")
        raise LimitError(f"{len(failed)} of {len(checks)} checks failed: {names}")


def limits(texts: Sequence[str] | None, option: str) -> dict[str, float] | None:
    """Returns what was given as ``OUTPUT:X``, or ``X`` for all outputs, by output; an output's name may hold colons.

    Raises:
        OptionError: For a text without a number.
    """
    if texts is None:
        return None
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition(":")
        try:
            found[name] = float(value)
        except ValueError:
            raise OptionError(f"got {option} {text!r}, expected a number, or OUTPUT:NUMBER") from None
    return found


def show(screen: Screen, checks: Sequence[Check]) -> None:
    """Prints what was checked, what failed first."""
    rows = [
        ["ok" if check.passed else "FAILED", check.name, number(check.value), number(check.limit), check.unit]
        for check in sorted(checks, key=lambda check: check.passed)
    ]
    screen.table(["result", "check", "found", "limit", "unit"], rows)
    for check in checks:
        if not check.passed:
            screen.say(f"{check.name}: {check.words}")
    screen.say(f"{sum(check.passed for check in checks)} of {len(checks)} checks passed")
