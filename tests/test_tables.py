"""The tables that people read: numbers, shortened names, and windows of every width."""

from __future__ import annotations

import io
import math

import pytest

from tflite_qdebug.reports import tables


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.28867513, "0.289"),
        (14.72529, "14.7"),
        (-0.16418, "-0.164"),
        (6043.2, "6043"),
        (0.0, "0.00"),
        (3.2e-07, "3.2e-07"),
        (1.5e9, "1.5e+09"),
        (math.nan, "-"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert tables.number(value, 3) == shown


def test_a_long_name_keeps_both_ends_of_its_first_part() -> None:
    name = "network/block_1/project/BatchNorm/FusedBatchNormV3;network/block_1/project/Conv2D"
    shown = tables.shortened(name, 40)
    assert len(shown) == 40
    assert shown.startswith("network/bl")
    assert shown.endswith("FusedBatchNormV3…")
    assert tables.shortened("short", 40) == "short"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_table_fits_its_window(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    header = ["#", "operator", "node", "RMSE/scale", "SQNR dB", "cosine", "bias", "max error", "scale", "at ends %", "worst"]
    row = ["10", "DEPTHWISE_CONV_2D", "n" * 48, "0.492", "35.5", "0.9999", "-0.000639", "3.67", "0.0302", "52", "25"]
    file = io.StringIO()
    tables.print_table(header, [row], "a title", file)
    printed = file.getvalue()
    lines = printed.splitlines()
    assert "DEPTHWISE_CONV_2D" in printed
    assert "0.492" in printed
    assert printed.count("n") >= 48  # the name is folded, never cut
    plain = [line for line in lines if "DEPTHWISE" in line]
    assert plain
    for name, cell in (("cosine", "0.9999"), ("bias", "-0.000639")):
        assert (cell in plain[0]) or (name in lines[-1] or name in lines[-2])


def test_a_pipe_gets_plain_columns() -> None:
    file = io.StringIO()
    tables.print_table(["name", "value"], [["a", "1.5"], ["long name", "-20"]], "title", file)
    assert file.getvalue().splitlines() == [
        "title",
        "name       value",
        "---------  -----",
        "a            1.5",
        "long name    -20",
    ]
