"""The loop over a dataset: every sample once, the same result whatever the number of workers, flat memory, kernels that err."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import models
import numpy as np
import pytest
from models import calibrated

from tflite_qdebug import collect, edit, kernels
from tflite_qdebug.collect import Backend, LayerMetrics, collect_layer_errors, map_samples
from tflite_qdebug.conversion import CalibratedModel
from tflite_qdebug.datasets import Sample
from tflite_qdebug.errors import DatasetError, MetricError, OptionError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model
from tflite_qdebug.statistics import ErrorStatistics

REFERENCE = Backend(kernels="reference", workers=1)


@functools.cache
def debug_model(name: str = "mixed", kind: str = "int8") -> edit.DebugModel:
    return calibrated(name).debug_model(kind)


def numbered(inputs: list[list[np.ndarray]]) -> list[Sample]:
    return [Sample(index, arrays) for index, arrays in enumerate(inputs)]


def collected(
    model: edit.DebugModel, dataset: Any, backend: Backend = REFERENCE, metrics: LayerMetrics | None = None, **options: Any
) -> collect.Collected:
    return collect_layer_errors(
        model.data, model.layers, dataset, backend, metrics or LayerMetrics(), outputs=model.outputs, stateful=model.stateful,
        **options,
    )  # fmt: skip


def same(first: ErrorStatistics, second: ErrorStatistics) -> None:
    assert first.to_dict() == second.to_dict()


# ------------------------------------------------------------------------------------------------------- map_samples


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_samples(workers: int) -> None:
    def work(worker: int, sample: int) -> tuple[int, int]:
        time.sleep(0.002 * (sample % 3))
        return sample, threading.get_ident()

    results = list(map_samples(work, list(range(workers)), range(20)))
    assert [sample for sample, _ in results] == list(range(20))
    if workers > 1:
        assert len({thread for _, thread in results}) > 1


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_does_one_sample_at_a_time(workers: int) -> None:
    busy = [threading.Lock() for _ in range(workers)]

    def work(lock: threading.Lock, sample: int) -> int:
        assert lock.acquire(blocking=False), "two samples at once in one worker"
        time.sleep(0.001)
        lock.release()
        return sample

    assert list(map_samples(work, busy, range(30))) == list(range(30))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_at_most_two_samples_per_worker_are_held(workers: int) -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for sample in range(50):
            drawn = sample + 1
            yield sample

    for count, _ in enumerate(map_samples(lambda worker, sample: sample, list(range(workers)), source()), 1):
        assert drawn - count < 2 * workers


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_first_error_ends_it_and_earlier_results_come_before(workers: int) -> None:
    def work(worker: int, sample: int) -> int:
        if sample == 5:
            raise ZeroDivisionError(sample)
        return sample

    results: list[int] = []
    with pytest.raises(ZeroDivisionError, match="5"):
        results.extend(map_samples(work, list(range(workers)), range(1000)))
    assert results == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tflite_qdebug")]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_error_of_the_dataset_is_passed_on(workers: int) -> None:
    def source() -> Iterator[int]:
        yield from range(4)
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        list(map_samples(lambda worker, sample: sample, list(range(workers)), source()))


# -------------------------------------------------------------------------------------------------------- collecting


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("backend", [REFERENCE, Backend(workers=2), Backend(kernels="builtin", workers=3)])
def test_every_sample_is_counted_once(count: int, backend: Backend) -> None:
    result = collected(debug_model(), numbered(models.samples("mixed", count)), backend)
    assert result.statistics.samples == count
    for layer, elements in zip(debug_model().layers, result.statistics.num_elements, strict=True):
        assert elements == count * int(np.prod(layer.shape))


@pytest.mark.parametrize("kernels", ["auto", "builtin", "reference"])
def test_the_result_does_not_depend_on_the_workers(kernels: str) -> None:
    dataset = numbered(models.samples("mixed", 12))
    alone = collected(debug_model(), dataset, Backend(kernels=kernels, workers=1))
    for workers in (2, 3):
        several = collected(debug_model(), dataset, Backend(kernels=kernels, workers=workers))
        same(several.statistics, alone.statistics)
        assert several.provenance["workers"] == workers


def test_sums_by_hand_of_every_layer() -> None:
    dataset = numbered(models.samples("mixed", 3))
    result = collected(debug_model(), dataset)
    for position, layer in enumerate(debug_model().layers):
        errors, signals = [], []
        for sample in dataset:
            interpreter = models.run(debug_model().data, sample.inputs)
            integers = interpreter.get_tensor(layer.tensor_idx).astype(np.float64)
            signals.append(interpreter.get_tensor(layer.float_idx).astype(np.float64).reshape(-1))
            errors.append(((integers - layer.zero_point) * layer.scale).reshape(-1) - signals[-1])
        error, signal = np.concatenate(errors), np.concatenate(signals)
        unit = np.abs(signal).max() * 2.0**-22
        assert result.statistics.rmse[position] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4, abs=unit)
        assert result.statistics.bias[position] == pytest.approx(error.mean(), rel=1e-3, abs=unit)
        assert result.statistics.max_abs_error[position] == pytest.approx(np.abs(error).max(), rel=1e-4, abs=unit)
        if np.sqrt((error**2).mean()) > 10 * unit:  # else it is float32's rounding alone
            worst = int(np.argmax([(part**2).mean() for part in errors]))
            assert result.statistics.worst_sample[position] == worst


@pytest.mark.parametrize(("name", "kind"), [("mixed", "int8"), ("mixed", "int16x8"), ("long_lstm", "dynamic_range")])
@pytest.mark.parametrize("statistics", ["numpy", "fastest"])
def test_relative_errors_by_hand_of_every_layer(name: str, kind: str, statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if statistics == "numpy":
        monkeypatch.setattr(collect, "measure_relative", lambda: kernels._relative_with_numpy)
    model, dataset = debug_model(name, kind), numbered(models.samples(name, 3))
    result = collected(model, dataset, metrics=LayerMetrics(relative=True))
    zeros = 0
    for position, layer in enumerate(model.layers):
        total, present = 0.0, 0
        for sample in dataset:
            interpreter = models.run(model.data, sample.inputs)
            signal = interpreter.get_tensor(layer.float_idx).astype(np.float64).reshape(-1)
            values = interpreter.get_tensor(layer.tensor_idx).astype(np.float64).reshape(-1)
            if layer.scale is not None:
                values = (values - layer.zero_point) * layer.scale
            chosen = signal != 0
            zeros += int((~chosen).sum())
            total += (np.abs(values - signal)[chosen] / np.abs(signal[chosen])).sum()
            present += int(chosen.sum())
        assert result.statistics.relative_sums[position, 1] == present
        # Float values near zero have the error's rounding in float32 above them: hence no closer.
        assert result.statistics.mre[position] == pytest.approx(total / present, rel=1e-3, abs=1e-6)
    assert zeros or name != "mixed", "some float value of some layer is to be zero"


def test_relative_errors_do_not_depend_on_the_workers_and_change_nothing_else() -> None:
    dataset = numbered(models.samples("mixed", 7))
    metrics = LayerMetrics(relative=True)
    alone = collected(debug_model(), dataset, Backend(workers=1), metrics)
    same(collected(debug_model(), dataset, Backend(workers=2), metrics).statistics, alone.statistics)
    assert alone.statistics.has_relative_errors
    plain = collected(debug_model(), dataset, Backend(workers=1)).statistics
    assert not plain.has_relative_errors
    without = alone.statistics.to_dict()
    del without["relative_sums"]
    assert plain.to_dict() == without


def test_memory_does_not_grow_with_the_samples() -> None:
    arrays = models.samples("mixed", 1)[0]

    def many(count: int) -> Iterator[Sample]:
        for index in range(count):
            yield Sample(index, [array + np.float32(index) for array in arrays])

    def peak(count: int) -> int:
        tracemalloc.start()
        collected(debug_model(), many(count), Backend(kernels="builtin", workers=2))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(5)
    # 300 samples more, of 4 kB each and as much again in results, would show at once.
    assert peak(320) < peak(20) + 100_000


def test_an_empty_dataset_and_a_wrong_sample_are_dataset_errors() -> None:
    with pytest.raises(DatasetError, match="yielded no samples"):
        collected(debug_model(), [])
    wrong = [*numbered(models.samples("mixed", 2)), Sample(2, [np.zeros((1, 2), np.float32)])]
    for workers in (1, 2):
        with pytest.raises(DatasetError, match=r"sample 2: input .*got shape \(1, 2\)"):
            collected(debug_model(), wrong, Backend(kernels="reference", workers=workers))
    with pytest.raises(OptionError, match="workers=0"):
        collected(debug_model(), wrong, Backend(workers=0))


@pytest.mark.parametrize("kind", ["dynamic_range", "float16"])
def test_state_does_not_leak_from_one_sample_into_the_next(kind: str) -> None:
    model = debug_model("long_lstm", kind)
    assert model.stateful
    samples = numbered(models.samples("long_lstm", 4))
    forwards, backwards = (
        [collected(model, [sample]).statistics.sums for sample in order] for order in (samples, samples[::-1])
    )
    together, reverse = collected(model, samples).statistics, collected(model, samples[::-1]).statistics
    np.testing.assert_array_equal(forwards, backwards[::-1])
    np.testing.assert_allclose(together.sums, np.sum(forwards, axis=0), rtol=1e-12)
    np.testing.assert_allclose(together.sums, reverse.sums, rtol=1e-12)
    np.testing.assert_array_equal(together.max_abs_error, reverse.max_abs_error)


# ----------------------------------------------------------------------------------------------------------- kernels


def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets XNNPACK refuse every model, in the words in which it does."""
    from tflite_qdebug import tf_private

    new = tf_private.new_interpreter

    def refuse(runtime: Any, model: bytes, kernels: str, *arguments: Any, **keywords: Any) -> Any:
        if kernels == "auto":
            raise RuntimeError("failed to create XNNPACK runtime\nNode number 125 failed to prepare")
        return new(runtime, model, kernels, *arguments, **keywords)

    monkeypatch.setattr(tf_private, "new_interpreter", refuse)


