"""Sensitivity analysis: each step against TensorFlow's quantizer with that denylist, and metrics by numpy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from test_mixed import results

from tflite_qdebug import example
from tflite_qdebug.analyses import steps as steps_module
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.analyses.steps import THRESHOLDS, leave_float
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, load_float_model
from tflite_qdebug.errors import DatasetError, MetricError, ModelError, OptionError, OutputError
from tflite_qdebug.findings import Findings, Steps, save_part
from tflite_qdebug.record import Run
from tflite_qdebug.reports.sensitivity import steps_table, write_steps_csv
from tflite_qdebug.statistics import ErrorStatistics
from tflite_qdebug.wording import number

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)
#: The ill layers of the example, worst first, and one that is not.
NODES = [f"block{number}_project" for number in (1, 2, 3)] + ["head"]
LIMIT = 20


@functools.cache
def calibrated() -> CalibratedModel:
    return load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset, limit=50, progress=False)


@functools.cache
def quantized(count: int = 0) -> bytes:
    return bytes(calibrated().quantize("int8", denylisted_nodes=tuple(nodes()[:count])).data)


@functools.cache
def nodes() -> list[str]:
    found = {}
    for operator in calibrated().model.main.operators:
        name = calibrated().model.main.tensors[operator.outputs[0]].name
        for wanted in NODES:
            if operator.name == "CONV_2D" and f"/{wanted}_" in name:
                found[wanted] = name
    return [found[wanted] for wanted in NODES]


@functools.cache
def samples() -> list[tuple[list[np.ndarray], int]]:
    labelled = example.evaluation_dataset()
    return [next(labelled) for _ in range(LIMIT)]


def steps(data: Any = None, chosen: Any = None, **options: Any) -> Steps:
    return leave_float(
        example.MODEL_PATH,
        quantized(),
        samples() if data is None else data,
        nodes() if chosen is None else chosen,
        **{"backend": BACKEND, "progress": False, **options},
    )


@functools.cache
def all_steps() -> Steps:
    return steps(go_on=True, task_metrics=("top_1", brier))


def brier(outputs: list[np.ndarray], label: int) -> float:
    return float(((outputs[0].reshape(-1) - np.eye(10)[label]) ** 2).sum())


@functools.cache
def by_hand(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the outputs of TensorFlow's model with that denylist, and of the float model, ``(samples, 10)``."""
    inputs = [sample for sample, _ in samples()]
    pair = [results(model, inputs)[0].reshape(LIMIT, 10) for model in (quantized(count), example.float_model())]
    return pair[0].astype(np.float64), pair[1].astype(np.float64)


@pytest.mark.parametrize("count", range(5))
def test_each_step_is_tensorflows_model_with_that_denylist(count: int) -> None:
    values, floats = by_hand(count)
    error, found = values - floats, all_steps()
    expected = {
        "sqnr_db": 10 * np.log10((floats**2).sum() / (error**2).sum()),
        "mse": (error**2).mean(),
        "cosine": (values * floats).sum() / np.sqrt((values**2).sum() * (floats**2).sum()),
        "chebyshev": np.abs(error).max(),
        "flips": np.mean(values.argmax(axis=1) != floats.argmax(axis=1)),
        "top_1": np.mean(values.argmax(axis=1) == [label for _, label in samples()]),
        "brier": np.mean([brier([row], label) for row, (_, label) in zip(values, samples(), strict=True)]),
    }
    for name, value in expected.items():
        assert float(found.errors.metric(name)[count, 0]) == pytest.approx(value, rel=1e-5, abs=1e-9), name


def test_steps_say_what_was_left_float() -> None:
    found = all_steps()
    assert list(found.nodes) == nodes()
    assert set(found.op_names) == {"CONV_2D"}
    assert found.errors.variants == ("all quantized", *(f"{count} left float" for count in range(1, 5)))
    assert (found.metric, found.threshold) == ("sqnr_db", THRESHOLDS["sqnr_db"])
    assert found.provenance["samples"] == LIMIT
    assert found.provenance["kernels"] == "builtin"


