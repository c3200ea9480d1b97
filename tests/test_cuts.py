"""Cuts on two kernels: figures by hand, planted faults that are found and cut down, and what is kept of them."""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path
from typing import Any

import contracts
import control_flow_models
import delegates
import models
import numpy as np
import pytest
import shared_data
from conftest import SHARED_MODELS

from tflite_qdebug import CutLimits, example, extract, extract_operator, load_float_model, try_cuts
from tflite_qdebug.analyses import cuts as analysis
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.cut_record import Closeness, CutComparison, CutOutput, CutRow
from tflite_qdebug.edit.exploded import computed_tensors
from tflite_qdebug.edit.flatbuffer import Writer, pack, unpack
from tflite_qdebug.errors import DatasetError, InterpreterError, ModelError, OptionError
from tflite_qdebug.kernel_record import Difference
from tflite_qdebug.model import Model
from tflite_qdebug.quantization import QuantizationParameters

QUIET = "--no-progress"
BUILTIN = Backend("tensorflow", "builtin", workers=1)


@functools.cache
def int8(name: str) -> bytes:
    return models.calibrated(name).quantize("int8").data


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return delegates.build(tmp_path_factory.mktemp("delegate"))


def on(library: Path, **options: object) -> Backend:
    """Returns TensorFlow's reference kernels with the test's delegate: what it claims and leaves alone is exact."""
    return Backend("tensorflow", "reference", [delegates.delegate(library, **options)], workers=1)


def tried(model: bytes, samples: Any, cuts: Any = None, **more: Any) -> CutComparison:
    return try_cuts(model, samples, cuts, progress=False, **more)


def node(model: bytes, op_name: str, output: int = 0) -> str:
    graph = Model(model).main
    (operator,) = [operator for operator in graph.operators if operator.name == op_name]
    return graph.tensors[operator.outputs[output]].name


def kinds(result: CutComparison) -> dict[str, str]:
    return {row.name: row.kind(result.limits) for row in result.rows}


# ------------------------------------------------------------------------------------------------------- figures by hand


def by_hand(values: list[int], reference: list[int], scale: float, zero_point: int) -> tuple[float, float, float]:
    real, wanted = ((np.array(v, np.float64) - zero_point) * scale for v in (values, reference))
    error = real - wanted
    cosine = real @ wanted / math.sqrt((real @ real) * (wanted @ wanted))
    snr = 10 * math.log10((wanted @ wanted) / (error @ error))
    psnr = 10 * math.log10((wanted.max() - wanted.min()) ** 2 / (error @ error / error.size))
    return cosine, snr, psnr


def test_figures_of_integers_by_hand() -> None:
    parts = [([3, -7, 100, 5], [3, -9, 97, 5]), ([10, 20, 30, 40], [10, 21, 30, 40])]
    quantization = QuantizationParameters([0.25], [4])
    found = [
        Closeness.between(np.array(a, np.int8), np.array(b, np.int8), quantization, sample)
        for sample, (a, b) in enumerate(parts)
    ]
    total = found[0] + found[1]
    cosine, snr, psnr = by_hand(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], 0.25, 4)
    assert total.difference == Difference(8, 3, 2, 6.0, 14.0, 0.0, 3.0, 0)
    assert (total.cosine, total.snr_db, total.psnr_db) == pytest.approx((cosine, snr, psnr), rel=1e-12)
    assert (total.lowest, total.highest) == (-3.25, 23.25)


def test_closeness_merges() -> None:
    generator = np.random.default_rng(0)
    pairs = [
        (generator.integers(-9, 9, 50).astype(np.float32), generator.integers(-9, 9, 50).astype(np.float32)) for _ in range(4)
    ]
    parts = [Closeness.between(a, b, None, sample) for sample, (a, b) in enumerate(pairs)]
    joined = Closeness.between(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]), None, 0)

    def same(first: Closeness, second: Closeness) -> None:
        assert first.sums[:6] == second.sums[:6]
        assert (first.cosine, first.snr_db, first.psnr_db) == (second.cosine, second.snr_db, second.psnr_db)
        assert first.difference.max_absolute == second.difference.max_absolute

    contracts.check_mergeable(Closeness, parts, joined, same)


