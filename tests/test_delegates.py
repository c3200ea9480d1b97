"""Delegates, by a real one: what it takes, what it says where it fails, and the canary that goes before what it computes."""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import delegates
import models
import numpy as np
import pytest
from edgetpu_models import Made

from tflite_qdebug import canary, isolation
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.cli import main
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.delegates import Delegate, advice, library_of
from tflite_qdebug.errors import InterpreterError, OptionError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.model import Model

RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("tensorflow", "ai_edge_litert", "tflite_runtime")
]
FORKED = pytest.mark.skipif(not isolation.available(), reason="children are forked on Linux alone")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return delegates.build(tmp_path_factory.mktemp("delegate"))


@functools.cache
def int8(input_type: str = "int8") -> bytes:
    return models.calibrated("mixed").quantize("int8", input_type=input_type, output_type=input_type).data


def quantized_inputs(seed: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(-128, 128, (1, 8, 8, 4)).astype(np.int8)]


def outputs_of(interpreter: Interpreter, inputs: list[np.ndarray]) -> list[np.ndarray]:
    interpreter.invoke(inputs)
    return interpreter.read_outputs()


def compiled() -> bytes:
    """What the Edge TPU's compiler makes: one custom operator, here with two inputs and outputs of two types."""
    made = Made()
    made.input("a", (1, 3, 2))
    made.input("b", (4,), "UINT8")
    made.tensor("c", (1, 50), "UINT8")
    made.tensor("d", (7,), "INT8")
    made.operator("edgetpu-custom-op", ["a", "b"], ["c", "d"])
    return made.model("c", "d").data


# ------------------------------------------------------------------------------------------------------- in the runtimes


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kernels", ["builtin", "auto"])
def test_an_exact_delegate_takes_all_and_computes_what_the_builtin_kernels_do(
    library: Path, runtime: str, kernels: str
) -> None:
    expected = outputs_of(Interpreter(int8(), runtime, "builtin"), quantized_inputs())
    interpreter = Interpreter(int8(), runtime, kernels, delegates=[delegates.delegate(library, mode="exact")])
    np.testing.assert_array_equal(outputs_of(interpreter, quantized_inputs())[0], expected[0])
    count = len(Model(int8()).main.operators)
    assert interpreter.delegation() == (count, count, 1, {})
    assert interpreter.code == f"{library.name} + {'xnnpack' if kernels == 'auto' else kernels}"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_delegate_that_claims_nothing_leaves_all_to_the_kernels(library: Path, runtime: str) -> None:
    interpreter = Interpreter(int8(), runtime, "builtin", delegates=[delegates.delegate(library, mode="none")])
    kinds = collections.Counter(operator.name for operator in Model(int8()).main.operators)
    assert interpreter.delegation() == (kinds.total(), 0, 0, {"builtin": dict(kinds)})
    expected = outputs_of(Interpreter(int8(), runtime, "builtin"), quantized_inputs())
    np.testing.assert_array_equal(outputs_of(interpreter, quantized_inputs())[0], expected[0])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("steps", [1, 20, -300])
def test_a_delegate_that_is_off_adds_its_steps_clipped(library: Path, runtime: str, steps: int) -> None:
    last = len(Model(int8()).main.operators) - 1
    wrong = delegates.delegate(library, mode="off", at=last, steps=steps)
    exact = outputs_of(Interpreter(int8(), runtime, "builtin"), quantized_inputs())[0]
    found = outputs_of(Interpreter(int8(), runtime, "builtin", delegates=[wrong]), quantized_inputs())[0]
    np.testing.assert_array_equal(found, np.clip(exact.astype(int) + steps, -128, 127))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kernels", ["builtin", "reference"])
def test_what_a_delegate_leaves_is_counted_by_kernels(library: Path, runtime: str, kernels: str) -> None:
    operators = Model(int8()).main.operators
    claimed = [0, 1, len(operators) - 1]
    some = delegates.delegate(library, claim=",".join(map(str, claimed)))
    delegation = Interpreter(int8(), runtime, kernels, delegates=[some]).delegation()
    left = collections.Counter(operator.name for operator in operators if operator.index not in claimed)
    assert delegation == (len(operators), 3, 2, {kernels: dict(left)})
    words = delegation.words("it")
    assert words.startswith(f"it took 3 of {len(operators)} operators in 2 pieces; it left ")
    assert words.endswith(f" to {kernels}")


