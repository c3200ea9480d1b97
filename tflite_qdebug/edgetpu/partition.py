"""Which operators of a model the Edge TPU compiler maps to the device, predicted one by one.

The compiler cuts one piece out of the graph. An operator stays on the CPU where the device cannot do it, or where it lies
behind such an operator that has itself something mapped before it: the graph would have to come back to the device, in a
second piece. What stands before the piece may run on the CPU, and branches beside an operator that cannot be mapped go on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from tflite_qdebug.edgetpu.op_versions import COMPILER_RELEASE
from tflite_qdebug.edgetpu.rules import BLOCKED, DATA_TYPE, DYNAMIC, Rules, Verdict
from tflite_qdebug.errors import ModelError, OptionError, completed, did_you_mean
from tflite_qdebug.model import Model, Operator, refuses_broken_models
from tflite_qdebug.shown import Shown
from tflite_qdebug.wording import byte_size, shortened

__all__ = [
    "CUSTOM_OPERATOR",
    "ON_CHIP_BYTES",
    "Partition",
    "Placement",
    "cut_by_float",
    "mapped_operators",
    "partition",
]

#: What the compiler puts in the place of the operators that it maps.
CUSTOM_OPERATOR = "edgetpu-custom-op"
#: Memory of the device for parameters and everything else. What the compiler leaves for parameters depends on the model.
ON_CHIP_BYTES = 8 << 20
# Used and remaining together, in published logs of the compiler 14 to 16: mostly between these; 3 MiB with 512 x 512 images.
_LEAST_CACHE, _USUAL_CACHE, _MOST_CACHE = 6 << 20, 7 << 20, int(7.9 * (1 << 20))
_RUNTIMES = range(10, 15)
_BRIDGES = ("QUANTIZE", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one operator runs.

    Attributes:
        index: Position in execution order.
        operator: Its type, or a custom operator's own name.
        version: Operator version.
        output: Name of its first output tensor, by which a denylist calls it; empty where it has none.
        mapped: It runs on the device.
        would_map: The same, but for what makes the compiler refuse the model as a whole.
        reason: Its status, in the compiler's words.
        words: Why, in plain words; of a mapped operator what is doubtful, mostly nothing.
        behind: Index of the operator that cuts it off; -1 where its own kind decides.
        segment: Number of the piece that holds it, from 0; -1 on the CPU.
        sure: False where the rule that decides is a guess.
        is_float: It was asked to be kept float.
    """

    index: int
    operator: str
    version: int
    output: str
    mapped: bool
    would_map: bool
    reason: str
    words: str = ""
    behind: int = -1
    segment: int = -1
    sure: bool = True
    is_float: bool = False


@dataclasses.dataclass(frozen=True)
class Partition(Shown):
    """What runs on the device, what on the CPU, and what passes between them.

    Of a model that the compiler refuses nothing is mapped; all but `mapped` then tells what would be, were that mended.

    Attributes:
        operators: The main subgraph's, in execution order.
        refused: Why the compiler refuses the model as a whole; mostly empty.
        runtime_version: The oldest runtime on the device that the model is compiled for.
        segments: Pieces on the device.
        inputs: Names of the tensors that a piece gets from the host, the model's inputs among them.
        outputs: Names of the tensors that it gives back, the model's outputs among them.
        crossing_bytes: Size of all these tensors.
        parameter_bytes: Constants of the mapped operators, as they stand in the file. The compiler pads them: its own figure is
            mostly up to a third more, for many small layers several times as much.
        fits: Whether these stay on the device: ``yes``, ``perhaps``, ``no``.
        streamed_bytes: Of them, what is sent anew for each sample, where 7 MiB are left for parameters.
        notes: What the reader must know.
    """

    operators: tuple[Placement, ...]
    refused: tuple[str, ...]
    runtime_version: int
    segments: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    crossing_bytes: int
    parameter_bytes: int
    fits: str
    streamed_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of operators."""
        return len(self.operators)

    @property
    def mapped(self) -> int:
        """Number of operators on the device."""
        return sum(placement.mapped for placement in self.operators)

    @property
    def would_map(self) -> int:
        """The same, were a refused model mended."""
        return sum(placement.would_map for placement in self.operators)

    @property
    def crossings(self) -> int:
        """Number of times a tensor passes between host and device for one sample."""
        return len(self.inputs) + len(self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        counts = {name: getattr(self, name) for name in ("total", "mapped", "would_map", "crossings")}
        return {**dataclasses.asdict(self), **counts}

    def table(self, name_width: int = 40, unmapped_only: bool = False) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows, one for each operator, as text."""
        rows = [
            [
                str(placement.index),
                placement.operator,
                shortened(placement.output, name_width),
                "Edge TPU" if placement.mapped else "CPU",
                placement.reason + ("" if placement.sure else " (unsure)"),
                placement.words,
            ]
            for placement in self.operators
            if not (unmapped_only and placement.mapped)
        ]
        return ["#", "operator", "node", "runs on", "status", "why"], rows

    def summary(self) -> tuple[str, ...]:
        """Returns what there is to say of the whole, in sentences."""
        lines = [f"the compiler refuses the model: {why}" for why in self.refused]
        count = self.would_map
        lines.append(
            f"{count} of {self.total} operators {'would map' if self.refused else 'map'} to the Edge TPU, in {self.segments} "
            f"{'piece' if self.segments == 1 else 'pieces'}; {self.crossings} tensors ({byte_size(self.crossing_bytes)}) pass "
            "between host and device for one sample"
        )
        if count:
            place = {
                "yes": "stay on the device",
                "no": "do not fit on the device",
                "perhaps": "may or may not fit on the device",
            }
            streamed = f", {byte_size(self.streamed_bytes)} are sent for each sample" if self.streamed_bytes else ""
            lines.append(f"parameters of {byte_size(self.parameter_bytes)} {place[self.fits]}{streamed}")
        return (*lines, *self.notes)

    def __repr__(self) -> str:
        refused = ", refused as a whole" if self.refused else ""
        return f"Partition({self.mapped} of {self.total} operators on the Edge TPU{refused})"


