"""The whole of TensorFlow's debugger guide: its own code against the same steps with ours, on the same model and images.

    python benchmarks/guide.py

The guide is https://www.tensorflow.org/lite/performance/quantization_debugger. Its steps: quantize; debug; pick suspected
layers (RMSE / scale above 0.7, and the first five); quantize again without them, then without MEAN; debug once more with
metrics of one's own; debug the whole model instead of each layer; quantize from the calibrated model. It evaluates every
model that it makes. Kept from it: its code for each step, its threshold, its loop that evaluates. Changed, on both sides: the
model is a MobileNetV3-Small with ImageNet weights from a file, the images that calibrate, are debugged and evaluated are
different ones, the builtin kernels run (XNNPACK refuses this model's int8 form), the whole-model debugger is not only made
but run, and nothing is plotted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import common
import numpy as np

THRESHOLD, FIRST_LAYERS = 0.7, 5
EVALUATION = "evaluate all models"


@dataclasses.dataclass
class Images:
    """The three sets, disjoint: inputs of float32 (1, 224, 224, 3), raw 0..255 RGB."""

    calibration: list[common.Image]
    debug: list[common.Image]
    evaluation: list[common.Image]
    labels: np.ndarray


class Clock:
    """Adds up the seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Counts what runs inside to that step."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


QUANTIZE, DEBUG, SELECT = "quantize to int8", "debug per layer", "quantize without the suspects"
WITHOUT_MEAN, OWN_METRICS = "quantize without MEAN", "debug with own metrics"
WHOLE, FROM_CALIBRATED = "debug the whole model", "quantize from the calibrated model"
STEPS = (QUANTIZE, DEBUG, SELECT, WITHOUT_MEAN, OWN_METRICS, WHOLE, FROM_CALIBRATED, EVALUATION)


def mean_abs_error(difference: np.ndarray) -> float:
    """The guide's metric of the difference."""
    return np.mean(np.abs(difference))


def correlation(floats: np.ndarray, integers: np.ndarray, scale: float, zero_point: int) -> float:
    """The guide's metric of both tensors; the guide forgets to widen the integers before it subtracts."""
    return np.corrcoef(floats.flatten(), (integers.flatten().astype(np.float32) - zero_point) / scale)[0, 1]


def same_argmax(floats: list[np.ndarray], quantized: list[np.ndarray]) -> float:
    """The guide's metric of the model's outputs."""
    return np.mean(np.argmax(floats) == np.argmax(quantized))


