"""16-bit activations with 8-bit weights (16x8), for the whole model or for some of its nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import CalibratedModel, FloatModel, load_float_model
from tflite_qdebug.edit.flatbuffer import with_ranges
from tflite_qdebug.edit.hard_swish import unfold_hard_swish
from tflite_qdebug.edit.mixed import NODE, MixedModels, Node
from tflite_qdebug.edit.mixed16 import Int16Models
from tflite_qdebug.errors import OptionError, did_you_mean
from tflite_qdebug.match import Match, match_models
from tflite_qdebug.model import Model, Tensor

__all__ = ["Int16Model", "LeftNode", "int16_model", "with_int16_nodes"]

# Kernels divide 6.0 (RELU6) by the scale and want an int32: a range must not be nearer to nothing than 6 * 32767 / 2^31.
_LEAST = 1e-4

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class LeftNode:
    """A node that does not compute in 16 bits.

    Attributes:
        node: Its name, as a denylist takes it.
        op_name: Its type.
        reason: Why.
    """

    node: str
    op_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Int16Model:
    """A model with 16-bit activations.

    Attributes:
        data: The ``.tflite``.
        int16_nodes: Names of the nodes that compute in 16 bits, in execution order.
        left: Those that were to and do not.
        notes: What the reader must know.
    """

    data: bytes
    int16_nodes: tuple[str, ...]
    left: tuple[LeftNode, ...] = ()
    notes: tuple[str, ...] = ()


def int16_model(
    float_model: Any,
    *,
    ranges: Mapping[str, Range] | None = None,
    representative_dataset: Any = None,
    per_channel: bool = True,
    per_channel_dense: bool = True,
) -> Int16Model:
    """Makes the whole model 16x8, with TensorFlow's quantizer: the upper bound of what 16-bit activations can give back.

    HARD_SWISH, which has no 16-bit kernel, is unfolded into an addition and two products first.

    Args:
        float_model: A `CalibratedModel`, or anything that `load_float_model` takes.
        ranges: ``{tensor of the float model: (minimum, maximum)}`` instead of the calibrated ones. 16 bits have no need to cut
            off outliers: give the least and the greatest value.
        representative_dataset: Calibrates a model that has no ranges yet.
        per_channel: False: one scale for all channels of a weight.
        per_channel_dense: False: one scale for the weights of dense layers alone.

    Returns:
        The model; ``left`` are operators that the quantizer has not in 16 bits and left in float.

    Raises:
        OptionError: For ranges of unknown tensors or without sense, or where there are neither ranges nor a dataset.
        ConversionError: Where TensorFlow cannot quantize the model.
    """
    floats, found = _ranged(float_model, ranges, representative_dataset)
    widened = _widened(floats, found)
    wide = _wide(floats, found, per_channel, per_channel_dense)
    models = Int16Models(wide, wide)
    real = [node for node in wide.nodes if any(wide.graph.is_numeric(value) for value in node.values)]
    left = tuple(LeftNode(node.name, node.op_name, models.reason(node)) for node in real if models.reason(node))
    sixteen = tuple(node.name for node in real if not models.reason(node))
    return Int16Model(wide.graph.model.data, sixteen, left, widened)


def with_int16_nodes(
    float_model: Any,
    nodes: Iterable[str],
    *,
    quantized_model: Any = None,
    ranges: Mapping[str, Range] | None = None,
    representative_dataset: Any = None,
    op_types: Sequence[str] = (),
    readers: bool = False,
    narrow: MixedModels | None = None,
    per_channel: bool = True,
    per_channel_dense: bool = True,
    backend: Backend | None = None,
) -> Int16Model:
    """Gives chosen nodes of an int8 model 16-bit activations; all others stay as they are, bit for bit.

    A chosen node reads int16 and writes int16. Between chosen nodes values stay int16; a value that comes from an int8 node was
    rounded to 8 bits before, and one that an int8 node reads is rounded to 8 bits for it. So a tensor is better off only where
    *all of its readers* are chosen with the node that computes it: see ``readers``. A float node takes or gives it unrounded.

    The chosen nodes have weights and biases made anew: what was rounded or corrected in the int8 model is kept in the others.

    Args:
        float_model: A `CalibratedModel`, or anything that `load_float_model` takes.
        nodes: Output tensor names, as a denylist takes them.
        quantized_model: The int8 model (bytes, path or `Model`), with float nodes or without; by default TensorFlow's from
            the same ranges.
        ranges: As for `int16_model`.
        representative_dataset: As for `int16_model`.
        op_types: Choose also all nodes of these types, such as ``ADD``.
        readers: Choose also the nodes that read what the chosen ones compute.
        narrow: The float and the int8 model put together already, instead of ``quantized_model``.
        per_channel: As for `int16_model`; of the chosen nodes alone.
        per_channel_dense: Likewise.
        backend: Which code must be able to open the result; the builtin kernels by default.

    Returns:
        The model; ``left`` are chosen nodes that have no 16-bit form and stayed what they were.

    Raises:
        OptionError: For a name or a type that the model has not, with the nearest ones, and as `int16_model`.
        ConversionError: As `int16_model`.
        InterpreterError: Where the kernels refuse the result.
    """
    floats, found = _ranged(float_model, ranges, representative_dataset)
    if narrow is None:
        if quantized_model is None:
            quantized_model = _int8(floats, found, per_channel, per_channel_dense)
        quantized = quantized_model if isinstance(quantized_model, Model) else Model(quantized_model)
        narrow = MixedModels(floats, quantized, match_models(floats, quantized))
    floats = narrow.floats.graph.model
    chosen = _chosen(narrow, nodes, op_types, readers)
    _cover_what_is_read(narrow, chosen, found)
    around = {place for node in chosen for place in (*node.places, *(narrow.floats.at.get(value, -1) for value in node.reads))}
    notes = _widened(floats, found, around)
    models = Int16Models(narrow, _wide(floats, found, per_channel, per_channel_dense))
    left = tuple(LeftNode(node.name, node.op_name, models.reason(node)) for node in chosen if models.reason(node))
    kept = [node for node in chosen if not models.reason(node)]
    data = models.build(kept)
    (backend or Backend(kernels="builtin")).open(data)
    return Int16Model(data, tuple(node.name for node in kept), left, (*notes, *_about_neighbours(models, kept)))


# -- what is chosen --------------------------------------------------------------------------------------------------------


def _chosen(models: MixedModels, names: Iterable[str], op_types: Sequence[str], readers: bool) -> list[Node]:
    """Returns the nodes of those names and types, in execution order."""
    if isinstance(names, str) or isinstance(op_types, str):
        raise OptionError(f"got {names if isinstance(names, str) else op_types!r}, expected a list of names")
    wanted = {models.node(name).name for name in names}
    types = dict.fromkeys(node.op_name for node in models.nodes)
    for op_type in op_types:
        if op_type not in types:
            raise OptionError(
                f"got operator type {op_type!r}, expected one that the model has: {', '.join(types)}."
                f"{did_you_mean(op_type, types)}"
            )
    chosen = [node for node in models.nodes if node.name in wanted or node.op_name in op_types]
    if not readers:
        return chosen
    values = {value for node in chosen for value in node.values}
    operators = {node.operator for node in chosen}
    # Shapes and indices are read too; what reads only them has no 16-bit form anyway, and was not asked for.
    reading = [node for node in models.nodes if values.intersection(node.reads) and _is_real(models, node)]
    operators.update(node.operator for node in reading)
    return [node for node in models.nodes if node.operator in operators]


def _is_real(models: MixedModels, node: Node) -> bool:
    return any(models.graph.is_numeric(value) for value in node.values)


def _about_neighbours(models: Int16Models, kept: Collection[Node]) -> tuple[str, ...]:
    """Names nodes between int8 ones alone: what they read and what they give is rounded to 8 bits all the same."""
    graph, narrow = models.narrow.graph, {node.operator: models.reads(node) for node in kept}
    values, read = {value for node in kept for value in node.values}, {value for reads in narrow.values() for value in reads}

    def is_open(value: int) -> bool:
        """True where somebody gets the value without rounding to 8 bits."""
        floating = any(graph.tensor(index).is_float for op in graph.readers(value) for index in op.outputs)
        return value in read or value in graph.outputs or floating

    alone = [
        node.name
        for node in kept
        if not any(map(is_open, node.values))
        and not any(value in values or graph.tensor(value).is_float for value in narrow[node.operator])
    ]
    if not alone:
        return ()
    more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
    words = (
        f"{len(alone)} of the 16-bit nodes read and feed int8 nodes alone, so that little is gained there: {alone[0]!r}{more}"
    )
    return (f"{words}; choose what reads them too (readers=True)",)


# -- ranges ----------------------------------------------------------------------------------------------------------------


def _ranged(source: Any, ranges: Mapping[str, Range] | None, dataset: Any) -> tuple[Model, dict[int, Range]]:
    """Returns the float model, and a range for each of its activations, by tensor."""
    calibrated = source if isinstance(source, CalibratedModel) else None
    float_model = None if calibrated is not None else load_float_model(source)
    if float_model is not None and dataset is not None:
        calibrated = _calibrated(float_model, dataset)
    if calibrated is not None:
        model = calibrated.model if calibrated.float_model is None else calibrated.float_model.model
        tensors: Sequence[Tensor] = calibrated.model.main.tensors
    else:
        assert float_model is not None
        model = float_model.model
        tensors = model.main.tensors
    found = {
        tensor.index: (tensor.minimum, tensor.maximum)
        for tensor in tensors
        if tensor.minimum is not None and tensor.maximum is not None
    }
    found.update(_given(model, ranges or {}))
    missing = [tensor.name for tensor in _activations(model) if tensor.index not in found]
    if missing and len(model.subgraphs) == 1:
        raise OptionError(
            f"got no range for {missing[0]!r}" + (f" and {len(missing) - 1} more activations" if len(missing) > 1 else "")
            + ", expected one for each: give a calibrated model, representative_dataset, or ranges of all of them"
        )  # fmt: skip
    return model, found


def _calibrated(float_model: FloatModel, dataset: Any) -> CalibratedModel:
    try:
        return float_model.calibrate(dataset, "exposed", histograms=False, progress=False)
    except OptionError:  # recurrent operators or several subgraphs
        return float_model.calibrate(dataset, progress=False)


def _activations(model: Model) -> list[Tensor]:
    main = model.main
    return [tensor for tensor in main.tensors if tensor.is_float and not tensor.is_constant
            and (tensor.index in main.producers or tensor.index in main.inputs)]  # fmt: skip


def _given(model: Model, ranges: Mapping[str, Range]) -> dict[int, Range]:
    """Returns given ranges by tensor, checked."""
    by_name: dict[str, list[int]] = {}
    for tensor in _activations(model):
        by_name.setdefault(tensor.name, []).append(tensor.index)
    found = {}
    for name, (minimum, maximum) in ranges.items():
        if name not in by_name:
            raise OptionError(
                f"got a range for {name!r}, expected an activation of the float model, which has no such one."
                f"{did_you_mean(name, by_name)}"
            )
        if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
            raise OptionError(f"got range ({minimum}, {maximum}) for {name!r}, expected two numbers, the lesser first")
        found.update(dict.fromkeys(by_name[name], (float(minimum), float(maximum))))
    return found


def _cover_what_is_read(models: MixedModels, chosen: Collection[Node], ranges: dict[int, Range]) -> None:
    """Widens the range of what 16-bit nodes read from int8 ones to all that int8 can stand for there.

    An int8 tensor reaches up to one step beyond its calibrated range, and further where a range was chosen that is wider.
    """
    computed = {value for node in chosen for value in node.values}
    for node in chosen:
        for value in node.values:
            for feed in models.feeds(value, NODE):
                tensor, place = models.graph.tensor(feed), models.floats.at.get(feed)
                if feed in computed or place not in ranges or not tensor.is_quantized:
                    continue
                assert tensor.quantization is not None
                limits = np.iinfo(tensor.dtype)
                low, high = tensor.quantization.dequantize(np.array([limits.min, limits.max], tensor.dtype)).tolist()
                ranges[place] = (min(low, ranges[place][0]), max(high, ranges[place][1]))


def _widened(model: Model, ranges: dict[int, Range], told: Collection[int] | None = None) -> tuple[str, ...]:
    """Widens ranges without width, in place, since kernels refuse their scale; says so of all, or those ``told``."""
    narrow = [index for index, (low, high) in ranges.items() if max(abs(low), abs(high)) < _LEAST]
    for index in narrow:
        ranges[index] = (0.0, _LEAST) if ranges[index][0] >= 0 else (-_LEAST, _LEAST)
    names = [model.main.tensors[index].name for index in narrow if told is None or index in told]
    if not names:
        return ()
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return (f"{names[0]!r}{more} was (nearly) zero in all samples; its 16-bit range is {_LEAST}, which the kernels need",)


# -- TensorFlow's quantizer ------------------------------------------------------------------------------------------------


def _wide(model: Model, ranges: Mapping[int, Range], per_channel: bool, per_channel_dense: bool) -> MixedModels:
    """Returns the float model and its whole 16x8 form, put together."""
    data, between = unfold_hard_swish(model)
    unfolded = model if data is model.data else Model(data)
    calibrated = CalibratedModel(None, with_ranges(unfolded, {**ranges, **between}))
    wide = Model(calibrated.quantize("int16x8", per_channel=per_channel, per_channel_dense=per_channel_dense).data)
    # What the unfolded model has besides is nothing that the others know.
    matched = match_models(unfolded, wide).values
    known = {place: value for place, value in matched.items() if place < len(model.main.tensors)}
    return MixedModels(model, wide, Match((), known, (), ()))


def _int8(model: Model, ranges: Mapping[int, Range], per_channel: bool, per_channel_dense: bool) -> bytes:
    calibrated = CalibratedModel(None, with_ranges(model, ranges))
    return calibrated.quantize("int8", per_channel=per_channel, per_channel_dense=per_channel_dense).data
