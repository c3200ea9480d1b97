"""``tflite-qdebug ptq``: post-training quantization in all its forms, side by side, with predictions to look at."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.post_training import DEFAULT_FORMS, quantize_post_training
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Folder, Screen, terminal_width
from tflite_qdebug.cli.verbs import data, progress, stem
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.errors import OptionError
from tflite_qdebug.ptq_record import PtqComparison
from tflite_qdebug.reports.post_training import write_forms_csv, write_ptq_report

# Forms whose loss can be mended layer by layer.
_INTEGER = ("int8", "full_integer_uint8", "full_integer_int8", "int16x8")


def ptq(arguments: argparse.Namespace, screen: Screen) -> None:
    """Makes all forms, prints what they cost and how good they are, and writes models and report."""
    forms = arguments.form or DEFAULT_FORMS
    sources = {which: data(arguments, which) for which in ("representative", "evaluation")}
    for which, source in sources.items():
        open_dataset(source, (), f"{which} data")  # what cannot be opened is an error before anything is made
    names = _class_names(arguments.class_names)
    backend, folder = backend_of(arguments), Folder(arguments.output)
    result = quantize_post_training(
        example.MODEL_PATH if arguments.model == "example" else arguments.model,
        sources["representative"],
        sources["evaluation"],
        forms=forms,
        metrics=arguments.metric,
        label_offset=arguments.label_offset,
        lower_is_better=arguments.lower_is_better,
        class_names=names,
        predictions=arguments.predictions,
        seconds=arguments.seconds,
        calibration=arguments.calibration,
        per_channel=not arguments.per_tensor,
        per_channel_dense=not arguments.dense_per_tensor,
        limit=arguments.limit,
        backend=backend,
        progress=progress(arguments),
    )
    commands = _next(arguments, result)
    files = _write(folder, result, arguments, commands)
    _show(screen, result)
    for words, command in commands:
        screen.say(f"{words}\n  {command}")
    if files:
        screen.say(f"models: {', '.join(path.name for path in files)} in {folder.path}")
        screen.say(f"results: {folder.path}/report.html (predictions drawn), ptq.json, forms.csv, repeat.json")
    else:
        screen.say("--output DIR writes the models, and a report with the predictions drawn")
    screen.result(_plain(result))


def _class_names(path: str | None) -> tuple[str, ...]:
    """Returns the lines of a file.

    Raises:
        OptionError: Where it cannot be read.
    """
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"cannot read --class-names {path}: {reason}; expected a text file with a name in each line"
        ) from error
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _next(arguments: argparse.Namespace, result: PtqComparison) -> list[tuple[str, str]]:
    """Returns what to do where an integer form is worse: words, and a command."""
    if not any(result.is_worse(model) for model in result.models if model.form in _INTEGER):
        return []
    words = [arguments.model]
    if arguments.model != "example":
        words += ["--representative-data", str(arguments.representative_data), "--debug-data", "DEBUG_DATA"]
        words += ["--evaluation-data", str(arguments.evaluation_data)]
        words += [word for metric in arguments.metric or () for word in ("--metric", metric)]
    own = shlex.join(words)
    fitting = not arguments.metric or arguments.metric[0] == "top_1"
    fix = [
        (
            "to make the cheapest change that brings the loss back:",
            f"tflite-qdebug fix {own} --target 'accuracy >= float - 1%' --output fixed",
        )
    ]
    return [
        ("to see which layers lose it, and why:", f"tflite-qdebug runall {own} --output study"),
        *(fix if fitting else []),
    ]


def _write(folder: Folder, result: PtqComparison, arguments: argparse.Namespace, commands: list[tuple[str, str]]) -> list[Path]:
    if folder.path is None:
        return []
    files = result.save_models(folder.path, stem(arguments))
    result.save(folder.path / "ptq.json")
    write_forms_csv(result, folder.path / "forms.csv")
    made = {model.form: model.sha256 for model in result.models if model.is_made}
    folder.write_repeat(arguments.words, provenance=result.provenance, made=made)
    write_ptq_report(result, folder.path / "report.html", commands)
    return files


def _show(screen: Screen, result: PtqComparison) -> None:
    screen.table(
        *result.size_table(), title=f"what each form costs; calibrated on {result.provenance['representative_dataset']}"
    )
    screen.table(*result.score_table(), title=f"how good it is; {result.provenance['evaluation_dataset']}")
    if any(port.scale is not None for model in result.models for port in (*model.inputs, *model.outputs)):
        screen.table(*result.port_table(), title="types of inputs and outputs; an integer q stands for a value")
    for form, op_name, reason, names in result.float_groups():
        screen.say(f"{form}: {len(names)} {op_name} stayed float: {reason}")
    if result.differing:
        title = f"the first of {result.differing_count} samples on which a form answers otherwise than float; ✗ is wrong"
        screen.table(*result.prediction_table(), title=title)
    elif result.classifies and not result.differing_count:
        screen.say(f"no form answers otherwise than float on any of {result.samples} samples")
    screen.notes(result.notes)
    screen.say()
    for sentence in result.verdict():
        screen.say(textwrap.fill(sentence, terminal_width()))
    screen.say()


def _plain(result: PtqComparison) -> dict[str, Any]:
    """Returns the result as plain data, without the pictures, which ``ptq.json`` has."""
    fields = result.to_dict()
    for name in ("first", "differing"):
        for prediction in fields[name]:
            del prediction["drawings"]
    return {"verdict": result.verdict(), **fields}
