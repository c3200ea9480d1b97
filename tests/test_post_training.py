"""Post-training quantization: every form as TensorFlow makes it, figures that numpy agrees with, and pages that show it all."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from models import keras_model

import tflite_qdebug
from tflite_qdebug import example
from tflite_qdebug.analyses.post_training import DEFAULT_FORMS, FORMS, quantize_post_training
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import InputSpec
from tflite_qdebug.drawn import MOST_PIXELS, Drawing, draw_samples
from tflite_qdebug.errors import DatasetError, ModelError, OptionError
from tflite_qdebug.paired import PairedDifference, sign_test
from tflite_qdebug.ptq_record import Port, PtqComparison, PtqModel
from tflite_qdebug.record import encoded
from tflite_qdebug.reports.post_training import notebook_html, render_ptq_report, write_forms_csv

LIMIT = 120


@pytest.fixture(scope="module")
def compared() -> PtqComparison:
    return quantize_post_training(
        example.MODEL_PATH, example.representative_dataset, example.evaluation_dataset, seconds=0.02, limit=LIMIT
    )


def answers_of(data: bytes, images: np.ndarray) -> np.ndarray:
    """What TensorFlow's interpreter answers, with integers made by hand."""
    interpreter = tf.lite.Interpreter(model_content=data)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    answers = []
    for image in images:
        fed = image[None]
        if taken["dtype"] != np.float32:
            scale, zero_point = taken["quantization"]
            limits = np.iinfo(taken["dtype"])
            fed = np.clip(np.floor(fed / np.float32(scale) + 0.5) + zero_point, limits.min, limits.max).astype(taken["dtype"])
        interpreter.set_tensor(taken["index"], fed)
        interpreter.invoke()
        answers.append(int(np.argmax(interpreter.get_tensor(given["index"])[0])))
    return np.array(answers)


# The figures.


def test_figures_are_those_of_numpy(compared: PtqComparison) -> None:
    images, labels = example.load_split("evaluation")
    images, labels = images[:LIMIT], labels[:LIMIT]
    exact = answers_of(example.float_model(), images)
    assert compared.samples == LIMIT
    different = np.zeros(LIMIT, dtype=bool)
    for model in compared.models:
        found = answers_of(model.data, images)
        right, reference = (found == labels).astype(float), (exact == labels).astype(float)
        assert model.metrics["top_1"] == pytest.approx(right.mean())
        assert model.standard_error["top_1"] == pytest.approx(right.std(ddof=1) / math.sqrt(LIMIT))
        difference = model.differences["top_1"]
        assert difference.value == pytest.approx((right - reference).mean())
        assert difference.standard_error == pytest.approx((right - reference).std(ddof=1) / math.sqrt(LIMIT))
        assert difference.higher == np.sum(right > reference)
        assert difference.lower == np.sum(right < reference)
        assert model.agreement == pytest.approx(np.mean(found == exact))
        different |= found != exact
    assert compared.differing_count == different.sum() > 0
    assert [prediction.index for prediction in compared.differing] == np.flatnonzero(different)[:12].tolist()
    assert [prediction.index for prediction in compared.first] == list(range(12))


def test_predictions_are_the_samples_and_their_answers(compared: PtqComparison) -> None:
    images, labels = example.load_split("evaluation")
    for form in ("float", "full_integer_uint8"):
        found = answers_of(compared[form].data, images[:12])
        for prediction in compared.first:
            answer = prediction.answers[form]
            assert prediction.label == labels[prediction.index]
            assert answer.position == found[prediction.index]
            assert answer.right == (found[prediction.index] == prediction.label)
    drawing = compared.first[3].drawings[0]
    assert drawing.kind == "image"
    assert np.array_equal(drawing.pixels, np.round(255 * images[3, ..., 0]).astype(np.uint8))


