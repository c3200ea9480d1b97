"""What two kernels gave for the same model, as plain data: differences, errors, verdicts; saved, loaded, merged."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tflite_qdebug.errors import ModelError
from tflite_qdebug.record import load_record, save_record
from tflite_qdebug.shown import Shown

__all__ = ["FLOAT_ROUNDING", "FORMAT_VERSION", "Difference", "KernelComparison", "KernelRow", "Verdict"]

FORMAT_VERSION = 1
_FORMAT = "tflite_qdebug kernel comparison"

#: Float results that differ by no more than this, RMSE relative to the RMS of the values, differ by float32's rounding.
FLOAT_ROUNDING = 1e-4
#: One kernel is wrong where its RMSE against the exact result exceeds twice the other's by more than this: half a step of
#: 8 bits, eight steps of 16 bits (kernels compute 16-bit functions from tables), this share of the RMS of float results,
#: and that share where float results come from integer weights, whose inputs kernels round in different ways.
STEPS_8_BIT, STEPS_16_BIT, SHARE_FLOAT, SHARE_HYBRID = 0.5, 8.0, 1e-3, 0.1
#: The same for the largest error of a single value, in multiples of the above: 4 steps of 8 bits.
SINGLE_VALUE = 8.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """How arrays differ from others, the reference, summed over samples; ``+`` merges.

    Integers count in steps, floats in real units. What is NaN or infinite on either side is counted and in no sum.

    Attributes:
        elements: Values compared.
        differing: Of these, how many differ at all.
        over_one: How many differ by more than 1.
        sum_absolute: Sum of the absolute differences.
        sum_squared: Sum of their squares.
        sum_reference_squared: Sum of the squares of the reference's values; 0 for integers.
        max_absolute: The largest absolute difference.
        worst_sample: The sample that it is in, -1 where nothing differs.
        not_finite: Values that are NaN or infinite.
        reference_not_finite: The same in the reference.
        one_sided: Values that are NaN or infinite and not the same on the other side.
        other_shape: Samples whose arrays have different shapes, which are not compared.
    """

    elements: int = 0
    differing: int = 0
    over_one: int = 0
    sum_absolute: float = 0.0
    sum_squared: float = 0.0
    sum_reference_squared: float = 0.0
    max_absolute: float = 0.0
    worst_sample: int = -1
    not_finite: int = 0
    reference_not_finite: int = 0
    one_sided: int = 0
    other_shape: int = 0

    @property
    def is_none(self) -> bool:
        """True where everything is the same."""
        return not (self.differing or self.one_sided or self.other_shape)

    @property
    def mean_absolute(self) -> float:
        """Mean absolute difference; NaN of nothing."""
        return self.sum_absolute / self.elements if self.elements else float("nan")

    @property
    def rmse(self) -> float:
        """Root of the mean squared difference; NaN of nothing."""
        return math.sqrt(self.sum_squared / self.elements) if self.elements else float("nan")

    @property
    def relative_rmse(self) -> float:
        """RMSE relative to the root of the reference's mean square, for floats; infinite where that is zero."""
        if not self.sum_squared:
            return 0.0
        return math.sqrt(self.sum_squared / self.sum_reference_squared) if self.sum_reference_squared else float("inf")

    def __add__(self, other: Difference) -> Difference:
        """Returns the difference over the samples of both."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        known = [part for part in (self, other) if part.worst_sample >= 0]
        worst = min(known, key=lambda part: (-part.max_absolute, part.worst_sample), default=self)
        return Difference(**sums, max_absolute=max(self.max_absolute, other.max_absolute), worst_sample=worst.worst_sample)

    @classmethod
    def between(cls, values: np.ndarray, reference: np.ndarray, sample: int) -> Difference:
        """Compares two arrays of one sample."""
        if values.shape != reference.shape:
            return cls(other_shape=1, worst_sample=sample)
        if values.dtype.kind in "iub" and reference.dtype.kind in "iub":
            if np.array_equal(values, reference):
                return cls(elements=values.size)
            wide = np.float32 if values.dtype.itemsize <= 2 else np.float64
            return cls._of(np.subtract(values, reference, dtype=wide, casting="unsafe"), sample)
        return cls._between_floats(values, reference, sample)

    @classmethod
    def _between_floats(cls, values: np.ndarray, reference: np.ndarray, sample: int) -> Difference:
        finite = np.isfinite(values), np.isfinite(reference)
        both = finite[0] & finite[1]
        one_sided = 0
        if not both.all():
            same = (values == reference) | (np.isnan(values) & np.isnan(reference))
            one_sided = int((~both & ~same).sum())
        wide = np.complex128 if np.iscomplexobj(reference) else np.float64
        kept = values[both].astype(wide), reference[both].astype(wide)
        difference = cls._of(kept[0] - kept[1], sample)
        return dataclasses.replace(
            difference,
            sum_reference_squared=float((np.abs(kept[1]) ** 2).sum()),
            worst_sample=sample if difference.differing or one_sided else -1,
            not_finite=int((~finite[0]).sum()),
            reference_not_finite=int((~finite[1]).sum()),
            one_sided=one_sided,
        )

    @classmethod
    def _of(cls, error: np.ndarray, sample: int) -> Difference:
        size = np.abs(error)
        differing = int(np.count_nonzero(size))
        return cls(
            elements=size.size,
            differing=differing,
            over_one=int(np.count_nonzero(size > 1)),
            sum_absolute=float(size.sum(dtype=np.float64)),
            sum_squared=float((size.astype(np.float64) ** 2).sum()),
            max_absolute=float(size.max()) if size.size else 0.0,
            worst_sample=sample if differing else -1,
        )


_SUMS = tuple(field.name for field in dataclasses.fields(Difference) if field.name not in ("max_absolute", "worst_sample"))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the figures of one row mean.

    Attributes:
        kind: ``same``, ``rounding``, ``inexact`` (differ by more, and neither is wrong), ``differs`` (nothing tells which is
            right, or a kernel differs as much from itself), ``first_wrong`` or ``second_wrong``.
        text: In words.
    """

    kind: str
    text: str

    @property
    def rank(self) -> int:
        """0 for the same, more the worse."""
        return ("same", "rounding", "inexact", "differs", "second_wrong", "first_wrong").index(self.kind)


