"""The error of whole models at their outputs: sums over samples, and the metrics that are made of them.

What is kept are sums, so that samples can be added in any portions, and so that a ratio is one of sums and no mean of ratios.
Beside the sums over all samples there are those over some hundred random choices of them, drawn with replacement as the samples
come (the Poisson bootstrap of Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012): how far they lie apart
tells how far a result would have come out otherwise on other samples. Memory does not grow with the number of samples.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.errors import ModelError, OptionError, did_you_mean

__all__ = ["BADNESS", "METRICS", "OutputErrors", "is_probability", "measure_output", "softmax"]

#: Metrics by name; units: ``sqnr_db`` in dB, ``mse`` in squared real units, ``chebyshev`` in real units, ``kl`` in nats for
#: each distribution; ``cosine``, ``mre`` (a ratio) and ``flips`` (the share of rows whose greatest value moved) have none.
METRICS = ("cosine", "mse", "mre", "sqnr_db", "chebyshev", "kl", "flips")
#: The sign that makes a metric large where it is bad.
BADNESS = {"cosine": -1.0, "mse": 1.0, "mre": 1.0, "sqnr_db": -1.0, "chebyshev": 1.0, "kl": 1.0, "flips": 1.0}
# Sums that a sample adds to: elements, squared error, squared float value, error times float value, |error / float value| and
# for how many elements, KL divergence and for how many rows, rows whose greatest value moved and of how many; then a maximum.
_COUNT, _ERROR, _FLOAT, _PRODUCT, _RELATIVE, _RELATIVES, _KL, _KL_ROWS, _FLIPS, _FLIP_ROWS, _MAXIMUM = range(11)
COLUMNS = 11
#: Random choices of the samples.
REPLICATES = 200
# Keras's: a probability below it counts as it (keras.losses.KLDivergence, backend epsilon).
_LEAST_PROBABILITY = 1e-7


def is_probability(values: np.ndarray) -> bool:
    """Returns whether the rows of an array, along its last axis, are probabilities that sum to 1, give or take 1 %."""
    if values.ndim == 0 or values.shape[-1] < 2:
        return False
    return bool((values >= 0.0).all() and np.abs(values.sum(axis=-1, dtype=np.float64) - 1.0).max() < 0.01)


def softmax(values: np.ndarray) -> np.ndarray:
    """Returns the probabilities, along the last axis, that logits stand for; float64, same shape."""
    shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def measure_output(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns what one output of one sample adds: float64 ``(COLUMNS,)``.

    Args:
        values: What the quantized model gave, float32, any shape.
        reference: What the float model gave, float32, the same number of elements. Where its rows along the last axis sum to 1,
            they are taken for probabilities, and the Kullback-Leibler divergence ``sum p log(p / q)`` is measured, with
            probabilities below 1e-7 taken for that (as ``keras.losses.KLDivergence`` does).
    """
    row = np.zeros(COLUMNS)
    wide = reference.reshape(-1).astype(np.float64)
    error = values.reshape(-1) - wide
    size = np.abs(error)
    row[_COUNT] = wide.size
    row[_ERROR], row[_FLOAT], row[_PRODUCT] = error @ error, wide @ wide, error @ wide
    present = wide != 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        row[_RELATIVE] = (size[present] / np.abs(wide[present])).sum()
    row[_RELATIVES] = np.count_nonzero(present)
    row[_MAXIMUM] = size.max(initial=0.0)
    if reference.ndim and reference.shape[-1] > 1:
        row[_FLIP_ROWS] = wide.size // reference.shape[-1]
        given = values.reshape(reference.shape)
        row[_FLIPS] = np.count_nonzero(given.argmax(axis=-1) != reference.argmax(axis=-1))
        if is_probability(reference):
            p = np.maximum(reference.astype(np.float64), _LEAST_PROBABILITY)
            q = np.clip(given.astype(np.float64), _LEAST_PROBABILITY, None)
            row[_KL], row[_KL_ROWS] = float((p * np.log(p / q)).sum()), row[_FLIP_ROWS]
    return row


