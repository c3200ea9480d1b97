"""The error of whole models at their outputs: sums over samples, and the metrics that are made of them.

What is kept are sums, so that samples can be added in any portions, and so that a ratio is one of sums and no mean of ratios.
Beside the sums over all samples there are those over some hundred random choices of them, drawn with replacement as the samples
come (the Poisson bootstrap of Chamandy et al., "Estimating Uncertainty for Massive Data Streams", 2012): how far they lie apart
tells how far a result would have come out otherwise on other samples. Memory does not grow with the number of samples.
"""

from __future__ import annotations

import base64
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.errors import ModelError, OptionError, did_you_mean

__all__ = [
    "BADNESS",
    "METRICS",
    "OutputErrors",
    "Reference",
    "is_probability",
    "measure_output",
    "metric_of_sums",
    "pooled_sums",
    "softmax",
]

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
    if values.ndim == 0 or values.shape[-1] < 2 or not values.size:
        return False
    return bool((values >= 0.0).all() and np.abs(values.sum(axis=-1, dtype=np.float64) - 1.0).max() < 0.01)


def softmax(values: np.ndarray) -> np.ndarray:
    """Returns the probabilities, along the last axis, that logits stand for; float64, same shape."""
    shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


class Reference:
    """What the float model gave at one output, and what does not change from variant to variant."""

    def __init__(self, values: np.ndarray) -> None:
        """Reads the float model's output.

        Args:
            values: float32, any shape. Where its rows along the last axis sum to 1, they are taken for probabilities, and the
                Kullback-Leibler divergence ``sum p log(p / q)`` is measured, with probabilities below 1e-7 taken for that (as
                ``keras.losses.KLDivergence`` does).
        """
        self.shape = values.shape
        self._wide = values.reshape(-1).astype(np.float64)
        self._squared = float(self._wide @ self._wide)
        self._present = np.flatnonzero(self._wide)
        self._sizes = np.abs(self._wide[self._present])
        self._rows = self._wide.size // values.shape[-1] if values.ndim and values.shape[-1] > 1 else 0
        self._greatest = values.argmax(axis=-1) if self._rows else None
        self._probabilities = np.maximum(self._wide, _LEAST_PROBABILITY) if self._rows and is_probability(values) else None

    def measure(self, values: np.ndarray) -> np.ndarray:
        """Returns what one variant of one sample adds: float64 ``(COLUMNS,)``.

        Args:
            values: What it gave, float32, the same number of elements.

        Raises:
            ModelError: For another number of elements.
        """
        if values.size != self._wide.size:
            raise ModelError(
                f"got an output of {values.size} elements (shape {values.shape}) to be held against one of {self._wide.size} "
                f"(shape {self.shape}), expected as many: the two models are no pair"
            )
        row = np.zeros(COLUMNS)
        flat = values.reshape(-1)
        error = flat - self._wide
        size = np.abs(error)
        row[_COUNT], row[_ERROR], row[_FLOAT] = error.size, error @ error, self._squared
        row[_PRODUCT], row[_MAXIMUM] = error @ self._wide, size.max(initial=0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            row[_RELATIVE], row[_RELATIVES] = (size[self._present] / self._sizes).sum(), self._present.size
        if self._greatest is not None:
            row[_FLIP_ROWS] = self._rows
            row[_FLIPS] = np.count_nonzero(flat.reshape(self.shape).argmax(axis=-1) != self._greatest)
        if self._probabilities is not None:
            q = np.maximum(flat, _LEAST_PROBABILITY, dtype=np.float64)
            row[_KL], row[_KL_ROWS] = self._probabilities @ np.log(self._probabilities / q), self._rows
        return row


def measure_output(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns what one output of one sample adds, as `Reference` does: float64 ``(COLUMNS,)``."""
    return Reference(reference).measure(values)


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
        """Starts with no sample.

        Raises:
            OptionError: For a task metric that is called like one of `METRICS`.
        """
        taken = [name for name in task_metrics if name in METRICS]
        if taken:
            raise OptionError(f"got a task metric called {taken[0]!r}, which is the name of a metric of ours; expected another")
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
            self.task_replicates[chosen] += drawn[chosen, None, None] * task

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
        return metric_of_sums(self._checked(name), self.sums)

    def interval(self, name: str, confidence: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Returns between which values the metric lies for ``confidence`` of the random choices of samples, shaped as it.

        NaN where the metric is NaN, and for fewer than two samples, which say nothing of others. Choices for which the metric
        does not apply, such as those without signal, are left out.
        """
        values, own = self._of_replicates(name), self.metric(name)
        if self.samples < 2 or not len(values):
            return np.full(own.shape, np.nan), np.full(own.shape, np.nan)
        ends = (50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence))
        with warnings.catch_warnings():  # numpy warns of a metric that is NaN for all choices, which it may be
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanpercentile(values, ends, axis=0, method="nearest")  # between infinities there is no other
        return np.where(np.isnan(own), np.nan, low), np.where(np.isnan(own), np.nan, high)

    def ranks(self, name: str, confidence: float = 0.9, large_is_bad: bool | None = None) -> np.ndarray:
        """Returns the rank of each variant, 1 the worst, and between which it lies for ``confidence`` of the choices.

        A variant counts by its worst output. One sample says nothing of others: any rank is possible.

        Args:
            name: The metric.
            confidence: Share of the choices.
            large_is_bad: For a task metric; None: small is bad, as accuracy.

        Returns:
            int64 ``(variants, 3)``: rank, least rank, greatest rank.
        """
        own = _ranks(self.badness(name, large_is_bad)[None])[0]
        if self.samples < 2:
            return np.stack([own, np.ones_like(own), np.full_like(own, max(len(own), 1))], axis=1).astype(np.int64)
        usable = self.weights > 0
        broken = self._broken(name, self.replicates[usable], self.task_replicates[usable])
        values = self._turned(self._of_replicates(name), broken, name, large_is_bad).max(axis=-1)
        ranks = _ranks(values) if len(values) else own[None]
        low, high = np.percentile(ranks, (50.0 * (1.0 - confidence), 50.0 * (1.0 + confidence)), axis=0, method="nearest")
        return np.stack([own, np.minimum(low, own), np.maximum(high, own)], axis=1).astype(np.int64)

    def badness(self, name: str, large_is_bad: bool | None = None) -> np.ndarray:
        """Returns the metric at each variant's worst output, turned so that large is bad, ``(variants,)``.

        Infinite where an output is NaN or infinite: nothing is worse. Minus infinite where the metric does not apply to any
        output, such as SQNR where there is neither signal nor error: nothing is wrong.
        """
        return np.asarray(self._turned_whole(name, large_is_bad).max(axis=-1))

    def worst(self, name: str, large_is_bad: bool | None = None) -> np.ndarray:
        """Returns the metric at each variant's worst output, ``(variants,)``; NaN where that is NaN, or none applies."""
        return self._at_worst(self.metric(name), name, large_is_bad)

    def worst_interval(self, name: str, large_is_bad: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ends of `interval` for 90 % of the choices at each variant's worst output, each ``(variants,)``."""
        low, high = self.interval(name)
        return self._at_worst(low, name, large_is_bad), self._at_worst(high, name, large_is_bad)

    def _at_worst(self, values: np.ndarray, name: str, large_is_bad: bool | None) -> np.ndarray:
        """Returns those of the values ``(variants, outputs)`` that are of each variant's worst output."""
        places = self._turned_whole(name, large_is_bad).argmax(axis=-1)
        return np.take_along_axis(values, places[:, None], axis=-1)[:, 0]

    def _turned_whole(self, name: str, large_is_bad: bool | None) -> np.ndarray:
        return self._turned(self.metric(name), self._broken(name, self.sums, self.task_sums), name, large_is_bad)

    def _turned(self, values: np.ndarray, broken: np.ndarray, name: str, large_is_bad: bool | None) -> np.ndarray:
        sign = BADNESS.get(name, 1.0 if large_is_bad else -1.0)
        return np.where(broken, np.inf, np.where(np.isnan(values), -np.inf, sign * values))

    def _broken(self, name: str, sums: np.ndarray, task_sums: np.ndarray) -> np.ndarray:
        """True where a metric is what it is because values were NaN or infinite, shaped as the metric."""
        if name in self.task_metrics:
            return np.isnan(task_sums[..., self.task_metrics.index(name), None])
        return np.asarray(~np.isfinite(sums).all(axis=-1))

    def _of_replicates(self, name: str) -> np.ndarray:
        usable = self.weights > 0
        if name in self.task_metrics:
            position = self.task_metrics.index(name)
            return self._ratio(self.task_replicates[usable, :, position, None], self.weights[usable, None, None])
        return metric_of_sums(self._checked(name), self.replicates[usable])

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
        if not np.array_equal(self.weights, other.weights):
            raise ModelError(
                f"cannot join errors over {self.samples} samples with errors over as many others: expected the same samples"
            )
        both = OutputErrors([*self.variants, *other.variants], self.outputs, self.task_metrics)
        both.samples, both.weights = self.samples, self.weights.copy()
        both.sums, both.task_sums = np.concatenate([self.sums, other.sums]), np.concatenate([self.task_sums, other.task_sums])
        both.replicates = np.concatenate([self.replicates, other.replicates], axis=1)
        both.task_replicates = np.concatenate([self.task_replicates, other.task_replicates], axis=1)
        return both

    def __add__(self, other: OutputErrors) -> OutputErrors:
        """Returns the errors of the same variants over the samples of both, which must be different samples.

        Raises:
            ModelError: Where variants, outputs or metrics differ.
        """
        ours, theirs = ((one.variants, one.outputs, one.task_metrics) for one in (self, other))
        if ours != theirs:
            raise ModelError(f"cannot add errors of {theirs} to errors of {ours}: expected the same variants, outputs, metrics")
        total = OutputErrors(*ours)
        total.samples, total.weights = self.samples + other.samples, self.weights + other.weights
        total.sums, total.replicates = self.sums + other.sums, self.replicates + other.replicates
        for whole, first, second in (
            (total.sums, self.sums, other.sums),
            (total.replicates, self.replicates, other.replicates),
        ):
            whole[..., _MAXIMUM] = np.maximum(first[..., _MAXIMUM], second[..., _MAXIMUM])
        total.task_sums = self.task_sums + other.task_sums
        total.task_replicates = self.task_replicates + other.task_replicates
        return total

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
        errors.weights = np.asarray(fields["weights"], dtype=np.float64).reshape(REPLICATES)
        errors.replicates = _unpacked(fields["replicates"], errors.replicates.shape)
        errors.task_replicates = _unpacked(fields["task_replicates"], errors.task_replicates.shape)
        return errors

    def __repr__(self) -> str:
        return f"OutputErrors({len(self.variants)} variants, {len(self.outputs)} outputs, {self.samples} samples)"


def _packed(values: np.ndarray) -> str:
    # At full precision: what was saved half-way must go on as if it had not been, and a cosine is a difference of these sums.
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype="<f8").tobytes(), 1)).decode("ascii")


