"""An error planted into one layer of a quantized model is found as the worst layer, in every kind of model.

Whether an error can be found is worked out by itself, in TensorFlow's interpreter: what the broken operator computes is held
against what the sound one does. Where that difference drowns in the error of the sound model (a dead or an equal channel, a
scale that clips nothing, a channel of a thousand), nothing is claimed.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, NamedTuple

import models
import numpy as np
import planting
import pytest
from conftest import SHARED_MODELS
from shared_data import samples as real_samples

from tflite_qdebug.analyses.pairs import pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.dequantized import dequantize_model
from tflite_qdebug.match import Graph
from tflite_qdebug.model import Model, Operator
from tflite_qdebug.record import Run

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
# How far above the error of the sound model a planted one must be for finding it to be owed.
PLAIN = 2.0


class Pair(NamedTuple):
    floating: bytes
    quantized: bytes
    samples: list[list[np.ndarray]]


class Case(NamedTuple):
    pair: Pair
    planted: planting.Planted
    sound: Run
    run: Run

    @property
    def row(self) -> int:
        return next(i for i, layer in enumerate(self.run.layers) if layer.tensor_idx == self.planted.output)


def measured(pair: Pair, quantized: bytes | None = None, parts: bool = True) -> Run:
    return pair_error(pair.floating, quantized or pair.quantized, pair.samples, parts=parts, backend=BACKEND, progress=False)


def real_output(data: bytes, index: int, inputs: list[np.ndarray]) -> np.ndarray:
    model = Model(data)
    fed = []
    for position, values in zip(model.main.inputs, inputs, strict=True):
        tensor = model.main.tensors[position]
        fed.append(tensor.quantization.quantize(values, tensor.dtype) if tensor.is_quantized else values)  # type: ignore[union-attr]
    values = models.run(data, fed, "builtin").get_tensor(index)
    quantization = model.main.tensors[index].quantization
    return values if values.dtype == np.float32 or quantization is None else quantization.dequantize(values)


def damage(pair: Pair, planted: planting.Planted) -> float:
    """Returns by how many steps of 8 bits the output of the broken operator is off the sound one's, by hand."""
    tensor = Model(pair.quantized).main.tensors[planted.output]
    before, after = (
        np.stack([real_output(data, planted.output, inputs) for inputs in pair.samples]).astype(np.float64)
        for data in (pair.quantized, planted.data)
    )
    error = after - before
    if tensor.is_quantized:
        step = float(tensor.quantization.scale[0]) * (1 if tensor.dtype.itemsize == 1 else 256)  # type: ignore[union-attr]
    else:
        step = np.sqrt(np.mean(before**2)) / 42
    return max(float(np.sqrt(np.mean(error**2))), float(np.abs(error).max()) / 6) / max(step, 1e-30)


def chosen(quantized: Model, count: int, seed: int) -> list[Operator]:
    """Returns the first and the last operator with weights, the first depthwise one, and others at random."""
    operators = planting.plantable(quantized)
    depthwise = [operator for operator in operators if operator.name == "DEPTHWISE_CONV_2D"][:1]
    shuffled = np.random.default_rng(seed).permutation(len(operators))
    wanted = [operators[0], operators[-1], *depthwise, *(operators[i] for i in shuffled)]
    return list({operator.index: operator for operator in wanted}.values())[:count]


def cases(pair: Pair, count: int, seed: int = 0, whats: tuple[str, ...] = planting.KINDS) -> tuple[Run, list[Case]]:
    """Plants one error in each chosen layer, every kind in turn."""
    quantized, sound = Model(pair.quantized), measured(pair)
    found = []
    for turn, operator in enumerate(chosen(quantized, count, seed)):
        for what in (*whats[(turn + seed) % len(whats) :], *whats[: (turn + seed) % len(whats)]):
            try:
                planted = planting.plant(quantized, what, operator, seed)
            except planting.CannotPlantError:
                continue
            found.append(Case(pair, planted, sound, measured(pair, planted.data)))
            break
    return sound, found


def is_owed(case: Case) -> bool:
    severity = case.sound.severity()
    return damage(case.pair, case.planted) > PLAIN * float(np.nanmax(severity[np.isfinite(severity)]))


