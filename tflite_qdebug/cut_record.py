"""What cuts of a model gave on two kernels, as plain data: how close they came, which failed, and why; saved and loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.errors import ModelError, OptionError
from tflite_qdebug.kernel_record import FLOAT_ROUNDING, Difference
from tflite_qdebug.output_error import COLUMNS, measure_output, metric_of_sums, pooled_sums
from tflite_qdebug.quantization import QuantizationParameters
from tflite_qdebug.record import load_record, save_record
from tflite_qdebug.shown import Shown

__all__ = ["FORMAT_VERSION", "Closeness", "CutComparison", "CutLimits", "CutOutput", "CutRow"]

FORMAT_VERSION = 1
_FORMAT = "tflite_qdebug cuts"

#: What may become of a cut, the worst first: the tested side's process ended or took too long; it could not run the cut; it
#: gave something else; it gave something else because its inputs were something else; the cut could not be run by the
#: reference, so that there is nothing to compare with; it is within the limits.
KINDS = ("crashed", "refused", "differs", "inherited", "unmeasured", "passed")
FAILURES = ("crashed", "refused", "differs")


class CutLimits(NamedTuple):
    """What a cut must keep to pass. Of the first four those count that are not None; where all are, see ``max_difference``.

    Attributes:
        max_difference: Largest difference of a value: quantization steps of integers, real units of floats. Where no limit is
            given: one step for integers with a scale and for floats that DEQUANTIZE makes of such, none for other integers,
            and for other floats an RMSE of 1e-4 of the RMS of the values, which is float32's rounding.
        min_cosine: Least cosine similarity, of real values.
        min_snr_db: Least ratio of signal to error, ``10 log10(sum reference^2 / sum error^2)``, dB.
        min_psnr_db: Least ratio of peak to error, ``10 log10(range^2 / mean error^2)``, dB, where the range is that from the
            least to the greatest value of the reference.
        max_not_finite: How many values may be NaN or infinite where the other side's are not the same.
    """

    max_difference: float | None = None
    min_cosine: float | None = None
    min_snr_db: float | None = None
    min_psnr_db: float | None = None
    max_not_finite: int = 0

    @property
    def is_given(self) -> bool:
        """True where any limit is other than the default."""
        return self != CutLimits()

    def checked(self) -> CutLimits:
        """Returns the limits.

        Raises:
            OptionError: For one that no result can be held against.
        """
        for name, value in self._asdict().items():
            if value is not None and math.isnan(value):
                raise OptionError(f"got {name}={value!r}, expected a number")
        if self.max_difference is not None and self.max_difference < 0:
            raise OptionError(f"got max_difference={self.max_difference!r}, expected 0 or more")
        if self.min_cosine is not None and not -1.0 <= self.min_cosine <= 1.0:
            raise OptionError(f"got min_cosine={self.min_cosine!r}, expected -1 to 1")
        if self.max_not_finite < 0:
            raise OptionError(f"got max_not_finite={self.max_not_finite!r}, expected 0 or more")
        return self


@dataclasses.dataclass(frozen=True)
class Closeness:
    """How close arrays are to others, the reference, summed over samples; ``+`` merges.

    Attributes:
        difference: In steps of integers, in real units of floats.
        sums: As ``output_error.measure_output`` gives them, of real values that are finite on both sides.
        lowest: The reference's least finite value, real units.
        highest: Its greatest.
    """

    difference: Difference = dataclasses.field(default_factory=Difference)
    sums: tuple[float, ...] = (0.0,) * COLUMNS
    lowest: float = math.inf
    highest: float = -math.inf

    @classmethod
    def between(
        cls, values: np.ndarray, reference: np.ndarray, quantization: QuantizationParameters | None, sample: int
    ) -> Closeness:
        """Compares two arrays of one sample; ``quantization`` says what integers stand for."""
        difference = Difference.between(values, reference, sample)
        if difference.other_shape:
            return cls(difference)
        real = [_real(array, quantization) for array in (values, reference)]
        finite = np.isfinite(real[0]) & np.isfinite(real[1])
        known = real[1][np.isfinite(real[1])]
        sums = measure_output(real[0][finite], real[1][finite])
        bounds = (float(known.min()), float(known.max())) if known.size else (math.inf, -math.inf)
        return cls(difference, tuple(sums.tolist()), *bounds)

    def __add__(self, other: Closeness) -> Closeness:
        """Returns the closeness over the samples of both."""
        return Closeness(
            self.difference + other.difference,
            tuple(pooled_sums(np.array([self.sums, other.sums])).tolist()),
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
        )

    def _metric(self, name: str) -> float:
        return float(metric_of_sums(name, np.array(self.sums)))

    @property
    def _differs(self) -> bool:
        return self._metric("chebyshev") > 0.0

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 where nothing differs."""
        return self._metric("cosine") if self._differs else 1.0

    @property
    def snr_db(self) -> float:
        """Ratio of signal to error, dB; infinite where nothing differs."""
        return self._metric("sqnr_db") if self._differs else math.inf

    @property
    def psnr_db(self) -> float:
        """Ratio of the reference's range to the error, dB; infinite where nothing differs, -inf without a range."""
        span = self.highest - self.lowest
        if not self._differs:
            return math.inf
        return 10.0 * math.log10(span * span / self._metric("mse")) if span > 0 else -math.inf

    def broken(self, limits: CutLimits, is_float: bool, has_scale: bool, step: float | None = None) -> list[str]:
        """Returns in words which limits are not kept.

        Args:
            limits: The limits.
            is_float: The values are floats.
            has_scale: They are integers with a scale.
            step: They are floats that stand for integers, so many real units apart.
        """
        found = []
        difference = self.difference
        if difference.other_shape:
            found.append(f"another shape in {difference.other_shape} samples")
        if difference.one_sided > limits.max_not_finite:
            found.append(f"{difference.one_sided} values NaN or infinite on one side, at most {limits.max_not_finite}")
        found += self._beyond_difference(limits, is_float, has_scale, step)
        for name, value, least, unit in (
            ("cosine", self.cosine, limits.min_cosine, ""),
            ("SNR", self.snr_db, limits.min_snr_db, " dB"),
            ("PSNR", self.psnr_db, limits.min_psnr_db, " dB"),
        ):
            if least is not None and not value >= least:
                found.append(f"{name} {value:.6g}{unit}, at least {least:g}{unit}")
        return found

    def _beyond_difference(self, limits: CutLimits, is_float: bool, has_scale: bool, step: float | None) -> list[str]:
        most, largest = limits.max_difference, self.difference.max_absolute
        if most is None and any(limit is not None for limit in limits[1:4]):
            return []
        if most is None and step is not None:
            most = step * (1.0 + FLOAT_ROUNDING)  # one step, however the products of integers with it are rounded
        if most is None and is_float:
            relative = self.difference.relative_rmse
            return [] if relative <= FLOAT_ROUNDING else [f"relative RMSE {relative:.2g}, at most {FLOAT_ROUNDING:g}"]
        if most is None:
            most = 1.0 if has_scale else 0.0
        unit = " steps" if has_scale else ""
        return [] if largest <= most else [f"max difference {largest:.4g}{unit}, at most {most:g}"]


