"""``tflite-qdebug demo``: the whole way on the built-in example, with the words to do it on one's own model."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from typing import Any

from tflite_qdebug import example
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.analyses.layer_error import layer_error
from tflite_qdebug.cli.output import Folder, Screen
from tflite_qdebug.cli.verbs import progress, show_evaluation, show_run, suspects
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.reports.diagnosis import diagnosis_lines
from tflite_qdebug.reports.html import write_report
from tflite_qdebug.reports.tables import write_csv
from tflite_qdebug.study import Study
from tflite_qdebug.wording import number

_KINDS = ("float16", "dynamic_range", "int8", "int16x8")


def demo(arguments: argparse.Namespace, screen: Screen) -> None:
    """Converts, evaluates, measures, says why, keeps the worst layers in float, and evaluates again."""
    started = time.perf_counter()
    folder = Folder(arguments.output)
    shown = progress(arguments)

    screen.say("1. A float model, converted once and calibrated once")
    screen.say(f"   {example.MODEL_PATH.name}: a small MobileNetV3-like network that reads handwritten digits.")
    float_model = load_float_model(example.MODEL_PATH)
    calibrated = float_model.calibrate(example.representative_dataset, progress=shown)
    screen.say(f"   {len(float_model.model.main.operators)} operators; calibrated on {calibrated.dataset}.")
    _own(screen, "tflite-qdebug convert MODEL --representative-data DATA --kind int8 --output DIR")

    screen.say("2. Quantized in several ways, and compared on samples that nothing else has seen")
    models: dict[str, Any] = {"float": float_model, **{kind: calibrated.quantize(kind) for kind in _KINDS}}
    before = evaluate(models, example.evaluation_dataset, progress=shown)
    show_evaluation(screen, before)
    _own(screen, "tflite-qdebug evaluate float.tflite int8.tflite --evaluation-data DATA")

    screen.say("3. Which layers of the int8 model err, measured on the debug samples")
    run = layer_error(calibrated, example.debug_dataset, progress=shown)
    show_run(screen, run, run.worst("rmse_over_scale", count=10), "rmse_over_scale")
    _own(screen, "tflite-qdebug run MODEL --representative-data DATA --debug-data DATA --output DIR")

    screen.say("4. What matters at the output, and why")
    with _place(folder) as place:
        study = Study(
            place,
            float_model,
            models["int8"],
            example.debug_dataset,
            evaluation_dataset=example.evaluation_dataset,
            progress=shown,
        )
        study.scores()
        study.samples()
        study.sensitivity()
        study.profiles()
        for line in diagnosis_lines(study.diagnosis(), 120)[:3]:
            screen.say(f"   {line}")
        if folder.path is not None:
            write_report(study.findings, folder.path / "report.html")
    _own(screen, "tflite-qdebug runall MODEL --representative-data DATA --debug-data DATA --output DIR")

    nodes = suspects(run, run.worst("rmse_over_scale"))
    screen.say(f"5. The {len(nodes)} layers above 0.7 are kept in float, all others stay int8")
    models = {"float": float_model, "int8": models["int8"]}
    models["selective"] = calibrated.quantize("int8", denylisted_nodes=nodes)
    after = evaluate(models, example.evaluation_dataset, progress=shown)
    show_evaluation(screen, after)
    accuracy = {score.name: score.metrics["top_1"] for score in after.scores}
    size = {score.name: score.size for score in after.scores}
    verdict = (
        f"int8 lost {100 * (accuracy['float'] - accuracy['int8']):.1f} points; with {len(nodes)} layers in float "
        f"{100 * (accuracy['selective'] - accuracy['int8']):.1f} of them are back, for "
        f"{number(100 * (size['selective'] / size['int8'] - 1), 2)} % more bytes."
    )
    screen.say(f"   {verdict}")
    _own(screen, "tflite-qdebug convert MODEL --representative-data DATA --kind int8 --denylisted-node NAME ...")

    seconds = time.perf_counter() - started
    screen.say(f"Done in {seconds:.0f} s." + (f" Everything is in {folder.path}." if folder.path else ""))
    if folder.path is not None:
        for name, model in {"float": float_model, "int8": models["int8"], "selective": models["selective"]}.items():
            folder.write(f"{name}.tflite", model.data)
        run.save(folder.path / "run.json")
        write_csv(run, folder.path / "layers.csv")
        folder.write_repeat(arguments.words, provenance=run.provenance, before=before.to_dict(), after=after.to_dict())
    screen.result(
        {
            "verdict": verdict,
            "before": before.to_dict(),
            "run": run.to_dict(),
            "denylisted_nodes": nodes,
            "after": after.to_dict(),
            "seconds": seconds,
        }
    )


def _place(folder: Folder) -> contextlib.AbstractContextManager[Any]:
    """Returns where the analyses keep what they find: in the folder of results, or nowhere for long."""
    if folder.path is not None:
        return contextlib.nullcontext(folder.path)
    return tempfile.TemporaryDirectory()


def _own(screen: Screen, command: str) -> None:
    screen.say(f"   On your own model: {command}")
    screen.say()
