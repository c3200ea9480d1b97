"""A run goes to a board and back: the archive, the command in it, its result, and the report; with every way to fail."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import delegates
import numpy as np
import pytest
from test_board import BLOCKER

from tflite_qdebug import example
from tflite_qdebug.board import command
from tflite_qdebug.board.archive import ArchiveWriter, Bundle, Entry
from tflite_qdebug.board.comparison import StepDifference, outputs_difference
from tflite_qdebug.board.journal import Journal, packed, read_records, unpacked
from tflite_qdebug.board.timing import Timing, summary, timed_runs
from tflite_qdebug.board_record import HOST, Board
from tflite_qdebug.bundling import write_bundle
from tflite_qdebug.cli import main
from tflite_qdebug.errors import ModelError, OptionError, OutputError
from tflite_qdebug.findings import Findings, save_part
from tflite_qdebug.interpreter import Delegate, Interpreter
from tflite_qdebug.merging import merge_result, read_result
from tflite_qdebug.record import Run
from tflite_qdebug.reports.boards import board_table, layers_table
from tflite_qdebug.reports.content.boards import boards_section
from tflite_qdebug.reports.content.view import View

SAMPLES = 6
# As on a board, where a wheel of the interpreter alone is installed here.
ALONE = BLOCKER if importlib.util.find_spec("ai_edge_litert") or importlib.util.find_spec("tflite_runtime") else "import sys\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved run of the example, all integer, so that outputs have steps."""
    folder = tmp_path_factory.mktemp("bundle") / "digits"
    words = ["run", "example", "--kind", "full_integer", "--limit", "20", "--output", str(folder), "--no-progress"]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def archive(run: Path) -> Path:
    made = write_bundle(run, run.parent / "digits.pyz", limit=SAMPLES, progress=False)
    assert made.models == ("quantized", "float", "debug")
    assert made.samples == {"debug": SAMPLES, "evaluation": SAMPLES}
    return made.path