@dataclasses.dataclass(frozen=True)
class KernelRow:
    """One output of one operator under both kernels.

    Attributes:
        node: Name of the output tensor.
        op_name: Operator that computes it.
        operator: Its position.
        tensor_idx: Index of the tensor.
        shape: As the file has it, -1 where it is open.
        dtype: numpy's name.
        scale: Real units per step; None where the tensor is not quantized.
        hybrid: True for a float result of integer weights.
        joined: Why the operator could not be cut off from others, whose differences it then shows too; else empty.
        first_ran: Which kernels of the first side compute it in the whole model: ``xnnpack``, ``delegate``, ``builtin``,
            ``reference``, or empty for loops and branches; a delegate leaves to the others what it does not know.
        second_ran: The same for the second.
        exact: What tells who is right: ``float`` (the operator in float32 on dequantized values), the name of other kernels,
            or empty: nothing.
        isolated: The second kernels' result against the first's, both on the inputs that the first had.
        accumulated: The same, each on the inputs that it had itself.
        first_repeated: The first kernels' operator by itself against its value in the whole model: other than none where
            operators are fused or the kernel is not deterministic.
        second_repeated: The same for the second.
        first_error: The first against the exact result, which is held to the range of the output's type; real units.
        second_error: The same for the second.
    """

    node: str
    op_name: str
    operator: int
    tensor_idx: int
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    hybrid: bool = False
    joined: str = ""
    first_ran: str = ""
    second_ran: str = ""
    exact: str = ""
    isolated: Difference = Difference()
    accumulated: Difference = Difference()
    first_repeated: Difference = Difference()
    second_repeated: Difference = Difference()
    first_error: Difference = Difference()
    second_error: Difference = Difference()

    def __add__(self, other: KernelRow) -> KernelRow:
        """Returns the row over the samples of both."""
        return dataclasses.replace(self, **{name: getattr(self, name) + getattr(other, name) for name in _DIFFERENCES})

    def is_like(self, other: KernelRow) -> bool:
        """True where both describe the same tensor of the same model."""
        return all(getattr(self, name) == getattr(other, name) for name in _DESCRIPTION)

    @property
    def is_float(self) -> bool:
        """True for a tensor of floats."""
        return np.dtype(self.dtype).kind in "fc"

    def verdict(self, first: str = "first", second: str = "second") -> Verdict:
        """Says what the isolated difference means.

        Args:
            first: What to call the first kernels.
            second: What to call the second.
        """
        difference = self.isolated
        if difference.is_none:
            return Verdict("same", "same")
        if difference.other_shape:
            return Verdict("differs", f"differ in shape in {difference.other_shape} samples")
        if not difference.one_sided:
            if self.scale is not None and difference.max_absolute <= 1:
                return Verdict("rounding", "rounding (<= 1 step)")
            if self.is_float and difference.relative_rmse <= FLOAT_ROUNDING:
                return Verdict("rounding", f"rounding (relative {difference.relative_rmse:.1e})")
        size = self._size()
        for name, repeated in ((first, self.first_repeated), (second, self.second_repeated)):
            if repeated.one_sided or repeated.other_shape or (repeated.differing and repeated.rmse >= 0.5 * difference.rmse):
                return Verdict("differs", f"differ{size}, but {name} differs as much from itself when the operator runs alone")
        if not self.exact:
            return Verdict("differs", f"differ{size}; nothing tells which is right")
        if self._is_wrong(self.first_error, self.second_error):
            return Verdict("first_wrong", f"{first} is wrong{size} ({self._errors(self.first_error, self.second_error)})")
        if self._is_wrong(self.second_error, self.first_error):
            return Verdict("second_wrong", f"{second} is wrong{size} ({self._errors(self.second_error, self.first_error)})")
        return Verdict("inexact", f"differ{size}, neither is wrong ({self._errors(self.first_error, self.second_error)})")

    def _errors(self, error: Difference, other: Difference) -> str:
        by = "" if self.exact == "float" else f", by the {self.exact}"
        return f"error {self._error(error)} against {self._error(other)}{by}"

    def _size(self) -> str:
        if self.isolated.one_sided:
            return f": {self.isolated.one_sided} values NaN or infinite on one side"
        largest = self.isolated.max_absolute
        if self.is_float:
            return f" by {largest:.3g}, relative {self.isolated.relative_rmse:.1e}"
        return f" by {largest:.0f} {'steps' if self.scale is not None else 'units'}"

    def _error(self, error: Difference) -> str:
        return f"{error.rmse:.3g}" + (f" and {error.one_sided} not finite" if error.one_sided else "")

    def tolerance(self) -> float:
        """Returns by how much the RMSE may exceed twice the other kernels' before it counts as wrong; real units."""
        if self.is_float:
            errors = self.first_error
            rms = math.sqrt(errors.sum_reference_squared / errors.elements) if errors.elements else 0.0
            return rms * (SHARE_HYBRID if self.hybrid else SHARE_FLOAT)
        if self.scale is None:
            return 0.0
        return self.scale * (STEPS_8_BIT if np.dtype(self.dtype).itemsize == 1 else STEPS_16_BIT)

    def _is_wrong(self, error: Difference, other: Difference) -> bool:
        tolerance = self.tolerance()
        return (
            error.one_sided > other.one_sided
            or error.rmse > 2.0 * other.rmse + tolerance
            or error.max_absolute > 2.0 * other.max_absolute + SINGLE_VALUE * tolerance
        )


