"""What the analyses found, as plain data, and the folder that they share: a *saved run*.

Each analysis returns one of these classes and is saved as one JSON file in the folder of the run, under the name that Horizon's
``hmct-debugger`` has for it; reports read a `Findings` and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tflite_qdebug.board_record import Board, BoardModel
from tflite_qdebug.errors import ModelError, OptionError, did_you_mean
from tflite_qdebug.files import write_atomically
from tflite_qdebug.latency_record import Latency, ModelTime, OperatorTime
from tflite_qdebug.outcome import Candidate, Difference, Measured, Outcome, Recipe
from tflite_qdebug.output_error import OutputErrors
from tflite_qdebug.record import Run, decoded, encoded
from tflite_qdebug.shown import Shown
from tflite_qdebug.statistics import Histogram
from tflite_qdebug.wording import byte_size, number, shortened

__all__ = [
    "MODES",
    "PLACES",
    "Advice",
    "Channels",
    "Curve",
    "Diagnosis",
    "Findings",
    "GraphNode",
    "Profile",
    "SampleError",
    "Samples",
    "Score",
    "Scores",
    "Sensitivity",
    "Steps",
    "Suspect",
    "save_part",
]

FORMAT_VERSION = 1
#: What is quantized, or left float, one node at a time.
MODES = ("node", "weights", "activation", "float")
#: Where each part lies in the folder of a saved run.
PLACES = {
    "graph": "graph.json",
    "scores": "evaluation.json",
    "sensitivity": "node_sensitivity/{}.json",
    "curves": "accumulate_error/curves.json",
    "steps": "sensitivity_analysis/steps.json",
    "profiles": "data_distribution/profiles.json",
    "samples": "samples.json",
    "diagnosis": "diagnosis.json",
    "advice": "advice.json",
    "fix": "fix/fix.json",
    # As any run: its folder can be compared with that of the run before, by ``diff``.
    "fixed": "fix/run.json",
    "boards": "boards/boards.json",
    "latency": "latency.json",
}


@dataclasses.dataclass(frozen=True)
class GraphNode:
    """An operator of the quantized model, QUANTIZE and DEQUANTIZE seen through.

    Attributes:
        operator: Its position in the quantized model.
        op_name: Its type.
        nodes: Names of its output tensors, as the run's layers call them where they are layers.
        inputs: Positions of the operators whose values it reads.
        outputs: Positions of the operators that read its values.
        is_float: True where it computes in float in the quantized model.
        options: What describes it in a few words: ``{"kernel": "3x3", "stride": "2", "activation": "RELU6"}``.
        shape: Of its first output.
        macs: Multiplications for one sample; 0 where it has none.
        weight_bytes: Of its constants in the quantized model.
        float_operators: Positions in the float model of the operators that do the same; empty where none are known.
        graph_key: What Model Explorer calls the graph that the operator stands in.
        float_graph_key: The same of the float model.
    """

    operator: int
    op_name: str
    nodes: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_float: bool = False
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = ()
    macs: int = 0
    weight_bytes: int = 0
    float_operators: tuple[int, ...] = ()
    graph_key: str = "main"
    float_graph_key: str = "main"


@dataclasses.dataclass(frozen=True)
class Score:
    """How good one whole model is.

    Attributes:
        name: ``float``, ``quantized``...
        size: Bytes of the ``.tflite``.
        metrics: ``{metric: mean over the samples}``, ``top_1`` as a share between 0 and 1.
        milliseconds: Median for one sample; NaN where it was not measured.
    """

    name: str
    size: int
    metrics: Mapping[str, float]
    milliseconds: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Scores(Shown):
    """Float against quantized on an evaluation dataset.

    Attributes:
        scores: One per model.
        samples: How many.
        dataset: In words.
        metrics: Names, the main one first.
    """

    scores: tuple[Score, ...]
    samples: int
    dataset: str
    metrics: tuple[str, ...]

    def score(self, name: str) -> Score | None:
        """Returns the model of that name."""
        return next((score for score in self.scores if score.name == name), None)

    def __repr__(self) -> str:
        def described(score: Score) -> str:
            values = [f"{name} {number(value)}" for name, value in score.metrics.items()]
            return f"{score.name}: {', '.join([*values, byte_size(score.size)])}"

        return f"Scores({self.samples} samples; {'; '.join(map(described, self.scores))})"


@dataclasses.dataclass(frozen=True)
class Sensitivity(Shown):
    """The error at the model's outputs when one node alone is quantized, or one alone left float.

    Attributes:
        mode: One of `MODES`: ``node``: quantized as in the quantized model; ``weights``: its weights alone; ``activation``: its
            input activations alone; ``float``: all others are quantized.
        nodes: As in the run, in execution order.
        op_names: Their types.
        operators: Their positions in the quantized model.
        errors: At the outputs, one variant per node. With mode ``float`` one more, named ``""``: all nodes quantized.
        metric: The one that ranks.
        large_is_bad: For a task metric that ranks.
        thresholds: With mode ``activation``: the largest absolute value that each node's inputs can hold, in real units; else
            empty.
        bits: With mode ``activation``: bits of the inputs; else empty.
        provenance: As of a run.
        notes: What the reader must know.
    """

    mode: str
    nodes: tuple[str, ...]
    op_names: tuple[str, ...]
    operators: tuple[int, ...]
    errors: OutputErrors
    metric: str = "cosine"
    large_is_bad: bool | None = None
    thresholds: tuple[float, ...] = ()
    bits: tuple[int, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def order(self, metric: str | None = None) -> list[int]:
        """Returns the positions of the nodes, the most sensitive first; with mode ``float`` the one that helps most first."""
        metric = metric or self.metric
        badness = self.errors.badness(metric, self.large_is_bad)[: len(self.nodes)]
        return [int(position) for position in np.argsort(badness if self.mode == "float" else -badness, kind="stable")]

    def select(self, nodes: Collection[str]) -> Sensitivity:
        """Returns the sensitivity of some of the nodes."""
        positions = [position for position, name in enumerate(self.nodes) if name in nodes]
        rest = [*positions, len(self.nodes)] if self.mode == "float" else positions
        return dataclasses.replace(
            self,
            nodes=tuple(self.nodes[position] for position in positions),
            op_names=tuple(self.op_names[position] for position in positions),
            operators=tuple(self.operators[position] for position in positions),
            errors=self.errors.select(rest),
            thresholds=tuple(self.thresholds[position] for position in positions) if self.thresholds else (),
            bits=tuple(self.bits[position] for position in positions) if self.bits else (),
        )

    def values(self, metric: str | None = None) -> np.ndarray:
        """Returns the metric at each node's worst output, ``(nodes,)``."""
        return self.errors.worst(metric or self.metric, self.large_is_bad)[: len(self.nodes)]

    def __repr__(self) -> str:
        counts = f"Sensitivity({self.mode}, {len(self.nodes)} nodes, {self.errors.samples} samples"
        if not self.nodes:
            return f"{counts})"
        first = self.order()[0]
        which = f"{self.op_names[first]} {shortened(self.nodes[first], 60)}"
        return f"{counts}; first {which}, {self.metric} {number(self.values()[first])})"


