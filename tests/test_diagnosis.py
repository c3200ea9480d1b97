"""Each rule of the diagnosis on a model where it must fire, and on one where it must not; and what the whole of it says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import faulty_models as faulty
import findings_by_hand as by_hand
import models
import numpy as np
import planting
import pytest
from conftest import SHARED_MODELS
from faulty_models import Pair
from shared_data import samples as real_samples

from tflite_qdebug import edit, example
from tflite_qdebug.analyses.diagnosis import diagnose
from tflite_qdebug.analyses.diagnosis.causes import Context
from tflite_qdebug.analyses.diagnosis.evidence import bulk, gather
from tflite_qdebug.analyses.diagnosis.loss import TOLERATED_POINTS, loss_of
from tflite_qdebug.analyses.diagnosis.rules import RULES
from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.pairs import open_pair, pair_error
from tflite_qdebug.analyses.profiles import profile_pair
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.findings import Diagnosis, Findings, Samples, Score, Scores
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import OutputErrors, measure_output
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
    return parts[1].rpartition("_")[0] if len(parts) > 2 else parts[-1]


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
    "uneven": lambda: faulty.pair_of(faulty.built(faulty.uneven)),
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
    "large swish": lambda: faulty.pair_of(faulty.swish(30.0)),
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
    return (
        example.float_model(),
        quantized.data,
        [inputs for _, inputs in zip(range(32), example.debug_dataset(), strict=False)],
    )


@functools.cache
def found(name: str) -> Findings:
    return findings_of(PAIRS[name]())


# -- each rule, where it must fire and where it must not ---------------------------------------------------------------------

CASES = [
    ("range_too_wide", "100 times wider", {"mixed"}, "twice as wide"),
    ("range_too_narrow", "a fifth as wide", {"mixed"}, "sound"),
    ("outlier_channel", "outlier channel", {"right"}, "sound"),
    ("outlier_channel", "outlier channel, balanced behind", {"right"}, "uneven"),
    ("outlier_channel", "outlier channel, per tensor", {"right"}, "sound, per tensor"),
    ("outlier_channel", "example", {"block1_project_bn", "block2_project_bn", "block3_project_bn"}, "no spike"),
    ("uneven_channels", "uneven", {"right"}, "sound"),
    ("rare_value", "spike", {"values"}, "no spike"),
    ("weight_scales", "outlier channel, per tensor", {"right"}, "sound, per tensor"),
    ("weight_scales", "graded, per tensor", {"right"}, "graded, per channel"),
    ("broken_weights", "swapped channels", {"mixed"}, "sound"),
    ("broken_weights", "weights of twice the scale", {"mixed"}, "saturated bias"),
    ("broken_bias", "saturated bias", {"mixed"}, "swapped channels"),
    ("unbalanced_inputs", "unbalanced", {"joined"}, "sound"),
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


def test_what_makes_inputs_unbalanced_is_named_in_their_place() -> None:
    """One channel of ``right`` leaves ``left`` few steps of their common scale: neither ``left`` nor ``joined`` is to blame."""
    findings = found("outlier channel")
    assert "joined" not in fired(findings, "unbalanced_inputs")
    assert [short(suspect.node) for suspect in diagnose(findings).suspects] == ["right"]
    by_name = {short(entry.layer.node): entry for entry in gather(findings)}
    assert by_name["left"].dictated_by == by_name["right"].position
    assert by_name["left"].share == 0.0


def test_operators_that_are_no_sums_side_by_side_are_judged_by_their_own_rules() -> None:
    """The sum of a large and a small value is the large one, in float as well: noted where accuracy is lost, no fault."""
    findings = found("outlier channel")
    assert fired(findings, "unbalanced_inputs") == {"active"}  # ADD of `mixed`, 50 times larger now, and `stem`
    assert "active" not in {short(suspect.node) for suspect in diagnose(findings).suspects}


def test_a_quantized_layer_is_dead_where_its_float_twin_is_not() -> None:
    (suspect,) = [one for one in diagnose(found("10000 times wider")).suspects if one.cause == "dead_layer"]
    assert short(suspect.node) == "mixed"
    assert "in the float model it is not" in suspect.words
    (dead,) = diagnose(found("dead")).suspects
    assert "in the float model as well" in dead.words


def test_kernel_difference_is_an_error_that_neither_rounding_nor_clipping_nor_weights_make() -> None:
    """A broken kernel has no place in a file: the part that it shows in is made as it would be."""
    findings = findings_of(faulty.sound())
    assert not fired(findings, "kernel_difference")
    position = next(i for i, layer in enumerate(findings.run.layers) if short(layer.node) == "mixed")
    scale = findings.run.layers[position].scale
    assert scale is not None
    for part in ("output", "own"):
        statistics = findings.run.parts[part]
        statistics.sums[position, 2] = 9.0 * scale**2 * statistics.sums[position, 0]
        statistics.max_inner_error[position] = 20.0 * scale
    assert fired(findings, "kernel_difference") == {"mixed"}
    first = diagnose(findings).suspects[0]
    assert (short(first.node), first.cause) == ("mixed", "kernel_difference")
    assert "20 steps" in first.evidence[0]
    assert first.line.startswith("tflite-qdebug compare-kernels")


def test_infinity_comes_before_everything() -> None:
    pair = faulty.sound()
    broken = pair._replace(samples=[[np.full((1, 8, 8, 4), 3e38, np.float32)], *pair.samples])
    findings = findings_of(broken, profiles=False)
    rmse = findings.run.parts["accumulated"].rmse
    first = short(findings.run.layers[int(np.flatnonzero(~np.isfinite(rmse))[0])].node)
    assert fired(findings, "not_finite") == {first}
    assert not fired(found("sound"), "not_finite")
    diagnosis = diagnose(findings)
    assert not diagnosis.sound
    assert (short(diagnosis.suspects[0].node), diagnosis.suspects[0].cause) == (first, "not_finite")


def test_sensitive_many_small_and_large_error_speak_where_no_other_rule_does() -> None:
    measured = findings_of(faulty.sound(), measured=True)
    shares = {short(entry.layer.node): entry.share for entry in gather(measured) if entry.is_measured}
    assert fired(measured, "sensitive") == {name for name, share in shares.items() if share >= 0.1}
    assert fired(measured, "many_small").isdisjoint(fired(measured, "sensitive"))
    assert fired(measured, "many_small")
    assert not fired(found("sound"), "sensitive")  # nothing was measured
    without = findings_of(PAIRS["example"](), profiles=False)
    assert [suspect.cause for suspect in diagnose(without).suspects[:3]] == ["large_error"] * 3
    assert "large_error" not in {suspect.cause for suspect in diagnose(found("example")).suspects}


# -- the whole ---------------------------------------------------------------------------------------------------------------


def test_a_verdict_on_a_few_of_the_samples_says_so() -> None:
    run = by_hand.run(output_sqnr=40.0)
    whole = "output output is the float model's give or take rounding (40 dB SQNR)"
    assert loss_of(Findings(run)).words == whole
    run.statistics.samples = 150  # of which the split looked at 2
    loss = loss_of(Findings(run))
    assert loss.words == f"{whole} on the first 2 of 150 samples"
    assert any("of a few samples" in note for note in loss.notes)


@pytest.mark.parametrize(
    ("name", "layer", "causes"),
    [
        ("outlier channel", "right", {"outlier_channel"}),
        ("outlier channel, balanced behind", "right", {"outlier_channel"}),
        ("outlier channel, per tensor", "right", {"outlier_channel", "weight_scales"}),
        ("100 times wider", "mixed", {"range_too_wide"}),
        ("a fifth as wide", "mixed", {"range_too_narrow"}),
        ("unbalanced", "joined", {"unbalanced_inputs"}),
        ("logarithm of little", "Log", {"reciprocal"}),
        ("swapped channels", "mixed", {"broken_weights"}),
        ("saturated bias", "mixed", {"broken_bias"}),
    ],
)
@pytest.mark.parametrize("measured", [False, True], ids=["estimated", "sensitivity"])
def test_a_planted_fault_is_the_first_suspect(name: str, layer: str, causes: set[str], measured: bool) -> None:
    findings = dataclasses.replace(found(name), sensitivity={})
    if measured:
        pair = PAIRS[name]()
        findings.sensitivity["node"] = sensitivity(*pair, backend=BACKEND, progress=False)
    diagnosis = diagnose(findings)
    assert not diagnosis.sound
    first = diagnosis.suspects[0]
    assert (short(first.node), first.cause in causes) == (layer, True), (first.node, first.cause)
    lines = diagnosis_lines(diagnosis, 100)
    assert first.op_name in lines[0]
    assert layer in lines[1]
    assert first.cause.replace("_", " ") in lines[1]
    assert first.remedy in lines[2]


@pytest.mark.parametrize("name", ["sound", "sound, per tensor", "twice as wide", "small swish", "no spike"])
def test_a_sound_model_is_called_sound(name: str) -> None:
    for parts, profiles in ((True, True), (True, False), (False, False)):
        findings = found(name) if parts and profiles else findings_of(PAIRS[name](), profiles=profiles, parts=parts)
        diagnosis = diagnose(findings)
        assert diagnosis.sound, diagnosis.suspects
        assert diagnosis.suspects == ()
        assert diagnosis.verdict.startswith("Nothing is wrong")
        assert diagnosis_lines(diagnosis)[0] == diagnosis.verdict


def test_the_built_in_example_is_ill_as_its_docstring_says() -> None:
    findings = dataclasses.replace(found("example"), scores=scores(0.99, 0.745, 600))
    diagnosis = diagnose(findings)
    assert not diagnosis.sound
    assert [short(suspect.node) for suspect in diagnosis.suspects[:3]] == [
        "block1_project_bn",
        "block3_project_bn",
        "block2_project_bn",
    ]
    first = diagnosis.suspects[0]
    assert "2 of its input channels are tiny" in first.words
    assert first.line == f"denylisted_nodes=[{first.node!r}]"
    assert diagnosis.verdict.startswith("The quantized model loses 24.5 points of top_1 (99 % to 74.5 %); ")
    expand = next(suspect for suspect in diagnosis.suspects if short(suspect.node) == "block4_expand_activation")
    assert expand.cause == "outlier_channel"  # one channel is 32 times larger than trained; it costs hardly any accuracy
    assert expand.weight < 0.01


def test_evidence_is_what_numpy_finds() -> None:
    """The channel that was made 50 times larger, its size, and the steps of the others."""
    pair = PAIRS["outlier channel"]()
    (suspect,) = diagnose(found("outlier channel")).suspects
    model, floating = Model(pair.quantized), Model(pair.floating)
    (tensor,) = [one for one in model.main.tensors if one.shape == (1, 8, 8, 8) and short(one.name) == "right"]
    (index,) = [one.index for one in floating.main.tensors if one.shape == (1, 8, 8, 8) and short(one.name) == "right"]
    values = np.stack([models.run(pair.floating, inputs, "builtin").get_tensor(index) for inputs in pair.samples])
    largest = np.abs(values).max(axis=(0, 1, 2, 3))
    scale = float(tensor.quantization.scale[0])  # type: ignore[union-attr]
    others = np.delete(largest, 3)
    assert largest.argmax() == 3
    assert suspect.evidence[0].startswith(f"output channel 3: up to {largest[3]:.3g}; the others: {np.median(others):.3g}")
    assert f"step {scale:.3g}: {np.median(others) / scale:.3g} steps" in suspect.evidence[1]


def output_sqnr_db(pair: Pair, quantized: bytes) -> float:
    """Returns the SQNR at the output, in TensorFlow's interpreter."""
    floating, ours = (
        np.stack([models.outputs(data, inputs, "builtin")[0] for inputs in pair.samples]).astype(np.float64)
        for data in (pair.floating, quantized)
    )
    return float(10.0 * np.log10(np.square(floating).sum() / np.square(ours - floating).sum()))


