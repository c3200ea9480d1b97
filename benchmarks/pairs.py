"""A float/quantized pair against the converter's own debug model: the same layers of the same int8 model, in turns.

    python benchmarks/pairs.py

One worker each. The converter path runs TensorFlow's debug model without its NumericVerify operators, the pair the model that
is put together from the float and the int8 model alone. Before anything is timed the results are compared: every layer that
both verify on the same inputs must have the same error.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import common
import numpy as np


def measure(case: common.Case, samples: int, rounds: int) -> dict[str, Any]:
    """Times what is done once, and the runs over the samples."""
    from tflite_qdebug import Backend, Model, edit
    from tflite_qdebug.analyses.layer_error import run_debug_model
    from tflite_qdebug.datasets import open_dataset
    from tflite_qdebug.match import match_models

    calibrated = case.float_model.calibrate(common.dataset(case.calibration), progress=False)
    quantized = Model(calibrated.quantize("int8").data)
    start = time.perf_counter()
    match = match_models(case.float_model.model, quantized)
    matched = time.perf_counter()
    pair = edit.debug_pair(case.float_model.model, quantized, match=match)
    built = time.perf_counter()
    debug_models = {
        "converter": calibrated.debug_model("int8"),
        "pair": pair,
        "pair, parts": edit.debug_pair(case.float_model.model, quantized, parts=True, match=match),
    }
    backend = Backend(kernels=case.kernels, workers=1)
    images = common.dataset(case.samples, samples)

    def run(name: str) -> Any:
        dataset = open_dataset(images, debug_models[name].inputs)
        return run_debug_model(debug_models[name], dataset, backend, progress=False)

    runs = {name: run(name) for name in debug_models}
    equal = compare(runs["converter"], runs["pair"])
    times = common.alternate({name: lambda name=name: run(name) for name in debug_models}, rounds)
    return {
        "name": case.name,
        "title": case.title,
        "layers": len(runs["pair"].layers),
        "equal": equal,
        "once": {"match": matched - start, "build": built - matched},
        "seconds": times,
        "samples": samples,
    }


def compare(converter: Any, pair: Any) -> int:
    """Returns how many layers have the same error in both, to 1e-3; raises where that is not most of them."""
    theirs = {layer.node: rmse for layer, rmse in zip(converter.layers, converter.statistics.rmse, strict=True)}
    ours = {layer.node: rmse for layer, rmse in zip(pair.layers, pair.statistics.rmse, strict=True)}
    shared = theirs.keys() & ours.keys()
    equal = sum(bool(np.isclose(theirs[node], ours[node], rtol=1e-3, atol=1e-7)) for node in shared)
    assert equal >= 0.9 * len(theirs), f"only {equal} of {len(theirs)} layers have the same error"
    return equal


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0])
    options.add_argument("--samples", type=int, default=50, help="of a run; default 50")
    options.add_argument("--rounds", type=int, default=7, help="each runs everything once; default 7")
    chosen = options.parse_args()
    results = []
    for case in common.open_cases(chosen.models, 32, min(chosen.samples, 100), chosen.data):
        common.say(f"{case.name}: measuring")
        results.append(measure(case, chosen.samples, chosen.rounds))
    rows = []
    for result in results:
        seconds, once = result["seconds"], result["once"]

        def cell(name: str, result: dict[str, Any] = result) -> str:
            return f"{1000 * statistics.median(result['seconds'][name]) / result['samples']:.2f}"

        rows.append(
            [
                f"{result['title']} ({result['equal']} of {result['layers']} layers equal)",
                cell("converter"),
                cell("pair"),
                f"{common.ratio(seconds['pair'], seconds['converter']):.2f}",
                cell("pair, parts"),
                f"{common.ratio(seconds['pair, parts'], seconds['pair']):.1f}",
                f"{once['match']:.2f}",
                f"{once['build']:.2f}",
            ]
        )
    header = ["model", "converter", "pair", "pair / converter", "with parts", "parts / pair", "match, s", "build, s"]
    print("Milliseconds a sample:\n")
    print(common.table(header, rows))
    common.write_json(chosen.json, {"time": results})


if __name__ == "__main__":
    main()
