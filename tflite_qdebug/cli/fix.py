"""``tflite-qdebug fix``: finds the cheapest change that reaches a target, and proves it."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Folder, Screen, terminal_width
from tflite_qdebug.cli.verbs import data, is_run, progress, run_folder
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.errors import OptionError, QDebugError
from tflite_qdebug.files import write_atomically
from tflite_qdebug.findings import PLACES, Findings, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.outcome import UNITS, Outcome
from tflite_qdebug.remedies.handout import converter_snippet, not_said, quantizer_snippet
from tflite_qdebug.remedies.search import Fixed, fix
from tflite_qdebug.reports.html import write_report
from tflite_qdebug.reports.remedies import (
    front_table,
    metric_words,
    outcome_data,
    proof_table,
    summary,
    write_candidates_csv,
)
from tflite_qdebug.study import Setup, Study, named_data

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class _Given:
    """What is to be fixed, and by which data."""

    float_model: Any
    quantized_model: Any
    representative: Any
    debug: Any
    evaluation: Any
    metrics: tuple[str, ...]
    label_offset: int
    limit: int | None
    folder: Path


def fix_model(arguments: argparse.Namespace, screen: Screen) -> int:
    """Searches, writes all that came of it, and says how far it got."""
    given = _of_run(arguments) if is_run(arguments.model) else _of_model(arguments)
    found = _searched(arguments, screen, given)
    outcome = _with_snippets(found, given)
    save_part(given.folder, "fix", outcome)
    screen.say()
    screen.table(*front_table(outcome), title="what none beats at its size or a smaller one")
    if outcome.proof:
        title = f"float, plain int8 and the fixed model, on the debug samples and on {outcome.proof_samples} evaluation samples"
        screen.table(*proof_table(outcome), title=title)
    screen.notes(outcome.notes)
    screen.say()
    screen.say(textwrap.fill(summary(outcome), terminal_width()))
    interrupted = outcome.stopped == "interrupted"
    report = None if interrupted else _reported(arguments, screen, given, found, outcome)
    place = given.folder / "fix"
    screen.say(
        f"fixed model: {place / 'fixed.tflite'}; to make it again: {place / 'recipe.json'} (apply_recipe), or paste "
        f"{place / 'convert.py'} behind your own converter"
    )
    screen.say(
        f"all {len(outcome.candidates)} candidates: {place / 'candidates.csv'}" + (f"; report: {report}" if report else "")
    )
    screen.result({**outcome_data(outcome), "folder": str(given.folder), "report": None if report is None else str(report)})
    if interrupted:
        screen.say("interrupted; the same command goes on from here")
        return INTERRUPTED
    return 0


def _of_run(arguments: argparse.Namespace) -> _Given:
    """Returns what the folder of a saved run knows, with what the command line says instead."""
    place = run_folder(arguments.model)
    if arguments.quantized_form or arguments.output:
        option = "--quantized-form" if arguments.quantized_form else "--output"
        raise OptionError(f"got {option} with {place}, which holds a run and its models; expected a model in its place")
    setup = Setup.load(place)
    if setup.float_model is None:
        raise OptionError(f"the run in {place} has no float model, from which remedies begin; run again with --float MODEL")
    sources = {
        "representative": setup.representative_data,
        "debug": setup.debug_data,
        "evaluation": setup.evaluation_data,
    }
    chosen = {}
    for which, saved in sources.items():
        text = getattr(arguments, f"{which}_data") or saved
        if text is None and which != "evaluation":
            raise OptionError(f"the run in {place} does not tell its {which} data; give --{which}-data")
        chosen[which] = example.labelled_debug_dataset if (which, text) == ("debug", "example") else named_data(text, which)
    return _Given(
        place / setup.float_model,
        # What was quantized here is quantized again, as the remedies need it.
        None if setup.representative_data is not None else place / setup.quantized_model,
        chosen["representative"],
        chosen["debug"],
        chosen["evaluation"],
        tuple(arguments.metric or setup.metrics),
        arguments.label_offset or setup.label_offset,
        arguments.limit or setup.limit,
        place,
    )


def _of_model(arguments: argparse.Namespace) -> _Given:
    if arguments.model is None:
        raise OptionError("got no model, expected RUN_OR_MODEL: the folder of a saved run, or a float model")
    evaluation = arguments.evaluation_data is not None or arguments.model == "example"
    folder = Folder(arguments.output or f"{Path(arguments.model).stem or 'model'}_fixed").path
    assert folder is not None
    debug = data(arguments, "debug")
    return _Given(
        example.MODEL_PATH if arguments.model == "example" else arguments.model,
        arguments.quantized_form,
        data(arguments, "representative"),
        debug if debug is not example.debug_dataset else example.labelled_debug_dataset,
        data(arguments, "evaluation") if evaluation else None,
        tuple(arguments.metric or ()),
        arguments.label_offset,
        arguments.limit,
        folder,
    )


def _searched(arguments: argparse.Namespace, screen: Screen, given: _Given) -> Fixed:
    shown: list[tuple[int, int]] = []

    def updated(outcome: Outcome) -> None:
        now = (len(outcome.candidates), outcome.best)
        if now not in shown:
            shown.append(now)
            screen.say(_line(outcome))

    return fix(
        given.float_model,
        arguments.target,
        given.representative,
        given.debug,
        evaluation_dataset=given.evaluation,
        metrics=given.metrics,
        label_offset=given.label_offset,
        quantized_model=given.quantized_model,
        spend=arguments.spend,
        spend_by=arguments.spend_by or UNITS,
        edgetpu=arguments.edgetpu,
        explore=arguments.explore,
        per_channel=not arguments.per_tensor,
        per_channel_dense=not arguments.dense_per_tensor,
        training_data=arguments.training_data,
        limit=given.limit,
        folder=given.folder,
        backend=backend_of(arguments),
        progress=progress(arguments),
        updated=updated,
    )


def _line(outcome: Outcome) -> str:
    """Returns how far it is: the best so far, and the front."""
    best, metric = outcome.candidates[outcome.best], outcome.metrics[0]
    value = metric_words(metric, best.metrics[metric].value)
    shown = [outcome.candidates[position] for position in outcome.front[-6:]]
    front = ", ".join(f"{one.size / 1e3:.1f} kB {metric_words(metric, one.metrics[metric].value)}" for one in shown)
    state = "meets the target" if best.met else "not there yet"
    return (
        f"{outcome.seconds:6.0f} s  {len(outcome.candidates) - 1:3d} models  best: {best.name}, {value}, {state}; front {front}"
    )


def _with_snippets(found: Fixed, given: _Given) -> Outcome:
    """Writes what there is to paste, and puts it into the outcome."""
    texts = {"convert.py": converter_snippet(found.recipe)}
    if not not_said(found.recipe, "tensorflow"):
        texts["convert_with_tensorflow.py"] = converter_snippet(found.recipe, "tensorflow")
    if not not_said(found.recipe, "ai-edge-quantizer"):
        texts["quantize_with_ai_edge.py"] = quantizer_snippet(found.recipe, found.float_model)
    for name, text in texts.items():
        write_atomically(given.folder / "fix" / name, text.encode())
    write_candidates_csv(found.outcome, given.folder / "fix" / "candidates.csv")
    provenance = {**found.outcome.provenance, "snippets": texts}
    return dataclasses.replace(found.outcome, provenance=provenance)


def _reported(arguments: argparse.Namespace, screen: Screen, given: _Given, found: Fixed, outcome: Outcome) -> Path | None:
    """Measures both models layer by layer and writes the report; what fails there does not take the result away."""
    if arguments.no_report:
        return None
    backend, shown = backend_of(arguments), progress(arguments)
    try:
        if not (given.folder / "run.json").exists():
            Study(
                given.folder,
                found.float_model,
                found.int8_model,
                given.debug,
                evaluation_dataset=given.evaluation,
                metrics=given.metrics,
                label_offset=given.label_offset,
                limit=given.limit,
                backend=backend,
                progress=shown,
            )
        study = Study.open(
            given.folder, debug_dataset=given.debug, evaluation_dataset=given.evaluation, backend=backend, progress=shown
        )
        specs = Model(found.float_model).input_specs()
        samples = open_dataset(given.debug, specs, "debug dataset", given.limit, labels="auto")
        (given.folder / PLACES["fixed"]).unlink(missing_ok=True)
        try:
            run = pair_error(found.float_model, found.data, samples, backend=backend, progress=shown)
            save_part(given.folder, "fixed", run)
        except QDebugError as error:  # nothing is left to be measured where all is float
            screen.say(f"note: the report does not compare before and after layer by layer: {error}")
        study.diagnosis()
        return write_report(Findings.load(given.folder), given.folder / "report.html")
    except QDebugError as error:
        screen.say(f"note: there is no report: {error}")
        return None