@dataclasses.dataclass(frozen=True)
class Curve(Shown):
    """The error at every node's output in a partly quantized model, against the float model: accumulated error.

    Attributes:
        name: ``all``, ``weights``, ``activation``, a node's name, ``all but 3 nodes``...
        quantized: Names of what is quantized: nodes, ``weights``, ``activation``; empty: all but what is left float.
        left_float: Names of nodes left float.
        run: One layer per node, in execution order; verify ``whole_model``.
    """

    name: str
    quantized: tuple[str, ...]
    left_float: tuple[str, ...]
    run: Run

    def __repr__(self) -> str:
        return f"Curve({shortened(self.name, 60)!r}, {len(self.run.layers)} layers, {self.run.statistics.samples} samples)"


@dataclasses.dataclass(frozen=True)
class Steps(Shown):
    """The error at the outputs as the most sensitive nodes are left float, one after another.

    Attributes:
        nodes: In the order in which they are left float; step k has the first k in float.
        op_names: Their types.
        errors: One variant per step, from 0 on: ``len(nodes) + 1`` of them.
        sizes: Bytes of the weights and constants at each step; empty where they are not known.
        metric: The one whose threshold counts.
        threshold: Of that metric.
        met: The first step that meets it; None where none does.
        provenance: As of a run.
        notes: What the reader must know.
        float_metrics: The task metrics of the float model.
    """

    nodes: tuple[str, ...]
    op_names: tuple[str, ...]
    errors: OutputErrors
    metric: str
    threshold: float
    met: int | None
    sizes: tuple[int, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    float_metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        goal = f"{self.metric} {number(self.threshold)}"
        met = f"{goal} is not met" if self.met is None else f"{goal} is met with {self.met} of them float"
        return f"Steps({len(self.nodes)} nodes, {self.errors.samples} samples; {met})"


@dataclasses.dataclass(frozen=True)
class Channels:
    """The values of each channel of a tensor: what a box plot needs. Arrays are float64 ``(channels,)``, in real units.

    Attributes:
        axis: The dimension that the channels run along.
        minimum: Least value.
        lower: First quartile, to the width of a histogram's bin.
        median: Of all values, as exact as that.
        upper: Third quartile.
        maximum: Greatest value.
        mean: Of all values.
        deviation: Their standard deviation.
        scale: Real units per step, one per channel, or one for all.
    """

    axis: int
    minimum: np.ndarray
    lower: np.ndarray
    median: np.ndarray
    upper: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    scale: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """The largest absolute value of each channel."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def dead(self) -> np.ndarray:
        """Positions of channels that have one value throughout."""
        return np.flatnonzero(self.minimum == self.maximum)

    @property
    def dominating(self) -> np.ndarray:
        """Positions of channels that alone stretch the range: more than 4 times as large as 95 % of the channels are."""
        if len(self.largest) < 4:
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.largest > 4.0 * np.percentile(self.largest, 95.0, method="lower"))

    @property
    def spread(self) -> float:
        """The largest channel over the median one, by largest absolute value; channels of zeros left out; 1 is even."""
        alive = self.largest[self.largest > 0]
        return float(alive.max() / np.median(alive)) if len(alive) else 1.0

    def __repr__(self) -> str:
        return f"Channels({len(self.minimum)} along axis {self.axis}, spread {number(self.spread, 3)})"


@dataclasses.dataclass(frozen=True)
class Profile(Shown):
    """The values of one tensor, in float and quantized.

    Attributes:
        node: As in the run; the operator that the tensor belongs to.
        op_name: Its type.
        operator: Its position in the quantized model.
        role: ``weights``, ``output``, or ``input`` (of the model).
        tensor: The tensor's name.
        values: Of the float model.
        quantized: Of the quantized model, dequantized; None where the tensor is float there.
        error: Quantized less float; None as well.
        low: Least value that the integers can hold, in real units (calibrated range); NaN where float or per channel.
        high: The greatest.
        scale: Real units per step; NaN where float or per channel.
        clipped_low: Share of the float values below the range, 0..1.
        clipped_high: Share above.
        integers_used: How many different integers occurred.
        integers: How many the type has; 0 where float.
        mean: Of the float values.
        deviation: Their standard deviation.
        kurtosis: ``mean((x - mean)^4) / deviation^4``: 3 for a normal distribution, 1.8 for an even one.
        outliers: Share of float values more than 6 standard deviations from the mean.
        negative: Share of float values below zero.
        near_zero: Share of float values whose size is below half a step; NaN where float.
        channels: Of the float values; None where there is no axis of channels.
        quantized_channels: Of the quantized ones; None as well.
        samples: How many samples; 0 for weights.
        reference: Where the float values come from: ``float model``, or ``dequantized weights`` where there is no float model,
            or nothing in it is the counterpart.
    """

    node: str
    op_name: str
    operator: int
    role: str
    tensor: str
    values: Histogram
    quantized: Histogram | None
    error: Histogram | None
    low: float
    high: float
    scale: float
    clipped_low: float
    clipped_high: float
    integers_used: int
    integers: int
    mean: float
    deviation: float
    kurtosis: float
    outliers: float
    negative: float
    near_zero: float
    channels: Channels | None
    quantized_channels: Channels | None = None
    samples: int = 0
    reference: str = "float model"

    def __repr__(self) -> str:
        values = f"{number(self.values.minimum)} … {number(self.values.maximum)}"
        return f"Profile({self.role} of {self.op_name} {shortened(self.node, 60)}; {values})"


@dataclasses.dataclass(frozen=True)
class SampleError:
    """How much the quantized model differs on one sample.

    Attributes:
        index: Its position in the dataset.
        label: As given; None where there is none.
        sqnr_db: Of all outputs together, pooled.
        cosine: The same.
        mse: The same.
        float_class: Position of the float model's greatest value in the first output; -1 where that has no classes.
        quantized_class: Of the quantized model.
        value: Of the metric that ranks, of all outputs together; NaN where it does not apply, or values are NaN.
    """

    index: int
    label: Any
    sqnr_db: float
    cosine: float
    mse: float
    float_class: int
    quantized_class: int
    value: float = float("nan")

    @property
    def flipped(self) -> bool:
        """True where the two predict different classes."""
        return self.float_class != self.quantized_class


@dataclasses.dataclass(frozen=True)
class Samples(Shown):
    """The samples on which the quantized model differs most, and the error at the outputs over all.

    Attributes:
        worst: The worst first, by ``metric``; as many as were asked for.
        flips: Samples whose prediction flips, as many as were asked for, in the order of the dataset.
        flip_count: How many there are in all.
        errors: One variant, ``quantized``, over all samples.
        metric: What ranks.
        provenance: As of a run.
        notes: What the reader must know.
    """

    worst: tuple[SampleError, ...]
    flips: tuple[SampleError, ...]
    flip_count: int
    errors: OutputErrors
    metric: str = "sqnr_db"
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Samples(the {len(self.worst)} worst of {self.errors.samples} by {self.metric}, {self.flip_count} flips)"


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A layer that matters, and the likely cause.

    Attributes:
        node: As in the run.
        op_name: Its type.
        layer: Its position among the run's layers; -1 where it is none.
        cause: Name of the rule: ``outlier_channel``.
        words: The cause in plain words, one sentence.
        evidence: The figures that speak for it, each with its unit.
        remedy: What to try, one sentence.
        line: What to copy: an argument or a command; empty where there is none.
        weight: How much it matters, for the order: its share of what is lost, as far as that is known, else its severity.
    """

    node: str
    op_name: str
    layer: int
    cause: str
    words: str
    evidence: tuple[str, ...]
    remedy: str
    line: str = ""
    weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Diagnosis(Shown):
    """What is wrong, in the order in which it matters.

    Attributes:
        verdict: One sentence.
        sound: True where nothing is wrong.
        suspects: The layers that matter, worst first; several causes of one layer follow each other.
        evidence: The figures of the whole model that the verdict rests on.
        notes: What could not be judged, and what to run for it.
    """

    verdict: str
    sound: bool
    suspects: tuple[Suspect, ...]
    evidence: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Diagnosis({self.verdict!r}, {len(self.suspects)} suspects)"


@dataclasses.dataclass(frozen=True)
class Advice(Shown):
    """One thing to try, and a quick estimate of what it brings.

    Attributes:
        words: What to try, one sentence.
        command: To copy.
        gain: What it brings, in ``unit``; NaN where that was not estimated.
        unit: Of the gain: ``dB SQNR`` at the worst output, ``points of top_1``, or else the metric.
        how: How the gain was estimated or measured, or why it was not.
        measured: True where models were run for it.
        at_most: True where it is a bound: what there would be if the remedy took away all of what it acts on.
        nodes: Of the nodes to be left float; empty for what keeps all of them int8.
    """

    words: str
    command: str
    gain: float = float("nan")
    unit: str = ""
    how: str = ""
    measured: bool = False
    at_most: bool = False
    nodes: tuple[str, ...] = ()


_CLASSES: dict[str, Any] = {
    "graph": GraphNode,
    "scores": Scores,
    "sensitivity": Sensitivity,
    "curves": Curve,
    "steps": Steps,
    "profiles": Profile,
    "samples": Samples,
    "diagnosis": Diagnosis,
    "advice": Advice,
    "fix": Outcome,
    "boards": Board,
    "latency": Latency,
}
# Parts that are a tuple of their class.
_SEVERAL = ("graph", "curves", "profiles", "advice", "boards")
# Fields that hold another class, one or a tuple of them.
_NESTED: dict[str, Any] = {
    "scores": Score,
    "errors": OutputErrors,
    "run": Run,
    "channels": Channels,
    "quantized_channels": Channels,
    "worst": SampleError,
    "flips": SampleError,
    "suspects": Suspect,
    "candidates": Candidate,
    "upper_bounds": Candidate,
    "proof": Candidate,
    "recipe": Recipe,
    "models": BoardModel,
    "layers": Run,
    "host_layers": Run,
    "whole_models": ModelTime,
    "timed": OperatorTime,
}
# Of a class, fields that are a mapping to another class.
_MAPPED: dict[tuple[Any, str], Any] = {(Candidate, "metrics"): Measured, (Candidate, "differences"): Difference}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        # More digits than a float32 has would only make the file larger.
        return [float(f"{entry:.8g}") for entry in value.reshape(-1).tolist()]
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, bytes):  # a label may be one
        return value.decode("utf-8", "replace")
    return value


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(entry) for entry in value) if isinstance(value, list) else value