def check(case: Case) -> bool:
    """Checks that the broken layer is the worst, where that is owed, and that what is before it stays as it was.

    Returns whether it is owed.
    """
    run, sound, row = case.run, case.sound, case.row
    assert len(run.layers) == len(sound.layers)
    operator = Model(case.pair.quantized).main.operators[case.planted.operator]
    owed = is_owed(case)
    if owed:
        assert run.worst(count=1) == [row], (operator, case.planted.what)
    before = before_it(case)
    for name in ("accumulated", "own"):
        np.testing.assert_array_equal(run.parts[name].rmse[before], sound.parts[name].rmse[before])
    np.testing.assert_array_equal(run.statistics.rmse[before], sound.statistics.rmse[before])
    return owed


def before_it(case: Case) -> list[int]:
    """Returns the rows that cannot know of the broken operator: those of operators that do not follow from it."""
    graph = Graph(Model(case.pair.quantized))
    touched = {case.planted.output}
    for operator in graph.subgraph.operators:
        if touched.intersection(operator.inputs):
            touched.update(operator.outputs)
    return [i for i, layer in enumerate(case.run.layers) if layer.tensor_idx not in touched]


def check_others_are_not_blamed(case: Case) -> None:
    """On the float model's own values each sound operator errs as in the sound model, if it reads no other scale than there."""
    readers = [o for o in Model(case.pair.quantized).main.operators if case.planted.output in o.inputs]
    apart = {case.planted.output, *(index for reader in readers for index in reader.outputs)}
    now, then = case.run.parts["own"].rmse, case.sound.parts["own"].rmse
    for i, layer in enumerate(case.run.layers):
        if layer.tensor_idx not in apart and np.isfinite(then[i]):
            assert now[i] == pytest.approx(then[i], rel=0.1, abs=1e-12), layer.node


# -- small models, every kind ---------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "per tensor": ("int8", {"per_channel": False}),
    "full integer": ("full_integer", {}),
    "uint8 input and output": ("full_integer", {"input_type": "uint8", "output_type": "uint8"}),
    "16x8": ("int16x8", {}),
    "dynamic range": ("dynamic_range", {}),
    "float16": ("float16", {}),
}


@functools.cache
def small(name: str, label: str) -> Pair:
    kind, options = KINDS[label]
    float_model = models.calibrated(name).float_model
    assert float_model is not None
    return Pair(float_model.data, models.calibrated(name).quantize(kind, **options).data, models.samples(name, 2, seed=5))


@pytest.mark.parametrize("label", list(KINDS))
@pytest.mark.parametrize("name", ["mixed", "chain", "weighty"])
def test_a_planted_error_is_the_worst_layer(name: str, label: str) -> None:
    quantized = Model(small(name, label).quantized)
    if not planting.plantable(quantized):
        assert label == "dynamic range"  # weights of fewer than 1024 elements stay float
        return
    owed = 0
    for turn in range(2):
        _, found = cases(small(name, label), 4, seed=turn)
        for case in found:
            owed += check(case)
            check_others_are_not_blamed(case)
    assert owed >= 1


@pytest.mark.parametrize("what", planting.KINDS)
def test_float_islands_and_sound_layers_around_a_broken_one(what: str) -> None:
    calibrated = models.calibrated("mixed")
    assert calibrated.float_model is not None
    island = next(op for op in calibrated.model.main.operators if op.name == "ADD")
    node = calibrated.model.main.tensors[island.outputs[0]].name
    data = calibrated.quantize("int8", denylisted_nodes=[node]).data
    pair = Pair(calibrated.float_model.data, data, models.samples("mixed", 2, seed=5))
    sound, found = cases(pair, 3, whats=(what,))
    # The island has no error of its own; its values are rounded behind it.
    assert {layer.op_name for layer in sound.layers if layer.node == node} == {"QUANTIZE"}
    assert found
    owed = [check(case) for case in found]
    assert any(owed) or what == "clipping_scale"
    for case in found:
        check_others_are_not_blamed(case)


