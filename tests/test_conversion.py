"""Conversion, calibration and quantization against TensorFlow's own calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from models import COUNT, calibrated, float_model
from tensorflow.lite.python import convert
from tensorflow.lite.python.optimize import calibrator

from tflite_qdebug import edit, tf_private
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import KINDS, CalibratedModel, load_float_model
from tflite_qdebug.errors import ConversionError, DatasetError, ModelError, OptionError
from tflite_qdebug.model import Model


def shown(data: bytes) -> list[tuple[Any, ...]]:
    """What tells two models apart: operators, types, scales and values."""
    model = Model(data)
    return [
        (t.name, t.shape, t.dtype.name, t.quantization, model.constant(t).tobytes() if t.is_constant else None)
        for t in model.main.tensors
    ] + [(o.name, o.version, o.inputs, o.outputs) for o in model.main.operators]


# ------------------------------------------------------------------------------------------------ TensorFlow's own bytes


def test_calibration_is_that_of_tensorflows_calibrator() -> None:
    data = float_model("mixed").data
    theirs = calibrator.Calibrator(calibrator.add_intermediate_tensors(data)).calibrate(models.dataset("mixed", COUNT))
    assert calibrated("mixed").data == bytes(theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"per_channel": False}, {"disable_per_channel": True}),
        ({"per_channel_dense": False}, {"disable_per_channel_for_dense_layers": True}),
        ({"input_type": "int8", "output_type": "uint8"}, {"input_data_type": tf.int8, "output_data_type": tf.uint8}),
        ({"fully_quantize": True}, {"fully_quantize": True}),
        ({"kind": "full_integer"}, {"input_data_type": tf.int8, "output_data_type": tf.int8}),
        ({"denylisted_ops": ["CONV_2D", "MEAN"]}, {"denylisted_ops": ["CONV_2D", "MEAN"]}),
    ],
)
def test_int8_is_what_mlir_quantize_makes(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    made = calibrated("mixed")
    with tf_private.captured_chatter():
        expected = bytes(convert.mlir_quantize(made.data, **theirs))
    assert made.quantize(**ours).data == expected


@pytest.mark.parametrize("whole_model", [False, True])
def test_the_debug_model_is_what_mlir_quantize_makes(whole_model: bool) -> None:
    with tf_private.captured_chatter():
        expected = convert.mlir_quantize(
            calibrated("mixed").data, enable_numeric_verify=True, enable_whole_model_verify=whole_model
        )
    ours, theirs = Model(calibrated("mixed").numeric_verify_model(whole_model=whole_model)), Model(bytes(expected))

    # TensorFlow writes the operators of a per-layer debug model in an order that differs from call to call.
    def unordered(model: Model) -> tuple[Any, ...]:
        main = model.main
        return (
            sorted(
                (t.dtype.name, t.shape, repr(t.quantization), t.is_constant and model.constant(t).tobytes())
                for t in main.tensors
            ),
            sorted((o.name, o.version, [main.tensors[i].shape for i in o.inputs if i >= 0]) for o in main.operators),
        )

    assert unordered(ours) == unordered(theirs)


def test_int16x8_is_what_the_calibrator_makes() -> None:
    data = float_model("mixed").data
    with tf_private.captured_chatter():
        expected = calibrator.Calibrator(data).calibrate_and_quantize(
            models.dataset("mixed", COUNT), tf.float32, tf.float32, True, tf.int16, tf.int64
        )
    ours = calibrated("mixed").quantize("int16x8").data
    inputs = models.samples("mixed", 1, seed=3)[0]
    np.testing.assert_array_equal(models.outputs(ours, inputs)[0], models.outputs(bytes(expected), inputs)[0])
    assert [(o.name, o.version) for o in Model(ours).main.operators] == [
        (o.name, o.version) for o in Model(bytes(expected)).main.operators
    ]


def test_int8_is_what_the_converter_makes() -> None:
    with tf_private.captured_chatter():
        theirs = bytes(models.converter("mixed", COUNT).convert())
    ours = calibrated("mixed").quantize("int8").data
    assert shown(ours) == shown(theirs)


# --------------------------------------------------------------------------------------------------- the user's converter


def state(converter: Any) -> dict[str, Any]:
    values = {name: repr(value) if not callable(value) else id(value) for name, value in vars(converter).items()}
    values["target_spec"] = {name: repr(value) for name, value in vars(converter.target_spec).items()}
    values["_metadata"] = repr(getattr(converter, "_metadata", None))
    return values


def test_the_converter_comes_back_as_it_was_and_still_makes_int8() -> None:
    converter = models.converter("mixed", COUNT)
    before = state(converter)
    made = load_float_model(converter)
    assert state(converter) == before
    assert made.settings.kind == "int8"
    with tf_private.captured_chatter():
        assert shown(bytes(converter.convert())) == shown(calibrated("mixed").quantize("int8").data)


def test_the_converter_comes_back_as_it_was_when_its_dataset_raises() -> None:
    def broken() -> Iterator[list[np.ndarray]]:
        yield models.samples("mixed", 1)[0]
        raise ZeroDivisionError("the user's own")

    converter = models.converter("mixed", COUNT, representative_dataset=broken)
    before = state(converter)
    made = load_float_model(converter)
    with pytest.raises(DatasetError, match=r"sample 1: .*ZeroDivisionError: the user's own") as caught:
        made.calibrate(made.settings.representative_dataset)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert state(converter) == before


def test_the_converter_comes_back_as_it_was_when_it_cannot_convert() -> None:
    converter = models.converter("mixed", COUNT)
    converter._keras_model = object()
    before = state(converter)
    with pytest.raises(ConversionError, match="could not convert the model"):
        load_float_model(converter)
    assert state(converter) == before


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "int8"),
        ({"optimizations": []}, "float"),
        ({"representative_dataset": None}, "dynamic_range"),
    ],
)
def test_what_a_converter_would_make_is_read_from_it(settings: dict[str, Any], kind: str) -> None:
    assert tf_private.converter_settings(models.converter("chain", **settings)).kind == kind


def test_what_a_converter_would_make_is_read_from_its_target() -> None:
    def kind_of(**target: Any) -> str:
        converter = models.converter("chain")
        for name, value in target.items():
            setattr(converter.target_spec, name, value)
        return tf_private.converter_settings(converter).kind

    sets = tf.lite.OpsSet
    assert kind_of(supported_ops=[sets.TFLITE_BUILTINS_INT8]) == "full_integer"
    assert kind_of(supported_ops=[sets.TFLITE_BUILTINS_INT8, sets.TFLITE_BUILTINS]) == "int8"
    assert kind_of(supported_types=[tf.float16]) == "float16"
    int16 = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    assert kind_of(supported_ops=[int16]) == "int16x8"


# ------------------------------------------------------------------------------------------------------------ sources


def saved_source(form: str, folder: Path, name: str) -> Any:
    model = models.keras_model(name)
    if form == "converter":
        return models.converter(name)
    if form == "Keras model":
        return model
    if form == "SavedModel":
        model.export(str(folder / "saved"), verbose=False)
        return folder / "saved"
    if form in (".keras", ".h5"):
        model.save(folder / ("model" + form))
        return str(folder / ("model" + form))
    if form == "bytes":
        return models.float_tflite(name)
    (folder / "model.tflite").write_bytes(models.float_tflite(name))
    return folder / "model.tflite"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["converter", "Keras model", "SavedModel", ".keras", ".h5", ".tflite", "bytes"])
def test_every_source_has_its_weights_and_gives_equal_scales(form: str, tmp_path: Path) -> None:
    name = "chain" if form == ".h5" else "mixed"  # Keras cannot read keras.ops back from a .h5
    with tf_private.captured_chatter():
        source = saved_source(form, tmp_path, name)
    made = load_float_model(source)
    inputs = models.samples(name, 1)[0]
    expected = models.keras_model(name).predict(inputs[0], verbose=0)
    np.testing.assert_allclose(models.outputs(made.data, inputs)[0], expected, atol=1e-6)
    int8 = Model(made.calibrate(models.dataset(name, COUNT)).quantize("int8").data)
    theirs = Model(calibrated(name).quantize("int8").data)
    scales, expected_scales = (
        [(float(t.quantization.scale[0]), int(t.quantization.zero_point[0])) for o in m.main.operators
         for t in [m.main.tensors[o.outputs[0]]] if t.quantization]
        for m in (int8, theirs)
    )  # fmt: skip
    # Another way of lowering may add the products of a convolution in another order.
    np.testing.assert_allclose(np.array(scales)[:, 0], np.array(expected_scales)[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(np.array(scales)[:, 1], np.array(expected_scales)[:, 1])


def test_a_model_of_keras_2_is_converted() -> None:
    inputs = models.samples("lstm", 1)[0]
    expected = models.keras_model("lstm").predict(inputs[0], verbose=0)
    made = load_float_model(models.keras_model("lstm"))  # not from a converter
    np.testing.assert_allclose(models.outputs(made.data, inputs)[0], expected, atol=1e-5)


def test_a_float_model_is_passed_on() -> None:
    assert load_float_model(float_model("mixed")) is float_model("mixed")


@pytest.mark.parametrize("source", [None, 3, [1], keras.layers.Dense(3)])
def test_what_is_no_model_is_named(source: Any) -> None:
    with pytest.raises(ModelError, match=f"got .*{type(source).__qualname__}, expected a TFLiteConverter, a Keras model"):
        load_float_model(source)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for name in ("model.keras", "model.h5", "model.tflite", "nothing"):
        with pytest.raises(ModelError, match=f"{name}: No such file or directory"):
            load_float_model(tmp_path / name)
    with pytest.raises(ModelError, match=r"without saved_model\.pb"):
        load_float_model(tmp_path)
    (tmp_path / "broken.keras").write_bytes(b"no zip")
    with pytest.raises(ModelError, match=r"cannot load the Keras model .*broken\.keras"):
        load_float_model(tmp_path / "broken.keras")
    (tmp_path / "saved_model.pb").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match="cannot load the SavedModel"):
        load_float_model(tmp_path)


def test_a_quantized_model_is_no_float_model() -> None:
    with pytest.raises(ModelError, match=r"quantized already .* expected a float model"):
        load_float_model(calibrated("mixed").quantize("int8").data)


def test_a_model_without_ranges_is_no_calibrated_model() -> None:
    with pytest.raises(ModelError, match="without calibrated ranges"):
        CalibratedModel(None, models.float_tflite("mixed"))


# ------------------------------------------------------------------------------------------------- kinds, types, options


def test_kinds_and_types_are_checked() -> None:
    made = calibrated("mixed")
    with pytest.raises(OptionError, match=r"got kind 'int7'.*Did you mean 'int8'"):
        made.quantize("int7")
    with pytest.raises(OptionError, match="needs calibration"):
        float_model("mixed").quantize("int8")
    with pytest.raises(OptionError, match="got input_type 'int16' for kind 'int8', expected float32 or int8 or uint8"):
        made.quantize("int8", input_type="int16")
    with pytest.raises(OptionError, match="for kind 'float16', expected float32"):
        made.quantize("float16", output_type="int8")
    with pytest.raises(OptionError, match="denylist for kind 'int16x8'"):
        made.quantize("int16x8", denylisted_ops=["CONV_2D"])
    with pytest.raises(OptionError, match="is made from the float model"):
        CalibratedModel(None, made.data).quantize("float16")
    with pytest.raises(OptionError, match="no quantization error"):
        made.debug_model("float")
    with pytest.raises(OptionError, match="TensorFlow makes no other debug model"):
        made.numeric_verify_model("int16x8")
    with pytest.raises(OptionError, match="got calibration method 'fast'"):
        float_model("mixed").calibrate(models.dataset("mixed", 1), "fast")


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("int8", ("float32", "float32")), ("int8", ("int8", "float32")), ("int8", ("uint8", "int8")),
        ("full_integer", ("int8", "int8")), ("full_integer", ("uint8", "uint8")), ("full_integer", ("float32", "float32")),
        ("int16x8", ("float32", "float32")), ("int16x8", ("int16", "int16")),
    ],
)  # fmt: skip
def test_inputs_and_outputs_have_the_types_asked_for(kind: str, types: tuple[str, str]) -> None:
    given = {} if (kind, types) == ("full_integer", ("int8", "int8")) else {"input_type": types[0], "output_type": types[1]}
    main = Model(calibrated("mixed").quantize(kind, **given).data).main
    assert (main.tensors[main.inputs[0]].dtype.name, main.tensors[main.outputs[0]].dtype.name) == types


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_near_the_float_model(kind: str) -> None:
    made = calibrated("mixed").quantize(kind, input_type="float32", output_type="float32")
    inputs = models.samples("mixed", 1, seed=2)[0]
    expected = models.keras_model("mixed").predict(inputs[0], verbose=0)
    tolerance = {"float": 1e-6, "float16": 1e-3, "int16x8": 0.02, "dynamic_range": 0.02}.get(kind, 0.05)
    np.testing.assert_allclose(models.outputs(made.data, inputs)[0], expected, atol=tolerance)
    assert made.kind == kind
    assert kind in repr(made)


def test_full_integer_names_the_operator_without_an_integer_kernel() -> None:
    made = calibrated("with_cosine")
    with pytest.raises(ConversionError, match=r"full_integer: 1 operators cannot be quantized: COS '.*Cos.*no integer COS"):
        made.quantize("full_integer")
    nodes = made.quantize("int8").float_nodes
    assert [node.op_name for node in nodes] == ["COS"]
    assert made.float_model.model.main.nodes[nodes[0].node][0].name == "COS"


# ----------------------------------------------------------------------------------------------------------- denylists


def float_operators(data: bytes) -> list[str]:
    main = Model(data).main
    return sorted(
        operator.name
        for operator in main.operators
        if operator.name not in ("QUANTIZE", "DEQUANTIZE") and main.tensors[operator.outputs[0]].is_float
    )


def node_of(name: str, op_name: str, position: int = 0) -> str:
    main = calibrated(name).model.main
    operator = [operator for operator in main.operators if operator.name == op_name][position]
    return main.tensors[operator.outputs[0]].name


def test_a_denylisted_node_stays_float_and_says_why() -> None:
    node = node_of("mixed", "DEPTHWISE_CONV_2D")
    made = calibrated("mixed").quantize("int8", denylisted_nodes=(node,))
    assert float_operators(made.data) == ["DEPTHWISE_CONV_2D"]
    assert [(float_node.node, float_node.reason) for float_node in made.float_nodes] == [(node, "denylisted node")]


def test_a_denylisted_operator_type_stays_float_and_says_why() -> None:
    made = calibrated("mixed").quantize("int8", denylisted_ops=["TANH", "MEAN"])
    assert float_operators(made.data) == ["MEAN", "TANH"]
    reasons = {node.op_name: node.reason for node in made.float_nodes}
    assert reasons == {"TANH": "denylisted operator TANH", "MEAN": "denylisted operator MEAN"}


def test_an_operator_with_several_outputs_can_be_denied_by_each_of_them() -> None:
    main = calibrated("mixed").model.main
    split = next(operator for operator in main.operators if operator.name == "SPLIT")
    for output in split.outputs:
        made = calibrated("mixed").quantize("int8", denylisted_nodes=[main.tensors[output].name])
        assert float_operators(made.data) == ["SPLIT"]
        assert main.tensors[split.outputs[0]].name in {tensor.name for tensor in Model(made.data).main.tensors}
        assert "\x1f" not in "".join(tensor.name for tensor in Model(made.data).main.tensors)


def test_operators_with_one_name_are_all_denied() -> None:
    model = calibrated("chain").model
    convolutions = [operator.outputs[0] for operator in model.main.operators if operator.name == "CONV_2D"]
    twins = CalibratedModel(None, edit.with_renamed(model, lambda index, name: "twin" if index in convolutions else name))
    made = twins.quantize("int8", denylisted_nodes=["twin"])
    assert float_operators(made.data) == ["CONV_2D", "CONV_2D"]
    assert {node.node for node in made.float_nodes} == {"twin"}


@pytest.mark.parametrize("form", ["key", "tensor", "node"])
def test_names_as_a_debug_model_shows_them_are_understood(form: str) -> None:
    made = calibrated("mixed")
    layers = made.debug_model().layers
    layer = next(layer for layer in layers if layer.op_name == "DEPTHWISE_CONV_2D")
    name = {"key": layer.key, "tensor": layer.tensor_name, "node": layer.node}[form]
    assert float_operators(made.quantize("int8", denylisted_nodes=[name]).data) == ["DEPTHWISE_CONV_2D"]
    again = {layer.op_name for layer in made.debug_model(denylisted_nodes=[name]).layers}
    assert again == {layer.op_name for layer in layers} - {"DEPTHWISE_CONV_2D"}


@pytest.mark.parametrize("layer", range(10))
def test_every_layer_of_a_report_can_be_denied_by_its_name(layer: int) -> None:
    shown_layer = calibrated("mixed").debug_model().layers[layer]
    made = calibrated("mixed").quantize("int8", denylisted_nodes=[shown_layer.node])
    assert float_operators(made.data) == [shown_layer.op_name]


def test_names_that_mean_nothing_are_refused_with_the_nearest() -> None:
    made = calibrated("mixed")
    node = node_of("mixed", "MEAN")
    with pytest.raises(OptionError) as caught:
        made.quantize(denylisted_nodes=[node[:-1] + "x"])
    assert repr(node) in str(caught.value)
    with pytest.raises(OptionError, match="Did you mean 'CONV_2D'"):
        made.quantize(denylisted_ops=["CONV2D"])
    with pytest.raises(OptionError, match="expected a list of names"):
        made.quantize(denylisted_nodes=node)
    with pytest.raises(OptionError, match="expected names as str"):
        made.quantize(denylisted_ops=[3])  # type: ignore[list-item]
    with pytest.raises(OptionError):
        made.debug_model(denylisted_nodes=["no such node at all"])


def test_everything_denied_leaves_nothing_to_compare() -> None:
    made = calibrated("chain")
    everything = sorted({operator.name for operator in made.model.main.operators})
    with pytest.raises(ModelError, match="Please check if the quantized model is in debug mode"):
        made.debug_model(denylisted_ops=everything)


# ------------------------------------------------------------------------------------- calibration by exposed tensors


def true_ranges(data: bytes, name: str) -> dict[int, tuple[float, float]]:
    model = Model(data)
    ranges: dict[int, tuple[float, float]] = {}
    for inputs in models.samples(name, COUNT):
        interpreter = models.run(data, inputs, "reference", preserve=True)
        for index in (*model.main.inputs, *model.main.producers):
            values = interpreter.get_tensor(index)
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = (min(low, float(values.min())), max(high, float(values.max())))
    return ranges


def test_exposed_ranges_are_the_true_ones() -> None:
    made = float_model("mixed").calibrate(models.dataset("mixed", COUNT), "exposed", backend=Backend(kernels="reference"))
    for index, (low, high) in true_ranges(float_model("mixed").data, "mixed").items():
        tensor = made.model.main.tensors[index]
        assert (tensor.minimum, tensor.maximum) == (low, high)


def test_tensorflow_reads_the_input_of_an_operator_in_place_after_it_was_overwritten() -> None:
    """Its range is the union of the true one and of what the reader wrote there; everywhere else the two agree."""
    exposed = float_model("mixed").calibrate(models.dataset("mixed", COUNT), "exposed")
    theirs = calibrated("mixed").model.main
    truth = true_ranges(float_model("mixed").data, "mixed")
    overwritten = {}
    for operator in theirs.operators:
        if operator.name == "ADD":
            # In place where nobody reads the input later; the first input's memory is taken.
            alone = [i for i in operator.inputs if sum(i in other.inputs for other in theirs.operators) >= 1]
            overwritten.update(dict.fromkeys(alone, operator.outputs[0]))
    differing = []
    for index, (low, high) in truth.items():
        ours, tensorflow = exposed.model.main.tensors[index], theirs.tensors[index]
        np.testing.assert_allclose((ours.minimum, ours.maximum), (low, high), rtol=1e-5, atol=1e-6)
        if np.allclose((tensorflow.minimum, tensorflow.maximum), (low, high), rtol=1e-5, atol=1e-6):
            continue
        differing.append(index)
        assert index in overwritten, f"{tensorflow.name} differs, and no operator in place reads it"
        written = truth[overwritten[index]]
        union = min(low, written[0]), max(high, written[1])
        np.testing.assert_allclose((tensorflow.minimum, tensorflow.maximum), union, rtol=1e-5, atol=1e-6)
    assert len(differing) == 1


def test_exposed_ranges_equal_tensorflows_where_nothing_is_in_place() -> None:
    exposed = float_model("weighty").calibrate(models.dataset("weighty", COUNT), "exposed").model.main
    theirs = calibrated("weighty").model.main
    compared = 0
    for ours, tensorflow in zip(exposed.tensors, theirs.tensors, strict=True):
        assert (ours.minimum is None) == (tensorflow.minimum is None)
        if ours.minimum is not None:
            np.testing.assert_allclose((ours.minimum, ours.maximum), (tensorflow.minimum, tensorflow.maximum), rtol=1e-5)
            compared += 1
    assert compared == 7


def test_histograms_hold_every_element() -> None:
    made = float_model("mixed").calibrate(models.dataset("mixed", COUNT), "exposed")
    for tensor in made.model.main.tensors:
        if tensor.minimum is not None:
            histogram = made.histograms[tensor.name]
            assert histogram.total == COUNT * int(np.prod(tensor.shape))
            assert np.float32(histogram.minimum) == np.float32(tensor.minimum)
            assert np.float32(histogram.maximum) == np.float32(tensor.maximum)
    assert float_model("mixed").calibrate(models.dataset("mixed", 1), "exposed", histograms=False).histograms == {}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_exposed_calibration_does_not_depend_on_the_workers(workers: int) -> None:
    backend = Backend(kernels="builtin", workers=workers)
    made = float_model("two_by_two").calibrate(models.dataset("two_by_two", COUNT), "exposed", backend=backend)
    alone = float_model("two_by_two").calibrate(
        models.dataset("two_by_two", COUNT), "exposed", backend=Backend("auto", "builtin")
    )
    assert made.data == alone.data
    assert {name: h.to_dict() for name, h in made.histograms.items()} == {n: h.to_dict() for n, h in alone.histograms.items()}


def test_exposed_calibration_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(OptionError, match="cannot follow UNIDIRECTIONAL_SEQUENCE_LSTM; use method='tensorflow'"):
        float_model("lstm").calibrate(models.dataset("lstm", 1), "exposed")


def test_a_float_model_that_gives_infinity_cannot_be_calibrated() -> None:
    huge = [[np.full((1, 8, 8, 4), 3e38, dtype=np.float32)]]
    with pytest.raises(ConversionError, match="the float model itself gives NaN or infinity on the representative dataset"):
        float_model("mixed").calibrate(huge, "exposed")


def test_a_dynamic_batch_and_the_limit_are_passed_on() -> None:
    batches = [[np.random.default_rng(i).normal(size=(3, 10)).astype(np.float32)] for i in range(5)]
    tensorflow = float_model("dynamic_batch").calibrate(batches, limit=2)
    exposed = float_model("dynamic_batch").calibrate(batches, "exposed", limit=2)
    source = tensorflow.model.main.inputs[0]
    values = np.concatenate([batch[0] for batch in batches[:2]])
    for made in (tensorflow, exposed):
        tensor = made.model.main.tensors[source]
        assert (tensor.minimum, tensor.maximum) == (values.min(), values.max())
    assert exposed.histograms[exposed.model.main.tensors[source].name].total == values.size
