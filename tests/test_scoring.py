"""Candidates beside the float model: what is compared, the objective, paired differences and tests, worked out by hand."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tflite_qdebug import example
from tflite_qdebug.analyses.evaluation import METRICS
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.mixed_pair import Task
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import FloatModel, load_float_model
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit import Patch, expose
from tflite_qdebug.errors import DatasetError, MetricError, ModelError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model
from tflite_qdebug.remedies.scoring import VALUES, Scored, Scorer, decision_tensors, latency, sign_test

BUILTIN = Backend(kernels="builtin", workers=1, isolate=False)
COUNT = 24


@pytest.fixture(scope="module")
def floats() -> FloatModel:
    return load_float_model(example.MODEL_PATH)


@pytest.fixture(scope="module")
def int8(floats: FloatModel) -> bytes:
    return floats.calibrate(example.representative_dataset, "exposed", backend=BUILTIN, progress=False).quantize("int8").data


def scorer_of(
    floats: FloatModel, source: object = example.labelled_debug_dataset, task: object = None, **options: object
) -> Scorer:
    dataset = open_dataset(source, floats.model.input_specs(), "debug dataset", COUNT, labels="auto")
    functions = {"top_1": METRICS["top_1"]} if task is None else task
    return Scorer(floats.model, RealValued(dataset, []), Task(functions, 0), Backend(**{**BUILTIN._asdict(), **options}), False)


def logits_of(data: bytes, image: np.ndarray) -> np.ndarray:
    model = Model(data)
    ((tensor, kind),) = decision_tensors(model)
    assert kind == "classes"
    interpreter = Interpreter(expose(model, [tensor]), kernels="builtin")
    interpreter.invoke([image])
    values, scale = interpreter.read(tensor), model.main.tensors[tensor].quantization
    return values if scale is None else scale.dequantize(values)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()


def test_by_hand(floats: FloatModel, int8: bytes) -> None:
    found = scorer_of(floats).measure({"int8": int8})["int8"]
    images, labels = example.load_split("debug")
    divergences, same, right, float_right, lost = [], [], [], [], []
    for image, label in zip(images[:COUNT], labels[:COUNT], strict=True):
        p, q = (softmax(logits_of(data, image[None])) for data in (floats.data, int8))
        middle = (p + q) / 2
        divergences.append(sum(0.5 * float(np.sum(one * np.log(one / middle))) for one in (p, q)))
        lost.append(p.max() - p.reshape(-1)[q.argmax()])
        interpreter = Interpreter(int8, kernels="builtin")
        interpreter.invoke([image[None]])
        quantized = int(interpreter.read_outputs(dequantized=True)[0].argmax())
        same.append(quantized == p.argmax())
        right.append(quantized == label)
        float_right.append(p.argmax() == label)
    assert found.objective == pytest.approx(np.mean(divergences) + np.mean(lost), rel=1e-9)
    assert found.metrics["expected_loss"].value == pytest.approx(np.mean(lost), rel=1e-9)
    assert found.metrics["agreement"].value == pytest.approx(np.mean(same))
    assert found.metrics["top_1"].value == pytest.approx(np.mean(right))
    assert found.differences["top_1"].value == pytest.approx(np.mean(right) - np.mean(float_right))
    better = sum(a and not b for a, b in zip(right, float_right, strict=True))
    worse = sum(b and not a for a, b in zip(right, float_right, strict=True))
    assert worse > better  # the example is broken by its quantization
    assert found.differences["top_1"].p_value == pytest.approx(by_binomial(better, worse))
    assert found.differences["top_1"].low <= found.differences["top_1"].value <= found.differences["top_1"].high


def by_binomial(better: int, worse: int) -> float:
    total = better + worse
    tail = sum(math.comb(total, k) for k in range(min(better, worse) + 1)) / 2**total
    return min(1.0, 2.0 * tail)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (0, 1), (0, 5), (5, 0), (3, 3), (2, 9), (40, 60), (0, 2000)])
def test_sign_test(better: int, worse: int) -> None:
    assert sign_test(better, worse) == pytest.approx(by_binomial(better, worse), rel=1e-9)


def test_the_float_model_is_without_error(floats: FloatModel) -> None:
    scorer = scorer_of(floats)
    found = scorer.measure({"itself": floats.data})["itself"]
    assert found.objective == 0.0
    assert found.metrics["agreement"].value == 1.0
    assert found.differences["top_1"].value == 0.0
    assert found.differences["top_1"].p_value == 1.0
    assert scorer.samples == COUNT
    assert scorer.float_metrics["top_1"].value == found.metrics["top_1"].value


def test_workers_and_company_make_no_difference(floats: FloatModel, int8: bytes) -> None:
    alone = scorer_of(floats).measure({"int8": int8})["int8"]
    together = scorer_of(floats, workers=2, isolate=None).measure({"float": floats.data, "int8": int8})["int8"]
    assert alone.objective == together.objective
    assert alone.metrics == together.metrics
    np.testing.assert_array_equal(alone.objectives, together.objectives)


def test_nan_is_the_worst(floats: FloatModel, int8: bytes) -> None:
    dense = next(op for op in reversed(floats.model.main.operators) if op.name == "FULLY_CONNECTED")
    bias = floats.model.main.tensors[dense.inputs[2]]
    patch = Patch(floats.model)
    patch.constant(bias.index, np.full(bias.shape, np.nan, np.float32))
    found = scorer_of(floats, task={}).measure({"broken": patch.data(), "int8": int8})
    assert math.isinf(found["broken"].objective)
    assert found["int8"].chance_of_beating(found["broken"]) == 1.0
    assert found["broken"].chance_of_beating(found["int8"]) == 0.0


def test_chance_of_beating() -> None:
    one, other = (Scored(0.0, np.array(values), {}, {}) for values in ([1.0, 2.0, 3.0, np.inf], [2.0, 1.0, 4.0, np.inf]))
    assert one.chance_of_beating(other) == pytest.approx(2 / 3)
    assert other.chance_of_beating(one) == pytest.approx(1 / 3)


def test_without_probabilities_it_is_the_relative_squared_error() -> None:
    floats = models.float_model("two_by_two")
    assert {kind for _, kind in decision_tensors(floats.model)} == {VALUES}
    quantized = models.calibrated("two_by_two").quantize("int8").data
    dataset = open_dataset(models.dataset("two_by_two", 5), floats.model.input_specs(), "debug dataset")
    found = Scorer(floats.model, RealValued(dataset, []), Task({}, 0), BUILTIN, False).measure({"int8": quantized})["int8"]
    errors, signals = np.zeros((5, 2)), np.zeros((5, 2))
    for row, inputs in enumerate(models.samples("two_by_two", 5)):
        outputs = []
        for data in (floats.data, quantized):
            interpreter = Interpreter(data, kernels="builtin")
            interpreter.invoke(inputs)
            outputs.append([value.astype(np.float64) for value in interpreter.read_outputs(dequantized=True)])
        errors[row] = [np.sum((b - a) ** 2) for a, b in zip(*outputs, strict=True)]
        signals[row] = [np.sum(a**2) for a in outputs[0]]
    # Sums over the samples first, then the ratio, then the mean of the outputs.
    assert found.objective == pytest.approx(np.mean(errors.sum(axis=0) / signals.sum(axis=0)), rel=1e-6)


def test_what_is_wrong(floats: FloatModel, int8: bytes) -> None:
    with pytest.raises(DatasetError, match="has no label"):
        scorer_of(floats, example.debug_dataset).measure({"int8": int8})
    with pytest.raises(MetricError, match="failed on sample 0"):
        scorer_of(floats, task={"own": lambda outputs, label: 1 / 0}).measure({"int8": int8})
    shorter = models.float_tflite("two_by_two")  # of other outputs, and more of them
    with pytest.raises((ModelError, DatasetError)):
        scorer_of(floats).measure({"other": shorter})
    assert scorer_of(floats).measure({}) == {}


def test_latency(floats: FloatModel) -> None:
    image = example.load_split("debug")[0][:1]
    assert 0.0 < latency(floats.data, [image], BUILTIN) < 1000.0
