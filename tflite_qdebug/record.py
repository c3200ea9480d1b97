"""A run's results as plain data: layers, statistics, provenance; saved with a format version, loaded, merged.

Reports read a ``Run`` and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar, Union

import numpy as np

from tflite_qdebug.errors import MissingPackageError, ModelError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.shown import Shown
from tflite_qdebug.statistics import TENSORFLOW_METRICS, ErrorStatistics

__all__ = ["FORMAT_VERSION", "Layer", "Run", "load_record", "save_record"]

FORMAT_VERSION = 1
_Record = TypeVar("_Record")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of a report: a quantized tensor and the float tensor that it is held against.

    Attributes:
        node: The name under which the operator can be denylisted.
        op_name: Operator that produced the quantized tensor, ``CONV_2D``.
        operator: Its position in the debug model.
        tensor_name: Name of the quantized tensor in the debug model.
        tensor_idx: Its index there.
        float_idx: Index of the float tensor.
        shape: Of both tensors.
        dtype: numpy name of the quantized tensor's type; ``float32`` where only weights are quantized.
        scale: Real units per step; None where the tensor is not quantized.
        zero_point: Integer that stands for 0.0; None where the tensor is not quantized.
        key: The name of TensorFlow's NumericVerify output, the key in ``layer_statistics``.
        reference: Where the float tensor comes from: ``float model``, or ``dequantized weights`` where there is no float
            model, or it has no counterpart.
        matched_by: How the counterpart in the float model was found, ``name+constants+structure``; empty where nothing had to
            be found.
    """

    node: str
    op_name: str
    operator: int
    tensor_name: str
    tensor_idx: int
    float_idx: int
    shape: Tuple[int, ...]
    dtype: str
    scale: Optional[float]
    zero_point: Optional[int]
    key: str
    reference: str = "float model"
    matched_by: str = ""

    @property
    def levels(self) -> float:
        """Number of integers that the type has; NaN for a float tensor."""
        dtype = np.dtype(self.dtype)
        return float("nan") if dtype.kind == "f" else float(2 ** (8 * dtype.itemsize))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Layer:
        """Reads what ``dataclasses.asdict`` gave."""
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    def __repr__(self) -> str:
        return "Layer({!r}, {}, {} {})".format(self.node, self.op_name, self.dtype, list(self.shape))


