"""What a target means: its conditions, units and goals, and what it refuses."""

from __future__ import annotations

import math

import pytest

from tflite_qdebug.errors import OptionError
from tflite_qdebug.remedies.target import parse_target


@pytest.mark.parametrize(
    ("text", "metric", "float_value", "int8_value", "goal"),
    [
        ("accuracy >= float - 0.5%", "top_1", 0.82, 0.47, 0.815),
        ("top_1>=0.8", "top_1", 0.82, 0.47, 0.8),
        ("accuracy > 80 %", "top_1", 0.82, 0.47, 0.8),
        ("accuracy >= float", "top_1", 0.82, 0.47, 0.82),
        ("top_5 ≥ int8 + 2%", "top_5", 0.9, 0.7, 0.72),
        ("agreement >= 99%", "agreement", 1.0, 0.6, 0.99),
        ("flips <= 1%", "flips", 0.0, 0.5, 0.01),
        ("sqnr >= 20 dB", "sqnr_db", math.inf, 9.0, 20.0),
        ("sqnr_db >= int8 + 3", "sqnr_db", math.inf, 9.0, 12.0),
        ("kl <= 0.05", "kl", 0.0, 0.9, 0.05),
        ("kl <= int8 * 0.5", "kl", 0.0, 0.9, 0.45),
        ("kl <= int8 * 50%", "kl", 0.0, 0.9, 0.45),
        ("size <= 3MB", "size", 10e6, 2.9e6, 3e6),
        ("size <= int8 + 1%", "size", 10e6, 2.9e6, 2.929e6),
        ("size <= float * 0.5", "size", 10e6, 2.9e6, 5e6),
        ("latency <= 5 ms", "latency", 4.0, 3.0, 5.0),
        ("latency <= 500us", "latency", 4.0, 3.0, 0.5),
        ("float_operators <= 5", "float_operators", 100, 0, 5.0),
        ("psnr >= float - 1%", "psnr", 33.0, 29.0, 32.67),
        ("psnr >= float - 0.7", "psnr", 33.0, 29.0, 32.3),
        ("loss <= 1e-3", "loss", 0.0, 1.0, 1e-3),
    ],
)
def test_goals(text: str, metric: str, float_value: float, int8_value: float, goal: float) -> None:
    (clause,) = parse_target(text, ["psnr", "loss"]).clauses
    assert clause.metric == metric
    assert clause.goal(float_value, int8_value) == pytest.approx(goal, rel=1e-12)
    assert clause.met(goal, goal)
    beyond = goal + (1e-3 if clause.at_least else -1e-3) * max(abs(goal), 1.0)
    short = goal - (1e-3 if clause.at_least else -1e-3) * max(abs(goal), 1.0)
    assert clause.met(beyond, goal)
    assert not clause.met(short, goal)
    assert not clause.met(float("nan"), goal)


def test_what_is_written_is_read_again() -> None:
    texts = (
        "accuracy >= float - 0.5%, size <= int8 + 1%",
        "sqnr >= 20 dB and time <= 10 min",
        "kl<=int8*0.5; latency <= 5",
        "top_1 >= 0.8",
        "psnr >= float - 0.7",
    )
    for text in texts:
        target = parse_target(text, ["psnr"])
        again = parse_target(str(target), ["psnr"])
        for one, other in zip(target.clauses, again.clauses, strict=True):
            assert one.goal(3.0, 2.0) == pytest.approx(other.goal(3.0, 2.0), rel=1e-4)
            assert (one.metric, one.at_least, one.base) == (other.metric, other.at_least, other.base)


def test_quality_and_budgets_are_told_apart() -> None:
    target = parse_target(["accuracy >= float - 1%", "size <= 3M", "time <= 2min"])
    assert [clause.metric for clause in target.quality] == ["top_1"]
    assert [clause.metric for clause in target.budgets] == ["size"]
    assert target.seconds == 120.0
    assert math.isinf(parse_target("kl <= 1").seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty target"),
        ("good", "expected METRIC >= VALUE"),
        ("accuracy", "expected METRIC >= VALUE"),
        ("accuracy >= ", "expected a number with a unit"),
        ("acuracy >= 0.5", "Did you mean 'accuracy'"),
        ("accuracy <= 0.5", "asks for a worse model"),
        ("kl >= 0.5", "asks for a worse model"),
        ("size >= 3MB", "asks for a worse model"),
        ("accuracy >= 80", "share between 0 and 1, or a percentage such as 80%"),
        ("accuracy >= float - much", "expected a number with a unit"),
        ("accuracy >= float 5%", r"expected \+, - or \*"),
        ("size <= 5 parsecs", "unit 'parsecs'"),
        ("mse <= 5%", "percentage of nothing"),
        ("sqnr >= 20 ms", "unit 'ms'"),
        ("kl <= * 2", "without 'float' or 'int8'"),
        ("kl <= 1, kl <= 2", "more than one condition"),
        ("time <= float", "expected a number for the time"),
        ("kl <= 1e999", "not finite"),
        ("size <= float * 2MB", "factor with unit"),
    ],
)
def test_what_means_nothing_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        parse_target(text)