def test_a_refusal_by_xnnpack_is_noted_and_the_builtin_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = numbered(models.samples("mixed", 2))
    expected = collected(debug_model(), dataset, Backend(kernels="builtin", workers=1))
    refusing(monkeypatch)
    result = collected(debug_model(), dataset, Backend(workers=2))
    assert result.notes == ["XNNPACK refuses this model (failed to create XNNPACK runtime); the builtin kernels ran instead"]
    assert result.provenance["kernels"] == "builtin"
    same(result.statistics, expected.statistics)


def test_xnnpacks_refusal_of_a_dead_layer_is_survived() -> None:
    """A layer of zeros has a range of nothing, and a scale which XNNPACK does not take."""
    model = calibrated("chain").model
    ranges = dict.fromkeys(list(model.main.producers)[:1], (0.0, 1e-30))
    dead = CalibratedModel(calibrated("chain").float_model, edit.with_ranges(model, ranges)).debug_model()
    result = collected(dead, numbered(models.samples("chain", 2)), Backend(workers=1))
    assert result.statistics.samples == 2
    assert result.provenance["kernels"] in ("xnnpack", "builtin")
    assert bool(result.notes) == (result.provenance["kernels"] == "builtin")


def test_the_wrong_batch_matmul_of_xnnpack_is_found_and_the_builtin_kernels_run() -> None:
    model, dataset = debug_model("attention"), numbered(models.samples("attention", 3))
    position = [layer.op_name for layer in model.layers].index("BATCH_MATMUL")
    wrong = Interpreter(model.data, "tensorflow")
    wrong.invoke(dataset[0].inputs)
    layer = model.layers[position]
    real = (wrong.read(layer.tensor_idx).astype(float) - layer.zero_point) * layer.scale
    rmse = np.sqrt(np.mean((real - wrong.read(layer.float_idx)) ** 2))
    truth = collected(model, dataset, Backend("tensorflow", "builtin", workers=1))
    if rmse < 3 * truth.statistics.rmse[position]:
        pytest.skip("this TensorFlow has no fault in int8 BATCH_MATMUL")
    result = collected(model, dataset, Backend("tensorflow", workers=2))
    assert len(result.notes) == 1
    assert "BATCH_MATMUL" in result.notes[0]
    assert "a fault of the kernels, not of quantization; the builtin kernels ran instead" in result.notes[0]
    assert result.provenance["kernels"] == "builtin"
    same(result.statistics, truth.statistics)