def _restored(kind: Any, fields: Any) -> Any:
    if fields is None:
        return None
    if hasattr(kind, "from_dict"):
        return kind.from_dict(fields)
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: _field(kind, name, value) for name, value in fields.items() if name in known})


def _field(kind: Any, name: str, value: Any) -> Any:
    if kind is Profile and name in ("values", "quantized", "error"):
        return _restored(Histogram, value)
    if kind is Channels and name != "axis":
        return np.asarray(value, dtype=np.float64)
    if (kind, name) in _MAPPED:
        return {key: _restored(_MAPPED[kind, name], entry) for key, entry in value.items()}
    if kind is Recipe and name in ("ranges", "tuned"):
        return {key: _as_tuples(entry) for key, entry in value.items()}
    if name in _NESTED and value is not None:
        nested = _NESTED[name]
        return tuple(_restored(nested, entry) for entry in value) if isinstance(value, list) else _restored(nested, value)
    return _as_tuples(value)


def save_part(folder: str | os.PathLike[str], part: str, value: Any, mode: str = "") -> Path:
    """Writes what one analysis found into the folder of a run, and returns the file's path.

    Args:
        folder: Of the run.
        part: A name in `PLACES`.
        value: An instance of its class, or a tuple of them for ``graph``, ``curves``, ``profiles``, ``advice`` and ``boards``.
        mode: Of a sensitivity.

    Raises:
        OptionError: For a part or a mode that there is not.
        OutputError: Where it cannot be written.
    """
    if part not in PLACES:
        raise OptionError(f"got part {part!r}, expected one of {', '.join(PLACES)}.{did_you_mean(part, PLACES)}")
    if part == "sensitivity" and mode not in MODES:
        raise OptionError(f"got mode {mode!r}, expected one of {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    path = Path(folder) / PLACES[part].format(mode)
    if part == "fixed":
        value.save(path)
        return path
    content = {"format": f"tflite_qdebug {part}", "format_version": FORMAT_VERSION, "content": _plain(value)}
    write_atomically(path, json.dumps(encoded(content), allow_nan=False, default=str).encode())
    return path


def _load_part(path: Path, part: str) -> Any:
    if part == "fixed":
        return Run.load(path)
    try:
        fields = decoded(json.loads(path.read_bytes()))
        if fields.get("format") != f"tflite_qdebug {part}" or fields.get("format_version") != FORMAT_VERSION:
            raise ModelError(
                f"{path}: got {fields.get('format')!r} version {fields.get('format_version')!r}, expected 'tflite_qdebug "
                f"{part}' version {FORMAT_VERSION}"
            )
        kind, content = _CLASSES[part], fields["content"]
        if isinstance(content, list) != (part in _SEVERAL):
            raise ModelError(f"{path} is not what an analysis wrote: got {type(content).__name__} as the content of {part}")
        return tuple(_restored(kind, entry) for entry in content) if isinstance(content, list) else _restored(kind, content)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not what an analysis wrote: {error}") from error


@dataclasses.dataclass(repr=False)
class Findings(Shown):
    """All that is known about a run.

    Attributes:
        run: The error of each layer.
        graph: The operators and how they feed each other.
        scores: Float against quantized; None where it was not evaluated.
        sensitivity: By mode.
        curves: Accumulated error.
        steps: Sensitivity analysis; None where it was not made.
        profiles: Values of weights and outputs.
        samples: The worst of them; None where they were not looked for.
        diagnosis: None where it was not made.
        name: How a reader knows the run: its folder's name.
        advice: What to try, what brings most first; empty where nothing is wrong, or it was not worked out.
        fix: What a search for remedies found; None where none was made.
        fixed: The error of each layer of the model that it found.
        boards: What was measured on boards.
        latency: What each operator takes on this machine; None where it was not measured.
    """

    run: Run
    graph: tuple[GraphNode, ...] = ()
    scores: Scores | None = None
    sensitivity: dict[str, Sensitivity] = dataclasses.field(default_factory=dict)
    curves: tuple[Curve, ...] = ()
    steps: Steps | None = None
    profiles: tuple[Profile, ...] = ()
    samples: Samples | None = None
    diagnosis: Diagnosis | None = None
    name: str = "run"
    advice: tuple[Advice, ...] = ()
    fix: Outcome | None = None
    fixed: Run | None = None
    boards: tuple[Board, ...] = ()
    latency: Latency | None = None

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> Findings:
        """Reads all that is in the folder of a run.

        Args:
            place: The folder, or its ``run.json``.

        Raises:
            ModelError: Where there is no run, or a file is broken.
        """
        path = Path(place)
        folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise ModelError(f"there is no run at {path}; expected a folder that 'tflite-qdebug run ... --output' wrote")
        file = folder / "run.json" if path.is_dir() else path
        if not file.exists():
            raise ModelError(f"{folder} holds no run.json; expected a folder that 'tflite-qdebug run ... --output' wrote")
        findings = cls(Run.load(file), name=folder.resolve().name)
        for part in PLACES:
            if part == "sensitivity":
                continue
            if (folder / PLACES[part]).exists():
                setattr(findings, part, _load_part(folder / PLACES[part], part))
        for mode in MODES:
            if (folder / PLACES["sensitivity"].format(mode)).exists():
                findings.sensitivity[mode] = _load_part(folder / PLACES["sensitivity"].format(mode), "sensitivity")
        return findings

    def profile(self, node: str, role: str = "output") -> Profile | None:
        """Returns the profile of a node's weights or output."""
        return next((profile for profile in self.profiles if (profile.node, profile.role) == (node, role)), None)

    def operators(self) -> Iterator[tuple[int, GraphNode]]:
        """Yields ``(position among the run's layers, operator)`` of each layer that the graph knows."""
        by_node = {name: node for node in self.graph for name in node.nodes}
        for position, layer in enumerate(self.run.layers):
            if layer.node in by_node:
                yield position, by_node[layer.node]

    def neighbours(self, node: str) -> tuple[list[GraphNode], list[GraphNode]]:
        """Returns the operators before and behind a node.

        Raises:
            OptionError: Where the graph has no such node.
        """
        by_operator = {entry.operator: entry for entry in self.graph}
        for entry in self.graph:
            if node in entry.nodes:
                return [by_operator[i] for i in entry.inputs if i in by_operator], [
                    by_operator[i] for i in entry.outputs if i in by_operator
                ]
        raise OptionError(f"the graph has no node {node!r}")

    def known(self) -> list[str]:
        """Returns the names of the parts that are there, of a sensitivity with its modes."""
        parts = [part for part in PLACES if part != "sensitivity" and getattr(self, part)]
        return [*parts, *(f"sensitivity ({mode})" for mode in self.sensitivity)]

    def __repr__(self) -> str:
        return f"Findings({self.name!r}, {self.run!r}; known: {', '.join(self.known()) or 'nothing more'})"