def _real(array: np.ndarray, quantization: QuantizationParameters | None) -> np.ndarray:
    """Returns what values stand for, flat, float64."""
    if quantization is not None and array.dtype.kind in "iu":
        return quantization.dequantize(array).astype(np.float64).reshape(-1)
    if np.iscomplexobj(array):
        return np.stack([array.real, array.imag]).astype(np.float64).reshape(-1)
    return array.astype(np.float64).reshape(-1)


@dataclasses.dataclass(frozen=True)
class CutOutput:
    """One output of one cut.

    Attributes:
        node: Name of the tensor.
        tensor_idx: Its index in the model.
        dtype: numpy's name.
        scale: Real units per step, or None.
        step: Real units per step of what DEQUANTIZE made floats of; None of other tensors.
        ran: Which kernels of the tested side computed it: ``delegate``, ``xnnpack``, ``builtin``, ``reference``; empty where
            none got so far.
        repeats: False where the reference computes something else in the cut than in the whole model.
        isolated: The tested side's output against the reference's, both on the reference's inputs.
        cumulative: The same on the inputs that the tested side's own cuts before it gave; None where that was not measured.
    """

    node: str
    tensor_idx: int
    dtype: str
    scale: float | None
    step: float | None = None
    ran: str = ""
    repeats: bool = True
    isolated: Closeness = Closeness()
    cumulative: Closeness | None = None

    @property
    def is_float(self) -> bool:
        """True for a tensor of floats."""
        return np.dtype(self.dtype).kind in "fc"

    @property
    def judged(self) -> Closeness:
        """What the limits are for: the cumulative closeness where it was measured."""
        return self.isolated if self.cumulative is None else self.cumulative

    def broken(self, limits: CutLimits, closeness: Closeness) -> list[str]:
        """Returns in words which limits one of its closenesses does not keep."""
        return closeness.broken(limits, self.is_float, self.scale is not None, self.step)


