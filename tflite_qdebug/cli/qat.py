"""``tflite-qdebug qat``: trains quantization-aware, and sets float, post-training quantization and the result side by side."""

from __future__ import annotations

import argparse
import csv
import io
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.cli.options import backend_of
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import data, progress, show_evaluation, suspects
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.record import Run
from tflite_qdebug.remedies.annotation import Annotation, annotate
from tflite_qdebug.remedies.qat import QatResult, train_quantization_aware
from tflite_qdebug.remedies.qat_comparison import QatComparison, compare_training
from tflite_qdebug.wording import number

_KINDS = ("int8", "full_integer")


def qat(arguments: argparse.Namespace, screen: Screen) -> None:
    """Trains, converts and compares; or only says what to annotate."""
    kinds = arguments.kind or ["int8"]
    if len(kinds) > 1 or kinds[0] not in _KINDS:
        expected = " or ".join(_KINDS)
        raise OptionError(f"got --kind {', '.join(kinds)}, expected {expected}.{did_you_mean(kinds[0], _KINDS)}")
    folder = Folder(arguments.output)
    layers = _layers(arguments)
    if arguments.annotation_only:
        annotation = annotate(_model(arguments), layers, strict=arguments.strict)
        folder.write("annotation.py", annotation.code().encode())
        _show_annotation(screen, annotation)
        screen.result({"layers": annotation.layers, "skipped": annotation.skipped, "code": annotation.code()})
        return
    sources, backend = _sources(arguments), backend_of(arguments)
    result = train_quantization_aware(
        _model(arguments),
        sources["training"],
        layers=layers,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        loss=arguments.loss,
        label_offset=arguments.label_offset,
        freeze_batch_normalization=arguments.freeze_batch_normalization,
        strict=arguments.strict,
        limit=arguments.limit,
        seed=arguments.seed,
        progress=progress(arguments),
    )
    if folder.path is not None:
        result.save(folder.path)  # before anything else can fail
    _show_training(screen, result)
    comparison = compare_training(
        result,
        sources["representative"],
        sources["evaluation"],
        sources["debug"],
        kind=kinds[0],
        input_type=arguments.input_type,
        output_type=arguments.output_type,
        metrics=arguments.metric or ["top_1"],
        label_offset=arguments.label_offset,
        limit=arguments.limit,
        backend=backend,
        progress=progress(arguments),
    )
    _write(folder, result, comparison, arguments)
    _show_comparison(screen, comparison, arguments.count)
    _show_annotation(screen, result.annotation)
    if folder.path is not None:
        screen.say(
            f"results: {folder.path}/qat.tflite, qat.h5, qat.json, layers.csv, annotation.py, and what it was compared to"
        )
    screen.result({**result.to_dict(), **comparison.to_dict()})


def _model(arguments: argparse.Namespace) -> Any:
    if arguments.model != "example":
        return arguments.model
    from tflite_qdebug.example.network import keras_network

    return keras_network()


def _sources(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the four datasets; what cannot be opened is an error before anything is trained."""
    sources: dict[str, Any] = {}
    if arguments.training_data == "example" or (arguments.training_data is None and arguments.model == "example"):
        images, labels = example.load_split("training")
        sources["training"] = {"image": images, "labels": labels}
    elif arguments.training_data is None:
        raise OptionError("--training-data is needed; see --help for the forms that data may have")
    else:
        sources["training"] = arguments.training_data
    sources["representative"] = data(arguments, "representative")
    sources["evaluation"] = data(arguments, "evaluation")
    sources["debug"] = data(arguments, "debug") if arguments.debug_data or arguments.model == "example" else None
    for name, source in sources.items():
        if source is not None:
            open_dataset(source, (), f"{name} data")
    return sources


def _layers(arguments: argparse.Namespace) -> list[str] | None:
    layers = list(arguments.layer)
    if arguments.suspects:
        run = Run.load(arguments.suspects)
        found = suspects(run, run.worst("rmse_over_scale", arguments.count), most=arguments.count)
        if not found:
            raise OptionError(
                f"got --suspects {arguments.suspects}, in which no layer's RMSE/scale is above 0.7; name layers with --layer, "
                "or leave both out to train the whole model"
            )
        layers += found
    return layers or None


def _show_training(screen: Screen, result: QatResult) -> None:
    for node, layer in result.annotation.nodes.items():
        if node != layer:
            screen.say(f"{node} is the layer {layer}")
    options = result.options
    screen.say(
        f"trained {len(result.annotation.layers)} of {len(result.float_keras_model.layers)} Keras layers quantization-aware on "
        f"{options['training_data']}; {options['loss']}, learning rate {options['learning_rate']:g}, seed {options['seed']}"
    )
    names = [name for name in result.history[0] if name != "epoch"]
    screen.table(["epoch", *names], [[str(row["epoch"]), *(number(row[name]) for name in names)] for row in result.history])


def _show_comparison(screen: Screen, comparison: QatComparison, count: int) -> None:
    show_evaluation(screen, comparison.evaluation)
    header, rows = comparison.table()
    worst = [comparison.layers.index(row) for row in comparison.worst(count)]
    screen.say(f"the {len(worst)} layers with the greatest RMSE/scale, in the model's order")
    screen.table(header, [rows[position] for position in sorted(worst)])
    screen.notes(comparison.notes)
    screen.say(comparison.verdict())


def _show_annotation(screen: Screen, annotation: Annotation) -> None:
    screen.say("to train elsewhere:")
    for line in annotation.code().splitlines():
        screen.say(f"  {line}".rstrip())


def _write(folder: Folder, result: QatResult, comparison: QatComparison, arguments: argparse.Namespace) -> None:
    if folder.path is None:
        return
    result.save(folder.path, **comparison.to_dict())
    for name, model in comparison.models.items():
        folder.write(f"{name}.tflite", model.data)
    for name, run in comparison.runs.items():
        run.save(folder.path / f"run_{name}.json")
    header, rows = comparison.table()
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    folder.write("layers.csv", text.getvalue().encode())
    folder.write_repeat(arguments.words, options=result.options, layers=result.annotation.layers)