def test_the_float_models_own_metrics_stand_beside() -> None:
    score = evaluate({"float": example.MODEL_PATH}, samples(), ["top_1", brier], backend=BACKEND, progress=False).scores[0]
    assert all_steps().float_metrics == pytest.approx(score.metrics, rel=1e-6)


def test_sizes_grow_and_are_those_of_the_files() -> None:
    sizes = all_steps().sizes
    assert len(sizes) == 5
    assert list(sizes) == sorted(set(sizes))
    for count, size in enumerate(sizes):
        assert size == pytest.approx(len(quantized(count)), rel=0.02)


def first_above(threshold: float) -> int:
    ratios = [float(value) for value in all_steps().errors.metric("sqnr_db")[:, 0]]
    return next(count for count, value in enumerate(ratios) if value >= threshold)


def test_it_stops_at_the_threshold() -> None:
    ratios = [float(value) for value in all_steps().errors.metric("sqnr_db")[:, 0]]
    assert ratios == sorted(ratios)
    between = (ratios[1] + ratios[2]) / 2
    found = steps(threshold=between)
    assert found.met == first_above(between) == 2
    assert list(found.nodes) == nodes()[:2]
    assert found.errors.metric("sqnr_db")[:, 0].tolist() == ratios[:3]
    onwards = steps(threshold=between, go_on=True)
    assert onwards.met == 2
    assert len(onwards.nodes) == 4
    assert steps(threshold=ratios[0]).met == 0  # met is as good as beaten, and nothing need be left float
    assert steps(threshold=ratios[0]).nodes == ()


@pytest.mark.parametrize(
    ("options", "met"),
    [
        ({"metric": "cosine", "threshold": 2.0}, None),
        ({"threshold": 200.0}, None),
        ({"metric": "mse", "threshold": 0.0}, None),
        ({"metric": "mse", "threshold": 1.0}, 0),
        ({"metric": "mse"}, None),
        ({"metric": "flips", "threshold": 1.0}, 0),
        ({"metric": "top_1", "task_metrics": ("top_1",), "threshold": 0.0}, 0),
        ({"metric": "top_1", "task_metrics": ("top_1",), "threshold": 1.1}, None),
        ({"metric": "brier", "task_metrics": (brier,), "threshold": 2.0, "large_is_bad": True}, 0),
        ({"metric": "brier", "task_metrics": (brier,), "threshold": -1.0, "large_is_bad": True}, None),
    ],
)
def test_a_threshold_is_met_from_the_good_side(options: dict[str, Any], met: int | None) -> None:
    found = steps(samples()[:4], nodes()[:1], **options)
    assert found.met == met
    assert len(found.nodes) == (1 if met is None else 0)
    assert found.threshold == options["threshold"] if "threshold" in options else math.isnan(found.threshold)


