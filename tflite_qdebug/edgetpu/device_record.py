"""What a device gave for each operator, held against the CPU: the verdicts, as plain data, saved and loaded. Part of the board.

Two figures of each operator tell what is wrong. ``accumulated``: its result in the whole model, where its inputs may be wrong
already. ``local``: its result alone, on the CPU's own values. Beyond the tolerance alone, it is at fault itself; beyond it in
the whole model only, it inherited the difference.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from tflite_qdebug.errors import ModelError
from tflite_qdebug.kernel_record import Difference
from tflite_qdebug.record import load_record, save_record
from tflite_qdebug.shown import Shown

__all__ = ["VERDICTS", "DeviceComparison", "DeviceRow"]

_FORMAT = "tflite_qdebug comparison with a device"
_FORMAT_VERSION = 1

#: What a verdict means.
VERDICTS = {
    "local": "is wrong itself",
    "context": "is wrong in the whole model only",
    "inherited": "inherits",
    "unknown": "local or inherited?",
    "alone": "is wrong only when it runs alone",
    "same": "within the tolerance",
    "alone_same": "within it when it runs alone",
    "unmeasured": "not measured",
}
_BEYOND = ("local", "context", "inherited", "unknown")


@dataclasses.dataclass(frozen=True)
class DeviceRow:
    """One operator.

    Attributes:
        operator: Its position in execution order.
        type: Such as ``CONV_2D``.
        node: Name of its first output.
        predicted: Where it was predicted to run: ``Edge TPU`` or ``CPU``.
        unit: Of the sizes: ``steps`` of quantization, ``relative`` (RMSE over the RMS of floats) or ``units`` of integers.
        accumulated: Its result in the whole model against the CPU's; None where that was not measured.
        local: The same of the operator alone, on the CPU's values of its inputs.
        accumulated_size: The largest difference, in `unit`; NaN where it was not measured.
        local_size: The same.
        equal_inputs: True where all that it read in the whole model was the same as on the CPU; None where that is not known.
        verdict: One of `VERDICTS`.
    """

    operator: int
    type: str
    node: str
    predicted: str
    unit: str
    accumulated: Optional[Difference]
    local: Optional[Difference]
    accumulated_size: float
    local_size: float
    equal_inputs: Optional[bool]
    verdict: str

    @property
    def is_beyond(self) -> bool:
        """True where the whole model's result differs by more than the tolerance."""
        return self.verdict in _BEYOND

    @property
    def is_at_fault(self) -> bool:
        """True where the difference is made here."""
        return self.verdict in ("local", "context")

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return "operator {} {} {!r}".format(self.operator, self.type, _shortened(self.node, 60))

    def amount(self, which: str) -> str:
        """Returns one of the sizes in words; ``which`` is ``accumulated`` or ``local``."""
        size, difference = getattr(self, which + "_size"), getattr(self, which)
        if difference is None:
            return "not measured"
        if size == float("inf"):
            return "NaN or another shape on one side"
        if self.unit == "relative":
            return "relative {:.1e}".format(size)
        return "{:g} {}".format(round(size, 3), self.unit if size != 1 else self.unit[:-1])

    def share(self, which: str) -> float:
        """Returns the share of elements that differ at all, 0 to 1; NaN where nothing was measured."""
        difference = getattr(self, which)
        return difference.differing / difference.elements if difference and difference.elements else float("nan")

    def explained(self, tolerance: float) -> str:
        """Says in a sentence what the verdict rests on."""
        apart = "by itself, on the CPU's values, it differs by up to {}".format(self.amount("local"))
        known = "by up to " if self.accumulated is not None else ""
        whole = "in the whole model {}{}".format(known, self.amount("accumulated"))
        shares = "{:.3g} % of the elements".format(100 * self.share("local" if self.local else "accumulated"))
        if self.verdict == "local" and self.local is not None:
            return "local: {} ({}), {}".format(apart, shares, whole)
        if self.verdict == "local":
            return "local: {} ({}), on inputs equal to the CPU's".format(whole, shares)
        if self.verdict == "context":
            return "in the whole model only: {}, on inputs equal to the CPU's; {}".format(whole, apart)
        if self.verdict == "inherited":
            return "inherited: {}, but {}: its inputs differ already".format(whole, apart)
        if self.verdict == "alone":
            return "{}, but {}: within {:g}".format(apart, whole, tolerance)
        return "{}; whether it makes that itself is not known, as its single-layer model was not run".format(whole)


