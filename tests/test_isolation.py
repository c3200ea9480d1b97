"""Processes that die, hang, or run out of memory: what their caller is told, what it keeps, and that nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from tflite_qdebug import isolation, tf_private, workers
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.analyses.layer_error import layer_error, run_debug_model
from tflite_qdebug.collect import Backend, LayerMetrics
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.datasets import Sample, open_dataset
from tflite_qdebug.errors import ConversionError, DatasetError, InterpreterError, MetricError, OptionError
from tflite_qdebug.interpreter import Interpreter
from tflite_qdebug.workers import Workers, map_samples

pytestmark = pytest.mark.skipif(not isolation.available(), reason="children are forked on Linux alone")


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def left_behind() -> tuple[int, bool]:
    """Returns how many files this process has open, and whether it has children."""
    try:
        os.waitpid(-1, os.WNOHANG)
        children = True
    except ChildProcessError:
        children = False
    return len(list(Path("/proc/self/fd").iterdir())), children


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = left_behind()
    yield
    assert left_behind() == before


# ------------------------------------------------------------------------------------------------------------- one call


def test_garbage_of_the_caller_does_not_end_in_the_child() -> None:
    # A calibrator that TensorFlow has left in a cycle joins threads, which the child has not: it would die there.
    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if isolation.is_child():
                die(signal.SIGSEGV)

    def work() -> int:
        gc.collect()
        return 7

    for _ in range(3):
        Garbage()
        assert isolation.call(work, what="working") == 7
    assert gc.isenabled()


def test_a_result_comes_back_from_another_process() -> None:
    local = [1, 2]

    def add(more: int) -> tuple[int, list[int]]:
        local.append(more)
        return os.getpid(), local

    pid, found = isolation.call(add, 3, what="adding")
    assert pid != os.getpid()
    assert (found, local) == ([1, 2, 3], [1, 2])


@pytest.mark.parametrize("error", [DatasetError("sample 3: wrong"), MetricError("no"), ZeroDivisionError("the user's own")])
def test_an_error_is_raised_as_it_is(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        isolation.call(fail, what="failing")
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "in fail" in str(caught.value.__cause__)  # where it was raised


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGFPE, signal.SIGTERM])
def test_a_death_is_told_with_what_was_done_and_the_signal(number: signal.Signals) -> None:
    with pytest.raises(ConversionError, match=rf"^quantizing ended its process \(signal {number.name}") as caught:
        isolation.call(die, number, what="quantizing", error=ConversionError)
    assert caught.value.ended.how == f"signal {number.name}"


def test_last_words_explain_a_death(capfd: pytest.CaptureFixture[str]) -> None:
    def abort() -> None:
        print("not for the caller")
        os.write(1, b"nor this\n")
        os.write(2, b"one\ntwo\nF0000 check failed: x > 0\n")
        os._exit(7)

    with pytest.raises(InterpreterError, match=r"\(exit code 7\)\. Its last words: two; F0000 check failed: x > 0$"):
        isolation.call(abort, what="aborting")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hang", [lambda: time.sleep(60), lambda: sum(i for i in iter(int, 1)), signal.pause])
def test_a_hanging_step_is_ended(hang: Callable[[], Any]) -> None:
    with pytest.raises(InterpreterError, match=r"^looping took longer than 0\.3 s, and was ended$"):
        isolation.call(hang, what="looping", time_limit=0.3)


def test_absurd_memory_fails_in_the_child_alone() -> None:
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    with pytest.raises(InterpreterError, match="not enough memory"):
        isolation.call(lambda: np.ones(2 * total, np.uint8).sum(), what="allocating")


def test_what_cannot_be_pickled_is_said() -> None:
    with pytest.raises(InterpreterError, match="the result cannot be brought back"):
        isolation.call(threading.Lock, what="locking")


def test_an_exception_that_cannot_be_pickled_is_said() -> None:
    class OddError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd one")

    def fail() -> None:
        raise OddError(1, 2)

    with pytest.raises(InterpreterError, match="OddError: odd one"):
        isolation.call(fail, what="failing")


def test_large_results_come_back_whole() -> None:
    values = np.arange(3_000_000)
    np.testing.assert_array_equal(isolation.call(lambda: values * 2, what="doubling"), values * 2)


def test_without_fork_everything_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "available", lambda: False)
    assert isolation.call(os.getpid, what="asking") == os.getpid()
    assert isolation.call_with_samples(lambda source: list(source()), [1, 2], what="listing") == [1, 2]
    assert not Backend().isolated()
    with pytest.raises(OptionError, match="isolate=True, which needs Linux"):
        Backend(isolate=True).isolated()
    run = layer_error(models.calibrated("chain"), models.dataset("chain", 2), progress=False)
    assert run.provenance["isolated"] is False


def test_a_process_that_cannot_be_started_is_an_interpreter_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(InterpreterError, match="cannot start a process of its own"):
        isolation.call(os.getpid, what="asking")


def run_script(tmp_path: Path, text: str, **arguments: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **arguments)


def test_a_script_needs_no_main_guard_and_its_atexit_handlers_run_once(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        "import atexit; from tflite_qdebug import isolation\n"
        "print('started', end=' ')\n"  # without a line's end: what is held back must not be written twice
        "atexit.register(print, 'ended')\n"
        "print(isolation.call(lambda: 6 * 7, what='multiplying'))\n",
    )
    assert done.stdout.split() == ["started", "42", "ended"]
    assert done.stderr == ""


def test_a_child_does_not_outlive_a_killed_caller(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        "import os, signal; from tflite_qdebug.workers import Workers\n"
        "for _, pid in Workers(lambda: None, 2, True).map(lambda worker, sample: os.getpid(), range(4)):\n"
        "    print(pid, flush=True)\n"
        "    if _ == 2: os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    pids = {int(word) for word in done.stdout.split()}
    assert pids
    while any(Path(f"/proc/{pid}").exists() and "State:\tZ" not in status_of(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker is left behind"
        time.sleep(0.05)


def status_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


# ---------------------------------------------------------------------------------------------------- calls with samples


def test_samples_are_made_here_and_used_there() -> None:
    made_in = []

    def samples() -> Iterator[np.ndarray]:
        for index in range(5):
            made_in.append(os.getpid())
            yield np.full(200_000, index)

    def total(source: Callable[[], Iterator[np.ndarray]]) -> tuple[int, int]:
        return os.getpid(), int(sum(values.sum() for values in source()))

    pid, found = isolation.call_with_samples(total, samples(), what="adding")
    assert pid != os.getpid()
    assert set(made_in) == {os.getpid()}
    assert found == 200_000 * 10


@pytest.mark.parametrize("error", [ZeroDivisionError("the user's own"), DatasetError("sample 1: wrong"), KeyboardInterrupt()])
def test_an_error_of_the_samples_is_passed_on_as_it_is(error: BaseException) -> None:
    def samples() -> Iterator[int]:
        yield 0
        raise error

    with pytest.raises(type(error)) as caught:
        isolation.call_with_samples(lambda source: list(source()), samples(), what="listing")
    assert caught.value is error


def test_a_death_says_at_which_sample() -> None:
    def fall(source: Callable[[], Iterator[int]]) -> None:
        for sample in source():
            if sample == 3:
                die(signal.SIGSEGV)

    with pytest.raises(InterpreterError, match=r"^calibrating, on sample 3, ended its process \(signal SIGSEGV\)"):
        isolation.call_with_samples(fall, range(10), what="calibrating")


def test_a_function_may_leave_samples_over() -> None:
    assert isolation.call_with_samples(lambda source: next(source()), range(10), what="taking one") == 0
    with pytest.raises(InterpreterError, match=r"before the first sample, took longer than 0\.3 s"):
        isolation.call_with_samples(lambda source: time.sleep(60), range(10), what="waiting", time_limit=0.3)


# --------------------------------------------------------------------------------------------------------------- workers


def squares(worker: int, sample: int) -> tuple[int, int]:
    time.sleep(0.001 * (sample % 3))
    return worker, sample**2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_of_processes_come_in_the_order_of_the_samples(count: int) -> None:
    found = list(map_samples(squares, Workers(os.getpid, count, True), range(20)))
    assert [square for _, square in found] == [number**2 for number in range(20)]
    assert os.getpid() not in {pid for pid, _ in found}
    assert len({pid for pid, _ in found}) == count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_hold_at_most_two_samples_each(count: int) -> None:
    drawn = 0

    def source() -> Iterator[int]:
        nonlocal drawn
        for sample in range(30):
            drawn = sample + 1
            yield sample

    for done, _ in enumerate(map_samples(squares, Workers(os.getpid, count, True), source()), 1):
        assert drawn - done < 2 * count


def falls_at(*bad: int, how: Callable[[], Any] = lambda: die(signal.SIGABRT)) -> Callable[[Any, int], int]:
    def work(worker: Any, sample: int) -> int:
        if sample in bad:
            how()
        return sample

    return work


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sample_that_ends_its_process_is_left_out_and_noted(count: int) -> None:
    made = Workers(os.getpid, count, True, "measuring layers")
    found = list(made.map(falls_at(4, 17), range(20)))
    assert found == [(number, number) for number in range(20) if number not in (4, 17)]
    assert made.notes == [
        f"measuring layers, sample {number}, ended its process (signal SIGABRT); this sample is left out" for number in (4, 17)
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sample_that_takes_too_long_is_left_out(count: int) -> None:
    made = Workers(os.getpid, count, True, "measuring", time_limit=0.5)
    found = list(made.map(falls_at(5, how=lambda: time.sleep(60)), range(8)))
    assert [position for position, _ in found] == [0, 1, 2, 3, 4, 6, 7]
    assert made.notes == ["measuring, sample 5, took longer than 0.5 s, and was ended; this sample is left out"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_sample_and_the_third_death_end_the_run(count: int) -> None:
    with pytest.raises(InterpreterError, match=r"^measuring, sample 0, ended its process \(signal SIGABRT\)$"):
        list(map_samples(falls_at(0), Workers(os.getpid, count, True, "measuring"), range(20)))
    assert workers.MOST_LOST == 3
    found: list[int] = []
    with pytest.raises(InterpreterError, match=r"sample 9, .*SIGABRT\)\. With 3 such samples the run is given up"):
        found.extend(map_samples(falls_at(2, 5, 9, 10), Workers(os.getpid, count, True, "measuring"), range(20)))
    assert found == [0, 1, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_errors_of_work_and_of_the_samples_come_in_their_turn(count: int) -> None:
    def work(worker: int, sample: int) -> int:
        if sample == 5:
            raise DatasetError("sample 5: wrong")
        time.sleep(0.01 * (sample % 2))
        return sample

    found: list[int] = []
    with pytest.raises(DatasetError, match="sample 5: wrong"):
        found.extend(map_samples(work, Workers(os.getpid, count, True), range(1000)))
    assert found == [0, 1, 2, 3, 4]

    def source() -> Iterator[int]:
        yield from range(4)
        raise KeyError("the user's own")

    found = []
    with pytest.raises(KeyError, match="the user's own"):
        found.extend(map_samples(work, Workers(os.getpid, count, True), source()))
    assert found == [0, 1, 2, 3]


def test_an_interruption_ends_the_processes() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_samples(squares, Workers(os.getpid, 2, True), source()))
    results = map_samples(squares, Workers(os.getpid, 2, True), range(100))
    assert next(iter(results))[1] == 0
    results.close()  # type: ignore[attr-defined]


def test_samples_of_any_size_get_there_whole() -> None:
    generator = np.random.default_rng(0)
    sizes = [10, 100_000, 3, 0, 400_000, 10, 2_000_000, 1]
    arrays = [generator.normal(size=size).astype(np.float32) for size in sizes]
    samples = [Sample(i, [a, a[::2], np.asfortranarray(a[: len(a) // 4 * 4].reshape(-1, 4))]) for i, a in enumerate(arrays)]
    for count in (1, 2):
        found = list(map_samples(lambda worker, sample: sample.inputs, Workers(os.getpid, count, True), samples))
        for ours, sample in zip(found, samples, strict=True):
            for mine, expected in zip(ours, sample.inputs, strict=True):
                np.testing.assert_array_equal(mine, expected)


def test_a_sample_that_cannot_be_sent_is_a_dataset_error() -> None:
    for samples in ([threading.Lock()], [1, 2, threading.Lock()]):
        with pytest.raises(DatasetError, match=rf"sample {len(samples) - 1} cannot be brought to the process"):
            list(map_samples(lambda worker, sample: 0, Workers(os.getpid, 1, True), samples))


def test_what_workers_gathered_is_brought_back() -> None:
    def gather(seen: list[int], sample: int) -> None:
        seen.append(sample)

    for isolated in (True, False):
        made = Workers(list, 2, isolated, finish=lambda seen: sum(seen))
        assert len(list(made.map(gather, range(10)))) == 10
        assert sum(made.finished) == 45
    made = Workers(list, 2, True, "gathering", finish=sum, replaceable=False)
    with pytest.raises(InterpreterError, match=r"^gathering, sample 6, ended its process"):
        list(made.map(falls_at(6), range(10)))


def test_a_worker_that_dies_or_fails_while_it_opens() -> None:
    with pytest.raises(InterpreterError, match=r"^measuring: opening the model ended its process \(signal SIGSEGV\)"):
        list(map_samples(squares, Workers(lambda: die(signal.SIGSEGV), 2, True, "measuring"), range(5)))

    def refuse() -> None:
        raise InterpreterError("refused")

    with pytest.raises(InterpreterError, match=r"^refused$"):
        list(map_samples(squares, Workers(refuse, 2, True), range(5)))
    with pytest.raises(InterpreterError, match=r"opening the model took longer than 0\.3 s"):
        list(map_samples(squares, Workers(lambda: time.sleep(60), 1, True, time_limit=0.3), range(5)))


# ------------------------------------------------------------------------------------------------------------ real loops


def deadly(monkeypatch: pytest.MonkeyPatch, kernels: str | None = None) -> None:
    """Lets an interpreter die of a sample whose first value is 666, as a kernel that checks its input does."""
    invoke = Interpreter.invoke

    def fragile(self: Interpreter, arrays: list[np.ndarray]) -> None:
        if arrays[0].flat[0] == 666 and kernels in (None, self.kernels):
            os.write(2, b"kernel.cc: check failed\n")
            die(signal.SIGABRT)
        invoke(self, arrays)

    monkeypatch.setattr(Interpreter, "invoke", fragile)


def samples_with(*bad: int, count: int = 8) -> list[list[np.ndarray]]:
    found = models.samples("chain", count)
    for number in bad:
        found[number][0].flat[0] = 666
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_goes_on_without_the_sample_that_kills_a_kernel(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [sample for number, sample in enumerate(models.samples("chain", 8)) if number != 3]
    expected = layer_error(models.calibrated("chain"), good, backend=Backend(workers=1), progress=False)
    deadly(monkeypatch)
    run = layer_error(models.calibrated("chain"), samples_with(3), backend=Backend(workers=count), progress=False)
    np.testing.assert_allclose(run.statistics.sums, expected.statistics.sums, rtol=1e-12)
    assert run.provenance["isolated"] is True
    assert run.provenance["samples"] == 7
    assert len(run.notes) == len(expected.notes) + 1
    assert run.notes[-1].endswith(
        "layers, sample 3, ended its process (signal SIGABRT). Its last words: kernel.cc: check failed; this sample is left out"
    )


def test_a_run_that_is_given_up_carries_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly(monkeypatch)
    with pytest.raises(InterpreterError, match=r"sample 6, .*With 3 such samples the run is given up") as caught:
        layer_error(models.calibrated("chain"), samples_with(2, 4, 6), backend=Backend(workers=2), progress=False)
    partial = caught.value.partial_run
    assert partial.statistics.samples == 4
    assert sum("is left out" in note for note in partial.notes) == 2


def test_the_first_sample_tells_which_kernels_died(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        deadly(patch)
        with pytest.raises(InterpreterError, match=r"^running sample 0 with xnnpack kernels ended its process"):
            layer_error(models.calibrated("chain"), samples_with(0), progress=False)
    deadly(monkeypatch, "builtin")
    run = layer_error(models.calibrated("chain"), samples_with(0), progress=False)
    assert run.provenance["kernels"] == "xnnpack"
    assert any(
        note.startswith("XNNPACK could not be held against the builtin kernels: running sample 0 with builtin kernels ended")
        for note in run.notes
    )


def test_the_users_functions_run_here_and_a_death_is_met_before(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def mine(error: np.ndarray) -> float:
        called.append(os.getpid())
        return 1.0

    debug_model = models.calibrated("chain").debug_model()

    def run(samples: Any, backend: Backend) -> Any:
        dataset = open_dataset(samples, debug_model.inputs, "debug dataset")
        return run_debug_model(debug_model, dataset, backend, LayerMetrics({"mine": mine}), progress=False)

    assert run(samples_with(), Backend(workers=1)).provenance["isolated"] is False
    assert set(called) == {os.getpid()}
    called.clear()
    assert run(samples_with(), Backend(workers=1, isolate=True)).provenance["isolated"] is True
    assert not called
    deadly(monkeypatch)
    with pytest.raises(InterpreterError, match="running sample 0 with xnnpack kernels ended its process"):
        run(samples_with(0), Backend())


@pytest.mark.parametrize("metric", ["top_1", lambda outputs, label: float(outputs[0].argmax() == label)])
def test_an_evaluation_survives_as_well(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"float": models.float_tflite("chain"), "int8": models.calibrated("chain").quantize("int8").data}
    labelled = [(sample, number % 3) for number, sample in enumerate(models.samples("chain", 8))]
    expected = evaluate(data, labelled[:3] + labelled[4:], [metric], progress=False)
    deadly(monkeypatch)
    bad = [(sample, number % 3) for number, sample in enumerate(samples_with(3))]
    if callable(metric):
        bad = [bad[3], *bad[:3]]
        with pytest.raises(InterpreterError, match="running the models on sample 0 ended its process"):
            evaluate(data, bad, [metric], progress=False)
        return
    found = evaluate(data, bad, [metric], progress=False)
    assert found.scores == expected.scores
    assert found.samples == 7
    assert "evaluating the models, sample 3, ended its process (signal SIGABRT)" in found.notes[-1]


def test_exposed_calibration_that_dies_names_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly(monkeypatch)
    with pytest.raises(InterpreterError, match=r"calibrating the model, sample 5, ended its process \(signal SIGABRT\)"):
        models.float_model("chain").calibrate(samples_with(5), "exposed")


@pytest.mark.parametrize("name", ["chain", "lstm"])
def test_tensorflows_calibrator_gives_there_what_it_gives_here(name: str) -> None:
    made = models.float_model(name)
    dataset = models.dataset(name, 4)
    assert made.calibrate(dataset).data == tf_private.calibrate(made.data, dataset)


@pytest.mark.parametrize(("name", "advised"), [("chain", False), ("lstm", True)])
def test_a_death_of_tensorflows_calibrator(name: str, advised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_private, "calibrate", lambda model, source: [die(signal.SIGSEGV) for _ in source()])
    with pytest.raises(
        ConversionError, match=r"calibrating the model, on sample 0, ended its process \(signal SIGSEGV\)"
    ) as caught:
        models.float_model(name).calibrate(models.dataset(name, 2))
    assert ("unroll=True" in str(caught.value)) == advised


@pytest.mark.parametrize(("kind", "name"), [("int8", "quantize"), ("int16x8", "quantize_int16x8")])
def test_a_death_of_tensorflows_quantizer(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_private, name, lambda model, options: die(signal.SIGSEGV))
    with pytest.raises(ConversionError, match=r"^quantizing the model with TensorFlow ended its process \(signal SIGSEGV\)"):
        models.calibrated("chain").quantize(kind)


def test_a_real_kernel_that_aborts(shared_models: Path) -> None:
    """Calibrated on a mask that leaves nothing over, a kernel of the int8 model ends its process, at once."""
    made = load_float_model(shared_models / "structure" / "torchaudio_conformer.tflite")
    values, mask = made.model.input_specs()
    generator = np.random.default_rng(0)

    def sample(masked: bool) -> list[np.ndarray]:
        return [generator.normal(size=values.shape).astype(np.float32), np.full(mask.shape, masked)]

    calibrated = made.calibrate([sample(False), sample(True)])
    backend = Backend(kernels="builtin")
    try:
        run = layer_error(calibrated, [sample(False)], backend=backend, progress=False)
    except InterpreterError as error:
        told = str(error)
    else:
        assert run.statistics.samples == 1
        pytest.skip("this TensorFlow runs the model")
    assert told.startswith("running sample 0 with builtin kernels ended its process (signal SIGABRT)")


def test_time_limits_are_checked() -> None:
    with pytest.raises(OptionError, match="time_limit=0"):
        Backend(time_limit=0).isolated()