def test_nothing_differs() -> None:
    for values in (np.zeros(4, np.float32), np.array([1.0, -2.0], np.float32), np.zeros(0, np.float32)):
        same = Closeness.between(values, values, None, 0)
        assert (same.cosine, same.snr_db, same.psnr_db) == (1.0, math.inf, math.inf)
        assert not same.broken(CutLimits(0.0, 1.0, 300.0, 300.0), True, False)


def test_not_finite_values_fail_unless_both_have_them() -> None:
    bad, good = np.array([1.0, np.nan, np.inf], np.float32), np.array([1.0, 2.0, np.inf], np.float32)
    one = Closeness.between(bad, good, None, 0)
    assert one.broken(CutLimits(), True, False) == ["1 values NaN or infinite on one side, at most 0"]
    assert not one.broken(CutLimits(max_not_finite=1), True, False)
    assert not Closeness.between(good, good, None, 0).broken(CutLimits(), True, False)
    assert (one.lowest, one.highest) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("limits", "fails"),
    [
        (CutLimits(), True),
        (CutLimits(max_difference=3), False),
        (CutLimits(max_difference=2.9), True),
        (CutLimits(min_cosine=0.9), False),
        (CutLimits(min_cosine=0.9999999), True),
        (CutLimits(min_snr_db=20), False),
        (CutLimits(min_snr_db=40), True),
        (CutLimits(min_psnr_db=20), False),
        (CutLimits(min_psnr_db=60), True),
    ],
)
def test_each_limit_by_itself(limits: CutLimits, fails: bool) -> None:
    reference = np.array([10, -20, 90, 40], np.int8)
    one = Closeness.between(reference + np.array([0, 3, 0, 0], np.int8), reference, QuantizationParameters([0.5], [0]), 0)
    assert bool(one.broken(limits, False, True)) == fails


def test_the_limits_of_floats_that_integers_were_made_of_are_a_step() -> None:
    reference = np.linspace(0, 1, 9, dtype=np.float32)
    one = Closeness.between(reference + np.float32(0.125), reference, None, 0)
    assert one.broken(CutLimits(), True, False)
    assert not one.broken(CutLimits(), True, False, 0.125)
    assert one.broken(CutLimits(), True, False, 0.1)


@pytest.mark.parametrize(
    "limits",
    [CutLimits(max_difference=-1), CutLimits(min_cosine=2), CutLimits(min_snr_db=math.nan), CutLimits(max_not_finite=-1)],
)
def test_limits_that_mean_nothing_are_refused(limits: CutLimits) -> None:
    with pytest.raises(OptionError, match=r"got m.*, expected"):
        limits.checked()


# ---------------------------------------------------------------------------------------------------------- planted faults


def test_an_exact_delegate_passes_everywhere(library: Path) -> None:
    result = tried(
        int8("mixed"), models.samples("mixed", 2), tested=on(library), reference=BUILTIN._replace(kernels="reference")
    )
    assert set(kinds(result).values()) == {"passed"}
    assert result.passed()
    assert {row.ran for row in result.rows} == {"delegate"}
    assert [row.operators for row in result.rows] == [(operator.index,) for operator in Model(int8("mixed")).main.operators]
    assert all(output.isolated.difference.is_none and output.repeats for row in result.rows for output in row.outputs)


@pytest.mark.parametrize(("op_name", "steps"), [("CONV_2D", 1), ("ADD", 5), ("FULLY_CONNECTED", 40)])
def test_steps_added_to_one_operator_are_found_there_alone(library: Path, op_name: str, steps: int) -> None:
    model = int8("mixed")
    tested = on(library, mode="off", steps=-steps, node=node(model, op_name))
    result = tried(model, models.samples("mixed", 2), tested=tested, limits=CutLimits(max_difference=steps - 1))
    (failed,) = result.failed()
    assert failed.op_names == (op_name,)
    (output,) = failed.outputs
    assert output.isolated.difference.max_absolute == steps
    assert f"max difference {steps} steps, at most {steps - 1}" in failed.verdict(result.limits)
    assert list(kinds(result).values()).count("passed") == len(result.rows) - 1


