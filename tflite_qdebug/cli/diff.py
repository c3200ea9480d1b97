"""The verb ``diff``: what has changed between two saved runs."""

from __future__ import annotations

import argparse
import dataclasses

from tflite_qdebug.cli.output import Screen
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.diff import diff, diff_table, output_table, score_table, write_diff_csv, write_diff_html


def diff_runs(arguments: argparse.Namespace, screen: Screen) -> None:
    """Shows what has changed from one saved run to another."""
    result = diff(Findings.load(arguments.old_run), Findings.load(arguments.new_run))
    if arguments.csv:
        write_diff_csv(result, arguments.csv)
    if arguments.html:
        write_diff_html(result, arguments.html)
    screen.say(result.sentence)
    screen.notes(result.notes)
    for title, (header, rows) in (
        ("the models", score_table(result)),
        ("the outputs", output_table(result)),
        (f"the {arguments.count} layers that changed most", diff_table(result, arguments.count)),
    ):
        if rows:
            screen.table(header, rows, title)
    for change in result.provenance:
        screen.say(f"{change.name}: {change.old} -> {change.new}")
    screen.result(dataclasses.asdict(result))