@pytest.mark.parametrize(("name", "factor"), [("100 times wider", 100.0), ("a fifth as wide", 0.2)])
def test_the_line_to_copy_mends_the_range(name: str, factor: float) -> None:
    pair, suspect = PAIRS[name](), diagnose(found(name)).suspects[0]
    calibrated = load_float_model(pair.floating).calibrate(faulty.images(24, 1), "exposed", histograms=False, progress=False)
    ranges = faulty.widened(calibrated, "mixed", factor)
    broken = CalibratedModel(calibrated.float_model, edit.with_ranges(calibrated.model, ranges))
    names = {"calibrated": broken, "CalibratedModel": CalibratedModel, "edit": edit}
    exec(suspect.line, names)
    mended = names["calibrated"].quantize("int8").data  # type: ignore[attr-defined]
    assert output_sqnr_db(pair, broken.quantize("int8").data) < 15.0
    assert output_sqnr_db(pair, mended) > 35.0  # the sound model has 44.6 dB


@pytest.mark.parametrize("name", ["unbalanced", "logarithm of little"])
def test_the_line_to_copy_keeps_what_is_ill_in_float(name: str) -> None:
    pair, diagnosis = PAIRS[name](), diagnose(found(name))
    calibrated = load_float_model(pair.floating).calibrate(faulty.images(24, 1), "exposed", histograms=False, progress=False)
    nodes: list[str] = []
    for suspect in diagnosis.suspects:
        if suspect.cause != "inherited":
            names: dict[str, list[str]] = {}
            exec(suspect.line, names)
            nodes += names["denylisted_nodes"]
    mended = calibrated.quantize("int8", denylisted_nodes=list(dict.fromkeys(nodes))).data
    assert output_sqnr_db(pair, mended) > output_sqnr_db(pair, pair.quantized) + 6.0