def test_an_output_scale_half_as_large_again_is_a_coarser_step_and_no_more() -> None:
    pair = small("chain", "int8")
    quantized = Model(pair.quantized)
    operator = next(op for op in quantized.main.operators if op.name == "CONV_2D")
    planter = planting.Planted(planting.rescaled(quantized, operator, 1.5), operator.index, operator.outputs[0], "")
    case = Case(pair, planter, measured(pair), measured(pair, planter.data))
    ours, sound = ({name: values[case.row] for name, values in run.columns().items()} for run in (case.run, case.sound))
    assert ours["scale"] == pytest.approx(1.5 * sound["scale"])
    assert ours["rmse_over_scale"] < 1.1 * sound["rmse_over_scale"]  # in steps of its own it is as good as any
    assert ours["rmse"] > 1.2 * sound["rmse"]
    assert ours["sqnr_db"] < sound["sqnr_db"] - 1.5
    assert ours["range_used"] == pytest.approx(sound["range_used"] / 1.5, abs=0.02)


@pytest.mark.parametrize("label", ["int8", "16x8", "float16"])
def test_without_the_float_model_a_broken_weight_looks_sound(label: str) -> None:
    pair = small("mixed", label)
    quantized = Model(pair.quantized)
    operator = next(op for op in planting.plantable(quantized) if op.name == "DEPTHWISE_CONV_2D")
    planted = planting.plant(quantized, "swapped_channels", operator)
    case = Case(pair, planted, measured(pair), measured(pair, planted.data))
    assert case.run.worst(count=1) == [case.row]
    assert case.run.statistics.rmse[case.row] > 3 * case.sound.statistics.rmse[case.row]
    alone, before = (
        pair_error(None, data, pair.samples, backend=BACKEND, progress=False) for data in (planted.data, pair.quantized)
    )
    step = case.run.layers[case.row].scale
    assert alone.statistics.rmse[case.row] <= max(2 * before.statistics.rmse[case.row], 0.5 * (step or 0.0))
    assert any("invisible" in note for note in alone.notes)


@pytest.mark.parametrize("what", ["saturated_bias", "clipping_scale"])
def test_without_the_float_model_clipping_is_seen_all_the_same(what: str) -> None:
    """What an operator clips, its own dequantized form does not."""
    pair = small("chain", "int8")
    quantized = Model(pair.quantized)
    planted = planting.plant(quantized, what, planting.plantable(quantized)[0])
    alone, before = (
        pair_error(None, data, pair.samples, backend=BACKEND, progress=False) for data in (planted.data, pair.quantized)
    )
    row = next(i for i, layer in enumerate(alone.layers) if layer.tensor_idx == planted.output)
    assert alone.worst(count=1) == [row]
    columns, sound = alone.columns(), before.columns()
    assert columns["rmse_over_scale"][row] > 5 * sound["rmse_over_scale"][row]
    ends = columns["saturated_low"] + columns["saturated_high"]
    assert ends[row] > (sound["saturated_low"] + sound["saturated_high"])[row] + 0.05


def test_a_layer_behind_a_broken_one_answers_for_its_clipping_only_where_the_error_is_not_split() -> None:
    pair = small("chain", "int8")
    quantized = Model(pair.quantized)
    planted = planting.plant(quantized, "saturated_bias", planting.plantable(quantized)[0])
    plain, split = (measured(pair, planted.data, parts) for parts in (False, True))
    row = next(i for i, layer in enumerate(plain.layers) if layer.tensor_idx == planted.output)
    behind = next(i for i, layer in enumerate(plain.layers) if layer.op_name == "CONV_2D" and i > row)
    assert plain.severity()[behind] > 5  # clipped, as its inputs are far beyond what it was calibrated for
    assert split.severity()[behind] < 1
    assert split.worst(count=1) == [row]


