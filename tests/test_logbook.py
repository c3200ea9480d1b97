"""What a search remembers on disk: measurements and decisions, of this search alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tflite_qdebug.errors import OutputError
from tflite_qdebug.outcome import Difference, Measured
from tflite_qdebug.remedies.logbook import Logbook
from tflite_qdebug.remedies.scoring import Scored

SCORED = Scored(
    math.inf,
    np.array([0.5, math.inf, math.nan]),
    {"top_1": Measured(0.75, 0.5, math.nan), "sqnr_db": Measured(math.inf)},
    {"top_1": Difference(-0.25, -0.5, 0.0, 0.125)},
    ("a note with <, 'quotes' and 中文",),
)


def test_what_was_noted_is_read_again(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "key")
    assert book.scored("abc") is None
    book.put_scored("abc", SCORED)
    book.put("sensitivity", "order", ["one", "two"])
    book.part("tuning")["0.5"] = [1.0, 2.0, math.inf]
    book.save(now=True)
    again = Logbook(tmp_path, "key")
    found = again.scored("abc")
    assert found is not None
    assert found.objective == math.inf
    np.testing.assert_array_equal(found.objectives, SCORED.objectives)
    assert found.metrics["sqnr_db"].value == math.inf
    assert (found.metrics["top_1"].low, math.isnan(found.metrics["top_1"].high)) == (0.5, True)
    assert found.differences == SCORED.differences
    assert found.notes == SCORED.notes
    assert again.get("sensitivity", "order") == ["one", "two"]
    assert again.get("sensitivity", "other") is None
    assert again.part("tuning")["0.5"] == [1.0, 2.0, math.inf]


@pytest.mark.parametrize("content", [None, "", "{", "[]", json.dumps({"key": "key", "models": {"abc": {}}, "parts": {}})])
def test_anothers_and_broken_ones_are_not_read(content: str | None, tmp_path: Path) -> None:
    if content is None:
        book = Logbook(tmp_path, "another")
        book.put_scored("abc", SCORED)
        book.save(now=True)
    else:
        (tmp_path / "logbook.json").write_text(content)
    again = Logbook(tmp_path, "key")
    assert again.scored("abc") is None
    again.put_scored("abc", SCORED)
    again.save(now=True)
    assert Logbook(tmp_path, "key").scored("abc") is not None


def test_without_a_folder_it_is_in_memory() -> None:
    book = Logbook(None, "key")
    book.put_scored("abc", SCORED)
    book.put("part", "name", 3)
    book.save(now=True)
    assert book.scored("abc") is not None
    assert book.get("part", "name") == 3


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Logbook(tmp_path / "file", "key")