def test_sizes_types_and_operators(compared: PtqComparison) -> None:
    assert [model.form for model in compared.models] == list(DEFAULT_FORMS)
    for model in compared.models:
        interpreter = tf.lite.Interpreter(model_content=model.data)
        assert model.size == len(model.data)
        details = (interpreter.get_input_details()[0], interpreter.get_output_details()[0])
        for port, detail in zip((model.inputs[0], model.outputs[0]), details, strict=True):
            assert port.dtype == np.dtype(detail["dtype"]).name
            assert port.shape == tuple(detail["shape"])
            scale, zero_point = detail["quantization"]
            assert (port.scale or 0.0) == pytest.approx(scale)
            assert (port.zero_point or 0) == zero_point
        names = [entry["op_name"] for entry in interpreter._get_ops_details() if entry["op_name"] != "DELEGATE"]
        assert sum(model.operators) == len(names)
        assert model.operators.converting == sum(name in ("QUANTIZE", "DEQUANTIZE") for name in names)
        assert model.time is not None
        assert model.time.median > 0
        assert model.time.runs >= 20
    assert compared["float"].operators.floating == compared["int8"].operators.integer
    assert compared["int8"].operators.floating == compared["float"].operators.integer == 0
    assert compared["dynamic_range"].operators.hybrid > 0
    assert {model.form: model.inputs[0].dtype for model in compared.models if model.inputs[0].dtype != "float32"} == {
        "full_integer_uint8": "uint8",
        "full_integer_int8": "int8",
    }


def test_ports_say_what_an_integer_stands_for() -> None:
    assert Port("x", "float32", (1,)).words == "float32"
    assert Port("x", "uint8", (1,), 0.5, 0).words == "uint8, value = 0.500 * q"
    assert Port("x", "int8", (1,), 0.5, -128).words == "int8, value = 0.500 * (q + 128)"
    assert Port("x", "uint8", (1,), 0.5, 7).words == "uint8, value = 0.500 * (q - 7)"


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (3, 0), (1, 9), (40, 61)])
def test_paired_differences(higher: int, lower: int) -> None:
    total = higher + lower
    tail = sum(math.comb(total, k) for k in range(min(higher, lower) + 1)) / 2**total
    assert sign_test(higher, lower) == pytest.approx(min(1.0, 2 * tail))
    found = PairedDifference(-0.1, 0.02, higher, lower, sign_test(higher, lower))
    assert found.interval == pytest.approx((-0.1392, -0.0608))
    assert found.is_measurable == (2 * tail <= 0.05)


def test_verdict_tells_real_losses_from_chance(compared: PtqComparison) -> None:
    text = " ".join(compared.verdict())
    loss = -100 * compared["int8"].differences["top_1"].value
    assert re.search(rf"Measurably worse: .*int8, full_integer_uint8 and full_integer_int8 by {loss:.1f} ±", text)
    assert "float16" in text.partition("Not measurably worse:")[2]
    assert compared.is_worse(compared["int8"])
    assert not compared.is_worse(compared["float16"])
    assert compared.unharmed()[0].size == min(model.size for model in compared.unharmed())
    # Of six samples with one lost nothing can be said.
    model = PtqModel("int8", "", size=1, differences={"top_1": PairedDifference(-1 / 6, 1 / 6, 0, 1, sign_test(0, 1))})
    assert not compared.is_worse(model)
    with pytest.raises(OptionError, match="Did you mean 'int8'"):
        compared["in8"]


def test_verdict_says_what_so_few_samples_cannot_show(compared: PtqComparison) -> None:
    def told(difference: PairedDifference) -> str:
        models = tuple(
            PtqModel(form, "", size=size, metrics={"top_1": 0.9}, standard_error={"top_1": 0.01}, differences={"top_1": found})
            for form, size, found in (("float", 100, nothing), ("int8", 30, difference))
        )
        return PtqComparison(**{**vars(compared), "models": models, "samples": 600}).verdict()[1]

    nothing = PairedDifference(0.0, 0.0, 0, 0, 1.0)
    # Nothing lost: 3 in 600 by the rule of three, whatever was won. Some lost: the lower end of the interval.
    assert told(nothing).endswith("with 30.0 % of float's size. A loss of up to 0.50 points could go unseen on 600 samples.")
    assert "up to 0.50 points" in told(PairedDifference(0.003, 0.002, 2, 0, 0.5))
    assert "up to 1.1 points" in told(PairedDifference(-0.003, 0.004, 1, 3, 0.6))


