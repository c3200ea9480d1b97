"""The verb ``run`` on models that were quantized elsewhere."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.analyses.pairs import pair_errors
from tflite_qdebug.cli.options import QUANTIZING, backend_of
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import data, plain, progress, show_evaluation, show_run, write_run
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.errors import OptionError
from tflite_qdebug.record import Run
from tflite_qdebug.reports.side_by_side import side_by_side, side_by_side_table, write_side_by_side


def run_pair(arguments: argparse.Namespace, screen: Screen) -> None:
    """Measures quantized models, against a float model or their own dequantized weights; several side by side."""
    _refuse_unfit(arguments)
    models = _named(arguments.quantized)
    folder = Folder(arguments.output)
    signatures = _by_signature(arguments.signature_data)
    measured: dict[str, dict[str, Run]] = {}
    results: dict[str, Any] = {}
    for name, path in models.items():
        if len(models) > 1:
            screen.say(f"=== {name}: {path}")
        place = Folder(str(folder.path / as_file_name(name))) if len(models) > 1 and folder.path else folder
        measured[name] = _measured(arguments, screen, place, path, signatures)
        results[name] = _shown(arguments, screen, place, measured[name])
    if len(models) > 1:
        results["comparison"] = _compared(screen, folder, {name: next(iter(runs.values())) for name, runs in measured.items()})
    if arguments.evaluation_data is not None:
        results["evaluation"] = _evaluated(arguments, screen, models)
    provenance = {name: {part: run.provenance for part, run in runs.items()} for name, runs in measured.items()}
    folder.write_repeat(arguments.words, provenance=provenance, evaluation=results.get("evaluation"))
    if folder.path is not None:
        screen.say(f"results: {', '.join(_files(folder, measured))}")
    screen.result(next(iter(results.values())) if len(results) == 1 else results)


def _measured(
    arguments: argparse.Namespace, screen: Screen, folder: Folder, path: str, signatures: dict[str, str]
) -> dict[str, Run]:
    try:
        return pair_errors(
            _float_model(arguments),
            path,
            None if arguments.debug_data is None else data(arguments, "debug"),
            whole_model=arguments.whole_model,
            parts=arguments.parts,
            sequence=arguments.sequence,
            signature_datasets=signatures,
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


def _float_model(arguments: argparse.Namespace) -> Any:
    return example.MODEL_PATH if arguments.float == "example" else arguments.float


def _shown(arguments: argparse.Namespace, screen: Screen, folder: Folder, runs: dict[str, Run]) -> dict[str, Any]:
    results = {}
    for name, run in runs.items():
        positions = run.worst(arguments.criterion, arguments.count)
        if len(runs) > 1:
            screen.say(f"--- {name}")
        show_run(screen, run, positions, arguments.criterion)
        first = name == next(iter(runs))
        write_run(folder if first or folder.path is None else Folder(str(folder.path / as_file_name(name))), run)
        results[name] = {"worst": positions, **run.to_dict(), "columns": plain(run.columns())}
    return next(iter(results.values())) if len(results) == 1 else {"runs": results}


def _compared(screen: Screen, folder: Folder, runs: dict[str, Run]) -> list[dict[str, Any]]:
    rows = side_by_side(runs)
    screen.table(*side_by_side_table(rows, list(runs)), title="the models side by side, by the float model's operators")
    if folder.path is not None:
        write_side_by_side(rows, list(runs), folder.path / "comparison.csv")
    return rows


def _evaluated(arguments: argparse.Namespace, screen: Screen, models: dict[str, str]) -> dict[str, Any]:
    candidates: dict[str, Any] = {"float": load_float_model(_float_model(arguments))} if arguments.float else {}
    result = evaluate(
        {**candidates, **models},
        data(arguments, "evaluation"),
        arguments.metric or ["top_1"],
        label_offset=arguments.label_offset,
        limit=arguments.limit,
        backend=backend_of(arguments),
        progress=progress(arguments),
    )
    show_evaluation(screen, result)
    return result.to_dict()


def _named(texts: list[str]) -> dict[str, str]:
    models: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        path, name = (path, name) if equals else (text, Path(text).stem)
        if name in models or name == "float":
            raise OptionError(f"got two models called {name!r}, expected different names: give them as NAME=PATH")
        models[name] = path
    return models


def _refuse_unfit(arguments: argparse.Namespace) -> None:
    if not arguments.quantized:
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
        key, equals, source = text.partition("=")
        if not equals:
            raise OptionError(f"got --signature-data {text!r}, expected KEY=DATA")
        found[key] = source
    return found


def as_file_name(name: str) -> str:
    """Returns a name without what file systems do not take."""
    return re.sub(r"[^\w.-]+", "_", name)


def _files(folder: Folder, measured: dict[str, dict[str, Run]]) -> list[str]:
    places = (
        [str(folder.path / as_file_name(name)) for name in measured]
        if len(measured) > 1 and folder.path
        else [str(folder.path)]
    )
    files = []
    for place, runs in zip(places, measured.values(), strict=True):
        files += [f"{place}/layers.csv", f"{place}/run.json"]
        files += [f"{place}/{as_file_name(name)}/" for name in list(runs)[1:]]
    return [*files, *([f"{folder.path}/comparison.csv"] if len(measured) > 1 else []), f"{folder.path}/repeat.json"]
