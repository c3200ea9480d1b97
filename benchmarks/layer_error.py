"""Time and memory of one run over a debug dataset: TensorFlow's QuantizationDebugger and ours, on the same debug model.

    python benchmarks/layer_error.py

Both debuggers get the same file with NumericVerify operators and the same samples, and their results are compared before
anything is timed. What is timed is ``run()``, from the first sample to the statistics; ours opens its interpreters in it,
TensorFlow's has opened them before. The floor is what no debugger can go below without another idea: the float and the
int8 model, all outputs of all operators exposed, invoked once for each sample, by one thread, with nothing read or
computed. It is measured on one processor.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np

METRICS = ("stddev", "mean_error", "max_abs_error", "mean_squared_error")


def prepare(case: common.Case, folder: Path) -> None:
    """Writes what the measuring processes need, so that they convert nothing."""
    from tflite_qdebug import Model, edit

    folder.mkdir()
    calibrated = case.float_model.calibrate(common.dataset(case.calibration), progress=False)
    (folder / "debug.tflite").write_bytes(calibrated.numeric_verify_model())
    for name, data in (("float", case.float_model.data), ("int8", calibrated.quantize("int8").data)):
        model = Model(data)
        (folder / f"{name}.tflite").write_bytes(edit.expose(model, list(model.main.producers)))
    np.save(folder / "samples.npy", np.stack(case.samples))
    (folder / "case.json").write_text(json.dumps({"name": case.name, "title": case.title, "kernels": case.kernels}))


def check_equal(theirs: Any, ours: Any, layers: Any) -> None:
    """Raises unless both debuggers found the same error.

    Allowed is 1e-5 of the layer's root mean square error, and where that is nothing but float32's rounding, the rounding.
    """
    assert list(theirs) == list(ours), "not the same layers"
    for layer in layers:
        expected, got = theirs[layer.key], ours[layer.key]
        assert expected["num_elements"] == got["num_elements"], layer.node
        rounding = np.finfo(np.float32).eps * layer.scale
        for metric in METRICS:
            a, b = float(expected[metric]), float(got[metric])
            if metric == "mean_squared_error":
                a, b = np.sqrt(a), np.sqrt(b)
            allowed = 1e-5 * np.sqrt(float(expected["mean_squared_error"])) + rounding
            assert abs(a - b) <= allowed, f"{layer.node}: {metric} {a} from TensorFlow, {b} from ours"


def measure_time(folder: Path, samples: int, rounds: int) -> dict[str, Any]:
    """Times all debuggers that suit this process's processors, in seconds for a round."""
    from tensorflow.lite.tools.optimize.debugging.python.debugger import QuantizationDebugger as TensorFlows

    from tflite_qdebug import Backend, QuantizationDebugger

    case, cores = json.loads((folder / "case.json").read_text()), common.use_cores(None)
    kernels, images = case["kernels"], list(np.load(folder / "samples.npy"))
    data, samples_of = (folder / "debug.tflite").read_bytes(), common.dataset(images, samples)
    with common.tensorflow_kernels(kernels):
        theirs = TensorFlows(quant_debug_model_content=data, debug_dataset=samples_of)
    actions = {"tensorflow": theirs.run}
    theirs.run()
    for workers in range(1, min(cores, 2) + 1):
        backend = Backend(kernels=kernels, workers=workers)
        ours = QuantizationDebugger(quant_debug_model_content=data, debug_dataset=samples_of, backend=backend)
        ours.run()  # numba compiles, or loads what it compiled before
        assert ours.result is not None
        assert not ours.result.notes, ours.result.notes
        check_equal(theirs.layer_statistics, ours.layer_statistics, ours.result.layers)
        actions[f"ours, workers={workers}"] = ours.run
    floor = [Backend(kernels=kernels).open((folder / f"{name}.tflite").read_bytes()) for name in ("float", "int8")]

    def run_floor() -> None:
        for sample in samples_of():
            for interpreter in floor:
                interpreter.invoke(sample)

    actions["floor"] = run_floor
    times = common.alternate(actions, rounds)
    return {**case, "layers": len(theirs.layer_statistics), "cores": cores, "seconds": times, "samples": samples}