@refuses_broken_models
def partition(model: Model, *, runtime_version: int = 14, multiple_subgraphs: bool = False) -> Partition:
    """Predicts what the compiler 16.0 maps of a model's main subgraph.

    Args:
        model: A model, mostly of 8-bit integers throughout.
        runtime_version: The oldest runtime on the device that it shall run with (``-m``), 10 to 14.
        multiple_subgraphs: True for ``-a``, which maps every piece instead of the first.

    Raises:
        ModelError: For a model that has been compiled already.
        OptionError: For an unknown runtime version.
    """
    rules = _rules_of(model, runtime_version)
    verdicts = [rules.verdict(operator) for operator in model.main.operators]
    return _partitioned(rules, verdicts, multiple_subgraphs)


@refuses_broken_models
def cut_by_float(
    model: Model, nodes: Collection[str | int], *, runtime_version: int = 14, multiple_subgraphs: bool = False
) -> Partition:
    """Predicts what is left on the device where some nodes are kept float, without making that model.

    Around them stand a DEQUANTIZE and a QUANTIZE, which run on the CPU; these are not among the operators returned, so
    that it can be compared with what `partition` returns of the model as it is.

    Args:
        model: The quantized model.
        nodes: Names of the nodes, by their output tensors in this model, or positions of operators.
        runtime_version: As `partition` has it.
        multiple_subgraphs: Likewise.

    Raises:
        ModelError: For a model that has been compiled already.
        OptionError: For a node that the model lacks, with the nearest names.
    """
    rules = _rules_of(model, runtime_version)
    kept = _operators_of(model, nodes)
    verdicts = [
        Verdict(DATA_TYPE, "it is kept float") if operator.index in kept else rules.verdict(operator)
        for operator in model.main.operators
    ]
    for index in _bridges_of(model, kept):
        verdicts[index] = Verdict(DATA_TYPE, "it stands beside what is kept float, and converts from or to floats")
    found = _partitioned(rules, verdicts, multiple_subgraphs)
    placements = (dataclasses.replace(each, is_float=True) if each.index in kept else each for each in found.operators)
    return dataclasses.replace(found, operators=tuple(placements))


@refuses_broken_models
def mapped_operators(model: Model | bytes, *, runtime_version: int = 14, if_accepted: bool = False) -> tuple[int, int]:
    """Returns how many operators map, and how many there are: what `partition` says, in little more than the time to read it.

    Args:
        model: A model, or the bytes of one.
        runtime_version: As `partition` has it.
        if_accepted: Counts what would map were the model not refused as a whole, as for a batch of any size. So a model can be
            compared with variants of itself that share the fault.

    Raises:
        ModelError: For what is no model, or one that has been compiled already.
    """
    model = model if isinstance(model, Model) else Model(model)
    rules = _rules_of(model, runtime_version)
    operators = model.main.operators
    if not if_accepted and _refusals(rules):
        return 0, len(operators)
    places = _places(model, [rules.verdict(operator) for operator in operators])
    return sum(level == 0 for level, _ in places), len(operators)


def _rules_of(model: Model, runtime_version: int) -> Rules:
    if runtime_version not in _RUNTIMES:
        raise OptionError(
            f"got runtime version {runtime_version!r}, expected {_RUNTIMES[0]} to {_RUNTIMES[-1]}: that "
            "of the device's libedgetpu"
        )
    if any(operator.name == CUSTOM_OPERATOR for operator in model.main.operators):
        raise ModelError(
            f"got a model with the operator {CUSTOM_OPERATOR}, which has been compiled for the Edge TPU already; "
            "expected the one that was given to the compiler"
        )
    return Rules(model, runtime_version)