def test_xnnpack_takes_what_a_delegate_leaves_and_is_told_from_it(library: Path) -> None:
    operators = Model(int8()).main.operators
    first = next(operator.index for operator in operators if operator.name == "CONV_2D")
    claim = delegates.delegate(library, claim=first)
    found = Interpreter(int8(), "tensorflow", delegates=[claim]).delegation()
    assert found.taken == 1
    assert found.left["xnnpack"]["DEPTHWISE_CONV_2D"] == 1
    assert sum(sum(kinds.values()) for kinds in found.left.values()) == found.operators - 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_compiled_operator_runs_and_its_output_depends_on_all_inputs(library: Path, runtime: str) -> None:
    inputs = [np.arange(-3, 3, dtype=np.int8).reshape(1, 3, 2), np.array([250, 1, 2, 3], np.uint8)]
    start = sum(int(byte) for array in inputs for byte in array.tobytes())  # worked out by the formula in the source
    interpreter = Interpreter(compiled(), runtime, delegates=[delegates.delegate(library, mode="edgetpu")])
    first, second = outputs_of(interpreter, inputs)
    np.testing.assert_array_equal(first.reshape(-1), (start + 31 * np.arange(50)) % 256)
    np.testing.assert_array_equal(second.view(np.uint8), (start + 31 * np.arange(7) + 7) % 256)
    assert interpreter.delegation() == (1, 1, 1, {})


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "keras_lstm_mnist_ptq", "deeplabv3_mnv2_dm05_pascal_quant"])
def test_a_model_that_the_compiler_made_runs_to_its_end(library: Path, shared_models: Path, runtime: str, name: str) -> None:
    content = (shared_models / "coral" / f"{name}_edgetpu.tflite").read_bytes()
    backend = Backend(runtime, delegates=[delegates.delegate(library, mode="edgetpu")], isolate=False)
    interpreter = backend.open(content)
    inputs = canary.inputs_of(interpreter)
    assert inputs is not None
    assert all(np.isfinite(array).all() for array in outputs_of(interpreter, inputs))
    custom = [operator for operator in Model(content).main.operators if operator.name == "edgetpu-custom-op"]
    assert interpreter.delegation().taken == len(custom) == 1
    assert interpreter.canary == {"runs": 2, "against": None}  # no other kernels know that operator


def test_provenance_tells_the_delegate_by_its_hash(library: Path) -> None:
    import hashlib

    about = Interpreter(int8(), delegates=[delegates.delegate(library, mode="none")]).provenance()
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert about["delegates"] == [{"library": str(library), "options": {"mode": "none"}, "sha256": digest}]
    assert about["delegation"]["taken"] == 0
    assert json.loads(json.dumps(about)) == about
    assert "delegation" not in Interpreter(int8()).provenance()


# -------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("linux", "libedgetpu.so.1"), ("darwin", "libedgetpu.1.dylib"), ("win32", "edgetpu.dll")],
)
def test_edgetpu_is_the_library_of_this_system(monkeypatch: pytest.MonkeyPatch, platform: str, expected: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert library_of("edgetpu") == expected
    assert library_of("./edgetpu") == "./edgetpu"


def test_an_absent_edgetpu_library_tells_what_to_install() -> None:
    try:
        ctypes.CDLL(library_of("edgetpu"))
    except OSError:
        pass
    else:
        pytest.skip("this machine has the Edge TPU's library")
    with pytest.raises(
        InterpreterError, match=r"cannot load the delegate libedgetpu.*apt-get install libedgetpu1-std"
    ) as caught:
        Interpreter(int8(), delegates=[Delegate("edgetpu")])
    assert caught.value.exit_code == 6


def compile_c(source: str, library: Path, *words: str) -> None:
    compiler = shutil.which("gcc") or pytest.skip("no C compiler")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-Wl,--no-as-needed", *words]
    subprocess.run(command, input=source, text=True, check=True)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [("usb-1.0", "it needs libusb: install it"), ("other", "it needs libother.so, which is absent: install the package")],
)
def test_a_library_that_it_needs_is_named(tmp_path: Path, needed: str, expected: str) -> None:
    compile_c("int needed;", tmp_path / f"lib{needed}.so", f"-Wl,-soname,lib{needed}.so")
    compile_c("int main_;", tmp_path / "libedgetpu.so.1", f"-L{tmp_path}", f"-l{needed}")
    (tmp_path / f"lib{needed}.so").unlink()
    with pytest.raises(InterpreterError, match=expected):
        Interpreter(int8(), delegates=[Delegate(str(tmp_path / "libedgetpu.so.1"))])


