"""The verb ``run``: on a model that is quantized here, or on models that were quantized elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.diagnosis import advise
from tflite_qdebug.analyses.evaluation import Evaluation
from tflite_qdebug.analyses.layer_error import run_debug_model
from tflite_qdebug.analyses.pairs import FEW, load_quantized_model, pair_errors
from tflite_qdebug.cli.options import QUANTIZING, backend_of, quantize_options
from tflite_qdebug.cli.output import Folder, Screen, terminal_width
from tflite_qdebug.cli.verbs import calibrate, data, evaluated, load, named_models, plain, progress, show_run, write_run
from tflite_qdebug.collect import LayerMetrics
from tflite_qdebug.conversion import CALIBRATED_KINDS, KINDS, CalibratedModel, FloatModel, load_float_model
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.delegates import delegates_of, pairs_of
from tflite_qdebug.edgetpu.prices import priced_advice
from tflite_qdebug.edit import DebugModel
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.findings import PLACES, Findings, Scores, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run
from tflite_qdebug.reports.advice import advice_lines
from tflite_qdebug.reports.side_by_side import side_by_side, side_by_side_table, write_side_by_side
from tflite_qdebug.statistics import ErrorStatistics
from tflite_qdebug.study import SETUP, Setup, lasting, lasting_delegates


def run(arguments: argparse.Namespace, screen: Screen) -> None:
    """Measures the error of each layer, of a model that is quantized here or of those that were quantized elsewhere."""
    # Before anything is computed: an empty run has the same columns.
    Run("per_layer", [], ErrorStatistics(0)).worst(arguments.criterion)
    parts = _parts(arguments)
    if arguments.quantized is not None or arguments.float is not None:
        _run_pairs(arguments, screen, FEW if parts is None else parts)
    elif arguments.model is None:
        raise OptionError("got no model, expected MODEL to be quantized here, or --quantized MODEL.tflite and its --float")
    else:
        _run_here(arguments, screen, parts)


def _parts(arguments: argparse.Namespace) -> int | bool | None:
    """Returns on how many samples the error is to be split; True: all; None: not said."""
    if arguments.parts in (None, "all"):
        return None if arguments.parts is None else True
    if not arguments.parts.isdigit():
        raise OptionError(f"got --parts {arguments.parts!r}, expected a number of samples, or nothing behind it for all")
    return int(arguments.parts)


def _metrics(arguments: argparse.Namespace) -> LayerMetrics:
    """Returns what to measure besides what every run has: what the layers are to be ranked by."""
    return LayerMetrics(relative=arguments.criterion == "mre")


def _run_here(arguments: argparse.Namespace, screen: Screen, parts: int | bool | None) -> None:
    """Quantizes a float model and measures what became of it."""
    kinds = arguments.kind or ["int8"]
    if len(kinds) > 1 or kinds[0] not in KINDS:
        known = ", ".join(KINDS[1:])
        raise OptionError(f"got --kind {', '.join(kinds)}, expected one of {known}.{did_you_mean(kinds[0], KINDS)}")
    signatures = pairs_of(arguments.signature_data, "--signature-data", "KEY=DATA")
    folder = Folder(arguments.output)
    float_model = load(arguments)
    debug_data, notes = _debug_data(arguments)
    calibrated = calibrate(arguments, float_model)
    options = {name: value for name, value in quantize_options(arguments).items() if _applies(name, value, kinds[0])}
    quantized = calibrated.quantize(kinds[0], **options)
    _refuse_another_run(folder, quantized.data)
    files = {"float.tflite": float_model.data, "calibrated.tflite": calibrated.data, f"{kinds[0]}.tflite": quantized.data}
    described = {"kind": kinds[0], "calibration": arguments.calibration, "calibration_dataset": calibrated.dataset, **options}
    # TensorFlow's debug model is of one subgraph, and has one float copy of each operator.
    if parts or len(float_model.model.subgraphs) > 1:
        _write_files(folder, files)
        runs = _pair_runs(arguments, screen, folder, float_model, quantized, debug_data, signatures, parts or 0)
        for each in runs.values():
            each.provenance["options"].update(described)
    else:
        if signatures:
            raise OptionError("got --signature-data for a model with one signature; expected --debug-data")
        debug_model = calibrated.debug_model(kinds[0], whole_model=arguments.whole_model, **options)
        _write_files(folder, {**files, "debug.tflite": debug_model.data})
        runs = {"main": _debug_run(arguments, screen, folder, debug_model, calibrated, debug_data, described)}
    next(iter(runs.values())).notes[:0] = notes
    results = _shown(arguments, screen, folder, runs)
    evaluation = _evaluated(arguments, screen, {"float": float_model, kinds[0]: quantized})
    scores = None if evaluation is None else evaluation.as_scores(quantized=kinds[0])
    result = _advised(arguments, screen, folder, runs, results, Model(quantized.data), scores)
    for node in quantized.float_nodes:
        screen.say(f"{node.op_name} {node.node} stays float: {node.reason}")
    _write_setup(arguments, folder, "float.tflite", f"{kinds[0]}.tflite", runs)
    provenance = next(iter(runs.values())).provenance
    floats = [vars(node) for node in quantized.float_nodes]
    kept = None if evaluation is None else evaluation.to_dict()
    folder.write_repeat(arguments.words, provenance=provenance, float_nodes=floats, evaluation=kept)
    if folder.path is not None:
        screen.say(f"results: {', '.join(_files(folder, {'': runs}))} and the models")
    screen.result(result if kept is None else {**result, "evaluation": kept})


def _refuse_another_run(folder: Folder, quantized: bytes) -> None:
    """Refuses a folder with analyses of another model, which would pass for those of this one.

    Raises:
        OptionError: For such a folder.
    """
    if folder.path is None:
        return
    kept = [part for part in PLACES if part not in ("advice", "scores") and any(folder.path.glob(PLACES[part].format("*")))]
    if not kept or not (folder.path / SETUP).exists():
        return
    earlier = folder.path / Setup.load(folder.path).quantized_model
    if not earlier.exists() or earlier.read_bytes() != quantized:
        raise OptionError(
            f"{folder.path} holds a run of another model, with analyses of it ({', '.join(kept)}), which would pass for this "
            "one's; give another --output, or remove the folder"
        )


def _write_files(folder: Folder, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        folder.write(name, content)


def _write_setup(
    arguments: argparse.Namespace, folder: Folder, float_model: str | None, quantized: str, runs: Mapping[str, Run]
) -> None:
    """Writes what the analyses need to go on with the run."""
    if folder.path is None:
        return
    debug_data = arguments.debug_data
    if debug_data is None:
        debug_data = "example" if arguments.model == "example" else arguments.representative_data
        if arguments.model != "example" and debug_data == "example":  # which names the debug data where debug data is read
            debug_data = "tflite_qdebug.example:representative_dataset"
    signature = next(iter(runs.values())).provenance.get("options", {}).get("signature")
    debug_data = pairs_of(arguments.signature_data, "--signature-data", "KEY=DATA").get(signature or "", debug_data)
    evaluation = arguments.evaluation_data or ("example" if arguments.model == "example" else None)
    Setup(
        float_model,
        quantized,
        lasting(debug_data),
        lasting(evaluation),
        tuple(arguments.metric or ()),
        arguments.label_offset,
        arguments.limit,
        signature,
        arguments.runtime,
        arguments.kernels,
        name if (name := next(iter(runs))) not in ("main", signature) else None,
        _calibrated_by(arguments),
        lasting_delegates(delegates_of(arguments.delegate, arguments.delegate_option)),
    ).save(folder.path)


def _calibrated_by(arguments: argparse.Namespace) -> str | None:
    """Returns the representative data, as long as nothing but it made the model: what else was asked for is not kept."""
    if arguments.quantized is not None or (arguments.kind or ["int8"]) != ["int8"]:
        return None
    options = quantize_options(arguments)
    if options["denylisted_nodes"] or options["denylisted_ops"] or arguments.per_tensor or arguments.dense_per_tensor:
        return None
    if arguments.input_type not in (None, "float32") or arguments.output_type not in (None, "float32"):
        return None
    return lasting(arguments.representative_data or ("example" if arguments.model == "example" else None))


def _debug_run(
    arguments: argparse.Namespace,
    screen: Screen,
    folder: Folder,
    debug_model: DebugModel,
    calibrated: CalibratedModel,
    debug_data: Any,
    described: dict[str, Any],
) -> Run:
    float_model = calibrated.float_model
    assert float_model is not None
    dataset = open_dataset(debug_data, calibrated.model.input_specs(), "debug dataset", arguments.limit)
    backend = backend_of(arguments)
    if arguments.sequence:
        backend = backend._replace(workers=1)
    options = {"model": float_model.origin, "sequence": arguments.sequence, **described}
    with _kept(folder, screen):
        return run_debug_model(
            debug_model,
            dataset,
            backend,
            _metrics(arguments),
            float_model.data,
            progress(arguments),
            options,
            not arguments.sequence,
        )


def _run_pairs(arguments: argparse.Namespace, screen: Screen, parts: int | bool) -> None:
    """Measures quantized models, against a float model or their own dequantized weights; several side by side."""
    _refuse_unfit(arguments)
    models = named_models(arguments.quantized, taken=["float"])
    folder = Folder(arguments.output)
    signatures = pairs_of(arguments.signature_data, "--signature-data", "KEY=DATA")
    debug_data = None if arguments.debug_data is None else data(arguments, "debug")
    opened = {name: load_quantized_model(path) for name, path in models.items()}
    float_model = load_float_model(_float_model(arguments)) if arguments.float else None
    places = {name: Folder(str(folder.path / as_file_name(name))) for name in models} if folder.path and len(models) > 1 else {}
    for name, model in opened.items():
        _refuse_another_run(places.get(name, folder), model.data)
    measured: dict[str, dict[str, Run]] = {}
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    for name, path in models.items():
        if len(models) > 1:
            screen.say(f"=== {name}: {path}")
        place = places.get(name, folder)
        measured[name] = _pair_runs(arguments, screen, place, float_model, opened[name], debug_data, signatures, parts)
        shown[name] = _shown(arguments, screen, place, measured[name])
        if place.path is not None:
            _write_files(place, {"quantized.tflite": opened[name].data})
            if float_model is not None:
                _write_files(place, {"float.tflite": float_model.data})
            _write_setup(arguments, place, "float.tflite" if float_model else None, "quantized.tflite", measured[name])
    rows = None
    if len(models) > 1:
        rows = _compared(screen, folder, {name: next(iter(runs.values())) for name, runs in measured.items()})
    evaluation = _evaluated(arguments, screen, {**({"float": float_model} if float_model else {}), **models})
    results: dict[str, Any] = {}
    for name in models:
        if len(models) > 1:
            screen.say(f"=== {name}")
        scores = None if evaluation is None else evaluation.as_scores(quantized=name)
        place = places.get(name, folder)
        results[name] = _advised(arguments, screen, place, measured[name], shown[name], opened[name], scores)
    results.update({} if rows is None else {"comparison": rows})
    results.update({} if evaluation is None else {"evaluation": evaluation.to_dict()})
    provenance = {name: {part: run.provenance for part, run in runs.items()} for name, runs in measured.items()}
    folder.write_repeat(arguments.words, provenance=provenance, evaluation=results.get("evaluation"))
    if folder.path is not None:
        screen.say(f"results: {', '.join(_files(folder, measured))}")
    screen.result(next(iter(results.values())) if len(results) == 1 else results)


def _pair_runs(
    arguments: argparse.Namespace,
    screen: Screen,
    folder: Folder,
    float_model: FloatModel | None,
    quantized: Any,
    debug_data: Any,
    signatures: Mapping[str, str],
    parts: int | bool,
) -> dict[str, Run]:
    with _kept(folder, screen):
        return pair_errors(
            float_model,
            quantized,
            debug_data,
            whole_model=arguments.whole_model,
            parts=parts,
            sequence=arguments.sequence,
            signature_datasets=signatures,
            limit=arguments.limit,
            backend=backend_of(arguments),
            metrics=_metrics(arguments),
            progress=progress(arguments),
        )


@contextlib.contextmanager
def _kept(folder: Folder, screen: Screen) -> Iterator[None]:
    """Writes what a run had measured when it ended before its time."""
    try:
        yield
    except BaseException as error:
        partial = getattr(error, "partial_run", None)
        if partial is not None and folder.path is not None:
            write_run(folder, partial, "partial_")
            screen.say(f"{partial.statistics.samples} samples were measured; they are in {folder.path / 'partial_run.json'}")
        raise


def _float_model(arguments: argparse.Namespace) -> Any:
    return example.MODEL_PATH if arguments.float == "example" else arguments.float


def _applies(name: str, value: Any, kind: str) -> bool:
    """True for an option that says something; the kinds without calibration take fewer."""
    return kind in CALIBRATED_KINDS or name in ("per_channel", "per_channel_dense") or value not in (None, (), True)


def _debug_data(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    try:
        return data(arguments, "debug"), []
    except OptionError:
        note = (
            "measured on the samples that calibrated the ranges, since no --debug-data was given; that flatters the model: "
            "none of its values is clipped"
        )
        return data(arguments, "representative"), [note]


def _shown(arguments: argparse.Namespace, screen: Screen, folder: Folder, runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """Prints and writes what was measured; returns it by the runs' names, for JSON."""
    results = {}
    for name, run in runs.items():
        criterion = arguments.criterion or run.default_criterion
        positions = run.worst(criterion, arguments.count)
        if len(runs) > 1:
            screen.say(f"--- {name}")
        show_run(screen, run, positions, criterion)
        write_run(_place(folder, runs, name), run)
        results[name] = {"worst": positions, **run.to_dict(), "columns": plain(run.columns())}
    return results