class Run(Shown):
    """What one run over a debug dataset measured.

    Attributes:
        verify: ``per_layer`` (the error each operator adds) or ``whole_model`` (the accumulated error).
        layers: In execution order.
        statistics: Pooled error, one row per layer.
        metrics: The user's layer metrics: ``{name: one value per layer}``, the mean over samples, NaN left out.
        model_metrics: The user's model metrics: ``{name: mean over samples}``.
        provenance: What is needed to repeat the run: versions, kernels, hashes, dataset, options.
        notes: What the reader must know.
        parts: What each layer's error is made of: ``{part: one row per layer}``, rows without an element where the part does
            not exist; empty where it was not asked for. ``weights``: on the same dequantized inputs, the float operator with
            dequantized weights less the one with float weights; ``output``: the quantized operator less that, so rounding,
            clipping and the kernel's own arithmetic; ``input``: the float operator on dequantized inputs less the float model
            on its own; ``accumulated``: the sum of the three, the quantized model less the float model. Apart from these,
            ``own``: the quantized operator less the float twin, both on the float model's own values, rounded as the
            operator's inputs are: what it adds where all before it is sound.
        whole: Each of the model's outputs against the float model's: ``{"quantized", "weights", "activations": one row per
            output}``, the last two with weights alone and activations alone quantized.
        outputs: Names of the outputs that ``whole`` has rows for.
    """

    def __init__(
        self,
        verify: str,
        layers: List[Layer],
        statistics: ErrorStatistics,
        metrics: Optional[Dict[str, np.ndarray]] = None,
        model_metrics: Optional[Dict[str, float]] = None,
        provenance: Optional[Dict[str, Any]] = None,
        notes: Optional[List[str]] = None,
        parts: Optional[Dict[str, ErrorStatistics]] = None,
        whole: Optional[Dict[str, ErrorStatistics]] = None,
        outputs: Optional[List[str]] = None,
    ) -> None:
        """Keeps what it is made of."""
        self.verify = verify
        self.layers = layers
        self.statistics = statistics
        self.metrics = metrics or {}
        self.model_metrics = model_metrics or {}
        self.provenance = provenance or {}
        self.notes = notes or []
        self.parts = parts or {}
        self.whole = whole or {}
        self.outputs = outputs or []

    def columns(self) -> Dict[str, np.ndarray]:
        """Returns the report's columns, each with one value per layer, in execution order.

        Units: ``scale``, ``bias``, ``rmse``, ``max_abs_error``, ``max_inner_error`` (the same without what the range clips),
        ``range`` and ``worst_rmse`` are in the tensor's real units, ``mse`` in their square, ``sqnr_db`` in dB, ``mre`` (mean
        |error| / |float value| over the float values other than 0) and ``cosine`` are ratios, shares between 0 and 1. ``mre``
        is NaN in a run that did not measure it, as ``LayerMetrics(relative=True)`` does. ``range`` is ``scale`` times the
        number of steps (255 for int8).
        ``rmse_over_scale`` has a floor of 1 / sqrt(12) = 0.2887 for pure rounding; `severity` tells of ``severity``. Where the
        error was split, ``weights_rmse``, ``output_rmse``, ``input_rmse``, ``accumulated_rmse`` and ``own_rmse`` are its
        parts, as in `parts`; they add up as values, not as RMSE.
        """
        statistics = self.statistics
        scale = np.array([math.nan if layer.scale is None else layer.scale for layer in self.layers])
        zero_point = np.array([math.nan if layer.zero_point is None else layer.zero_point for layer in self.layers])
        levels = np.array([layer.levels for layer in self.layers])
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                "node": np.array([layer.node for layer in self.layers], dtype=object),
                "op_name": np.array([layer.op_name for layer in self.layers], dtype=object),
                "tensor_idx": np.array([layer.tensor_idx for layer in self.layers]),
                "shape": np.array([str(layer.shape) for layer in self.layers], dtype=object),
                "dtype": np.array([layer.dtype for layer in self.layers], dtype=object),
                "scale": scale,
                "zero_point": zero_point,
                "range": scale * (levels - 1),
                "num_elements": statistics.num_elements,
                "bias": statistics.bias,
                "rmse": statistics.rmse,
                "rmse_over_scale": statistics.rmse / scale,
                "mse": statistics.mse,
                "mre": statistics.mre,
                "sqnr_db": statistics.sqnr_db,
                "cosine": statistics.cosine,
                "max_abs_error": statistics.max_abs_error,
                "max_inner_error": statistics.max_inner_error,
                "saturated_low": statistics.saturated_low,
                "saturated_high": statistics.saturated_high,
                "range_used": statistics.range_used(levels),
                "worst_sample": statistics.worst_sample,
                "worst_rmse": np.sqrt(np.maximum(statistics.worst_mean_squared_error, 0.0)),
                "severity": self.severity(),
            }
        for name, values in self.metrics.items():
            # A user's metric may be called like a column of ours, and must not pass for it.
            columns["metric " + name if name in columns or name == "tensor_name" else name] = values
        for name, part in self.parts.items():
            columns[name + "_rmse"] = part.rmse
        columns["reference"] = np.array([layer.reference for layer in self.layers], dtype=object)
        columns["matched_by"] = np.array([layer.matched_by for layer in self.layers], dtype=object)
        columns["tensor_name"] = np.array([layer.tensor_name for layer in self.layers], dtype=object)
        return columns

    def frame(self) -> Any:
        """Returns the columns as a pandas DataFrame, one row per layer.

        Raises:
            MissingPackageError: Where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingPackageError(
                "a data frame needs pandas, which is not installed; pip install pandas, or use Run.columns()"
            ) from error
        return pandas.DataFrame(self.columns())

    def severity(self) -> np.ndarray:
        """Returns the error of each layer in steps of 8 bits, by which layers of all kinds rank; float64 ``(layers,)``.

        It is the RMSE, or a sixth of the greatest error where that is more: noise does not get beyond six times its RMSE, and
        one bad channel among hundreds hardly moves the RMSE. Values that the range clips count in the RMSE alone: a few of
        them are no fault. The step of an 8-bit tensor is its scale, that of a 16-bit
        tensor 256 times its scale, and that of a float tensor 1/42 of the root mean square of its values: an 8-bit tensor
        from -3 to 3 times that has it. Where the error was split, it is that of the part ``own``, which errors of the layers
        before it do not touch; otherwise a layer also answers for clipping what a broken layer before it made too large.
        """
        own = self.parts.get("own")
        result = self._in_steps(self.statistics)
        return result if own is None else np.where(own.num_elements > 0, self._in_steps(own), result)

    def _in_steps(self, statistics: ErrorStatistics) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            floating = np.sqrt(statistics.sums[:, 3] / statistics.sums[:, 0]) / 42.0
            scaled = [math.nan if layer.scale is None else layer.scale * layer.levels / 256.0 for layer in self.layers]
            error = np.maximum(statistics.rmse, statistics.max_inner_error / 6.0)
            return error / np.where(np.isnan(scaled), floating, scaled)

    @property
    def default_criterion(self) -> str:
        """The column that ranks the layers: ``rmse_over_scale`` or ``severity``.

        The former where all have steps of 8 bits and the error was not split. Steps of 8 and of 16 bits are not of one size,
        and floats have none.
        """
        comparable = all(layer.scale is not None and layer.levels == 256 for layer in self.layers)
        return "rmse_over_scale" if comparable and "own" not in self.parts else "severity"

    def numbers(self, column: str, what: str = "column") -> np.ndarray:
        """Returns one numeric column, float64 ``(layers,)``.

        Args:
            column: Its name.
            what: What the user gave it as, for the message.

        Raises:
            OptionError: For a column that does not exist, holds no numbers or was not measured.
        """
        columns = self.columns()
        if column not in columns or columns[column].dtype == object:
            names = [name for name, values in columns.items() if values.dtype != object]
            raise OptionError(
                "got {} {!r}, expected one of {}.{}".format(what, column, ", ".join(names), did_you_mean(column, names))
            )
        if column == "mre" and not self.statistics.has_relative_errors:
            raise OptionError(
                "got {} 'mre', which was not measured in this run; measure again with LayerMetrics(relative=True), or "
                "run --criterion mre".format(what)
            )
        return columns[column].astype(np.float64)

    def worst(self, criterion: Optional[str] = None, count: Optional[int] = None) -> List[int]:
        """Returns the positions of the worst layers, worst first.

        Args:
            criterion: None: `default_criterion`. Else a numeric column; large is bad (of ``bias`` its size), except for
                ``sqnr_db`` and ``cosine``, where small is. NaN and infinity count as the worst of all where they come from
                the values, and last where the column does not apply to a layer (a float tensor has no scale).
            count: How many; all where None.

        Raises:
            OptionError: For a column that does not exist, holds no numbers or was not measured.
        """
        criterion = self.default_criterion if criterion is None else criterion
        badness = self.numbers(criterion, "criterion")
        if criterion in ("sqnr_db", "cosine"):
            badness = -badness
        if criterion == "bias":
            badness = np.abs(badness)
        broken = ~np.isfinite(self.statistics.sums).all(axis=1)
        badness = np.where(broken, np.inf, np.where(np.isnan(badness), -np.inf, badness))
        order = np.argsort(-badness, kind="stable")
        return [int(position) for position in order[:count]]

    def tensorflow_statistics(self) -> Dict[str, Dict[str, float]]:
        """Returns ``{NumericVerify name: {metric: value}}`` as TensorFlow's debugger aggregates them."""
        values = self.statistics.tensorflow_metrics()
        result: Dict[str, Dict[str, float]] = {}
        for position, layer in enumerate(self.layers):
            row = dict(zip(TENSORFLOW_METRICS, values[position].tolist()))
            row.update({name: float(column[position]) for name, column in self.metrics.items()})
            result[layer.key] = row
        return result

    def __add__(self, other: Run) -> Run:
        """Returns the run over the samples of both, which must be of the same debug model.

        Raises:
            ModelError: Where the layers or the metrics differ.
        """
        if self.layers != other.layers or self.verify != other.verify:
            raise ModelError(
                "cannot merge a {} run of {} layers with a {} run of {} layers: they are of different debug models".format(
                    self.verify, len(self.layers), other.verify, len(other.layers)
                )
            )
        pairs: List[Tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
            ("metrics", self.metrics, other.metrics),
            ("metrics", self.model_metrics, other.model_metrics),
            ("parts", self.parts, other.parts),
            ("parts", self.whole, other.whole),
        ]
        for what, ours, theirs in pairs:
            if set(ours) != set(theirs):
                raise ModelError(
                    "cannot merge runs with different {}: got {} and {}, expected the same names".format(
                        what, sorted(ours), sorted(theirs)
                    )
                )
        shares = [self.statistics.samples, other.statistics.samples]
        notes = self.notes + [note for note in other.notes if note not in self.notes]
        return Run(
            self.verify,
            self.layers,
            self.statistics + other.statistics,
            {name: _weighted(self.metrics[name], other.metrics[name], shares) for name in self.metrics},
            {
                name: float(_weighted(self.model_metrics[name], other.model_metrics[name], shares))
                for name in self.model_metrics
            },
            {"parts": [self.provenance, other.provenance]},
            notes,
            {name: part + other.parts[name] for name, part in self.parts.items()},
            {name: part + other.whole[name] for name, part in self.whole.items()},
            self.outputs,
        )

    def to_dict(self) -> Dict[str, Any]:
        """Returns plain data, ready for JSON."""
        return {
            "format": "tflite_qdebug run",
            "format_version": FORMAT_VERSION,
            "verify": self.verify,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "statistics": self.statistics.to_dict(),
            "metrics": {name: np.asarray(values).tolist() for name, values in self.metrics.items()},
            "model_metrics": self.model_metrics,
            "provenance": self.provenance,
            "notes": self.notes,
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "whole": {name: part.to_dict() for name, part in self.whole.items()},
            "outputs": self.outputs,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Run:
        """Reads what ``to_dict`` gave.

        Raises:
            ModelError: For data of another kind or of a newer format.
        """
        if fields.get("format") != "tflite_qdebug run" or fields.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                "got {!r} version {!r}, expected a saved run of format version {}".format(
                    fields.get("format"), fields.get("format_version"), FORMAT_VERSION
                )
            )
        return cls(
            fields["verify"],
            [Layer.from_dict(layer) for layer in fields["layers"]],
            ErrorStatistics.from_dict(fields["statistics"]),
            {name: np.asarray(values, dtype=np.float64) for name, values in fields["metrics"].items()},
            dict(fields["model_metrics"]),
            dict(fields["provenance"]),
            list(fields["notes"]),
            {name: ErrorStatistics.from_dict(part) for name, part in fields.get("parts", {}).items()},
            {name: ErrorStatistics.from_dict(part) for name, part in fields.get("whole", {}).items()},
            list(fields.get("outputs", [])),
        )

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes the run as JSON; an existing file is replaced only once the new one is whole.

        Raises:
            OutputError: Where it cannot be written.
        """
        save_record(path, self.to_dict())

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> Run:
        """Reads a run that `save` wrote.

        Raises:
            ModelError: Where there is no such file or it is not a saved run.
        """
        return load_record(path, cls.from_dict, "run", "is not a saved run")

    def __repr__(self) -> str:
        counts = "{}, {} layers, {} samples".format(self.verify, len(self.layers), self.statistics.samples)
        if not self.layers:
            return "Run({})".format(counts)
        criterion = self.default_criterion
        worst = self.worst(criterion, 1)[0]
        layer, value = self.layers[worst], self.numbers(criterion)[worst]
        return "Run({}; worst {} {}, {} {:.3g})".format(counts, layer.op_name, layer.node.partition(";")[0], criterion, value)


def _weighted(first: Any, second: Any, shares: List[int]) -> np.ndarray:
    values, weights = np.array([first, second], dtype=np.float64), np.array(shares, dtype=np.float64)
    weights = np.where(np.isnan(values), 0.0, weights.reshape((2,) + (1,) * (values.ndim - 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(values * weights, axis=0) / weights.sum(axis=0)


def save_record(path: Union[str, os.PathLike[str]], fields: Mapping[str, Any]) -> None:
    """Writes plain data as JSON; an existing file is replaced only once the new one is whole.

    Raises:
        OutputError: Where it cannot be written.
    """
    write_atomically(path, json.dumps(encoded(fields), indent=1, allow_nan=False).encode())


def load_record(path: Union[str, os.PathLike[str]], read: Callable[[Any], _Record], what: str, wrong: str) -> _Record:
    """Reads what `save_record` wrote.

    Args:
        path: The file.
        read: Makes the record of the plain data.
        what: What it is called where it cannot be read: ``run``.
        wrong: What is said of a file that holds something else: ``is not a saved run``.

    Raises:
        ModelError: Where there is no such file or it holds something else.
    """
    try:
        with open(path, "rb") as file:
            return read(decoded(json.loads(file.read().decode("utf-8"))))
    except OSError as error:
        raise ModelError("cannot read the {} {}: {}".format(what, os.fspath(path), error.strerror)) from error
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("{} {}: {}".format(os.fspath(path), wrong, error)) from error


# JSON has no word for NaN and infinity, and readers other than Python's refuse the ones that Python writes.
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encoded(value: Any) -> Any:
    """Returns plain data with every NaN and infinity as ``{"number": word}``, which any JSON reader takes."""
    if isinstance(value, dict):
        return {str(key): encoded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")}
    return value


def decoded(value: Any) -> Any:
    """Returns what `encoded` was given."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(value.get("number"), str) and value["number"] in _WORDS:
            return _WORDS[value["number"]]
        return {key: decoded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [decoded(entry) for entry in value]
    return value
