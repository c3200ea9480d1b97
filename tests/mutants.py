"""Broken and hostile models, made from sound ones by seeded mutations, and the ways in which each is then used."""

from __future__ import annotations

import functools
import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import models
import numpy as np

from tflite_qdebug import edit, tf_private
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.collect import Backend, LayerMetrics, collect_layer_errors
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import Sample
from tflite_qdebug.edit.flatbuffer import pack
from tflite_qdebug.errors import ModelError, QDebugError
from tflite_qdebug.model import Model
from tflite_qdebug.record import Layer

EXTREMES = (0, 1, 2, 3, 127, 128, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2, 2**32 - 16)
SIZES = (-(2**31), -2, -1, 0, 1, 2, 5, 1000, 2**16, 2**20, 2**31 - 1)
INDICES = (-(2**31), -2, -1, 0, 1, 2, 5, 40, 200, 2**31 - 1)
SCALES = (float("nan"), float("inf"), -1.0, 0.0, 1e-45, 1e-30, 1e30, 3.4e38)
# A larger sample is not made: a model would take minutes for it, and do nothing else than for a smaller one.
_MOST_ELEMENTS = 1 << 17


@functools.cache
def seeds() -> dict[str, bytes]:
    """Returns the sound models: float, quantized in each way, with variables, and with a loop."""
    return {
        "float": models.float_tflite("mixed"),
        "float16": models.float_model("chain").quantize("float16").data,
        "int8": models.calibrated("mixed").quantize("int8").data,
        "full_integer": models.calibrated("chain").quantize("full_integer").data,
        "int16x8": models.calibrated("two_by_two").quantize("int16x8").data,
        "dynamic_range": models.float_model("embedding").quantize("dynamic_range").data,
        "variables": models.float_tflite("lstm"),
        "loop": models.while_loop(),
    }


@functools.cache
def float_twins() -> dict[str, Model]:
    """Returns the float model from which each quantized one was made."""
    names = {"int8": "mixed", "full_integer": "chain", "int16x8": "two_by_two", "dynamic_range": "embedding"}
    return {name: models.float_model(source).model for name, source in names.items()}


# ----------------------------------------------------------------------------------------------------- mutations of bytes


def truncated(data: bytes, generator: random.Random) -> bytes:
    return data[: generator.randrange(8, len(data))]


def overwritten(data: bytes, generator: random.Random) -> bytes:
    broken = bytearray(data)
    for _ in range(generator.randint(1, 30)):
        broken[generator.randrange(8, len(data))] = generator.randrange(256)
    return bytes(broken)


