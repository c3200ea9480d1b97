"""The verb ``run`` on models that were quantized elsewhere."""

from __future__ import annotations

import argparse
import re
from typing import Any

from tflite_qdebug.analyses.pairs import pair_errors
from tflite_qdebug.cli.options import QUANTIZING, backend_of
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import plain, progress, show_run, write_run
from tflite_qdebug.errors import OptionError
from tflite_qdebug.record import Run


def run_pair(arguments: argparse.Namespace, screen: Screen) -> None:
    """Measures every signature of a quantized model, against a float model or its own dequantized weights."""
    _refuse_unfit(arguments)
    folder = Folder(arguments.output)
    try:
        runs = pair_errors(
            arguments.float,
            arguments.quantized,
            arguments.debug_data,
            whole_model=arguments.whole_model,
            parts=arguments.parts,
            sequence=arguments.sequence,
            signature_datasets=_by_signature(arguments.signature_data),
            limit=arguments.limit,
            backend=backend_of(arguments),
            progress=progress(arguments),
        )
    except BaseException as error:
        partial = getattr(error, "partial_run", None)
        if partial is not None and folder.path is not None:
            write_run(folder, partial, "partial_")
            screen.say(f"{partial.statistics.samples} samples were measured; they are in {folder.path / 'partial_run.json'}")
        raise
    results: dict[str, Any] = {}
    for name, run in runs.items():
        positions = run.worst(arguments.criterion, arguments.count)
        if len(runs) > 1:
            screen.say(f"=== {name}")
        show_run(screen, run, positions, arguments.criterion)
        part = folder if name == next(iter(runs)) or folder.path is None else Folder(str(folder.path / _as_folder(name)))
        write_run(part, run)
        results[name] = {"worst": positions, **run.to_dict(), "columns": plain(run.columns())}
    folder.write_repeat(arguments.words, provenance={name: run.provenance for name, run in runs.items()})
    if folder.path is not None:
        screen.say(f"results: {folder.path}/layers.csv, run.json, repeat.json" + (_folders(runs) if len(runs) > 1 else ""))
    screen.result(next(iter(results.values())) if len(results) == 1 else {"runs": results})


def _refuse_unfit(arguments: argparse.Namespace) -> None:
    if arguments.quantized is None:
        raise OptionError("got --float without --quantized; to quantize a float model here, give it as MODEL")
    if arguments.model is not None:
        raise OptionError(
            f"got MODEL {arguments.model!r} and --quantized; the float model of a quantized one is given by --float"
        )
    if arguments.debug_data is None and not arguments.signature_data:
        raise OptionError("--debug-data is needed; see --help for the forms that data may have")
    unfit = [name for name in ("--representative-data", "--kind", *QUANTIZING) if _was_given(arguments, name)]
    if unfit:
        raise OptionError(f"got {', '.join(unfit)} with --quantized, which is quantized already; expected none of these")


def _was_given(arguments: argparse.Namespace, option: str) -> bool:
    return any(word == option or word.startswith(option + "=") for word in arguments.words)


def _by_signature(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, data = text.partition("=")
        if not equals:
            raise OptionError(f"got --signature-data {text!r}, expected KEY=DATA")
        found[key] = data
    return found


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _folders(runs: dict[str, Run]) -> str:
    return "; the same in " + ", ".join(f"{_as_folder(name)}/" for name in list(runs)[1:])
