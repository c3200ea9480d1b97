"""The verb ``model-explorer``: a saved run as an overlay on the graph that Model Explorer draws."""

from __future__ import annotations

import argparse

from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.findings import Findings
from tflite_qdebug.reports.model_explorer import write_model_explorer


def explorer(arguments: argparse.Namespace, screen: Screen) -> None:
    """Writes node data for each metric, and the mapping for both models side by side."""
    findings = Findings.load(arguments.saved_run)
    folder = Folder(arguments.output or "model_explorer").path
    assert folder is not None
    paths = write_model_explorer(findings, folder)
    screen.say(f"{len(paths)} files in {folder}:")
    for path in paths:
        screen.say(f"  {path.name}")
    shown = next(path for path in paths if path.name.startswith("quantized_"))
    screen.say(f"show one of quantized_*.json with: model-explorer QUANTIZED.tflite --node_data_paths={shown}")
    screen.say("float_*.json are for the float model, and mapping.json keeps both in step when they are shown side by side")
    screen.result({"files": [str(path) for path in paths]})
