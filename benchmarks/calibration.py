"""Time of calibration: TensorFlow's calibrator against the float model with all its activations exposed.

    python benchmarks/calibration.py

Both run the builtin kernels on the same samples. Before anything is timed, the ranges of both are held against those of an
interpreter that preserves all its tensors: it is slow and large, and cannot be wrong. Where an operator works in place
(ADD, MUL on top of their own input), TensorFlow's calibrator reads the input after it has been overwritten; the table says
in how many tensors.
"""

from __future__ import annotations

import importlib
import statistics
from typing import Any

import common

VARIANTS = {
    "TensorFlow": {"method": "tensorflow"},
    "exposed, ranges alone": {"method": "exposed", "histograms": False, "workers": 1},
    "exposed, with histograms": {"method": "exposed", "histograms": True, "workers": 1},
    "the same, 2 workers": {"method": "exposed", "histograms": True, "workers": 2},
}
# A range counts as another one from this share of its size on; kernels that round differently stay far below.
TOLERANCE = 1e-4

Ranges = dict[int, tuple[float, float]]


def calibrate(case: common.Case, samples: int, method: str, histograms: bool = True, workers: int = 1) -> Any:
    """Calibrates once."""
    from tflite_qdebug import Backend

    backend = Backend(kernels="builtin", workers=workers)
    source = common.dataset(case.samples, samples)
    return case.float_model.calibrate(source, method, backend=backend, histograms=histograms, progress=False)


def true_ranges(case: common.Case) -> Ranges:
    """Returns least and greatest value of each activation, by tensor index, with no tensor ever overwritten."""
    module = importlib.import_module("tensorflow.lite.python.interpreter")
    content = case.float_model.data
    interpreter = module.Interpreter(model_content=content, experimental_preserve_all_tensors=True, **common.builtin())
    interpreter.allocate_tensors()
    position = interpreter.get_input_details()[0]["index"]
    tensors = [t.index for t in case.float_model.model.main.tensors if t.is_float and not t.is_constant]
    ranges: Ranges = {}
    for sample in case.samples:
        interpreter.set_tensor(position, sample)
        interpreter.invoke()
        for index in tensors:
            values = interpreter.get_tensor(index)
            low, high = ranges.get(index, (values.min(), values.max()))
            ranges[index] = float(min(low, values.min())), float(max(high, values.max()))
    return ranges


def wrong_ranges(calibrated: Any, truth: Ranges) -> int:
    """Counts the calibrated tensors whose range is not the true one."""
    wrong = 0
    for tensor in calibrated.model.main.tensors:
        if tensor.minimum is None or tensor.index not in truth:
            continue
        low, high = truth[tensor.index]
        allowed = TOLERANCE * max(high - low, abs(low), abs(high)) + 1e-30
        wrong += abs(tensor.minimum - low) > allowed or abs(tensor.maximum - high) > allowed
    return wrong


def measure(case: common.Case, samples: int, rounds: int) -> dict[str, Any]:
    """Times every variant, in seconds for a calibration, after looking at what each one finds."""
    truth = true_ranges(case)
    count = len(case.samples)
    wrong = {name: wrong_ranges(calibrate(case, count, **options), truth) for name, options in VARIANTS.items()}
    assert not any(number for name, number in wrong.items() if name != "TensorFlow"), wrong
    actions = {name: lambda options=options: calibrate(case, samples, **options) for name, options in VARIANTS.items()}
    times = common.alternate(actions, rounds)
    title = case.title.rpartition(",")[0]
    return {"name": case.name, "title": title, "samples": samples, "tensors": len(truth), "wrong": wrong, "seconds": times}


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0])
    options.add_argument("--samples", type=int, default=100, help="of a calibration; default 100")
    options.add_argument("--rounds", type=int, default=5, help="each runs everything once; default 5")
    chosen = options.parse_args()
    results = []
    for case in common.open_cases(chosen.models, 16, min(chosen.samples, 100), chosen.data):
        common.say(f"{case.name}: measuring")
        results.append(measure(case, chosen.samples, chosen.rounds))
    rows = []
    for result in results:
        row, theirs = [result["title"]], result["seconds"]["TensorFlow"]
        for name, times in result["seconds"].items():
            text = f"{1000 * statistics.median(times) / result['samples']:.2f}"
            row.append(text if name == "TensorFlow" else f"{text} ({common.ratio(theirs, times):.1f}x)")
        rows.append([*row, f"{result['wrong']['TensorFlow']} of {result['tensors']}"])
    print("Milliseconds a sample:\n")
    print(common.table(["model", *VARIANTS, "TensorFlow's wrong ranges"], rows))
    common.write_json(chosen.json, {"calibration": results})


if __name__ == "__main__":
    main()
