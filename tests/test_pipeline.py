"""In place of the converter step: the same bytes, and besides a run, a report, and limits that a model is held to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import faulty_models
import tensorflow as tf

import tflite_qdebug
from tflite_qdebug import Backend, tf_private
from tflite_qdebug.errors import DatasetError, LimitError, OptionError
from tflite_qdebug.findings import Findings

BACKEND = Backend(workers=1, isolate=False)


@pytest.fixture(scope="module")
def sound() -> Any:
    return faulty_models.built()


@pytest.fixture(scope="module")
def ill() -> Any:
    """A layer gives values a hundred times smaller than those that it is joined with."""
    return faulty_models.built(faulty_models.unbalanced)


def images(seed: int, count: int = 12) -> list[list[np.ndarray]]:
    return faulty_models.images(count, seed)


def calibrating() -> Iterator[list[np.ndarray]]:
    yield from images(1, 24)


def labelled(model: Any, count: int = 16) -> list[Any]:
    """Samples whose label is what the float model says: it is right on all of them."""
    return [(inputs, int(np.argmax(model(inputs[0])))) for inputs in images(5, count)]


def int8(converter: Any) -> Any:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibrating
    return converter


def debugged(converter: Any, folder: Path, **attributes: Any) -> Any:
    settings = {"debug_folder": folder, "debug_dataset": images(2), "debug_backend": BACKEND, "debug_progress": False}
    for name, value in {**settings, **attributes}.items():
        setattr(int8(converter), name, value)
    return converter


def by_keras(make: Any, model: Any, folder: Path) -> Any:
    return make.from_keras_model(model)


def by_saved_model(make: Any, model: Any, folder: Path) -> Any:
    path = folder / "saved"
    if not path.exists():
        model.export(str(path), verbose=False)
    return make.from_saved_model(str(path))


def by_functions(make: Any, model: Any, folder: Path) -> Any:
    kernels = [tf.constant(layer.get_weights()[0]) for layer in model.layers if layer.name in ("stem", "left")]

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 4), tf.float32, "image")])
    def function(image: Any) -> Any:
        for kernel in kernels:
            image = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME"))
        return image

    return make.from_concrete_functions([function.get_concrete_function()])


@pytest.mark.parametrize("source", [by_keras, by_saved_model, by_functions], ids=lambda source: source.__name__)
def test_the_bytes_are_tensorflows(source: Callable[..., Any], sound: Any, tmp_path: Path) -> None:
    with tf_private.captured_chatter():
        expected = int8(source(tf.lite.TFLiteConverter, sound, tmp_path)).convert()
        converter = debugged(source(tflite_qdebug.TFLiteConverter, sound, tmp_path), tmp_path / "runs")
        assert converter.convert() == expected
    assert converter.study.pair.quantized.data == expected
    assert converter.report.exists()
    assert len(Findings.load(converter.report.parent).run.layers) >= 2


@pytest.mark.parametrize("kind", ["float", "dynamic range", "integer inputs", "16x8"])
def test_all_kinds_are_converted_as_tensorflow_does(kind: str, sound: Any, tmp_path: Path) -> None:
    def changed(converter: Any) -> Any:
        if kind != "float":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind in ("integer inputs", "16x8"):
            converter.representative_dataset = calibrating
        if kind == "integer inputs":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        if kind == "16x8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
        return converter

    with tf_private.captured_chatter():
        expected = changed(tf.lite.TFLiteConverter.from_keras_model(sound)).convert()
        converter = changed(tflite_qdebug.TFLiteConverter.from_keras_model(sound))
        converter.debug_folder, converter.debug_progress, converter.debug_backend = tmp_path, False, BACKEND
        converter.debug_dataset = images(2)
        assert converter.convert() == expected
    assert (converter.study is None) == (kind == "float")


def test_a_model_that_is_bad_is_refused_and_not_lost(ill: Any, tmp_path: Path) -> None:
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(ill), tmp_path, min_output_sqnr_db=40.0)
    with tf_private.captured_chatter(), pytest.raises(LimitError) as caught:
        converter.convert()
    said = str(caught.value)
    assert "misses 1 of 1 limits" in said
    assert "over 12 samples, expected 40" in said
    assert str(converter.report) in said
    blamed = [suspect.node for suspect in converter.study.findings.diagnosis.suspects]
    names = blamed or [converter.study.findings.run.layers[converter.study.findings.run.worst("severity", 1)[0]].node]
    assert names[0].split(";")[0][-20:] in said
    assert caught.value.model == converter.study.pair.quantized.data
    assert caught.value.exit_code == 11
    assert [check.passed for check in converter.checks] == [False]


def test_a_model_that_is_good_passes(sound: Any, tmp_path: Path) -> None:
    limits = {"min_output_sqnr_db": 10.0, "max_accuracy_drop": "50%", "evaluation_dataset": labelled(sound)}
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path, **limits)
    with tf_private.captured_chatter():
        converter.convert()
    assert len(converter.checks) == 2
    assert all(check.passed for check in converter.checks)
    scores = converter.study.findings.scores
    assert scores.score("float").metrics["top_1"] == 1.0  # the labels are its own answers


def test_an_accuracy_that_drops_is_refused(ill: Any, tmp_path: Path) -> None:
    limits = {"max_accuracy_drop": 0.0, "evaluation_dataset": labelled(ill, 64)}
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(ill), tmp_path, **limits)
    with tf_private.captured_chatter(), pytest.raises(LimitError, match="percentage points"):
        converter.convert()


def test_without_debug_data_the_representative_data_is_measured_and_that_is_noted(sound: Any, tmp_path: Path) -> None:
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path, debug_dataset=None)
    with tf_private.captured_chatter():
        converter.convert()
    assert any("no value is clipped" in note for note in converter.study.findings.run.notes)


def stacked(seed: int, count: int) -> np.ndarray:
    return np.concatenate([inputs[0] for inputs in images(seed, count)])


REPRESENTATIVE: dict[str, Callable[[Path], Any]] = {
    "array": lambda folder: stacked(1, 24),
    "list": lambda folder: images(1, 24),
    "batches with labels": lambda folder: tf.data.Dataset.from_tensor_slices((stacked(1, 24), range(24))).batch(10),
    "file": lambda folder: str(folder / "images.npy"),
}


@pytest.mark.parametrize("form", REPRESENTATIVE)
def test_representative_data_of_any_form_gives_tensorflows_bytes(form: str, sound: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", stacked(1, 24))
    with tf_private.captured_chatter():
        expected = int8(tf.lite.TFLiteConverter.from_keras_model(sound)).convert()
        given = REPRESENTATIVE[form](tmp_path)
        converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path / "runs")
        converter.representative_dataset = given
        assert converter.convert() == expected
    assert converter.representative_dataset is given


def test_data_of_any_form_serves_all_three(sound: Any, tmp_path: Path) -> None:
    labels = [int(np.argmax(sound(inputs[0]))) for inputs in images(1, 24)]
    batches = tf.data.Dataset.from_tensor_slices((stacked(1, 24), labels)).batch(10)
    converter = tflite_qdebug.TFLiteConverter.from_keras_model(sound)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = converter.debug_dataset = converter.evaluation_dataset = batches
    converter.debug_folder, converter.debug_backend, converter.debug_progress = tmp_path, BACKEND, False
    with tf_private.captured_chatter():
        converter.convert()
    assert converter.study.findings.run.statistics.samples == 24
    scores = converter.study.findings.scores
    assert (scores.samples, scores.score("float").metrics["top_1"]) == (24, 1.0)


def test_wrong_representative_data_leaves_the_converter_as_it_was(sound: Any, tmp_path: Path) -> None:
    wrong = np.zeros((3, 4, 4, 4), np.float32)
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path)
    converter.representative_dataset = wrong
    with tf_private.captured_chatter(), pytest.raises(DatasetError, match=r"representative dataset, sample 0: .*got shape"):
        converter.convert()
    assert converter.representative_dataset is wrong


def test_the_same_model_again_is_not_measured_again(sound: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tf_private.captured_chatter():
        first = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path).convert()
        again = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path)
        monkeypatch.setattr("tflite_qdebug.study.saved_run.pair_error", None)
        assert again.convert() == first


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"max_accuracy_drop": "1%"}, "without evaluation_dataset"),
        ({"max_accuracy_drop": "much", "evaluation_dataset": [1]}, "got a drop of 'much'"),
        ({"min_output_sqnr_db": 20.0, "optimizations": []}, "whose model is float"),
        ({"min_output_sqnr_db": 20.0, "representative_dataset": None, "debug_dataset": None}, "to measure on"),
    ],
)
def test_limits_that_cannot_be_checked_are_told_before(
    attributes: dict[str, Any], words: str, sound: Any, tmp_path: Path
) -> None:
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path)
    for name, value in attributes.items():
        setattr(converter, name, value)
    with pytest.raises(OptionError, match=words):
        converter.convert()
    assert not list(tmp_path.iterdir())


def test_a_wrong_sample_does_not_cost_the_model(sound: Any, tmp_path: Path) -> None:
    wrong = [[np.zeros((1, 4, 4, 4), np.float32)]]
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path, debug_dataset=wrong)
    with tf_private.captured_chatter(), pytest.raises(DatasetError) as caught:
        converter.convert()
    assert tflite_qdebug.Model(caught.value.model).main.operators  # type: ignore[attr-defined]


def test_attributes_are_tensorflows(sound: Any) -> None:
    theirs = tf.lite.TFLiteConverter.from_keras_model(sound)
    ours = tflite_qdebug.TFLiteConverter(theirs)
    ours.allow_custom_ops = True
    ours._experimental_disable_per_channel = True
    assert theirs.allow_custom_ops is True
    assert theirs._experimental_disable_per_channel is True
    assert ours.target_spec is theirs.target_spec
    assert {name for name in dir(theirs) if not name.startswith("_")} <= set(dir(ours))
    with pytest.raises(AttributeError, match="optimizations"):
        ours.optimisations = [tf.lite.Optimize.DEFAULT]
    with pytest.raises(AttributeError, match="optimizations"):
        ours.optimisations  # noqa: B018
    with pytest.raises(OptionError, match="converter alone"):
        tflite_qdebug.TFLiteConverter(theirs, 1)
    assert repr(ours) == "TFLiteConverter(float)"
    assert copy.copy(ours).tensorflow_converter is theirs


def test_it_is_a_source_like_any_converter(sound: Any) -> None:
    converter = int8(tflite_qdebug.TFLiteConverter.from_keras_model(sound))
    with tf_private.captured_chatter():
        theirs = tflite_qdebug.load_float_model(converter.tensorflow_converter)
        assert tflite_qdebug.load_float_model(converter).data == theirs.data


def test_nothing_is_written_elsewhere(sound: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    converter = debugged(tflite_qdebug.TFLiteConverter.from_keras_model(sound), tmp_path / "runs")
    with tf_private.captured_chatter():
        converter.convert()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
