"""The tables that people read: numbers, shortened names, and windows of every width."""

from __future__ import annotations

import io
import math

import pytest

from tflite_qdebug.reports import tables
from tflite_qdebug.wording import byte_size, kilobytes, number, percent, short_labels, shortened, signed


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
    assert number(value, 3) == shown


def test_a_long_name_keeps_both_ends_of_its_first_part() -> None:
    name = "network/block_1/project/BatchNorm/FusedBatchNormV3;network/block_1/project/Conv2D"
    shown = shortened(name, 40)
    assert len(shown) == 40
    assert shown.startswith("network/bl")
    assert shown.endswith("FusedBatchNormV3…")
    assert shortened("short", 40) == "short"


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


def test_labels_keep_both_ends_and_what_tells_them_apart() -> None:
    names = [f"network/block_{place}/expand/conv/BatchNorm/FusedBatchNormV3;{place}" for place in range(12)]
    labels = short_labels(names, 32)
    assert len(set(labels.values())) == 12
    assert all(len(label) <= 32 for label in labels.values())
    assert labels[names[3]].startswith("block_3/")
    assert short_labels(["one/a", "two/b"]) == {"one/a": "one/a", "two/b": "two/b"}
    numbered = [f"Network_1/expanded_conv_{place}_depthwise_bn_1/batchnorm/add_1;x" for place in range(12)]
    assert len(set(short_labels(numbered).values())) == 12


def test_shares_sizes_and_signs_are_written_in_one_way() -> None:
    assert (percent(0.125), percent(1.0), percent(0.26, 2)) == ("12.5 %", "100 %", "26 %")
    assert (byte_size(12), byte_size(3400), byte_size(1.25e6)) == ("12 B", "3.40 kB", "1.25 MB")
    assert kilobytes(105_088) == "105.1"
    assert (signed(1.5), signed(-1.5), signed(0.0), signed(math.inf)) == ("+1.50", "-1.50", "0.00", "+inf")