# The forms are TensorFlow's.


def converted(model: Any, representative: Any, kind: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind not in ("float", "dynamic_range"):
        converter.representative_dataset = representative
    if kind.startswith("full_integer"):
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, kind.rpartition("_")[2])
    return bytes(converter.convert())


@pytest.mark.parametrize("source", ["keras", "converter", "saved_model"])
def test_forms_answer_as_those_of_the_converter(source: str, tmp_path: Path) -> None:
    model = keras_model("chain")
    generator = np.random.default_rng(7)
    samples = [[array] for array in generator.normal(size=(12, 1, 6, 6, 3)).astype(np.float32)]
    given: Any = model
    if source == "converter":
        given = tf.lite.TFLiteConverter.from_keras_model(model)
        given.optimizations = [tf.lite.Optimize.DEFAULT]
        given.representative_dataset = lambda: iter(samples)
    elif source == "saved_model":
        model.export(tmp_path / "saved", verbose=False)
        given = str(tmp_path / "saved")
    labelled = [(sample, position % 3) for position, sample in enumerate(samples)]
    forms = ["int8", "full_integer_uint8"] if source != "keras" else [form for form in DEFAULT_FORMS if form != "float16"]
    representative = None if source == "converter" else samples
    found = quantize_post_training(given, representative, labelled, forms=forms, seconds=0)
    assert [each.form for each in found.models] == list(dict.fromkeys(["float", *forms]))
    for each in found.models:
        theirs = tf.lite.Interpreter(model_content=converted(model, lambda: iter(samples), each.form))
        ours = tf.lite.Interpreter(model_content=each.data)
        results = []
        for interpreter in (ours, theirs):
            interpreter.allocate_tensors()
            taken, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
            scale, zero_point = taken["quantization"]
            fed = samples[0][0] if taken["dtype"] == np.float32 else np.clip(samples[0][0] / scale + zero_point, 0, 255)
            interpreter.set_tensor(taken["index"], fed.astype(taken["dtype"]))
            interpreter.invoke()
            results.append((taken["dtype"], taken["quantization"], out["quantization"], interpreter.get_tensor(out["index"])))
        assert results[0][:3] == results[1][:3], each.form
        np.testing.assert_allclose(results[0][3], results[1][3], rtol=1e-5, atol=1e-6, err_msg=each.form)


def test_an_operator_without_integers_stays_float_and_no_integer_only_form_is_made() -> None:
    generator = np.random.default_rng(0)
    samples = [([array], 1) for array in generator.normal(size=(8, 1, 8)).astype(np.float32)]
    inputs = [sample for sample, _ in samples]
    found = quantize_post_training(keras_model("with_cosine"), inputs, samples, seconds=0)
    assert [node.op_name for node in found["int8"].float_nodes] == ["COS"]
    assert found["int8"].operators.floating == 1
    for form in ("full_integer_uint8", "full_integer_int8"):
        assert not found[form].is_made
        assert "COS" in found[form].failure
        assert found.score_table()[1][list(DEFAULT_FORMS).index(form)] == [form, *["-"] * 9]
    assert found["int8"].metrics["top_1"] == found["float"].metrics["top_1"]
    assert any(said.startswith("full_integer_uint8 and full_integer_int8: it cannot be made") for said in found.verdict())
    page = render_ptq_report(found)
    assert "1 COS" in page
    assert "cannot be made" in page
    assert found.float_groups()[0][:2] == ("int8", "COS")