def _unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        content = zlib.decompress(base64.b64decode(text))
    except zlib.error as error:
        raise ModelError(f"the packed part of saved errors is broken: {error}") from error
    return np.frombuffer(content, "<f8").astype(np.float64).reshape(shape)


def _ranks(badness: np.ndarray) -> np.ndarray:
    """Returns 1 for the worst of each row; of equals the first comes first."""
    order = np.argsort(-badness, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, badness.shape[1] + 1)[None].repeat(len(badness), 0), axis=1)
    return ranks


def metric_of_sums(name: str, sums: np.ndarray) -> np.ndarray:
    """Returns one of `METRICS` of sums ``(..., COLUMNS)``, as `measure_output` gives them and `OutputErrors` adds them up.

    Without signal, SQNR is -inf and the cosine 0 where there is an error, and NaN where there is none. ``mre`` is NaN without
    a float value other than 0, ``kl`` without probabilities, ``flips`` without rows of more than one value.
    """
    column = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "cosine":
            squared = np.maximum(column[_FLOAT] + 2.0 * column[_PRODUCT] + column[_ERROR], 0.0)
            cosine = np.clip((column[_FLOAT] + column[_PRODUCT]) / np.sqrt(column[_FLOAT] * squared), -1.0, 1.0)
            nothing = ((column[_FLOAT] == 0.0) | (squared == 0.0)) & (column[_ERROR] > 0.0)
            return np.where(nothing, 0.0, cosine)
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


def pooled_sums(rows: np.ndarray) -> np.ndarray:
    """Returns the sums of several outputs together: ``(..., outputs, COLUMNS)`` to ``(..., COLUMNS)``."""
    pooled = rows.sum(axis=-2)
    pooled[..., _MAXIMUM] = rows[..., _MAXIMUM].max(axis=-1, initial=0.0)
    return np.asarray(pooled)
