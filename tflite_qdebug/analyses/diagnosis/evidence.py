"""What is known of each layer, gathered from all analyses: what the rules of the diagnosis look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tflite_qdebug.analyses.diagnosis.thresholds import T
from tflite_qdebug.findings import Channels, Findings, GraphNode, Profile
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import ErrorStatistics, Histogram

__all__ = ["PASSING", "STEEP", "Error", "LayerEvidence", "Outliers", "amplification", "bulk", "gather", "outliers", "with_zero"]

#: Operators that move values and leave their scale as it is.
PASSING = frozenset(
    (
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "PADV2", "MIRROR_PAD"),
        *("SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "GATHER", "GATHER_ND", "UNPACK", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE"),
        *("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "TILE"),
        "BROADCAST_TO",
    )
)
#: Operators that can turn a small error of their input into a large one of their output.
STEEP = frozenset(("LOG", "RSQRT", "DIV", "EXP", "POW", "SQRT", "SOFTMAX", "LOG_SOFTMAX", "SQUARED_DIFFERENCE", "FLOOR_DIV"))


@dataclasses.dataclass(frozen=True)
class Error:
    """One layer's error, or a part of it, over all samples; real units.

    Attributes:
        rmse: Root mean square.
        rms: Root mean square of the float values.
        largest: Greatest size of an error.
        inner: The same without what the range of the integers clips.
        bias: Mean, signed.
    """

    rmse: float
    rms: float
    largest: float
    inner: float
    bias: float

    @property
    def noise(self) -> float:
        """Energy of the error over that of the float values; infinite where it is not finite, 1 where there is no signal."""
        if not np.isfinite(self.rmse):
            return float("inf")
        if self.rmse == 0.0:
            return 0.0
        return (self.rmse / self.rms) ** 2 if self.rms > 0 else 1.0

    @property
    def sqnr_db(self) -> float:
        """The inverse of ``noise`` in dB."""
        noise = self.noise
        return float("inf") if noise == 0.0 else -10.0 * float(np.log10(noise)) if np.isfinite(noise) else float("-inf")


@dataclasses.dataclass(frozen=True)
class LayerEvidence:
    """One layer, and what surrounds it.

    Attributes:
        position: Among the run's layers.
        layer: Of the run.
        own: What it adds where all before it is sound; where the error was not split, what it adds to what it was given; None
            for a run of accumulated errors that were not split.
        parts: ``weights``, ``output``, ``input``, ``accumulated``, as far as they are known.
        integers: Least and greatest integer that occurred; None for a float tensor.
        profile: Of its output.
        weights: Profile of its weights.
        operator: None where the graph does not know it.
        sources: Positions of the layers whose values it reads, operators that only move values seen through.
        source_profiles: Of their outputs, in the same order; None where there is none.
        joined_by: Position of the CONCATENATION that has the same scale as this layer, and set it; -1 for none.
        dictated_by: Position of the layer to blame where that scale leaves few steps for this layer: the CONCATENATION, or one
            that it joins and that has an outlier among its channels; -1 where there is nothing to blame.
        share: Of what all layers add to the error at the output, 0..1; estimated where the sensitivity is not known.
        is_measured: True where the share is a measured sensitivity.
        count: How many layers the run has.
    """

    position: int
    layer: Layer
    own: Error | None
    parts: Mapping[str, Error]
    integers: tuple[int, int] | None
    profile: Profile | None = None
    weights: Profile | None = None
    operator: GraphNode | None = None
    sources: tuple[int, ...] = ()
    source_profiles: tuple[Profile | None, ...] = ()
    joined_by: int = -1
    dictated_by: int = -1
    share: float = 0.0
    is_measured: bool = False
    count: int = 1

    @property
    def name(self) -> str:
        """Its name as far as the first semicolon, behind which the converter lists what it has fused."""
        return self.layer.node.partition(";")[0]

    @property
    def step(self) -> float:
        """Real units per integer; NaN for a float tensor."""
        return float("nan") if self.layer.scale is None else self.layer.scale

    @property
    def sqnr_db(self) -> float:
        """SQNR of its own error in dB; of the accumulated one where its own is not finite, as log(0) on rounded inputs is."""
        known = [error for error in (self.own, self.parts.get("accumulated")) if error is not None]
        return next((error.sqnr_db for error in known if np.isfinite(error.rmse)), float("-inf") if known else float("nan"))

    @property
    def moves_values(self) -> bool:
        """True where the operator computes nothing: its range is that of the layer before it."""
        return self.layer.op_name in PASSING


def gather(findings: Findings) -> list[LayerEvidence]:
    """Returns what is known of each layer, in execution order."""
    run = findings.run
    profiles = {(profile.node, profile.role): profile for profile in findings.profiles}
    operators = dict(findings.operators())
    places = {operator.operator: position for position, operator in operators.items()}
    measured = run.statistics if run.verify == "per_layer" else None
    found = []
    for position, layer in enumerate(run.layers):
        parts = {name: error for name, part in run.parts.items() if (error := _error(part, position)) is not None}
        own = parts.pop("own", None) or (None if measured is None else _error(measured, position))
        low, high = (int(value) for value in run.statistics.integer_range[position])
        found.append(
            LayerEvidence(
                position,
                layer,
                own,
                parts,
                None if layer.scale is None or low > high else (low, high),
                profiles.get((layer.node, "output")) or profiles.get((layer.node, "input")),
                profiles.get((layer.node, "weights")),
                operators.get(position),
                count=len(run.layers),
            )
        )
    by_operator = {operator.operator: operator for operator in findings.graph}
    linked = [_linked(entry, found, places, by_operator) for entry in found]
    linked = [dataclasses.replace(entry, joined_by=_joined_by(entry, linked)) for entry in linked]
    linked = [dataclasses.replace(entry, dictated_by=_dictated_by(entry, linked)) for entry in linked]
    shares, is_measured = _shares(findings, linked)
    return [
        dataclasses.replace(entry, share=float(share), is_measured=bool(known))
        for entry, share, known in zip(linked, shares, is_measured, strict=True)
    ]


def _error(statistics: ErrorStatistics, position: int) -> Error | None:
    count = statistics.sums[position, 0]
    if not count:
        return None
    return Error(
        float(statistics.rmse[position]),
        float(np.sqrt(statistics.sums[position, 3] / count)),
        float(statistics.max_abs_error[position]),
        float(statistics.max_inner_error[position]),
        float(statistics.bias[position]),
    )


def _linked(
    entry: LayerEvidence, layers: Sequence[LayerEvidence], places: Mapping[int, int], by_operator: Mapping[int, GraphNode]
) -> LayerEvidence:
    """Adds the layers that an operator reads; without a graph there are none."""
    if entry.operator is None:
        return entry
    sources: list[int] = []
    waiting, seen = list(entry.operator.inputs), set()
    while waiting:
        index = waiting.pop(0)
        if index in seen or index not in by_operator:
            continue
        seen.add(index)
        source = by_operator[index]
        if source.op_name in PASSING and source.inputs:
            waiting = [*source.inputs, *waiting]
        elif index in places:
            sources.append(places[index])
    return dataclasses.replace(
        entry, sources=tuple(sources), source_profiles=tuple(layers[position].profile for position in sources)
    )


def _joined_by(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> int:
    if entry.layer.scale is None:
        return -1
    for reader in layers:
        if reader.layer.op_name == "CONCATENATION" and entry.position in reader.sources and reader.layer.scale is not None:
            same = abs(reader.layer.scale - entry.layer.scale) <= 1e-5 * entry.layer.scale
            if same and reader.layer.zero_point == entry.layer.zero_point:
                return reader.position
    return -1


def _shares(findings: Findings, layers: Sequence[LayerEvidence]) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much of the error at the output each layer makes, and for which of them that is measured.

    Measured: mean squared error at the output with that layer alone quantized, over the sum of all of them; the worst output
    counts. Estimated: the energy of its own error over that of its values, over the sum of all; errors that are small against
    the values add up like this along a chain of layers.
    """
    sensitivity = findings.sensitivity.get("node")
    if sensitivity is None or not sensitivity.nodes:
        noise = np.array([_estimated_noise(entry, layers) for entry in layers])
        shares, known = _normalized(noise), np.zeros(len(layers), dtype=bool)
    else:
        errors = sensitivity.errors.metric("mse")[: len(sensitivity.nodes)]
        energy = np.max([_normalized(column) for column in errors.T], axis=0)
        by_node = dict(zip(sensitivity.nodes, _normalized(energy).tolist(), strict=True))
        known = np.array([entry.layer.node in by_node for entry in layers])
        shares = np.array([by_node.get(entry.layer.node, 0.0) for entry in layers])
        _move_to_makers(shares, layers)
    for entry in layers:
        if entry.dictated_by >= 0:  # who dictates the scale answers for what it costs
            shares[entry.dictated_by] += shares[entry.position]
            shares[entry.position] = 0.0
    return shares, known