# -- real models ----------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason=f"the real models are not at {SHARED_MODELS}")
FLOAT = {
    "keyword_spotting/kws_ref_float": ("int8", "per tensor", "full integer", "16x8", "dynamic range", "float16"),
    "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float": ("int8", "16x8", "dynamic range", "float16"),
    "mobilenetv3_small/mobilenet_v3_small_float": ("int8", "dynamic range", "float16"),  # no kernels run its 16x8
    "face_detection/face_detection_short_range_f32folded": ("int8", "16x8", "dynamic range", "float16"),
    "super_resolution/espcn_x2_float": ("int8", "full integer", "16x8", "dynamic range", "float16"),
    "super_resolution/fsrcnn_x2_float": ("int8", "16x8", "dynamic range", "float16"),
    "structure/conv_fc_mnist": ("int8", "per tensor", "16x8", "dynamic range", "float16"),
    "structure/dilated_conv": ("int8", "16x8", "float16"),
    "structure/hello_world_float": ("int8", "16x8", "float16"),
    "structure/sdpa_composite": ("dynamic range", "float16"),
    "structure/toy_model_with_kv_cache_multi_signature": ("dynamic range", "float16"),
    "structure/torchaudio_conformer": ("dynamic range",),
}
# Their float model: None, where it is the model's own, dequantized.
QUANTIZED: dict[str, str | None] = {
    "mobilenet_v1_0.25/mobilenet_v1_0.25_224_quant_QAT": None,
    "keyword_spotting/kws_ref_model_int8": None,
    "mnist_lstm/trained_lstm_int8": "mnist_lstm/trained_lstm",
    "structure/hello_world_int8": None,
    "coral/mobilenet_v1_0.25_128_quant": None,
    "coral/keras_lstm_mnist_ptq": None,
    "coral/deeplabv3_mnv2_dm05_pascal_quant": None,
    "face_detection/face_detection_short_range_f16": "face_detection/face_detection_short_range_f32folded",
}
LARGE = ("mobilenetv3_small", "coral/", "face_detection", "structure/torchaudio", "mobilenet_v1", "super", "structure/toy")
HUGE = ("structure/torchaudio", "coral/deeplab")
OWED: Counter[str] = Counter()


@functools.cache
def calibrated(name: str) -> Any:
    float_model = load_float_model(SHARED_MODELS / f"{name}.tflite")
    return float_model.calibrate(real_samples(name, 8), "exposed", histograms=False, progress=False)


def real_pair(name: str, label: str) -> Pair:
    kind, options = KINDS[label]
    source = load_float_model(SHARED_MODELS / f"{name}.tflite")
    quantizer = calibrated(name) if kind in ("int8", "full_integer", "int16x8") else source
    return Pair(source.data, quantizer.quantize(kind, **options).data, real_samples(name, 1 if name.startswith(HUGE) else 2))


def check_real(pair: Pair, name: str, seed: int) -> None:
    count = 1 if name.startswith(HUGE) else 2 if name.startswith(LARGE) else 4
    _, found = cases(pair, count, seed)
    assert found
    for case in found:
        OWED["tried"] += 1
        OWED["owed"] += check(case)


@real
@pytest.mark.parametrize(("name", "label"), [(name, label) for name, labels in FLOAT.items() for label in labels])
def test_a_planted_error_is_the_worst_layer_of_a_real_model(name: str, label: str) -> None:
    check_real(real_pair(name, label), name, seed=list(KINDS).index(label))


@real
@pytest.mark.parametrize("name", list(QUANTIZED))
def test_a_planted_error_is_the_worst_layer_of_a_model_quantized_elsewhere(name: str) -> None:
    path = SHARED_MODELS / f"{name}.tflite"
    twin = QUANTIZED[name]
    floating = (SHARED_MODELS / f"{twin}.tflite").read_bytes() if twin else dequantize_model(Model(path))
    check_real(Pair(floating, path.read_bytes(), real_samples(name, 1 if name.startswith(HUGE) else 2)), name, seed=len(name))


@real
@pytest.mark.parametrize("name", ["structure/rope", "structure/two_signatures"])
def test_models_without_weights_have_no_place_for_it(name: str) -> None:
    source = load_float_model(SHARED_MODELS / f"{name}.tflite")
    assert not any(
        Graph(source.model).weights(op) is not None for op in planting.plantable(Model(source.quantize("float16").data))
    )


@real
def test_most_errors_are_above_what_the_sound_model_does_wrong_itself() -> None:
    """The tests before claim nothing where the model drowns the error: that must be the exception."""
    if OWED["tried"] < 60:
        pytest.skip("runs behind all tests of real models")
    assert OWED["owed"] > 0.6 * OWED["tried"], OWED
