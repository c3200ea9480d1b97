"""What ``fix`` reaches on trained models, how long it takes, and whether it holds on samples that it never saw.

    python benchmarks/fix.py [mobilenet_v3 mobilenet_v1 fsrcnn keyword_spotting]

For each model two searches: with all operators integer, and with nodes left float where that is not enough. Representative,
debug and evaluation samples are disjoint. The second search finds in its folder what the first has measured; its seconds are
beside.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

COLUMNS = (
    *("model", "spend", "samples", "float", "int8", "fixed (against float)", "on debug samples", "size", "in float"),
    *("ended", "models", "s", "how"),
)


class Task(NamedTuple):
    """A model, its samples, and what is asked for."""

    model: Path
    splits: tuple[list[Any], list[Any], list[Any]]
    metric: str | Callable[..., float]
    label_offset: int
    integer_target: str
    target: str


def psnr(outputs: list[np.ndarray], label: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of values from 0 to 1."""
    error = np.clip(outputs[0], 0.0, 1.0).reshape(-1) - np.asarray(label).reshape(-1)
    return float(-10.0 * np.log10(np.mean(error.astype(np.float64) ** 2)))


def images(change: Callable[[np.ndarray], np.ndarray]) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns 100 images that calibrate, 100 that are compared on and 300 that prove, with labels."""
    parts = []
    for first, count in ((0, 100), (100, 100), (200, 300)):
        found, labels = common.load_images(common.DATA, first, count)
        parts.append([([change(image)], int(label)) for image, label in zip(found, labels, strict=True)])
    return parts[0], parts[1], parts[2]


def mobilenet_v3() -> Task:
    """MobileNetV3-Small, whose quantization loses a third of its accuracy."""
    return Task(
        common.DATA / common.FLOAT_FILE,
        images(lambda image: image),
        "top_1",
        0,
        "accuracy >= float - 0.5%, time <= 10 min",
        "accuracy >= float - 0.5%, time <= 10 min",
    )


def mobilenet_v1() -> Task:
    """MobileNetV1 0.25, with a background class."""
    model = common.DATA / "mobilenet_v1_0.25/mobilenet_v1_0.25_224_float.tflite"
    target = "accuracy >= float - 0.5%, time <= 10 min"
    return Task(model, images(lambda image: (image - 127.5) / np.float32(127.5)), "top_1", 1, target, target)


def fsrcnn() -> Task:
    """A small network whose output is an image of twice the size."""
    with np.load(common.DATA / "super_resolution/y_pairs_128_64.npz") as arrays:
        names = sorted(arrays, key=lambda name: arrays[name].size)
        small, large = (arrays[name].astype(np.float32) / np.float32(255.0) for name in names)
    pairs = [([one.reshape(1, 64, 64, 1)], other.reshape(1, 128, 128, 1)) for one, other in zip(small, large, strict=True)]
    target = "psnr >= float - 0.5, time <= 10 min"
    model = common.DATA / "super_resolution/fsrcnn_x2_float.tflite"
    return Task(model, (pairs[:20], pairs[20:34], pairs[34:]), psnr, 0, target, target)


def keyword_spotting() -> Task:
    """A depthwise-separable network on spectra of spoken words."""
    with np.load(common.DATA / "keyword_spotting/kws01_1000_mfcc.npz") as arrays:
        features, labels = arrays["mfcc_int8"], arrays["labels"]
        scale, zero_point = np.float32(arrays["scale"]), int(arrays["zero_point"])
    real = (features.astype(np.float32) - zero_point) * scale
    samples = [([one.reshape(1, 49, 10, 1)], int(label)) for one, label in zip(real, labels, strict=True)]
    order = np.random.default_rng(0).permutation(len(samples))
    samples = [samples[index] for index in order]
    target = "accuracy >= float - 0.5%, time <= 5 min"
    model = common.DATA / "keyword_spotting/kws_ref_float.tflite"
    return Task(model, (samples[:100], samples[100:300], samples[300:]), "top_1", 0, target, target)


TASKS = {task.__name__: task for task in (mobilenet_v3, mobilenet_v1, fsrcnn, keyword_spotting)}


def redrawn(task: Task, draw: int) -> Task:
    """Shares the samples out again, in another random order."""
    samples = [sample for split in task.splits for sample in split]
    order = np.random.default_rng(draw).permutation(len(samples))
    mixed = [samples[position] for position in order]
    first, second = len(task.splits[0]), len(task.splits[0]) + len(task.splits[1])
    return task._replace(splits=(mixed[:first], mixed[first:second], mixed[second:]))


def searched(name: str, task: Task, spend: str, folder: Path) -> None:
    """Runs one search and prints its line."""
    import tflite_qdebug

    representative, debug, evaluation = task.splits
    start = time.perf_counter()
    found = tflite_qdebug.fix(
        task.model,
        task.target if spend == "float" else task.integer_target,
        [inputs for inputs, _ in representative],
        debug,
        evaluation_dataset=evaluation,
        metrics=[task.metric],
        label_offset=task.label_offset,
        spend=spend,
        folder=folder,  # what the other search has measured is not measured again
        progress=False,
        updated=lambda outcome: common.say(
            f"{name} {spend}: {time.perf_counter() - start:5.0f} s, {len(outcome.candidates) - 1} models, "
            f"{outcome.candidates[outcome.best].name}"
        ),
    )
    outcome = found.outcome
    metric = outcome.metrics[0]
    floats, plain, best = outcome.proof
    values = [one.metrics[metric].value for one in (floats, plain, best)]
    difference = best.differences.get(metric)
    interval = "" if difference is None else f" ({difference.low:+.3f} to {difference.high:+.3f}, p = {difference.p_value:.2g})"
    row = [name, spend, f"{outcome.proof_samples}", *(f"{value:.4f}" for value in values[:2]), f"{values[2]:.4f}{interval}"]
    row += [f"{outcome.candidates[outcome.best].metrics[metric].value:.4f}", f"{best.size / plain.size - 1:+.2%}"]
    row += [f"{best.float_operators}", outcome.stopped, f"{len(outcome.candidates) - 1}", f"{outcome.seconds:.0f}", best.name]
    print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Runs the searches that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), choices=[[], *TASKS])
    parser.add_argument("--draw", type=int, metavar="N", help="share the samples out in another random order")
    parser.add_argument("--spend", action="append", choices=("nothing", "float"), help="default: both, one after the other")
    arguments = parser.parse_args()
    names = arguments.tasks or list(TASKS)
    if not common.DATA.exists():
        sys.exit(f"{common.DATA} is missing: there are no trained models to be fixed")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for name in names:
        task = TASKS[name]() if arguments.draw is None else redrawn(TASKS[name](), arguments.draw)
        with tempfile.TemporaryDirectory() as folder:
            for spend in arguments.spend or ("nothing", "float"):
                searched(name, task, spend, Path(folder))


if __name__ == "__main__":
    main()