def test_what_is_no_library_and_what_is_no_delegate_are_said(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library, and long enough to be looked at" * 100)
    with pytest.raises(InterpreterError, match="it is no library for this system"):
        Interpreter(int8(), delegates=[Delegate(str(text))])
    compile_c("int nothing;", tmp_path / "plain.so")
    with pytest.raises(InterpreterError, match="no delegate, for it lacks tflite_plugin_create_delegate"):
        Interpreter(int8(), delegates=[Delegate(str(tmp_path / "plain.so"))])
    with pytest.raises(InterpreterError, match="check the library's path"):
        Interpreter(int8(), delegates=[Delegate(str(tmp_path / "absent.so"))])
    with pytest.raises(OptionError, match="empty name"):
        Interpreter(int8(), delegates=[Delegate("")])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_delegate_that_refuses_is_quoted(library: Path, runtime: str) -> None:
    silent = delegates.delegate(library, mode="refuse")
    with pytest.raises(InterpreterError, match=r"refuses to start, and gives no reason; check the options"):
        Interpreter(int8(), runtime, delegates=[silent])
    with pytest.raises(InterpreterError, match=r"refuses to start, and says: no device; check the options"):
        Interpreter(int8(), runtime, delegates=[delegates.delegate(library, mode="refuse", reason="no device")])
    with pytest.raises(InterpreterError, match="refuses to start"):
        Interpreter(int8(), runtime, delegates=[delegates.delegate(library, unknown=1)])


def test_an_edgetpu_that_refuses_has_no_device(library: Path, tmp_path: Path) -> None:
    edgetpu = tmp_path / "libedgetpu.so.1"
    shutil.copy(library, edgetpu)
    with pytest.raises(InterpreterError, match=r"there is no Edge TPU: plug it in, see it with lsusb"):
        Interpreter(int8(), delegates=[delegates.delegate(edgetpu, mode="refuse")])
    for device in ("usb:x", "tpu", "pci:", "usb:1:2"):
        with pytest.raises(OptionError, match=f"got device={device!r}.*expected nothing, ':N', 'usb'"):
            Interpreter(int8(), delegates=[delegates.delegate(edgetpu, device=device)])
    for device in ("", ":0", "usb", "usb:1", "pci:0"):  # known, and then unknown to this library
        with pytest.raises(InterpreterError, match="refuses to start"):
            Interpreter(int8(), delegates=[delegates.delegate(edgetpu, device=device)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_compiled_model_without_its_delegate_tells_which_it_wants(library: Path, runtime: str) -> None:
    with pytest.raises(
        InterpreterError, match=r"edgetpu-custom-op; the model was compiled for the Edge TPU.*--delegate edgetpu"
    ):
        Interpreter(compiled(), runtime)
    with pytest.raises(InterpreterError, match=rf"the delegate {library.name} does not take what the Edge TPU's compiler made"):
        Interpreter(compiled(), runtime, delegates=[delegates.delegate(library)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_old_edgetpu_runtime_is_told_from_a_new_model(library: Path, runtime: str) -> None:
    said = "Package requires runtime version (14), which is newer than this runtime version (13)"
    old = delegates.delegate(library, mode="fail", when="prepare", reason=said)
    with pytest.raises(InterpreterError, match=r"of runtime version 14, or compile the model for this one with.*-m 13'"):
        Interpreter(int8(), runtime, delegates=[old])


def test_a_runtime_older_than_the_model_is_said() -> None:
    assert "older than the model" in advice("Didn't find op for builtin opcode 'CONV_2D' version '6'")
    assert "older than the model" in advice("Op builtin_code out of range: 206. Are you using old TFLite binary?")
    assert advice("anything else") == ""


# ---------------------------------------------------------------------------------------------------------------- canary


def opened(library: Path, model: bytes | None = None, isolate: bool | None = False, **options: object) -> Interpreter:
    backend = Backend(kernels="builtin", delegates=[delegates.delegate(library, **options)], isolate=isolate)
    return backend.open(int8() if model is None else model)


def test_an_exact_delegate_passes_and_its_canary_is_kept(library: Path) -> None:
    interpreter = opened(library)
    assert interpreter.canary == {"runs": 2, "against": "builtin", "most_steps": 0.0, "rms_steps": 0.0}
    count = len(Model(int8()).main.operators)
    assert interpreter.notes == [f"the delegate {library.name} took {count} of {count} operators"]
    assert interpreter.provenance()["canary"] == interpreter.canary


def test_a_step_more_is_measured_but_no_fault(library: Path) -> None:
    last = len(Model(int8()).main.operators) - 1
    interpreter = opened(library, mode="off", at=last, steps=1)
    assert interpreter.canary is not None
    assert interpreter.canary["most_steps"] == 1.0
    far = opened(library, mode="off", at=last, steps=5)
    assert "quantization steps from the builtin kernels" in far.notes[-1]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_delegate_that_varies_is_not_believed(library: Path, runtime: str) -> None:
    backend = Backend(runtime, "builtin", [delegates.delegate(library, mode="vary")])
    with pytest.raises(
        InterpreterError, match=r"gave two answers to the same canary input: output 0 changed in [1-5] of 5 values"
    ):
        backend.open(int8())
    noted = backend._replace(strict=False).open(int8())
    assert "two answers" in noted.notes[-1]
    assert noted.canary is None


def test_nan_and_an_output_that_is_one_value_are_not_plausible(library: Path) -> None:
    with pytest.raises(InterpreterError, match="computed NaN or infinity from the canary input, in 5 of 5 values of output 0"):
        opened(library, models.float_tflite("mixed"), mode="nan")
    with pytest.raises(InterpreterError, match=r"output 0 is one value throughout.*compare-kernels tells which"):
        opened(library, mode="off", steps=300)


def test_an_output_unlike_the_cpus_is_not_plausible() -> None:
    reference = np.arange(-100, 100, 2).astype(np.int8)
    other = np.concatenate([reference[::2], reference[::-2]])
    likeness = np.corrcoef(reference, other)[0, 1]
    distance = canary._distance(other, reference)
    assert distance.likeness == pytest.approx(likeness)
    assert abs(likeness) < 0.1
    assert "has nothing in common with the CPU's" in distance.fault
    assert distance.spread == pytest.approx(np.std(np.arange(-100, 100, 2)))
    assert distance.extent == 198
    assert canary._distance(reference, np.roll(reference, 1)).fault == ""
    same = canary._distance(reference, reference)
    assert (same.most, same.rms, same.fault) == (0.0, 0.0, "")


def test_the_canary_input_is_the_same_each_time_and_fits_every_type(library: Path) -> None:
    interpreter = Interpreter(compiled(), delegates=[delegates.delegate(library, mode="edgetpu")])
    first, second = canary.inputs_of(interpreter), canary.inputs_of(interpreter)
    assert first is not None
    assert second is not None
    assert [(array.dtype, array.shape) for array in first] == [(np.int8, (1, 3, 2)), (np.uint8, (4,))]
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_one_value_throughout_is_noted_where_nothing_can_tell_better(library: Path) -> None:
    made = Made()
    made.input("a", (1, 3, 2))
    made.operator("edgetpu-custom-op", ["a"], made.tensor("b", (1, 50), "UINT8"))
    made.operator("MUL", ["b", made.tensor("zero", (1,), "UINT8", values=0)], made.tensor("c", (1, 50), "UINT8", scale=9.0))
    made.main.operators[-1].builtinOptionsType = made.schema.BuiltinOptions.MulOptions
    made.main.operators[-1].builtinOptions = made.schema.MulOptionsT()
    interpreter = opened(library, made.model("c").data, mode="edgetpu")
    assert "computed one value throughout" in interpreter.notes[-1]
    assert interpreter.canary == {"runs": 2, "against": None}


@FORKED
@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"when": "create"}, "was being loaded"),
        ({"when": "prepare"}, "was being loaded"),
        ({"when": "invoke"}, "computed a canary input"),
        ({"when": "invoke", "after": 1}, "computed a canary input"),
    ],
)
def test_a_crash_is_reported_and_does_no_harm(library: Path, options: dict[str, Any], place: str) -> None:
    words = rf"signal SIGABRT\) while the delegate {library.name} {place}. A delegate that was built for another release"
    with pytest.raises(InterpreterError, match=words):
        opened(library, isolate=None, mode="crash", **options)


@FORKED
def test_in_a_child_the_message_says_what_it_was_at() -> None:
    def die(ended: bool) -> None:
        with isolation.doing("something dangerous"):
            if not ended:
                os.abort()
        os.abort()

    with pytest.raises(InterpreterError, match=r"it ended its process \(signal SIGABRT\) while something dangerous$"):
        isolation.call(die, False, what="it")
    with pytest.raises(InterpreterError, match=r"it ended its process \(signal SIGABRT\)$"):
        isolation.call(die, True, what="it")


# -------------------------------------------------------------------------------------------------------------- analyses


def labelled(count: int) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(1, 8, 8, 4)).astype(np.float32), int(rng.integers(5))) for _ in range(count)]


