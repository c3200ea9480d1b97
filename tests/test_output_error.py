"""The error at a model's outputs: each metric against numpy by hand, and what random choices of samples say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.output_error import (
    BADNESS,
    COLUMNS,
    METRICS,
    REPLICATES,
    OutputErrors,
    is_probability,
    measure_output,
    metric_of_sums,
    pooled_sums,
    softmax,
)
from tflite_qdebug.record import decoded, encoded

Pair = tuple[np.ndarray, np.ndarray]


def probabilities(generator: np.random.Generator, rows: int = 1, classes: int = 5) -> Pair:
    logits = generator.normal(0, 2, (rows, classes))
    moved = logits + generator.normal(0, 0.7, logits.shape)
    return tuple(softmax(one).astype(np.float32) for one in (moved, logits))  # type: ignore[return-value]


def anything(generator: np.random.Generator) -> Pair:
    reference = generator.normal(0, 3, (2, 3, 4)).astype(np.float32)
    reference[0, 0, :2] = 0.0
    return (reference + generator.normal(0, 0.3, reference.shape)).astype(np.float32), reference


def measured(pairs: list[Pair]) -> OutputErrors:
    """Returns the errors of samples with one output."""
    errors = OutputErrors(["variant"], ["output"])
    for index, (values, reference) in enumerate(pairs):
        errors.add(index, measure_output(values, reference)[None, None])
    return errors


def by_hand(name: str, pairs: list[Pair]) -> float:
    """Returns a metric over all samples, pooled, in plain numpy."""
    values = np.concatenate([one.astype(np.float64).reshape(-1) for one, _ in pairs])
    reference = np.concatenate([one.astype(np.float64).reshape(-1) for _, one in pairs])
    error = values - reference
    if name == "cosine":
        return float(np.dot(values, reference) / (np.linalg.norm(values) * np.linalg.norm(reference)))
    if name == "mse":
        return float(np.mean(error**2))
    if name == "mre":
        present = reference != 0
        return float(np.mean(np.abs(error[present]) / np.abs(reference[present])))
    if name == "sqnr_db":
        return float(10 * np.log10(np.sum(reference**2) / np.sum(error**2)))
    if name == "chebyshev":
        return float(np.max(np.abs(error)))
    rows = [(q, p) for one, other in pairs for q, p in zip(_rows(one), _rows(other), strict=True)]
    if name == "flips":
        return float(np.mean([np.argmax(q) != np.argmax(p) for q, p in rows]))
    total = 0.0
    for q, p in rows:
        for a, b in zip(q.astype(np.float64), p.astype(np.float64), strict=True):
            a, b = max(a, 1e-7), max(b, 1e-7)
            total += b * np.log(b / a)
    return total / len(rows)


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


# -- metrics ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_of_probabilities_is_pooled_over_samples(name: str) -> None:
    generator = np.random.default_rng(1)
    pairs = [probabilities(generator, rows) for rows in (1, 3, 2, 5)]
    assert float(measured(pairs).metric(name)[0, 0]) == pytest.approx(by_hand(name, pairs), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "kl"])
def test_each_metric_of_any_values_is_pooled_over_samples(name: str) -> None:
    generator = np.random.default_rng(2)
    pairs = [anything(generator) for _ in range(7)]
    errors = measured(pairs)
    assert float(errors.metric(name)[0, 0]) == pytest.approx(by_hand(name, pairs), rel=1e-9)
    assert "kl" not in errors.names()
    with pytest.raises(OptionError, match="expected one of cosine"):
        errors.metric("kl")


def test_ratios_are_of_sums_and_no_means_of_ratios() -> None:
    weak = np.full((1, 4), 0.01, np.float32), np.full((1, 4), 0.02, np.float32)
    strong = np.full((1, 4), 100.0, np.float32), np.full((1, 4), 101.0, np.float32)
    pooled = float(measured([weak, strong]).metric("sqnr_db")[0, 0])
    mean = np.mean([by_hand("sqnr_db", [pair]) for pair in (weak, strong)])
    assert pooled == pytest.approx(by_hand("sqnr_db", [weak, strong]), rel=1e-9)
    assert abs(pooled - mean) > 10


def test_a_user_asks_for_a_metric_that_there_is_not() -> None:
    with pytest.raises(OptionError, match=r"Did you mean 'cosine'\?"):
        measured([anything(np.random.default_rng(0))]).metric("cosin")


def test_one_value_has_no_flips() -> None:
    errors = measured([(np.ones((3, 1), np.float32), np.zeros((3, 1), np.float32))])
    assert "flips" not in errors.names()


def test_is_probability() -> None:
    assert is_probability(np.array([[0.25, 0.75], [1.0, 0.0]], np.float32))
    assert is_probability(np.array([0.252, 0.752], np.float32))  # give or take 1 %
    assert not is_probability(np.array([0.3, 0.75], np.float32))
    assert not is_probability(np.array([-0.25, 1.25], np.float32))
    assert not is_probability(np.array([[1.0]], np.float32))
    assert not is_probability(np.float32(1.0))
    assert not is_probability(np.zeros((0, 4), np.float32))
    assert not is_probability(np.array([np.nan, 1.0], np.float32))


def test_softmax_by_hand_and_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0]])), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4 - 50], np.float32)), [1.0, np.exp(-50)])


def test_divergence_of_a_class_that_was_thought_impossible() -> None:
    values, reference = np.array([[1.0, 0.0]], np.float32), np.array([[0.5, 0.5]], np.float32)
    expected = 0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-7)
    assert float(measured([(values, reference)]).metric("kl")[0, 0]) == pytest.approx(expected)


def test_outputs_of_other_sizes_are_no_pair() -> None:
    with pytest.raises(ModelError, match="one of 6"):
        measure_output(np.zeros(1, np.float32), np.zeros((2, 3), np.float32))


def test_an_empty_output_adds_nothing() -> None:
    row = measure_output(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert not row.any()


# -- without signal, and broken --------------------------------------------------------------------------------------------


def test_an_error_without_signal() -> None:
    errors = measured([(np.full((1, 3), 0.5, np.float32), np.zeros((1, 3), np.float32))])
    got = {name: float(errors.metric(name)[0, 0]) for name in errors.names()}
    assert got["sqnr_db"] == -np.inf
    assert got["cosine"] == 0.0
    assert got["mse"] == 0.25
    assert np.isnan(got["mre"])
    for name in ("sqnr_db", "cosine", "mse"):
        assert errors.badness(name)[0] > measured([anything(np.random.default_rng(0))]).badness(name)[0] or name == "mse"


def test_neither_signal_nor_error_is_nothing_bad() -> None:
    zeros = np.zeros((1, 3), np.float32)
    errors = measured([(zeros, zeros), (zeros, zeros)])
    for name in ("sqnr_db", "cosine", "mre"):
        assert np.isnan(errors.metric(name)[0, 0])
        assert errors.badness(name)[0] == -np.inf
        assert np.isnan(errors.worst(name)[0])
        low, high = errors.interval(name)
        assert np.isnan(low).all()
        assert np.isnan(high).all()
    assert errors.metric("mse")[0, 0] == 0.0


def test_no_error_at_all() -> None:
    reference = np.array([[1.0, -2.0]], np.float32)
    errors = measured([(reference, reference)] * 3)
    assert errors.metric("sqnr_db")[0, 0] == np.inf
    assert errors.metric("cosine")[0, 0] == 1.0
    low, high = errors.interval("sqnr_db")
    assert low[0, 0] == high[0, 0] == np.inf
    assert errors.badness("sqnr_db")[0] == -np.inf


def test_all_signal_lost_is_no_cosine() -> None:
    reference = np.array([[0.1, -0.7, 1 / 3]], np.float32)
    assert measured([(np.zeros_like(reference), reference)]).metric("cosine")[0, 0] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["cosine", "mse", "mre", "sqnr_db", "chebyshev", "flips"])
def test_what_is_not_a_number_is_the_worst_of_all(name: str, broken: float) -> None:
    reference = np.array([[1.0, 2.0, -3.0]], np.float32)
    outputs = [reference + 5.0, reference, np.array([[1.0, broken, -3.0]], np.float32)]
    errors = OutputErrors(["bad", "sound", "broken"], ["output"])
    for index in range(4):
        errors.add(index, np.stack([measure_output(values, reference)[None] for values in outputs]))
    assert errors.badness(name)[2] == np.inf
    assert errors.ranks(name)[2].tolist() == [1, 1, 1]
    assert np.argsort(-errors.badness(name), kind="stable")[0] == 2


def test_an_output_that_a_metric_does_not_apply_to_does_not_count() -> None:
    # The first output has neither signal nor error; the second has both.
    reference, zeros = np.array([[1.0, 2.0]], np.float32), np.zeros((1, 2), np.float32)
    errors = OutputErrors(["one"], ["silent", "loud"])
    errors.add(0, np.stack([measure_output(zeros, zeros), measure_output(reference * 1.1, reference)])[None])
    expected = 10 * np.log10(1 / 0.01)
    assert errors.badness("sqnr_db")[0] == pytest.approx(-expected, abs=1e-4)
    assert errors.worst("sqnr_db")[0] == pytest.approx(expected, abs=1e-4)


def test_the_worst_output_counts() -> None:
    generator = np.random.default_rng(5)
    reference = generator.normal(size=(1, 50)).astype(np.float32)
    errors = OutputErrors(["one", "two"], ["a", "b"])
    errors.add(
        0, np.array([[measure_output(reference * (1 + e), reference) for e in row] for row in [[0.01, 0.1], [0.3, 0.02]]])
    )
    for name in ("sqnr_db", "mse", "chebyshev", "mre"):
        values = errors.metric(name)
        np.testing.assert_allclose(errors.worst(name), [values[0, 1], values[1, 0]])
        np.testing.assert_allclose(errors.badness(name), BADNESS[name] * errors.worst(name))


def test_the_interval_is_that_of_the_worst_output() -> None:
    errors = OutputErrors(["one", "two"], ["a", "b"])
    for index in range(40):
        generator = np.random.default_rng(index)
        reference = generator.normal(size=(1, 50)).astype(np.float32)
        spread = generator.uniform(0.5, 1.5)
        sizes = [[0.01, 0.1 * spread], [0.3 * spread, 0.02]]
        errors.add(index, np.array([[measure_output(reference * (1 + size), reference) for size in row] for row in sizes]))
    for name in ("sqnr_db", "mse", "cosine"):
        low, high = errors.interval(name)
        worst_low, worst_high = errors.worst_interval(name)
        np.testing.assert_array_equal(worst_low, [low[0, 1], low[1, 0]])
        np.testing.assert_array_equal(worst_high, [high[0, 1], high[1, 0]])


# -- sums ------------------------------------------------------------------------------------------------------------------


def test_outputs_pooled() -> None:
    generator = np.random.default_rng(3)
    pairs = [anything(generator) for _ in range(3)]
    rows = np.stack([measure_output(*pair) for pair in pairs])
    for name in ("cosine", "mse", "mre", "sqnr_db", "chebyshev", "flips"):
        assert float(metric_of_sums(name, pooled_sums(rows))) == pytest.approx(by_hand(name, pairs), rel=1e-9)


def assert_same(first: OutputErrors, second: OutputErrors) -> None:
    assert (first.variants, first.outputs, first.task_metrics, first.samples) == (
        second.variants, second.outputs, second.task_metrics, second.samples,
    )  # fmt: skip
    for name in ("weights", "sums", "replicates", "task_sums", "task_replicates"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-12)


def portion(indices: range, task: bool = True) -> OutputErrors:
    errors = OutputErrors(["a", "b"], ["output"], ["score"] if task else [])
    for index in indices:
        values, reference = anything(np.random.default_rng(index))
        rows = np.stack([measure_output(v, reference)[None] for v in (values, 2 * values)])
        errors.add(index, rows, np.array([[index % 3], [1.0]]) if task else None)
    return errors


def test_parts_equal_the_whole() -> None:
    from contracts import check_mergeable

    parts = [portion(range(4)), portion(range(4, 5)), portion(range(5, 11))]
    check_mergeable(lambda: OutputErrors(["a", "b"], ["output"], ["score"]), parts, portion(range(11)), assert_same)


def test_only_errors_of_the_same_variants_can_be_added() -> None:
    with pytest.raises(ModelError, match="expected the same"):
        portion(range(2)) + portion(range(2, 4), task=False)


def test_joined_and_selected_variants_keep_their_numbers() -> None:
    first, second = portion(range(6)), portion(range(6))
    both = first.joined(second)
    assert both.variants == ("a", "b", "a", "b")
    assert_same(both.select([0, 1]), first)
    assert_same(both.select([3]), second.select([1]))


def test_joining_needs_the_same_samples() -> None:
    with pytest.raises(ModelError, match="over 6 samples"):
        portion(range(6)).joined(portion(range(5)))
    with pytest.raises(ModelError, match="expected the same samples"):
        portion(range(6)).joined(portion(range(1, 7)))


def test_task_metrics_are_means() -> None:
    errors = portion(range(7))
    assert errors.names()[-1] == "score"
    np.testing.assert_allclose(errors.metric("score"), [[np.mean([0, 1, 2, 0, 1, 2, 0])], [1.0]])
    assert errors.badness("score").tolist() == pytest.approx([-6 / 7, -1.0])  # small is bad, as accuracy
    assert errors.ranks("score", large_is_bad=True)[:, 0].tolist() == [2, 1]
    assert errors.ranks("score")[:, 0].tolist() == [1, 2]


def test_a_task_metric_that_gave_nan_is_the_worst() -> None:
    errors = OutputErrors(["a", "b"], ["output"], ["score"])
    for index in range(5):
        errors.add(index, np.zeros((2, 1, COLUMNS)), np.array([[0.1], [np.nan if index == 2 else 1.0]]))
    assert errors.ranks("score").tolist() == [[2, 1, 2], [1, 1, 2]]
    # Choices without that sample know nothing of it.
    assert 0 < np.isnan(errors.task_replicates[:, 1, 0]).mean() < 0.9


def test_a_task_metric_must_not_be_called_like_one_of_ours() -> None:
    with pytest.raises(OptionError, match="'mse'"):
        OutputErrors(["a"], ["output"], ["psnr", "mse"])


# -- random choices of samples ---------------------------------------------------------------------------------------------


def spread_of(sample_error: Callable[[np.random.Generator], float], count: int, seed: int) -> OutputErrors:
    """Returns the errors of samples with one value each, whose squared error is drawn."""
    generator = np.random.default_rng(seed)
    errors = OutputErrors(["variant"], ["output"])
    for index in range(count):
        reference = np.ones((1, 1), np.float32)
        errors.add(index, measure_output(reference + np.float32(sample_error(generator)), reference)[None, None])
    return errors


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Errors of standard deviation 0.5: the mean squared error of all samples that there could be is 0.25.
    inside = 0
    for seed in range(120):
        low, high = spread_of(lambda g: g.normal(0, 0.5), 60, seed).interval("mse", 0.9)
        inside += bool(low[0, 0] <= 0.25 <= high[0, 0])
    # 90 % of 120 are 108; with so few samples a bootstrap falls short by some percent.
    assert 92 <= inside <= 118


def test_intervals_shrink_with_the_root_of_the_samples_and_grow_with_confidence() -> None:
    widths = []
    for count in (25, 400):
        low, high = spread_of(lambda g: g.normal(0, 0.5), count, 3).interval("mse", 0.9)
        widths.append(float(high[0, 0] - low[0, 0]))
    assert 2.0 < widths[0] / widths[1] < 8.0  # 4, give or take
    errors = spread_of(lambda g: g.normal(0, 0.5), 25, 3)
    narrow, wide = (errors.interval("mse", confidence) for confidence in (0.5, 0.95))
    assert wide[0] < narrow[0] <= errors.metric("mse") <= narrow[1] < wide[1]


def test_the_same_samples_give_the_same_intervals() -> None:
    first, second = portion(range(8)), portion(range(8))
    np.testing.assert_array_equal(first.interval("cosine"), second.interval("cosine"))


def test_choices_are_of_poisson() -> None:
    errors = portion(range(40))
    # Each choice has 40 samples on average, with the deviation of a Poisson distribution of that mean.
    assert errors.weights.mean() == pytest.approx(40, abs=3 * np.sqrt(40 / REPLICATES))
    assert errors.weights.std() == pytest.approx(np.sqrt(40), rel=0.25)


def test_ranks_of_variants_that_lie_apart_are_certain_and_of_alike_ones_are_not() -> None:
    generator = np.random.default_rng(4)
    errors = OutputErrors(["small", "huge", "alike 1", "alike 2"], ["output"])
    for index in range(40):
        reference = generator.normal(0, 1, (1, 8)).astype(np.float32)
        scales = (0.001, 1.0, *((0.1, 0.2) if index % 2 else (0.2, 0.1)))
        errors.add(index, np.stack([
            measure_output((reference + generator.normal(0, s, reference.shape)).astype(np.float32), reference)[None]
            for s in scales
        ]))  # fmt: skip
    ranks = errors.ranks("mse")
    assert ranks[1].tolist() == [1, 1, 1]
    assert ranks[0].tolist() == [4, 4, 4]
    assert sorted(ranks[2:, 0].tolist()) == [2, 3]
    assert ranks[2:, 1:].tolist() == [[2, 3], [2, 3]]
    # The least metric is the worst of SQNR and cosine.
    assert errors.ranks("sqnr_db")[:, 0].tolist() == errors.ranks("cosine")[:, 0].tolist() == ranks[:, 0].tolist()


def test_one_sample_says_nothing_of_others() -> None:
    errors = portion(range(1))
    low, high = errors.interval("mse")
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert errors.ranks("mse").tolist() == [[2, 1, 2], [1, 1, 2]]


def test_no_sample_at_all() -> None:
    errors = OutputErrors(["a", "b"], ["output"])
    assert np.isnan(errors.metric("mse")).all()
    assert np.isnan(errors.interval("mse")).all()
    assert errors.ranks("mse").shape == (2, 3)


def test_memory_does_not_grow_with_samples() -> None:
    few, many = portion(range(25)), portion(range(100))
    assert few.replicates.nbytes == many.replicates.nbytes
    assert len(json.dumps(encoded(many.to_dict()))) < 1.2 * len(json.dumps(encoded(few.to_dict())))


# -- saving ----------------------------------------------------------------------------------------------------------------


def restored(errors: OutputErrors) -> OutputErrors:
    return OutputErrors.from_dict(decoded(json.loads(json.dumps(encoded(errors.to_dict()), allow_nan=False))))


def assert_identical(first: OutputErrors, second: OutputErrors) -> None:
    for name in ("weights", "sums", "replicates", "task_sums", "task_replicates"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.variants, first.outputs, first.task_metrics, first.samples) == (
        second.variants, second.outputs, second.task_metrics, second.samples,
    )  # fmt: skip


@pytest.mark.parametrize("task", [True, False])
def test_saved_and_loaded_it_is_the_same_to_the_last_bit(task: bool) -> None:
    errors = portion(range(9), task)
    assert_identical(restored(errors), errors)
    assert_identical(restored(OutputErrors(["a"], ["output"])), OutputErrors(["a"], ["output"]))


def test_what_was_saved_half_way_goes_on_as_if_it_had_not_been() -> None:
    half = restored(portion(range(5)))
    rest = portion(range(5, 9))
    assert_same(half + rest, portion(range(9)))


def test_small_errors_survive_saving() -> None:
    # A cosine is a difference of sums: 1e-9 away from 1 would drown in the rounding of float32.
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 1, (1, 1000))
    errors = OutputErrors(["variant"], ["output"])
    for index in range(3):
        noise = generator.normal(0, 1e-5, reference.shape)
        errors.add(index, measure_output(reference + noise, reference)[None, None])
    low, high = restored(errors).interval("cosine")
    assert 1e-11 < 1 - float(high[0, 0]) <= 1 - float(low[0, 0]) < 1e-9


def test_values_beyond_float32_survive_saving() -> None:
    for scale in (1e30, 1e-30):
        reference = np.array([[1.0, 2.0]], np.float32) * np.float32(scale)
        errors = OutputErrors(["variant"], ["output"])
        for index in range(3):
            errors.add(index, measure_output(reference * np.float32(1.1), reference)[None, None])
        low, high = restored(errors).interval("sqnr_db")
        assert float(low[0, 0]) == pytest.approx(20.0, abs=0.01)
        assert float(high[0, 0]) == pytest.approx(20.0, abs=0.01)


def test_nan_survives_saving() -> None:
    errors = OutputErrors(["variant"], ["output"])
    for index in range(2):
        errors.add(index, measure_output(np.array([np.nan, 1.0]), np.array([1.0, 2.0]))[None, None])
    assert_identical(restored(errors), errors)


@pytest.mark.parametrize(
    "change",
    [
        {"replicates": "AAAA"},
        {"replicates": "!"},
        {"sums": [[1.0]]},
        {"weights": [1.0, 2.0]},
        {"samples": "many"},
    ],
)
def test_broken_data_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # of which ModelError is one
        OutputErrors.from_dict({**portion(range(3)).to_dict(), **change})