@pytest.fixture(scope="module")
def result(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the whole bundle gave, run as on a board: a process of its own in a folder of its own, everything heavy blocked."""
    folder = tmp_path_factory.mktemp("board")
    done = on_board(archive, folder, "--latency-seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert "done: digits_result.jsonl" in done.stdout
    return folder / "digits_result.jsonl"


def on_board(archive: Path, folder: Path, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    copied = Path(shutil.copy(archive, folder / archive.name)) if archive.parent != folder else archive
    end = "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", ALONE + before + end, copied.name, *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def records(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_records(path) if record is not None and "kind" in record]


def evaluation(count: int = SAMPLES) -> list[tuple[Any, Any]]:
    return [sample for _, sample in zip(range(count), example.evaluation_dataset(), strict=False)]


# ------------------------------------------------------------------------------------------------------------ the archive


def test_the_bundle_has_models_samples_and_the_outputs_of_the_host(run: Path, archive: Path) -> None:
    bundle = Bundle(archive)
    assert bundle.model("quantized") == (run / "full_integer.tflite").read_bytes()
    assert bundle.model("float") == (run / "float.tflite").read_bytes()
    quantized = Interpreter(bundle.model("quantized"), kernels="reference")
    for index, (inputs, _) in enumerate(evaluation()):
        quantized.invoke(bundle.sample("evaluation", index))
        np.testing.assert_array_equal(bundle.expected("quantized", "evaluation", index)[0], quantized.read_outputs()[0])
        np.testing.assert_array_equal(bundle.sample("evaluation", index)[0], np.asarray(inputs[0]))
    (step,) = bundle.entry("quantized").steps
    assert quantized.outputs[0].quantization is not None
    assert step == pytest.approx(float(quantized.outputs[0].quantization.scale[0]))


def test_the_same_run_gives_the_same_archive(run: Path, archive: Path, tmp_path: Path) -> None:
    again = write_bundle(run, tmp_path / "again.pyz", limit=SAMPLES, progress=False)
    assert again.id == Bundle(archive).id
    assert again.path.read_bytes() == archive.read_bytes()
    assert again.size == archive.stat().st_size


def test_a_broken_byte_anywhere_is_refused_before_anything_runs(archive: Path, tmp_path: Path) -> None:
    content, size = archive.read_bytes(), archive.stat().st_size
    bad = tmp_path / "bad.pyz"
    for place in (3, 40, 90, 95, 200, size // 3, size // 2, size - 30, size - 1):
        bad.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(ModelError, match=r"hash of .* is wrong"):
            Bundle(bad)
    bad.write_bytes(content[: size // 2] + bytes([content[size // 2] ^ 1]) + content[size // 2 + 1 :])
    done = on_board(bad, tmp_path)
    assert done.returncode == 3
    assert "hash" in done.stderr
    assert "wrong" in done.stderr
    assert not list(tmp_path.glob("*.jsonl"))
    bad.write_bytes(content[: size // 2])
    with pytest.raises(ModelError, match="wrong"):
        Bundle(bad)
    assert on_board(bad, tmp_path).returncode != 0


def test_what_is_no_bundle_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the bundle"):
        Bundle(tmp_path / "absent.pyz")
    with ArchiveWriter(tmp_path / "other.pyz") as writer:
        writer.add("a", b"b")
        writer._zip.writestr("x", b"y")
        writer.finish({"models": []})
    Bundle(tmp_path / "other.pyz")
    with pytest.raises(ModelError, match="no run in"):
        write_bundle(tmp_path)
    with pytest.raises(OptionError, match="limit 0"):
        write_bundle(run, tmp_path / "a.pyz", limit=0)
    with pytest.raises(OutputError, match="is a folder"):
        write_bundle(run, tmp_path)
    with pytest.raises(OptionError, match="compiled model without a delegate"):
        write_bundle(run, tmp_path / "a.pyz", compiled=run / "full_integer.tflite")
    with pytest.raises(ModelError, match="inputs and outputs"):
        write_bundle(run, tmp_path / "a.pyz", compiled=run / "float.tflite", delegate=Delegate("edgetpu"))
    assert list(tmp_path.glob("a.pyz*")) == []


# --------------------------------------------------------------------------------------------------- on the board and back


def test_what_the_board_measured_is_what_it_must_measure(run: Path, archive: Path, result: Path) -> None:
    """Accuracy, SQNR, steps and latency, worked out from the interpreter's outputs and from the times as written."""
    board = read_result(run, result, "bench")
    bundle, model = Bundle(archive), board.model("quantized")
    assert model is not None
    runtime = next(record["about"] for record in records(result) if record["kind"] == "opened")
    quantized = Interpreter(bundle.model("quantized"), runtime=runtime["runtime"])
    floating = Interpreter(bundle.model("float"))
    right, signal, noise, steps = [], 0.0, 0.0, []
    for index, (inputs, label) in enumerate(evaluation()):
        quantized.invoke(inputs)
        floating.invoke(inputs)
        (values,), (reference,) = quantized.read_outputs(), floating.read_outputs()
        right.append(int(np.argmax(values)) == label)
        scale = quantized.outputs[0].quantization
        assert scale is not None
        error = (values.astype(np.float64) - scale.zero_point[0]) * scale.scale[0] - reference
        signal, noise = signal + float((reference.astype(np.float64) ** 2).sum()), noise + float((error**2).sum())
        expected = bundle.expected("quantized", "evaluation", index)[0]
        steps.append(np.abs(values.astype(int) - expected.astype(int)))
    assert model.metrics["top_1"] == pytest.approx(np.mean(right))
    assert model.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-4)
    assert model.largest == np.max(steps)
    assert model.over_one == pytest.approx(np.mean(np.concatenate(steps, axis=None) > 1))
    assert (model.samples, model.wanted, model.where) == (SAMPLES, SAMPLES, "bench")
    assert model.size == len(bundle.model("quantized"))
    times = [t for r in records(result) if r["kind"] == "latency" and r["model"] == "quantized" for t in r["milliseconds"]]
    assert len(times) == model.runs >= 10
    assert model.median == pytest.approx(np.quantile(times, 0.5))
    assert model.percentile_90 == pytest.approx(np.quantile(times, 0.9))


