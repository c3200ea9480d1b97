"""Small quantized models written operator by operator: no converter comes in between, so each has exactly one fault."""

from __future__ import annotations

from typing import Any

import numpy as np

from tflite_qdebug import tf_private
from tflite_qdebug.edit.flatbuffer import Writer, pack
from tflite_qdebug.model import Model


class Made:
    """A model that is being written; tensors are called by their names."""

    def __init__(self) -> None:
        self.schema = tf_private.schema()
        self.unpacked = self.schema.ModelT()
        self.unpacked.version, self.unpacked.operatorCodes, self.unpacked.buffers = 3, [], [self.schema.BufferT()]
        self.main = self.schema.SubGraphT()
        self.main.tensors, self.main.operators, self.main.inputs, self.main.outputs = [], [], [], []
        self.unpacked.subgraphs = [self.main]
        self.writer = Writer(self.unpacked)
        self.indices: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: str = "INT8",
        scale: Any = 0.5,
        values: Any = None,
        variable: bool = False,
    ) -> str:
        """Adds a tensor, with a scale where its integers have 8 or 16 bits; -1 stands in the shape signature, beside a 1."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), getattr(self.schema.TensorType, kind), 0
        tensor.shape = [abs(size) for size in shape]
        tensor.shapeSignature = list(shape) if -1 in shape else None
        tensor.isVariable = variable
        if kind in ("INT8", "UINT8", "INT16") and scale is not None:
            parameters = self.schema.QuantizationParametersT()
            parameters.scale = np.atleast_1d(np.float32(scale))
            parameters.zeroPoint = np.zeros(parameters.scale.size, np.int64)
            tensor.quantization = parameters
        if values is not None:
            dtype = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "FLOAT32": np.float32}[kind]
            tensor.buffer = self.writer.add_values(np.broadcast_to(np.asarray(values, dtype), shape))
        self.indices[name] = len(self.main.tensors)
        self.main.tensors.append(tensor)
        return name

    def input(self, name: str, shape: tuple[int, ...], kind: str = "INT8", **options: Any) -> str:
        """Adds an input of the model."""
        self.tensor(name, shape, kind, **options)
        self.main.inputs.append(self.indices[name])
        return name

    def numbers(self, name: str, values: Any) -> str:
        """Adds a constant of int32: a shape, axes."""
        values = np.asarray(values, np.int32)
        return self.tensor(name, values.shape, "INT32", values=values)

    def weights(self, name: str, shape: tuple[int, ...], scale: Any = 0.5) -> str:
        """Adds a constant of int8."""
        return self.tensor(name, shape, values=1, scale=scale)

    def operator(
        self, kind: str, inputs: list[str | None], outputs: list[str] | str, version: int = 1, options: str = "", **fields: Any
    ) -> None:
        """Adds an operator; a kind that the schema lacks is a custom one."""
        table = self.schema.OperatorT()
        builtin = kind in self.writer.builtin
        table.opcodeIndex = self.writer.add_code(kind, version, None if builtin else kind.encode())
        table.inputs = np.array([-1 if name is None else self.indices[name] for name in inputs], np.int32)
        table.outputs = np.array(
            [self.indices[name] for name in ([outputs] if isinstance(outputs, str) else outputs)], np.int32
        )
        if options:
            table.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            table.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in fields.items():
                setattr(table.builtinOptions, name, value)
        self.main.operators.append(table)

    def unary(
        self, kind: str, source: str, name: str, shape: tuple[int, ...] = (1, 4, 4, 8), to: str = "INT8", **options: Any
    ) -> str:
        """Adds an operator of one input and one output."""
        self.operator(kind, [source], self.tensor(name, shape, to), **options)
        return name

    def convolution(self, source: str, name: str, shape: tuple[int, ...] = (1, 4, 4, 8), **fields: Any) -> str:
        """Adds a 1 x 1 convolution of 8 channels: 64 bytes of weights and 32 of biases."""
        filters, biases = self.weights(f"{name}/filters", (8, 1, 1, 8)), self.numbers(f"{name}/biases", [0] * 8)
        fields = {"dilationHFactor": 1, "dilationWFactor": 1, **fields}
        self.operator("CONV_2D", [source, filters, biases], self.tensor(name, shape), 3, "Conv2DOptions", **fields)
        return name

    def model(self, *outputs: str) -> Model:
        """Returns the model with these outputs."""
        self.main.outputs = [self.indices[name] for name in outputs]
        return Model(pack(self.unpacked))


def image(kind: str = "INT8", shape: tuple[int, ...] = (1, 4, 4, 8)) -> Made:
    """A model with one input, ``image``, and nothing else yet."""
    made = Made()
    made.input("image", shape, kind)
    return made