# -- what is lost ------------------------------------------------------------------------------------------------------------


def scores(floating: float, quantized: float, samples: int, metric: str = "top_1") -> Scores:
    made = (Score("float", 1000, {metric: floating}), Score("quantized", 300, {metric: quantized}))
    return Scores(made, samples, "made up", (metric,))


@pytest.mark.parametrize(
    ("floating", "quantized", "samples", "metric", "lossy"),
    [
        (0.99, 0.745, 600, "top_1", True),
        (0.82, 0.47, 200, "top_1", True),
        (0.55, 0.515, 200, "top_1", False),  # one standard error is 3.5 points
        (0.55, 0.515, 2000, "top_1", True),  # ... 1.1 points
        (0.915, 0.912, 1000, "top_1", False),
        (0.9, 0.895, 10**6, "top_1", False),  # certain, and less than a point
        (1.0, 0.98, 100, "top_1", True),  # no spread in float at all: the point decides
        (0.7, 0.75, 100, "top_1", False),
        (33.6, 30.1, 30, "psnr", True),
        (33.6, 33.4, 30, "psnr", False),
        (0.9, float("nan"), 100, "top_1", True),
    ],
)
def test_a_drop_counts_where_chance_and_8_bits_do_not_explain_it(
    floating: float, quantized: float, samples: int, metric: str, lossy: bool
) -> None:
    findings = dataclasses.replace(found("sound"), scores=scores(floating, quantized, samples, metric))
    assert loss_of(findings).is_lossy is lossy
    diagnosis = diagnose(findings)
    assert diagnosis.sound is not lossy
    assert (metric in diagnosis.verdict) is True
    if floating == 0.55 and not lossy:
        assert "may be chance" in diagnosis.verdict
        assert any("more than 200 labelled samples" in note for note in diagnosis.notes)


