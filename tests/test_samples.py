"""The worst samples: against both models run by TensorFlow's interpreter, and the metrics by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from tflite_qdebug import example
from tflite_qdebug.analyses.samples import worst_samples
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.findings import Findings, SampleError, Samples, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.reports.samples import flip_sentence, sample_table, write_samples_csv

BACKEND = Backend(kernels="reference", workers=1, isolate=False)


def found(name: str, data: Any, quantized: bytes | None = None, **options: Any) -> Samples:
    quantized = models.calibrated(name).quantize("int8").data if quantized is None else quantized
    return worst_samples(models.float_tflite(name), quantized, data, **{"backend": BACKEND, "progress": False, **options})


def by_hand(name: str, quantized: bytes, data: list[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the outputs of both models, flat and joined, for each sample: ``(quantized, float)``."""
    pairs = []
    for inputs in data:
        sides = [
            np.concatenate([one.astype(np.float64).reshape(-1) for one in models.outputs(model, inputs)])
            for model in (quantized, models.float_tflite(name))
        ]
        pairs.append((sides[0], sides[1]))
    return pairs


def metric_by_hand(name: str, values: np.ndarray, reference: np.ndarray) -> float:
    error = values - reference
    if name == "sqnr_db":
        return float(10 * np.log10((reference**2).sum() / (error**2).sum()))
    if name == "cosine":
        return float(values @ reference / np.linalg.norm(values) / np.linalg.norm(reference))
    if name == "mse":
        return float((error**2).mean())
    if name == "mre":
        return float(np.mean(np.abs(error[reference != 0] / reference[reference != 0])))
    if name == "chebyshev":
        return float(np.abs(error).max())
    p, q = (np.maximum(one, 1e-7) for one in (reference, values))
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("metric", ["sqnr_db", "cosine", "mse", "mre", "chebyshev", "kl"])
def test_the_worst_are_those_of_a_sort_of_all(metric: str) -> None:
    quantized = models.calibrated("mixed").quantize("int8").data
    data = models.samples("mixed", 12, seed=5)
    values = [metric_by_hand(metric, *pair) for pair in by_hand("mixed", quantized, data)]
    order = np.argsort(values if metric in ("sqnr_db", "cosine") else [-value for value in values], kind="stable")
    result = found("mixed", data, quantized, metric=metric, count=5)
    assert [sample.index for sample in result.worst] == order[:5].tolist()
    np.testing.assert_allclose([sample.value for sample in result.worst], np.array(values)[order[:5]], rtol=1e-5)
    assert result.metric == metric
    assert result.errors.samples == 12
    assert result.errors.variants == ("quantized",)


def test_outputs_are_pooled_and_matched_whatever_their_order() -> None:
    quantized = models.calibrated("two_by_two").quantize("int8").data
    data = models.samples("two_by_two", 6, seed=2)
    result = found("two_by_two", data, quantized, count=6)
    pairs = by_hand("two_by_two", quantized, data)
    for sample in result.worst:
        assert sample.sqnr_db == pytest.approx(metric_by_hand("sqnr_db", *pairs[sample.index]), rel=1e-5)
        assert sample.cosine == pytest.approx(metric_by_hand("cosine", *pairs[sample.index]), rel=1e-6)
        assert sample.mse == pytest.approx(metric_by_hand("mse", *pairs[sample.index]), rel=1e-5)
    every = np.concatenate([values for values, _ in pairs]), np.concatenate([reference for _, reference in pairs])
    assert len(result.errors.outputs) == 2
    total = result.errors.sums.sum(axis=1)[0]
    assert total[1] == pytest.approx(((every[0] - every[1]) ** 2).sum(), rel=1e-6)


