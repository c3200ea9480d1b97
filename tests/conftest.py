"""What every test has at hand: samples, small models, and the checks that hold for more than one class."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Files whose tests take minutes: begun last, one of them would keep the other workers waiting at the end.
_LONGEST = ("test_qat", "test_sensitivity", "test_planted_errors", "test_diagnosis", "test_study", "test_analyses_cli")

SHARED_MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models, which is not part of the repository."""
    if not SHARED_MODELS.is_dir():
        pytest.skip(f"the real models are not at {SHARED_MODELS}")
    return SHARED_MODELS