# Data of all kinds.


def test_without_labels_answers_are_compared() -> None:
    found = quantize_post_training(
        example.MODEL_PATH, example.representative_dataset, example.debug_dataset, forms=["int8"], seconds=0, limit=30
    )
    assert found.metrics == ()
    assert found.classifies
    assert all(answer.right is None for prediction in found.first for answer in prediction.answers.values())
    assert any("no label" in note for note in found.notes)
    assert "without labels the answer is float's with int8 on" in found.verdict()[0]
    assert "no label" in render_ptq_report(found)


def test_values_that_are_no_classes_are_shown_as_they_are() -> None:
    generator = np.random.default_rng(1)
    signal = keras.Input((32, 2), batch_size=1, name="signal")
    outputs = keras.layers.Dense(2, name="place")(keras.layers.Flatten()(keras.layers.Conv1D(4, 3)(signal)))
    samples = [([array], np.float32(array.mean())) for array in generator.normal(size=(9, 1, 32, 2)).astype(np.float32)]

    def error(outputs: list[np.ndarray], label: Any) -> float:
        return float(abs(outputs[0].reshape(-1)[0] - label))

    model = keras.Model(signal, outputs)
    inputs = [sample for sample, _ in samples]
    found = quantize_post_training(
        model, inputs, samples, forms=["int8"], metrics=[error], lower_is_better=True, seconds=0, predictions=3
    )
    assert not found.classifies
    assert found.main_metric == "error"
    expected = [float(error([model(sample[0]).numpy()], label)) for sample, label in samples]
    assert found["float"].metrics["error"] == pytest.approx(np.mean(expected), rel=1e-4)
    prediction = found.first[0]
    assert prediction.drawings[0].kind == "curve"
    assert len(prediction.drawings[0].curves) == 2
    assert prediction.label == pytest.approx(float(samples[0][1]), rel=1e-6)
    assert len(found.answer_words(prediction.answers["float"]).split(", ")) == 2
    quantized, exact = tflite_qdebug.Interpreter(found["int8"].data), tflite_qdebug.Interpreter(found["float"].data)
    signal = noise = 0.0
    for sample, _ in samples:
        quantized.invoke(sample)
        exact.invoke(sample)
        values = exact.read_outputs()[0].astype(np.float64)
        signal, noise = signal + np.sum(values**2), noise + np.sum((quantized.read_outputs()[0] - values) ** 2)
    assert found["int8"].sqnr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-6)
    assert found["float"].sqnr_db == math.inf
    # No class, no answer that may differ.
    assert math.isnan(found["int8"].agreement)
    assert found.differing_count == 0
    assert "same answer" not in found.score_table()[0]
    assert "SQNR of" in dataclasses.replace(found, metrics=()).verdict()[0]
    page = render_ptq_report(found)
    assert "The outputs are no classes" in page
    assert "<polyline" in page
    assert PtqComparison.from_dict(json.loads(json.dumps(found.to_dict(), default=float))).first[0].label == prediction.label


def test_outputs_that_are_images_are_drawn() -> None:
    picture = keras.Input((12, 10, 3), batch_size=1)
    model = keras.Model(picture, keras.layers.Conv2D(1, 1, activation="sigmoid")(picture))
    samples = [[array] for array in np.random.default_rng(3).uniform(size=(6, 1, 12, 10, 3)).astype(np.float32)]
    found = quantize_post_training(model, samples, samples, forms=["full_integer_uint8"], predictions=4, seconds=0)
    for prediction, sample in zip(found.first, samples, strict=False):
        drawing = prediction.answers["float"].drawing
        assert drawing is not None
        expected = np.round(255 * model(sample[0]).numpy()[0, ..., 0])
        assert np.abs(drawing.pixels - expected).max() <= 1
        quantized = prediction.answers["full_integer_uint8"].drawing
        assert 0 < np.abs(quantized.pixels.astype(int) - drawing.pixels).max() <= 4
    assert render_ptq_report(found).count("data:image/png") == 4 * 3
    again = PtqComparison.from_dict(json.loads(json.dumps(encoded(found.to_dict()))))
    assert np.array_equal(again.first[0].answers["float"].drawing.pixels, found.first[0].answers["float"].drawing.pixels)


