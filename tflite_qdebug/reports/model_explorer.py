"""A run as node data for Model Explorer."""
from __future__ import annotations
from typing import Any

def write_model_explorer(findings: Any, folder: Any) -> Any:
    """Soon."""
    raise NotImplementedError
