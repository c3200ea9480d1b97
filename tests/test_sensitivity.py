"""Sensitivity: TensorFlow's quantizer in a loop, whole partly quantized models, and metrics worked out by numpy."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control_flow_models
import models
import numpy as np
import pytest
import tensorflow as tf
from debugger_models import conv, converter_of, float_bytes, normal, spec
from debugger_models import weights as drawn
from test_isolation import deadly, samples_with
from test_mixed import built_in, denylisted, form_of, mixed_models, results
from test_pairs import pair_of, reordered, source

from tflite_qdebug import example
from tflite_qdebug.analyses import sweep as sweep_module
from tflite_qdebug.analyses.mixed_pair import open_mixed
from tflite_qdebug.analyses.sensitivity import sensitivity
from tflite_qdebug.analyses.sweep import FORMS, plan_sweep
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.flatbuffer import pack, unpack
from tflite_qdebug.errors import DatasetError, InterpreterError, MetricError, ModelError, OptionError, OutputError
from tflite_qdebug.findings import MODES, Sensitivity
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model
from tflite_qdebug.output_error import measure_output

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
LIMIT = 6


def measured(floating: Any, quantized: Any, samples: Any, **options: Any) -> Sensitivity:
    return sensitivity(floating, quantized, samples, **{"backend": BACKEND, "progress": False, **options})


@functools.cache
def example_samples() -> list[tuple[list[np.ndarray], int]]:
    labelled = example.evaluation_dataset()
    return [next(labelled) for _ in range(LIMIT)]


def of_example(**options: Any) -> Sensitivity:
    _, made, _ = built_in()
    return measured(made.floats.graph.model.data, made.graph.model.data, example_samples(), **options)


@functools.cache
def reference() -> np.ndarray:
    return results(example.float_model(), [inputs for inputs, _ in example_samples()])[0]


def metrics(floats: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """The metrics over all samples together, by numpy."""
    f, q = floats.astype(np.float64), values.astype(np.float64)
    error, p, r = q - f, np.maximum(f, 1e-7), np.maximum(q, 1e-7)
    with np.errstate(divide="ignore"):
        return {
            "cosine": float(np.sum(f * q) / np.sqrt(np.sum(f * f) * np.sum(q * q))),
            "mse": float(np.mean(error**2)),
            "mre": float(np.mean(np.abs(error[f != 0] / f[f != 0]))),
            "sqnr_db": float(10 * np.log10(np.sum(f * f) / np.sum(error**2))),
            "chebyshev": float(np.abs(error).max()),
            "kl": float(np.sum(p * np.log(p / r)) / np.prod(f.shape[:-1])),
            "flips": float(np.mean(f.argmax(-1) != q.argmax(-1))),
        }


def check_metrics(found: Sensitivity, position: int, floats: np.ndarray, values: np.ndarray) -> None:
    for name, wanted in metrics(floats, values).items():
        got = float(found.errors.metric(name)[position, 0])
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-12), (found.errors.variants[position], name)


# -- against a loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["node", "float"])
def test_the_example_is_what_a_loop_over_tensorflows_quantizer_gives(mode: str) -> None:
    calibrated, made, _ = built_in()
    found = of_example(mode=mode)
    inputs = [inputs for inputs, _ in example_samples()]
    names = [node.name for node in made.nodes]
    assert list(found.nodes) == names
    for position, name in enumerate(names):
        left = [name] if mode == "float" else [other for other in names if other != name]
        check_metrics(found, position, reference(), results(denylisted(calibrated, left), inputs)[0])
    if mode == "float":
        assert found.errors.variants == (*names, "")
        check_metrics(found, -1, reference(), results(made.graph.model.data, inputs)[0])
    assert found.errors.samples == LIMIT


@pytest.mark.parametrize("mode", ["weights", "activation"])
def test_the_example_is_what_whole_models_give(mode: str) -> None:
    _, made, _ = built_in()
    found = of_example(mode=mode)
    form, rest = FORMS[mode]
    inputs = [inputs for inputs, _ in example_samples()]
    chosen = [made.node(name) for name in found.nodes]
    assert chosen == [node for node in made.nodes if node.weighted or mode == "activation"]
    for position, node in enumerate(chosen):
        check_metrics(found, position, reference(), results(made.build(form_of([node], form, rest)).data, inputs)[0])
    if mode == "activation":
        assert found.bits == (8,) * len(chosen)
        tensor = made.graph.tensor(chosen[0].reads[made.inputs[0]])
        scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zero_point[0]  # type: ignore[union-attr]
        assert found.thresholds[0] == pytest.approx(max(127 - zero_point, 128 + zero_point) * scale)


def check_against_whole_models(floating: bytes, quantized: bytes, samples: Any, mode: str, **options: Any) -> Sensitivity:
    """Holds every node's sums, at every output, against those of whole partly quantized models."""
    made = mixed_models(floating, quantized)
    found = measured(floating, quantized, samples, mode=mode, **options)
    form, rest = FORMS[mode]
    references = results(made.build({}).data, samples)
    for position, name in enumerate(found.errors.variants):
        node = [made.node(name)] if name else []
        values = results(made.build(form_of(node, form, rest)).data, samples)
        for output in range(len(made.outputs)):
            rows = [measure_output(v, f) for v, f in zip(values[output], references[output], strict=True)]
            total = np.sum(rows, axis=0)
            total[-1] = np.max(rows, axis=0)[-1]
            got = found.errors.sums[position, output]
            small = 1e-6 * np.sqrt(total[1] * total[2]) + 1e-9  # a product of error and value may cancel out
            np.testing.assert_allclose(got, total, rtol=1e-5, atol=small, err_msg=f"{name} {made.output_names[output]}")
    assert found.errors.outputs == made.output_names
    return found


