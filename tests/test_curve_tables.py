"""Curves of accumulated error as tables: the metrics that they know, by hand, and against the models run in full."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_charts import rows_of as rows_of_chart
from test_mixed import built_in, results

from tflite_qdebug.analyses.cumulative_error import accumulated_error
from tflite_qdebug.cli.main import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Curve
from tflite_qdebug.record import Layer, Run
from tflite_qdebug.reports import run_charts
from tflite_qdebug.reports.sensitivity import CURVE_METRICS, curve_metric, curve_table, write_curves_csv
from tflite_qdebug.statistics import ErrorStatistics

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)


def curve(name: str, relative: bool = True) -> Curve:
    """Three nodes of 10 values each: errors of mean square 0.04, 0.25 and 4, two thirds of the values other than 0."""
    layers = [Layer(node, "ADD", i, node, i, i, (10,), "float32", None, None, f"{node}:{i}") for i, node in enumerate("abc")]
    statistics = ErrorStatistics(3)
    statistics.samples = 1
    statistics.sums[:, 0], statistics.sums[:, 2], statistics.sums[:, 3] = 10.0, [0.4, 2.5, 40.0], 400.0
    statistics.max_abs_error[:] = [0.5, 1.0, 3.0]
    statistics.relative_sums[:] = [[1.5, 6.0], [3.0, 6.0], [12.0, 6.0]] if relative else math.nan
    return Curve(name, (name,), (), Run("whole_model", layers, statistics))


@functools.cache
def of_example() -> Curve:
    _, made, samples = built_in()
    (found,) = accumulated_error(
        made.floats.graph.model.data, made.graph.model.data, samples, quantized=["all"], backend=BACKEND, progress=False
    )
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_last_point_of_a_curve_is_the_error_of_the_two_models_run_in_full() -> None:
    _, made, samples = built_in()
    (floats,), (values,) = (results(model.graph.model.data, samples) for model in (made.floats, made))
    floats, error = floats.astype(np.float64), values.astype(np.float64) - floats
    present = floats != 0
    columns = of_example().run.columns()
    outputs = [made.floats.graph.model.main.tensors[index].name for index in made.floats.graph.model.main.outputs]
    place = columns["node"].tolist().index(outputs[0])
    assert columns["mre"][place] == pytest.approx((np.abs(error[present]) / np.abs(floats[present])).mean(), rel=1e-4)
    assert columns["mse"][place] == pytest.approx((error**2).mean(), rel=1e-4)
    assert np.isfinite(columns["mre"]).all()


def test_a_curve_without_relative_errors_is_measured_again() -> None:
    _, made, samples = built_in()
    models = made.floats.graph.model.data, made.graph.model.data
    asked = {"quantized": ["all"], "backend": BACKEND, "progress": False}
    (again,) = accumulated_error(*models, samples, known=[of_example()], **asked)
    assert again is of_example()
    fields = of_example().run.to_dict()
    del fields["statistics"]["relative_sums"]
    old = dataclasses.replace(of_example(), run=Run.from_dict(fields))
    (measured,) = accumulated_error(*models, samples, known=[old], **asked)
    np.testing.assert_array_equal(measured.run.columns()["mre"], of_example().run.columns()["mre"])


def test_the_csv_has_every_metric_and_its_running_mean(tmp_path: Path) -> None:
    write_curves_csv([curve("all"), curve("old", relative=False)], tmp_path / "curves.csv", average=True)
    rows = rows_of(tmp_path / "curves.csv")
    assert [row["curve"] for row in rows] == ["all"] * 3 + ["old"] * 3
    assert [float(row["mre"]) for row in rows[:3]] == [0.25, 0.5, 2.0]
    assert [float(row["mre mean"]) for row in rows[:3]] == [0.25, 0.375, pytest.approx(2.75 / 3)]
    assert {row[name] for row in rows[3:] for name in ("mre", "mre mean")} == {"nan"}
    for each in (rows[:3], rows[3:]):
        assert [float(row["mse"]) for row in each] == pytest.approx([0.04, 0.25, 4.0])
        assert [float(row["rmse"]) for row in each] == pytest.approx([0.2, 0.5, 2.0])
        assert [float(row["sqnr_db"]) for row in each] == pytest.approx([30.0, 10 * math.log10(160.0), 10.0])
        assert [float(row["mse mean"]) for row in each] == pytest.approx([0.04, 0.145, 4.29 / 3])
    assert set(CURVE_METRICS) < set(rows[0])


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("mre", ["0.2500", "0.5000", "2.000"]),
        ("mse", ["0.04000", "0.2500", "4.000"]),
        ("chebyshev", ["0.5000", "1.000", "3.000"]),
        ("sqnr_db", ["30.00", "22.04", "10.00"]),
    ],
)
def test_the_table_shows_the_metric_that_is_asked_for(metric: str, shown: list[str]) -> None:
    header, rows = curve_table([curve("all")], metric)
    assert header == ["operator", "node", "all"]
    assert [float(row[2]) for row in rows] == [float(value) for value in shown]


@pytest.mark.parametrize("name", ["kl", "sqnr", ""])
def test_a_metric_that_curves_do_not_have_is_an_error(name: str) -> None:
    known = "sqnr_db, cosine, mse, mre, rmse, max_abs_error, chebyshev"
    with pytest.raises(OptionError, match=f"expected one of {known}") as caught:
        curve_metric(name)
    assert ("Did you mean 'sqnr_db'" in str(caught.value)) == (name == "sqnr")


def test_a_curve_that_did_not_measure_a_metric_is_not_shown_as_empty() -> None:
    with pytest.raises(OptionError, match="metric 'mre', which was not measured"):
        curve_table([curve("all"), curve("old", relative=False)], "mre")
    with pytest.raises(OptionError, match="metric 'mre', which was not measured"):
        run_charts.accumulated_error([curve("old", relative=False)], "mre")


def test_the_chart_shows_relative_errors() -> None:
    drawn = run_charts.accumulated_error([curve("all")], "mre")
    assert [row["value"] for row in rows_of_chart(drawn)[0]] == [0.25, 0.5, 2.0]
    assert drawn.to_dict()["layer"][0]["encoding"]["y"]["title"] == "MRE (ratio)"


def test_the_verb_shows_the_metric_and_refuses_others_before_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accumulated-error", str(tmp_path / "nothing"), "--rank-by", "flips"]) == 2
    assert "got metric 'flips' for curves" in capsys.readouterr().err
    ran = ["run", "example", "--limit", "2", "--output", str(tmp_path), "--kernels", "builtin", "--criterion", "mre"]
    assert main(ran) == 0
    assert "MRE" in capsys.readouterr().out
    measured = [float(row["mre"]) for row in rows_of(tmp_path / "layers.csv")]
    assert np.isfinite(measured).all()
    assert main(["accumulated-error", str(tmp_path), "--quantize", "all", "--rank-by", "mre", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["all"]
    written = rows_of(tmp_path / "accumulate_error" / "curves.csv")
    assert found["mre"] == [float(row["mre"]) for row in written]
    assert found["node"] == [row["node"] for row in written]
