"""Findings to be reported: a real run on the built-in example, and parts made up around it that fit it and each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tflite_qdebug import example
from tflite_qdebug.analyses.graph import describe_graph
from tflite_qdebug.analyses.pairs import open_pair, pair_error
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.findings import (
    Channels,
    Curve,
    Diagnosis,
    Findings,
    Profile,
    SampleError,
    Samples,
    Score,
    Scores,
    Sensitivity,
    Steps,
    Suspect,
)
from tflite_qdebug.output_error import OutputErrors, measure_output
from tflite_qdebug.record import Layer, Run
from tflite_qdebug.statistics import ErrorStatistics, Histogram

#: What breaks reports that paste names into HTML, JavaScript or file names.
EVIL = "<script>alert('x')</script>\"&amp;/../卷积层\u2028</title>;other"
SAMPLES = 24


@functools.cache
def _example() -> tuple[bytes, bytes]:
    quantized = load_float_model(example.float_model()).calibrate(example.representative_dataset).quantize("int8").data
    return example.float_model(), quantized


def real_run(limit: int = 8) -> Run:
    """Returns a run of the built-in example, its error split."""
    return pair_error(*_example(), example.debug_dataset, parts=True, limit=limit, progress=False)


def errors_of(variants: Sequence[str], sizes: Sequence[float], task: bool = False) -> OutputErrors:
    """Returns errors at one output of ten probabilities, each variant with noise of a size of its own."""
    errors = OutputErrors(variants, ["StatefulPartitionedCall_1:0"], ["top_1"] if task else [])
    for index in range(SAMPLES):
        generator = np.random.default_rng(index)
        reference = generator.dirichlet(np.ones(10) * 0.3).astype(np.float32)[np.newaxis]
        noise = generator.normal(0.0, 1.0, reference.shape)
        rows = [measure_output((reference + size * noise).astype(np.float32), reference)[np.newaxis] for size in sizes]
        right = np.array([[float(generator.random() > 3.0 * size)] for size in sizes]) if task else None
        errors.add(index, np.stack(rows), right)
    return errors


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def channels_of(values: np.ndarray, scale: float) -> Channels:
    """Returns the channels of values ``(elements, channels)``."""
    lower, median, upper = np.percentile(values, (25, 50, 75), axis=0)
    return Channels(
        1, values.min(0), lower, median, upper, values.max(0), values.mean(0), values.std(0), np.full(values.shape[1], scale)
    )


def profile_of(layer: Layer, role: str, channels: int = 24, seed: int = 0) -> Profile:
    """Returns a profile with one channel twenty times as large as the others and one dead."""
    values = np.random.default_rng(seed).normal(0.0, 0.2, (400, channels))
    values[:, 2] *= 20.0
    values[:, 5] = 0.0
    if role == "output":
        values = np.maximum(values, -0.375)
    low, high = float(values.min()), 0.9 * float(values.max())
    scale = (high - low) / 255.0
    quantized = np.clip(np.round(values / scale), round(low / scale), round(high / scale)) * scale
    return Profile(
        node=layer.node,
        op_name=layer.op_name,
        operator=layer.operator,
        role=role,
        tensor=layer.tensor_name,
        values=histogram_of(values),
        quantized=histogram_of(quantized),
        error=histogram_of(quantized - values),
        low=low,
        high=high,
        scale=scale,
        clipped_low=0.0,
        clipped_high=float((values > high).mean()),
        integers_used=len(np.unique(quantized)),
        integers=256,
        mean=float(values.mean()),
        deviation=float(values.std()),
        kurtosis=float(((values - values.mean()) ** 4).mean() / values.std() ** 4),
        outliers=float((np.abs(values - values.mean()) > 6 * values.std()).mean()),
        negative=float((values < 0).mean()),
        near_zero=float((np.abs(values) < scale / 2).mean()),
        channels=channels_of(values, scale),
        quantized_channels=channels_of(quantized, scale),
        samples=0 if role == "weights" else SAMPLES,
    )


def made_sensitivity(run: Run, mode: str) -> Sensitivity:
    """Returns the sensitivity of each layer, by its own error."""
    severity = np.nan_to_num(run.severity())
    sizes = list(0.3 * severity / severity.max() + 1e-4)
    variants = [layer.node for layer in run.layers]
    if mode == "float":
        total = sum(sizes)
        sizes, variants = [total - size for size in sizes] + [total], [*variants, ""]
    operators = tuple(layer.operator for layer in run.layers)
    ops = tuple(layer.op_name for layer in run.layers)
    nodes = tuple(layer.node for layer in run.layers)
    return Sensitivity(mode, nodes, ops, operators, errors_of(variants, sizes), "cosine")


def made_steps(run: Run, count: int = 6) -> Steps:
    worst = [run.layers[position] for position in run.worst(count=count)]
    sizes = [0.3 * 0.4**step for step in range(count + 1)]
    errors = errors_of([f"{step} float" for step in range(count + 1)], sizes, task=True)
    cosine = errors.metric("cosine")[:, 0]
    met = next((step for step, value in enumerate(cosine) if value >= 0.999), None)
    ops = tuple(layer.op_name for layer in worst)
    bytes_ = tuple(50_000 + 9_000 * step for step in range(count + 1))
    return Steps(tuple(layer.node for layer in worst), ops, errors, "cosine", 0.999, met, bytes_)


def made_samples() -> Samples:
    worst = tuple(
        SampleError(index, index % 10, 4.0 + 0.7 * place, 0.8, 0.01, index % 10, (index % 10 + (place % 3 == 0)) % 10)
        for place, index in enumerate((17, 3, 121, 44, 45, 8, 99, 61))
    )
    flips = tuple(sorted((sample for sample in worst if sample.flipped), key=lambda sample: sample.index))
    return Samples(worst, flips, len(flips), errors_of(["quantized"], [0.1]))


def made_diagnosis(run: Run) -> Diagnosis:
    worst = run.worst(count=5)
    causes = ("weight_channels", "outlier_channel", "range_stretched", "inherited", "clipped")
    suspects = tuple(
        Suspect(
            run.layers[position].node,
            run.layers[position].op_name,
            position,
            cause,
            "Two input channels have weights 256 times larger than the others, which leaves those only the values −1, 0 and 1.",
            ("largest over median weight: 256 times", "RMSE / scale: 14.7 steps"),
            "Equalize the scales of the channels across this layer and the one before, or leave it float.",
            f"denylisted_nodes=[{run.layers[position].node!r}]",
            0.5 / (place + 1),
        )
        for place, (position, cause) in enumerate(zip(worst, causes, strict=True))
    )
    verdict = (
        "Three projections lose 24.5 points of top-1 accuracy: their weights differ too much between channels for one scale."
    )
    return Diagnosis(
        verdict, False, suspects, ("output SQNR 6.1 dB",), ("Kernels were not compared; run: tflite-qdebug kernels.",)
    )


def renamed(run: Run, names: dict[int, str]) -> Run:
    """Returns a run some of whose layers are called otherwise."""
    layers = [dataclasses.replace(layer, node=names.get(place, layer.node)) for place, layer in enumerate(run.layers)]
    return Run(
        run.verify,
        layers,
        run.statistics,
        run.metrics,
        run.model_metrics,
        run.provenance,
        run.notes,
        run.parts,
        run.whole,
        run.outputs,
    )


def full(name: str = "example") -> Findings:
    """Returns findings with every part; the worst layer has a name that must be escaped everywhere."""
    real = real_run()
    run = renamed(real, {real.worst(count=1)[0]: EVIL})
    accumulated = Run("whole_model", run.layers, run.parts["accumulated"])
    weights = Run("whole_model", run.layers, run.parts["weights"])
    graph = describe_graph(open_pair(*_example()), run=real)
    names = {old.node: new.node for old, new in zip(real.layers, run.layers, strict=True)}
    graph = tuple(dataclasses.replace(node, nodes=tuple(names.get(n, n) for n in node.nodes)) for node in graph)
    shown = [run.layers[position] for position in run.worst(count=8)]
    scores = Scores(
        (Score("float", 202_000, {"top_1": 0.99}, 0.05), Score("quantized", 105_088, {"top_1": 0.745}, 0.04)),
        600,
        "evaluation split of the built-in example",
        ("top_1",),
    )
    return Findings(
        run,
        graph,
        scores,
        {mode: made_sensitivity(run, mode) for mode in ("node", "weights", "activation", "float")},
        (Curve("all", (), (), accumulated), Curve("weights", ("weights",), (), weights)),
        made_steps(run),
        tuple(profile_of(layer, role, seed=place) for place, layer in enumerate(shown) for role in ("weights", "output")),
        made_samples(),
        made_diagnosis(run),
        name,
    )


def many(layers: int = 1000) -> Findings:
    """Returns a run of so many layers, and nothing else."""
    generator = np.random.default_rng(0)
    rows = [
        Layer(f"network/stage_{i // 20}/block_{i}/conv/BiasAdd", ("CONV_2D", "ADD", "MUL")[i % 3], i, f"tensor_{i}", i, i,
              (1, 8, 8, 16), "int8", 0.05, -3, f"NumericVerify/{i}")
        for i in range(layers)
    ]  # fmt: skip
    statistics = ErrorStatistics(layers)
    statistics.samples = 4
    error = generator.lognormal(-4.0, 1.0, layers) ** 2
    count = 4096.0
    statistics.sums[:] = np.stack(
        [np.full(layers, count), 0 * error, count * error, np.full(layers, count), 0 * error, 0 * error, 0 * error], 1
    )
    statistics.max_abs_error[:] = statistics.max_inner_error[:] = 4.0 * np.sqrt(error)
    statistics.integer_range[:] = (-128, 100)
    statistics.worst_sample[:] = 1
    statistics.worst_mean_squared_error[:] = 1.5 * error
    return Findings(Run("per_layer", rows, statistics), name="many")