def skipping(x: Any) -> tuple[Any, Any, Any]:
    """Sixteen operators; what the first gives is read by the last ones, and three outputs of which two are read on."""
    first = conv(x, drawn(3, 3, 4, 4, seed=1))
    value, outputs = first, []
    for seed in range(2, 12):
        value = conv(value, drawn(3, 3, 4, 4, seed=seed, scale=0.3))
        value = tf.nn.relu(value) + first if seed == 7 else tf.nn.relu(value)
        if seed in (4, 7):
            outputs.append(value)
    left, right = tf.split(tf.concat([value, first], -1), 2, -1)
    return outputs[0], tf.reduce_mean(left * right, [1, 2]), outputs[1]


@functools.cache
def skipping_pair() -> tuple[bytes, bytes, list[list[np.ndarray]]]:
    floating = load_float_model(float_bytes(converter_of(skipping, [spec(1, 8, 8, 4)], normal((1, 8, 8, 4)))))
    quantized = floating.calibrate(normal((1, 8, 8, 4)), progress=False).quantize("int8").data
    return floating.data, quantized, list(normal((1, 8, 8, 4), count=2, seed=9)())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mixed", "two_by_two", "lstm", "scalars", "shared_weights", "constant_product", "skipping"])
@pytest.mark.parametrize("block", [2, 5])
def test_short_blocks_give_what_whole_models_give(mode: str, name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "_BLOCK", block)
    floating, quantized, samples = skipping_pair() if name == "skipping" else pair_of(name)
    check_against_whole_models(floating, quantized, samples, mode)


@pytest.mark.parametrize(("name", "kind", "mode"), [
    ("mixed", "full_integer", "node"), ("mixed", "full_integer", "float"), ("weighty", "int16x8", "node"),
    ("weighty", "int16x8", "float"), ("weighty", "dynamic_range", "node"), ("weighty", "dynamic_range", "float"),
    ("mixed", "float16", "weights"), ("lstm", "full_integer", "float"),
])  # fmt: skip
def test_other_kinds_give_what_whole_models_give(name: str, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "_BLOCK", 3)
    calibrated, samples = source(name)
    check_against_whole_models(pair_of(name)[0], calibrated.quantize(kind).data, samples, mode)