_DIFFERENCES = tuple(field.name for field in dataclasses.fields(KernelRow) if field.type == "Difference")
_DESCRIPTION = tuple(field.name for field in dataclasses.fields(KernelRow) if field.name not in _DIFFERENCES)


@dataclasses.dataclass(frozen=True)
class KernelComparison(Shown):
    """The same model under two kernels.

    Attributes:
        rows: One for each output of each operator, in execution order.
        first: Runtime, version, kernels and delegates of the first, and what they are called here (``label``).
        second: The same of the second.
        samples: How many samples were compared.
        provenance: What is needed to repeat it.
        notes: What the reader must know.
    """

    rows: tuple[KernelRow, ...]
    first: dict[str, Any]
    second: dict[str, Any]
    samples: int
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sides = f"{self.first['label']} against {self.second['label']}"
        return f"KernelComparison({sides}, {len(self.rows)} rows, {self.samples} samples; wrong in {len(self.faults())})"

    def verdicts(self) -> list[Verdict]:
        """Returns what each row means."""
        return [row.verdict(self.first["label"], self.second["label"]) for row in self.rows]

    def faults(self) -> list[int]:
        """Returns the positions of the rows where one of the kernels is wrong, in execution order."""
        return [position for position, verdict in enumerate(self.verdicts()) if verdict.kind.endswith("wrong")]

    def worst(self, count: int | None = None) -> list[int]:
        """Returns the positions of the rows, worst first: wrong kernels, then other differences, the largest first."""
        verdicts = self.verdicts()

        def badness(position: int) -> tuple[float, ...]:
            isolated, row = self.rows[position].isolated, self.rows[position]
            size = isolated.relative_rmse if row.is_float else isolated.max_absolute
            return -verdicts[position].rank, -isolated.one_sided, -size, -isolated.sum_absolute, position

        return sorted(range(len(self.rows)), key=badness)[:count]

    def largest_steps(self) -> float:
        """Returns the largest isolated difference of a quantized tensor, in steps; 0 where there is none."""
        return max((row.isolated.max_absolute for row in self.rows if row.scale is not None), default=0.0)

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the report's columns, each with one value per row, in execution order.

        ``max_difference``, ``mean_difference`` and their ``accumulated_`` forms are in steps for integers and in real units
        for floats; ``first_rmse`` and ``second_rmse`` (against the exact result) in real units, NaN where nothing tells who
        is right; shares between 0 and 1; ``relative_rmse`` is NaN for integers, ``share_over_one_step`` for floats.
        """
        rows, nan = self.rows, float("nan")
        verdicts = self.verdicts()

        def column(value: Callable[[KernelRow], Any], dtype: Any = np.float64) -> np.ndarray:
            return np.array([value(row) for row in rows], dtype=dtype)

        def share(difference: Difference, count: int) -> float:
            return count / difference.elements if difference.elements else nan

        return {
            "node": column(lambda row: row.node, object),
            "op_name": column(lambda row: row.op_name, object),
            "operator": column(lambda row: row.operator, np.int64),
            "tensor_idx": column(lambda row: row.tensor_idx, np.int64),
            "shape": column(lambda row: str(row.shape), object),
            "dtype": column(lambda row: row.dtype, object),
            "scale": column(lambda row: nan if row.scale is None else row.scale),
            "num_elements": column(lambda row: row.isolated.elements, np.int64),
            "max_difference": column(lambda row: row.isolated.max_absolute),
            "mean_difference": column(lambda row: row.isolated.mean_absolute),
            "share_differing": column(lambda row: share(row.isolated, row.isolated.differing)),
            "share_over_one_step": column(lambda row: nan if row.is_float else share(row.isolated, row.isolated.over_one)),
            "relative_rmse": column(lambda row: row.isolated.relative_rmse if row.is_float else nan),
            "one_sided_not_finite": column(lambda row: row.isolated.one_sided, np.int64),
            "accumulated_max_difference": column(lambda row: row.accumulated.max_absolute),
            "accumulated_mean_difference": column(lambda row: row.accumulated.mean_absolute),
            "accumulated_relative_rmse": column(lambda row: row.accumulated.relative_rmse if row.is_float else nan),
            "first_rmse": column(lambda row: row.first_error.rmse),
            "second_rmse": column(lambda row: row.second_error.rmse),
            "exact": column(lambda row: row.exact, object),
            "first_ran": column(lambda row: row.first_ran, object),
            "second_ran": column(lambda row: row.second_ran, object),
            "worst_sample": column(lambda row: row.isolated.worst_sample, np.int64),
            "first_repeats": column(lambda row: row.first_repeated.is_none, bool),
            "second_repeats": column(lambda row: row.second_repeated.is_none, bool),
            "joined": column(lambda row: row.joined, object),
            "verdict": np.array([verdict.text for verdict in verdicts], dtype=object),
        }

    def __add__(self, other: KernelComparison) -> KernelComparison:
        """Returns the comparison over the samples of both, which must be of the same model and kernels.

        Raises:
            ModelError: Where they are not.
        """
        alike = len(self.rows) == len(other.rows) and all(map(KernelRow.is_like, self.rows, other.rows))
        if not alike or (self.first, self.second) != (other.first, other.second):
            raise ModelError(
                f"cannot merge a comparison of {self.first['label']} with {self.second['label']} in {len(self.rows)} rows and "
                f"one of {other.first['label']} with {other.second['label']} in {len(other.rows)}: they are of different "
                "models or kernels"
            )
        rows = tuple(ours + theirs for ours, theirs in zip(self.rows, other.rows, strict=True))
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        provenance = {"parts": [self.provenance, other.provenance]}
        return KernelComparison(rows, self.first, self.second, self.samples + other.samples, provenance, notes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON."""
        return {"format": _FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> KernelComparison:
        """Reads what `to_dict` gave.

        Raises:
            ModelError: For data of another kind or of another format version.
        """
        if fields.get("format") != _FORMAT or fields.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                f"got {fields.get('format')!r} version {fields.get('format_version')!r}, expected a saved kernel comparison "
                f"of format version {FORMAT_VERSION}"
            )
        rows = []
        for row in fields["rows"]:
            differences = {name: Difference(**row[name]) for name in _DIFFERENCES}
            rows.append(KernelRow(**{**row, **differences, "shape": tuple(row["shape"])}))
        return cls(
            tuple(rows),
            dict(fields["first"]),
            dict(fields["second"]),
            int(fields["samples"]),
            dict(fields["provenance"]),
            tuple(fields["notes"]),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON; an existing file is replaced only once the new one is whole.

        Raises:
            OutputError: Where it cannot be written.
        """
        save_record(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KernelComparison:
        """Reads what `save` wrote.

        Raises:
            ModelError: Where there is no such file or it is no saved comparison.
        """
        return load_record(path, cls.from_dict, "comparison", "is not a saved kernel comparison")
