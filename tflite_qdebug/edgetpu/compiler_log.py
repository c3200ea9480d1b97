"""Reading what the Edge TPU compiler prints (``-s``) or writes as ``*_edgetpu.log``."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from tflite_qdebug.edgetpu.rules import (
    BLOCKED,
    DATA_TYPE,
    MAPPED,
    NOT_CONSTANT,
    NOT_SUPPORTED,
    RANK,
    UNSPECIFIED,
    VERSION,
)
from tflite_qdebug.errors import ModelError

__all__ = ["CompilerLog", "StatusCount", "parse_log", "read_log"]

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"([\d.]+)\s*([KMG]iB|B)\b")
_HEADER = re.compile(r"Operator\s+Count\s+Status\b")
_ROW = re.compile(r"([A-Za-z][\w:.-]*)\s+(\d+)\s+(\S.*)")
_STATUSES = (MAPPED, BLOCKED, UNSPECIFIED, VERSION, DATA_TYPE, NOT_SUPPORTED, RANK, NOT_CONSTANT)
_VERSION = re.compile(r"Edge TPU Compiler version\s+(\S+)")
# Parts of the lines with which a compilation ends without a model.
_FAILURES = (
    "Didn't find op for builtin opcode", "Model not quantized", "only supports static-sized tensors", "Compilation failed:",
    "Internal compiler error", "Invalid model:", "Model could not be parsed",
)  # fmt: skip
_NUMBERS = {
    "segments": "Number of Edge TPU subgraphs", "total": "Total number of operations",
    "on_device": "Number of operations that will run on Edge TPU", "on_cpu": "Number of operations that will run on CPU",
}  # fmt: skip
_SIZES = {
    "input_bytes": "Input size", "output_bytes": "Output size",
    "cached_bytes": "On-chip memory used for caching model parameters",
    "remaining_bytes": "On-chip memory remaining for caching model parameters",
    "streamed_bytes": "Off-chip memory used for streaming uncached model parameters",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StatusCount:
    """One row of the compiler's table: an operator may take several.

    Attributes:
        operator: Its type; ``CUSTOM`` for every custom operator.
        count: How many operators.
        status: In the compiler's words.
    """

    operator: str
    count: int
    status: str

    @property
    def is_mapped(self) -> bool:
        """True for operators on the device."""
        return self.status == MAPPED


@dataclasses.dataclass(frozen=True)
class CompilerLog:
    """What the compiler said; None for what it did not.

    Attributes:
        version: Of the compiler; empty where it is not told.
        rows: The table of operators.
        failures: Lines that say why nothing was compiled.
        segments: Pieces on the device.
        total: Number of operators.
        on_device: How many run on the device.
        on_cpu: How many on the CPU.
        input_bytes: Size of the model.
        output_bytes: Size of the compiled one.
        cached_bytes: Parameters that stay on the device.
        remaining_bytes: Room left for more.
        streamed_bytes: Parameters that are sent for each sample.
    """

    version: str = ""
    rows: tuple[StatusCount, ...] = ()
    failures: tuple[str, ...] = ()
    segments: int | None = None
    total: int | None = None
    on_device: int | None = None
    on_cpu: int | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    cached_bytes: int | None = None
    remaining_bytes: int | None = None
    streamed_bytes: int | None = None

    @property
    def mapped(self) -> int:
        """Number of operators on the device, by the table or, without one, by the line that tells it."""
        return sum(row.count for row in self.rows if row.is_mapped) if self.rows else self.on_device or 0

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {**dataclasses.asdict(self), "mapped": self.mapped}


def read_log(path: str | os.PathLike[str]) -> CompilerLog:
    """Reads a file with what the compiler said.

    Raises:
        ModelError: Where it cannot be read or is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ModelError(f"cannot read the compiler log {os.fspath(path)}: {error.strerror or error}") from error
    return parse_log(text, os.fspath(path))


def parse_log(text: str, where: str = "the text") -> CompilerLog:
    """Reads what the compiler said, with or without the table, in any order, with other lines between.

    Args:
        text: What it printed or wrote.
        where: What an error message calls it.

    Raises:
        ModelError: Where nothing in it is the compiler's.
    """
    lines = [line.strip().lstrip(">").strip() for line in text.splitlines()]
    rows, failures, numbers, in_table = [], [], {}, False
    for line in lines:
        in_table = in_table or _HEADER.match(line) is not None
        row = _ROW.fullmatch(line)
        if row and (in_table or row[3] in _STATUSES):
            rows.append(StatusCount(row[1], int(row[2]), row[3]))
        elif any(part in line for part in _FAILURES):
            failures.append(line.removeprefix("ERROR:").strip())
        else:
            numbers.update(_told(line))
    version = _VERSION.search(text)
    if not (rows or failures or numbers or version):
        raise ModelError(
            f"{where} is no log of the Edge TPU compiler: got neither a table (Operator, Count, Status) nor any "
            "of its lines; expected what edgetpu_compiler -s prints, or the .log file beside the compiled model"
        )
    return CompilerLog(version[1] if version else "", tuple(rows), tuple(dict.fromkeys(failures)), **numbers)


def _told(line: str) -> dict[str, int]:
    """Returns the number that a line tells, by the name of the field."""
    start, colon, rest = line.partition(":")
    for field, phrase in _NUMBERS.items():
        if colon and start == phrase and rest.strip().isdigit():
            return {field: int(rest)}
    size = _SIZE.search(rest)
    for field, phrase in _SIZES.items():
        if colon and start == phrase and size:
            return {field: round(float(size[1]) * _UNITS[size[2]])}
    return {}
