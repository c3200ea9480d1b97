"""Real models: every float ``.tflite`` of the shared folder is calibrated, quantized and measured, or refused in our words."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from conftest import SHARED_MODELS

from tflite_qdebug.analyses.layer_error import layer_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, check_denylist_nodes, load_float_model
from tflite_qdebug.errors import QDebugError
from tflite_qdebug.model import Model

pytestmark = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason=f"the real models are not at {SHARED_MODELS}")

COUNT = 3
FLOAT_MIN = float(np.finfo(np.float32).tiny)
BUILTIN = Backend(kernels="builtin")
# Operators that write their result over an input where nobody reads that later.
IN_PLACE = {"ADD", "SUB", "MUL", "DIV", "RESHAPE", "SOFTMAX"}
MEASURED = {
    "super_resolution/fsrcnn_x2_float": ("int8", "int16x8", "dynamic_range", "float16"),
    "super_resolution/espcn_x2_float": ("int8", "full_integer", "int16x8", "float16"),
    "keyword_spotting/kws_ref_float": ("int8", "full_integer", "int16x8", "dynamic_range", "float16"),
    "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float": ("int8", "int16x8", "dynamic_range"),
    "face_detection/face_detection_short_range_f32folded": ("int8", "int16x8"),
    "face_detection/face_detection_short_range_f16": ("int8", "int16x8", "dynamic_range"),
    "mobilenetv3_small/mobilenet_v3_small_float": ("int8",),
    "structure/conv_fc_mnist": ("int8", "dynamic_range"),
    "structure/dilated_conv": ("int8",),
    "structure/hello_world_float": ("int8", "int16x8"),
    "structure/rope": ("int8",),
}
# torchaudio_conformer is not tried: where its mask leaves nothing over, a kernel of TensorFlow 2.21 ends the process (SIGABRT).
REFUSED = {
    "structure/sdpa_composite": ("int8", "int16x8", "float16", "dynamic_range"),
    "structure/two_signatures": ("int8", "int16x8", "float16", "dynamic_range"),
    "structure/toy_model_with_kv_cache_multi_signature": ("int8", "int16x8", "float16", "dynamic_range"),
}


def path_of(name: str) -> Path:
    return SHARED_MODELS / f"{name}.tflite"


@functools.cache
def samples(name: str) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(0)

    def values(spec: Any) -> np.ndarray:
        shape = tuple(2 if size == -1 else size for size in spec.shape)
        if spec.dtypes[0] == np.float32:
            return generator.normal(0.0, 1.0, shape).astype(np.float32)
        return generator.integers(0, 2, shape).astype(spec.dtypes[0])

    return [[values(spec) for spec in Model(path_of(name)).input_specs()] for _ in range(COUNT)]


@functools.cache
def calibrated(name: str) -> CalibratedModel:
    return load_float_model(path_of(name)).calibrate(samples(name), progress=False)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in MEASURED.items() for kind in kinds])
def test_every_layer_is_measured_and_finite(name: str, kind: str) -> None:
    run = layer_error(calibrated(name), samples(name), kind=kind, backend=BUILTIN, progress=False)
    quantized = Model(calibrated(name).quantize(kind).data)
    assert run.statistics.samples == COUNT
    assert np.isfinite(run.statistics.sums).all()
    assert np.isfinite(run.statistics.max_abs_error).all()
    main = quantized.main
    if kind in ("int8", "full_integer", "int16x8"):
        made = [o for o in main.operators if o.name != "QUANTIZE" and main.tensors[o.outputs[0]].is_quantized]
        assert len(run.layers) >= 0.7 * len(made)
    if kind in ("int8", "full_integer"):  # 16-bit steps are finer than the error of 8-bit weights
        # One operator alone is off by little more than rounding, in all but a few layers.
        assert np.median(run.columns()["rmse_over_scale"]) < 2.0
    operators = [layer.node for layer in run.layers if layer.op_name != "QUANTIZE"]
    check_denylist_nodes(calibrated(name).model, operators)  # each can be denylisted


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in REFUSED.items() for kind in kinds])
def test_a_refusal_is_one_of_our_errors(name: str, kind: str) -> None:
    with pytest.raises(QDebugError) as caught:
        layer_error(calibrated(name), samples(name), kind=kind, backend=BUILTIN, progress=False)
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize("name", list(MEASURED))
def test_exposed_ranges_are_tensorflows_where_nobody_overwrites(name: str) -> None:
    exposed = load_float_model(path_of(name)).calibrate(samples(name), "exposed", histograms=False, backend=BUILTIN).model.main
    theirs = calibrated(name).model.main
    in_place = {index for operator in theirs.operators if operator.name in IN_PLACE for index in operator.inputs}
    compared = 0
    for ours, tensorflow in zip(exposed.tensors, theirs.tensors, strict=True):
        assert (ours.minimum is None) == (tensorflow.minimum is None), tensorflow.name
        if ours.minimum is None:
            continue
        span = max(abs(ours.minimum), abs(ours.maximum))
        if tensorflow.index in in_place:  # TensorFlow's is never narrower: it saw the true values, and others
            assert tensorflow.minimum <= ours.minimum + 1e-5 * span
            assert tensorflow.maximum >= ours.maximum - 1e-5 * span
        else:
            # Its maximum begins at the least positive float, so that of values all negative is as good as zero.
            true = ours.minimum, max(ours.maximum, FLOAT_MIN)
            np.testing.assert_allclose((tensorflow.minimum, tensorflow.maximum), true, rtol=1e-5, atol=1e-5 * span)
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", list(MEASURED)[:4])
def test_exposed_ranges_are_what_the_interpreter_computes(name: str) -> None:
    exposed = load_float_model(path_of(name)).calibrate(samples(name)[:1], "exposed", histograms=False, backend=BUILTIN)
    interpreter = models.run(path_of(name).read_bytes(), samples(name)[0], "builtin", preserve=True)
    for tensor in exposed.model.main.tensors:
        if tensor.minimum is not None:
            values = interpreter.get_tensor(tensor.index)
            span = float(np.abs(values).max())
            np.testing.assert_allclose((tensor.minimum, tensor.maximum), (values.min(), values.max()), atol=1e-5 * span)