def test_cumulative_differences_are_inherited_and_said_to_be(library: Path) -> None:
    model = int8("mixed")
    tested = on(library, mode="off", steps=6, node=node(model, "ADD"))
    result = tried(model, models.samples("mixed", 2), tested=tested, cumulative=True, limits=CutLimits(max_difference=0))
    names = [row.op_names[0] for row in result.rows]
    place = names.index("ADD")
    found = list(kinds(result).values())
    assert found[:place] == ["passed"] * place
    assert found[place] == "differs"
    assert "differs" not in found[place + 1 :]
    assert found[place + 1] == "inherited"
    assert not result.passed()
    assert len(result.failed()) == 1
    # By hand: what the whole model gives with the fault is what the chain of cuts comes to.
    split = result.rows[place + 1].outputs[0]
    graph = Model(model).main
    total = 0.0
    for sample in models.samples("mixed", 2):
        interpreter = models.run(model, sample)
        values = interpreter.get_tensor(graph.operators[place].outputs[0])
        shifted = np.clip(values.astype(int) + 6, -128, 127)
        total += float(np.abs(shifted - values)[..., : values.shape[-1] // 2].sum())
    assert split.cumulative is not None
    assert split.cumulative.difference.sum_absolute == total
    assert split.isolated.difference.is_none


def test_a_fault_in_many_operators_is_cut_down_to_the_one(library: Path, tmp_path: Path) -> None:
    model = int8("mixed")
    tested = on(library, mode="off", steps=9, node=node(model, "CONCATENATION"))
    whole = extract(model)
    result = tried(model, models.samples("mixed", 2), [whole], tested=tested, folder=tmp_path)
    asked, smallest = result.rows
    assert kinds(result) == {whole.name: "differs", smallest.name: "differs"}
    assert (smallest.op_names, smallest.smallest_of) == (("CONCATENATION",), whole.name)
    assert result.smallest(whole.name) is smallest
    assert smallest.outputs[0].isolated.difference.max_absolute == 9
    assert {path.name for path in tmp_path.iterdir()} == {asked.folder, smallest.folder}
    assert len(Model(tmp_path / smallest.folder / "model.tflite").main.operators) == 1
    unlooked = tried(model, models.samples("mixed", 2), [whole], tested=tested, bisect=False)
    assert len(unlooked.rows) == 1


def test_a_crash_ends_one_cut_and_is_cut_down_to_its_operator(library: Path, tmp_path: Path) -> None:
    model = int8("mixed")
    tested = on(library, mode="crash", node=node(model, "MEAN"))
    result = tried(model, models.samples("mixed", 2), [extract_operator(model, i) for i in (7, 8, 9)], tested=tested)
    assert list(kinds(result).values()) == ["passed", "crashed", "passed"]
    assert "SIGABRT" in result.rows[1].reason
    result = tried(model, models.samples("mixed", 2), [extract(model)], tested=tested, folder=tmp_path)
    assert [row.op_names for row in result.failed()][-1] == ("MEAN",)
    folder = tmp_path / result.failed()[-1].folder
    assert {path.name for path in folder.iterdir()} == {"model.tflite", "inputs.npz", "expected.npz", "cut.json"}


def test_what_a_delegate_leaves_is_said(library: Path) -> None:
    claimed = on(library, claim="0")._replace(kernels="auto")
    samples = models.samples("chain", 1)
    result = tried(int8("chain"), samples, [extract(int8("chain"))], tested=claimed)
    assert result.rows[0].ran != "delegate"
    assert any("computes 0 of 1 results of cuts" in note for note in result.notes)
    nothing = tried(int8("chain"), samples, tested=on(library, mode="none")._replace(kernels="builtin"))
    assert {row.ran for row in nothing.rows} == {"builtin"}


@pytest.mark.parametrize("options", [{"mode": "refuse"}, {"mode": "crash", "when": "create"}])
def test_a_delegate_that_does_not_start_is_no_fault_of_the_cuts(library: Path, options: dict[str, str]) -> None:
    with pytest.raises(InterpreterError, match=r"libtest_delegate"):
        tried(int8("chain"), models.samples("chain", 1), tested=on(library, **options))


def test_a_cut_that_the_delegate_fails_on_is_refused(library: Path) -> None:
    model = int8("mixed")
    tested = on(library, mode="fail", reason="too hot", node=node(model, "ADD"))
    result = tried(model, models.samples("mixed", 1), tested=tested)
    assert [name for name, kind in kinds(result).items() if kind != "passed"] == ["operator_003_ADD"]
    assert result.rows[3].failure == "refused"
    assert "too hot" in result.rows[3].reason


def test_not_a_number_from_one_operator_is_found(library: Path) -> None:
    model = models.float_tflite("mixed")
    tested = on(library, mode="nan", node=node(model, "TANH"))
    result = tried(model, models.samples("mixed", 1), tested=tested, limits=CutLimits(max_difference=1e9))
    assert [row.op_names for row in result.failed()] == [("TANH",)]
    assert "NaN or infinite on one side" in result.failed()[0].verdict(result.limits)


def test_parts_that_fail_only_together() -> None:
    tried_parts = []

    def badness(part: Any) -> float | None:
        tried_parts.append(tuple(part))
        return 1.0 if {3, 11} <= set(part) else None

    assert analysis._smallest_part(list(range(16)), badness) == [3, 11]
    assert len(tried_parts) < 80
    assert analysis._smallest_part(list(range(9)), lambda part: 1.0 if 7 in part else None) == [7]


def test_rounding_that_adds_up_does_not_hide_an_operator_that_is_wrong() -> None:
    def badness(part: Any) -> float | None:
        # Any three operators differ by rounding, the last three most; operator 2 alone is wrong.
        return (0.5 if 2 in part else max(part) / 100) if 2 in part or len(part) > 2 else None

    assert analysis._smallest_part(list(range(16)), badness) == [2]
    # Also where halving follows the rounding.
    assert analysis._smallest_part(list(range(16)), lambda part: None if (b := badness(part)) is None else -b) == [2]


def test_a_fault_amid_kernels_that_round_otherwise_is_cut_down_to_the_one(library: Path) -> None:
    """The test's delegate runs the optimized kernels here, which differ from the reference's by steps that add up."""
    float_model = load_float_model(example.MODEL_PATH)
    model = float_model.calibrate(example.representative_dataset, limit=8, progress=False).quantize("int8").data
    graph = Model(model).main
    wrong = [operator for operator in graph.operators if operator.name == "DEPTHWISE_CONV_2D"][2]
    mean = [operator for operator in graph.operators if operator.name == "MEAN"][-1]
    tested = on(library, mode="off", steps=120, node=graph.tensors[wrong.outputs[0]].name)._replace(kernels="builtin")
    cut = extract(model, None, [mean.outputs[0]])
    result = tried(model, example.debug_dataset, [cut], tested=tested, limits=CutLimits(max_difference=2), limit=2)
    smallest = result.smallest(cut.name)
    assert smallest is not None
    assert smallest.operators == (wrong.index,)


def test_a_kernel_that_is_really_wrong() -> None:
    """int8 BATCH_MATMUL under XNNPACK, where this TensorFlow has that fault."""
    model, samples = int8("attention"), models.samples("attention", 2)
    graph = Model(model).main
    (operator,) = [operator for operator in graph.operators if operator.name == "BATCH_MATMUL"]
    result = tried(model, samples, tested=Backend("tensorflow", workers=1))
    row = next(row for row in result.rows if row.op_names == ("BATCH_MATMUL",))
    cut = extract_operator(model, operator.index)
    largest = 0
    for sample in samples:
        interpreter = models.run(model, sample)
        inputs = [interpreter.get_tensor(index) for index in cut.inputs]
        import tensorflow as tf

        fast = tf.lite.Interpreter(model_content=cut.data)
        fast.allocate_tensors()
        for detail, values in zip(fast.get_input_details(), inputs, strict=True):
            fast.set_tensor(detail["index"], values)
        fast.invoke()
        got = fast.get_tensor(fast.get_output_details()[0]["index"]).astype(int)
        largest = max(largest, int(np.abs(got - interpreter.get_tensor(operator.outputs[0])).max()))
    assert row.outputs[0].isolated.difference.max_absolute == largest
    assert (row.kind(result.limits) == "differs") == (largest > 1)


# ------------------------------------------------------------------------------------------------------------ what is kept


def test_what_is_kept_shows_the_fault_again(library: Path, tmp_path: Path) -> None:
    model, samples = int8("mixed"), models.samples("mixed", 12)
    tested = on(library, mode="off", steps=4, node=node(model, "ADD"))
    result = tried(model, samples, tested=tested, folder=tmp_path, limits=CutLimits(max_difference=3))
    (failed,) = result.failed()
    assert [path.name for path in tmp_path.iterdir()] == ["operator_003_ADD"]
    folder = tmp_path / failed.folder
    kept = Model(folder / "model.tflite")
    arrays = {name: dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "expected", "got")}
    assert [set(arrays[name]) for name in arrays] == [
        {kept.main.tensors[index].name for index in kept.main.inputs},
        *[{kept.main.tensors[kept.main.outputs[0]].name}] * 2,
    ]
    about = json.loads((folder / "cut.json").read_text())
    assert about["samples"][0] == failed.outputs[0].isolated.difference.worst_sample
    assert len(about["samples"]) == analysis.KEPT_SAMPLES
    assert about["model_sha256"] == Model(model).sha256
    assert about["cut_sha256"] == kept.sha256
    # By TensorFlow alone, and in the samples of the whole model.
    graph = Model(model).main
    (operator,) = [operator for operator in graph.operators if operator.name == "ADD"]
    (expected,), (got,) = arrays["expected"].values(), arrays["got"].values()
    for place, number in enumerate(about["samples"]):
        whole = models.run(model, samples[number])
        inputs = [arrays["inputs"][kept.main.tensors[index].name][place] for index in kept.main.inputs]
        for values, index in zip(inputs, operator.inputs, strict=True):
            np.testing.assert_array_equal(values, whole.get_tensor(index))
        np.testing.assert_array_equal(models.outputs(kept.data, inputs)[0], expected[place])
        np.testing.assert_array_equal(np.clip(expected[place].astype(int) + 4, -128, 127), got[place])
    again = tried(kept.data, str(folder / "inputs.npz"), tested=tested, limits=CutLimits(max_difference=3))
    assert [row.kind(again.limits) for row in again.rows] == ["differs"]


def test_everything_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    result = tried(int8("chain"), models.samples("chain", 2), tested=BUILTIN, folder=tmp_path, keep_all=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(row.name for row in result.rows)


def test_samples_of_several_shapes_are_tried_and_those_of_one_kept(tmp_path: Path) -> None:
    model = int8("dynamic_batch")
    generator = np.random.default_rng(0)
    samples = [[generator.normal(size=(size, 10)).astype(np.float32)] for size in (3, 1, 3)]
    result = tried(model, samples, tested=BUILTIN, folder=tmp_path, keep_all=True)
    assert set(kinds(result).values()) == {"passed"}
    assert result.rows[-1].outputs[0].isolated.difference.elements == 7 * 4
    for row in result.rows:
        about = json.loads((tmp_path / row.folder / "cut.json").read_text())
        assert about["samples"] in ([0, 2], [2, 0], [1])
        arrays = [*np.load(tmp_path / row.folder / "inputs.npz").values(), *np.load(tmp_path / row.folder / "got.npz").values()]
        assert {len(array) for array in arrays} == {len(about["samples"])}


def test_without_processes_of_their_own() -> None:
    model, samples = int8("chain"), models.samples("chain", 2)
    apart, here = (tried(model, samples, tested=BUILTIN._replace(isolate=isolate)) for isolate in (None, False))
    assert here.rows == apart.rows


def test_the_saved_form_holds_everything(library: Path, tmp_path: Path) -> None:
    model = int8("mixed")
    tested = on(library, mode="off", steps=3, node=node(model, "MEAN"))
    result = tried(model, models.samples("mixed", 2), tested=tested, cumulative=True)
    result.save(tmp_path / "cuts.json")
    assert CutComparison.load(tmp_path / "cuts.json") == result
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ModelError, match="expected saved cuts of format version"):
        CutComparison.load(tmp_path / "other.json")
    columns = result.columns()
    assert {len(values) for values in columns.values()} == {sum(len(row.outputs) for row in result.rows)}
    assert columns["kind"][list(columns["op_names"]).index("MEAN")] == "differs"


def test_rows_are_ordered_by_what_is_worst() -> None:
    def row(name: str, steps: int, failure: str = "") -> CutRow:
        values, zero = np.array([steps, 1], np.int8), np.array([0, 1], np.int8)
        one = Closeness.between(values, zero, QuantizationParameters([1.0], [0]), 0)
        return CutRow(name, (0,), ("ADD",), (), (CutOutput(name, 0, "int8", 1.0, isolated=one),), failure, "because")

    rows = (row("same", 0), row("one", 1), row("many", 9), row("gone", 0, "crashed"), row("more", 8))
    result = CutComparison(rows, {"label": "a"}, {"label": "b"}, CutLimits(), 1)
    assert [result.rows[position].name for position in result.worst()] == ["gone", "many", "more", "one", "same"]


# -------------------------------------------------------------------------------------------------------------- all kinds


@pytest.mark.parametrize("name", ["loop", "branches", "nested", "captured"])
def test_loops_and_branches(name: str) -> None:
    model = getattr(control_flow_models, name)()
    samples = control_flow_models.samples(Model(model), 3)
    result = tried(model, samples, tested=BUILTIN)
    assert set(kinds(result).values()) == {"passed"}
    assert {"WHILE", "IF"} & {row.op_names[-1] for row in result.rows}


def test_a_composite_runs_by_its_decomposition() -> None:
    control_flow_models.require_composites()
    model = control_flow_models.composite()
    result = tried(
        model, control_flow_models.samples(Model(model), 2), [extract_operator(model, "STABLEHLO_COMPOSITE")], tested=BUILTIN
    )
    assert kinds(result) == {"operator_001_STABLEHLO_COMPOSITE": "passed"}
    assert result.rows[0].outputs[0].isolated.difference.elements > 0


def test_signatures_are_tried_one_by_one() -> None:
    model = control_flow_models.signatures()
    first = Model(model).signatures[0].key
    others = [entry.key for entry in Model(model).signatures if entry.subgraph]
    for key in (first, others[0]):
        selected = extract(model, signature=key)
        sample = [
            np.ones([2 if size == -1 else size for size in spec.shape], spec.dtypes[0])
            for spec in Model(model).signature_specs(key)
        ]
        result = tried(model, [sample], [selected], tested=BUILTIN, signature=key)
        assert kinds(result) == {selected.name: "passed"}
    sample = [
        np.ones([2 if size == -1 else size for size in spec.shape], spec.dtypes[0]) for spec in Model(model).input_specs()
    ]
    assert any("left out: the signatures" in note for note in tried(model, [sample], tested=BUILTIN).notes)


def test_operators_before_one_that_the_runtime_does_not_know_are_tried() -> None:
    unpacked = unpack(Model(int8("mixed")))
    last = unpacked.subgraphs[0].operators[-1]
    writer = Writer(unpacked)
    last.opcodeIndex = writer.add_code("CUSTOM", 1, b"Unheard")
    last.builtinOptions, last.builtinOptionsType = None, 0
    model = pack(unpacked)
    result = tried(model, models.samples("mixed", 1), tested=BUILTIN)
    assert [row.operators for row in result.rows] == [(position,) for position in range(11)]
    assert set(kinds(result).values()) == {"passed"}
    (note,) = [note for note in result.notes if "left out" in note]
    assert "operator_011_Unheard" in note
    before = extract(model, None, [Model(model).main.operators[-1].inputs[0]])
    assert kinds(tried(model, models.samples("mixed", 1), [before], tested=BUILTIN)) == {"operators_000_010": "passed"}
    with pytest.raises(InterpreterError, match="Unheard"):
        tried(model, models.samples("mixed", 1), [extract(model)], tested=BUILTIN)


def test_wrong_arguments_are_refused() -> None:
    model, samples = int8("chain"), models.samples("chain", 1)
    with pytest.raises(OptionError, match="twice"):
        tried(model, samples, tested=BUILTIN, reference=BUILTIN)
    with pytest.raises(OptionError, match="which is of another model"):
        tried(model, samples, [extract_operator(int8("mixed"), "ADD")], tested=BUILTIN)
    with pytest.raises(OptionError, match="got no cut to try"):
        tried(model, samples, [], tested=BUILTIN)
    with pytest.raises(DatasetError, match="yielded no samples"):
        tried(model, [], tested=BUILTIN)


@pytest.mark.parametrize("name", ["structure/sdpa_composite", "mnist_lstm/trained_lstm_int8", "structure/dilated_conv"])
def test_real_models(name: str) -> None:
    path = SHARED_MODELS / f"{name}.tflite"
    if not path.exists():
        pytest.skip("the real models are not there")
    result = tried(path.read_bytes(), shared_data.samples(name, 2), tested=BUILTIN)
    assert set(kinds(result).values()) == {"passed"}
    graph = Model(path).main
    assert len(result.rows) == len({operator.index for operator, _ in computed_tensors(graph)})


# ------------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "model.tflite").write_bytes(int8("mixed"))
    np.savez(tmp_path / "data.npz", image=np.concatenate([sample[0] for sample in models.samples("mixed", 3)]))
    return str(tmp_path / "model.tflite"), str(tmp_path / "data.npz")


def test_command_writes_models_alone(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [node(int8("mixed"), name) for name in ("DEPTHWISE_CONV_2D", "CONCATENATION")]
    assert main(["extract", files[0], "--from", ends[0], "--to", ends[1], "--output", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out" / "operators_003_007").iterdir()] == ["model.tflite"]
    assert "also reads" in capsys.readouterr().out
    assert main(["extract", files[0], "--every-operator", "--output", str(tmp_path / "all"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["made"]) == 12


def test_command_finds_a_planted_fault(
    library: Path, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = node(int8("mixed"), "MEAN")
    words = ["extract", files[0], "--debug-data", files[1], "--kernels", "reference", "--delegate", str(library), QUIET]
    words += ["--delegate-option", "mode=off", "--delegate-option", "steps=8", "--delegate-option", f"node={fault}"]
    words += ["--output", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "of which the smallest part that still fails is MEAN" in printed
    assert main([*words, "--every-operator", "--max-difference", "7"]) == 10
    captured = capsys.readouterr()
    assert "beyond the limits given, 1 of 12 cuts: operator_008_MEAN" in captured.err
    with (tmp_path / "out" / "cuts.csv").open() as file:
        rows = {row["cut"]: row for row in csv.DictReader(file)}
    assert rows["operator_008_MEAN"]["isolated_max_difference"] == "8.0"
    assert [name for name, row in rows.items() if row["kind"] != "passed"] == ["operator_008_MEAN"]
    assert main([*words, "--every-operator", "--max-difference", "8", "--cumulative", "--json"]) in (0, 10)
    assert json.loads(capsys.readouterr().out)["provenance"]["cumulative"] is True


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--from", "nix"], 2, "expected the name of a tensor"),
        (["--every-operator", "--operator", "ADD"], 2, "expected one of them"),
        (["--operator", "ADD", "--max-difference", "1"], 2, "without --debug-data"),
        (["--max-difference", "-1"], 2, "expected 0 or more"),
        (["--signature", "nix"], 2, "got signature 'nix'"),
    ],
)
def test_command_says_what_is_wrong(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    assert main(["extract", files[0], *words, QUIET]) == code
    assert message in capsys.readouterr().err