def guide(model: Any, images: Images, clock: Clock) -> dict[str, Any]:
    """Follows the guide with TensorFlow's classes; returns accuracies and suspects."""
    import pandas
    import tensorflow as tf
    from tensorflow.lite.python import convert

    Options, Debugger = tf.lite.experimental.QuantizationDebugOptions, tf.lite.experimental.QuantizationDebugger  # noqa: N806
    representative, debug = common.dataset(images.calibration), common.dataset(images.debug)
    scores: dict[str, list[float]] = {}

    def new_converter() -> Any:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        return converter

    def statistics_of(debugger: Any) -> Any:
        text = io.StringIO()
        debugger.layer_statistics_dump(text)
        text.seek(0)
        return pandas.read_csv(text)

    def evaluate(name: str, data: bytes) -> None:
        with clock.step(EVALUATION):
            interpreter = tf.lite.Interpreter(model_content=data, **common.builtin())
            interpreter.allocate_tensors()
            inputs, outputs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
            results = []
            for image in images.evaluation:
                interpreter.set_tensor(inputs, image)
                interpreter.invoke()
                results.append(interpreter.get_tensor(outputs).flatten())
            scores[name] = accuracies(np.array(results), images.labels)

    with clock.step(QUANTIZE):
        quantized_model = new_converter().convert()
    with clock.step(EVALUATION):
        predicted = model.predict(np.concatenate(images.evaluation), batch_size=16, verbose=0)
        scores["float"] = accuracies(predicted, images.labels)
    evaluate("int8", quantized_model)

    with clock.step(DEBUG):
        converter = new_converter()
        debugger = Debugger(converter=converter, debug_dataset=debug)
        debugger.run()
        layers = statistics_of(debugger)
        layers["range"] = 255.0 * layers["scale"]
        layers["rmse/scale"] = layers.apply(lambda row: np.sqrt(row["mean_squared_error"]) / row["scale"], axis=1)
        suspects = list(layers[layers["rmse/scale"] > THRESHOLD]["tensor_name"])
        suspects.extend(list(layers[:FIRST_LAYERS]["tensor_name"]))

    with clock.step(SELECT):
        options = Options(denylisted_nodes=suspects)
        debugger = Debugger(converter=converter, debug_dataset=debug, debug_options=options)
        selective = debugger.get_nondebug_quantized_model()
    evaluate("without the suspects", selective)

    with clock.step(WITHOUT_MEAN):
        options = Options(denylisted_ops=["MEAN"])
        debugger = Debugger(converter=converter, debug_dataset=debug, debug_options=options)
        selective = debugger.get_nondebug_quantized_model()
    evaluate("without MEAN", selective)

    with clock.step(OWN_METRICS):
        options = Options(
            layer_debug_metrics={"mean_abs_error": mean_abs_error},
            layer_direct_compare_metrics={"correlation": correlation},
            model_debug_metrics={"argmax_accuracy": same_argmax},
        )
        debugger = Debugger(converter=converter, debug_dataset=debug, debug_options=options)
        debugger.run()
        statistics_of(debugger)
        agreement = float(debugger.model_statistics["argmax_accuracy"])

    with clock.step(WHOLE):
        converter = new_converter()
        converter._experimental_calibrate_only = True
        calibrated = converter.convert()
        debug_model = convert.mlir_quantize(calibrated, enable_numeric_verify=True, enable_whole_model_verify=True)
        debugger = Debugger(quant_debug_model_content=debug_model, debug_dataset=debug)
        debugger.run()
        whole = statistics_of(debugger)

    with clock.step(FROM_CALIBRATED):
        selective = convert.mlir_quantize(calibrated, denylisted_nodes=suspects)
    evaluate("from the calibrated model", selective)
    last = float(np.sqrt(whole["mean_squared_error"].iloc[-1]))
    return {"scores": scores, "suspects": len(set(suspects)), "same_argmax": agreement, "last_rmse": last}


def ours(model: Any, images: Images, clock: Clock) -> dict[str, Any]:
    """Does the same steps with tflite_qdebug; returns accuracies and suspects."""
    from tflite_qdebug import Backend, LayerMetrics, evaluate, layer_error, load_float_model

    backend = Backend(kernels="builtin")
    debug = common.dataset(images.debug)

    with clock.step(QUANTIZE):
        float_model = load_float_model(model)
        calibrated = float_model.calibrate(common.dataset(images.calibration), progress=False)
        models = {"float": float_model.data, "int8": calibrated.quantize("int8").data}

    with clock.step(DEBUG):
        run = layer_error(calibrated, debug, backend=backend, progress=False)
        columns = run.columns()
        suspects = list(columns["node"][columns["rmse_over_scale"] > THRESHOLD])
        suspects.extend(columns["node"][:FIRST_LAYERS])

    with clock.step(SELECT):
        models["without the suspects"] = calibrated.quantize("int8", denylisted_nodes=suspects).data

    with clock.step(WITHOUT_MEAN):
        models["without MEAN"] = calibrated.quantize("int8", denylisted_ops=["MEAN"]).data

    with clock.step(OWN_METRICS):
        metrics = LayerMetrics(
            difference={"mean_abs_error": mean_abs_error},
            direct={"correlation": correlation},
            model={"argmax_accuracy": same_argmax},
        )
        own = layer_error(calibrated, debug, backend=backend, metrics=metrics, progress=False)

    with clock.step(WHOLE):
        whole = layer_error(calibrated, debug, whole_model=True, backend=backend, progress=False)

    with clock.step(FROM_CALIBRATED):
        models["from the calibrated model"] = calibrated.quantize("int8", denylisted_nodes=suspects).data

    with clock.step(EVALUATION):
        samples = [([image], int(label)) for image, label in zip(images.evaluation, images.labels, strict=True)]
        result = evaluate(models, samples, (top_1, top_5), backend=backend, progress=False)
        scores = {score.name: list(score.metrics.values()) for score in result.scores}
    return {
        "scores": scores,
        "suspects": len(set(suspects)),
        "same_argmax": own.model_metrics["argmax_accuracy"],
        "last_rmse": float(whole.statistics.rmse[-1]),
    }