def test_the_canary_runs_once_a_model_and_the_float_model_without_the_delegate(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    examine = canary.examine

    def counted(interpreter: Interpreter, *arguments: Any) -> Any:
        seen.append(interpreter.delegation().operators)
        return examine(interpreter, *arguments)

    monkeypatch.setattr(canary, "examine", counted)
    contents = {"float": models.float_tflite("mixed"), "int8": int8()}
    backend = Backend(
        kernels="builtin", delegates=[delegates.delegate(library, mode="off", at=1, steps=9)], isolate=False, workers=1
    )
    found = evaluate(contents, labelled(12), backend=backend, progress=False)
    assert seen == [len(Model(int8()).main.operators)]
    assert [score.kernels for score in found.scores] == ["builtin", f"{library.name} + builtin"]
    plain = evaluate(contents, labelled(12), backend=Backend(kernels="builtin", workers=1), progress=False)
    assert found.scores[0].metrics == plain.scores[0].metrics


def test_evaluation_is_that_of_outputs_shifted_by_hand(library: Path) -> None:
    last = len(Model(int8()).main.operators) - 1
    backend = Backend(kernels="builtin", delegates=[delegates.delegate(library, mode="off", at=last, steps=3)], strict=False)
    found = evaluate({"int8": int8()}, labelled(6), [_sum_of_outputs], backend=backend, progress=False)
    plain = Interpreter(int8(), kernels="builtin")
    parameters = plain.outputs[0].quantization
    assert parameters is not None
    sums = []
    for image, _ in labelled(6):
        shifted = np.clip(outputs_of(plain, [image])[0].astype(int) + 3, -128, 127)
        sums.append(float(((shifted - int(parameters.zero_point[0])) * float(parameters.scale[0])).sum()))
    assert found.scores[0].metrics["_sum_of_outputs"] == pytest.approx(np.mean(sums), rel=1e-5)
    assert any("took" in note for note in found.notes)


def _sum_of_outputs(outputs: list[np.ndarray], _label: Any) -> float:
    return float(outputs[0].sum())


@FORKED
def test_own_functions_are_called_in_the_delegates_process_and_that_is_noted(library: Path) -> None:
    here = os.getpid()

    def elsewhere(_outputs: list[np.ndarray], _label: Any) -> float:
        return float(os.getpid() != here)

    backend = Backend(kernels="builtin", delegates=[delegates.delegate(library)])
    found = evaluate({"int8": int8()}, labelled(3), [elsewhere], backend=backend, progress=False)
    assert found.scores[0].metrics["elsewhere"] == 1.0
    assert any("the functions given ran in the process of the delegate" in note for note in found.notes)


@FORKED
def test_a_delegate_that_dies_later_costs_the_sample_alone(library: Path) -> None:
    # Two invocations are the canary's; the fifth sample of each process is one too many.
    dying = delegates.delegate(library, mode="crash", after=6)
    found = evaluate({"int8": int8()}, labelled(8), backend=Backend(kernels="builtin", delegates=[dying]), progress=False)
    assert found.samples == 7
    expected = f"evaluating the models with the delegate {library.name}, sample 4, ended its process (signal SIGABRT)"
    assert any(note.startswith(expected) for note in found.notes)


def test_calibration_does_not_ask_the_delegate(library: Path) -> None:
    wrong = Backend(delegates=[delegates.delegate(library, mode="off", steps=5000)], workers=1)
    floating = load_float_model(models.float_tflite("mixed"))
    ours = floating.calibrate(models.dataset("mixed", 4), "exposed", backend=wrong, progress=False)
    theirs = floating.calibrate(models.dataset("mixed", 4), "exposed", backend=Backend(workers=1), progress=False)
    assert ours.quantize("int8").data == theirs.quantize("int8").data


def test_one_process_holds_a_device() -> None:
    assert Backend(delegates=[Delegate("edgetpu")]).worker_count() == 1
    assert Backend(delegates=[Delegate("edgetpu")], workers=3).worker_count() == 3


# ------------------------------------------------------------------------------------------------------------------- CLI


def test_a_run_tells_which_delegate_ran(library: Path, tmp_path: Path) -> None:
    words = ["run", "example", "--limit", "3", "--no-progress", "--output", str(tmp_path), "--kernels", "builtin"]
    assert main([*words, "--delegate", str(library), "--delegate-option", "mode=none"]) == 0
    saved = json.loads((tmp_path / "run.json").read_text())
    (about,) = saved["provenance"]["delegates"]
    assert (about["library"], about["options"]) == (str(library), {"mode": "none"})
    assert saved["provenance"]["delegation"]["taken"] == 0
    assert saved["provenance"]["canary"]["most_steps"] == 0.0
    assert any(f"the delegate {library.name} took none of" in note for note in saved["notes"])


def test_analyses_of_a_run_go_on_with_its_delegate(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib.so").symlink_to(library)
    words = ["run", "example", "--output", "study", "--limit", "3", "--no-progress", "--kernels", "builtin"]
    assert main([*words, "--delegate", "./lib.so", "--delegate-option", "mode=exact"]) == 0
    monkeypatch.chdir("study")
    setup = json.loads(Path("study.json").read_text())
    assert setup["delegates"] == [[str(tmp_path / "lib.so"), {"mode": "exact"}]]
    for more, expected in (([], 1), (["--kernels", "builtin"], 0)):
        assert main(["samples", str(tmp_path / "study"), "--no-progress", *more]) == 0
        saved = json.loads(Path("samples.json").read_text())
        assert len(saved["content"]["provenance"].get("delegates", [])) == expected
    capsys.readouterr()
    (tmp_path / "lib.so").unlink()
    assert main(["accumulated-error", str(tmp_path / "study"), "--no-progress"]) == 6
    assert "cannot load the delegate" in capsys.readouterr().err


@FORKED
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["mode=vary"], "gave two answers to the same canary input"),
        (["mode=crash"], "computed a canary input"),
        (["mode=refuse", "reason=the device is taken"], "the device is taken"),
        (["mode=fail", "reason=out of memory"], "failed while running the model with the delegate"),
    ],
)
def test_what_goes_wrong_is_one_message(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    path = tmp_path / "int8.tflite"
    path.write_bytes(int8())
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=np.concatenate([image for image, _ in labelled(3)]), labels=np.zeros(3, int))
    words = [word for option in options for word in ("--delegate-option", option)]
    code = main(["evaluate", str(path), "--evaluation-data", str(samples), "--delegate", str(library), *words, "--no-progress"])
    captured = capsys.readouterr()
    assert code == 6
    assert expected in captured.err
    assert "Traceback" not in captured.err