def test_two_inputs_an_offset_and_names() -> None:
    generator = np.random.default_rng(2)
    samples = [
        ({"wide": wide, "narrow": narrow}, 0)
        for wide, narrow in zip(generator.normal(size=(6, 1, 12)), generator.normal(size=(6, 1, 3)), strict=True)
    ]
    samples = [({name: value.astype(np.float32) for name, value in inputs.items()}, label) for inputs, label in samples]
    model, inputs = keras_model("two_by_two"), [inputs for inputs, _ in samples]
    names = ["background", "thing"]
    found = quantize_post_training(
        model, inputs, samples, forms=["full_integer_int8"], label_offset=1, class_names=names, seconds=0
    )
    assert [prediction.label for prediction in found.first] == [1] * 6
    assert found.class_name(1) == "thing"
    classes = next(value for value in model(samples[0][0]) if value.shape[-1] == 2)
    assert found.first[0].answers["float"].position == int(np.argmax(classes))
    assert {drawing.name: drawing.kind for drawing in found.first[0].drawings} == {"wide": "curve", "narrow": "text"}
    assert len(found["full_integer_int8"].inputs) == 2
    with pytest.raises(OptionError, match="got 1 class names, but the first output has 2 classes"):
        quantize_post_training(model, inputs, samples, forms=[], class_names=names[:1], label_offset=1)


def test_evaluating_what_calibrated_is_said() -> None:
    images, labels = example.load_split("representative")
    data = [([image[None]], int(label)) for image, label in zip(images[:10], labels, strict=False)]
    inputs = [sample for sample, _ in data]
    found = quantize_post_training(example.MODEL_PATH, inputs, inputs, forms=["int8"], seconds=0)
    assert any("flatters" in note for note in found.notes)
    found = quantize_post_training(example.MODEL_PATH, inputs, data, forms=["dynamic_range"], seconds=0)
    assert found.notes == ()


def test_memory_does_not_grow_with_the_samples() -> None:
    images, labels = example.load_split("training")
    alive: set[int] = set()
    most = 0

    def data() -> Iterator[Any]:
        nonlocal most
        for number in range(300):
            array = images[number : number + 1].copy()
            alive.add(number)
            weakref.finalize(array, alive.discard, number)
            most = max(most, len(alive))
            yield [array], int(labels[number])

    found = quantize_post_training(
        example.MODEL_PATH, None, data, forms=["dynamic_range"], seconds=0, predictions=2, backend=Backend(workers=2)
    )
    assert found.samples == 300
    assert most < 60


# What is wrong is said.


def test_wrong_options() -> None:
    calibrating, data = example.representative_dataset, example.evaluation_dataset
    with pytest.raises(OptionError, match="Did you mean 'full_integer_int8'"):
        quantize_post_training(example.MODEL_PATH, calibrating, data, forms=["full_integer_int"])
    with pytest.raises(OptionError, match="expected a list of names"):
        quantize_post_training(example.MODEL_PATH, calibrating, data, forms="int8")
    with pytest.raises(OptionError, match="no representative_dataset"):
        quantize_post_training(example.MODEL_PATH, None, data)
    with pytest.raises(OptionError, match="predictions=-1"):
        quantize_post_training(example.MODEL_PATH, calibrating, data, predictions=-1)
    with pytest.raises(DatasetError, match="yielded no samples"):
        quantize_post_training(example.MODEL_PATH, calibrating, [])
    inputs = keras.Input((4,), batch_size=1)
    sigmoid = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    with pytest.raises(DatasetError, match="give a metric of your own"):
        quantize_post_training(sigmoid, None, [([np.zeros((1, 4), np.float32)], 0)], forms=[])
    with pytest.raises(DatasetError, match="expected 0 to 9"):
        quantize_post_training(example.MODEL_PATH, None, [([np.zeros((1, 8, 8, 1), np.float32)], 10)], forms=[])


