"""Ranges tuned together: a range that is far too wide is found and narrowed, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import faulty_models

from tflite_qdebug import example
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.mixed_pair import Task
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import open_dataset
from tflite_qdebug.edit.rescaled import RangeSlot, Rescaler
from tflite_qdebug.model import Model
from tflite_qdebug.remedies.scoring import Scored, Scorer
from tflite_qdebug.remedies.tuning import tune_ranges

BUILTIN = Backend(kernels="builtin", workers=1, isolate=False)


class ScorerByFormula:
    """Scores models by the range of one tensor: the best is -1 to 3."""

    def __init__(self, tensor: int) -> None:
        self.tensor, self.measured = tensor, 0

    def measure(self, models: Mapping[str, bytes]) -> dict[str, Scored]:
        self.measured += len(models)
        found = {name: self.objective(Model(data)) for name, data in models.items()}
        return {name: Scored(value, np.array([value]), {}, {}) for name, value in found.items()}

    def objective(self, model: Model) -> float:
        scale = model.main.tensors[self.tensor].quantization
        assert scale is not None
        low, high = ((end - int(scale.zero_point[0])) * float(scale.scale[0]) for end in (-128, 127))
        if low >= 0.0 or high <= 0.0:
            return 10.0
        return 0.1 + abs(np.log(high / 3.0)) + abs(np.log(low / -1.0))


@pytest.fixture(scope="module")
def quantized() -> Model:
    floats = load_float_model(example.MODEL_PATH)
    calibrated = floats.calibrate(example.representative_dataset, "exposed", backend=BUILTIN, limit=20, progress=False)
    return Model(calibrated.quantize("int8").data)


@pytest.fixture(scope="module")
def slot(quantized: Model) -> RangeSlot:
    """A range with two ends that count."""
    return next(slot for slot in Rescaler(quantized).slots if not slot.fixed and -slot.minimum > 0.2 * slot.maximum > 0.0)


@pytest.mark.parametrize("start", [(-4.0, 12.0), (-0.3, 0.9), (-5.0, 1.0), (-1.0, 3.0)])
def test_both_ends_find_the_best(quantized: Model, slot: RangeSlot, start: tuple[float, float]) -> None:
    rescaler = Rescaler(Model(Rescaler(quantized).apply({slot.tensors[0]: start})))
    scorer = ScorerByFormula(slot.tensors[0])
    tuned = tune_ranges(rescaler, scorer, [slot.tensors[0]], rounds=3)  # type: ignore[arg-type]
    low, high = tuned.ranges.get(slot.tensors[0], start)
    assert low == pytest.approx(-1.0, rel=0.15)
    assert high == pytest.approx(3.0, rel=0.15)
    assert tuned.objective <= tuned.before
    assert tuned.finished
    # Measured again, it is what it is said to be.
    assert scorer.objective(Model(rescaler.apply(tuned.ranges))) == pytest.approx(tuned.objective)


def test_a_range_that_is_too_wide_is_narrowed() -> None:
    sound = faulty_models.sound()
    floats, rescaler = load_float_model(sound.floating), Rescaler(Model(sound.quantized))
    slot = next(slot for slot in rescaler.slots if not slot.fixed and slot.minimum < 0.0 and slot.tensors[0] > 5)
    broken = Rescaler(Model(rescaler.apply({slot.tensors[0]: (slot.minimum * 40.0, slot.maximum * 40.0)})))
    dataset = open_dataset(sound.samples, floats.model.input_specs(), "samples")
    scorer = Scorer(floats.model, RealValued(dataset, []), Task({}, 0), BUILTIN, False)
    tuned = tune_ranges(broken, scorer, [slot.tensors[0]], rounds=2)
    assert tuned.objective < 0.3 * tuned.before
    low, high = tuned.ranges[slot.tensors[0]]
    assert high - low < 25.0 * (slot.maximum - slot.minimum)


def test_nothing_is_measured_twice(quantized: Model, slot: RangeSlot) -> None:
    rescaler, memory, saved = Rescaler(quantized), {}, []
    first = tune_ranges(
        rescaler,
        ScorerByFormula(slot.tensors[0]),  # type: ignore[arg-type]
        [slot.tensors[0]],
        memory=memory,
        remember=lambda: saved.append(dict(memory)),
    )
    idle = ScorerByFormula(slot.tensors[0])
    again = tune_ranges(rescaler, idle, [slot.tensors[0]], memory=memory)  # type: ignore[arg-type]
    assert idle.measured == 0
    assert (again.ranges, again.objective) == (first.ranges, first.objective)
    assert saved
    # From where it was interrupted it comes to the same end.
    other = ScorerByFormula(slot.tensors[0])
    half: dict[str, Any] = saved[0]
    assert tune_ranges(rescaler, other, [slot.tensors[0]], memory=half).ranges == first.ranges  # type: ignore[arg-type]


def test_what_has_no_range_of_its_own_is_left_out(quantized: Model) -> None:
    rescaler = Rescaler(quantized)
    fixed = next(slot for slot in rescaler.slots if slot.fixed)
    scorer = ScorerByFormula(fixed.tensors[0])
    tuned = tune_ranges(rescaler, scorer, [fixed.tensors[0], 10**6])  # type: ignore[arg-type]
    assert tuned.ranges == {}
    assert scorer.measured == 1


def test_it_ends_in_time(quantized: Model, slot: RangeSlot) -> None:
    scorer = ScorerByFormula(slot.tensors[0])
    tuned = tune_ranges(Rescaler(quantized), scorer, [slot.tensors[0]], time_left=lambda: 0.0)  # type: ignore[arg-type]
    assert not tuned.finished
    assert tuned.ranges == {}