@dataclasses.dataclass(frozen=True)
class CutRow:
    """One cut on both sides.

    Attributes:
        name: As in ``edit.extracted.Cut``.
        operators: Positions of its operators.
        op_names: Their types.
        inputs: Names of its inputs in the model.
        outputs: Its outputs.
        failure: ``crashed``, ``refused`` or ``unmeasured``, where there is nothing to compare; else empty.
        reason: In words why.
        smallest_of: The cut that this one was bisected from; empty for a cut that was asked for.
        folder: Where it is kept, below the folder of results; empty where it is not.
        notes: What the reader must know.
    """

    name: str
    operators: tuple[int, ...]
    op_names: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[CutOutput, ...]
    failure: str = ""
    reason: str = ""
    smallest_of: str = ""
    folder: str = ""
    notes: tuple[str, ...] = ()

    def kind(self, limits: CutLimits) -> str:
        """Returns what became of the cut, one of `KINDS`."""
        if self.failure:
            return self.failure
        if not any(output.broken(limits, output.judged) for output in self.outputs):
            return "passed"
        alone = any(output.broken(limits, output.isolated) for output in self.outputs)
        return "differs" if alone else "inherited"

    def verdict(self, limits: CutLimits) -> str:
        """Says it in words."""
        kind = self.kind(limits)
        if self.failure:
            return f"{kind}: {self.reason}"
        found = []
        for output in self.outputs:
            where = f" at {output.node!r}" if len(self.outputs) > 1 else ""
            found += [f"{words}{where}" for words in output.broken(limits, output.judged)]
        return f"{kind}: {'; '.join(found)}" if found else kind

    @property
    def ran(self) -> str:
        """Which kernels of the tested side ran it."""
        return ", ".join(dict.fromkeys(output.ran for output in self.outputs if output.ran))