def test_no_more_than_were_asked_for() -> None:
    found = steps(samples()[:3], most=2, threshold=200.0)
    assert list(found.nodes) == nodes()[:2]
    assert len(found.sizes) == 3
    # Twice the same is once, also by a name that a table shortened.
    shortened = f"{nodes()[0][:30]}…{nodes()[0][-20:]}"
    assert list(steps(samples()[:3], [nodes()[0], shortened, nodes()[1]], threshold=200.0).nodes) == nodes()[:2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chosen": ["digits_1/block1_project"]}, "which the model has not.*Did you mean 'digits_1/block1_project_bn_1"),
        ({"chosen": []}, r"got \[\] as the nodes to be left float"),
        ({"chosen": "node"}, "got 'node' as the nodes to be left float, expected a list"),
        ({"most": 0}, "got most=0"),
        ({"metric": "sqnr"}, "got metric 'sqnr'.*Did you mean 'sqnr_db'"),
        ({"metric": "top_1"}, "got metric 'top_1'"),
        ({"threshold": float("nan")}, "got NaN as the threshold"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        steps(samples()[:1], **options)


def test_other_failures_are_told() -> None:
    unlabelled = [inputs for inputs, _ in samples()[:2]]
    with pytest.raises(DatasetError, match="sample 0 of the debug dataset has no label"):
        steps(unlabelled, task_metrics=("top_1",))
    with pytest.raises(MetricError, match="'nothing' gave NaN on sample 0"):
        steps(task_metrics=(nothing,))
    with pytest.raises(ModelError, match="got no float model"):
        leave_float(None, quantized(), samples(), nodes(), backend=BACKEND)
    with pytest.raises(DatasetError, match="yielded no samples"):
        steps(lambda: iter(()))


def nothing(outputs: list[np.ndarray], label: Any) -> float:
    return math.nan


def test_an_unwritable_place_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen: list[int] = []
    with pytest.raises(OutputError, match="cannot"):
        steps(interrupted(seen, 99), saved=tmp_path / "file" / "steps.partial.json")
    assert len(seen) <= 1  # the first sample, to match the models


def interrupted(seen: list[int], after: int) -> Callable[[], Iterator[Any]]:
    """Returns a dataset that is interrupted when so many samples were read in all."""

    def data() -> Iterator[Any]:
        for index, sample in enumerate(samples()[:6]):
            if len(seen) >= after:
                raise KeyboardInterrupt
            seen.append(index)
            yield sample

    return data


# Steps 0 and 1 take 6 samples each.
@pytest.mark.parametrize("after", [1, 3, 6, 8, 12, 16])
def test_what_was_interrupted_goes_on_and_ends_the_same(after: int, tmp_path: Path) -> None:
    place = tmp_path / "steps.partial.json"
    options: dict[str, Any] = {"chosen": nodes()[:2], "threshold": 200.0, "task_metrics": ("top_1", brier)}
    whole = steps(interrupted([], 99), **options)
    with pytest.raises(KeyboardInterrupt):
        steps(interrupted([], after), saved=place, **options)
    seen: list[int] = []
    measured: list[int] = []
    result = steps(_counting(seen, measured), saved=place, **options)
    assert result.errors.to_dict() == whole.errors.to_dict()
    assert (result.nodes, result.sizes, result.met) == (whole.nodes, whole.sizes, whole.met)
    assert result.float_metrics == whole.float_metrics
    assert {**result.provenance, "debug_dataset": ""} == {**whole.provenance, "debug_dataset": ""}
    assert result.notes == whole.notes
    assert not place.exists()


def _counting(seen: list[int], measured: list[int]) -> Callable[[], Iterator[Any]]:
    # Called as the interrupted one, since other words are another dataset.
    return interrupted(seen, 10**6)


def test_finished_steps_are_not_run_again(tmp_path: Path) -> None:
    place, counted = tmp_path / "steps.partial.json", []

    def right(outputs: list[np.ndarray], label: int) -> float:
        counted.append(label)
        return float(outputs[0].argmax() == label)

    options: dict[str, Any] = {"chosen": nodes()[:2], "threshold": 200.0, "task_metrics": (right,)}
    with pytest.raises(KeyboardInterrupt):
        steps(interrupted([], 8), saved=place, **options)
    assert len(counted) == 2 * 8  # of the model and of the float one
    steps(interrupted([], 10**6), saved=place, **options)
    assert len(counted) == 2 * 6 * 3


@pytest.mark.parametrize("change", ["samples", "nodes", "metrics", "label_offset"])
def test_what_another_analysis_has_kept_is_not_taken(change: str, tmp_path: Path) -> None:
    place = tmp_path / "steps.partial.json"
    options: dict[str, Any] = {"chosen": nodes()[:2], "threshold": 200.0, "task_metrics": ("top_1",)}
    with pytest.raises(KeyboardInterrupt):
        steps(interrupted([], 8), saved=place, **options)
    data: Any = interrupted([], 10**6)
    if change == "samples":
        # Called the same, and the first is another one.
        inner = data

        def data() -> Iterator[Any]:
            return reversed(list(inner()))

        data.__qualname__ = inner.__qualname__
    options.update({"nodes": {"chosen": nodes()[1:3]}, "metrics": {"task_metrics": (brier,)}}.get(change, {}))
    if change == "label_offset":
        options["label_offset"] = -1
        data = _shifted
    expected = steps(data, **options)
    assert steps(data, saved=place, **options).errors.to_dict() == expected.errors.to_dict()


def _shifted() -> Iterator[Any]:
    return ((inputs, label + 1) for inputs, label in samples()[:6])


def test_a_broken_file_is_begun_anew(tmp_path: Path) -> None:
    place = tmp_path / "steps.partial.json"
    place.write_text('{"key": ')
    found = steps(samples()[:2], nodes()[:1], threshold=200.0, saved=place)
    assert found.errors.samples == 2


def test_several_outputs_must_all_meet_it() -> None:
    floating, data = models.float_tflite("two_by_two"), models.samples("two_by_two", 4)
    content = models.calibrated("two_by_two").quantize("int8").data
    order = [models.calibrated("two_by_two").model.main.tensors[operator.outputs[0]].name
             for operator in models.calibrated("two_by_two").model.main.operators]  # fmt: skip
    found = leave_float(floating, content, data, order, threshold=1e9, backend=BACKEND, progress=False)
    ratios = found.errors.metric("sqnr_db")
    assert ratios.shape == (len(order) + 1, 2)
    between = float(ratios[0].mean())
    assert ratios[0].min() < between < ratios[0].max()
    again = leave_float(floating, content, data, order, threshold=between, backend=BACKEND, progress=False)
    assert again.met == next((step for step, row in enumerate(ratios) if row.min() >= between), None)
    assert again.met != 0
    # With all left float nothing is lost.
    assert not np.isfinite(ratios[-1]).any()


def test_where_xnnpack_refuses_a_step_those_behind_it_run_on_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    true = steps_module._Worker.__init__

    def refused(self: Any, mixed: Any, model: Any, task: Any, backend: Backend) -> None:
        asked.append(backend.kernels)
        true(self, mixed, model, task, backend._replace(kernels="builtin"))
        if backend.kernels == "auto":
            self._interpreter.notes.append(f"XNNPACK refuses this model (node {len(asked)})")

    monkeypatch.setattr(steps_module._Worker, "__init__", refused)
    found = steps(samples()[:2], threshold=200.0, most=3, backend=BACKEND._replace(kernels="auto"))
    assert asked == ["auto", "builtin", "builtin", "builtin"]
    assert found.notes == ("XNNPACK refuses this model (node 1)",)


def test_any_number_of_workers_gives_the_same() -> None:
    one = steps(threshold=200.0, most=1)
    two = steps(threshold=200.0, most=1, backend=Backend(kernels="builtin", workers=2))
    assert one.errors.to_dict() == two.errors.to_dict()


def test_the_table_and_the_file_hold_these_numbers(tmp_path: Path) -> None:
    found = all_steps()
    header, rows = steps_table(found)
    assert header[:3] == ["float nodes", "operator", "node"]
    assert "SQNR" in header[3]
    assert rows[0][2] == "all quantized"
    assert [row[0] for row in rows[:5]] == [f"{step} *" if step == found.met else str(step) for step in range(5)]
    assert rows[-1][2] == "float model"
    # The float model has task metrics, and no error.
    assert [cell for cell in rows[-1][3:-1] if cell.strip(" -")] == [
        number(found.float_metrics[name]) for name in ("top_1", "brier")
    ]
    write_steps_csv(found, tmp_path / "steps.csv")
    lines = [line.split(",") for line in (tmp_path / "steps.csv").read_text().splitlines()]
    assert len(lines) == 6
    column = lines[0].index("sqnr_db")
    assert [float(line[column]) for line in lines[1:]] == found.errors.metric("sqnr_db")[:, 0].tolist()
    with pytest.raises(OutputError):
        write_steps_csv(found, tmp_path / "steps.csv" / "below.csv")


def test_saved_steps_come_back(tmp_path: Path) -> None:
    Run("per_layer", [], ErrorStatistics(0)).save(tmp_path / "run.json")
    save_part(tmp_path, "steps", all_steps())
    loaded = Findings.load(tmp_path).steps
    assert loaded is not None
    assert loaded.errors.to_dict() == all_steps().errors.to_dict()
    assert (loaded.nodes, loaded.sizes, loaded.met) == (all_steps().nodes, all_steps().sizes, all_steps().met)
    assert loaded.float_metrics == all_steps().float_metrics
