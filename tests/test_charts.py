"""The charts: that they show the numbers of the findings, and that they become files."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import made_findings
import made_outcome
import numpy as np
import pytest

from tflite_qdebug.errors import OptionError, OutputError
from tflite_qdebug.findings import Curve, Findings
from tflite_qdebug.record import Run
from tflite_qdebug.reports import charts, drawing, run_charts, value_charts

pytest.importorskip("altair")
pytest.importorskip("vl_convert")


@pytest.fixture(scope="module")
def findings() -> Findings:
    return made_findings.full()


def rows_of(chart: Any) -> list[list[dict[str, Any]]]:
    """Returns the rows of each layer of a chart."""
    found = drawing.specification(chart)
    shared = found.get("data", {}).get("values")
    layers = found.get("layer", [found])
    return [layer.get("data", {}).get("values", shared) for layer in layers]


def test_every_chart_has_a_title_and_axes_with_titles(findings: Findings) -> None:
    drawn = dict(charts.all_charts(findings))
    assert len(drawn) > 30
    for name, chart in drawn.items():
        found = drawing.specification(chart)
        assert found["title"]["text"], name
        encodings = [layer["encoding"] for layer in found.get("layer", [found])]
        for axis in ("x", "y"):
            titles = [encoding[axis].get("title") for encoding in encodings if isinstance(encoding.get(axis), dict)]
            assert any(titles), (name, axis)


def test_the_front_of_a_search_is_among_the_charts(findings: Findings) -> None:
    fixed = dataclasses.replace(findings, fix=made_outcome.large())
    names = {name for name, _ in charts.all_charts(fixed)} - {name for name, _ in charts.all_charts(findings)}
    assert names == {"fix/front_size", "fix/front_latency"}


def test_every_chart_is_valid(findings: Findings) -> None:
    """They are made without Altair's checks, so this is where they are checked."""
    for _, chart in charts.all_charts(findings):
        with drawing.load_altair().data_transformers.enable(max_rows=None):
            assert chart.to_dict(validate=True)["$schema"]


def test_altair_checks_as_before_once_a_chart_is_made(findings: Findings) -> None:
    altair = drawing.load_altair()
    run_charts.layer_errors(findings.run)
    with pytest.raises(OptionError):
        run_charts.accumulated_error([])
    with pytest.raises(altair.utils.schemapi.SchemaValidationError):
        altair.Scale(zero="no")


def test_the_curve_holds_the_values_of_the_run(findings: Findings) -> None:
    curve = findings.curves[0]
    rows = [row for row in rows_of(run_charts.accumulated_error(findings.curves))[0] if row["curve"] == "all"]
    expected = curve.run.columns()["sqnr_db"]
    assert [row["node"] for row in rows] == [layer.node for layer in curve.run.layers]
    np.testing.assert_allclose([row["value"] for row in rows], expected, rtol=1e-4)


def test_a_running_mean_is_that_of_a_node_and_those_before_it(findings: Findings) -> None:
    rows = rows_of(run_charts.accumulated_error(findings.curves[:1], mean_over=3))[0]
    values = findings.curves[0].run.columns()["sqnr_db"]
    by_hand = [np.mean(values[max(0, place - 2) : place + 1]) for place in range(len(values))]
    np.testing.assert_allclose([row["value"] for row in rows], by_hand, rtol=1e-4)


def test_curves_with_other_layers_keep_one_order(findings: Findings) -> None:
    run = findings.run
    few = [0, 3, 7, 20]
    part = Run("whole_model", [run.layers[place] for place in few], run.statistics.select(few))
    rows = rows_of(run_charts.accumulated_error([Curve("few", (), (), part), findings.curves[0]]))[0]
    places = {row["node"]: row["position"] for row in rows if row["curve"] == "all"}
    assert [places[row["node"]] for row in rows if row["curve"] == "few"] == few


def test_an_infinite_sqnr_is_left_out_of_a_curve(findings: Findings) -> None:
    run = findings.curves[0].run
    statistics = run.statistics.select(range(len(run.layers)))
    statistics.sums[4, 2] = 0.0
    rows = rows_of(run_charts.accumulated_error([Curve("all", (), (), Run("whole_model", run.layers, statistics))]))[0]
    assert len(rows) == len(run.layers) - 1
    assert 4 not in [row["position"] for row in rows]


def with_sqnr(run: Run, sqnr: dict[int, float]) -> Curve:
    """Returns a curve with these SQNRs at some nodes, in dB, and 20 dB at the others."""
    statistics = run.statistics.select(range(len(run.layers)))
    signal, error = statistics.sums[:, 3], statistics.sums[:, 2]
    error[:] = [signal[place] / 10 ** (sqnr.get(place, 20.0) / 10) for place in range(len(run.layers))]
    return Curve("all", (), (), Run("whole_model", run.layers, statistics))


