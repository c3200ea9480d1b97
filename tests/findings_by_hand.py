"""Findings made up by hand, with a value in every field, for the tests of what is saved and of the reports."""

from __future__ import annotations

import types
from typing import Any

import made_outcome
import numpy as np

from tflite_qdebug.findings import (
    Advice,
    Channels,
    Curve,
    Diagnosis,
    Findings,
    GraphNode,
    Profile,
    SampleError,
    Samples,
    Score,
    Scores,
    Sensitivity,
    Steps,
    Suspect,
)
from tflite_qdebug.kernels import COLUMNS
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.record import Layer, Run
from tflite_qdebug.statistics import ErrorStatistics, Histogram, SampleSums

#: Names of the layers of `run`: ordinary, and such as must be escaped.
NODES = ("first/Relu", "second;fused/Add", 'odd <"名"> & co', "last")
OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "FULLY_CONNECTED")
SCALE = 0.5


def run(rmse: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4), nodes: tuple[str, ...] = NODES, output_sqnr: float = 30.0) -> Run:
    """Returns a run whose layers have these errors, a mean square of 4, and 100 elements in each of two samples."""
    layers = [
        Layer(node, OPS[i % 4], i, f"{node}_int8", i, 10 + i, (1, 5, 20), "int8", SCALE, -1, f"NumericVerify/{node}:{i}")
        for i, node in enumerate(nodes)
    ]
    whole = {"quantized": statistics([2.0 / 10 ** (output_sqnr / 20)])}
    provenance = {
        "tflite_qdebug": "1.0",
        "runtime": "tensorflow",
        "runtime_version": "2.21.0",
        "kernels": "builtin",
        "float_model_sha256": "f" * 64,
        "debug_dataset": "two samples",
        "samples": 2,
    }
    return Run("per_layer", layers, statistics(list(rmse)), provenance=provenance, whole=whole, outputs=["output"])


def statistics(rmse: list[float]) -> ErrorStatistics:
    """Returns sums of rows with these errors over two samples."""
    result = ErrorStatistics(len(rmse))
    rows = np.zeros((len(rmse), COLUMNS))
    rows[:, 0] = 100.0
    rows[:, 2] = 100.0 * np.square(rmse)
    rows[:, 3] = 400.0
    for index in range(2):
        result.add(index, SampleSums(rows.copy()))
    return result


def output_errors(
    variants: list[str], seed: int = 0, outputs: tuple[str, ...] = ("output",), sizes: Any = None, task: bool = False
) -> OutputErrors:
    """Returns the errors of variants whose error has the root mean square ``sizes``, on six samples of 200 values."""
    errors = OutputErrors(variants, outputs, ["score"] if task else [])
    sizes = np.linspace(0.01, 0.1, len(variants)) if sizes is None else sizes
    generator = np.random.default_rng(seed)
    for index in range(6):
        rows = []
        for size in sizes:
            row = []
            for _ in outputs:
                reference = generator.choice([-1.0, 1.0], (1, 200))  # whose mean square is 1
                row.append(measure_output(reference + size * generator.choice([-1.0, 1.0], reference.shape), reference))
            rows.append(row)
        errors.add(index, np.array(rows), np.full((len(variants), 1), 0.5) if task else None)
    return errors


def histogram(seed: int = 0) -> Histogram:
    """Returns the histogram of a thousand values."""
    result = Histogram(64)
    result.add(np.random.default_rng(seed).normal(0, 1, 1000).astype(np.float32))
    return result


def channels(count: int = 5) -> Channels:
    """Returns channels of growing width, of which the first is dead."""
    ramp = np.arange(count, dtype=np.float64)
    return Channels(3, -ramp, -ramp / 2, ramp * 0, ramp / 2, ramp, ramp * 0, ramp / 4, np.full(1, 0.1))


def profile(node: str, role: str = "output") -> Profile:
    """Returns a profile with a number in each field; weights have a scale per channel."""
    scale = float("nan") if role == "weights" else SCALE
    return Profile(
        node, "CONV_2D", 1, role, f"{node}/tensor", histogram(1), histogram(2), histogram(3), -64.0, 63.5, scale, 0.01, 0.02,
        200, 256, 0.1, 1.1, 3.2, 0.001, 0.4, 0.3, channels(), None if role == "weights" else channels(), 2,
    )  # fmt: skip


