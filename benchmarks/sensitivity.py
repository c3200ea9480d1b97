"""Sensitivity of all nodes against a loop over TensorFlow's quantizer with all other nodes denylisted, in turns.

    python benchmarks/sensitivity.py

Four things on the same samples: as many float inferences as there are nodes times samples, by one thread (timed on some hundred
of them); the sweep with one worker, of the process confined to one processor; the sweep with two workers; and the loop, which
quantizes the calibrated model once for each node and runs each of these models beside the float one, by one thread. Models that
XNNPACK refuses run on the builtin kernels, in the loop and in the sweep alike. Before anything is printed the values are
compared: the ten most sensitive nodes must be the same in the same order, and all cosines equal to 1e-3.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import common
import numpy as np

# Float inferences that are timed.
_TIMED = 300


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Confines the process, and those that it starts, to one processor."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(available)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def float_inferences(float_model: bytes, samples: list[Any], count: int) -> float:
    """Returns what so many float inferences take, by one thread on one processor, in seconds."""
    from tflite_qdebug.interpreter import Interpreter

    interpreter = Interpreter(float_model)
    interpreter.invoke(samples[0])
    start = time.perf_counter()
    for number in range(_TIMED):
        interpreter.invoke(samples[number % len(samples)])
    return (time.perf_counter() - start) / _TIMED * count


def sweep(float_model: Any, quantized: bytes, samples: list[Any], workers: int) -> Any:
    """Measures the sensitivity of all nodes, as anyone would."""
    from tflite_qdebug.analyses.sensitivity import sensitivity
    from tflite_qdebug.collect import Backend

    return sensitivity(float_model, quantized, samples, backend=Backend(workers=workers), progress=False)


def loop(calibrated: Any, float_model: bytes, samples: list[Any], nodes: list[str], names: list[str]) -> np.ndarray:
    """Does the same with TensorFlow's quantizer: returns cosine and SQNR in dB for each node, ``(nodes, 2)``."""
    from tflite_qdebug.interpreter import Interpreter

    reference = Interpreter(float_model)
    found = []
    for node in nodes:
        data = calibrated.quantize("int8", denylisted_nodes=[name for name in names if name != node]).data
        interpreter = Interpreter(data)
        sums = np.zeros(4)
        for sample in samples:
            reference.invoke(sample)
            interpreter.invoke(sample)
            floats, values = (it.read_outputs(True)[0].astype(np.float64) for it in (reference, interpreter))
            sums += np.sum(floats * values), np.sum(floats**2), np.sum(values**2), np.sum((values - floats) ** 2)
        found.append((sums[0] / np.sqrt(sums[1] * sums[2]), 10 * np.log10(sums[1] / sums[3])))
    return np.array(found)


def compare(found: Any, theirs: np.ndarray) -> dict[str, Any]:
    """Returns how alike the values are; raises where the ranking of the top ten or a cosine differs."""
    ours = np.stack([found.values("cosine"), found.values("sqnr_db")], axis=1)
    difference = float(np.abs(ours[:, 0] - theirs[:, 0]).max())
    top = [list(map(int, np.argsort(values[:, 1], kind="stable")[:10])) for values in (ours, theirs)]
    assert difference <= 1e-3, f"the cosines differ by up to {difference:.2g}"
    assert top[0] == top[1], f"the ten most sensitive nodes are not the same: {top[0]} and {top[1]}"
    # Above 100 dB there is nothing but the rounding of float32, and where nothing changes it is infinite.
    decibels = np.abs(ours - theirs)[theirs[:, 1] < 100.0, 1]
    return {"cosine": difference, "sqnr_db": float(decibels.max(initial=0.0)), "top": top[0]}


def measure(case: common.Case, samples: int, rounds: int) -> dict[str, Any]:
    """Times all four in turns."""
    import logging

    logging.getLogger("tflite_qdebug").setLevel(logging.ERROR)  # which kernels refuse which part is not of interest here
    calibrated = case.float_model.calibrate(common.dataset(case.calibration), progress=False)
    quantized = calibrated.quantize("int8").data
    inputs = list(common.dataset(case.samples, samples)())
    floats = case.float_model.data
    found = sweep(case.float_model, quantized, inputs, 2)
    names = all_nodes(floats, quantized)
    count = len(found.nodes) * samples
    inferences: list[float] = []
    results: dict[str, Any] = {}

    def time_inferences() -> None:
        with one_core():
            inferences.append(float_inferences(floats, inputs, count))

    def sweep_on_one_core() -> None:
        with one_core():
            results["sweep"] = sweep(case.float_model, quantized, inputs, 1)

    def loop_on_one_core() -> None:
        with one_core():
            results["loop"] = loop(calibrated, floats, inputs, list(found.nodes), names)

    actions = {
        "float": time_inferences,
        "one worker": sweep_on_one_core,
        "two workers": lambda: sweep(case.float_model, quantized, inputs, 2),
        "loop": loop_on_one_core,
    }
    times = common.alternate(actions, rounds)
    times["float"] = inferences  # of all, not of those that were timed
    return {
        "name": case.name,
        "title": case.title,
        "nodes": len(found.nodes),
        "samples": samples,
        "kernels": found.provenance["kernels"],
        "equal": compare(results["sweep"], results["loop"]),
        "seconds": times,
    }


def all_nodes(float_model: bytes, quantized: bytes) -> list[str]:
    """Returns the names of all nodes, those that stay float too."""
    from tflite_qdebug import Model
    from tflite_qdebug.edit.mixed import MixedModels
    from tflite_qdebug.match import match_models

    ours, theirs = Model(float_model), Model(quantized)
    return [node.name for node in MixedModels(ours, theirs, match_models(ours, theirs)).nodes]


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0])
    options.set_defaults(models=[common.CASES[1], common.CASES[2]])
    options.add_argument("--samples", type=int, default=32, help="default 32")
    options.add_argument("--rounds", type=int, default=3, help="each runs everything once; default 3")
    chosen = options.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this system cannot confine a process to one processor")
    results = []
    for case in common.open_cases(chosen.models, 32, chosen.samples, chosen.data):
        common.say(f"{case.name}: measuring")
        results.append(measure(case, chosen.samples, chosen.rounds))
    rows = []
    for result in results:
        seconds = result["seconds"]
        row = [f"{result['title'].partition(',')[0]} ({result['nodes']} nodes x {result['samples']} samples)"]
        row += [f"{statistics.median(seconds[name]):.2f}" for name in ("float", "one worker", "two workers", "loop")]
        for slow, fast in (("one worker", "float"), ("two workers", "float"), ("loop", "one worker"), ("loop", "two workers")):
            row.append(f"{common.ratio(seconds[slow], seconds[fast]):.2f}")
        rows.append(row)
        equal = result["equal"]
        common.say(
            f"{result['name']}: the ten most sensitive nodes are the same; cosines differ by {equal['cosine']:.1e} at most, "
            f"SQNR by {equal['sqnr_db']:.2g} dB"
        )
    header = ["model", "float inferences, s", "sweep, 1 core, s", "sweep, 2 workers, s", "loop, 1 core, s"]
    header += ["1 core / float", "2 workers / float", "loop / 1 core", "loop / 2 workers"]
    print(common.table(header, rows))
    common.write_json(chosen.json, {"sensitivity": results})


if __name__ == "__main__":
    main()