def test_host_rows_and_layers_stand_beside(run: Path, result: Path) -> None:
    board = read_result(run, result)
    hosts = [model for model in board.models if model.where == HOST]
    assert [(model.name, model.kernels) for model in hosts] == [
        ("float", "xnnpack"), ("quantized", "reference"), ("quantized", "xnnpack")
    ]  # fmt: skip
    assert hosts[0].sqnr_db == np.inf
    assert np.isnan(hosts[1].largest)  # held against itself
    assert board.layers is not None
    assert board.host_layers is not None
    assert board.layers.layers == board.host_layers.layers
    assert board.layers.statistics.samples == SAMPLES
    worst = board.host_layers.worst(count=3)
    assert board.layers.worst(count=3) == worst
    np.testing.assert_allclose(board.layers.statistics.rmse[worst], board.host_layers.statistics.rmse[worst], rtol=0.05)
    header, rows = board_table(board)
    assert rows[0][header.index("top_1")] != "-"
    assert len(board.differing(least=0.0)[0]) == len(board.layers.layers)


def test_nothing_heavy_is_imported_and_the_modules_are_the_archives(archive: Path, tmp_path: Path) -> None:
    said = "print(sys.modules['tflite_qdebug'].__file__, 'numba' in sys.modules, 'pandas' in sys.modules)"
    after = f"import atexit\natexit.register(lambda: {said})\n"
    done = on_board(archive, tmp_path, "--list", before=after)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].endswith("False False")
    assert "digits.pyz/tflite_qdebug/__init__.py" in done.stdout
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_result_is_kept_with_the_run_replaced_by_a_later_one_and_shown(run: Path, result: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run, tmp_path / "copy"))
    first = merge_result(place, result, "bench")
    merge_result(place, result, "bench")
    other = merge_result(place, result, "desk")
    found = Findings.load(place)
    assert [board.name for board in found.boards] == ["bench", "desk"]
    assert found.boards[0].models == first.models or str(found.boards[0].models) == str(first.models)  # NaN equals nothing
    assert found.boards[1].key == other.key
    assert found.boards[0].layers is not None
    assert found.boards[0].layers.layers == first.layers.layers  # type: ignore[union-attr]
    assert main(["latency", str(place), "--seconds", "0.02", "--operator-seconds", "0.002", "--no-progress"]) == 0
    assert main(["report", str(place), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Time on bench", "How good, how fast", "The slowest operators", "On boards"):
        assert words in page


def test_merge_prints_for_people_and_for_machines(run: Path, result: Path, tmp_path: Path, capsys: Any) -> None:
    place = shutil.copytree(run, tmp_path / "copy")
    assert main(["merge", str(place), str(result), "--name", "bench"]) == 0
    assert "median ms" in capsys.readouterr().out
    assert main(["merge", str(place), str(result), "--json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)["boards"]
    assert board["models"][0]["samples"] == SAMPLES


def test_a_result_of_another_run_or_of_nothing_is_refused(archive: Path, result: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert main(["run", "example", "--limit", "2", "--output", str(other), "--no-progress"]) == 0
    with pytest.raises(ModelError, match="not made from the run"):
        merge_result(other, result)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "none.jsonl").write_bytes(b"something else\n")
    for name, words in (("empty.jsonl", "empty"), ("none.jsonl", "no result"), ("absent.jsonl", "cannot read")):
        with pytest.raises(ModelError, match=words):
            merge_result(other, tmp_path / name)


def test_a_layer_that_the_board_computes_wrongly_is_named(run: Path, result: Path, tmp_path: Path) -> None:
    """Each sample's squared error of one dense layer is made that of 30 steps, as old kernels make it."""
    board = read_result(run, result)
    assert board.layers is not None
    assert board.faulty() == []
    place = next(i for i, layer in enumerate(board.layers.layers) if layer.op_name == "FULLY_CONNECTED")
    layer, lines = board.layers.layers[place], []
    for line in result.read_bytes().splitlines():
        record = json.loads(line[9:])
        if record.get("model") == "debug" and "rows" in record:
            rows = unpacked(record["rows"]).copy()
            assert layer.scale is not None
            rows[place, 2] = rows[place, 0] * (30 * layer.scale) ** 2
            text = json.dumps({**record, "rows": packed(rows)}, separators=(",", ":")).encode()
            line = f"{zlib.crc32(text):08x} ".encode() + text
        lines.append(line)
    (tmp_path / "r.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    wrong = read_result(run, tmp_path / "r.jsonl")
    assert wrong.faulty() == [place]
    assert wrong.differing()[0][0] == place
    assert wrong.differing()[1][place] == pytest.approx(30.0)
    (note,) = wrong.notes
    assert layer.node in note
    assert "by 30.0 steps there" in note
    assert "not quantization" in note
    (row,) = layers_table(wrong, 1)[1]
    assert row[1] == "FULLY_CONNECTED"
    section = boards_section(View(Findings(Run.load(run / "run.json"), boards=(wrong,))))
    assert [table.caption for table in section.tables][1].endswith("the layers whose error differs most from that on the host")
    assert section.tables[1].rows[0][0].node == layer.node


# ------------------------------------------------------------------------------------------- interrupted, full, broken lines


def run_here(archive: Path, *words: object) -> int:
    return command.main(str(archive), [*map(str, words), "--latency-seconds", "0.01"])


def counted(path: Path) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for record in records(path):
        if record["kind"] == "sample":
            key = record["model"], record["sample"]
            found[key] = found.get(key, 0) + 1
    return found


def test_interrupted_it_goes_on_and_measures_nothing_twice(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, write, left = tmp_path / "r.jsonl", Journal.write, [9]

    def interrupted(self: Journal, record: Any) -> None:
        write(self, record)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", interrupted)
        assert run_here(archive, "--output", path) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    before = counted(path)
    assert 0 < len(before) < 3 * SAMPLES
    assert run_here(archive, "--output", path) == 0
    assert "going on with" in capsys.readouterr().out
    after = counted(path)
    assert set(after.values()) == {1}
    assert sorted(after) == sorted((name, i) for name in ("quantized", "float", "debug") for i in range(SAMPLES))
    assert [r["kind"] for r in records(path)].count("timed") == 2


def test_killed_in_the_middle_of_a_line_it_goes_on(run: Path, archive: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(archive, tmp_path))
    path = tmp_path / "r.jsonl"
    process = subprocess.Popen(
        [sys.executable, copied.name, "--output", path.name, "--latency-seconds", "60"], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = path.read_bytes()
    path.write_bytes(whole + b'0badc0de {"kind":"sample","mod')
    unfinished = read_result(run, path)
    assert any("broken" in note for note in unfinished.notes)
    assert run_here(archive, "--output", path) == 0
    assert path.read_bytes().startswith(whole)
    board = read_result(run, path)
    assert not any("broken" in note for note in board.notes)
    assert all(model.samples == SAMPLES and not model.failure for model in board.models)


def test_a_full_disk_loses_nothing(run: Path, archive: Path, tmp_path: Path) -> None:
    limit = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))\n"
    )
    done = on_board(archive, tmp_path, "--output", "r.jsonl", "--latency-seconds", "0.01", before=limit)
    assert done.returncode == 8, done.stdout + done.stderr
    assert "Make room" in done.stderr
    path = tmp_path / "r.jsonl"
    before = counted(path)
    assert before
    assert path.read_bytes().endswith(b"\n")
    assert run_here(archive, "--output", path) == 0
    assert set(counted(path).values()) == {1}
    assert all(model.samples == SAMPLES for model in read_result(run, path).models)


def test_a_broken_line_does_not_count_and_is_measured_again(run: Path, archive: Path, result: Path, tmp_path: Path) -> None:
    lines = result.read_bytes().split(b"\n")
    broken = next(i for i, line in enumerate(lines) if b'"sample":2' in line and b"quantized" in line)
    lines[broken] = lines[broken].replace(b'"milliseconds":', b'"milliseconds":9', 1)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n".join(lines))
    board = read_result(run, path)
    model = board.model("quantized")
    assert model is not None
    assert (model.samples, model.wanted) == (SAMPLES - 1, SAMPLES)
    assert "unfinished" in model.failure
    assert board.notes == ("1 lines of the result are broken and do not count",)
    assert run_here(archive, "--output", path) == 0
    again = read_result(run, path).model("quantized")
    assert again is not None
    assert (again.samples, again.failure) == (SAMPLES, "")


def test_another_bundle_or_other_settings_do_not_go_on_with_a_result(archive: Path, result: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(result, tmp_path))
    before = path.read_bytes()
    assert run_here(archive, "--output", path, "--threads", 2) == 2
    assert path.read_bytes() == before
    assert run_here(archive, "--output", tmp_path / "absent" / "r.jsonl") == 8
    assert run_here(archive, "--output", path, "--model", "quantised") == 2
    assert run_here(archive, "--delegate-option", "a=b") == 2


def test_two_processes_do_not_write_one_result(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Journal(tmp_path / "r.jsonl", {"bundle": "a"})
    with pytest.raises(OptionError, match="another process"):
        Journal(tmp_path / "r.jsonl", {"bundle": "a"})
    first.close()
    with pytest.raises(OptionError, match="was begun with bundle 'a', got 'b'"):
        Journal(tmp_path / "r.jsonl", {"bundle": "b"})


# ----------------------------------------------------------------------------------------------------------- with delegates


def with_delegate(run: Path, tmp_path: Path, **options: object) -> tuple[int, Board]:
    """Bundles the quantized model as one that was compiled for the test's delegate, and runs it."""
    delegate = delegates.delegate(delegates.build(tmp_path), **options)
    compiled = run / "full_integer.tflite"
    made = write_bundle(
        run, tmp_path / "d.pyz", compiled=compiled, delegate=delegate, limit=SAMPLES, debug_model=False, progress=False
    )
    path = tmp_path / "r.jsonl"
    words = ["--output", str(path), "--kernels", "reference", "--latency-seconds", "0.02"]
    return command.main(str(made.path), words), read_result(run, path, "board")


def test_an_exact_delegate_gives_the_hosts_outputs(run: Path, tmp_path: Path) -> None:
    code, board = with_delegate(run, tmp_path, mode="exact")
    model = board.model("compiled")
    assert code == 0
    assert model is not None
    assert (model.largest, model.over_one, model.samples, model.failure) == (0.0, 0.0, SAMPLES, "")
    assert "libtest_delegate" in model.kernels
    assert any("took" in note for note in model.notes)


def test_a_delegate_that_is_off_at_the_output_is_off_by_so_many_steps(run: Path, tmp_path: Path) -> None:
    from tflite_qdebug.model import Model

    last = len(Model(run / "full_integer.tflite").main.operators) - 1
    code, board = with_delegate(run, tmp_path, mode="off", at=last, steps=7)
    model, quantized = board.model("compiled"), board.model("quantized")
    assert code == 0
    assert model is not None
    assert quantized is not None
    assert model.largest == 7.0
    assert model.over_one > 0.5
    assert quantized.largest == 0.0  # without the delegate, on the same kernels as the host


def test_the_delay_of_a_delegate_is_in_the_latency(run: Path, tmp_path: Path) -> None:
    _, board = with_delegate(run, tmp_path, mode="exact", delay=4000)
    model, quantized = board.model("compiled"), board.model("quantized")
    assert model is not None
    assert quantized is not None
    assert 4.0 <= model.median < 40.0
    assert model.percentile_90 >= model.median
    assert quantized.median < model.median


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "refuse"}, "refuses to start"),
        ({"mode": "crash", "when": "prepare"}, "SIGABRT"),
        ({"mode": "crash", "when": "invoke"}, "SIGABRT"),
        ({"mode": "vary"}, "two answers to the same canary"),
    ],
)
def test_a_delegate_that_fails_is_told_and_costs_its_own_model_alone(
    run: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    import re

    code, board = with_delegate(run, tmp_path, **options)
    assert code == 6
    failed, others = board.model("compiled"), [board.model(name) for name in ("quantized", "float")]
    assert failed is not None
    assert failed.samples == 0
    assert re.search(words, failed.failure), failed.failure
    assert all(model is not None and model.samples == SAMPLES and not model.failure for model in others)


def test_a_delegate_that_dies_on_the_way_loses_nothing_already_written(run: Path, tmp_path: Path) -> None:
    code, board = with_delegate(run, tmp_path, mode="crash", after=4)
    model = board.model("compiled")
    assert model is not None
    # It was started again as long as it got on, so that all samples are there; ten runs in a row for latency it never made.
    assert model.samples == SAMPLES
    assert code == 6
    assert np.isnan(model.median)
    assert "SIGABRT" in model.failure


def test_a_compiled_model_runs_end_to_end(shared_models: Path, tmp_path: Path) -> None:
    """A real compiled model, its custom operator computed by the test's delegate: deterministic, and nothing like the CPU's."""
    source = shared_models / "coral"
    compiled = sorted(source.glob("*_edgetpu.tflite"), key=lambda path: path.stat().st_size)[0]
    plain = source / compiled.name.replace("_edgetpu", "")
    if not plain.exists():
        pytest.skip("the compiled model's twin is not there")
    from tflite_qdebug.datasets import open_dataset, save_folder
    from tflite_qdebug.model import Model

    specs = Model(plain).input_specs()
    generator = np.random.default_rng(0)
    samples = [[generator.integers(0, 255, spec.shape).astype(spec.dtypes[-1]) for spec in specs] for _ in range(2)]
    save_folder(open_dataset(samples, specs), tmp_path / "data")
    run = tmp_path / "run"
    words = ["run", "--quantized", str(plain), "--debug-data", str(tmp_path / "data"), "--limit", "2", "--output", str(run)]
    assert main([*words, "--no-progress"]) == 0
    delegate = delegates.delegate(delegates.build(tmp_path), mode="edgetpu")
    made = write_bundle(run, compiled=compiled, delegate=delegate, limit=2, debug_model=False, progress=False)
    assert command.main(str(made.path), ["--output", str(tmp_path / "r.jsonl"), "--latency-seconds", "0.01"]) == 0
    model = read_result(run, tmp_path / "r.jsonl", "board").model("compiled")
    assert model is not None
    assert (model.samples, model.failure) == (2, "")
    assert model.largest > 1


def test_two_inputs_and_two_outputs_of_unlike_size(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    generator = np.random.default_rng(0)
    weights = [tf.constant(generator.normal(size=size).astype(np.float32)) for size in ((8, 4), (4, 4))]

    @tf.function
    def model(late: Any, early: Any) -> dict[str, Any]:
        hidden = tf.nn.relu(late @ weights[0])
        return {"large": hidden * 100.0, "small": tf.tanh(early @ weights[1] + hidden)}

    specs = tf.TensorSpec((1, 8), tf.float32, name="late"), tf.TensorSpec((1, 4), tf.float32, name="early")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function(*specs)])
    (tmp_path / "two.tflite").write_bytes(converter.convert())
    data = {name: generator.normal(size=(20, size)).astype(np.float32) for name, size in (("late", 8), ("early", 4))}
    np.savez(tmp_path / "two.npz", **data)
    run, samples = tmp_path / "two", str(tmp_path / "two.npz")
    words = ["run", str(tmp_path / "two.tflite"), "--representative-data", samples, "--debug-data", samples]
    assert main([*words, "--output", str(run), "--no-progress"]) == 0
    made = write_bundle(run, limit=4, progress=False)
    assert made.notes == ()
    assert run_here(made.path, "--output", tmp_path / "r.jsonl") == 0
    board = read_result(run, tmp_path / "r.jsonl", "board")
    quantized, floating = board.model("quantized"), board.model("float")
    assert quantized is not None
    assert floating is not None
    assert 20.0 < quantized.sqnr_db < 60.0
    assert floating.sqnr_db > 100.0


def test_a_model_with_another_order_is_fed_and_read_in_its_own() -> None:
    plain = Entry("float", "debug", "", 0)
    turned = plain._replace(inputs=[2, 0, 1], outputs=[1, 2, 0])
    first, second, third = (np.array(value) for value in (10, 20, 30))
    assert [int(a) for a in plain.fed([first, second, third])] == [10, 20, 30]
    assert [int(a) for a in turned.fed([first, second, third])] == [30, 10, 20]
    assert [int(a) for a in turned.given([first, second, third])] == [20, 30, 10]


# ------------------------------------------------------------------------------------------------------------------ pieces


def test_differences_in_steps_by_hand() -> None:
    integers = np.array([0, 10, 20, -5], np.int8), np.array([0, 11, 17, -5], np.int8)
    assert outputs_difference([integers[0]], [integers[1]], [0.5]) == StepDifference(4, 2, 1, 3.0, 0)
    floats = np.array([0.0, 1.0, np.nan, np.nan], np.float32), np.array([0.0, 2.5, np.nan, 1.0], np.float32)
    assert outputs_difference([floats[0]], [floats[1]], [0.5]) == StepDifference(4, 1, 1, 3.0, 1)
    assert outputs_difference([floats[0]], [floats[1]], [None]) == StepDifference()
    total = StepDifference(4, 2, 1, 3.0, 0).plus(StepDifference(4, 1, 1, 9.0, 1))
    assert total == StepDifference(8, 3, 2, 9.0, 1)
    with pytest.raises(ModelError, match="not the same model"):
        outputs_difference([integers[0]], [floats[0]], [1.0])


def test_median_and_quantile_by_hand() -> None:
    assert summary([4.0, 1.0, 3.0, 2.0]) == Timing(4, 2.5, pytest.approx(3.7), 1.0)  # type: ignore[comparison-overlap]
    assert np.isnan(summary([]).median)


class Clockwork:
    """Runs that take what they are told to."""

    def __init__(self) -> None:
        self.fed: list[int] = []

    def timed_invoke(self, arrays: Sequence[np.ndarray]) -> float:
        self.fed.append(int(arrays[0]))
        return len(self.fed) / 1000.0


def test_the_first_ten_runs_do_not_count_and_samples_take_turns() -> None:
    clockwork = Clockwork()
    samples = [[np.array(0)], [np.array(1)], [np.array(2)]]
    times = [t for part in timed_runs(clockwork, samples, seconds=1e-9) for t in part]
    np.testing.assert_allclose(times, np.arange(11, 21))
    assert clockwork.fed == [index % 3 for index in range(20)]
    with pytest.raises(OptionError, match="0 samples"):
        list(timed_runs(clockwork, [], 1.0))


def arrays() -> Iterator[np.ndarray]:
    yield np.array([[1, -2], [3, 4]], np.int8)
    yield np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    yield np.zeros((0, 3), np.float64)
    yield np.array(7, np.int64)
    yield np.array([True, False])


@pytest.mark.parametrize("array", arrays(), ids=lambda array: array.dtype.name)
def test_arrays_come_back_as_they_were_packed(array: np.ndarray) -> None:
    back = unpacked(json.loads(json.dumps(packed(array))))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_each_line_begins_with_its_own_checksum(result: Path) -> None:
    for line in result.read_bytes().splitlines():
        assert int(line[:8], 16) == zlib.crc32(line[9:])


def test_an_older_run_has_no_boards(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "run.json", tmp_path)
    assert Findings.load(tmp_path).boards == ()
    save_part(tmp_path, "boards", ())
    assert Findings.load(tmp_path).boards == ()