# What samples look like.


def draw(array: np.ndarray, shape: tuple[int, ...] | None = None) -> Drawing:
    spec = InputSpec("x", shape or array.shape, (array.dtype,))
    return draw_samples([spec], [[array]])[0][0]


def test_images() -> None:
    grey = draw(np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1))
    assert (grey.kind, grey.words) == ("image", "8 x 8 x 1; -1 is black, 1 white")
    assert (grey.pixels[0, 0], grey.pixels[-1, -1]) == (0, 255)
    colour = draw(np.full((1, 6, 5, 3), [255.0, 0.0, 51.0], np.float32))
    assert colour.pixels.shape == (6, 5, 3)
    assert colour.pixels[0, 0].tolist() == [255, 0, 51]
    assert draw(np.full((1, 6, 5, 1), 7, np.uint8)).pixels[0, 0] == 7
    assert draw(np.zeros((1, 4, 4, 2), np.float32)).words.startswith("4 x 4 x 2, the first of 2 channels")
    large = draw(np.zeros((1, 300, 200, 1), np.float32))
    assert large.pixels.shape == (MOST_PIXELS, 85)
    assert large.words.endswith("drawn 128 x 85")
    spectrogram = draw(np.zeros((1, 20, 40), np.float32))
    assert spectrogram.pixels.shape == (20, 40)
    # The same grey for the same value in all samples.
    spec = InputSpec("x", (1, 4, 4, 1), (np.dtype(np.float32),))
    pair = draw_samples([spec], [[np.full((1, 4, 4, 1), 4.0, np.float32)], [np.full((1, 4, 4, 1), 8.0, np.float32)]])
    assert [drawings[0].pixels[0, 0] for drawings in pair] == [0, 255]


def test_curves_keep_their_peaks() -> None:
    values = np.zeros(16000, np.float32)
    values[12345], values[777] = 3.5, -2.0
    curve = draw(values[None])
    assert curve.kind == "curve"
    assert len(curve.curves[0]) == 400
    assert (max(curve.curves[0]), min(curve.curves[0])) == (3.5, -2.0)


def test_what_is_neither_is_text() -> None:
    assert draw(np.arange(20, dtype=np.int32)[None]).text == "0, 1, 2, 3, 4, 5, 6, 7, …"
    assert draw(np.array([[1.5, 2.0]], np.float32)).kind == "text"
    assert draw(np.array(3.0, np.float32), ()).text == "3.000"
    assert draw(np.array([[b"word"]], dtype=object)).kind == "text"


# Files and pages.


def test_saved_and_loaded(compared: PtqComparison, tmp_path: Path) -> None:
    compared.save(tmp_path / "ptq.json")
    again = PtqComparison.load(tmp_path / "ptq.json")
    assert again.to_dict() == compared.to_dict()
    assert again.score_table() == compared.score_table()
    assert np.array_equal(again.first[0].drawings[0].pixels, compared.first[0].drawings[0].pixels)
    assert all(not model.data for model in again.models)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ModelError, match="expected a comparison of format version"):
        PtqComparison.load(tmp_path / "other.json")
    paths = compared.save_models(tmp_path, "digits")
    assert [path.name for path in paths] == [f"digits_{form}.tflite" for form in DEFAULT_FORMS]
    assert paths[3].read_bytes() == compared["int8"].data