# ----------------------------------------------------------------------------------------------------------- the graph


def _places(model: Model, verdicts: Sequence[Verdict]) -> list[tuple[int, int]]:
    """Returns ``(level, the operator that cuts it off or -1)`` of each operator.

    Levels count how often the graph changed sides on the way: even on the device, odd on the CPU, which also has -1, before
    anything is mapped. 0 is the first piece.
    """
    producers: dict[int, int] = {}
    places: list[tuple[int, int]] = []
    for operator, verdict in zip(model.main.operators, verdicts, strict=True):
        before = [producers[index] for index in operator.inputs if index in producers]
        highest = max((places[index][0] for index in before), default=-1)
        level = highest + (highest % 2 if verdict.is_mapped else 1 - highest % 2)
        cuts = [index for index in before if places[index][0] == highest]
        places.append((level, _cut(model, verdicts, places, operator, cuts, level)))
        producers.update(dict.fromkeys(operator.outputs, operator.index))
    return places


def _cut(
    model: Model,
    verdicts: Sequence[Verdict],
    places: Sequence[tuple[int, int]],
    operator: Operator,
    before: Sequence[int],
    level: int,
) -> int:
    """Returns the operator on account of which one is beyond the first piece; -1 where it is not."""
    if level < 1 or not before or not verdicts[operator.index].is_mapped:
        return -1
    return next((places[index][1] for index in before if verdicts[index].is_mapped), before[0])


def _refusals(rules: Rules) -> list[str]:
    """Returns why the compiler takes nothing of a model: its own words first, then ours."""
    release = ".".join(map(str, COMPILER_RELEASE))
    reasons = [
        f"Didn't find op for builtin opcode '{name}' version '{version}' (the compiler knows TensorFlow Lite up to {release})"
        for name, version in rules.unknown_versions().items()
    ]
    tensors = rules.main.tensors
    dynamic = [repr(tensor.name) for tensor in rules.dynamic_tensors()]
    if dynamic:
        reasons.append(f"{DYNAMIC} (known only when the model runs: {', '.join(dynamic)}; convert with a batch of 1)")
    if rules.main.operators and not any(tensor.is_quantized for tensor in tensors):
        reasons.append("Model not quantized")
    return reasons


def _partitioned(rules: Rules, verdicts: Sequence[Verdict], multiple_subgraphs: bool) -> Partition:
    model, operators = rules.model, rules.main.operators
    refused = tuple(_refusals(rules))
    places = _places(model, verdicts)
    levels = sorted({level for level, _ in places if level >= 0 and level % 2 == 0})
    levels = levels if multiple_subgraphs else levels[:1]
    segments = [levels.index(level) if level in levels else -1 for level, _ in places]
    placements = tuple(
        _placement(model, operator, verdicts, places[operator.index][1], segments[operator.index], bool(refused))
        for operator in operators
    )
    entering, leaving = _crossings(model, segments)
    parameters = _parameter_bytes(rules, segments)
    total = sum(parameters)
    fits = "yes" if total <= _LEAST_CACHE else "no" if total > _MOST_CACHE else "perhaps"
    tensors = rules.main.tensors
    return Partition(
        operators=placements,
        refused=refused,
        runtime_version=rules.runtime_version,
        segments=len(levels),
        inputs=tuple(tensors[index].name for index in entering),
        outputs=tuple(tensors[index].name for index in leaving),
        crossing_bytes=sum(_bytes_of(rules, index) for index in [*entering, *leaving]),
        parameter_bytes=total,
        fits=fits,
        streamed_bytes=0 if fits == "yes" else _streamed(parameters),
        notes=tuple(_notes(rules, segments)),
    )


def _placement(
    model: Model, operator: Operator, verdicts: Sequence[Verdict], behind: int, segment: int, refused: bool
) -> Placement:
    verdict = verdicts[operator.index]
    if verdict.is_mapped and segment < 0:
        cutting = model.main.operators[behind]
        why = f"it lies behind operator {behind} ({cutting.name}), which is not mapped and has mapped operators before it"
        verdict = Verdict(BLOCKED, why, verdicts[behind].sure)
    status, words = verdict.status, verdict.words
    if refused and segment >= 0:
        status, words = "", "it would map, but the compiler refuses the model as a whole"
    return Placement(
        index=operator.index,
        operator=operator.name,
        version=operator.version,
        output=model.main.tensors[operator.outputs[0]].name if operator.outputs else "",
        mapped=segment >= 0 and not refused,
        would_map=segment >= 0,
        reason=status,
        words=words,
        behind=behind if status == BLOCKED else -1,
        segment=segment,
        sure=verdict.sure,
    )