def _move_to_makers(shares: np.ndarray, layers: Sequence[LayerEvidence]) -> None:
    """Moves measured shares from who shows an error to who makes it.

    A node that is quantized alone reads rounded inputs, so that the reader of a badly rounded value looks as bad as its maker;
    and the maker of the input of a steep operator looks as bad as that, which is no fault of the maker.
    """
    given = shares.copy()
    for entry in layers:
        steep = amplification(entry, layers)
        if steep is not None and steep[1] >= T.amplification * steep[0]:
            for position in entry.sources:
                shares[entry.position] += shares[position]
                shares[position] = 0.0
            continue
        makers = [position for position in entry.sources if _is_worse(layers[position], entry)]
        maker = max(makers, key=lambda position: given[position], default=None)
        if maker is not None and given[maker] >= 0.5 * given[entry.position]:
            shares[maker] += shares[entry.position]
            shares[entry.position] = 0.0


def _is_worse(maker: LayerEvidence, reader: LayerEvidence) -> bool:
    """True where a layer's output is so badly rounded that whoever reads it must err more by that than by itself."""
    if maker.sqnr_db >= T.small_error_db or "output" not in maker.parts or maker.own is None:
        return False
    rounding = maker.parts["output"].rmse ** 2 > T.dominates * maker.own.rmse**2
    return rounding and reader.sqnr_db >= maker.sqnr_db + 10.0


