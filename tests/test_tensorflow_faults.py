"""The faults ``a`` to ``s`` of TensorFlow's QuantizationDebugger: each is right in ours, and seen in TensorFlow's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import debugger_models as scenarios
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import (
    CHAIN_SHAPE,
    OurDebugger,
    OurOptions,
    TheirDebugger,
    TheirOptions,
    chain_converter,
    conv,
    converter_of,
    dump,
    fixed,
    normal,
    operator_types,
    raised,
    spec,
    tensorflow_shows_fault,
    weights,
)

from tflite_qdebug import Backend, Interpreter, Model, layer_error, load_float_model, pair_errors
from tflite_qdebug.errors import ConversionError, DatasetError, ModelError, OptionError

BOTH = [(OurDebugger, OurOptions), (TheirDebugger, TheirOptions)]


def largest_difference(floats: Any, quantized: Any) -> float:
    return float(max(np.max(np.abs(one - other)) for one, other in zip(floats, quantized, strict=True)))


def real_values(quantized: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return (quantized.astype(np.float64) - zero_point) * scale


# ----------------------------------------------------------------------------------------- a: overwritten intermediates


def interrupted_chain() -> Any:
    """Convolutions between operators that XNNPACK leaves to the builtin kernels: the arena is used again and again."""
    kernels = [weights(3, 3, 4, 4, seed=seed) for seed in range(4)]

    def function(x: Any) -> Any:
        for kernel in kernels:
            x = tf.math.l2_normalize(conv(x, kernel), -1)
        return x

    return converter_of(function, [spec(*CHAIN_SHAPE)], normal(CHAIN_SHAPE))


def test_a_direct_metrics_read_the_tensors_before_they_are_overwritten() -> None:
    def correlation(floats: Any, quantized: Any, scale: float, zero_point: int) -> float:
        return float(np.corrcoef(floats.ravel(), real_values(quantized, scale, zero_point).ravel())[0, 1])

    def rmse(floats: Any, quantized: Any, scale: float, zero_point: int) -> float:
        return float(np.sqrt(np.mean((floats - real_values(quantized, scale, zero_point)) ** 2)))

    wrong = []
    for debugger_class, options_class in BOTH:
        options = options_class(layer_direct_compare_metrics={"correlation": correlation, "rmse": rmse})
        # One sample, so that the root of the mean is the mean of the roots.
        data = normal(CHAIN_SHAPE, count=1, seed=3)
        debugger = debugger_class(converter=interrupted_chain(), debug_dataset=data, debug_options=options)
        debugger.run()
        rows = list(debugger.layer_statistics.values())
        assert len(rows) == 8
        off = [abs(row["rmse"] - row["mean_squared_error"] ** 0.5) > 1e-4 or row["correlation"] < 0.999 for row in rows]
        wrong.append(sum(off))
    assert wrong[0] == 0
    tensorflow_shows_fault(wrong[1] > 0, "intermediate tensors are read after they were overwritten")


# ---------------------------------------------------------------------------------------------- b: the user's converter


def test_b_the_converter_still_converts_afterwards() -> None:
    found = []
    for debugger_class, _ in BOTH:
        converter = chain_converter()
        debugger_class(converter=converter, debug_dataset=normal(CHAIN_SHAPE))
        found.append((operator_types(converter.convert()), converter._experimental_calibrate_only))
    assert found[0] == ({"CONV_2D": {"int8"}}, False)
    tensorflow_shows_fault(found[1] == ({"CONV_2D": {"float32"}}, True), "the converter stays in calibrate-only mode")


def test_b_the_converter_keeps_its_optimizations_when_the_conversion_fails() -> None:
    left = []
    for debugger_class, options_class in BOTH:
        converter = converter_of(tf.linalg.cholesky, [spec(3, 3)], normal((3, 3)))  # TensorFlow Lite has no such operator
        options = options_class(model_debug_metrics={"difference": largest_difference})
        error = raised(
            lambda make=debugger_class, converter=converter, options=options: make(
                converter=converter, debug_dataset=normal((3, 3)), debug_options=options
            )
        )
        left.append((type(error), converter.optimizations))
    assert left[0] == (ConversionError, [tf.lite.Optimize.DEFAULT])
    tensorflow_shows_fault(left[1][1] == [], "the converter is left without optimizations")


# --------------------------------------------------------------------------------------------------- c: zero point 0


def test_c_a_zero_point_of_zero_is_one_for_inputs() -> None:
    ramp = fixed([[np.linspace(-128.0, 127.0, 16)]])  # calibrates to scale 1, zero point 0
    results: list[Any] = []
    for debugger_class, options_class in BOTH:
        options = options_class(fully_quantize=True, model_debug_metrics={"difference": largest_difference})
        debugger = debugger_class(
            converter=converter_of(tf.nn.tanh, [spec(1, 16)], ramp), debug_dataset=ramp, debug_options=options
        )
        results.append(raised(debugger.run) or debugger.model_statistics["difference"])
    # tanh has the fixed output scale 1/128, and 1.0 is one step above its greatest value.
    assert results[0] == pytest.approx(1 / 128)
    tensorflow_shows_fault("Got value of type FLOAT32" in str(results[1]), "zero point 0 counts as none at inputs")


def test_c_a_zero_point_of_zero_is_one_for_outputs() -> None:
    kernel = weights(4, 3)
    results = []
    for debugger_class, options_class in BOTH:
        converter = converter_of(lambda x: tf.nn.tanh(tf.matmul(x, kernel)), [spec(1, 4)], normal((1, 4)))
        options = options_class(fully_quantize=True, model_debug_metrics={"difference": largest_difference})
        debugger = debugger_class(converter=converter, debug_dataset=normal((1, 4)), debug_options=options)
        debugger.run()
        results.append(debugger.model_statistics["difference"])
    assert results[0] < 0.02
    tensorflow_shows_fault(results[1] > 10.0, "raw integers are compared with floats")


# ------------------------------------------------------------------------------------------------------ d: denylists


@pytest.mark.parametrize(
    "denylist",
    [
        {"denylisted_nodes": ["no_such_node"]},
        {"denylisted_ops": ["Conv2D"]},
        {"denylisted_ops": "CONV_2D"},
        {"denylisted_nodes": "PartitionedCall:0"},
    ],
    ids=str,
)
def test_d_a_denylist_that_means_nothing_is_an_error(denylist: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=OurOptions(**denylist))
    theirs = TheirDebugger(
        converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=TheirOptions(**denylist)
    )
    theirs.run()
    tensorflow_shows_fault(len(theirs.layer_statistics) == 4, "such a denylist is ignored in silence")


def test_d_a_tuple_is_a_denylist() -> None:
    counts = []
    for debugger_class, options_class in BOTH:
        options = options_class(denylisted_nodes=("Relu;Conv2D",))
        debugger = debugger_class(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE), debug_options=options)
        debugger.run()
        counts.append(len(debugger.layer_statistics))
    assert counts[0] == 3
    tensorflow_shows_fault(counts[1] == 4, "a tuple is ignored in silence")


# ------------------------------------------------------------------------------------------------- e: averaged samples


def test_e_the_pooled_figures_stand_beside_tensorflows_averages() -> None:
    errors: list[np.ndarray] = []
    quiet, loud = np.zeros(CHAIN_SHAPE), np.random.default_rng(5).standard_normal(CHAIN_SHAPE)
    for debugger_class, options_class in BOTH:
        errors.clear()
        options = options_class(layer_debug_metrics={"seen": lambda error: float(errors.append(error.copy()) or 0.0)})
        backend = {"backend": Backend(workers=1)} if debugger_class is OurDebugger else {}
        debugger = debugger_class(
            converter=chain_converter(1), debug_dataset=fixed([quiet], [loud]), debug_options=options, **backend
        )
        debugger.run()
        (row,) = debugger.layer_statistics.values()
        maxima = [np.abs(error).max() for error in errors]
        assert maxima[1] > 1.5 * maxima[0]
        # The contract: TensorFlow's aggregation, which understates.
        assert row["max_abs_error"] == pytest.approx(np.mean(maxima), rel=1e-5)
        assert row["stddev"] == pytest.approx(np.mean([np.std(error) for error in errors]), rel=1e-5)
        if debugger_class is OurDebugger:
            pooled = debugger.layers.iloc[0]
            assert pooled["max_abs_error"] == pytest.approx(max(maxima), rel=1e-5)
            assert pooled["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
            assert pooled["num_elements"] == 2 * quiet.size
            assert pooled["worst_sample"] == 1
        else:
            tensorflow_shows_fault(not hasattr(debugger, "layers"), "there are no pooled figures")


def logarithm_converter() -> Any:
    kernel = weights(3, 3, 4, 4)
    positive = fixed([np.random.default_rng(1).uniform(0.1, 2.0, CHAIN_SHAPE)])
    return converter_of(lambda x: conv(tf.math.log(x), kernel), [spec(*CHAIN_SHAPE)], positive)


def test_e_nan_in_one_sample_does_not_vanish() -> None:
    values = np.random.default_rng(2).uniform(0.1, 2.0, CHAIN_SHAPE)
    data = fixed([values], [-values])  # the logarithm of the second is NaN
    ours = OurDebugger(converter=logarithm_converter(), debug_dataset=data)
    ours.run()
    frame = ours.layers
    assert np.isnan(frame.loc[0, "rmse"])
    assert np.isnan(frame.loc[0, "max_abs_error"])
    assert frame.loc[0, "worst_sample"] == 1
    assert ours.result is not None
    assert ours.result.worst(count=1) == [0]
    theirs = TheirDebugger(converter=logarithm_converter(), debug_dataset=data)
    theirs.run()
    first = next(iter(theirs.layer_statistics.values()))
    tensorflow_shows_fault(bool(np.isfinite(first["mean_squared_error"])), "NaN vanishes in the mean over samples")


# ------------------------------------------------------------------------------------------------------ f: other kinds


def int16x8_converter() -> Any:
    converter = chain_converter()
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    return converter


def test_f_a_16x8_converter_is_debugged_as_16x8() -> None:
    ours = OurDebugger(converter=int16x8_converter(), debug_dataset=normal(CHAIN_SHAPE))
    ours.run()
    assert set(ours.layers["dtype"]) == {"int16"}
    assert operator_types(ours.get_nondebug_quantized_model()) == {"CONV_2D": {"int16"}}
    assert operator_types(ours.get_debug_quantized_model()) == {"CONV_2D": {"int16", "float32"}}
    wanted = scenarios.outputs_of(int16x8_converter().convert(), normal(CHAIN_SHAPE))
    got = scenarios.outputs_of(ours.get_nondebug_quantized_model(), normal(CHAIN_SHAPE))
    np.testing.assert_array_equal(got, wanted)
    int8 = OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE))
    int8.run()
    # Activations of 16 bits have no rounding to speak of; of the first layer's error only that of its weights is left.
    assert ours.layers.loc[0, "rmse"] < 0.6 * int8.layers.loc[0, "rmse"]
    theirs = TheirDebugger(converter=int16x8_converter(), debug_dataset=normal(CHAIN_SHAPE))
    tensorflow_shows_fault(
        operator_types(theirs.get_nondebug_quantized_model()) == {"CONV_2D": {"int8"}}, "16x8 becomes int8 in silence"
    )


def test_f_a_float16_converter_is_debugged_as_float16() -> None:
    def converter() -> Any:
        made = chain_converter()
        made.target_spec.supported_types = [tf.float16]
        return made

    ours = OurDebugger(converter=converter(), debug_dataset=normal(CHAIN_SHAPE))
    ours.run()
    assert ours.layers["rmse"].between(1e-6, 5e-3).all()
    types = {tensor.dtype.name for tensor in Model(ours.get_nondebug_quantized_model()).main.tensors}
    assert "float16" in types
    assert "int8" not in types
    np.testing.assert_allclose(
        scenarios.outputs_of(ours.get_nondebug_quantized_model(), normal(CHAIN_SHAPE)),
        scenarios.outputs_of(converter().convert(), normal(CHAIN_SHAPE)),
        atol=1e-6,
    )
    error = raised(lambda: TheirDebugger(converter=converter(), debug_dataset=normal(CHAIN_SHAPE)))
    tensorflow_shows_fault(error is not None, "a float16 converter cannot be debugged")


def test_f_dynamic_range_can_be_debugged() -> None:
    kernel = weights(64, 32)

    def converter(samples: Any = None) -> Any:
        return converter_of(lambda x: tf.matmul(x, kernel), [spec(1, 64)], samples)

    calibrated = load_float_model(converter()).calibrate(normal((1, 64)), progress=False)
    run = layer_error(calibrated, normal((1, 64), seed=3), kind="dynamic_range")
    step = np.abs(kernel.numpy()).max() / 127
    # 64 products, each with the rounding of a weight (uniform: step / sqrt 12) and some of the input's: of that size.
    assert 0.5 < run.statistics.rmse[0] / (8 * step / np.sqrt(12)) < 3
    for debugger_class, _ in BOTH:  # the drop-in keeps to the contract: it asks for a representative dataset
        with pytest.raises(ValueError, match="converter object must set representative_dataset"):
            debugger_class(converter=converter(), debug_dataset=normal((1, 64)))


# ------------------------------------------------------------------------------------------------------ g: subgraphs


class TwoSignatures(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tf.Variable(weights(3, 3, 4, 4)), tf.Variable(weights(3, 3, 4, 4, seed=9))

    @tf.function(input_signature=[spec(*CHAIN_SHAPE)])
    def one(self, x: Any) -> dict[str, Any]:
        return {"y": tf.nn.relu(conv(x, self.first))}

    @tf.function(input_signature=[spec(*CHAIN_SHAPE)])
    def two(self, x: Any) -> dict[str, Any]:
        return {"y": tf.nn.tanh(conv(x, self.second))}


def two_signatures_converter(folder: str) -> Any:
    module = TwoSignatures()
    tf.saved_model.save(module, folder, signatures={"one": module.one, "two": module.two})
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["one", "two"])

    def samples() -> Iterator[Any]:
        for (array,) in normal(CHAIN_SHAPE, count=3)():
            yield "one", {"x": array}
            yield "two", {"x": array}

    converter.optimizations, converter.representative_dataset = [tf.lite.Optimize.DEFAULT], samples
    return converter


def while_converter(_: str) -> Any:
    before, inside = weights(3, 3, 4, 4, seed=3), weights(3, 3, 4, 4)

    def function(x: Any) -> Any:
        x = conv(x, before)
        return tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, tf.tanh(conv(x, inside))), [0, x])[1]

    return converter_of(function, [spec(*CHAIN_SHAPE)], normal(CHAIN_SHAPE, count=3))


@pytest.mark.parametrize("make", [two_signatures_converter, while_converter])
def test_g_a_part_is_not_reported_as_the_whole(make: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ModelError, match=r"subgraphs \(.*signature"):
            OurDebugger(converter=make(folder), debug_dataset=normal(CHAIN_SHAPE))
        theirs = TheirDebugger(converter=make(folder), debug_dataset=normal(CHAIN_SHAPE))
        theirs.run()
    tensorflow_shows_fault(len(theirs.layer_statistics) == 1, "the first subgraph's operators alone are reported")


# ------------------------------------------------------------------------------------------------------ h: LSTM state


@pytest.fixture(scope="module")
def recurrent_model() -> Any:
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    layers = [tf_keras.layers.Input((6, 4), batch_size=1), tf_keras.layers.LSTM(8, return_sequences=True)]
    return tf_keras.Sequential([*layers, tf_keras.layers.Dense(3)])


def keras_converter(model: Any, samples: Any) -> Any:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations, converter.representative_dataset = [tf.lite.Optimize.DEFAULT], samples
    return converter


def test_h_the_state_of_an_lstm_does_not_leak_between_samples_and_runs(recurrent_model: Any) -> None:
    first, second = normal((1, 6, 4), count=2, seed=5, scale=2.0)()
    leaks = []
    for debugger_class, options_class in BOTH:
        seen: list[list[np.ndarray]] = []
        options = options_class(
            model_debug_metrics={"seen": lambda f, q, seen=seen: float(seen.append([f[0].copy(), q[0].copy()]) or 0.0)}
        )
        backend = {"backend": Backend(workers=1)} if debugger_class is OurDebugger else {}
        debugger = debugger_class(
            converter=keras_converter(recurrent_model, normal((1, 6, 4))),
            debug_dataset=fixed(first, second, first),
            debug_options=options,
            **backend,
        )
        debugger.run()
        once = debugger.layer_statistics
        debugger.run()
        assert len(seen) == 6
        between_samples = max(np.abs(a - b).max() for a, b in zip(seen[0], seen[2], strict=True))
        between_runs = max(abs(once[key][name] - row[name]) for key, row in debugger.layer_statistics.items() for name in row)
        leaks.append((between_samples, between_runs))
    assert leaks[0] == (0.0, 0.0)
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in operator_types(scenarios.float_bytes(keras_converter(recurrent_model, None)))
    tensorflow_shows_fault(max(leaks[1]) > 1e-3, "the state leaks")


# -------------------------------------------------------------------------------------------------- i: Keras 3 LSTM

CRASH = """
import numpy as np, tensorflow as tf
model = tf.keras.Sequential([tf.keras.layers.Input((6, 4), batch_size=1), tf.keras.layers.LSTM(8)])
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
samples = lambda: ([np.ones((1, 6, 4), np.float32)] for _ in range(2))
converter.representative_dataset = samples
tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=samples)
"""


def test_i_a_keras_3_lstm_is_calibrated_and_debugged() -> None:
    keras = pytest.importorskip("keras", minversion="3.0")
    theirs = subprocess.Popen([sys.executable, "-c", CRASH], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model = keras.Sequential([keras.layers.Input((6, 4), batch_size=1), keras.layers.LSTM(8)])
    samples = normal((1, 6, 4), count=3)
    try:
        error = raised(lambda: OurDebugger(converter=keras_converter(model, samples), debug_dataset=samples))
        float_model = load_float_model(keras_converter(model, samples))
        quantized = float_model.calibrate(samples).quantize("int8")
        runs = pair_errors(float_model, quantized, samples, backend=Backend(workers=1))
    finally:
        code = theirs.wait(timeout=120)
    # Its debug model has the layer in a loop, where a drop-in cannot look; but it says who can.
    assert isinstance(error, ModelError), error
    assert "pair_errors" in str(error)
    body = next(run for name, run in runs.items() if name.endswith("/body"))
    assert body.statistics.samples == 3 * 6  # samples times steps
    assert "FULLY_CONNECTED" in {layer.op_name for layer in body.layers}
    expected = [model(np.asarray(sample[0])).numpy() for sample in samples()]
    interpreter = Interpreter(quantized.data)
    outputs = []
    for sample in samples():
        interpreter.invoke(sample)
        outputs.append(interpreter.read_outputs()[0])
    assert np.abs(np.stack(outputs) - np.stack(expected)).max() < 0.05 * np.abs(expected).max() + 0.05
    tensorflow_shows_fault(code < 0 or code >= 128, "calibrating a Keras 3 LSTM kills the process")


# -------------------------------------------------------------------------------------------- j: input types, clipping


def integer_converter() -> Any:
    kernel = weights(4, 3)
    corners = fixed(*([[np.array(signs) / 1.0]] for signs in ([1, 0, 0, -1], [-1, 1, -1, 1], [1, 1, 1, 1], [-1, -1, -1, -1])))
    converter = converter_of(lambda x: tf.matmul(x, kernel), [spec(1, 4)], corners)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter


def test_j_the_input_type_of_the_converter_is_honoured() -> None:
    types = []
    for debugger_class, _ in BOTH:
        converter = integer_converter()
        converter.inference_input_type = converter.inference_output_type = tf.int8
        debugger = debugger_class(converter=converter, debug_dataset=fixed([[[0.5, 0, 0, 0]]]))
        models = [Model(debugger.quant_model), Model(debugger.get_nondebug_quantized_model())]
        types.append([model.main.tensors[model.main.inputs[0]].dtype.name for model in models])
    assert types[0] == ["int8", "int8"]
    tensorflow_shows_fault(types[1] == ["float32", "float32"], "inference_input_type is ignored")


def test_j_floats_beyond_the_range_of_an_integer_input_are_clipped() -> None:
    inputs = np.array([[1.5, 0.0, 0.0, -2.0]], dtype=np.float32)
    outputs: list[np.ndarray] = []
    for debugger_class, options_class in BOTH:
        options = options_class(
            fully_quantize=True, model_debug_metrics={"seen": lambda _, q: float(outputs.append(q[0].copy()) or 0.0)}
        )
        debugger = debugger_class(converter=integer_converter(), debug_dataset=fixed([inputs]), debug_options=options)
        debugger.run()
    scale = 2.0 / 255
    wanted = np.clip(inputs, -1.0, 1.0) @ weights(4, 3).numpy()
    np.testing.assert_allclose(outputs[0], wanted, atol=4 * scale)
    tensorflow_shows_fault(bool(np.abs(outputs[1] - wanted).max() > 0.2), "a float input is cast to int8 without clipping")


# ------------------------------------------------------------------------------------------------------ k: names


def crowded_converter() -> Any:
    """Names that end in digits, and an operator of two outputs; one name is the other with a digit behind it."""
    first, second = weights(3, 3, 4, 4), weights(3, 3, 4, 4, seed=2)

    def function(x: Any) -> Any:
        y = tf.nn.tanh(conv(x, first), name="node12")
        low, high = tf.split(y, 2, axis=3, name="halves")
        return tf.nn.tanh(conv(tf.concat([high, low], 3, name="node1"), second), name="node123")

    return converter_of(function, [spec(*CHAIN_SHAPE)], normal(CHAIN_SHAPE))


def test_k_every_name_of_the_table_is_the_true_one_and_can_be_denylisted() -> None:
    converter = crowded_converter()
    float_model = load_float_model(converter).model
    ours = OurDebugger(converter=converter, debug_dataset=normal(CHAIN_SHAPE, count=1))
    ours.run()
    rows = dump(ours)[1]
    names = {row["tensor_name"]: row["op_name"] for row in rows}
    assert len(names) == len(rows) == len(ours.layers)
    assert list(ours.layers["node"]) == [row["tensor_name"] for row in rows]
    for name, op_name in names.items():
        assert [operator.name for operator in float_model.main.nodes[name]] == [op_name]
    assert {"node12", "node1", "halves", "halves1"} <= set(names)
    for name in names:
        ours.options = OurOptions(denylisted_nodes=[name])
        ours.run()
        assert name not in set(ours.layers["node"]), name
        kept = Model(ours.get_nondebug_quantized_model())
        types = {kept.main.tensors[op.outputs[0]].dtype.name for op in kept.main.operators if op.name == names[name]}
        assert "float32" in types

    theirs = TheirDebugger(converter=crowded_converter(), debug_dataset=normal(CHAIN_SHAPE, count=1))
    theirs.run()
    wrong = [row["tensor_name"] for row in dump(theirs)[1] if row["tensor_name"] not in float_model.main.nodes]
    tensorflow_shows_fault(bool(wrong), "names of the table are not names of the model")


def test_k_the_names_that_a_debug_model_shows_can_be_denylisted_too() -> None:
    ours = OurDebugger(converter=crowded_converter(), debug_dataset=normal(CHAIN_SHAPE, count=1))
    ours.run()
    frame = ours.layers
    shown = [*(ours.layer_statistics or ()), *frame["tensor_name"]]
    for name, node in zip(shown, [*frame["node"], *frame["node"]], strict=True):
        ours.options = OurOptions(denylisted_nodes=[name])
        assert node not in {layer.node for layer in ours._debug_model.layers}, name


# ------------------------------------------------------------------------------------------------------ l: datasets


def test_l_an_empty_dataset_is_an_error() -> None:
    ours = OurDebugger(converter=chain_converter(), debug_dataset=lambda: iter(()))
    with pytest.raises(DatasetError, match="yielded no samples"):
        ours.run()
    assert ours.layer_statistics is None
    theirs = TheirDebugger(converter=chain_converter(), debug_dataset=lambda: iter(()))
    theirs.run()
    tensorflow_shows_fault(not theirs.layer_statistics, "an empty dataset gives empty results and no word")


def test_l_a_generator_object_is_a_dataset() -> None:
    ours = OurDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE)())
    ours.run()
    assert len(ours.layer_statistics or ()) == 4
    with pytest.raises(DatasetError, match="consumed"):
        ours.run()
    theirs = TheirDebugger(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE)())
    tensorflow_shows_fault("not callable" in str(raised(theirs.run)), "a generator object cannot be given")


def test_l_a_one_shot_iterator_gives_layer_and_model_results() -> None:
    results = []
    for debugger_class, options_class in BOTH:
        options = options_class(model_debug_metrics={"difference": largest_difference})
        once = normal(CHAIN_SHAPE)()
        debugger = debugger_class(converter=chain_converter(), debug_dataset=lambda once=once: once, debug_options=options)
        debugger.run()
        results.append((len(debugger.layer_statistics), dict(debugger.model_statistics)))
    assert results[0][0] == 4
    assert results[0][1]["difference"] > 0
    tensorflow_shows_fault(results[1] == (4, {}), "the second pass over an iterator is empty, and nobody is told")


# ------------------------------------------------------------------------------------------------------ m: samples


@pytest.mark.parametrize("shape", [(1, 10, 10, 4), (1, 8, 8, 5)], ids=["spatial size", "channels"])
def test_m_a_sample_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    ours = OurDebugger(converter=chain_converter(), debug_dataset=normal(shape))
    with pytest.raises(DatasetError, match=rf"sample 0.*got shape \(1, {shape[1]}, .*expected \(1, 8, 8, 4\)"):
        ours.run()
    theirs = TheirDebugger(converter=chain_converter(), debug_dataset=normal(shape))
    tensorflow_shows_fault(raised(theirs.run) is None, "the model is resized in silence")


def two_input_converter() -> Any:
    kernels = weights(3, 3, 4, 4), weights(3, 3, 4, 4, seed=7)
    shapes = {"first": (1, 8, 8, 4), "second": (1, 6, 6, 4)}

    def function(first: Any, second: Any) -> Any:
        return {"one": tf.nn.relu(conv(first, kernels[0])), "two": conv(second, kernels[1])}

    def samples() -> Iterator[dict[str, np.ndarray]]:
        for arrays in normal(*shapes.values())():
            yield dict(zip(shapes, arrays, strict=True))

    return converter_of(function, [spec(*shape, name=name) for name, shape in shapes.items()], samples)


def test_m_swapped_inputs_are_an_error() -> None:
    wrong = [spec.shape for spec in load_float_model(two_input_converter()).model.input_specs()][::-1]
    ours = OurDebugger(converter=two_input_converter(), debug_dataset=normal(*wrong))
    with pytest.raises(DatasetError, match="are the inputs in the model's order"):
        ours.run()
    theirs = TheirDebugger(converter=two_input_converter(), debug_dataset=normal(*wrong))
    tensorflow_shows_fault(raised(theirs.run) is None, "swapped inputs pass, resized")


@pytest.mark.parametrize("signed", [False, True], ids=["dict", "(signature, dict)"])
def test_m_dict_samples_are_taken(signed: bool) -> None:
    def samples() -> Iterator[Any]:
        for sample in two_input_converter().representative_dataset():
            yield ("serving_default", sample) if signed else sample

    ours = OurDebugger(converter=two_input_converter(), debug_dataset=samples)
    ours.run()
    assert len(ours.layer_statistics or ()) == 2
    theirs = TheirDebugger(converter=two_input_converter(), debug_dataset=samples)
    tensorflow_shows_fault(raised(theirs.run) is not None, "samples by name fail, though calibration takes them")


# ------------------------------------------------------------------------------------------------------ n: the setter


def test_n_new_model_metrics_work_after_construction() -> None:
    results = []
    for debugger_class, options_class in BOTH:
        debugger = debugger_class(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE))
        debugger.options = options_class(model_debug_metrics={"difference": largest_difference})
        results.append(raised(debugger.run) or debugger.model_statistics)
    assert results[0]["difference"] > 0
    tensorflow_shows_fault(isinstance(results[1], Exception), "new model metrics find no float outputs")


def test_n_new_layer_metrics_work_after_construction() -> None:
    _, debug_model = scenarios.chain_models()
    names = []
    for debugger_class, options_class in BOTH:
        debugger = debugger_class(quant_debug_model_content=debug_model, debug_dataset=normal(CHAIN_SHAPE))
        debugger.options = options_class(layer_debug_metrics={"l1": lambda error: np.mean(np.abs(error))})
        debugger.run()
        names.append(list(next(iter(debugger.layer_statistics.values()))))
    assert names[0][-1] == "l1"
    tensorflow_shows_fault("l1" not in names[1], "new layer metrics are ignored")


# ------------------------------------------------------------------------------------------------------ o: collisions


@pytest.mark.parametrize("argument", ["layer_debug_metrics", "layer_direct_compare_metrics"])
@pytest.mark.parametrize("name", ["op_name", "tensor_idx", "scale", "zero_point", "tensor_name"])
def test_o_a_metric_cannot_be_called_like_a_column(argument: str, name: str) -> None:
    with pytest.raises(OptionError, match=f"called '{name}'"):
        OurOptions(**{argument: {name: lambda *_: 1.0}})
    options = TheirOptions(**{argument: {name: lambda *_: -7.0}})
    _, debug_model = scenarios.chain_models()
    data = normal(CHAIN_SHAPE, count=1)
    theirs = TheirDebugger(quant_debug_model_content=debug_model, debug_dataset=data, debug_options=options)
    theirs.run()
    columns, rows = dump(theirs)
    tensorflow_shows_fault(columns.count(name) == 2 and rows[0][name] != "-7.0", "two columns bear one name")


@pytest.mark.parametrize("argument", ["layer_debug_metrics", "layer_direct_compare_metrics"])
def test_o_a_metric_called_like_a_default_replaces_it_and_mixes_with_nothing(argument: str) -> None:
    _, debug_model = scenarios.chain_models()
    values = []
    for debugger_class, options_class in BOTH:
        options = options_class(**{argument: {"stddev": lambda *_: -7.0}})
        data = normal(CHAIN_SHAPE, count=2)
        debugger = debugger_class(quant_debug_model_content=debug_model, debug_dataset=data, debug_options=options)
        debugger.run()
        columns, rows = dump(debugger)
        values.append((float(rows[0]["stddev"]), columns.count("stddev")))
    assert values[0] == (-7.0, 1)
    if argument == "layer_direct_compare_metrics":
        tensorflow_shows_fault(values[1] != (-7.0, 1), "the mean of both metrics is reported")


def test_o_a_metric_does_not_pass_for_a_pooled_figure() -> None:
    _, debug_model = scenarios.chain_models()
    ours = OurDebugger(
        quant_debug_model_content=debug_model,
        debug_dataset=normal(CHAIN_SHAPE),
        debug_options=OurOptions(layer_debug_metrics={"rmse": lambda _: -7.0}),
    )
    ours.run()
    frame = ours.layers
    assert (frame["rmse"] > 0).all()
    assert (frame["metric rmse"] == -7.0).all()


# --------------------------------------------------------------------------------------------------- p: missing keys


def test_p_looking_for_a_layer_that_is_not_there_changes_nothing() -> None:
    results = []
    for debugger_class, _ in BOTH:
        debugger = debugger_class(converter=chain_converter(), debug_dataset=normal(CHAIN_SHAPE))
        debugger.run()
        looked_up = raised(lambda debugger=debugger: debugger.layer_statistics["NumericVerify/none:1"])
        error = raised(lambda debugger=debugger: dump(debugger))
        results.append((type(looked_up), len(debugger.layer_statistics), error is None))
    assert results[0] == (KeyError, 4, True)
    tensorflow_shows_fault(not results[1][2], "a missing key is created, and the dump fails")


# --------------------------------------------------------------------------------------------------- q: dead layers


def test_q_a_dead_layer_runs_on_the_builtin_kernels() -> None:
    kernel = weights(3, 3, 4, 4)
    results: list[Any] = []
    for debugger_class, _ in BOTH:
        converter = converter_of(
            lambda x: conv(tf.nn.relu(conv(x, kernel) - 100.0), kernel) + x, [spec(*CHAIN_SHAPE)], normal(CHAIN_SHAPE)
        )
        error = raised(lambda converter=converter, make=debugger_class: results.append(run(make, converter)))
        if error is not None:
            results.append(error)
    ours, error = results
    assert len(ours.layer_statistics) == 3
    assert ours.result.provenance["kernels"] == "builtin"
    assert "XNNPACK refuses this model" in ours.result.notes[0]
    tensorflow_shows_fault("XNNPACK" in str(error), "XNNPACK refuses, and so does the debugger")


def run(debugger_class: Any, converter: Any) -> Any:
    debugger = debugger_class(converter=converter, debug_dataset=normal(CHAIN_SHAPE))
    debugger.run()
    return debugger


# ----------------------------------------------------------------------------------------- r: BATCH_MATMUL in XNNPACK


def test_r_a_broken_kernel_is_not_blamed_on_quantization() -> None:
    shape = (1, 8, 16)
    figures = []
    for debugger_class, options_class in BOTH:
        converter = converter_of(lambda x: tf.matmul(x, tf.reshape(x, (1, 16, 8))), [spec(*shape)], normal(shape))
        options = options_class(model_debug_metrics={"difference": largest_difference})
        debugger = debugger_class(converter=converter, debug_dataset=normal(shape), debug_options=options)
        debugger.run()
        figures.append((max(row["mean_squared_error"] for row in debugger.layer_statistics.values()) ** 0.5, debugger))
    (our_error, ours), (their_error, theirs) = figures
    frame = ours.layers.set_index("op_name")
    assert "BATCH_MATMUL" in frame.index
    assert frame.loc["BATCH_MATMUL", "sqnr_db"] > 25
    if their_error > 5 * our_error:  # as in TensorFlow 2.21
        assert ours.result.provenance["kernels"] == "builtin"
        assert "BATCH_MATMUL" in ours.result.notes[0]
        assert "not of quantization" in ours.result.notes[0]
        assert theirs.model_statistics["difference"] > 3 * ours.model_statistics["difference"]
    tensorflow_shows_fault(their_error > 5 * our_error, "XNNPACK's int8 BATCH_MATMUL is wrong")


# ------------------------------------------------------------------------------------------ s: progress, choice, passes


def test_s_the_dataset_is_read_once_and_kernels_and_workers_can_be_chosen() -> None:
    passes = []
    for debugger_class, options_class in BOTH:
        count = 0

        def samples() -> Iterator[list[np.ndarray]]:
            nonlocal count
            count += 1
            return normal(CHAIN_SHAPE)()

        options = options_class(model_debug_metrics={"difference": largest_difference})
        choice = {"backend": Backend(kernels="reference", workers=2)} if debugger_class is OurDebugger else {}
        debugger = debugger_class(converter=chain_converter(), debug_dataset=samples, debug_options=options, **choice)
        debugger.run()
        passes.append((count, debugger))
    assert passes[0][0] == 1
    provenance = passes[0][1].result.provenance
    assert (provenance["kernels"], provenance["workers"]) == ("reference", 2)
    tensorflow_shows_fault(passes[1][0] == 2, "the dataset runs twice with model metrics")


def test_every_fault_of_the_list_has_a_test() -> None:
    source = Path(__file__).read_text()
    assert [letter for letter in "abcdefghijklmnopqrs" if f"def test_{letter}_" not in source] == []
