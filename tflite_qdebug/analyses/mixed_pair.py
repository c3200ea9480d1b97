"""What all analyses of partly quantized models need: the two models, ready to be mixed, the samples, and the task metrics."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tflite_qdebug.analyses.evaluation import METRICS, task_value
from tflite_qdebug.analyses.layer_error import RealValued
from tflite_qdebug.analyses.pairs import Pair, confirmed_match, open_pair
from tflite_qdebug.collect import Backend
from tflite_qdebug.datasets import Dataset, open_dataset
from tflite_qdebug.edit.mixed import FLOAT, NODE, MixedModel, MixedModels, Node
from tflite_qdebug.errors import DatasetError, ModelError, OptionError, did_you_mean
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.match import match_models
from tflite_qdebug.output_error import METRICS as OUTPUT_METRICS

__all__ = ["MixedPair", "Task", "check_metric", "memory_budget", "open_mixed", "trusted_backend"]

# Nodes that are tried in one model: a model for each would take longer to open than to run.
_TOGETHER = 16


@dataclasses.dataclass(frozen=True)
class MixedPair:
    """A float model and its quantized form, ready to be mixed, and the samples.

    Attributes:
        pair: The two models.
        models: Puts partly quantized models together.
        dataset: As opened.
        shapes: ``{value: shape}`` in the first sample.
        first: The first sample, with float32 for inputs that carry a scale.
        opened: All samples, likewise, the first among them.
    """

    pair: Pair
    models: MixedModels
    dataset: Dataset
    shapes: dict[int, tuple[int, ...]]
    first: Any
    opened: RealValued

    @functools.cached_property
    def exposed_float(self) -> bytes:
        """The float model with every node's outputs as outputs."""
        return self.models.exposed(FLOAT, [place for node in self.models.nodes for place in node.places])

    @functools.cached_property
    def is_stateful(self) -> bool:
        """True where a model has variables."""
        models = (self.pair.quantized, self.pair.floating)
        return any(tensor.is_variable for model in models if model is not None for tensor in model.main.tensors)

    @property
    def hashes(self) -> tuple[str | None, str]:
        """SHA-256 of the float and of the quantized model."""
        return None if self.pair.floating is None else self.pair.floating.sha256, self.pair.quantized.sha256

    @property
    def identity(self) -> list[Any]:
        """What tells these models and samples from others, as plain data; of the samples it is the first and a description."""
        # Not the dataset's whole description: that gains the number of samples by the first pass.
        return [*self.hashes, self.dataset.source.description, self.dataset.limit, self.first.sha256]

    def samples(self) -> RealValued:
        """Returns the samples, with float32 for inputs that carry a scale."""
        return self.opened  # which holds the first, so that an iterator that is good for one pass serves

    def feeds(self, sample: Any) -> dict[int, np.ndarray]:
        """Returns what a sample feeds, by value."""
        return dict(zip(self.pair.quantized.main.inputs, sample.inputs, strict=True))


def open_mixed(
    float_model: Any,
    quantized_model: Any,
    debug_dataset: Any,
    *,
    signature: str | None = None,
    limit: int | None = None,
    backend: Backend | None = None,
) -> MixedPair:
    """Reads both models, matches them, and opens the samples.

    Args:
        float_model: As for `pair_error`.
        quantized_model: As for `pair_error`.
        debug_dataset: As for `pair_error`.
        signature: As for `pair_error`.
        limit: As for `pair_error`.
        backend: As for `pair_error`.

    Raises:
        ModelError: Where a model cannot be read, there is no float model, or the two are no pair.
        OptionError: For a signature that a model lacks.
        DatasetError: Where the first sample is wrong, or there is none.
    """
    backend = backend or Backend()
    pair = open_pair(float_model, quantized_model).select(signature)
    if pair.floating is None:
        raise ModelError("got no float model; to leave nodes float it takes the float model that the quantized one came from")
    several = pair.signature is not None
    specs = pair.quantized.input_specs()
    dataset = open_dataset(debug_dataset, specs, "debug dataset", limit, pair.signature, "auto", skip_others=several)
    main = pair.quantized.main
    opened = RealValued(dataset, [main.tensors[index].quantization for index in main.inputs])
    first = opened.ahead(1)[0]
    match = match_models(pair.floating, pair.quantized)
    match = confirmed_match(match, pair.floating, pair.quantized, first, backend)
    models = MixedModels(pair.floating, pair.quantized, match)
    if len(models.inputs) < len(main.inputs):
        missing = [main.tensors[index].name for index in main.inputs if index not in models.inputs]
        raise ModelError(f"input {missing[0]!r} of the quantized model has no counterpart in the float model")
    shapes = backend.apart(_shapes, backend, models, first, what="running the quantized model on the first sample")
    return MixedPair(pair, models, dataset, shapes, first, opened)


def _shapes(backend: Backend, models: MixedModels, sample: Any) -> dict[int, tuple[int, ...]]:
    interpreter = backend.open(models.graph.model.data)
    interpreter.invoke(sample.inputs)
    return {
        index: info.shape for index, info in interpreter.tensor_infos().items() if index < len(models.graph.subgraph.tensors)
    }


def trusted_backend(mixed: MixedPair, backend: Backend) -> tuple[Backend, list[str]]:
    """Returns which code to run partly quantized models with: XNNPACK only where its integer kernels compute what others do.

    Each quantized node is computed by itself, on the float model's values for the first sample, by XNNPACK and by the builtin
    kernels. An error of more than twice that of the builtin ones, and half a step, is no rounding: int8 BATCH_MATMUL is
    plainly wrong under XNNPACK in TensorFlow 2.21, which must not be taken for quantization error.

    Returns:
        The backend, with ``kernels="builtin"`` where a kernel is at fault, and notes for the reader of the result.
    """
    if backend.kernels != "auto" or backend.delegates:
        return backend, []
    faulty = backend.apart(_faulty, mixed, backend, what="comparing the kernels on the first sample")
    if not faulty:
        return backend, []
    note = (
        f"XNNPACK computes {len(faulty)} nodes differently from the builtin kernels: {', '.join(faulty[:3])}. That is a fault "
        "of the kernels, not of quantization; the builtin kernels ran instead"
    )
    return backend._replace(kernels="builtin"), [note]


