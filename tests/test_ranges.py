"""Ranges from histograms against numpy on the values themselves, and against a slow calculation of the same measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import keras
import models
import numpy as np
import pytest

from tflite_qdebug import example
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.rescaled import scale_of_range
from tflite_qdebug.errors import OptionError
from tflite_qdebug.model import Model
from tflite_qdebug.remedies.ranges import METHODS, choose_ranges, needed_ranges, useful_ranges
from tflite_qdebug.statistics import Histogram


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def chosen(values: np.ndarray, method: str, share: float = 0.9999) -> tuple[float, float]:
    return choose_ranges({"x": counted(values)}, method, share=share)["x"]


SHAPES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda g: g.normal(1.0, 2.0, 20000),
    "laplace": lambda g: g.laplace(-0.5, 1.0, 20000),
    "heavy tail": lambda g: g.standard_t(2, 20000),
    "positive": lambda g: g.uniform(5.0, 9.0, 5000),
    "negative": lambda g: -g.exponential(3.0, 5000) - 0.1,
    "mostly zero": lambda g: np.maximum(g.normal(-1.5, 1.0, 20000), 0.0),
    "few": lambda g: g.normal(0.0, 1.0, 7),
    "two islands": lambda g: np.concatenate([g.normal(-50, 0.1, 300), g.normal(80, 0.1, 700)]),
    "one value": lambda g: np.full(100, 6.0),
    "zeros": lambda g: np.zeros(50),
    "tiny": lambda g: g.normal(0.0, 1e-9, 1000),
}


def values_of(shape: str, seed: int = 0) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(seed)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.99999, 0.9999, 0.999, 0.99, 0.5])
def test_a_percentile_is_numpys_to_within_a_bin(shape: str, share: float) -> None:
    values = values_of(shape)
    histogram = counted(values)
    width = 0.0 if histogram.exponent is None else 2.0**histogram.exponent
    low, high = chosen(values, "percentile", share)
    expected = np.quantile(values.astype(np.float64), [(1 - share) / 2, (1 + share) / 2])
    np.testing.assert_allclose([low, high], expected, rtol=0, atol=width * (1 + 1e-9))
    assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("shape", SHAPES)
def test_minmax_is_exact(shape: str) -> None:
    values = values_of(shape)
    assert chosen(values, "minmax") == (values.min(), values.max())


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    """Returns the mean squared error of 8 bits, by hand."""
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    levels = np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point
    return float(np.mean((levels * scale - values) ** 2))


@pytest.mark.parametrize("shape", ["normal", "laplace", "heavy tail", "negative", "mostly zero", "two islands"])
def test_least_squares_are_as_good_as_an_exhaustive_search(shape: str) -> None:
    values = values_of(shape)
    low, high = chosen(values, "mse")
    ends = [float(min(values.min(), 0)), float(max(values.max(), 0))]
    parts = np.linspace(1.0, 0.02, 50)
    rows, columns = (parts * end if end else np.zeros(1) for end in ends)
    best = min(rounding_error(values, a, b) for a in rows for b in columns)
    assert rounding_error(values, low, high) <= 1.03 * best
    assert ends[0] <= low <= 0 <= high <= ends[1]


def test_least_squares_leave_a_flat_distribution_whole_and_cut_a_lone_outlier() -> None:
    flat = np.random.default_rng(0).uniform(-1, 1, 50000)
    low, high = chosen(flat, "mse")
    assert low < -0.97
    assert high > 0.97
    # To clip 20 at 5 costs 225 once; with 256 levels to 20 each of three million others costs 0.0005 more.
    outlier = Histogram()
    outlier.add_weighted(np.append(np.random.default_rng(0).normal(0, 1, 10000), 20.0), np.append(np.full(10000, 300), 1))
    low, high = choose_ranges({"x": outlier}, "mse")["x"]
    assert high < 6
    assert low < -3


def divergence(histogram: Histogram, low: float, high: float) -> float:
    """Returns the measure of the talk on 8-bit inference, bin by bin."""
    edges, counts = histogram.edges(), histogram.counts.astype(float)
    width = edges[1] - edges[0]
    first, stop = round((low - edges[0]) / width), min(round((high - edges[0]) / width), len(counts))
    clipped, inside = counts[first:stop].copy(), counts[first:stop]
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[stop:].sum()
    scale = (high - low) / 255
    levels = np.floor((edges[first:stop] + width / 2) / scale + 0.5)
    rounded = np.zeros_like(clipped)
    for level in np.unique(levels):
        members = (levels == level) & (clipped > 0)
        rounded[members] = max(inside[levels == level].sum(), 1e-4) / max(members.sum(), 1)
    p, q = clipped / clipped.sum(), rounded / inside.sum()
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("shape", ["normal", "laplace", "heavy tail", "negative", "mostly zero"])
def test_entropy_is_the_least_divergence(shape: str) -> None:
    values = values_of(shape)
    histogram = counted(values)
    low, high = chosen(values, "entropy")
    edges = histogram.edges()
    ends = [min(float(values.min()), 0.0), max(float(values.max()), 0.0)]
    ends = [np.clip(end, edges[0], edges[-1]) if end else 0.0 for end in ends]
    ours = divergence(histogram, max(low, edges[0]), min(high, edges[-1]))
    parts = np.linspace(1.0, 0.15, 12)
    rows, columns = (parts * end if end else np.zeros(1) for end in ends)
    width = edges[1] - edges[0]
    others = [divergence(histogram, a, b) for a in rows for b in columns if b - a > 257 * width]
    assert ours <= min(others) + 0.1 * abs(min(others))


def test_zeros_do_not_hide_the_rest() -> None:
    generator = np.random.default_rng(1)
    some = np.abs(generator.normal(0, 1, 5000))
    with_zeros = np.concatenate([some, np.zeros(500000)])
    for method in ("mse", "entropy"):
        assert chosen(with_zeros, method) == chosen(some, method)
    # They are values like others where shares are counted.
    assert chosen(with_zeros, "percentile", 0.9)[1] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_holds_zero_or_stays_within_the_values(method: str) -> None:
    for shape in SHAPES:
        values = values_of(shape)
        low, high = chosen(values, method)
        assert min(values.min(), 0) <= low <= high <= max(values.max(), 0)
        assert np.isfinite([low, high]).all()
        assert isinstance(low, float)


# --------------------------------------------------------------------------------------------- what readers need


def hard_swish(values: np.ndarray) -> np.ndarray:
    return values * np.clip(values + 3, 0, 6) / 6


FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "HARD_SWISH": (hard_swish, 0.0),
    "RELU": (lambda x: np.maximum(x, 0), 0.0),
    "RELU6": (lambda x: np.clip(x, 0, 6), 0.0),
    "LOGISTIC": (lambda x: 1 / (1 + np.exp(-x)), 1 / 512),
    "TANH": (np.tanh, 1 / 256),
}


def convolved(activation: Callable[[object], object], again: bool = False) -> Model:
    """A convolution whose output an operator reads; ``again``: and another one too."""
    image = keras.Input((6, 6, 3), batch_size=1, name="image")
    first = keras.layers.Conv2D(4, 3, name="first")(image)
    moved = keras.ops.reshape(first, (1, 8, 8))
    rest = [keras.ops.sin(moved)] if again else []
    return load_float_model(keras.Model(image, [activation(moved), *rest])).model


@pytest.mark.parametrize("name", ["HARD_SWISH", "LOGISTIC", "TANH"])
def test_clipping_to_what_is_needed_changes_next_to_nothing(name: str) -> None:
    made = {"HARD_SWISH": keras.ops.hard_swish, "LOGISTIC": keras.ops.sigmoid, "TANH": keras.ops.tanh}[name]
    model = convolved(made)
    operator = next(operator for operator in model.main.operators if operator.name == name)
    needed = needed_ranges(model)
    ends = needed[model.main.tensors[operator.inputs[0]].name]
    convolution = next(operator for operator in model.main.operators if operator.name == "CONV_2D")
    assert needed[model.main.tensors[convolution.outputs[0]].name] == ends  # through the RESHAPE
    function, most = FUNCTIONS[name]
    values = np.linspace(-40, 40, 160001)
    difference = np.abs(function(np.clip(values, *ends)) - function(values)).max()
    assert difference <= most * (1 + 1e-9)
    # ... and anything narrower would.
    assert np.abs(function(np.clip(values, ends[0] + 0.01, ends[1])) - function(values)).max() > most


def test_another_reader_or_an_output_needs_everything() -> None:
    model = convolved(keras.ops.hard_swish, again=True)
    assert "HARD_SWISH" in {operator.name for operator in model.main.operators}
    assert needed_ranges(model) == {}
    vector = keras.Input((8,), batch_size=1, name="vector")
    dense = keras.layers.Dense(8, name="dense")(vector)
    both = load_float_model(keras.Model(vector, [dense, keras.ops.hard_swish(dense)])).model
    written = next(operator for operator in both.main.operators if operator.name == "FULLY_CONNECTED").outputs[0]
    assert both.main.tensors[written].name not in needed_ranges(both)


def test_two_readers_need_the_union() -> None:
    vector = keras.Input((8,), batch_size=1, name="vector")
    dense = keras.layers.Dense(8, name="dense")(vector)
    ends = [keras.ops.hard_swish(dense), keras.ops.tanh(dense)]
    model = load_float_model(keras.Model(vector, ends)).model
    written = next(operator for operator in model.main.operators if operator.name == "FULLY_CONNECTED").outputs[0]
    assert needed_ranges(model)[model.main.tensors[written].name] == (pytest.approx(-math.atanh(255 / 256)), math.inf)


def test_a_constant_bounds_what_a_maximum_lets_through() -> None:
    model = models.float_model("scalars").model
    largest = next(operator for operator in model.main.operators if operator.name == "MAXIMUM")
    read = next(index for index in largest.inputs if not model.main.tensors[index].is_constant)
    assert needed_ranges(model)[model.main.tensors[read].name] == (pytest.approx(0.2), math.inf)


def test_useful_ranges_hold_what_is_needed_after_the_zero_point_is_rounded() -> None:
    model = convolved(keras.ops.hard_swish)
    name = next(iter(needed_ranges(model)))
    for low, high in ((-20.0, 7.3), (-9.1, 0.4), (-3.5, 30.0), (-100.0, 1e-3)):
        got = useful_ranges(model, {name: (low, high)})[name]
        scale, zero_point = scale_of_range(*got, np.int8)
        assert scale * (-128 - zero_point) <= -3 * (1 - 1e-6)
        assert scale * (127 - zero_point) >= high * (1 - 1e-5)
        assert got[1] - got[0] <= (high + 3) * (1 + 3 / 255) + 3 / 254
    assert useful_ranges(model, {name: (-2.0, 5.0)}) == {name: (-2.0, 5.0)}
    assert useful_ranges(model, {name: (-9.0, -5.0)}) == {name: (-3.0, 0.0)}
    image = model.main.tensors[model.main.inputs[0]].name
    assert useful_ranges(model, {image: (-9.0, 5.0)}) == {image: (-9.0, 5.0)}


def test_values_that_nobody_tells_apart_cost_no_levels() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 20000), np.full(20000, -30.0)])
    histograms = {"x": counted(values)}
    assert choose_ranges(histograms, "mse")["x"][0] < -29
    for method in METHODS:
        low, high = choose_ranges(histograms, method, needed={"x": (-3.0, math.inf)})["x"]
        assert -3.1 < low <= -2.9
        assert high <= values.max() * 1.02


def test_mobilenets_hard_swish_needs_nothing_below_minus_three(shared_models: Path) -> None:
    model = Model(shared_models / "mobilenetv3_small" / "mobilenet_v3_small_float.tflite")
    assert set(needed_ranges(model).values()) == {(-3.0, math.inf)}
    assert len(needed_ranges(model)) == sum(operator.name == "HARD_SWISH" for operator in model.main.operators)


def test_the_ranges_of_a_calibrated_model() -> None:
    calibrated = load_float_model(example.float_model()).calibrate(example.representative_dataset(), "exposed")
    whole = choose_ranges(calibrated.histograms, "minmax")
    assert {name: ends for name, ends in whole.items() if name == "serving_default_image:0"} in (
        {"serving_default_image:0": (0.0, 1.0)},
        {},
    )
    for tensor in calibrated.model.main.tensors:
        if tensor.minimum is not None:
            assert whole[tensor.name] == (pytest.approx(tensor.minimum), pytest.approx(tensor.maximum))


# --------------------------------------------------------------------------------------------- wrong input


def test_wrong_requests_are_refused() -> None:
    histogram = counted(np.ones(3))
    with pytest.raises(OptionError, match="Did you mean 'entropy'"):
        choose_ranges({"x": histogram}, "entropie")
    for share in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(OptionError, match="got share"):
            choose_ranges({"x": histogram}, "percentile", share=share)
    with pytest.raises(OptionError, match="'x' is empty"):
        choose_ranges({"x": Histogram()}, "mse")
    broken = Histogram()
    broken.zeros, broken.minimum, broken.maximum = 3, math.nan, math.nan
    with pytest.raises(OptionError, match="expected finite values"):
        choose_ranges({"x": broken}, "minmax")
    model = models.float_model("chain").model
    with pytest.raises(OptionError, match="Did you mean"):
        useful_ranges(model, {model.main.tensors[-1].name + "x": (0.0, 1.0)})
