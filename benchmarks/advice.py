"""Whether advice holds: what leaving nodes float is expected to bring, and what it brings.

    python benchmarks/advice.py [mobilenet_v3 mobilenet_v1 fsrcnn keyword_spotting]

The estimate is made of a run alone, and of a run and the sensitivity of each node; the gain is measured on the same samples,
with exactly these nodes float.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import common
import fix

SAMPLES = 48


def checked(name: str) -> None:
    """Prints a line for each piece of advice to leave nodes float."""
    import tflite_qdebug
    from tflite_qdebug.analyses.diagnosis.advice import advise
    from tflite_qdebug.findings import Findings
    from tflite_qdebug.outcome import Recipe
    from tflite_qdebug.remedies.workshop import Workshop

    task = fix.TASKS[name]()
    calibration, debug = ([inputs for inputs, _ in part] for part in task.splits[:2])
    debug = debug[:SAMPLES]
    backend = tflite_qdebug.Backend(kernels="builtin")
    float_model = tflite_qdebug.load_float_model(task.model)
    workshop = Workshop(float_model, calibration, backend=backend, progress=False)
    quantized = workshop.build(Recipe())
    run = tflite_qdebug.pair_error(float_model.data, quantized, debug, backend=backend, progress=False)
    options: dict[str, Any] = {"backend": backend, "progress": False}
    found = tflite_qdebug.sensitivity(float_model.data, quantized, debug, **options)
    for basis, sensitivities in (("the layers' own errors", {}), ("sensitivities", {"node": found})):
        for advice in advise(Findings(run, sensitivity=sensitivities)):
            if not advice.nodes or not advice.words.startswith("Leave"):
                continue
            changed = workshop.build(Recipe(float_nodes=tuple(advice.nodes)))
            before, after = (sqnr(float_model.data, data, debug, backend) for data in (quantized, changed))
            row = [name, basis, f"{len(advice.nodes)}", f"{before:.1f}", f"{advice.gain:+.1f}", f"{after - before:+.1f}"]
            print("| " + " | ".join(row) + " |", flush=True)


def sqnr(float_model: bytes, data: bytes, samples: list[Any], backend: Any) -> float:
    """Returns the signal-to-noise ratio of a model's outputs in dB."""
    from tflite_qdebug.analyses.layer_error import RealValued
    from tflite_qdebug.analyses.mixed_pair import Task
    from tflite_qdebug.datasets import open_dataset
    from tflite_qdebug.model import Model
    from tflite_qdebug.remedies.scoring import Scorer

    model = Model(float_model)
    opened = RealValued(open_dataset(samples, model.input_specs(), "debug dataset", labels="auto"), [])
    scored = Scorer(model, opened, Task({}, 0), backend, False).measure({"model": data})["model"]
    return scored.metrics["sqnr_db"].value


def main() -> None:
    """Checks the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(fix.TASKS), choices=[[], *fix.TASKS])
    names = parser.parse_args().tasks or list(fix.TASKS)
    if not common.DATA.exists():
        sys.exit(f"{common.DATA} is missing: there are no trained models to advise on")
    print("| model | estimated from | nodes | SQNR dB before | expected | measured |")
    print("|---" * 6 + "|")
    for name in names:
        checked(name)


if __name__ == "__main__":
    main()