@pytest.mark.parametrize(("size", "lossy"), [(0.01, False), (0.5, True), (float("nan"), True), (float("inf"), True)])
def test_without_labels_the_samples_tell(size: float, lossy: bool) -> None:
    errors = OutputErrors(["quantized"], ["StatefulPartitionedCall_1:0"])
    generator = np.random.default_rng(0)
    for index in range(8):
        values = generator.normal(0.0, 1.0, (1, 6)).astype(np.float32)
        given = values + np.float32(size) * np.where(generator.random(values.shape) < 0.5, -1.0, 1.0)
        with np.errstate(invalid="ignore"):
            errors.add(index, measure_output(given.astype(np.float32), values)[np.newaxis, np.newaxis])
    findings = dataclasses.replace(found("sound"), samples=Samples((), (), 0, errors))
    assert loss_of(findings).is_lossy is lossy  # an error of a half is 6 dB below values of deviation 1


def test_points_are_tolerated_as_the_constant_says() -> None:
    assert TOLERATED_POINTS == 1.0
    findings = dataclasses.replace(found("sound"), scores=scores(0.5, 0.5, 10**8))
    assert not loss_of(findings).is_lossy


def test_what_is_missing_is_said() -> None:
    findings = dataclasses.replace(found("sound"), profiles=(), graph=())
    notes = " ".join(diagnose(findings).notes)
    for word in ("rare_value", "unbalanced_inputs", "reciprocal", "estimated from its own error", "labelled samples"):
        assert word in notes
    measured = findings_of(faulty.sound(), measured=True)
    measured.scores = scores(0.9, 0.9, 100)
    assert diagnose(measured).notes == ()