def graph(nodes: tuple[str, ...] = NODES) -> tuple[GraphNode, ...]:
    """Returns a chain of operators with a QUANTIZE, which is no node, before it."""
    last = len(nodes)
    return tuple(
        GraphNode(
            operator=i + 1,
            op_name=OPS[i % 4],
            nodes=(node,),
            inputs=(i,) if i else (),
            outputs=(i + 2,) if i + 1 < last else (),
            options=types.MappingProxyType({"kernel": "3x3"}),
            shape=(1, 5, 20),
            macs=1000 * i,
            weight_bytes=64,
            float_operators=(i,),
        )
        for i, node in enumerate(nodes)
    )


def sensitivity(mode: str = "node") -> Sensitivity:
    """Returns a sensitivity in which later nodes matter more."""
    variants = [*NODES, ""] if mode == "float" else list(NODES)
    activation = mode == "activation"
    return Sensitivity(
        mode, NODES, OPS, (1, 2, 3, 4), output_errors(variants, task=True), "sqnr_db", None,
        (1.0, 2.0, 3.0, 4.0) if activation else (), (8, 8, 8, 16) if activation else (), {"samples": 6}, ("a note",),
    )  # fmt: skip


def samples(sqnr_db: float = 20.0) -> Samples:
    """Returns samples whose one output has this SQNR."""
    worst = SampleError(3, 7, sqnr_db - 5, 0.9, 0.1, 2, 4, sqnr_db - 5)
    broken = SampleError(1, None, float("nan"), float("nan"), float("nan"), -1, -1)
    errors = output_errors(["quantized"], sizes=[10 ** (-sqnr_db / 20)])
    return Samples((broken, worst), (worst,), 5, errors, "sqnr_db", {"samples": 6}, ("a note",))


def scores(floating: float = 0.9, quantized: float = 0.85, metric: str = "top_1") -> Scores:
    """Returns the scores of both models."""
    return Scores(
        (
            Score("float", 4000, {metric: floating, "loss": 1.0}, 1.5),
            Score("quantized", 1000, {metric: quantized, "loss": 1.5}),
        ),
        600,
        "test set",
        (metric, "loss"),
    )


def diagnosis(*nodes: str) -> Diagnosis:
    """Returns one that suspects these nodes."""
    suspects = tuple(
        Suspect(node, "CONV_2D", i, "outlier_channel", f"{node} has an outlier", ("channel 3 is 50 times the median",),
                "leave it float", f"denylisted_nodes=[{node!r}]", 0.5)
        for i, node in enumerate(nodes)
    )  # fmt: skip
    return Diagnosis("one layer is broken" if nodes else "nothing is wrong", not nodes, suspects, ("SQNR 20 dB",), ("a note",))


def advice() -> tuple[Advice, ...]:
    """Returns one with all fields, and one that was not estimated."""
    return (
        Advice("leave it float", "convert --denylisted-node last", 3.5, "dB SQNR", "measured", True, True, ("last",)),
        Advice("search", "fix RUN"),
    )


def findings(**changes: Any) -> Findings:
    """Returns findings of every kind."""
    steps = output_errors(["0", "1", "2"], sizes=[0.3, 0.2, 0.1])
    complete: dict[str, Any] = {
        "run": run(),
        "graph": graph(),
        "scores": scores(),
        "sensitivity": {mode: sensitivity(mode) for mode in ("node", "weights", "activation", "float")},
        "curves": (Curve("all", (), (), run()), Curve("all but last", (), ("last",), run((0.1, 0.1, 0.1, 0.0)))),
        "steps": Steps(("last", "first/Relu"), ("FULLY_CONNECTED", "CONV_2D"), steps, "sqnr_db", 15.0, 2, (10, 20, 30), {}, ()),
        "profiles": (profile(NODES[0]), profile(NODES[0], "weights"), profile(NODES[2])),
        "samples": samples(),
        "diagnosis": diagnosis(NODES[2]),
        "name": "made",
        "advice": advice(),
        "fix": made_outcome.small(),
        "fixed": run((0.1, 0.1, 0.1, 0.1)),
    }
    return Findings(**{**complete, **changes})