@pytest.mark.parametrize("mode", ["node", "float"])
def test_loops_give_what_whole_models_give(mode: str) -> None:
    floating, quantized = control_flow_models.loop(), control_flow_models.loop("dynamic_range")
    samples = control_flow_models.samples(Model(floating), 4)
    found = check_against_whole_models(floating, quantized, samples, mode)
    assert found.op_names == ("FULLY_CONNECTED", "WHILE", "FULLY_CONNECTED")
    with pytest.raises(ModelError, match="is quantized in its input activations, so no node can be sensitive"):
        measured(floating, quantized, samples, mode="activation")


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_several_sizes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "_BLOCK", 1)
    floating, quantized, _ = pair_of("dynamic_batch")
    rows = np.random.default_rng(2).normal(size=(7, 10)).astype(np.float32)
    together = measured(floating, quantized, [[rows[:1]], [rows[1:5]], [rows[5:]]], mode=mode)
    apart = measured(floating, quantized, [[row[None]] for row in rows], mode=mode)
    for name in ("mse", "sqnr_db", "cosine", "chebyshev", "flips"):
        np.testing.assert_allclose(together.errors.metric(name), apart.errors.metric(name), rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_given_twice_and_inputs_that_are_outputs(mode: str) -> None:
    floating, quantized, samples = pair_of("two_by_two")
    passed = []
    for data in (floating, quantized):
        unpacked = unpack(Model(data))
        main = unpacked.subgraphs[0]
        main.outputs = np.array([main.outputs[0], main.inputs[0], main.outputs[1], main.outputs[0]], dtype=np.int32)
        passed.append(pack(unpacked))
    plain, odd = (measured(*pair, samples, mode=mode) for pair in ((floating, quantized), passed))
    assert odd.errors.outputs == plain.errors.outputs
    np.testing.assert_array_equal(odd.errors.sums, plain.errors.sums)


@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_outputs_in_another_order(mode: str) -> None:
    floating, quantized, samples = pair_of("two_by_two")
    plain = measured(floating, quantized, samples, mode=mode)
    turned = measured(floating, reordered(quantized, [1, 0], [1, 0]), [sample[::-1] for sample in samples], mode=mode)
    assert turned.errors.outputs == plain.errors.outputs[::-1]
    np.testing.assert_array_equal(turned.errors.sums, plain.errors.sums[:, ::-1])


def test_one_signature_of_several() -> None:
    floating, quantized = control_flow_models.signatures(), control_flow_models.signatures("dynamic_range")
    generator = np.random.default_rng(0)
    vectors = [generator.normal(size=(1, control_flow_models.SIZE)).astype(np.float32) for _ in range(3)]
    samples = [("second", {"x": vectors[0]}), ("both", {"x": vectors[1]}), ("second", {"x": vectors[2]})]
    found = measured(floating, quantized, samples, signature="second")
    assert found.op_names == ("FULLY_CONNECTED",)
    assert found.errors.samples == 2
    runners = [tf.lite.Interpreter(model_content=data).get_signature_runner("second") for data in (floating, quantized)]
    floats, values = (np.stack([next(iter(run_(x=x).values())) for x in (vectors[0], vectors[2])]) for run_ in runners)
    assert found.errors.metric("mse")[0, 0] == pytest.approx(np.mean((values.astype(np.float64) - floats) ** 2), rel=1e-3)
    with pytest.raises(OptionError, match="got signature 'seconds', expected one of"):
        measured(floating, quantized, samples, signature="seconds")


def test_integer_samples_are_their_dequantized_floats() -> None:
    floating = pair_of("chain")[0]
    data = source("chain")[0].quantize("full_integer", input_type="int8", output_type="int8").data
    model = Model(data)
    parameters = model.main.tensors[model.main.inputs[0]].quantization
    assert parameters is not None
    integers = [[parameters.quantize(sample[0], np.int8)] for sample in pair_of("chain")[2]]
    floats = [[parameters.dequantize(sample[0])] for sample in integers]
    for mode in MODES:
        one, two = (measured(floating, data, given, mode=mode) for given in (integers, floats))
        np.testing.assert_array_equal(one.errors.sums, two.errors.sums)


def test_the_loop_and_the_sweep_agree_under_xnnpack() -> None:
    calibrated, made, _ = built_in()
    found = of_example(backend=Backend(workers=1))
    assert found.provenance["kernels"] == "xnnpack"
    assert found.order("sqnr_db")[:3] == of_example().order("sqnr_db")[:3]
    names = [node.name for node in made.nodes]
    for position in found.order("sqnr_db")[:6]:
        interpreter = Interpreter(calibrated.quantize("int8", denylisted_nodes=names[:position] + names[position + 1 :]).data)
        values = []
        for inputs, _ in example_samples():
            interpreter.invoke(inputs)
            values.append(interpreter.read_outputs(dequantized=True)[0])
        wanted = metrics(reference(), np.stack(values))
        assert found.errors.metric("cosine")[position, 0] == pytest.approx(wanted["cosine"], abs=1e-3)
        assert found.errors.metric("sqnr_db")[position, 0] == pytest.approx(wanted["sqnr_db"], abs=0.1)


def test_a_faulty_kernel_is_not_taken_for_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    """As int8 BATCH_MATMUL of TensorFlow 2.21 is under XNNPACK; here, whatever the version, the last node of a model."""
    floating, quantized, samples = pair_of("chain")
    graph = mixed_models(floating, quantized).graph
    read, last = Interpreter.read, f"{graph.tensor(graph.outputs[0]).name}_dequantized"
    auto = Backend(workers=1, isolate=False)
    for mode in MODES:
        assert measured(floating, quantized, samples, mode=mode, backend=auto).provenance["kernels"] == "xnnpack"

    def broken(self: Interpreter, index: int) -> np.ndarray:
        names = [info.name for info in self.outputs if info.index == index]
        return read(self, index) + (1.0 if self.kernels == "xnnpack" and names == [last] else 0.0)

    monkeypatch.setattr(Interpreter, "read", broken)
    for mode in ("node", "float"):
        found = measured(floating, quantized, samples, mode=mode, backend=auto)
        np.testing.assert_array_equal(found.errors.sums, measured(floating, quantized, samples, mode=mode).errors.sums)
        assert found.provenance["kernels"] == "builtin"
        assert found.notes[0].startswith("XNNPACK computes 1 nodes differently from the builtin kernels: FULLY_CONNECTED")
        assert "a fault of the kernels, not of quantization" in found.notes[0]


# -- how it runs -----------------------------------------------------------------------------------------------------------


def check_equal(one: Sensitivity, two: Sensitivity) -> None:
    """To the last bit, with what the random choices of samples need."""
    assert one.errors.to_dict() == two.errors.to_dict()
    assert (one.nodes, one.op_names, one.operators, one.metric, one.notes) == (
        two.nodes, two.op_names, two.operators, two.metric, two.notes
    )  # fmt: skip
    assert {**one.provenance, "passes": 0, "workers": 0} == {**two.provenance, "passes": 0, "workers": 0}


@pytest.mark.parametrize("mode", ["node", "float"])
def test_any_number_of_workers_and_any_repetition_give_the_same_bits(mode: str) -> None:
    options = {"mode": mode, "task_metrics": ["top_1"]}
    first = of_example(**options)
    for backend in (BACKEND, BACKEND._replace(workers=2), BACKEND._replace(isolate=True, workers=2)):
        check_equal(of_example(**options, backend=backend), first)


def budget(mode: str, passes: int) -> int:
    """Returns bytes within which the example takes at least so many passes."""
    mixed = open_mixed(example.float_model(), built_in()[1].graph.model.data, example_samples(), backend=BACKEND)
    memory = plan_sweep(mixed.models, mode, None, mixed.models.outputs, mixed.shapes, 10**9).passes[0].memory
    while len(plan_sweep(mixed.models, mode, None, mixed.models.outputs, mixed.shapes, memory).passes) < passes:
        memory = memory * 9 // 10
    return memory


@pytest.mark.parametrize("mode", ["node", "float"])
def test_several_passes_give_what_one_gives(mode: str) -> None:
    whole = of_example(mode=mode, task_metrics=["top_1"])
    memory = budget(mode, 3)
    parts = of_example(mode=mode, task_metrics=["top_1"], memory=memory)
    assert (whole.provenance["passes"], parts.provenance["passes"] >= 3) == (1, True)
    check_equal(parts, whole)
    halved = of_example(mode=mode, task_metrics=["top_1"], memory=2 * memory, backend=BACKEND._replace(workers=2))
    assert halved.provenance["passes"] == parts.provenance["passes"]  # the budget is for all workers together


def test_no_pass_takes_more_than_the_budget() -> None:
    mixed = open_mixed(example.float_model(), built_in()[1].graph.model.data, example_samples(), backend=BACKEND)
    memory = budget("node", 4)
    swept = plan_sweep(mixed.models, "node", None, mixed.models.outputs, mixed.shapes, memory)
    assert max(part.memory for part in swept.passes) <= memory
    assert [variant.node for part in swept.passes for variant in part.variants] == list(range(len(swept.nodes)))
    for part in swept.passes:
        assert {variant.tail for variant in part.variants} - {-1} == set(part.tails)


def test_too_little_memory_names_the_node() -> None:
    with pytest.raises(OptionError, match=r"memory budget of 0\.01 MB .* node 'digits_1/stem.* alone needs about"):
        of_example(memory=10_000)
    with pytest.raises(OptionError, match="got a memory budget of 0 bytes"):
        of_example(memory=0)


def test_an_iterator_is_good_for_one_pass() -> None:
    whole = of_example()
    _, made, _ = built_in()
    floating, quantized = made.floats.graph.model.data, made.graph.model.data
    found = measured(floating, quantized, iter(example_samples()))
    np.testing.assert_array_equal(found.errors.sums, whole.errors.sums)
    with pytest.raises(DatasetError, match="good for one pass; within the memory budget it takes"):
        measured(floating, quantized, iter(example_samples()), memory=budget("node", 2))


def test_confidence() -> None:
    found = of_example(task_metrics=["top_1"])
    for name in ("sqnr_db", "cosine", "top_1"):
        ranks = found.errors.ranks(name)
        assert sorted(ranks[:, 0]) == list(range(1, len(found.nodes) + 1))
        assert (ranks[:, 1] <= ranks[:, 0]).all()
        assert (ranks[:, 0] <= ranks[:, 2]).all()
        np.testing.assert_array_equal(np.argsort(ranks[:, 0]), found.order(name))
    # The three ill projections of the example stand out on any samples.
    worst = [found.nodes[position] for position in found.order("sqnr_db")[:2]]
    assert ["block1_project" in worst[0], "block2_project" in worst[1]] == [True, True]
    assert found.errors.ranks("sqnr_db")[found.order("sqnr_db")[0]].tolist() == [1, 1, 1]


# -- interruption ----------------------------------------------------------------------------------------------------------


class Interrupted:
    """Samples during which a key is pressed, once."""

    def __init__(self, at: int | None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.error, self.drawn = at, error, 0

    def __call__(self) -> Iterator[Any]:
        for position, sample in enumerate(example_samples()):
            if position == self.at:
                self.at = None
                raise self.error
            self.drawn += 1
            yield sample


def counted(seen: list[int]) -> Callable[[Any, Any], float]:
    def position(outputs: list[np.ndarray], label: int) -> float:
        seen.append(label)
        return float(outputs[0].argmax() == label)

    return position


def run(samples: Any, saved: Path | None, **options: Any) -> Sensitivity:
    _, made, _ = built_in()
    return measured(made.floats.graph.model.data, made.graph.model.data, samples, saved=saved, **options)


@pytest.mark.parametrize("backend", [BACKEND, BACKEND._replace(workers=2), BACKEND._replace(isolate=True)])
@pytest.mark.parametrize("mode", ["node", "float"])
def test_an_interrupted_run_goes_on(backend: Backend, mode: str, tmp_path: Path) -> None:
    saved = tmp_path / "made" / "partial.json"
    samples = Interrupted(4)
    whole = run(Interrupted(None), None, mode=mode, backend=backend)
    with pytest.raises(KeyboardInterrupt):
        run(samples, saved, mode=mode, backend=backend)
    content = json.loads(saved.read_text())
    assert [1 <= entry["next"] <= 4 for entry in content["passes"].values()] == [True]
    check_equal(run(samples, saved, mode=mode, backend=backend), whole)
    assert not saved.exists()
    assert not list(saved.parent.iterdir())


def test_no_sample_is_measured_twice(tmp_path: Path) -> None:
    seen: list[int] = []
    whole = run(Interrupted(None), None, task_metrics=[counted([])])
    samples = Interrupted(3)
    options = {"task_metrics": [counted(seen)]}
    with pytest.raises(KeyboardInterrupt):
        run(samples, tmp_path / "partial", **options)
    nodes, labels = len(whole.nodes), [label for _, label in example_samples()]
    assert seen == [label for label in labels[:3] for _ in range(nodes)]
    check_equal(run(samples, tmp_path / "partial", **options), whole)
    assert seen == [label for label in labels for _ in range(nodes)]


def test_a_metric_that_is_interrupted_costs_its_sample_alone(tmp_path: Path) -> None:
    pressed = [True]
    seen: list[int] = []

    def accuracy(outputs: list[np.ndarray], label: int) -> float:
        seen.append(label)
        if len(seen) == 100 and pressed:
            pressed.clear()
            raise KeyboardInterrupt
        return float(outputs[0].argmax() == label)

    whole = run(example_samples(), None, task_metrics=["top_1"])
    with pytest.raises(KeyboardInterrupt):
        run(example_samples(), tmp_path / "partial", task_metrics=[accuracy])
    found = run(example_samples(), tmp_path / "partial", task_metrics=[accuracy])
    np.testing.assert_array_equal(found.errors.metric("accuracy"), whole.errors.metric("top_1"))
    nodes = len(whole.nodes)
    assert len(seen) == 100 + (LIMIT - 2) * nodes  # two samples were done when it happened in the third


def test_passes_that_are_done_stay_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = budget("node", 3)
    calls: list[Interpreter] = []
    invoke = Interpreter.invoke

    def counting(self: Interpreter, arrays: Any) -> None:
        calls.append(self)
        invoke(self, arrays)

    def counted_run(samples: Any, saved: Path | None) -> tuple[Sensitivity | None, int]:
        calls.clear()
        try:
            return run(samples, saved, memory=memory), len(calls)
        except KeyboardInterrupt:
            return None, len(calls)

    class Late:
        """Samples during whose third pass a key is pressed."""

        passes = 0

        def __call__(self) -> Iterator[Any]:
            self.passes += 1
            number = self.passes
            for position, sample in enumerate(example_samples()):
                if (number, position) == (3, 2):
                    raise KeyboardInterrupt
                yield sample

    monkeypatch.setattr(Interpreter, "invoke", counting)
    open_mixed(example.float_model(), built_in()[1].graph.model.data, example_samples(), backend=BACKEND)
    opening, late = len(calls), Late()
    whole, needed = counted_run(lambda: iter(example_samples()), None)
    _, first = counted_run(late, tmp_path / "partial")
    found, second = counted_run(late, tmp_path / "partial")
    assert first + second == needed + opening
    assert whole is not None
    assert found is not None
    assert whole.provenance["passes"] >= 3
    np.testing.assert_array_equal(found.errors.sums, whole.errors.sums)
    np.testing.assert_array_equal(found.errors.replicates, whole.errors.replicates)


@pytest.mark.parametrize("change", [
    {"mode": "float"}, {"nodes": 2}, {"limit": 5}, {"task_metrics": ["top_5"]}, {"label_offset": 1}, {"kernels": "reference"},
    {"metric_body": True}, {"first": True}, {"model": True}, {"output_node": True},
])  # fmt: skip
def test_what_another_run_has_kept_is_not_taken(change: dict[str, Any], tmp_path: Path) -> None:
    def share(outputs: list[np.ndarray], label: int) -> float:
        return 1.0

    other_share = share
    if "metric_body" in change:

        def share(outputs: list[np.ndarray], label: int) -> float:  # type: ignore[no-redef]
            return 0.5  # fmt: skip

    _, made, _ = built_in()
    floating, quantized = made.floats.graph.model.data, made.graph.model.data
    one: dict[str, Any] = {"task_metrics": [other_share]}
    two: dict[str, Any] = {**one, **{k: v for k, v in change.items() if k in ("mode", "limit", "task_metrics", "label_offset")}}
    samples, others = example_samples(), example_samples()
    if "nodes" in change:
        two["nodes"] = [node.name for node in made.nodes[:2]]
    if "kernels" in change:
        two["backend"] = BACKEND._replace(kernels="reference")
    if "metric_body" in change:
        two["task_metrics"] = [share]
    if "first" in change:
        others = [([1.0 - inputs[0]], label) for inputs, label in others]
    if "model" in change:
        changed = unpack(Model(quantized))
        changed.description = b"another"
        quantized_2 = pack(changed)
    else:
        quantized_2 = quantized
    if "output_node" in change:
        one, two = {}, {"output_node": made.nodes[20].name}
    wanted = measured(floating, quantized_2, others, **two)
    broken = iter([*samples[:2], None])
    saved = tmp_path / "partial"
    with pytest.raises(DatasetError):  # the third is wrong
        measured(floating, quantized, list(broken), saved=saved, **one)
    assert saved.exists()
    check_equal(measured(floating, quantized_2, others, saved=saved, **two), wanted)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"key": "x", "passes": {"0": {}}}', "\x00\xff"])
def test_a_broken_file_is_begun_anew(content: str, tmp_path: Path) -> None:
    saved = tmp_path / "partial"
    saved.write_text(content, encoding="latin-1")
    check_equal(run(example_samples(), saved), of_example())


def test_a_kept_pass_that_is_cut_off_is_begun_anew(tmp_path: Path) -> None:
    saved, samples = tmp_path / "partial", Interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        run(samples, saved)
    content = json.loads(saved.read_text())
    content["passes"]["0"]["errors"]["replicates"] = content["passes"]["0"]["errors"]["replicates"][:100]
    saved.write_text(json.dumps(content))
    check_equal(run(samples, saved), run(samples, None))


def test_that_nothing_can_be_kept_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen: list[int] = []
    for place in (tmp_path / "file" / "partial", tmp_path):
        with pytest.raises(OutputError, match=r"cannot (write|read)"):
            run(example_samples(), place, task_metrics=[counted(seen)])
    assert not seen


def test_a_metric_that_does_not_apply_loses_nothing(tmp_path: Path) -> None:
    floating, quantized, samples = pair_of("chain")  # whose outputs are no probabilities
    saved = tmp_path / "partial"
    with pytest.raises(OptionError, match="got metric 'kl', which does not apply to these outputs"):
        measured(floating, quantized, samples, metric="kl", saved=saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tflite_qdebug.analyses.sensitivity._Worker.measure", None)  # all has been measured
        found = measured(floating, quantized, samples, metric="mse", saved=saved)
    plain = measured(floating, quantized, samples, metric="mse")
    check_equal(found, plain)
    assert found.provenance["kernels"] == "builtin"


# -- dead kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_that_kills_a_kernel_is_left_out(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    floating, quantized, _ = pair_of("chain")
    good = [sample for number, sample in enumerate(models.samples("chain", 8)) if number != 3]
    expected = measured(floating, quantized, good)
    deadly(monkeypatch)
    backend = Backend(kernels="builtin", workers=count)
    found = measured(floating, quantized, samples_with(3), backend=backend)
    np.testing.assert_allclose(found.errors.sums, expected.errors.sums, rtol=1e-12)
    assert found.errors.samples == 7
    lost = "measuring the sensitivity of 4 nodes, sample 3, ended its process (signal SIGABRT)"
    assert [lost in note for note in found.notes] == [True]

    saved = tmp_path / "partial"
    broken = [*samples_with(3), [np.zeros((1, 2))]]
    with pytest.raises(DatasetError):
        measured(floating, quantized, broken, backend=backend, saved=saved)
    kept = json.loads(saved.read_text())["passes"]["0"]
    assert kept["errors"]["samples"] == 7
    assert [lost in note for note in kept["about"]["notes"]] == [True]  # it is known when the run goes on


def test_a_first_sample_that_kills_a_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    floating, quantized, _ = pair_of("chain")
    deadly(monkeypatch)
    with pytest.raises(InterpreterError, match=rf"ended its process \(signal {signal.SIGABRT.name}\)"):
        measured(floating, quantized, samples_with(0), backend=Backend(kernels="builtin", workers=1))


# -- what is asked for -----------------------------------------------------------------------------------------------------


def test_chosen_nodes() -> None:
    whole = of_example()
    names = [whole.nodes[position] for position in (7, 2, 30)]
    found = of_example(nodes=[*names, names[0]])
    assert found.nodes == tuple(whole.nodes[position] for position in (2, 7, 30))
    np.testing.assert_array_equal(found.errors.sums, whole.errors.sums[[2, 7, 30]])
    wrong = whole.nodes[2][:-1]
    with pytest.raises(OptionError, match=r"got node .*which the model has not.*" + whole.nodes[2].split(";")[0]):
        of_example(nodes=[wrong])
    for none in ([], whole.nodes[2]):
        with pytest.raises(OptionError, match="expected a list of names"):
            of_example(nodes=none)
    softmax = whole.nodes[whole.op_names.index("SOFTMAX")]
    with pytest.raises(OptionError, match=r"which is not quantized in its weights, or which the outputs do not depend on"):
        of_example(nodes=[softmax], mode="weights")


def test_another_node_than_the_outputs() -> None:
    _, made, _ = built_in()
    inputs = [inputs for inputs, _ in example_samples()]
    target = made.nodes[12]
    place = target.values[0]
    floats = results(made.build({}, [place]).data, inputs)[0]
    for mode in ("node", "float"):
        found = of_example(output_node=target.name, mode=mode)
        assert found.errors.outputs == (target.name,)
        assert set(found.nodes) <= {node.name for node in made.nodes[:13]}
        form, rest = FORMS[mode]
        for position, name in enumerate(found.nodes):
            values = results(made.build(form_of([made.node(name)], form, rest), [place]).data, inputs)[0]
            error = values.astype(np.float64) - floats
            assert found.errors.metric("mse")[position, 0] == pytest.approx(np.mean(error**2), rel=1e-5)
    later = made.nodes[20].name
    with pytest.raises(OptionError, match="or which the outputs do not depend on"):
        of_example(output_node=target.name, nodes=[later])
    with pytest.raises(OptionError, match="got task metrics and an output node"):
        of_example(output_node=target.name, task_metrics=["top_1"])
    with pytest.raises(OptionError, match="which the model has not"):
        of_example(output_node="nothing")


def test_the_second_output_of_a_node() -> None:
    floating, quantized, samples = pair_of("mixed")
    made = mixed_models(floating, quantized)
    split = next(node for node in made.nodes if node.op_name == "SPLIT")
    for value, name in zip(split.values, ("functional_1/split", "functional_1/split1"), strict=True):
        found = measured(floating, quantized, samples, output_node=name)
        assert found.errors.outputs == (name,)
        floats = results(made.build({}, [value]).data, samples)[0]
        for position, node in enumerate(found.nodes):
            values = results(made.build(form_of([made.node(node)]), [value]).data, samples)[0]
            mse = np.mean((values.astype(np.float64) - floats) ** 2)
            assert found.errors.metric("mse")[position, 0] == pytest.approx(mse, rel=1e-6)


def test_nodes_that_the_output_does_not_need_are_not_swept() -> None:
    floating, quantized, samples = pair_of("two_by_two")
    made = mixed_models(floating, quantized)
    total = next(node for node in made.nodes if node.op_name == "ADD")
    assert "FULLY_CONNECTED" in [node.op_name for node in made.nodes if node.operator > total.operator]
    found = measured(floating, quantized, samples, output_node=total.name)
    assert sorted(found.op_names) == ["ADD", "FULLY_CONNECTED", "RESHAPE"]


# -- task metrics ----------------------------------------------------------------------------------------------------------


def brier(outputs: list[np.ndarray], label: int) -> float:
    return float(np.sum((outputs[0][0] - np.eye(10)[label]) ** 2))


def test_task_metrics() -> None:
    _, made, _ = built_in()
    found = of_example(task_metrics=["top_1", "test_sensitivity:brier"], metric="brier", large_is_bad=True, mode="float")
    labels = np.array([label for _, label in example_samples()])
    inputs = [inputs for inputs, _ in example_samples()]
    scores = []
    for name in found.errors.variants:
        node = [made.node(name)] if name else []
        values = results(made.build(form_of(node, *FORMS["float"])).data, inputs)[0][:, 0]
        position = found.errors.variants.index(name)
        assert found.errors.metric("top_1")[position, 0] == np.mean(values.argmax(-1) == labels)
        scores.append(np.mean(np.sum((values - np.eye(10)[labels]) ** 2, axis=-1)))
        assert found.errors.metric("brier")[position, 0] == pytest.approx(scores[-1], rel=1e-6)
    assert found.order()[0] == int(np.argmin(scores[:-1]))  # the one that helps most first
    np.testing.assert_allclose(found.values(), scores[:-1], rtol=1e-6)


@pytest.mark.parametrize(("value", "words"), [
    (float("nan"), "gave NaN on sample 0"), (np.zeros(2), "failed on sample 0"), (None, "failed on sample 0"),
    ("many", "failed on sample 0"),
])  # fmt: skip
def test_a_metric_that_is_no_number(value: Any, words: str) -> None:
    with pytest.raises(MetricError, match=words):
        of_example(task_metrics=[lambda outputs, label: value])


def test_a_metric_that_breaks_later_loses_nothing(tmp_path: Path) -> None:
    _, made, _ = built_in()
    broken = [4]

    def fragile(outputs: list[np.ndarray], label: int) -> float:
        return float("nan") if label in broken else float(label)

    samples = [(inputs, number) for number, (inputs, _) in enumerate(example_samples())]
    pair, saved = (made.floats.graph.model.data, made.graph.model.data), tmp_path / "partial"
    with pytest.raises(MetricError, match="gave NaN on sample 4"):
        measured(*pair, samples, task_metrics=[fragile], saved=saved)
    assert json.loads(saved.read_text())["passes"]["0"]["next"] == 4
    broken.clear()
    found = measured(*pair, samples, task_metrics=[fragile], saved=saved)
    assert found.errors.metric("fragile")[0, 0] == np.mean(range(LIMIT))


def test_missing_labels_and_wrong_names() -> None:
    _, made, _ = built_in()
    pair = made.floats.graph.model.data, made.graph.model.data
    unlabelled = [inputs for inputs, _ in example_samples()]
    with pytest.raises(DatasetError, match="sample 0 of the debug dataset has no label, which accuracy needs"):
        measured(*pair, unlabelled, task_metrics=["top_1"])
    own = measured(*pair, unlabelled, task_metrics=[lambda outputs, label: float(label is None)])
    assert own.errors.metric("<lambda>").min() == 1.0
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mode": "weight"}, r"got mode 'weight', .*weights"),
        ({"metric": "cosin"}, r"got metric 'cosin', .*cosine"),
        ({"metric": "top_1"}, "got metric 'top_1'"),
        ({"task_metrics": ["top_2"]}, "top_1"),
        ({"task_metrics": ["test_sensitivity:nothing"]}, "has no function 'nothing'"),
    ]
    for options, words in wrong:
        with pytest.raises(OptionError, match=words):
            measured(*pair, unlabelled, **options)
    with pytest.raises(DatasetError):
        measured(*pair, [])
    with pytest.raises(ModelError, match="got no float model"):
        measured(None, pair[1], unlabelled)


def test_label_offset() -> None:
    plain = of_example(task_metrics=["top_1"])
    _, made, _ = built_in()
    shifted = [(inputs, label - 1) for inputs, label in example_samples()]
    found = measured(made.floats.graph.model.data, made.graph.model.data, shifted, task_metrics=["top_1"], label_offset=1)
    np.testing.assert_array_equal(found.errors.metric("top_1"), plain.errors.metric("top_1"))


def test_values_that_are_no_numbers_are_kept_as_such(tmp_path: Path) -> None:
    """An output of NaN ranks first, and is there after an interruption."""

    def root(x: Any) -> Any:
        return tf.matmul(tf.sqrt(tf.matmul(x, tf.abs(drawn(8, 6)))), drawn(6, 4))

    positive = [[np.abs(values)] for (values,) in normal((1, 8), count=4)()]
    floating = load_float_model(float_bytes(converter_of(root, [spec(1, 8)], normal((1, 8)))))
    quantized = floating.calibrate(positive, progress=False).quantize("int8").data
    samples = [*positive[:2], [-positive[0][0]], positive[3]]
    plain = measured(floating.data, quantized, samples, mode="node")
    saved = tmp_path / "partial"
    with pytest.raises(DatasetError):
        measured(floating.data, quantized, [*samples[:3], None], mode="node", saved=saved)
    again = measured(floating.data, quantized, samples, mode="node", saved=saved)
    np.testing.assert_array_equal(again.errors.sums, plain.errors.sums)
    np.testing.assert_array_equal(again.errors.replicates, plain.errors.replicates)
    assert np.isnan(plain.errors.metric("mse")).any()
    assert np.isinf(plain.errors.badness("mse")).any()