def _faulty(mixed: MixedPair, backend: Backend) -> list[str]:
    models, floats = mixed.models, mixed.models.floats
    values = mixed.feeds(mixed.first)
    whole = backend.open(mixed.exposed_float)
    whole.invoke([values[floats.values[index]] for index in floats.graph.subgraph.inputs])
    for node in models.nodes:
        values.update({value: whole.read(place) for value, place in zip(node.values, node.places, strict=True)})
    fit = [
        node
        for node in models.nodes
        if node.quantized
        and {feed for value in node.values for feed in models.feeds(value, NODE)} <= values.keys()
        and all(models.graph.is_numeric(value) for value in node.values)
    ]
    chunks = [fit[start : start + _TOGETHER] for start in range(0, len(fit), _TOGETHER)]
    return [words for chunk in chunks for words in _faulty_of(mixed, chunk, values, backend)]


def _faulty_of(mixed: MixedPair, nodes: list[Node], values: dict[int, np.ndarray], backend: Backend) -> list[str]:
    """Names those of some nodes that XNNPACK computes differently."""
    models = mixed.models
    apart = models.build_apart(nodes, mixed.shapes)
    with_xnnpack = backend.open(apart.data)
    theirs = _errors(apart, values, with_xnnpack)
    if with_xnnpack.kernels != "xnnpack":
        # It refuses one of them, and runs the others all the same where they stand without it.
        return [] if len(nodes) == 1 else [words for node in nodes for words in _faulty_of(mixed, [node], values, backend)]
    builtin = _errors(apart, values, backend.open(apart.data, "builtin"))
    found = []
    for node in nodes:
        steps = [tensor.quantization for tensor in map(models.graph.tensor, node.values)]
        own = np.array([theirs[value] for value in node.values])
        others = np.array([builtin[value] for value in node.values])
        allowed = 2.0 * others + [0.5 * float(step.scale.max()) if step else 0.0 for step in steps] + 1e-6
        if (own > allowed).any() or (np.isnan(own) & ~np.isnan(others)).any():
            found.append(f"{node.op_name} {node.name!r} (rmse {own.max():.4g} instead of {others.max():.4g})")
    return found


def _errors(apart: MixedModel, values: dict[int, np.ndarray], interpreter: Interpreter) -> dict[int, float]:
    """Returns the root mean square error of each value that nodes by themselves compute."""
    interpreter.invoke([values[value] for value in apart.inputs])
    errors = {}
    for value, index in zip(apart.outputs, apart.tensors, strict=True):
        error = interpreter.read(index).astype(np.float64) - values[value]
        with np.errstate(all="ignore"):
            errors[value] = float(np.sqrt(np.mean(error**2)))
    return errors


def check_metric(metric: str, task_metrics: Iterable[str]) -> None:
    """Refuses a metric that is neither one of `output_error.METRICS` nor one of the task metrics.

    Raises:
        OptionError: For such a metric, with the nearest ones.
    """
    known = [*OUTPUT_METRICS, *task_metrics]
    if metric not in known:
        raise OptionError(f"got metric {metric!r}, expected one of {', '.join(known)}.{did_you_mean(metric, known)}")


def memory_budget(memory: int | None) -> int:
    """Returns the bytes that models may take; a quarter of the machine's where None.

    Raises:
        OptionError: For less than one.
    """
    if memory is not None:
        if memory <= 0:
            raise OptionError(f"got a memory budget of {memory} bytes, expected more than 0")
        return memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


class Task(NamedTuple):
    """The user's metrics of whole models.

    Attributes:
        functions: ``{name: f(outputs, label) -> number}``.
        label_offset: Added to each label.
    """

    functions: dict[str, Callable[..., Any]]
    label_offset: int

    @property
    def own(self) -> bool:
        """True where a function is the user's own."""
        return any(function not in METRICS.values() for function in self.functions.values())

    @property
    def identity(self) -> list[Any]:
        """What tells these metrics from others, as plain data: an edited function is another."""
        return [self.label_offset, *([name, *_identity(function)] for name, function in self.functions.items())]

    def values(self, outputs: list[np.ndarray], sample: Any) -> list[float]:
        """Returns the metrics of one sample.

        Raises:
            DatasetError: Where a label is missing or does not fit.
            MetricError: Where a metric fails or gives no number.
        """
        if not self.functions:
            return []
        label = sample.label
        if label is None and any(function in METRICS.values() for function in self.functions.values()):
            raise DatasetError(f"sample {sample.index} of the debug dataset has no label, which accuracy needs")
        if self.label_offset and label is not None:
            label = label + self.label_offset
        return [task_value(name, function, outputs, label, sample.index) for name, function in self.functions.items()]


def _identity(function: Callable[..., Any]) -> list[str]:
    code = getattr(function, "__code__", None)
    content = hashlib.sha256(repr(list(_described(code))).encode()).hexdigest() if code else type(function).__qualname__
    return [getattr(function, "__module__", None) or "", getattr(function, "__qualname__", ""), content]


def _described(code: types.CodeType) -> Iterator[str]:
    """Yields what a function does, without where it stands in memory or in a file."""
    yield from (code.co_code.hex(), *code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _described(constant)
        else:
            yield repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