def _crossings(model: Model, segments: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns the tensors that enter a piece, once for each piece, and those that leave one."""
    main = model.main
    made = {output: segments[operator.index] for operator in main.operators for output in operator.outputs}
    entering: dict[tuple[int, int], None] = {}
    leaving: dict[int, None] = {}
    for operator in main.operators:
        segment = segments[operator.index]
        for index in operator.inputs:
            if index < 0 or main.tensors[index].is_constant or main.tensors[index].is_variable:
                continue
            source = made.get(index, -1)
            if segment >= 0 and source != segment:
                entering[index, segment] = None
            if source >= 0 and source != segment:
                leaving[index] = None
    leaving.update(dict.fromkeys(index for index in main.outputs if made.get(index, -1) >= 0))
    return [index for index, _ in entering], list(leaving)


# ---------------------------------------------------------------------------------------------------------- parameters


def _bytes_of(rules: Rules, index: int) -> int:
    tensor = rules.main.tensors[index]
    return math.prod(abs(size) for size in tensor.shape) * tensor.dtype.itemsize


def _parameter_bytes(rules: Rules, segments: Sequence[int]) -> list[int]:
    """Returns the bytes of constants that each mapped operator adds; one that is shared counts once."""
    seen: set[int] = set()
    sizes = []
    for operator in rules.main.operators:
        if segments[operator.index] < 0:
            continue
        new = {tensor.buffer: tensor.index for tensor in rules.weights(operator) if tensor.buffer not in seen}
        seen.update(new)
        sizes.append(sum(_bytes_of(rules, index) for index in new.values()))
    return sizes


def _streamed(parameters: Iterable[int]) -> int:
    """Returns how many bytes are sent for each sample: of operators, in order, that no longer fit as a whole."""
    left, streamed = _USUAL_CACHE, 0
    for size in parameters:
        if size <= left:
            left -= size
        else:
            streamed += size
    return streamed


def _notes(rules: Rules, segments: Sequence[int]) -> Iterable[str]:
    if len(rules.model.subgraphs) > 1:
        yield f"the model has {len(rules.model.subgraphs)} subgraphs; the main one alone is looked at"
    unfixed = [rules.main.tensors[index] for index in rules.main.inputs if -1 in rules.main.tensors[index].shape]
    if unfixed:
        yield (
            f"input {unfixed[0].name!r} has shape {unfixed[0].shape}: the compiler takes the sizes that stand in the file for "
            "-1, mostly 1; Coral asks for fixed ones, so convert with a batch of 1"
        )
    channels = [
        operator.index
        for operator in rules.main.operators
        if operator.name == "FULLY_CONNECTED" and _is_per_channel(rules, operator)
    ]
    if channels:
        yield (
            f"dense layers with a scale for each channel (operators {', '.join(map(str, channels))}): tflite-runtime up to "
            "2.9.1 computes them wrong without a word; quantize dense layers per tensor"
        )
    if not any(segment >= 0 for segment in segments):
        yield "nothing maps: the compiled model would run on the CPU alone"


def _is_per_channel(rules: Rules, operator: Operator) -> bool:
    found = rules.tensors(operator.inputs[1:2])
    return bool(found) and found[0].quantization is not None and found[0].quantization.scale.size > 1


# -------------------------------------------------------------------------------------------------------- kept float


def _operators_of(model: Model, nodes: Collection[str | int]) -> set[int]:
    known = model.main.nodes
    kept: set[int] = set()
    for name in [nodes] if isinstance(nodes, str) else nodes:
        if isinstance(name, int):
            if not 0 <= name < len(model.main.operators):
                raise OptionError(f"got operator {name}, expected 0 to {len(model.main.operators) - 1}")
            kept.add(name)
            continue
        full = completed(name, known, "node")
        if full not in known:
            raise OptionError(
                f"got node {name!r}, expected the name of an operator's output tensor in the model, which has no such one."
                f"{did_you_mean(name, known)}"
            )
        kept.update(operator.index for operator in known[full])
    return kept


def _bridges_of(model: Model, kept: Collection[int]) -> list[int]:
    """Returns the conversions between integers that become conversions from or to floats."""
    main, producers = model.main, model.main.producers
    readers: dict[int, list[int]] = {}
    for operator in main.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator.index)
    found = []
    for operator in main.operators:
        if operator.name not in _BRIDGES or operator.index in kept:
            continue
        source = producers.get(operator.inputs[0])
        targets = [reader for output in operator.outputs for reader in readers.get(output, [])]
        only_for_floats = bool(targets) and not set(main.outputs) & set(operator.outputs) and set(targets) <= set(kept)
        if only_for_floats or (source is not None and source.index in kept):
            found.append(operator.index)
    return found