def test_flips_of_the_first_output_by_hand() -> None:
    quantized = load_float_model(example.float_model()).calibrate(example.representative_dataset).quantize("int8").data
    data = list(example.debug_dataset())[:40]
    classes = [[int(models.outputs(m, inputs)[0].argmax()) for m in (example.float_model(), quantized)] for inputs in data]
    flipped = [index for index, (ours, theirs) in enumerate(classes) if ours != theirs]
    assert len(flipped) > 3  # the example's illness
    result = worst_samples(example.float_model(), quantized, data, count=3, backend=BACKEND, progress=False)
    assert result.flip_count == len(flipped)
    assert [sample.index for sample in result.flips] == flipped[:3]
    for sample in (*result.flips, *result.worst):
        assert [sample.float_class, sample.quantized_class] == classes[sample.index]
        assert sample.flipped == (sample.index in flipped)
    assert float(result.errors.metric("flips")[0, 0]) == pytest.approx(len(flipped) / 40)
    assert f"{len(flipped)} of 40" in flip_sentence(result)


def test_an_output_of_one_value_or_of_many_rows_has_no_class() -> None:
    result = found("attention", models.samples("attention", 3))
    assert {(s.float_class, s.quantized_class, s.flipped) for s in result.worst} == {(-1, -1, False)}
    assert result.flip_count == 0
    assert flip_sentence(result) == ""


def test_samples_of_integers_are_the_floats_that_they_stand_for() -> None:
    quantized = models.calibrated("chain").quantize("full_integer")
    spec = Model(quantized.data).main
    scale = spec.tensors[spec.inputs[0]].quantization
    assert scale is not None
    integers = [[np.random.default_rng(i).integers(-128, 128, (1, 6, 6, 3)).astype(np.int8)] for i in range(4)]
    floats = [[scale.dequantize(array) for array in sample] for sample in integers]
    first, second = (found("chain", data, quantized.data, count=4) for data in (integers, floats))
    assert first.worst == second.worst
    assert all(np.isfinite(sample.sqnr_db) for sample in first.worst)


@pytest.mark.parametrize(
    "backend", [Backend(kernels="reference", workers=2), Backend(kernels="reference", workers=3, isolate=False)]
)
def test_workers_change_nothing(backend: Backend) -> None:
    data = models.samples("chain", 9)
    one, several = found("chain", data, count=4), found("chain", data, count=4, backend=backend)
    assert one.worst == several.worst
    np.testing.assert_array_equal(one.errors.sums, several.errors.sums)
    np.testing.assert_array_equal(one.errors.replicates, several.errors.replicates)


def test_state_is_set_back_before_each_sample() -> None:
    (sample,) = models.samples("lstm", 1)
    result = found("lstm", [sample, sample, sample], count=3)
    assert len({s.sqnr_db for s in result.worst}) == 1
    assert [s.index for s in result.worst] == [0, 1, 2]  # of equals the first comes first


def test_what_is_kept_does_not_grow_with_the_samples() -> None:
    pulled: list[int] = []

    def many() -> Iterator[list[np.ndarray]]:
        for number in range(300):
            pulled.append(number)
            yield [np.random.default_rng(number).normal(size=(1, 6, 6, 3)).astype(np.float32)]

    result = found("chain", many, count=2)
    assert len(pulled) >= 300
    assert len(result.worst) == 2
    assert result.errors.samples == 300


def test_a_sample_that_gives_nan_is_the_worst_of_all() -> None:
    from tflite_qdebug.analyses.samples import _Compared, _Kept
    from tflite_qdebug.output_error import measure_output

    reference = np.array([1.0, 2.0], np.float32)
    kept = _Kept("sqnr_db", 3, ("output",))
    outputs = [reference * 1.5, np.array([np.nan, 2.0], np.float32), reference, np.zeros(2, np.float32)]
    for index, values in enumerate(outputs):
        kept.add(_Compared(index, None, measure_output(values, reference)[None], 1, 1))
    assert [sample.index for sample in kept.found({}, []).worst] == [1, 3, 0]


def test_labels_are_kept() -> None:
    data = [([array], label) for (array,), label in zip(models.samples("chain", 3), (4, 5, 6), strict=True)]
    result = found("chain", data, labels=True, count=3)
    assert {sample.index: sample.label for sample in result.worst} == {0: 4, 1: 5, 2: 6}


