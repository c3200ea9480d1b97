"""The verbs. Each reads its options, makes one or a few calls of the library, and prints what came of it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.evaluation import Evaluation, evaluate
from tflite_qdebug.cli.options import backend_of, quantize_options
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.conversion import CALIBRATED_KINDS, KINDS, CalibratedModel, FloatModel, QuantizedModel, load_float_model
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.record import Run
from tflite_qdebug.reports.tables import layer_table, whole_table, write_csv
from tflite_qdebug.study import Setup
from tflite_qdebug.wording import number

#: What ``convert`` can make, besides the library's kinds.
DEBUG_KINDS = ("calibrated", "debug", "debug_whole_model")
ROUNDING_FLOOR = 12**-0.5


def load(arguments: argparse.Namespace) -> FloatModel:
    """Loads the model that the command line names."""
    return load_float_model(example.MODEL_PATH if arguments.model == "example" else arguments.model)


def data(arguments: argparse.Namespace, which: str) -> Any:
    """Returns the dataset that the command line names; with the built-in model, its own samples where none is named.

    Raises:
        OptionError: Where a dataset is needed and not given.
    """
    given = getattr(arguments, f"{which}_data")
    of_example = {
        "representative": example.representative_dataset,
        "debug": example.debug_dataset,
        "evaluation": example.evaluation_dataset,
    }
    if given == "example" or (given is None and getattr(arguments, "model", None) == "example"):
        return of_example[which]
    if given is None:
        raise OptionError(f"--{which}-data is needed; see --help for the forms that data may have")
    return given


def calibrate(arguments: argparse.Namespace, float_model: FloatModel) -> CalibratedModel:
    """Calibrates as the command line says."""
    return float_model.calibrate(
        data(arguments, "representative"),
        arguments.calibration,
        limit=arguments.limit,
        progress=progress(arguments),
    )


def progress(arguments: argparse.Namespace) -> bool | None:
    """Returns whether to show progress: as the terminal is, unless forbidden."""
    return False if arguments.no_progress else None


def stem(arguments: argparse.Namespace) -> str:
    """Returns the first part of the names of files that are made."""
    if "stem" in arguments:
        return str(arguments.stem)
    return "example" if arguments.model == "example" else Path(arguments.model).stem or "model"


def is_run(place: str | None) -> bool:
    """True for the folder of a saved run, or its ``run.json``."""
    return place is not None and ((Path(place) / "run.json").exists() or Path(place).name == "run.json")


def run_folder(place: str) -> Path:
    """Returns the folder of a saved run that is named by itself or by its ``run.json``."""
    return Path(place).parent if Path(place).name == "run.json" else Path(place)


def begin_with_run(arguments: argparse.Namespace) -> None:
    """Puts a saved run's float model, and what calibrated it, in the place of the run, where one was given.

    Raises:
        OptionError: Where the run has no float model, or does not tell what calibrated it.
    """
    if not is_run(arguments.model):
        return
    place = run_folder(arguments.model)
    setup = Setup.load(place)
    if setup.float_model is None:
        raise OptionError(f"the run in {place} has no float model to be converted; run again with --float MODEL")
    chosen = arguments.representative_data or setup.representative_data
    if chosen is None:
        raise OptionError(f"the run in {place} does not tell its representative data; give --representative-data")
    arguments.stem = place.resolve().name
    arguments.model, arguments.representative_data = str(place / setup.float_model), chosen
    arguments.limit = arguments.limit or setup.limit


def convert(arguments: argparse.Namespace, screen: Screen) -> None:
    """Makes models of the kinds asked for."""
    begin_with_run(arguments)
    kinds = list(dict.fromkeys(arguments.kind or ["int8"]))
    for kind in kinds:
        if kind not in KINDS + DEBUG_KINDS:
            known = KINDS + DEBUG_KINDS
            raise OptionError(f"got --kind {kind!r}, expected one of {', '.join(known)}.{did_you_mean(kind, known)}")
    folder = Folder(arguments.output or ".")
    float_model = load(arguments)
    needy = set(kinds).intersection(CALIBRATED_KINDS + DEBUG_KINDS)
    calibrated = calibrate(arguments, float_model) if needy else None
    made: dict[str, dict[str, Any]] = {}
    rows = []
    for kind in kinds:
        model = _make(kind, float_model, calibrated, arguments)
        name = f"{stem(arguments)}_{kind}.tflite"
        folder.write(name, model.data)
        made[kind] = {
            "file": name,
            "bytes": len(model.data),
            "sha256": hashlib.sha256(model.data).hexdigest(),
            "float_nodes": [vars(node) for node in model.float_nodes],
        }
        rows.append([kind, name, f"{len(model.data) / 1000:.1f}", str(len(model.float_nodes))])
    folder.write_repeat(arguments.words, model=float_model.origin, float_model_sha256=float_model.model.sha256, made=made)
    screen.table(["kind", "file", "size kB", "operators in float"], rows)
    for kind, entry in made.items():
        for node in entry["float_nodes"]:
            screen.say(f"{kind}: {node['op_name']} {node['node']} stays float: {node['reason']}")
    screen.result({"folder": str(folder.path), "made": made})


def _make(
    kind: str, float_model: FloatModel, calibrated: CalibratedModel | None, arguments: argparse.Namespace
) -> QuantizedModel:
    options = quantize_options(arguments)
    if calibrated is None:
        if options["denylisted_nodes"] or options["denylisted_ops"]:
            raise OptionError(f"got a denylist for kind {kind!r}, which has no use for one; expected kind int8")
        return float_model.quantize(kind, per_channel=options["per_channel"], per_channel_dense=options["per_channel_dense"])
    if kind == "calibrated":
        return QuantizedModel(calibrated.data, kind, (), {})
    if kind in DEBUG_KINDS:
        content = calibrated.numeric_verify_model("int8", whole_model=kind == "debug_whole_model", **options)
        return QuantizedModel(content, kind, (), options)
    return calibrated.quantize(kind, **options)


def evaluation(arguments: argparse.Namespace, screen: Screen) -> None:
    """Compares models on one dataset."""
    models = named_models(arguments.models)
    if "example" in arguments.models:
        models["example"] = str(example.MODEL_PATH)
    folder = Folder(arguments.output)
    result = evaluated(arguments, screen, models)
    folder.write_repeat(arguments.words, evaluation=result.to_dict())
    screen.result(result.to_dict())


def named_models(texts: Sequence[str], taken: Sequence[str] = ()) -> dict[str, Any]:
    """Returns ``{name: path}`` of models given as ``PATH`` or ``NAME=PATH``.

    Raises:
        OptionError: Where two are called alike, or one as a name that is taken.
    """
    models: dict[str, Any] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        path, name = (path, name) if equals else (text, Path(text).stem)
        if name in models or name in taken:
            raise OptionError(f"got two models called {name!r}, expected different names: give them as NAME=PATH")
        models[name] = path
    return models


def evaluated(arguments: argparse.Namespace, screen: Screen, models: Mapping[str, Any]) -> Evaluation:
    """Evaluates models as the command line says, and prints the scores."""
    result = evaluate(
        models,
        data(arguments, "evaluation"),
        arguments.metric or ["top_1"],
        label_offset=arguments.label_offset,
        limit=arguments.limit,
        backend=backend_of(arguments),
        progress=progress(arguments),
    )
    show_evaluation(screen, result)
    return result


def show_evaluation(screen: Screen, result: Evaluation) -> None:
    """Prints scores and notes."""
    screen.table(*result.table(), title=f"{result.dataset}; {result.runtime}")
    screen.notes(result.notes)


def plain(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns columns as lists, for JSON."""
    return {name: values.tolist() for name, values in columns.items()}