def measure_memory(folder: Path, who: str, few: int, many: int) -> dict[str, Any]:
    """Returns this process's peak of resident memory, in MB, after runs over few and over many generated samples."""
    from tensorflow.lite.tools.optimize.debugging.python.debugger import QuantizationDebugger as TensorFlows

    from tflite_qdebug import Backend, QuantizationDebugger

    case, images = json.loads((folder / "case.json").read_text()), np.load(folder / "samples.npy", mmap_mode="r")
    shape, data, kernels = images.shape[1:], (folder / "debug.tflite").read_bytes(), case["kernels"]
    count = few

    def generated() -> Any:
        generator = np.random.default_rng(0)
        for _ in range(count):
            yield [generator.random(shape, dtype=np.float32) * np.float32(255)]

    with common.tensorflow_kernels(kernels):
        if who == "tensorflow":
            debugger = TensorFlows(quant_debug_model_content=data, debug_dataset=generated)
        else:
            backend = Backend(kernels=kernels, workers=min(common.use_cores(None), 2))
            debugger = QuantizationDebugger(quant_debug_model_content=data, debug_dataset=generated, backend=backend)
    for _ in range(3):  # the allocator settles
        debugger.run()
    first, count = peak_megabytes(), many
    debugger.run()
    return {**case, "debugger": who, "samples": [few, many], "peak": [first, peak_megabytes()]}


def peak_megabytes() -> float:
    """Returns the greatest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would also count the process that started this one, up to the moment when it did.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_child(*arguments: Any) -> dict[str, Any]:
    """Runs this file in a process of its own and returns what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output.json")
        command = [sys.executable, __file__, "--child", *map(str, arguments), "--json", str(output)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"measuring failed:\n{done.stderr}")
        return json.loads(output.read_text())


def child(arguments: list[str], output: str) -> None:
    """Measures one thing, as `in_child` asked."""
    what, folder, *rest = arguments
    if what == "time":
        cores, samples, rounds = map(int, rest)
        common.use_cores(cores)
        result = measure_time(Path(folder), samples, rounds)
    else:
        result = measure_memory(Path(folder), rest[0], *map(int, rest[1:]))
    Path(output).write_text(json.dumps(result))


def time_rows(results: list[dict[str, Any]]) -> list[list[str]]:
    """Returns one row for each model out of what was measured on one and on two processors."""
    rows = []
    for name in dict.fromkeys(result["name"] for result in results):
        by_cores = {result["cores"]: result for result in results if result["name"] == name}
        one, more = by_cores[1], by_cores[max(by_cores)]
        wide = more["seconds"]
        best = "ours, workers=2" if "ours, workers=2" in wide else "ours, workers=1"

        def cell(result: dict[str, Any], action: str) -> str:
            return f"{1000 * statistics.median(result['seconds'][action]) / result['samples']:.2f}"

        rows.append(
            [
                f"{one['title']} ({one['layers']} layers)",
                cell(one, "tensorflow"),
                cell(one, "ours, workers=1"),
                f"{common.ratio(one['seconds']['tensorflow'], one['seconds']['ours, workers=1']):.1f}x",
                cell(more, "ours, workers=1"),
                cell(more, best),
                f"{common.ratio(wide['tensorflow'], wide[best]):.1f}x",
                cell(one, "floor"),
            ]
        )
    return rows


def main() -> None:
    """Measures and prints."""
    options = common.parser(str(__doc__).splitlines()[0])
    options.add_argument("--samples", type=int, default=100, help="of a run; default 100")
    options.add_argument("--rounds", type=int, default=9, help="each runs everything once; default 9")
    options.add_argument(
        "--memory", nargs=2, type=int, default=(32, 512), metavar=("FEW", "MANY"), help="samples; default 32 512"
    )
    options.add_argument("--no-memory", action="store_true", help="measure time alone")
    options.add_argument("--child", nargs="+", help="internal: measure one thing in this process")
    chosen = options.parse_args()
    if chosen.child:
        child(chosen.child, chosen.json)
        return
    times, memory = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for case in common.open_cases(chosen.models, 64, min(chosen.samples, 100), chosen.data):
            common.say(f"{case.name}: measuring")
            folder = Path(temporary, case.name)
            prepare(case, folder)
            processors = dict.fromkeys((1, min(common.use_cores(None), 2)))
            times += [in_child("time", folder, cores, chosen.samples, chosen.rounds) for cores in processors]
            if not chosen.no_memory:
                memory += [in_child("memory", folder, who, *chosen.memory) for who in ("tensorflow", "ours")]
    columns = [
        "model",
        "TensorFlow, 1 core",
        "ours, 1 core",
        "ratio",
        "ours, 1 worker of 2 cores",
        "ours, 2 workers",
        "ratio",
        "floor",
    ]
    print("Milliseconds a sample:\n")
    print(common.table(columns, time_rows(times)))
    if memory:
        few, many = chosen.memory
        print("\nPeak of resident memory in MB:\n")
        rows = []
        for result in memory:
            first, last = result["peak"]
            rows.append([result["title"], result["debugger"], f"{first:.0f}", f"{last:.0f}", f"{last - first:+.1f}"])
        print(common.table(["model", "debugger", f"{few} samples", f"{many} samples", "difference"], rows))
    common.write_json(chosen.json, {"time": times, "memory": memory})


if __name__ == "__main__":
    main()