def words(data: bytes, generator: random.Random) -> bytes:
    """Overwrites what may be an offset, a count or an index."""
    broken = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(2, len(data) // 4) * 4
        value = generator.choice([*EXTREMES, len(data), generator.randrange(len(data)), generator.randrange(64)])
        broken[place : place + 4] = value.to_bytes(4, "little")
    return bytes(broken)


def moved(data: bytes, generator: random.Random) -> bytes:
    """Copies a part of the file over another, so that tables share what they point to."""
    broken, length = bytearray(data), generator.choice([4, 8, 64, 256])
    source, target = (generator.randrange(8, len(data) - length) & ~3 for _ in range(2))
    broken[target : target + length] = data[source : source + length]
    return bytes(broken)


# --------------------------------------------------------------------------------------------- mutations of what is stored


def _objects(change: Callable[[Any, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    @functools.wraps(change)
    def mutate(data: bytes, generator: random.Random) -> bytes:
        unpacked = tf_private.schema().ModelT.InitFromPackedBuf(data, 0)
        change(unpacked, generator)
        return pack(unpacked)

    return mutate


def _graph(unpacked: Any, generator: random.Random) -> Any:
    return generator.choice(unpacked.subgraphs)


@_objects
def shape(unpacked: Any, generator: random.Random) -> None:
    tensor = generator.choice(_graph(unpacked, generator).tensors)
    sizes = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    kind = generator.randrange(4)
    if kind == 0 or not sizes:
        sizes = [generator.choice(SIZES) for _ in range(generator.choice([0, 1, 2, 4, 9, 70]))]
    elif kind == 1:
        sizes[generator.randrange(len(sizes))] = generator.choice(SIZES)
    elif kind == 2:
        sizes = [size * generator.choice([1, 2, 1000]) for size in sizes]
    else:
        tensor.shapeSignature = [generator.choice(SIZES) for _ in sizes]
    tensor.shape = [max(-(2**31), min(size, 2**31 - 1)) for size in sizes]


@_objects
def references(unpacked: Any, generator: random.Random) -> None:
    """Makes operators, subgraphs or signatures refer to tensors, codes or subgraphs that are not there, or to wrong ones."""
    graph, index = _graph(unpacked, generator), generator.choice(INDICES)
    operator = generator.choice(graph.operators)
    kind = generator.randrange(6)
    if kind < 4:
        owner, name = [(operator, "inputs"), (operator, "outputs"), (graph, "inputs"), (graph, "outputs")][kind]
        values = [int(value) for value in (() if getattr(owner, name) is None else getattr(owner, name))]
        if values and generator.random() < 0.8:
            values[generator.randrange(len(values))] = generator.choice([index, generator.randrange(len(graph.tensors))])
        else:
            values = values[:-1]
        setattr(owner, name, values)
    elif kind == 4:
        operator.opcodeIndex = generator.choice([abs(index) % 2**32, generator.randrange(len(unpacked.operatorCodes))])
    elif unpacked.signatureDefs:
        signature = generator.choice(unpacked.signatureDefs)
        signature.subgraphIndex = abs(index) % 2**32 if generator.random() < 0.3 else signature.subgraphIndex
        generator.choice(signature.inputs + signature.outputs).tensorIndex = abs(index) % 2**32


@_objects
def buffers(unpacked: Any, generator: random.Random) -> None:
    """Gives tensors other values, too few of them, none, or values outside of the file."""
    tensor = generator.choice(_graph(unpacked, generator).tensors)
    kind = generator.randrange(5)
    if kind == 0:
        tensor.buffer = generator.choice([0, 1, len(unpacked.buffers), 2**31 - 1, generator.randrange(len(unpacked.buffers))])
    elif kind == 1:
        buffer = generator.choice(unpacked.buffers)
        length = 0 if buffer.data is None else len(buffer.data)
        buffer.data = np.zeros(generator.choice([0, 1, 3, length // 2, length * 2 + 1]), np.uint8)
    elif kind == 2:
        buffer = generator.choice(unpacked.buffers)
        if hasattr(buffer, "offset"):
            buffer.data = None
            buffer.offset, buffer.size = generator.choice([2, 100, 10**6, 2**63]), generator.choice([1, 100, 10**9, 2**63])
    else:
        values = unpacked.buffers[tensor.buffer].data
        if values is not None and len(values):
            # Constants of integers are shapes, axes, paddings, indices.
            size = min(len(values), 64)
            noise = np.frombuffer(generator.randbytes(size), np.uint8) if kind == 3 else np.full(size, 255, np.uint8)
            unpacked.buffers[tensor.buffer].data = np.concatenate([noise, np.asarray(values)[size:]]).astype(np.uint8)


@_objects
def quantization(unpacked: Any, generator: random.Random) -> None:
    tensors = [tensor for graph in unpacked.subgraphs for tensor in graph.tensors]
    tensor = generator.choice(tensors)
    parameters = tensor.quantization or tf_private.schema().QuantizationParametersT()
    tensor.quantization = parameters
    count = generator.choice([0, 1, 1, 2, 8, 5000])
    kind = generator.randrange(4)
    if kind == 0 or parameters.scale is None:
        parameters.scale, parameters.zeroPoint = [generator.choice(SCALES) for _ in range(count)], [0] * count
    elif kind == 1:
        parameters.scale = [generator.choice(SCALES) for _ in parameters.scale]
    elif kind == 2:
        parameters.zeroPoint = [generator.choice([-(2**63), -1, 300, 2**31, 2**63 - 1]) for _ in parameters.scale]
    else:
        parameters.quantizedDimension = generator.choice(SIZES)


@_objects
def types(unpacked: Any, generator: random.Random) -> None:
    tensor = generator.choice(_graph(unpacked, generator).tensors)
    kind = generator.randrange(4)
    if kind < 2:
        tensor.type = generator.choice([*range(20), 100, 127, -1])
    elif kind == 2:
        tensor.isVariable = not tensor.isVariable
    else:
        tensor.name = generator.choice([None, b"", b"\xff\xfe\x00", b"x" * 100_000, b"\x00", b"</script>", b"\x1f1\x1f"])


@_objects
def options(unpacked: Any, generator: random.Random) -> None:
    """Zero strides, negative axes, unknown activations, bodies that are not there; other operators and versions."""
    operator = generator.choice(_graph(unpacked, generator).operators)
    found = operator.builtinOptions
    numbers = [name for name, value in vars(found).items() if isinstance(value, int)] if found is not None else []
    kind = generator.randrange(3)
    if kind and numbers:
        limited = {"fusedActivationFunction", "padding", "weightsFormat", "quantizedBiasType", "kernelType", "inDataType",
                   "outDataType", "type"}  # fmt: skip
        name = generator.choice(numbers)
        setattr(found, name, generator.choice([-128, -1, 0, 3, 7, 100]) if name in limited else generator.choice(SIZES))
    elif kind == 1:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
    else:
        code = generator.choice(unpacked.operatorCodes)
        code.builtinCode = generator.choice([*range(210), 2**31 - 1])
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = generator.choice([0, 1, 2, 5, 100, -1])


@_objects
def order(unpacked: Any, generator: random.Random) -> None:
    graph = _graph(unpacked, generator)
    kind = generator.randrange(3)
    if kind == 0:
        generator.shuffle(graph.operators)
    elif kind == 1:
        graph.operators += [generator.choice(graph.operators) for _ in range(generator.choice([1, 5]))]
    else:
        generator.shuffle(graph.tensors)


MUTATIONS = (truncated, overwritten, words, moved, shape, references, buffers, quantization, types, options, order)


def mutant(number: int, seed: int) -> tuple[str, bytes]:
    """Returns which model was mutated how, in words, and the mutant; one whose values no file can hold is made anew."""
    generator = random.Random(f"{seed} {number}")
    while True:
        name = generator.choice(list(seeds()))
        mutation = MUTATIONS[number % len(MUTATIONS)]
        try:
            data = mutation(seeds()[name], generator)
            if generator.random() < 0.15:
                second = generator.choice(MUTATIONS)
                return f"{number}: {name}, {mutation.__name__}, {second.__name__}", second(data, generator)
            return f"{number}: {name}, {mutation.__name__}", data
        except Exception:  # no file holds such a value, or the first mutation left nothing to mutate
            continue


# ------------------------------------------------------------------------------------------------------------------- use


def sample_for(model: Model) -> list[np.ndarray]:
    """Returns a sample as the model asks for it.

    Raises:
        ModelError: Where it asks for more than a machine has, or for strings.
    """
    made = []
    for spec in model.input_specs():
        sizes = [2 if size == -1 else size for size in spec.shape]
        elements = 1
        for size in sizes:
            elements *= size
        if elements > _MOST_ELEMENTS or len(sizes) > 32 or spec.dtypes[0].kind == "O":
            raise ModelError("not to be fed")
        made.append(np.ones(sizes, spec.dtypes[0]))
    return made


def steps(data: bytes, backend: Backend) -> dict[str, Callable[[], Any]]:
    """Returns every public way in which a model is used, by name."""

    def read() -> Any:
        model = Model(data)
        for tensor in model.main.tensors:
            if tensor.is_constant and tensor.dtype != object:
                model.constant(tensor)
        return model.input_specs(), model.node_names(), repr(model)

    def expose() -> Any:
        model = Model(data)
        return edit.expose(model, list(model.main.producers))

    def measure() -> Any:
        model = Model(data)
        sample = Sample(0, sample_for(model))
        layers = [
            Layer(tensor.name, "X", 0, tensor.name, index, index, tensor.shape, "float32", None, None, str(index))
            for index, tensor in ((index, model.main.tensors[index]) for index in model.main.outputs)
            if tensor.is_float
        ]
        return collect_layer_errors(data, layers, [sample], backend, LayerMetrics())

    def accuracy() -> Any:
        return evaluate({"it": data}, [(sample_for(Model(data)), 0)], backend=backend, progress=False)

    made: dict[str, Callable[[], Any]] = {
        "read": read, "load": lambda: load_float_model(data), "expose": expose, "measure": measure, "evaluate": accuracy,
        "weights": lambda: load_float_model(data).quantize("dynamic_range"),
    }  # fmt: skip
    for name, twin in float_twins().items():
        made[f"pair {name}"] = lambda twin=twin: edit.debug_pair(twin, Model(data))
    return made


def use(name: str, data: bytes, backend: Backend, ways: Sequence[str]) -> Counter[str]:
    """Uses a mutant in the given ways; returns how often it went well and was refused.

    Raises:
        AssertionError: Where it ended otherwise.
    """
    found: Counter[str] = Counter()
    for way, step in steps(data, backend).items():
        if way not in ways and not (way.startswith("pair ") and "pair" in ways and way[5:] in name):
            continue
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # absurd scales overflow
                step()
            found[f"{way}: went well"] += 1
        except QDebugError:
            found[f"{way}: refused"] += 1
        except Exception as error:
            raise AssertionError(f"mutant {name}, {way}: {type(error).__name__}: {error}") from error
    return found