def test_rare_peaks_of_sqnr_are_capped_and_their_true_value_kept(findings: Findings) -> None:
    run = findings.curves[0].run
    chart = run_charts.accumulated_error([with_sqnr(run, {3: 150.0, 9: 81.0, 11: 79.0})])
    found = drawing.specification(chart)
    assert "2 values above 80 dB at the upper edge" in str(found["title"]["subtitle"])
    scale = found["layer"][0]["encoding"]["y"]["scale"]
    assert (scale["domainMax"], scale["clamp"]) == (80, True)
    rows = {row["position"]: row["value"] for row in rows_of(chart)[0]}
    assert (rows[3], rows[9], rows[11]) == (pytest.approx(150.0), pytest.approx(81.0), pytest.approx(79.0))


def test_what_is_no_peak_is_not_capped(findings: Findings) -> None:
    run = findings.curves[0].run
    for sqnr in ({}, {3: 79.0}, dict.fromkeys(range(len(run.layers) // 2), 95.0)):
        found = drawing.specification(run_charts.accumulated_error([with_sqnr(run, sqnr)]))
        assert "domainMax" not in found["layer"][0]["encoding"]["y"]["scale"]
        assert "upper edge" not in str(found["title"])
    cosines = drawing.specification(run_charts.accumulated_error([with_sqnr(run, {3: 150.0})], "cosine"))
    assert "domainMax" not in cosines["layer"][0]["encoding"]["y"]["scale"]


def test_an_unknown_metric_is_an_error(findings: Findings) -> None:
    with pytest.raises(OptionError, match=r"Did you mean 'sqnr_db'"):
        run_charts.accumulated_error(findings.curves, "sqnr")
    with pytest.raises(OptionError, match="no curve"):
        run_charts.accumulated_error([])
    with pytest.raises(OptionError, match="got metric"):
        run_charts.sensitivity_bars(findings.sensitivity["node"], metric="accuracy")


def test_sensitivity_shows_the_worst_with_their_intervals(findings: Findings) -> None:
    found = findings.sensitivity["node"]
    rows = rows_of(run_charts.sensitivity_bars(found, count=7))[0]
    cosine = found.errors.metric("cosine")[:, 0]
    low, high = found.errors.interval("cosine")
    order = np.argsort(cosine)[:7]
    assert [row["node"] for row in rows] == [found.nodes[place] for place in order]
    np.testing.assert_allclose([row["value"] for row in rows], 1 - cosine[order], rtol=1e-3)
    np.testing.assert_allclose([row["low"] for row in rows], 1 - high[order, 0], rtol=1e-3)
    np.testing.assert_allclose([row["high"] for row in rows], 1 - low[order, 0], rtol=1e-3)
    assert len({row["label"] for row in rows}) == 7


def test_histograms_lose_no_value(findings: Findings) -> None:
    for profile in findings.profiles:
        assert profile.quantized is not None
        for chart in (
            value_charts.weight_histogram(profile),
            value_charts.output_histogram(profile),
            value_charts.activation_histogram(profile),
        ):
            bars = rows_of(chart)[0]
            assert sum(row["count"] for row in bars) == profile.values.total == 400 * 24
            assert len(bars) <= 100
            assert all(row["left"] <= row["right"] for row in bars)
        outline = rows_of(value_charts.weight_histogram(profile, log=False))[1]
        assert sum(row["count"] for row in outline) == profile.quantized.total


def test_zeros_stand_in_the_bin_at_zero() -> None:
    values = np.concatenate([np.zeros(90), np.linspace(0.5, 8.0, 10)])
    profile = dataclasses.replace(made_findings.full().profiles[0], values=made_findings.histogram_of(values), quantized=None)
    bars = rows_of(value_charts.weight_histogram(profile))[0]
    assert [row["count"] for row in bars if row["left"] <= 0 < row["right"]] == [90]
    only = dataclasses.replace(profile, values=made_findings.histogram_of(np.zeros(7)))
    assert [row["count"] for row in rows_of(value_charts.weight_histogram(only))[0]] == [7]


def test_the_calibrated_range_and_the_largest_value_are_marked(findings: Findings) -> None:
    profile = next(profile for profile in findings.profiles if profile.role == "output")
    layers = rows_of(value_charts.activation_histogram(profile))
    assert [row["left"] for row in layers[1]] == pytest.approx([profile.low, profile.high], rel=1e-4)
    assert [row["left"] for row in layers[2]] == pytest.approx([profile.values.maximum], rel=1e-4)


def test_boxes_hold_the_channels_and_point_out_the_odd_ones(findings: Findings) -> None:
    profile = findings.profiles[0]
    assert profile.channels is not None
    rows = rows_of(value_charts.channel_boxes(profile))[0]
    np.testing.assert_allclose([row["median"] for row in rows], profile.channels.median, rtol=1e-4)
    np.testing.assert_allclose([row["maximum"] for row in rows], profile.channels.maximum, rtol=1e-4)
    assert [row["channel"] for row in rows if row["kind"] == "dominating"] == [2]
    assert [row["channel"] for row in rows if row["kind"] == "dead"] == [5]


def test_of_a_thousand_channels_the_largest_are_shown(findings: Findings) -> None:
    many = made_findings.profile_of(findings.run.layers[0], "weights", channels=1024)
    assert many.channels is not None
    chart = value_charts.channel_boxes(many)
    rows = rows_of(chart)[0]
    largest = np.sort(np.argsort(-many.channels.largest)[:64])
    assert [row["channel"] for row in rows] == largest.tolist()
    assert "the 64 largest of 1024 channels" in str(drawing.specification(chart)["title"])


def test_samples_show_flips(findings: Findings) -> None:
    assert findings.samples is not None
    (rows,) = rows_of(run_charts.worst_samples(findings.samples))
    assert [row["sample"] for row in rows] == ["17", "3", "121", "44", "45", "8", "99", "61"]
    assert [row["kind"] == "flipped" for row in rows] == [sample.flipped for sample in findings.samples.worst]


# ------------------------------------------------------------------------------------------------------------ as files


@pytest.fixture(scope="module")
def saved(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("charts")
    return folder, charts.save_charts(findings, folder, nodes=[made_findings.EVIL])


def test_files_lie_in_horizons_folders_under_safe_names(saved: tuple[Path, list[Path]]) -> None:
    folder, paths = saved
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(paths)
    for path in paths:
        assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in path.relative_to(folder).parts), path
    folders = {path.parent.name for path in paths if path.parent != folder}
    assert folders == {
        "node_sensitivity",
        "data_distribution",
        "channelwise_distribution",
        "accumulate_error",
        "sensitivity_analysis",
    }


def test_files_are_pictures(saved: tuple[Path, list[Path]]) -> None:
    _, paths = saved
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            width, height = struct.unpack(">II", content[16:24])
            assert width > 1000
            assert height > 300
        else:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            assert not re.search(rb'(href|src)="http', content)


def test_a_picture_shows_hostile_names_as_text(findings: Findings) -> None:
    content = drawing.render(run_charts.sensitivity_bars(findings.sensitivity["node"]), "svg")
    texts = [element.text or "" for element in ElementTree.fromstring(content).iter() if element.tag.endswith("text")]
    assert any(text.startswith("<script>") for text in texts)


def test_wrong_names_and_folders_are_errors(findings: Findings, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="got format 'pdf'"):
        charts.save_charts(findings, tmp_path, formats=["pdf"])
    near = findings.run.layers[1].node
    with pytest.raises(OptionError, match="Did you mean"):
        charts.save_charts(findings, tmp_path, nodes=[near[:-2]])
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write"):
        charts.save_charts(findings, blocked, formats=["svg"], nodes=[near])


def test_a_bare_run_gives_the_charts_that_it_can(findings: Findings) -> None:
    run = findings.run
    assert [name for name, _ in charts.all_charts(Findings(Run(run.verify, run.layers, run.statistics)))] == ["layer_error"]
    names = ["layer_error", "accumulate_error/curves", "accumulate_error/running_mean"]
    assert [name for name, _ in charts.all_charts(Findings(run))] == names
    assert list(charts.all_charts(Findings(Run("per_layer", [], run.statistics.select([]))))) == []


def test_notable_nodes_are_suspects_then_the_sensitive_then_the_worst(findings: Findings) -> None:
    assert findings.diagnosis is not None
    nodes = charts.notable_nodes(findings, 10)
    assert nodes[:5] == [suspect.node for suspect in findings.diagnosis.suspects]
    assert len(nodes) == len(set(nodes)) == 15
    bare = Findings(findings.run)
    assert charts.notable_nodes(bare, 3) == [findings.run.layers[place].node for place in findings.run.worst(count=3)]


def test_pure_rounding_is_drawn_where_it_belongs(findings: Findings) -> None:
    floor = rows_of(run_charts.layer_errors(findings.run))[0]
    assert floor[0]["y"] == pytest.approx(1 / math.sqrt(12))