class OutputErrors:
    """The errors of several variants of a model at its outputs, against the float model's.

    Attributes:
        variants: Names of the variants.
        outputs: Names of the outputs.
        task_metrics: Names of the user's metrics, which take all outputs and a label at once.
        samples: How many samples were added.
        sums: Over all samples, float64 ``(variants, outputs, COLUMNS)``; the last column is a maximum.
        replicates: The same over random choices of the samples, ``(REPLICATES, variants, outputs, COLUMNS)``.
        task_sums: ``(variants, task metrics)``.
        task_replicates: ``(REPLICATES, variants, task metrics)``.
        weights: How many samples each choice has, ``(REPLICATES,)``.
    """

    def __init__(self, variants: Sequence[str], outputs: Sequence[str], task_metrics: Sequence[str] = ()) -> None:
        """Starts with no sample."""
        self.variants, self.outputs, self.task_metrics = tuple(variants), tuple(outputs), tuple(task_metrics)
        self.samples = 0
        self.sums: np.ndarray = np.zeros((len(self.variants), len(self.outputs), COLUMNS))
        self.replicates: np.ndarray = np.zeros((REPLICATES, *self.sums.shape))
        self.task_sums: np.ndarray = np.zeros((len(self.variants), len(self.task_metrics)))
        self.task_replicates: np.ndarray = np.zeros((REPLICATES, *self.task_sums.shape))
        self.weights = np.zeros(REPLICATES)

    def add(self, index: int, rows: np.ndarray, task: np.ndarray | None = None) -> None:
        """Adds a sample.

        Args:
            index: Its position in the dataset, which seeds the random choices, so that a result can be repeated.
            rows: `measure_output` of each variant and output, ``(variants, outputs, COLUMNS)``.
            task: The task metrics of each variant, ``(variants, task metrics)``.
        """
        self.samples += 1
        drawn = np.random.default_rng(index).poisson(1.0, REPLICATES).astype(np.float64)
        self.weights += drawn
        chosen = np.flatnonzero(drawn)
        highest = self.replicates[..., _MAXIMUM].copy()
        highest[chosen] = np.maximum(highest[chosen], rows[..., _MAXIMUM])
        self.replicates[chosen] += drawn[chosen, None, None, None] * rows
        self.replicates[..., _MAXIMUM] = highest
        maximum = np.maximum(self.sums[..., _MAXIMUM], rows[..., _MAXIMUM])
        self.sums += rows
        self.sums[..., _MAXIMUM] = maximum
        if task is not None and task.size:
            self.task_sums += task
            self.task_replicates += drawn[:, None, None] * task

    def names(self) -> list[str]:
        """Returns the metrics that there are: those of `METRICS` that apply to these outputs, and the task metrics."""
        kl, flips = self.sums[..., _KL_ROWS].any(), self.sums[..., _FLIP_ROWS].any()
        fixed = [name for name in METRICS if (kl or name != "kl") and (flips or name != "flips")]
        return [*fixed, *self.task_metrics]

    def metric(self, name: str) -> np.ndarray:
        """Returns a metric over all samples: ``(variants, outputs)``; a task metric ``(variants, 1)``.

        Raises:
            OptionError: For a name that there is not.
        """
        if name in self.task_metrics:
            position = self.task_metrics.index(name)
            return self._ratio(self.task_sums[:, position, None], np.float64(self.samples))
        return _metric(self._checked(name), self.sums)

    def interval(self, name: str, confidence: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Returns between which values the metric lies for ``confidence`` of the random choices of samples, shaped as it."""
        values = self._of_replicates(name)
        ends = (50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence))
        with np.errstate(invalid="ignore"):
            low, high = np.nanpercentile(values, ends, axis=0) if len(values) else np.full((2, *values.shape[1:]), np.nan)
        return low, high

    def ranks(self, name: str, confidence: float = 0.9, large_is_bad: bool | None = None) -> np.ndarray:
        """Returns the rank of each variant, 1 the worst, and between which it lies for ``confidence`` of the choices.

        A variant counts by its worst output.

        Args:
            name: The metric.
            confidence: Share of the choices.
            large_is_bad: For a task metric; None: small is bad, as accuracy.

        Returns:
            int64 ``(variants, 3)``: rank, least rank, greatest rank.
        """
        own = _ranks(self.badness(name, large_is_bad)[None])[0]
        values = self._badness_of(self._of_replicates(name), name, large_is_bad)
        ranks = _ranks(values) if len(values) else own[None]
        low, high = np.percentile(ranks, (50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence)), axis=0, method="nearest")
        return np.stack([own, np.minimum(low, own), np.maximum(high, own)], axis=1).astype(np.int64)

    def badness(self, name: str, large_is_bad: bool | None = None) -> np.ndarray:
        """Returns the metric at each variant's worst output, turned so that large is bad, ``(variants,)``."""
        return self._badness_of(self.metric(name)[None], name, large_is_bad)[0]

    def _badness_of(self, values: np.ndarray, name: str, large_is_bad: bool | None) -> np.ndarray:
        sign = BADNESS.get(name, 1.0 if large_is_bad else -1.0)
        turned = np.where(np.isnan(values), -np.inf, sign * values)
        return np.asarray(turned.max(axis=-1))

    def _of_replicates(self, name: str) -> np.ndarray:
        usable = self.weights > 0
        if name in self.task_metrics:
            position = self.task_metrics.index(name)
            return self._ratio(self.task_replicates[usable, :, position, None], self.weights[usable, None, None])
        return _metric(self._checked(name), self.replicates[usable])

    def _checked(self, name: str) -> str:
        if name not in self.names():
            raise OptionError(
                f"got metric {name!r}, expected one of {', '.join(self.names())}.{did_you_mean(name, self.names())}"
            )
        return name

    @staticmethod
    def _ratio(numerator: np.ndarray, denominator: Any) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(numerator / denominator)

    def select(self, positions: Sequence[int]) -> OutputErrors:
        """Returns the errors of some of the variants."""
        chosen = OutputErrors([self.variants[position] for position in positions], self.outputs, self.task_metrics)
        chosen.samples, chosen.weights = self.samples, self.weights.copy()
        chosen.sums, chosen.task_sums = self.sums[list(positions)], self.task_sums[list(positions)]
        chosen.replicates = self.replicates[:, list(positions)]
        chosen.task_replicates = self.task_replicates[:, list(positions)]
        return chosen

    def joined(self, other: OutputErrors) -> OutputErrors:
        """Returns the variants of both, which must have seen the same samples.

        Raises:
            ModelError: Where outputs, metrics or samples differ.
        """
        if (self.outputs, self.task_metrics, self.samples) != (other.outputs, other.task_metrics, other.samples):
            raise ModelError(
                f"cannot join errors at {self.outputs} over {self.samples} samples with errors at {other.outputs} over "
                f"{other.samples}: expected the same outputs, metrics and samples"
            )
        both = OutputErrors([*self.variants, *other.variants], self.outputs, self.task_metrics)
        both.samples, both.weights = self.samples, self.weights.copy()
        both.sums, both.task_sums = np.concatenate([self.sums, other.sums]), np.concatenate([self.task_sums, other.task_sums])
        both.replicates = np.concatenate([self.replicates, other.replicates], axis=1)
        both.task_replicates = np.concatenate([self.task_replicates, other.task_replicates], axis=1)
        return both

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data; what the random choices need is packed, since nobody reads it."""
        return {
            "variants": list(self.variants),
            "outputs": list(self.outputs),
            "task_metrics": list(self.task_metrics),
            "samples": self.samples,
            "sums": self.sums.tolist(),
            "task_sums": self.task_sums.tolist(),
            "weights": self.weights.tolist(),
            "replicates": _packed(self.replicates),
            "task_replicates": _packed(self.task_replicates),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> OutputErrors:
        """Reads what ``to_dict`` gave."""
        errors = cls(fields["variants"], fields["outputs"], fields["task_metrics"])
        errors.samples = int(fields["samples"])
        errors.sums = np.asarray(fields["sums"], dtype=np.float64).reshape(errors.sums.shape)
        errors.task_sums = np.asarray(fields["task_sums"], dtype=np.float64).reshape(errors.task_sums.shape)
        errors.weights = np.asarray(fields["weights"], dtype=np.float64)
        errors.replicates = _unpacked(fields["replicates"], errors.replicates.shape)
        errors.task_replicates = _unpacked(fields["task_replicates"], errors.task_replicates.shape)
        return errors

    def __repr__(self) -> str:
        return f"OutputErrors({len(self.variants)} variants, {len(self.outputs)} outputs, {self.samples} samples)"


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(np.float32).tobytes()).decode("ascii")


def _unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32).astype(np.float64).reshape(shape)


def _ranks(badness: np.ndarray) -> np.ndarray:
    """Returns 1 for the worst of each row; of equals the first comes first."""
    order = np.argsort(-badness, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, badness.shape[1] + 1)[None].repeat(len(badness), 0), axis=1)
    return ranks


def _metric(name: str, sums: np.ndarray) -> np.ndarray:
    """Returns a metric of sums ``(..., COLUMNS)``; without signal, SQNR and cosine are -inf and 0 for an error, else NaN."""
    column = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "cosine":
            squared = np.maximum(column[_FLOAT] + 2.0 * column[_PRODUCT] + column[_ERROR], 0.0)
            return np.clip((column[_FLOAT] + column[_PRODUCT]) / np.sqrt(column[_FLOAT] * squared), -1.0, 1.0)
        if name == "sqnr_db":
            return 10.0 * np.log10(column[_FLOAT] / column[_ERROR])
        if name == "chebyshev":
            return column[_MAXIMUM].copy()
        above, below = {
            "mse": (_ERROR, _COUNT),
            "mre": (_RELATIVE, _RELATIVES),
            "kl": (_KL, _KL_ROWS),
            "flips": (_FLIPS, _FLIP_ROWS),
        }[name]
        return np.asarray(column[above] / column[below])