def write_run(folder: Folder, result: Run, prefix: str = "") -> None:
    """Writes the saved run and the table of its layers."""
    if folder.path is not None:
        result.save(folder.path / f"{prefix}run.json")
        write_csv(result, folder.path / f"{prefix}layers.csv")


def show_run(screen: Screen, result: Run, positions: Sequence[int], criterion: str) -> None:
    """Prints the worst layers, how to read them, and what to type next."""
    ran = result.provenance
    kind = {"per_layer": "what each operator adds", "whole_model": "accumulated up to each operator"}[result.verify]
    screen.say(
        f"{len(result.layers)} layers, {ran['debug_dataset']}; {ran['kernels']} kernels of "
        f"{ran['runtime']} {ran['runtime_version']}, {ran['workers']} workers"
    )
    screen.notes(result.notes)
    screen.say(f"the {len(positions)} worst layers by {criterion} ({kind})")
    screen.table(*layer_table(result, positions, criterion=criterion))
    if result.whole:
        screen.table(*whole_table(result), title="the model's outputs, against the float model's")
    screen.say(
        f"RMSE/scale is the error in steps: {number(ROUNDING_FLOOR, 3)} is rounding alone, above 0.7 something else is at "
        "work. 'at ends' is the share of values at either end of the integer range; 'worst' is the worst sample."
    )
    nodes = suspects(result, positions)
    # What a layer inherited is not mended by leaving that layer in float, and only the int8 quantizer takes a denylist.
    if nodes and result.verify == "per_layer" and _takes_denylist(result):
        screen.say("to keep the suspects in float:")
        screen.say("  denylisted_nodes=[" + ",\n                    ".join(repr(node) for node in nodes) + "]")


def _takes_denylist(result: Run) -> bool:
    """True where the names are those of a float model that the int8 quantizer can be given."""
    options = result.provenance["options"]
    if "kind" in options:
        return options["kind"] == "int8"
    eight = all(layer.dtype in ("int8", "uint8", "float32") for layer in result.layers)
    return eight and all(layer.reference == "float model" for layer in result.layers)


def suspects(result: Run, positions: Sequence[int], threshold: float = 0.7, most: int = 5) -> list[str]:
    """Returns the names of layers whose RMSE/scale rounding cannot explain, worst first."""
    ratios = result.columns()["rmse_over_scale"]
    # Not "above": a layer that gives NaN is a suspect, one without a scale is not.
    return [
        result.layers[position].node
        for position in positions
        if result.layers[position].scale is not None
        and result.layers[position].op_name != "QUANTIZE"  # the model's input: there is no operator to keep in float
        and not ratios[position] <= threshold
    ][:most]