def _dictated_by(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> int:
    if entry.joined_by < 0 or _fills(entry) >= T.small_input:
        return -1
    for position in layers[entry.joined_by].sources:
        profile = layers[position].profile
        found = None if profile is None else outliers(profile.channels)
        if position != entry.position and profile is not None and found is not None and entry.profile is not None:
            low, high = with_zero(entry.profile.values.minimum, entry.profile.values.maximum)
            if found.others < T.outlier_channel * max(-low, high):
                return position
    return entry.joined_by


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Channels that are far larger than the rest.

    Attributes:
        positions: Which.
        ratio: The largest of them over the median channel, by largest absolute value.
        largest: The largest absolute value, real units.
        others: Median of the others' largest absolute values.
    """

    positions: np.ndarray
    ratio: float
    largest: float
    others: float


def outliers(channels: Channels | None) -> Outliers | None:
    """Returns the few channels that are far larger than the rest."""
    if channels is None or len(channels.largest) < 3:
        return None
    largest = channels.largest
    median = float(np.median(largest[largest > 0])) if (largest > 0).any() else 0.0
    positions = np.flatnonzero(largest > T.outlier_channel * median)
    if not median or not len(positions) or len(positions) > max(1.0, T.outlier_channels * len(largest)):
        return None
    rest = np.delete(largest, positions)
    return Outliers(positions, float(largest.max()) / median, float(largest.max()), float(np.median(rest[rest > 0])))


def _fills(entry: LayerEvidence) -> float:
    """Returns the share of the integers between the least and the greatest that occurred, that of zero included."""
    if entry.integers is None or entry.layer.zero_point is None:
        return 1.0
    low, high = min(entry.integers[0], entry.layer.zero_point), max(entry.integers[1], entry.layer.zero_point)
    return (high - low) / (entry.layer.levels - 1.0)


def _estimated_noise(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> float:
    if entry.own is None:
        return 0.0
    # One wrong channel of hundreds hardly moves the mean: a sixth of the greatest error counts as well, as in `Run.severity`.
    size = max(entry.own.rmse, entry.own.inner / 6.0) if np.isfinite(entry.own.rmse) else float("inf")
    noise, steep = dataclasses.replace(entry.own, rmse=size).noise, amplification(entry, layers)
    if steep is None:
        return noise
    # What a steep operator makes of its inputs' rounding is its doing. Its own error may be infinite where theirs is not.
    return max(steep[1] - steep[0], noise if np.isfinite(noise) else 0.0)


def amplification(entry: LayerEvidence, layers: Sequence[LayerEvidence]) -> tuple[float, float] | None:
    """Returns the error over the signal before and behind a steep operator, as energies; None for any other."""
    given = [
        layers[position].parts["accumulated"].noise for position in entry.sources if "accumulated" in layers[position].parts
    ]
    if entry.layer.op_name not in STEEP or "accumulated" not in entry.parts or not given:
        return None
    return max(given), entry.parts["accumulated"].noise


def _normalized(energy: np.ndarray) -> np.ndarray:
    """Returns shares of a sum; what is NaN or infinite counts as ten times all that is finite, for it is the worst."""
    finite = np.isfinite(energy)
    total = float(energy[finite].sum())
    filled = np.where(finite, energy, 10.0 * total or 1.0)
    return np.asarray(filled / (filled.sum() or 1.0))


def with_zero(low: float, high: float) -> tuple[float, float]:
    """Returns the range with zero in it, which every quantized tensor must be able to hold."""
    return min(low, 0.0), max(high, 0.0)


def bulk(values: Histogram, share: float) -> tuple[float, float]:
    """Returns between which values the middle ``share`` of all lies, to the width of a bin, zero included."""
    if not values.total:
        return 0.0, 0.0
    edges = values.edges()
    places = np.concatenate([edges[:-1], [0.0]])
    ends = np.concatenate([edges[1:], [0.0]])
    counts = np.concatenate([values.counts, [values.zeros]])
    order = np.lexsort((ends, places))
    reached = np.cumsum(counts[order])
    outside = 0.5 * (1.0 - share) * values.total
    low = places[order][int(np.searchsorted(reached, outside, side="right"))]
    high = ends[order][min(int(np.searchsorted(reached, values.total - outside, side="left")), len(order) - 1)]
    return with_zero(max(float(low), values.minimum), min(float(high), values.maximum))
