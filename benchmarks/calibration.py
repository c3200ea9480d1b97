"""Time of calibration: TensorFlow's calibrator against the float model with all its activations exposed.

    python benchmarks/calibration.py

Both run the builtin kernels on the same samples. Before anything is timed, the int8 models made from the two calibrations
must have the same scales.
"""

from __future__ import annotations

import statistics
from typing import Any

import common

VARIANTS = {
    "TensorFlow": {"method": "tensorflow"},
    "exposed, ranges alone": {"method": "exposed", "histograms": False, "workers": 1},
    "exposed, ranges and histograms": {"method": "exposed", "histograms": True, "workers": 1},
    "the same, 2 workers": {"method": "exposed", "histograms": True, "workers": 2},
}


def calibrate(case: common.Case, samples: int, method: str, histograms: bool = True, workers: int = 1) -> Any:
    """Calibrates once."""
    from tflite_qdebug import Backend

    backend = Backend(kernels="builtin", workers=workers)
    source = common.dataset(case.samples, samples)
    return case.float_model.calibrate(source, method, backend=backend, histograms=histograms, progress=False)


def scales(calibrated: Any) -> dict[str, float]:
    """Returns the scale of every activation of the int8 model made from a calibrated one, by name."""
    from tflite_qdebug import Model

    tensors = Model(calibrated.quantize("int8").data).main.tensors
    return {t.name: float(t.quantization.scale[0]) for t in tensors if t.is_quantized and not t.is_constant}


def measure(case: common.Case, samples: int, rounds: int) -> dict[str, Any]:
    """Times every variant, in seconds for a calibration, after checking that they agree."""
    expected = scales(calibrate(case, samples, "tensorflow"))
    for options in VARIANTS.values():
        got = scales(calibrate(case, samples, **options))
        assert got.keys() == expected.keys(), "not the same tensors are quantized"
        worst = max(abs(got[name] / expected[name] - 1) for name in expected)
        assert worst < 1e-4, f"scales differ by {worst:.2g}"
    actions = {name: lambda options=options: calibrate(case, samples, **options) for name, options in VARIANTS.items()}
    times = common.alternate(actions, rounds)
    return {"name": case.name, "title": case.title.rpartition(",")[0], "samples": samples, "seconds": times}


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0])
    options.add_argument("--samples", type=int, default=100, help="of a calibration; default 100")
    options.add_argument("--rounds", type=int, default=5, help="each runs everything once; default 5")
    chosen = options.parse_args()
    results = []
    for case in common.open_cases(chosen.models, 1, min(chosen.samples, 100), chosen.data):
        common.say(f"{case.name}: measuring")
        results.append(measure(case, chosen.samples, chosen.rounds))
    rows = []
    for result in results:
        row, theirs = [result["title"]], result["seconds"]["TensorFlow"]
        for name, times in result["seconds"].items():
            text = f"{1000 * statistics.median(times) / result['samples']:.2f}"
            row.append(text if name == "TensorFlow" else f"{text} ({common.ratio(theirs, times):.1f}x)")
        rows.append(row)
    print("Milliseconds a sample:\n")
    print(common.table(["model", *VARIANTS], rows))
    common.write_json(chosen.json, {"calibration": results})


if __name__ == "__main__":
    main()