def test_csv(compared: PtqComparison, tmp_path: Path) -> None:
    write_forms_csv(compared, tmp_path / "forms.csv")
    with (tmp_path / "forms.csv").open(newline="") as file:
        rows = {row["form"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(DEFAULT_FORMS)
    assert int(rows["int8"]["bytes"]) == compared["int8"].size
    assert float(rows["int8"]["top_1"]) == pytest.approx(compared["int8"].metrics["top_1"])
    assert int(rows["int8"]["top_1_difference_lower"]) == compared["int8"].differences["top_1"].lower


def test_page_shows_all_needs_nothing_and_is_escaped(compared: PtqComparison) -> None:
    page = render_ptq_report(compared, [("next:", "tflite-qdebug <x>")])
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count('<article class="card') == 24
    assert page.count("data:image/png;base64") == 24
    wrong = sum(prediction.is_wrong for prediction in (*compared.first, *compared.differing))
    assert page.count('<article class="card wrong"') == wrong > 0
    assert "tflite-qdebug &lt;x&gt;" in page
    named = PtqComparison(**{**vars(compared), "class_names": tuple(f"<b>{place}" for place in range(10))})
    for text in (render_ptq_report(named), notebook_html(named)):
        assert "&lt;b&gt;" in text
        assert "<b><b>" not in text
    assert compared._repr_html_().startswith('<div class="tflite-qdebug-ptq">')
    assert len(compared._repr_html_()) < 30_000


def test_chart_is_to_scale(compared: PtqComparison) -> None:
    page = render_ptq_report(compared)
    widths = [float(width) for width in re.findall(r'<rect x="0.0" y="[^"]*" width="([^"]*)" height="14"', page)]
    sizes = [model.size for model in compared.models]
    assert np.allclose(np.array(widths[: len(sizes)]) / widths[0], np.array(sizes) / sizes[0], atol=0.002)
    places = [float(place) for place in re.findall(r'<circle cx="([^"]*)"', page)]
    values = [model.metrics["top_1"] for model in compared.models]
    slope, offset = np.polyfit(values, places, 1)
    assert slope > 0
    assert np.allclose(np.polyval([slope, offset], values), places, atol=0.2)
    worse = sum(compared.is_worse(model) for model in compared.models)
    assert len(re.findall(r'<g class="worse">', page)) == worse > 0


def test_public_names() -> None:
    assert tflite_qdebug.quantize_post_training is quantize_post_training
    assert tflite_qdebug.PtqComparison is PtqComparison
    assert set(DEFAULT_FORMS) < set(FORMS)


# The command.


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("\n".join([*"abcdef", "six", *"hij"]) + "\n")
    words = ["ptq", "example", "--limit", "40", "--seconds", "0.02", "--predictions", "3", "--no-progress"]
    words += ["--form", "int8", "--form", "full_integer_uint8", "--class-names", str(tmp_path / "names.txt")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "six" in out
    assert "✗" in out
    assert "Measurably worse" in out
    assert "tflite-qdebug fix example" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("report.html", "ptq.json", "forms.csv", "repeat.json"),
        *("example_float.tflite", "example_int8.tflite", "example_full_integer_uint8.tflite"),
    }
    saved = PtqComparison.load(tmp_path / "out" / "ptq.json")
    assert saved.samples == 40
    assert len(saved.first) == 3
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["models"][1]["form"] == "int8"
    assert printed["models"][1]["metrics"] == saved["int8"].metrics
    assert "drawings" not in printed["first"][0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--form", "int"], 2, "Did you mean 'int8'"),
        (["--class-names", "missing.txt"], 2, "cannot read --class-names missing.txt"),
        (["--evaluation-data", "missing.npz"], 4, "missing.npz"),
        (["--seconds", "-1"], 2, "expected 0 or more"),
        (["--metric", "top1"], 2, "Did you mean 'top_1'"),
    ],
)
def test_command_says_what_is_wrong(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ptq", "example", *words, "--no-progress"]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_command_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ptq", str(example.MODEL_PATH), "--no-progress"]) == 2
    assert "--representative-data is needed" in capsys.readouterr().err
