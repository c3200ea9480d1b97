"""The verbs ``bundle``, ``merge`` and ``latency``: a run on a board and back, and what each operator takes here."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from tflite_qdebug.analyses.latency import latency as measured_latency
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.pairs import open_pair
from tflite_qdebug.board_record import Board
from tflite_qdebug.bundling import write_bundle
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Screen
from tflite_qdebug.cli.verbs import progress
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.delegates import delegates_of
from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.findings import save_part
from tflite_qdebug.latency_record import Latency
from tflite_qdebug.merging import merge_result
from tflite_qdebug.reports.boards import board_table, island_lines, layers_table, operator_table, write_latency_csv
from tflite_qdebug.study import Setup, named_data
from tflite_qdebug.study.setup import with_defaults
from tflite_qdebug.wording import number

__all__ = ["bundle", "latency", "merge"]


def bundle(arguments: argparse.Namespace, screen: Screen) -> None:
    """Writes the bundle of a run."""
    delegates = delegates_of(arguments.delegate, arguments.delegate_option)
    if arguments.compiled and not delegates:
        delegates = delegates_of("edgetpu", ())
    made = write_bundle(
        arguments.saved_run,
        arguments.output,
        compiled=arguments.compiled,
        delegate=delegates[0] if delegates else None,
        limit=arguments.limit,
        debug_model=not arguments.no_debug_model,
        backend=Backend(runtime=arguments.runtime, workers=arguments.workers),
        progress=progress(arguments),
    )
    counts = ", ".join(f"{count} samples of the {which} data" for which, count in made.samples.items())
    screen.say(f"{made.path}: {', '.join(made.models)}; {counts}; {made.size / 1e6:.1f} MB, hash {made.id[:12]}")
    screen.notes(made.notes)
    screen.say("on the board, with numpy and tflite-runtime or ai-edge-litert:")
    screen.say(f"  python3 {made.path.name}")
    screen.say("then copy the result back, and merge it into the run:")
    screen.say(f"  tflite-qdebug merge {arguments.saved_run} {made.path.stem}_result.jsonl")
    screen.result({**dataclasses.asdict(made), "path": str(made.path)})


def merge(arguments: argparse.Namespace, screen: Screen) -> None:
    """Merges what a board measured into the run, and shows it."""
    boards = [merge_result(arguments.saved_run, result, arguments.name) for result in arguments.results]
    for board in boards:
        show_board(screen, board, arguments.count)
    screen.say(f"it is in the run, and in its report: tflite-qdebug report {arguments.saved_run}")
    plain = [{name: value for name, value in vars(board).items() if not name.endswith("layers")} for board in boards]
    for entry, board in zip(plain, boards, strict=True):
        entry["models"] = [dataclasses.asdict(model) for model in board.models]
        entry["layers"] = None if board.layers is None else board.layers.to_dict()
        entry["host_layers"] = None if board.host_layers is None else board.host_layers.to_dict()
    screen.result({"boards": plain})


def show_board(screen: Screen, board: Board, count: int) -> None:
    """Prints what one board measured."""
    about = ", ".join(f"{key} {value}" for key, value in board.about.items() if key in ("machine", "python", "processors"))
    screen.say(f"{board.name} ({about})")
    screen.notes([*board.notes, *(f"{model.name}: {note}" for model in board.models for note in model.notes)])
    screen.table(*board_table(board))
    for model in board.models:
        if model.failure:
            screen.say(f"{model.name}: {model.failure}")
    screen.say(
        "'max steps' and 'over 1 step': the outputs against those of the host's reference kernels, in quantization steps"
    )
    if board.layers is not None and not board.differing()[0]:
        screen.say("the layers err there as they do on the host")
    elif board.layers is not None and count > 0:
        screen.table(*layers_table(board, count), title="the layers whose error there differs most from the host's, in steps")


def latency(arguments: argparse.Namespace, screen: Screen) -> None:
    """Times each operator of a run's quantized model on this machine.

    Raises:
        ModelError: Where there is no run.
        OptionError: Where the run's data was an object, and none is given.
    """
    place = Path(arguments.saved_run)
    place = place.parent if place.name == "run.json" else place
    if not (place / "run.json").exists():
        raise ModelError(f"there is no run in {place}; expected a folder that 'tflite-qdebug run ... --output DIR' wrote")
    setup = Setup.load(place)
    floating = None if setup.float_model is None else place / setup.float_model
    pair = open_pair(floating, place / setup.quantized_model).select(setup.signature)
    source = arguments.debug_data or setup.debug_data
    if source is None:
        raise OptionError("the run's debug data was an object, or none; expected debug data (--debug-data)")
    several = setup.signature is not None
    specs = pair.quantized.input_specs()
    dataset = open_dataset(named_data(source, "debug"), specs, "debug dataset", 4, setup.signature, "auto", several)
    scales = [pair.quantized.main.tensors[index].quantization for index in pair.quantized.main.inputs]
    found = measured_latency(
        pair,
        RealValued(dataset, scales),
        seconds=arguments.seconds,
        operator_seconds=arguments.operator_seconds,
        backend=with_defaults(backend_of(arguments), setup),
        progress=progress(arguments),
    )
    save_part(place, "latency", found)
    write_latency_csv(found, place / "latency.csv")
    show_latency(screen, found, arguments.count)
    screen.say(f"results: {place}/latency.csv, latency.json")
    screen.result(plain_latency(found))


def plain_latency(found: Latency) -> dict[str, Any]:
    """Returns it as plain data, with what follows from it."""
    islands = [dataclasses.asdict(island) for island in found.islands()]
    return {**dataclasses.asdict(found), "slowest": found.slowest(), "total": found.total, "islands": islands}


def show_latency(screen: Screen, found: Latency, count: int) -> None:
    """Prints the times of the models, of the slowest operators, and of float islands."""
    screen.say(f"{found.runtime}, {found.kernels} kernels, {found.threads} threads, on {found.machine}")
    for model in found.whole_models:
        if model.failure:
            screen.say(f"{model.name}: not measured: {model.failure}")
        else:
            words = f"{number(model.median)} ms in the median, {number(model.percentile_90)} ms for 90 %"
            screen.say(f"{model.name} model: {words} of {model.runs} runs ({model.kernels})")
    screen.notes(found.notes)
    positions = found.slowest(count)
    screen.table(*operator_table(found, positions), title=f"the {len(positions)} slowest of {len(found.timed)} operators")
    quantized = found.model("quantized")
    whole = "" if quantized is None or math.isnan(quantized.median) else f"; the model takes {number(quantized.median)} ms"
    screen.say(f"all operators, each by itself: {number(found.total)} ms{whole}")
    for line in island_lines(found):
        screen.say(line)
    screen.say(found.how)