def accuracies(results: np.ndarray, labels: np.ndarray) -> list[float]:
    """Returns top-1, and top-5 as the guide computes it."""
    top_five = np.sum(np.argsort(results, axis=1)[:, -5:] == labels.reshape(-1, 1)) / labels.size
    return [float(np.mean(np.argmax(results, axis=1) == labels)), float(top_five)]


# int8 outputs have many equal values, so both sides must break ties alike; our own "top_5" breaks them as argmax does.
def top_1(outputs: list[np.ndarray], label: int) -> float:
    """1 where the answer is the label, else 0."""
    return accuracies(outputs[0].reshape(1, -1), np.array([label]))[0]


def top_5(outputs: list[np.ndarray], label: int) -> float:
    """1 where the label is among the five best answers, else 0."""
    return accuracies(outputs[0].reshape(1, -1), np.array([label]))[1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what the converter prints and writes to both standard streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as sink:  # noqa: PTH123
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in enumerate(saved, 1):
                os.dup2(copy, stream)
                os.close(copy)


def warm_up(model: Any) -> None:
    """Imports, registers and compiles what only the first to come would have to wait for."""
    from tflite_qdebug import example, layer_error, load_float_model

    importlib.import_module("pandas")
    importlib.import_module("tensorflow").lite.TFLiteConverter.from_keras_model(model).convert()
    calibrated = load_float_model(example.float_model()).calibrate(example.representative_dataset, limit=2, progress=False)
    layer_error(calibrated, example.debug_dataset, limit=2, progress=False)


def time_table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """Returns the median seconds of every step, and the ratio."""
    rows = []

    def add(name: str, steps: list[str]) -> None:
        sums = [[sum(parts) for parts in zip(*(seconds[side][step] for step in steps), strict=True)] for side in seconds]
        medians = [statistics.median(values) for values in sums]
        rows.append([name, *(f"{value:.2f}" for value in medians), f"{common.ratio(*sums):.1f}x"])

    for step in STEPS:
        add(step, [step])
    add("all without evaluation", [step for step in STEPS if step != EVALUATION])
    add("all", list(STEPS))
    return common.table(["step", "guide, s", "ours, s", "ratio"], rows)


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0], cases=False)
    options.add_argument("--calibration", type=int, default=100, help="images that calibrate; default 100")
    options.add_argument("--debug", type=int, default=100, help="images that are debugged; default 100")
    options.add_argument("--evaluation", type=int, default=200, help="images that are evaluated; default 200")
    options.add_argument("--rounds", type=int, default=1, help="each runs both; default 1")
    chosen = options.parse_args()
    if not (chosen.data / common.KERAS_FILE).exists() or not (chosen.data / common.IMAGES_FILE).exists():
        raise SystemExit(f"there is no {common.KERAS_FILE} and {common.IMAGES_FILE} in the folder given as --data")
    everything, labels = common.load_images(chosen.data, 0, chosen.calibration + chosen.debug + chosen.evaluation)
    ends = np.cumsum([chosen.calibration, chosen.debug])
    images = Images(everything[: ends[0]], everything[ends[0] : ends[1]], everything[ends[1] :], labels[ends[1] :])

    sides, found = {"guide": guide, "ours": ours}, {}
    seconds: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    with quiet(), common.tensorflow_kernels("builtin"):
        import keras

        model = keras.models.load_model(chosen.data / common.KERAS_FILE, compile=False)
        warm_up(model)
        for turn in range(chosen.rounds):
            for side in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
                clock = Clock()
                found[side] = sides[side](model, images, clock)
                for step, value in clock.seconds.items():
                    seconds[side].setdefault(step, []).append(value)

    print(time_table(seconds) + "\n")
    rows = [
        [name, *(f"{100 * value:.1f}" for side in sides for value in found[side]["scores"][name])]
        for name in found["ours"]["scores"]
    ]
    print(common.table(["model", "guide, top-1 %", "guide, top-5 %", "ours, top-1 %", "ours, top-5 %"], rows) + "\n")
    names = {
        "suspects": "suspected layers",
        "same_argmax": "debug images with the same answer",
        "last_rmse": "RMSE at the output",
    }
    rows = [[text, *(f"{found[side][key]:.4g}" for side in sides)] for key, text in names.items()]
    print(common.table(["", *sides], rows))
    counts = {"calibration": chosen.calibration, "debug": chosen.debug, "evaluation": chosen.evaluation}
    common.write_json(chosen.json, {"guide": {"images": counts, "seconds": seconds, "found": found}})


if __name__ == "__main__":
    main()
