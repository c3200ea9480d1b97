"""What the benchmarks share: models with their samples, alternating rounds, tables, and where TensorFlow must be patched."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import json
import os
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Before TensorFlow is imported anywhere: its start-up chatter goes to the same stream as the progress.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.filterwarnings("ignore")

DATA = Path(__file__).resolve().parents[2] / "shared" / "models"
"""Where a trained MobileNetV3-Small and ImageNet images are looked for."""

KERAS_FILE = "mobilenetv3_small/mobilenet_v3_small_imagenet.keras"
FLOAT_FILE = "mobilenetv3_small/mobilenet_v3_small_float.tflite"
IMAGES_FILE = "imagenet_500/images.npz"
CASES = ("mobilenet_random", "mobilenet_trained", "example")

Image = np.ndarray


@dataclasses.dataclass
class Case:
    """A model to be measured on.

    Attributes:
        name: One of `CASES`.
        title: For the table.
        kernels: ``auto``, or ``builtin`` where XNNPACK refuses the quantized model.
        float_model: A ``tflite_qdebug.FloatModel``.
        calibration: Inputs, float32, each with its batch axis of 1.
        samples: Other inputs, to be measured on.
    """

    name: str
    title: str
    kernels: str
    float_model: Any
    calibration: list[Image]
    samples: list[Image]


def say(text: str) -> None:
    """Writes progress to standard error; standard output is for the table."""
    print(text, file=sys.stderr, flush=True)


def dataset(images: Sequence[Image], count: int | None = None) -> Callable[[], Iterator[list[Image]]]:
    """Returns a function that yields ``count`` samples of one input, beginning anew when the images are used up."""
    total = len(images) if count is None else count
    return lambda: ([image] for image in itertools.islice(itertools.cycle(images), total))


def load_images(folder: Path, first: int, count: int) -> tuple[list[Image], np.ndarray]:
    """Decodes images: raw 0..255 RGB, float32 (1, 224, 224, 3), and their labels; the file's order is by class."""
    from PIL import Image as Pillow

    with np.load(folder / IMAGES_FILE) as arrays:
        data, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    order = np.random.default_rng(0).permutation(len(labels))[first : first + count]
    if len(order) < count:
        raise SystemExit(f"got {first + count} images to take, expected {len(labels)} at most")
    images = []
    for row in order:
        picture = Pillow.open(io.BytesIO(bytes(data[offsets[row] : offsets[row + 1]]))).convert("RGB")
        images.append(np.asarray(picture, dtype=np.float32)[np.newaxis])
    return images, labels[order].astype(np.int64)


def random_mobilenet(calibration: int, samples: int) -> Case:
    """MobileNetV3-Small with seeded random weights, and noise to run it on; needs no download.

    Freshly initialized batch normalizations would let the activations die away from block to block, so they get the mean
    and the variance of a batch of the same noise.
    """
    import keras

    from tflite_qdebug import load_float_model

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (1, 224, 224, 3)).astype(np.float32) for _ in range(calibration + samples)]
    model = keras.applications.MobileNetV3Small(weights=None, input_shape=(224, 224, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(np.concatenate(images[:16]), training=True)
    title = "MobileNetV3-Small, random weights, XNNPACK"
    return Case(CASES[0], title, "auto", load_float_model(model), images[:calibration], images[calibration:])


def trained_mobilenet(calibration: int, samples: int, folder: Path) -> Case:
    """MobileNetV3-Small with ImageNet weights, on ImageNet images."""
    from tflite_qdebug import load_float_model

    images, _ = load_images(folder, 0, calibration + samples)
    title = "MobileNetV3-Small, ImageNet weights, builtin kernels"
    return Case(CASES[1], title, "builtin", load_float_model(folder / FLOAT_FILE), images[:calibration], images[calibration:])


def built_in_example(calibration: int, samples: int) -> Case:
    """The small network that comes with the package."""
    from tflite_qdebug import example, load_float_model

    representative = [sample[0] for sample in example.representative_dataset()]
    debug = [sample[0] for sample in example.debug_dataset()]
    float_model = load_float_model(example.float_model())
    return Case(CASES[2], "built-in example, XNNPACK", "auto", float_model, representative[:calibration], debug[:samples])


def open_cases(names: Sequence[str], calibration: int, samples: int, folder: Path) -> Iterator[Case]:
    """Makes the cases one after another; one whose files are missing is left out, and that is said."""
    for name in names:
        if name == CASES[0]:
            yield random_mobilenet(calibration, samples)
        elif name == CASES[2]:
            yield built_in_example(calibration, samples)
        elif (folder / FLOAT_FILE).exists() and (folder / IMAGES_FILE).exists():
            yield trained_mobilenet(calibration, samples, folder)
        else:
            say(f"{name} is left out: there is no {FLOAT_FILE} and {IMAGES_FILE} in the folder given as --data")


@contextlib.contextmanager
def tensorflow_kernels(kernels: str) -> Iterator[None]:
    """Makes TensorFlow's debugger, which offers no choice, open its interpreters with the builtin kernels."""
    debugger = importlib.import_module("tensorflow.lite.tools.optimize.debugging.python.debugger")
    original = debugger._interpreter
    if kernels == "builtin":
        debugger._interpreter = types.SimpleNamespace(Interpreter=functools.partial(original.Interpreter, **builtin()))
    try:
        yield
    finally:
        debugger._interpreter = original


def builtin() -> dict[str, Any]:
    """Returns the argument of ``tf.lite.Interpreter`` that keeps XNNPACK away."""
    module = importlib.import_module("tensorflow.lite.python.interpreter")
    return {"experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


def alternate(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times every action once a round, in seconds; every second round runs them in the opposite order.

    So what changes slowly, such as the machine's load or clock, meets all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds):
        for name in list(actions) if turn % 2 == 0 else list(actions)[::-1]:
            start = time.perf_counter()
            actions[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Returns the median over the rounds of how many times longer ``slow`` took than ``fast``."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def use_cores(count: int | None) -> int:
    """Confines this process to that many processors, before any library counts them; returns how many it may use."""
    if not hasattr(os, "sched_setaffinity"):
        if count is not None:
            raise SystemExit("this system cannot confine a process to some processors")
        return os.cpu_count() or 1
    available = sorted(os.sched_getaffinity(0))
    if count is not None:
        os.sched_setaffinity(0, available[:count])
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """Returns versions and machine, for the JSON."""
    from importlib import metadata

    versions = {}
    for package in ("tflite-qdebug", "tensorflow", "keras", "numpy", "numba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"architecture": platform.machine(), "system": platform.system(), "processors": os.cpu_count()},
    }


def write_json(path: str | None, results: Mapping[str, Any]) -> None:
    """Writes results and environment; nothing without a path."""
    if path:
        Path(path).write_text(json.dumps({**environment(), **results}, indent=2) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned right."""
    cells = [list(column) for column in zip(header, *rows, strict=True)]
    widths = [max(map(len, column)) for column in cells]
    padded = [
        [cell.rjust(width) if position else cell.ljust(width) for cell in column]
        for position, (column, width) in enumerate(zip(cells, widths, strict=True))
    ]
    lines = list(zip(*padded, strict=True))
    rule = ["-" * width if not column else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def parser(description: str, cases: bool = True) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, default=DATA, help="folder with the trained model and the images")
    options.add_argument("--json", metavar="FILE", help="also write the results, with versions, to this file")
    if cases:
        options.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    return options
