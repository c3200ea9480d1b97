"""Runs on an interpreter wheel alone: the board part measures what the host measured.

    python tests/board_check.py prepare DIR      on the host: writes debug model, samples and the host's run
    python tests/board_check.py run DIR          on the board: no TensorFlow, no pandas, no flatbuffers
    python tests/board_check.py merge DIR FILE   on the host: what the bundle wrote on the board goes into the run

The second needs the package on PYTHONPATH; the bundle DIR/board.pyz, which `prepare` also writes, needs nothing.

Not collected by pytest: .ci/run calls it in environments that hold numpy and one interpreter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SAMPLES = 20


def prepare(folder: Path) -> None:
    from tflite_qdebug import example
    from tflite_qdebug.analyses.layer_error import run_debug_model
    from tflite_qdebug.collect import Backend
    from tflite_qdebug.conversion import load_float_model

    folder.mkdir(parents=True, exist_ok=True)
    float_model = load_float_model(example.MODEL_PATH)
    # tflite-runtime before 2.13 computes per-channel dense layers wrongly; boards get them per tensor.
    debug_model = float_model.calibrate(example.representative_dataset).debug_model(per_channel_dense=False)
    dataset = float_model.dataset(example.debug_dataset, "debug dataset", SAMPLES)
    run = run_debug_model(debug_model, dataset, Backend(kernels="reference", workers=1))
    (folder / "debug.tflite").write_bytes(debug_model.data)
    run.save(folder / "host.json")
    np.savez(folder / "samples.npz", samples=np.concatenate([sample.inputs[0] for sample in dataset]))
    _write_bundle(folder)
    _write_delegate(folder)


def _write_delegate(folder: Path) -> None:
    """Writes a real external delegate, and what runs on it: a quantized model, and where it is at hand a compiled one."""
    import delegates
    from conftest import SHARED_MODELS

    from tflite_qdebug import example
    from tflite_qdebug.conversion import load_float_model

    delegates.build(folder).rename(folder / "delegate.so")
    calibrated = load_float_model(example.MODEL_PATH).calibrate(example.representative_dataset)
    calibrated.quantize("int8", per_channel_dense=False).save(folder / "int8.tflite")
    compiled = SHARED_MODELS / "coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    if compiled.exists():
        (folder / "compiled.tflite").write_bytes(compiled.read_bytes())


def _write_bundle(folder: Path) -> None:
    from tflite_qdebug.bundling import write_bundle
    from tflite_qdebug.cli import main

    words = ["run", "example", "--dense-per-tensor", "--limit", str(SAMPLES), "--output", str(folder / "run"), "--no-progress"]
    assert main(words) == 0
    write_bundle(folder / "run", folder / "board.pyz", limit=SAMPLES, progress=False)


def merge(folder: Path, result: Path) -> None:
    from tflite_qdebug.merging import merge_result

    board = merge_result(folder / "run", result, result.stem)
    assert not board.notes, board.notes
    host = board.model("float", "host")
    for model in board.models:
        assert (model.samples, model.failure) == (SAMPLES, ""), model
        assert model.metrics["top_1"] > 0.4, model
        assert model.where == "host" or model.percentile_90 >= model.median > 0, model
    on_board = board.model("float")
    assert on_board is not None
    assert host is not None
    assert on_board.metrics == host.metrics
    assert on_board.sqnr_db > 60.0, on_board
    assert board.layers is not None
    assert board.host_layers is not None
    # Kernels of another release round otherwise; the ill layers are the same, and equally ill.
    worst = board.host_layers.worst(count=3)
    assert board.layers.worst(count=3) == worst
    np.testing.assert_allclose(board.layers.statistics.rmse[worst], board.host_layers.statistics.rmse[worst], rtol=0.1)
    print(f"bundle on {board.name}: Python {board.about['python']}, {on_board.runtime}: 1 passed, 0 failed")


def run(folder: Path) -> None:
    from tflite_qdebug.collect import Backend, LayerMetrics, collect_layer_errors
    from tflite_qdebug.datasets import InputSpec, open_dataset
    from tflite_qdebug.interpreter import Interpreter
    from tflite_qdebug.record import Run

    host = Run.load(folder / "host.json")
    model = (folder / "debug.tflite").read_bytes()
    info = Interpreter(model, kernels="reference").inputs[0]
    samples = np.load(folder / "samples.npz")["samples"]
    dataset = open_dataset(samples, [InputSpec(info.name, info.dynamic_shape, (info.dtype,))], "debug dataset")
    backend = Backend(kernels="reference", workers=2)
    collected = collect_layer_errors(model, host.layers, dataset, backend, LayerMetrics())
    ours, theirs = collected.statistics, host.statistics
    assert ours.samples == SAMPLES, ours.samples
    # Kernels of another release may round a step differently; the ill layers must be the same ones, equally ill.
    board = Run("per_layer", host.layers, ours)
    assert board.worst(count=3) == host.worst(count=3), (board.worst(count=3), host.worst(count=3))
    np.testing.assert_allclose(ours.rmse[board.worst(count=3)], theirs.rmse[host.worst(count=3)], rtol=0.02)
    np.testing.assert_allclose(ours.rmse, theirs.rmse, rtol=0.5, atol=float(theirs.rmse.max()) * 0.01)
    for name in ("tensorflow", "pandas", "flatbuffers", "numba", "rich"):
        assert name not in sys.modules, f"{name} was imported on the board"
    _run_on_delegates(folder)
    print(f"board check: {collected.provenance['runtime']} {collected.provenance['runtime_version']}: 1 passed, 0 failed")


def _run_on_delegates(folder: Path) -> None:
    from tflite_qdebug.collect import Backend
    from tflite_qdebug.errors import InterpreterError
    from tflite_qdebug.interpreter import Delegate, Interpreter

    model = (folder / "int8.tflite").read_bytes()
    samples = np.load(folder / "samples.npz")["samples"]

    def values(delegates: list[Delegate]) -> np.ndarray:
        interpreter = Interpreter(model, kernels="builtin", delegates=delegates)
        found = []
        for sample in samples:
            interpreter.invoke([sample[None]])
            found.append(interpreter.read_outputs(dequantized=True)[0] * 256.0)  # steps of a softmax
        if delegates:
            assert interpreter.delegation().taken == interpreter.delegation().operators
        return np.array(found)

    def on(**options: str) -> list[Delegate]:
        return [Delegate(str(folder / "delegate.so"), options)]

    exact = values([])
    np.testing.assert_array_equal(values(on(mode="exact")), exact)
    last = str(Interpreter(model, delegates=on(mode="exact")).delegation().operators - 1)
    np.testing.assert_array_equal(values(on(mode="off", at=last, steps="1")), exact + 1.0)
    for mode, words in (("refuse", "refuses to start"), ("vary", "two answers"), ("crash", "signal")):
        said = ""
        try:
            Backend(kernels="builtin", delegates=on(mode=mode)).open(model)
        except InterpreterError as error:
            said = str(error)
        assert words in said, (mode, said)
    if (folder / "compiled.tflite").exists():
        interpreter = Backend(delegates=on(mode="edgetpu")).open((folder / "compiled.tflite").read_bytes())
        interpreter.invoke([np.zeros((1, 128, 128, 3), np.uint8)])
        assert interpreter.delegation().taken == 1
        assert interpreter.read_outputs()[0].shape == (1, 1001)


if __name__ == "__main__":
    {"prepare": prepare, "run": run, "merge": merge}[sys.argv[1]](*map(Path, sys.argv[2:]))