def test_kernels_that_agree_are_kept() -> None:
    result = collected(debug_model(), numbered(models.samples("mixed", 2)), Backend(workers=1))
    assert (result.notes, result.provenance["kernels"]) == ([], "xnnpack")


# ----------------------------------------------------------------------------------------------------------- metrics


def test_metrics_of_layers_and_of_the_model_by_hand() -> None:
    dataset = numbered(models.samples("mixed", 3))
    metrics = LayerMetrics(
        difference={"peak": lambda error: np.abs(error).max()},
        direct={"top": lambda reference, integers, scale, zero_point: integers.max()},
        model={"distance": lambda floats, quantized: np.abs(floats[0] - quantized[0]).max()},
    )
    floating = calibrated("mixed").float_model.data
    result = collected(debug_model(), dataset, REFERENCE, metrics, float_model=floating)
    plain = collected(debug_model(), dataset)
    same(result.statistics, plain.statistics)
    np.testing.assert_allclose(result.metrics["peak"], plain.statistics.tensorflow_metrics()[:, 3], rtol=1e-6)
    tops = [
        [models.run(debug_model().data, sample.inputs).get_tensor(layer.tensor_idx).max() for layer in debug_model().layers]
        for sample in dataset
    ]
    np.testing.assert_allclose(result.metrics["top"], np.mean(tops, axis=0))
    int8 = calibrated("mixed").quantize("int8").data
    distances = [
        np.abs(models.outputs(floating, sample.inputs)[0] - models.outputs(int8, sample.inputs)[0]).max() for sample in dataset
    ]
    assert result.model_metrics["distance"] == pytest.approx(np.mean(distances), rel=1e-6)