def test_provenance_tells_what_ran() -> None:
    result = found("chain", models.samples("chain", 2))
    assert result.provenance["quantized_model_sha256"] == Model(models.calibrated("chain").quantize("int8").data).sha256
    assert result.provenance["kernels"] == result.provenance["float_kernels"] == "reference"
    assert result.provenance["samples"] == 2


# -- wrong input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": "sqnr"}, OptionError, "Did you mean 'sqnr_db'"),
        ({"metric": "kl"}, OptionError, "no probabilities"),
        ({"count": 0}, OptionError, "count=0"),
        ({"signature": "nonsense"}, OptionError, "nonsense"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        found("chain", models.samples("chain", 2), **options)


def test_wrong_models_and_data() -> None:
    quantized = models.calibrated("chain").quantize("int8").data
    with pytest.raises(ModelError, match="float model"):
        worst_samples(None, quantized, models.samples("chain", 1), backend=BACKEND, progress=False)
    with pytest.raises(ModelError, match="no pair"):
        worst_samples(models.float_tflite("two_by_two"), quantized, models.samples("chain", 1), backend=BACKEND, progress=False)
    with pytest.raises(DatasetError):
        found("chain", [], quantized)
    with pytest.raises(DatasetError, match="shape"):
        found("chain", [[np.zeros((1, 5, 5, 3), np.float32)]], quantized)


def test_an_error_on_the_way_loses_nothing() -> None:
    data = [*models.samples("chain", 4), [np.full((1, 6, 6, 3), np.nan, np.float32)]]
    with pytest.raises(DatasetError) as caught:
        found("chain", data)
    partial = caught.value.partial_samples  # type: ignore[attr-defined]
    assert partial.errors.samples == 4
    assert len(partial.worst) == 4


# -- reports ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made() -> Samples:
    errors = OutputErrors(["quantized"], ["output"])
    errors.samples = 50
    worst = (
        SampleError(7, "cat", 3.25, 0.5, 0.125, 2, 4, 0.75),
        SampleError(3, None, float("-inf"), 0.25, 0.5, 1, 1, 0.5),
    )
    return Samples(worst, (worst[0], SampleError(9, "dog", 20.0, 0.99, 0.001, 0, 1, 0.25)), 11, errors, "chebyshev")


def test_the_table(made: Samples) -> None:
    header, rows = sample_table(made)
    assert header == ["sample", "label", "max error", "SQNR dB", "cosine", "MSE", "class float", "class quantized", "flips"]
    assert rows == [
        ["7", "cat", "0.7500", "3.250", "0.5000", "0.1250", "2", "4", "yes"],
        ["3", "-", "0.5000", "-inf", "0.2500", "0.5000", "1", "1", ""],
    ]
    assert [row[0] for row in sample_table(made, flips=True)[1]] == ["7", "9"]
    assert flip_sentence(made) == "the prediction flips on 11 of 50 samples (22.0 %)"


def test_the_csv(made: Samples, tmp_path: Path) -> None:
    write_samples_csv(made, tmp_path / "samples.csv")
    with open(tmp_path / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["index"], row["flipped"]) for row in rows] == [
        ("1", "7", "True"), ("2", "3", "False"), ("", "9", "True"),
    ]  # fmt: skip
    assert [float(row["chebyshev"]) for row in rows] == [0.75, 0.5, 0.25]
    assert float(rows[1]["sqnr_db"]) == -np.inf


def test_samples_survive_saving(tmp_path: Path, make_run: Callable[[Path], None]) -> None:
    result = found("mixed", models.samples("mixed", 5), count=2)
    make_run(tmp_path)
    save_part(tmp_path, "samples", result)
    loaded = Findings.load(tmp_path).samples
    assert loaded is not None
    assert (loaded.worst, loaded.flips, loaded.flip_count) == (result.worst, result.flips, result.flip_count)
    np.testing.assert_array_equal(loaded.errors.replicates, result.errors.replicates)


@pytest.fixture
def make_run() -> Callable[[Path], None]:
    from tflite_qdebug.record import Run
    from tflite_qdebug.statistics import ErrorStatistics

    return lambda folder: Run("per_layer", [], ErrorStatistics(0)).save(folder / "run.json")
