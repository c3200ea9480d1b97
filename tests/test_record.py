"""A run as data: saved, loaded, merged and ordered, with the numbers that JSON has no word for."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts import check_mergeable

from tflite_qdebug.errors import ModelError, OptionError, OutputError
from tflite_qdebug.kernels import COLUMNS
from tflite_qdebug.record import FORMAT_VERSION, Layer, Run, write_atomically
from tflite_qdebug.statistics import ErrorStatistics, SampleSums

COUNT = 64


def layer(name: str, scale: float | None = 0.5, dtype: str = "int8") -> Layer:
    return Layer(
        name, "CONV_2D", 0, name, 1, 2, (1, 8, 8), dtype, scale, None if scale is None else 3, f"NumericVerify/{name}:1"
    )


def sample(*rmse: float, peak: float = 1.0) -> SampleSums:
    """A sample in which each layer has the root mean square error given, exactly where that is a power of two."""
    rows = np.zeros((len(rmse), COLUMNS))
    rows[:, 0] = COUNT
    rows[:, 2] = COUNT * np.square(rmse)
    rows[:, 3] = COUNT * 4.0
    rows[:, 7], rows[:, 8], rows[:, 11] = peak, rmse, peak
    return SampleSums(rows)


def run_of(samples: list[tuple[int, SampleSums]], layers: list[Layer], **parts: Any) -> Run:
    statistics = ErrorStatistics(len(layers))
    for index, sums in samples:
        statistics.add(index, sums)
    return Run("per_layer", layers, statistics, **parts)


def same_runs(first: Run, second: Run) -> None:
    ours, theirs = first.to_dict(), second.to_dict()
    for fields in (ours, theirs):
        fields.pop("provenance")  # says of which parts it was merged
    assert json.dumps(ours) == json.dumps(theirs)


def three_layers() -> list[Layer]:
    return [layer("a"), layer("b"), layer("c")]


def test_a_run_survives_its_file_with_nan_and_infinity(tmp_path: Path) -> None:
    run = run_of(
        [(0, sample(1.0, math.nan, math.inf)), (1, sample(0.5, 0.25, 0.0))],
        three_layers(),
        metrics={"mine": np.array([math.nan, math.inf, -math.inf])},
        model_metrics={"top1": math.nan},
        provenance={"kernels": "builtin", "nested": {"list": [1, 2.5, None]}},
        notes=["a note"],
    )
    path = tmp_path / "new folder" / "run.json"
    run.save(path)
    loaded = Run.load(path)
    assert json.dumps(loaded.to_dict()) == json.dumps(run.to_dict())
    assert loaded.layers == run.layers
    assert loaded.statistics.samples == 2
    for name, values in run.columns().items():
        np.testing.assert_array_equal(values, loaded.columns()[name], err_msg=name)
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_run_with_its_worst_sample_before_any_survives(tmp_path: Path) -> None:
    run = run_of([], three_layers())
    run.save(tmp_path / "run.json")
    assert json.dumps(Run.load(tmp_path / "run.json").to_dict()) == json.dumps(run.to_dict())


def test_runs_merge() -> None:
    layers = three_layers()
    samples = [(index, sample(2.0**-index, 1.0, 0.5)) for index in range(6)]
    parts = [run_of(samples[:1], layers), run_of(samples[1:4], layers), run_of(samples[4:], layers)]
    check_mergeable(lambda: run_of([], layers), parts, run_of(samples, layers), same_runs)


def test_metrics_merge_by_their_number_of_samples_and_leave_nan_out() -> None:
    layers = [layer("a"), layer("b")]
    first = run_of(
        [(0, sample(1.0, 1.0))], layers, metrics={"m": np.array([1.0, math.nan])}, model_metrics={"top1": 0.0}, notes=["x", "y"]
    )
    second = run_of(
        [(i, sample(1.0, 1.0)) for i in range(1, 4)], layers, metrics={"m": np.array([5.0, 7.0])}, model_metrics={"top1": 1.0},
        notes=["y", "z"],
    )  # fmt: skip
    merged = first + second
    assert merged.metrics["m"].tolist() == [4.0, 7.0]  # (1 * 1 + 3 * 5) / 4
    assert merged.model_metrics == {"top1": 0.75}
    assert merged.notes == ["x", "y", "z"]


def test_runs_of_different_models_do_not_merge() -> None:
    run = run_of([(0, sample(1.0))], [layer("a")])
    other = run_of([(0, sample(1.0))], [layer("b")])
    with pytest.raises(ModelError, match="of different debug models"):
        run + other
    whole = Run("whole_model", run.layers, run.statistics)
    with pytest.raises(ModelError, match="per_layer run of 1 layers with a whole_model run"):
        run + whole


def test_runs_with_different_metrics_do_not_merge() -> None:
    plain = run_of([(0, sample(1.0))], [layer("a")])
    with pytest.raises(ModelError, match=r"different metrics: got \['mine'\] and \[\]"):
        run_of([(1, sample(1.0))], [layer("a")], metrics={"mine": np.array([1.0])}) + plain
    with pytest.raises(ModelError, match=r"got \[\] and \['top1'\]"):
        plain + run_of([(1, sample(1.0))], [layer("a")], model_metrics={"top1": 1.0})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": FORMAT_VERSION + 1}, f"version {FORMAT_VERSION + 1}, expected a saved run of format version"),
        ({"format_version": 0}, "version 0"),
        ({"format": "something"}, "got 'something'"),
        ({"layers": None}, "is not a saved run"),
        ({"layers": [{"node": "a"}]}, "is not a saved run"),
        ({"statistics": {}}, "is not a saved run"),
    ],
)
def test_files_of_another_format_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    fields = {**run_of([], [layer("a")]).to_dict(), **change}
    fields["statistics"] = change.get("statistics", {})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=said):
        Run.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null", b'{"format": 1}'])
def test_what_is_no_run_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        Run.load(path)
    with pytest.raises(ModelError, match="cannot read the run"):
        Run.load(tmp_path / "none.json")


def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    run = run_of([], [layer("a")])
    (tmp_path / "file").write_text("a file, no folder")
    with pytest.raises(OutputError, match="cannot write"):
        run.save(tmp_path / "file" / "run.json")
    with pytest.raises(OutputError, match="cannot write"):
        run.save("/proc/no/such/place.json")


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_written_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_worst_puts_nan_and_infinity_first_and_what_has_no_scale_last() -> None:
    layers = [
        layer("small", 1.0),
        layer("large", 1.0),
        layer("nan", 1.0),
        layer("float", None, "float32"),
        layer("coarse", 4.0),
    ]
    run = run_of([(0, sample(0.5, 2.0, math.nan, 8.0, 2.0))], layers)
    names = [layers[position].node for position in run.worst("rmse_over_scale")]
    assert names == ["nan", "large", "small", "coarse", "float"]  # coarse: 2 / 4 steps, as small, which comes first
    assert [layers[position].node for position in run.worst("rmse")][:2] == ["nan", "float"]
    assert [layers[position].node for position in run.worst("sqnr_db", 3)] == ["nan", "float", "large"]
    assert len(run.worst(count=2)) == 2


def test_an_infinite_error_counts_as_broken() -> None:
    layers = [layer("a"), layer("b")]
    assert run_of([(0, sample(4.0, math.inf))], layers).worst("rmse") == [1, 0]


@pytest.mark.parametrize("criterion", ["rmsee", "node", ""])
def test_an_unknown_criterion_is_refused(criterion: str) -> None:
    with pytest.raises(OptionError, match="expected one of") as caught:
        run_of([], [layer("a")]).worst(criterion)
    if criterion == "rmsee":
        assert "Did you mean 'rmse'" in str(caught.value)


def test_columns_by_hand() -> None:
    run = run_of([(0, sample(0.25, 1.0)), (7, sample(0.75, 1.0))], [layer("a", 0.5), layer("b", None, "float32")])
    columns = run.columns()
    pooled = math.sqrt((0.25**2 + 0.75**2) / 2)
    assert columns["rmse"][0] == pytest.approx(pooled)
    assert columns["rmse_over_scale"][0] == pytest.approx(pooled / 0.5)
    assert np.isnan(columns["rmse_over_scale"][1])
    assert columns["range"][0] == 0.5 * 255
    assert columns["sqnr_db"][0] == pytest.approx(10 * math.log10(4.0 / pooled**2))
    assert columns["worst_sample"].tolist() == [7, 0]
    assert columns["worst_rmse"].tolist() == [0.75, 1.0]
    assert columns["num_elements"].tolist() == [2 * COUNT, 2 * COUNT]


def test_the_mean_relative_error_ranks_where_it_was_measured_and_is_refused_elsewhere() -> None:
    layers = three_layers()
    run = run_of([(0, sample(0.25, 1.0, 0.5))], layers)
    assert run.columns()["mse"].tolist() == [0.0625, 1.0, 0.25]
    assert np.isnan(run.columns()["mre"]).all()
    with pytest.raises(OptionError, match="criterion 'mre', which was not measured"):
        run.worst("mre")
    with pytest.raises(OptionError, match="metric 'mre', which was not measured"):
        run.numbers("mre", "metric")
    measured = sample(0.25, 1.0, 0.5)
    measured.relative_sums = np.array([[8.0, 16.0], [2.0, 32.0], [0.0, 0.0]])  # of the last all float values are 0
    ranked = run_of([(0, measured)], layers)
    np.testing.assert_array_equal(ranked.columns()["mre"], [0.5, 0.0625, math.nan])
    assert ranked.worst("mre") == [0, 1, 2]
    assert ranked.worst("mse") == [1, 2, 0]
    assert ranked.numbers("rmse").tolist() == [0.25, 1.0, 0.5]


def test_a_run_saved_before_there_was_a_relative_error_loads(tmp_path: Path) -> None:
    measured = sample(0.25)
    measured.relative_sums = np.array([[8.0, 16.0]])
    fields = run_of([(0, measured)], [layer("a")]).to_dict()
    assert Run.from_dict(fields).columns()["mre"].tolist() == [0.5]
    del fields["statistics"]["relative_sums"]
    (tmp_path / "run.json").write_text(json.dumps(fields))
    loaded = Run.load(tmp_path / "run.json")
    assert np.isnan(loaded.columns()["mre"]).all()
    assert loaded.columns()["rmse"].tolist() == [0.25]
    assert np.isnan((loaded + run_of([(1, measured)], [layer("a")])).columns()["mre"]).all()


def test_tensorflow_statistics_are_means_over_samples() -> None:
    run = run_of([(0, sample(0.25, peak=1.0)), (1, sample(0.75, peak=3.0))], [layer("a")], metrics={"mine": np.array([9.0])})
    row = run.tensorflow_statistics()["NumericVerify/a:1"]
    expected = {"num_elements": 64.0, "stddev": 0.5, "mean_error": 0.0, "max_abs_error": 2.0, "mean_squared_error": 0.3125}
    assert row == {**expected, "mine": 9.0}


def test_severity_ranks_layers_of_all_kinds() -> None:
    layers = [layer("coarse"), layer("float", None, "float32"), layer("fine", 1e-3, "int16")]
    run = run_of([(0, sample(0.2, 0.1, 0.3))], layers)
    statistics = run.statistics
    error = np.maximum(statistics.rmse, statistics.max_abs_error / 6)
    step = np.array([layers[0].scale, np.sqrt(statistics.sums[1, 3] / statistics.sums[1, 0]) / 42, 0.256])
    np.testing.assert_allclose(run.severity(), error / step)
    assert run.worst() == [int(position) for position in np.argsort(-error / step)]