def test_nan_of_a_metric_is_left_out_of_its_mean() -> None:
    values = iter([1.0, float("nan"), 5.0] * 50)
    model = debug_model()
    one = edit.DebugModel(model.data, model.layers[:1], model.outputs, model.stateful, model.verify)
    metrics = LayerMetrics({"mine": lambda error: next(values)})
    assert collected(one, numbered(models.samples("mixed", 3)), REFERENCE, metrics).metrics["mine"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda error: 1 / 0, "metric 'mine' failed on layer '.*', sample 0: ZeroDivisionError: division by zero"),
        (
            lambda error: error,
            r"metric 'mine' on layer .*, sample 0: got an array of shape \(1, 8, 8, 8\), expected one number",
        ),
        (lambda error: None, "got None, expected one number"),
        (lambda error: "high", "expected one number"),
    ],
)
def test_a_metric_that_fails_says_where(metric: Any, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        collected(debug_model(), numbered(models.samples("mixed", 1)), REFERENCE, LayerMetrics({"mine": metric}))


def test_tensors_of_different_size_are_no_pair() -> None:
    model = debug_model()
    main = Model(model.data).main
    small = next(layer for layer in model.layers if layer.op_name == "SOFTMAX")
    large = next(layer for layer in model.layers if layer.op_name == "CONV_2D")
    assert main.tensors[small.tensor_idx].shape != main.tensors[large.float_idx].shape
    wrong = dataclasses.replace(small, float_idx=large.float_idx)
    with pytest.raises(Exception, match="they are no pair"):
        collected(edit.DebugModel(model.data, (wrong,), 1, False, "per_layer"), numbered(models.samples("mixed", 1)))