@dataclasses.dataclass(frozen=True)
class CutComparison(Shown):
    """Cuts of a model on two kernels.

    Attributes:
        rows: One for each cut: those that were asked for, in execution order, then those that these were bisected to.
        reference: Runtime, version, kernels and delegates of the reference, and what it is called (``label``).
        tested: The same of the tested side.
        limits: What a cut must keep.
        samples: How many samples were run.
        provenance: What is needed to repeat it.
        notes: What the reader must know.
    """

    rows: tuple[CutRow, ...]
    reference: dict[str, Any]
    tested: dict[str, Any]
    limits: CutLimits
    samples: int
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sides = f"{self.tested['label']} against {self.reference['label']}"
        return f"CutComparison({sides}, {len(self.rows)} cuts, {self.samples} samples; {len(self.failed())} fail)"

    def failed(self) -> list[CutRow]:
        """Returns the cuts that fail by themselves, in execution order, the smallest last."""
        return [row for row in self.rows if row.kind(self.limits) in FAILURES]

    def passed(self) -> bool:
        """True where every cut is within the limits, also by what it inherited."""
        return all(row.kind(self.limits) == "passed" for row in self.rows)

    def smallest(self, name: str) -> CutRow | None:
        """Returns what a cut was bisected to; None where it was not."""
        return next((row for row in self.rows if row.smallest_of == name), None)

    def worst(self, count: int | None = None) -> list[int]:
        """Returns the positions of the rows, worst first: failures in execution order, then the others by their difference."""

        def badness(position: int) -> tuple[float, ...]:
            row = self.rows[position]
            rank = KINDS.index(row.kind(self.limits))
            size = max((output.judged.difference.max_absolute for output in row.outputs if output.scale is not None), default=0)
            error = min((output.judged.snr_db for output in row.outputs), default=math.inf)
            return (rank, position) if rank < KINDS.index("passed") else (rank, -size, error, position)

        return sorted(range(len(self.rows)), key=badness)[:count]

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the report's columns, with one value for each output of each cut.

        Differences are in steps for integers, in real units for floats; ``snr_db`` and ``psnr_db`` in dB. Those of
        ``cumulative_`` are NaN where that was not measured.
        """
        cells = [(row, output) for row in self.rows for output in row.outputs]

        def column(value: Callable[[CutRow, CutOutput], Any], dtype: Any = np.float64) -> np.ndarray:
            return np.array([value(row, output) for row, output in cells], dtype=dtype)

        found = {
            "cut": column(lambda row, output: row.name, object),
            "op_names": column(lambda row, output: " ".join(row.op_names), object),
            "node": column(lambda row, output: output.node, object),
            "tensor_idx": column(lambda row, output: output.tensor_idx, np.int64),
            "dtype": column(lambda row, output: output.dtype, object),
            "scale": column(lambda row, output: math.nan if output.scale is None else output.scale),
            "ran": column(lambda row, output: output.ran, object),
            "repeats": column(lambda row, output: output.repeats, bool),
        }
        for prefix in ("isolated", "cumulative"):
            for name, value in _FIGURES.items():
                figures = [getattr(output, prefix) for _, output in cells]
                found[f"{prefix}_{name}"] = np.array([math.nan if one is None else value(one) for one in figures])
        found["smallest_of"] = column(lambda row, output: row.smallest_of, object)
        found["folder"] = column(lambda row, output: row.folder, object)
        found["kind"] = column(lambda row, output: row.kind(self.limits), object)
        found["verdict"] = column(lambda row, output: row.verdict(self.limits), object)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, ready for JSON."""
        return {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "limits": self.limits._asdict(),
            "kinds": [row.kind(self.limits) for row in self.rows],
            "verdicts": [row.verdict(self.limits) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CutComparison:
        """Reads what `to_dict` gave.

        Raises:
            ModelError: For data of another kind or of another format version.
        """
        if fields.get("format") != _FORMAT or fields.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                f"got {fields.get('format')!r} version {fields.get('format_version')!r}, expected saved cuts of format "
                f"version {FORMAT_VERSION}"
            )
        return cls(
            tuple(_row_of(row) for row in fields["rows"]),
            dict(fields["reference"]),
            dict(fields["tested"]),
            CutLimits(**fields["limits"]),
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
    def load(cls, path: str | os.PathLike[str]) -> CutComparison:
        """Reads what `save` wrote.

        Raises:
            ModelError: Where there is no such file or it holds no saved cuts.
        """
        return load_record(path, cls.from_dict, "cuts", "does not hold saved cuts")


_FIGURES: dict[str, Callable[[Closeness], float]] = {
    "max_difference": lambda one: one.difference.max_absolute,
    "mean_difference": lambda one: one.difference.mean_absolute,
    "share_differing": lambda one: one.difference.differing / one.difference.elements if one.difference.elements else math.nan,
    "cosine": lambda one: one.cosine,
    "snr_db": lambda one: one.snr_db,
    "psnr_db": lambda one: one.psnr_db,
    "one_sided_not_finite": lambda one: one.difference.one_sided,
    "worst_sample": lambda one: one.difference.worst_sample,
}


def _closeness_of(fields: Mapping[str, Any]) -> Closeness:
    return Closeness(**{**fields, "difference": Difference(**fields["difference"]), "sums": tuple(fields["sums"])})


def _row_of(fields: Mapping[str, Any]) -> CutRow:
    outputs = []
    for output in fields["outputs"]:
        cumulative = output["cumulative"]
        outputs.append(
            CutOutput(
                **{
                    **output,
                    "isolated": _closeness_of(output["isolated"]),
                    "cumulative": None if cumulative is None else _closeness_of(cumulative),
                }
            )
        )
    lists = {name: tuple(fields[name]) for name in ("operators", "op_names", "inputs", "notes")}
    return CutRow(**{**fields, **lists, "outputs": tuple(outputs)})