@dataclasses.dataclass(frozen=True)
class DeviceComparison(Shown):
    """A device against the CPU.

    Attributes:
        rows: One for each operator that computes something, in execution order.
        tolerance: Steps.
        samples: How many samples were compared.
        prepared: Hash of the manifest of the folder.
        model: Name of the model.
        device: What ran: runtime, version, kernels, delegates.
        reference: The same of the CPU's values.
        models: Of each model of the folder ``file``, ``kind``, ``operators``, ``ran`` (``compiled``, ``uncompiled``,
            ``missing``, ``failed``, or empty where it was not needed), ``on_device`` (a delegate takes anything of it) and
            ``words``.
        outputs: Positions of the rows that give the model's outputs.
        between: Where models were bisected: the last number of operators after which all is well, and the first after which
            something is not.
        notes: What the reader must know.
    """

    rows: Tuple[DeviceRow, ...]
    tolerance: float
    samples: int
    prepared: str
    model: str
    device: Dict[str, Any]
    reference: Dict[str, Any]
    models: Tuple[Dict[str, Any], ...]
    outputs: Tuple[int, ...] = ()
    between: Optional[Tuple[int, int]] = None
    notes: Tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "DeviceComparison({}, {} operators, {} samples; {})".format(
            self.model, len(self.rows), self.samples, self.summary()[0]
        )

    @property
    def first(self) -> Optional[DeviceRow]:
        """The first operator whose result in the whole model differs by more than the tolerance."""
        return next((row for row in self.rows if row.is_beyond), None)

    @property
    def first_fault(self) -> Optional[DeviceRow]:
        """The first operator that makes a difference beyond the tolerance itself."""
        return next((row for row in self.rows if row.is_at_fault), None)

    @property
    def failed(self) -> List[Dict[str, Any]]:
        """The models that did not run on the device, or ended it."""
        return [model for model in self.models if model["ran"] == "failed"]

    @property
    def is_right(self) -> bool:
        """True where no model failed and nothing that was measured differs by more than the tolerance."""
        return not self.failed and not any(row.is_beyond or row.verdict == "alone" for row in self.rows)

    def largest_steps(self) -> float:
        """Returns the largest difference of a quantized tensor, in steps; 0 where there is none."""
        sizes = [size for row in self.rows if row.unit == "steps" for size in (row.accumulated_size, row.local_size)]
        return max((size for size in sizes if size == size), default=0.0)

    def exceeds(self, steps: float) -> bool:
        """True where anything differs by more than so many steps, what has none by more than rounding, or a model failed."""
        others = any(row.is_beyond and row.unit != "steps" for row in self.rows)
        return self.largest_steps() > steps or others or bool(self.failed)

    def columns(self) -> Dict[str, List[Any]]:
        """Returns columns with one value per operator, in execution order; sizes are in ``unit``, shares between 0 and 1."""
        fields = ("operator", "type", "node", "predicted", "verdict", "unit", "accumulated_size", "local_size", "equal_inputs")
        columns = {name: [getattr(row, name) for row in self.rows] for name in fields}
        for which in ("accumulated", "local"):
            columns[which + "_share"] = [row.share(which) for row in self.rows]
            differences = [getattr(row, which) for row in self.rows]
            columns[which + "_mean"] = [float("nan") if one is None else one.mean_absolute for one in differences]
            columns[which + "_worst_sample"] = [-1 if one is None else one.worst_sample for one in differences]
        return columns

    def worst(self, count: Optional[int] = None) -> List[int]:
        """Returns the positions of the rows to look at first: those at fault, then others beyond, then by size."""
        ranks = {
            "local": 0,
            "context": 0,
            "unknown": 1,
            "inherited": 1,
            "alone": 2,
            "same": 3,
            "alone_same": 4,
            "unmeasured": 5,
        }

        def rank(position: int) -> Tuple[int, float, int]:
            row = self.rows[position]
            size = 0.0 if row.is_beyond or row.accumulated is None else -row.accumulated_size
            return ranks[row.verdict], size, position

        return sorted(range(len(self.rows)), key=rank)[:count]

    def table(self, positions: Iterable[int], name_width: int = 40) -> Tuple[List[str], List[List[str]]]:
        """Returns header and rows, as text."""
        lines = []
        for position in positions:
            row = self.rows[position]
            cells = [str(row.operator), row.type, _shortened(row.node, name_width), row.predicted]
            for which in ("accumulated", "local"):
                known = getattr(row, which) is not None
                cells += [row.amount(which) if known else "-", "{:.3g}".format(100 * row.share(which)) if known else "-"]
            lines.append([*cells, VERDICTS[row.verdict]])
        return ["#", "operator", "node", "predicted", "in the model", "% differ", "alone", "% differ", "verdict"], lines

    def summary(self) -> List[str]:
        """Returns what was found, in sentences, the most important first."""
        lines = [*self._verdict(), *self._failures()]
        counts = {name: sum(row.verdict == name for row in self.rows) for name in VERDICTS}
        lines.append("; ".join("{} {}".format(count, VERDICTS[name]) for name, count in counts.items() if count))
        return lines

    def _failures(self) -> List[str]:
        if not self.failed:
            return []
        alone = {int(model["operators"]) for model in self.failed if model["kind"] == "layer"}
        titles = [row.title for row in self.rows if row.operator in alone]
        single = "by themselves these do: {}".format(", ".join(titles[:3])) if titles else "no operator by itself does"
        return ["{} of {} models fail on the device; {}".format(len(self.failed), len(self.models), single)]

    def _verdict(self) -> List[str]:
        first, fault = self.first, self.first_fault
        measured = [row for row in self.rows if row.accumulated is not None]
        if first is None:
            if not measured:
                return ["nothing of the whole model was measured"]
            largest = max(measured, key=lambda row: row.accumulated_size if row.unit == "steps" else -1.0)
            lines = [
                "no layer of {} measured differs from the CPU by more than {}: at most {}, at {}".format(
                    len(measured), _steps(self.tolerance), largest.amount("accumulated"), largest.title
                )
            ]
        else:
            before = self.rows[: self.rows.index(first)]
            seen = "" if all(row.accumulated or row.local for row in before) else " measured"
            lines = [
                "the first layer{} that differs from the CPU by more than {} is {}: {}".format(
                    seen, _steps(self.tolerance), first.title, first.explained(self.tolerance)
                )
            ]
        if self.between is not None:
            lines.append(
                "bisected: after {0} operators all is well, after {1} something differs; the fault is in operators {0} to "
                "{2}".format(self.between[0], self.between[1], self.between[1] - 1)
            )
        if first is not None and fault is not None and fault is not first:
            lines.append(
                "the first that makes a difference itself is {}: {}".format(fault.title, fault.explained(self.tolerance))
            )
        if first is not None and fault is None and all(row.local for row in self.rows[: self.rows.index(first) + 1]):
            lines.append("no operator that ran alone is beyond the tolerance by itself: small differences have added up")
        alone = [row for row in self.rows if row.verdict == "alone"]
        if alone:
            lines.append("{}: {}".format(alone[0].title, alone[0].explained(self.tolerance)))
        return lines

    def to_dict(self) -> Dict[str, Any]:
        """Returns plain data, ready for JSON."""
        return {"format": _FORMAT, "format_version": _FORMAT_VERSION, **dataclasses.asdict(self), "summary": self.summary()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DeviceComparison:
        """Reads what `to_dict` gave.

        Raises:
            ModelError: For data of another kind or of another format version.
        """
        if fields.get("format") != _FORMAT or fields.get("format_version") != _FORMAT_VERSION:
            raise ModelError(
                "got {!r} version {!r}, expected {!r} version {}".format(
                    fields.get("format"), fields.get("format_version"), _FORMAT, _FORMAT_VERSION
                )
            )
        known = {name: fields[name] for name in (field.name for field in dataclasses.fields(cls))}
        rows = []
        for row in fields["rows"]:
            differences = {name: row[name] and Difference(**row[name]) for name in ("accumulated", "local")}
            rows.append(DeviceRow(**{**row, **differences}))
        known.update(rows=tuple(rows), models=tuple(fields["models"]), notes=tuple(fields["notes"]))
        known.update(outputs=tuple(fields["outputs"]), between=fields["between"] and tuple(fields["between"]))
        return cls(**known)

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes it as JSON; an existing file is replaced only once the new one is whole.

        Raises:
            OutputError: Where it cannot be written.
        """
        save_record(path, self.to_dict())

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> DeviceComparison:
        """Reads what `save` wrote.

        Raises:
            ModelError: Where there is no such file or it is no saved comparison.
        """
        return load_record(path, cls.from_dict, "comparison", "is no saved comparison with a device")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """Returns the lines of a table."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows]]


def _steps(tolerance: float) -> str:
    return "{:g} step{}".format(tolerance, "" if tolerance == 1 else "s")


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width // 2 - 1] + "…" + name[len(name) - width + width // 2 :]