def _place(folder: Folder, runs: Mapping[str, Run], name: str) -> Folder:
    """Returns the folder of one of the runs of a model: of the first, the model's own."""
    first = name == next(iter(runs))
    return folder if first or folder.path is None else Folder(str(folder.path / as_file_name(name)))


def _evaluated(arguments: argparse.Namespace, screen: Screen, models: Mapping[str, Any]) -> Evaluation | None:
    """Evaluates the models where that was asked for; 'runall' does so among its analyses, and keeps what comes of it."""
    if arguments.evaluation_data is None or arguments.verb == "runall":
        return None
    return evaluated(arguments, screen, models)


def _advised(
    arguments: argparse.Namespace,
    screen: Screen,
    folder: Folder,
    runs: Mapping[str, Run],
    results: dict[str, dict[str, Any]],
    quantized: Model,
    scores: Scores | None,
) -> dict[str, Any]:
    """Prints and keeps what to try, and keeps the scores; returns the results with it."""
    for name, run in runs.items():
        first, place = name == next(iter(runs)), _place(folder, runs, name)
        findings = Findings(run, scores=scores if first else None)
        advice = advise(findings, "RUN" if place.path is None else str(place.path))
        if arguments.edgetpu and first:  # the device takes the main subgraph alone
            advice = priced_advice(advice, findings, quantized)
        if place.path is not None:
            save_part(place.path, "advice", advice)
            if findings.scores is not None:
                save_part(place.path, "scores", findings.scores)
        if len(runs) > 1 and advice:
            screen.say(f"--- {name}")
        for line in advice_lines(advice, terminal_width()):
            screen.say(line)
        if place.path is None and any(" RUN" in each.command for each in advice):
            screen.say("RUN is the folder of this run: run again with --output RUN")
        results[name]["advice"] = [vars(each) for each in advice]
    return next(iter(results.values())) if len(results) == 1 else {"runs": results}


def _compared(screen: Screen, folder: Folder, runs: dict[str, Run]) -> list[dict[str, Any]]:
    rows = side_by_side(runs)
    screen.table(*side_by_side_table(rows, list(runs)), title="the models side by side, by the float model's operators")
    if folder.path is not None:
        write_side_by_side(rows, list(runs), folder.path / "comparison.csv")
    return rows


def _refuse_unfit(arguments: argparse.Namespace) -> None:
    if not arguments.quantized:
        raise OptionError("got --float without --quantized; to quantize a float model here, give it as MODEL")
    if arguments.model is not None:
        raise OptionError(
            f"got MODEL {arguments.model!r} and --quantized; the float model of a quantized one is given by --float"
        )
    if arguments.debug_data is None and not arguments.signature_data:
        raise OptionError("--debug-data is needed; see --help for the forms that data may have")
    unfit = [name for name in ("--representative-data", "--kind", *QUANTIZING) if was_given(arguments, name)]
    if unfit:
        raise OptionError(f"got {', '.join(unfit)} with --quantized, which is quantized already; expected none of these")


def was_given(arguments: argparse.Namespace, option: str) -> bool:
    """Returns whether the command line has an option."""
    return any(word == option or word.startswith(option + "=") for word in arguments.words)


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
