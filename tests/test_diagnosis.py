"""Each rule of the diagnosis on a model where it must fire, and on one where it must not; and what the whole of it says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import faulty_models as faulty
import numpy as np
import planting
import pytest
from conftest import SHARED_MODELS
from faulty_models import Pair
from shared_data import samples as real_samples

from tflite_qdebug import example
from tflite_qdebug.analyses.diagnosis import TOLERATED_POINTS, diagnose, loss_of
from tflite_qdebug.analyses.evidence import bulk, gather
from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.pairs import open_pair, pair_error
from tflite_qdebug.analyses.profiles import profile_pair
from tflite_qdebug.analyses.rules import RULES, Context
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.findings import Diagnosis, Findings, Score, Scores
from tflite_qdebug.model import Model
from tflite_qdebug.reports.diagnosis import diagnosis_lines
from tflite_qdebug.statistics import Histogram

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)


def findings_of(pair: Pair, *, profiles: bool = True, parts: bool = True, measured: bool = False) -> Findings:
    """Runs the real analyses."""
    data = (pair.floating, pair.quantized, pair.samples)
    run = pair_error(*data, parts=parts, backend=BACKEND, progress=False)
    findings = Findings(run, describe_graph(open_pair(pair.floating, pair.quantized), run=run))
    if profiles:
        findings.profiles = profile_pair(*data, backend=BACKEND, progress=False)
    if measured:
        findings.sensitivity["node"] = sensitivity(*data, backend=BACKEND, progress=False)
    return findings


def fired(findings: Findings, name: str) -> set[str]:
    """Returns the Keras names of the layers to which a rule applies, as if the model lost accuracy."""
    layers = gather(findings)
    (rule,) = [rule for rule in RULES if rule.name == name]
    context = Context(layers, True)
    return {short(entry.layer.node) for entry in layers if rule.judge(entry, context) is not None}


def short(node: str) -> str:
    """Returns the Keras layer that a node's name holds: ``functional_1/mixed_1/BiasAdd;...`` is ``mixed``."""
    parts = node.partition(";")[0].split("/")
    return parts[-2].rpartition("_")[0] if len(parts) > 2 else parts[-1]


def planted(what: str, layer: str = "mixed") -> Pair:
    """Returns the sound pair with one operator of the quantized model broken."""
    pair = faulty.sound()
    model = Model(pair.quantized)
    (operator,) = [op for op in planting.plantable(model) if short(model.main.tensors[op.outputs[0]].name) == layer]
    return pair._replace(quantized=planting.plant(model, what, operator).data)


def widened(factor: float, layer: str = "mixed") -> Pair:
    return faulty.pair_of(faulty.built(), ranges=lambda calibrated: faulty.widened(calibrated, layer, factor))


PAIRS: dict[str, Callable[[], Pair]] = {
    "sound": faulty.sound,
    "outlier channel": lambda: faulty.pair_of(faulty.built(faulty.outlier_channel)),
    "outlier channel, balanced behind": lambda: faulty.pair_of(faulty.built(faulty.hidden_outlier_channel)),
    "outlier channel, per tensor": lambda: faulty.pair_of(faulty.built(faulty.outlier_channel), per_channel=False),
    "graded, per tensor": lambda: faulty.pair_of(faulty.built(faulty.graded), per_channel=False),
    "graded, per channel": lambda: faulty.pair_of(faulty.built(faulty.graded)),
    "sound, per tensor": lambda: faulty.pair_of(faulty.built(), per_channel=False),
    "unbalanced": lambda: faulty.pair_of(faulty.built(faulty.unbalanced)),
    "100 times wider": lambda: widened(100.0),
    "10000 times wider": lambda: widened(10000.0),
    "a fifth as wide": lambda: widened(0.2),
    "twice as wide": lambda: widened(2.0),
    "spike": lambda: faulty.pair_of(faulty.pointwise(), samples=faulty.spiked(60.0)),
    "no spike": lambda: faulty.pair_of(faulty.pointwise(), samples=faulty.spiked(3.0)),
    "large swish": lambda: faulty.pair_of(faulty.swish(10.0)),
    "small swish": lambda: faulty.pair_of(faulty.swish(1.0)),
    "logarithm of little": lambda: faulty.pair_of(faulty.logarithm(1e-4)),
    "logarithm from 1 on": lambda: faulty.pair_of(faulty.logarithm(1.0)),
    "dead": lambda: faulty.pair_of(faulty.built(faulty.dead)),
    "swapped channels": lambda: planted("swapped_channels"),
    "weights of twice the scale": lambda: planted("weight_scale"),
    "saturated bias": lambda: planted("saturated_bias"),
    "example": lambda: Pair(*_example()),
}


@functools.cache
def _example() -> tuple[bytes, bytes, list[list[np.ndarray]]]:
    quantized = load_float_model(example.float_model()).calibrate(example.representative_dataset, progress=False).quantize()
    return example.float_model(), quantized.data, [inputs for _, inputs in zip(range(32), example.debug_dataset(), strict=False)]


@functools.cache
def found(name: str) -> Findings:
    return findings_of(PAIRS[name]())


# -- each rule, where it must fire and where it must not ---------------------------------------------------------------------

CASES = [
    ("range_too_wide", "100 times wider", {"mixed"}, "twice as wide"),
    ("range_too_narrow", "a fifth as wide", {"mixed"}, "sound"),
    ("outlier_channel", "outlier channel", {"right"}, "sound"),
    ("outlier_channel", "outlier channel, balanced behind", {"right"}, "graded, per channel"),
    ("outlier_channel", "outlier channel, per tensor", {"right"}, "sound, per tensor"),
    ("outlier_channel", "example", {"block1_project_bn", "block2_project_bn", "block3_project_bn"}, "sound"),
    ("uneven_channels", "graded, per channel", set(), "sound"),
    ("rare_value", "spike", {"values"}, "no spike"),
    ("weight_scales", "outlier channel, per tensor", {"right"}, "sound, per tensor"),
    ("weight_scales", "graded, per tensor", {"right"}, "graded, per channel"),
    ("broken_weights", "swapped channels", {"mixed"}, "sound"),
    ("broken_weights", "weights of twice the scale", {"mixed"}, "saturated bias"),
    ("broken_bias", "saturated bias", {"mixed"}, "swapped channels"),
    ("unbalanced_inputs", "unbalanced", {"joined"}, "sound"),
    ("unbalanced_inputs", "unbalanced", {"joined"}, "outlier channel"),  # which one channel makes so, and not the input
    ("negative_tail", "large swish", {"active"}, "small swish"),
    ("reciprocal", "logarithm of little", {"Log"}, "logarithm from 1 on"),
    ("dead_layer", "dead", {"left"}, "sound"),
    ("dead_layer", "10000 times wider", {"mixed"}, "sound"),
    ("inherited", "100 times wider", {"active"}, "sound"),
]


@pytest.mark.parametrize(("rule", "ill", "layers", "sound"), CASES)
def test_rule_fires_on_the_right_layer_and_not_elsewhere(rule: str, ill: str, layers: set[str], sound: str) -> None:
    assert layers <= fired(found(ill), rule)
    assert not fired(found(sound), rule)