def test_a_run_of_accumulated_errors_alone_can_be_diagnosed() -> None:
    pair = faulty.sound()
    run = pair_error(*pair, whole_model=True, parts=0, backend=BACKEND, progress=False)
    diagnosis = diagnose(Findings(run))
    assert diagnosis.sound
    assert any("nothing tells what the model loses" in note for note in diagnosis.notes)


def test_nothing_is_changed_and_the_answer_is_the_same_twice(tmp_path: object) -> None:
    findings = found("unbalanced")
    before = findings.run.to_dict()
    first, second = diagnose(findings), diagnose(findings)
    assert first == second
    assert isinstance(first, Diagnosis)
    assert findings.run.to_dict() == before
    assert findings.diagnosis is None


# -- words -------------------------------------------------------------------------------------------------------------------


def test_lines_fit_the_width_but_for_the_first_three_and_what_is_to_be_copied() -> None:
    diagnosis = diagnose(found("example"))
    lines = diagnosis_lines(diagnosis, 60)
    wide = [line for line in lines[3:] if len(line) > 60 and not line.lstrip().startswith("copy: ")]
    assert [line for line in wide if " " in line.strip()[2:60]] == []
    for suspect in diagnosis.suspects:
        assert f"   copy: {suspect.line}" in lines
    assert diagnosis_lines(diagnosis, 1) == diagnosis_lines(diagnosis, 40)


def test_rules_are_documented_and_named_once() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.judge.__doc__ for rule in RULES)
    tested = {rule for rule, *_ in CASES} | {"kernel_difference", "not_finite", "sensitive", "many_small", "large_error"}
    assert {rule.name for rule in RULES} == tested


@pytest.mark.parametrize(("share", "expected"), [(1.0, (-2.0, 1000.0)), (0.98, (0.0, 98.0))])
def test_bulk_is_the_middle_of_all_values(share: float, expected: tuple[float, float]) -> None:
    histogram = Histogram()
    histogram.add(np.array([-2.0, *np.zeros(100), *np.linspace(1.0, 98.0, 98), 1000.0], np.float32))
    low, high = bulk(histogram, share)
    width = 2.0 ** (histogram.exponent or 0)
    assert low == pytest.approx(expected[0], abs=width)
    assert high == pytest.approx(expected[1], abs=2 * width)


# -- real models -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason=f"the real models are not at {SHARED_MODELS}")
@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("keyword_spotting/kws_ref_float", True),
        ("mobilenet_v1_0.25/mobilenet_v1_0.25_224_float", True),
        ("super_resolution/espcn_x2_float", True),
        ("mobilenetv3_small/mobilenet_v3_small_float", False),
        ("face_detection/face_detection_short_range_f32folded", False),
    ],
)
def test_real_models_are_judged_as_their_accuracy_does(name: str, sound: bool) -> None:
    data = real_samples(name, 32)
    source = load_float_model(SHARED_MODELS / f"{name}.tflite")
    calibrated = source.calibrate(data[:20], "exposed", histograms=False, progress=False)
    diagnosis = diagnose(findings_of(Pair(source.data, calibrated.quantize("int8").data, data[20:])))
    assert diagnosis.sound is sound, diagnosis.verdict
    assert bool(diagnosis.suspects) is not sound
    assert all(suspect.evidence and suspect.words and suspect.remedy for suspect in diagnosis.suspects)
