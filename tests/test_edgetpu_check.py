"""``edgetpu check``, ``convert --edgetpu``, and what a node left float costs on the device, wherever it is suggested."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from edgetpu_models import Made, image
from test_edgetpu_partition import PRINTED, branched

from tflite_qdebug.cli import main
from tflite_qdebug.edgetpu.prices import float_price, float_prices, operators_called, priced_advice, priced_diagnosis
from tflite_qdebug.errors import OptionError
from tflite_qdebug.findings import Advice, Diagnosis, Findings, GraphNode, Suspect
from tflite_qdebug.model import Model

QUIET = "--no-progress"


def chain(count: int = 4) -> Made:
    """Convolutions c0, c1, ..., each of 4 * 4 * 8 * 8 multiplications."""
    made = image()
    source = "image"
    for number in range(count):
        source = made.convolution(source, f"c{number}")
    return made


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "branched.tflite").write_bytes(branched().model("last", "more").data)
    return tmp_path / "branched.tflite"


# ----------------------------------------------------------------------------------------------------------------- prices


def test_price_of_a_node_in_the_middle() -> None:
    model = chain().model("c3")
    price = float_price(model, ["c1"])
    # c0 stays; c1 is float, c2 and c3 lie behind it.
    assert (price.total, price.mapped, price.left, price.lost) == (4, 4, 1, 3)
    assert (price.operators, price.kept, price.cut_off) == ((1,), (1,), (2, 3))
    assert (price.multiplications, price.multiplications_left) == (4 * 1024, 1024)
    assert price.lost_share == 0.75
    assert (price.crossings, price.crossings_left) == (2, 2)
    assert price.words == (
        "3 of 4 operators leave the Edge TPU (75.0 % of its multiplications), 2 of them because they lie behind; 1 of 4 stay"
    )


def test_price_of_the_first_and_of_the_last_node() -> None:
    model = chain().model("c3")
    first, last = float_prices(model, [["c0"], ["c3"]])
    # Operators before the piece may run on the CPU, so the first costs itself alone.
    assert (first.left, first.cut_off) == (3, ())
    assert (last.left, last.cut_off) == (3, ())


def test_price_of_several_nodes_together_and_of_each() -> None:
    model = chain().model("c3")
    assert float_price(model, ["c0", "c2"]).left == 1  # c1 alone between the two
    assert [price.left for price in float_prices(model)] == [3, 1, 2, 3]
    assert float_price(model, [2]) == float_price(model, ["c2"])


def test_price_where_nothing_is_lost() -> None:
    price = float_price(branched().model("last", "more"), ["absolute"])
    assert (price.lost, price.kept) == (0, ())
    assert price.words.startswith("nothing leaves the Edge TPU: 3 of 5")
    unmapped = image()
    unmapped.unary("ABS", "image", "absolute", version=2)
    words = float_price(unmapped.model("absolute"), ["absolute"]).words
    assert words.startswith("nothing of the model maps to the Edge TPU")


def test_price_where_others_come_instead() -> None:
    price = float_price(branched().model("last", "more"), ["first"])
    # With its ancestor float, ABS has nothing mapped before it, so that what lies behind it maps too.
    assert (price.kept, price.cut_off, price.gained, price.left) == ((0,), (), (2,), 3)
    assert "1 come there instead" in price.words


def test_price_of_a_refused_model_says_so() -> None:
    made = chain(2)
    made.unary("QUANTIZE", "c1", "out", version=3)
    price = float_price(made.model("out"), ["c1"])
    assert price.words.startswith("the compiler refuses the model as it is (Didn't find op for builtin opcode 'QUANTIZE'")
    assert price.left == 1


def test_price_of_what_there_is_not() -> None:
    model = chain().model("c3")
    with pytest.raises(OptionError, match=r"got node 'c9'.*Did you mean 'c"):
        float_price(model, ["c9"])
    with pytest.raises(OptionError, match="got operator 7, expected 0 to 3"):
        float_price(model, [7])


def test_nodes_of_a_run_are_found_by_its_graph() -> None:
    from findings_by_hand import findings

    model = chain().model("c3")
    found = findings()
    found.graph = (GraphNode(2, "CONV_2D", ("float/name",), (), ()),)
    assert operators_called(found, model, ["float/name", "c1", "float…"]) == [2, "c1", 2]


def test_advice_and_diagnosis_tell_the_price() -> None:
    from findings_by_hand import findings

    model = chain().model("c3")
    found = Findings(findings().run)
    others = Advice("Round the weights.", "fix", how="guessed")
    first, second, third = priced_advice(
        [Advice("Leave 1 node float: c1.", "convert", how="measured", nodes=("c1",)), others,
         Advice("Leave 1 node float: gone.", "convert", nodes=("gone",))], found, model)  # fmt: skip
    assert first.how.startswith("measured; left float, 3 of 4 operators leave the Edge TPU")
    assert second == others
    assert third.how.startswith("what it costs on the Edge TPU is not known")
    suspects = (
        Suspect("c1", "CONV_2D", 1, "cause", "words", ("evidence",), "leave it float", "denylisted_nodes=['c1']"),
        Suspect("c2", "CONV_2D", 2, "cause", "words", ("evidence",), "another range", "calibrated = ..."),
    )
    priced = priced_diagnosis(Diagnosis("verdict", False, suspects), found, model).suspects
    assert [len(suspect.evidence) for suspect in priced] == [2, 1]
    assert "3 of 4 operators leave the Edge TPU" in priced[0].evidence[1]


# --------------------------------------------------------------------------------------------------------- edgetpu check


def test_check_says_what_maps_and_what_cuts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edgetpu", "check", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 5 operators map to the Edge TPU, in 1 piece; 3 tensors (384 B) pass" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["CONV_2D", "3", "Mapped", "to", "Edge", "TPU"] in lines
    assert ["CONV_2D", "1", "More", "than", "one", "subgraph", "is", "not", "supported"] in lines
    # Of the unmapped ones the cause alone is listed, with the one that lies behind it counted.
    (cause,) = [line for line in lines if line[:3] == ["1", "ABS", "absolute"]]
    assert cause[3] == "1"
    assert not [line for line in lines if line[:2] == ["2", "CONV_2D"]]
    assert main(["edgetpu", "check", str(file), "--all"]) == 0
    assert "it lies behind operator 1 (ABS)" in capsys.readouterr().out


def test_check_as_json_and_csv(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = file.parent / "table.csv"
    words = ["--leave-float", "beside", "--prices", "--csv", str(table), "--json"]
    assert main(["edgetpu", "check", str(file), *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["mapped"], result["total"], result["crossings"], result["segments"]) == (3, 5, 3, 1)
    assert [each["mapped"] for each in result["operators"]] == [True, False, False, True, True]
    assert (result["leave_float"]["lost"], result["leave_float"]["cut_off"]) == (2, [4])
    assert [price["lost"] for price in result["prices"]] == [1, 0, 0, 2, 1]
    rows = read(table)
    assert [row["node"] for row in rows] == ["first", "absolute", "last", "beside", "more"]
    assert [row["runs_on"] for row in rows] == ["edgetpu", "cpu", "cpu", "edgetpu", "edgetpu"]
    assert [row["runs_on_with_float"] for row in rows] == ["edgetpu", "cpu", "cpu", "cpu", "cpu"]
    assert [row["behind"] for row in rows] == ["", "", "1", "", ""]
    assert [row["float_price_operators"] for row in rows] == ["1", "0", "0", "2", "1"]


def test_check_beside_a_log(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = file.parent / "branched_edgetpu.log"
    log.write_text(PRINTED)
    assert main(["edgetpu", "check", str(file), "--log", str(log)]) == 0
    printed = capsys.readouterr().out
    assert "prediction and the compiler's log agree on all 5 operators" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["CONV_2D", "4", "3", "3"] in lines
    assert ["ABS", "1", "0", "0"] in lines
    assert "log: parameters of 6.32 MB on the device, 0 B sent for each sample (predicted: 288 B in all)" in printed
    # With the pieces behind mapped too, one more convolution is predicted than the log has.
    assert main(["edgetpu", "check", str(file), "--log", str(log), "--multiple-subgraphs"]) == 12
    told = capsys.readouterr()
    assert ["CONV_2D", "4", "4", "3", "differs"] in [line.split() for line in told.out.splitlines()]
    assert "differs: CONV_2D: predicted 4 of 4 on the Edge TPU, the compiler mapped 3" in told.out
    assert "prediction and compiler differ in 2 points; what the compiler did counts" in told.err


def test_check_beside_a_compiled_model(shared_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = shared_models / "coral" / "deeplabv3_mnv2_dm05_pascal_quant"
    table = tmp_path / "table.csv"
    assert main(["edgetpu", "check", f"{place}.tflite", "--compiled", f"{place}_edgetpu.tflite", "--csv", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "prediction and the compiled model agree on all 72 operators" in printed
    assert "compiled: 64 of 72 operators on the Edge TPU, in 1 pieces; 3 tensors pass for one sample (predicted: 3)" in printed
    rows = read(table)
    assert [row["compiler"] for row in rows] == [row["runs_on"] for row in rows]
    assert [row["compiler"] for row in rows].count("edgetpu") == 64


def test_check_counts_what_runs_on_the_cpu(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edgetpu", "check", str(file), "--most-on-cpu", "2"]) == 0
    assert main(["edgetpu", "check", str(file), "--most-on-cpu", "1"]) == 12
    assert "2 of 5 operators run on the CPU, more than --most-on-cpu 1" in capsys.readouterr().err


def test_check_of_a_model_that_the_compiler_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = chain(2)
    made.unary("QUANTIZE", "c1", "out", version=3)
    (tmp_path / "new.tflite").write_bytes(made.model("out").data)
    assert main(["edgetpu", "check", str(tmp_path / "new.tflite")]) == 12
    told = capsys.readouterr()
    assert "would refuse the model: Didn't find op for builtin opcode 'QUANTIZE' version '3'" in told.err
    assert "tflite-qdebug convert FLOAT_MODEL --edgetpu" in told.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--leave-float", "besides"], 2, "Did you mean 'beside'"),
        (["--runtime-version", "9"], 2, "got runtime version 9, expected 10 to 14"),
        (["--log", "absent.log"], 3, "cannot read the compiler log absent.log"),
        (["--compiled", "absent.tflite"], 3, "cannot read the model absent.tflite"),
        (["--csv", "/dev/null/table.csv"], 8, "cannot write"),
    ],
)
def test_wrong_words(words: list[str], code: int, message: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edgetpu", "check", str(file), *words]) == code
    assert message in capsys.readouterr().err


def test_help_names_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["edgetpu", "check", "--help"])
    assert "12 not as asked on the Edge TPU" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- with TensorFlow


@pytest.fixture(scope="module")
def made_for_it(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``convert example --edgetpu`` and a ``run`` of it leave behind."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("edgetpu")
    assert main(["convert", "example", "--edgetpu", "--limit", "20", "--output", str(folder), QUIET]) == 0
    words = ["--float", str(folder / "example_for_edgetpu_float.tflite"), "--debug-data", "example", "--limit", "10"]
    words += ["--quantized", str(folder / "example_for_edgetpu.tflite"), "--output", str(folder / "run"), "--edgetpu", QUIET]
    assert main(["run", *words, "--workers", "1", "--no-isolation"]) == 0
    return folder


def test_convert_makes_the_example_fit(made_for_it: Path) -> None:
    repeat = json.loads((made_for_it / "repeat.json").read_text())
    assert repeat["changes"] == ["7 HARD_SWISH became additions and products"]
    assert repeat["partition"]["mapped"] == repeat["partition"]["total"] == 59
    assert repeat["bytes"] == (made_for_it / "example_for_edgetpu.tflite").stat().st_size
    assert main(["edgetpu", "check", str(made_for_it / "example_for_edgetpu.tflite"), "--most-on-cpu", "0"]) == 0


@pytest.mark.parametrize(
    "words", [["--kind", "int8"], ["--denylisted-node", "x"], ["--denylisted-op", "MEAN"], ["--input-type", "int16"]]
)
def test_convert_refuses_what_cuts_the_graph(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorflow")
    assert main(["convert", "example", "--edgetpu", *words, "--limit", "2", "--output", str(tmp_path), QUIET]) == 2
    assert "got" in capsys.readouterr().err


def test_advice_of_a_run_tells_the_price(made_for_it: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = Findings.load(made_for_it / "run").advice
    (leave,) = [each for each in advice if each.nodes]
    model = Model(made_for_it / "example_for_edgetpu.tflite")
    price = float_price(model, leave.nodes)
    assert leave.how.endswith(f"left float, {price.words}")
    assert price.lost > len(leave.nodes)
    # A saved run stands for its quantized model, and is asked for its own names.
    words = [word for node in leave.nodes for word in ("--leave-float", node)]
    assert main(["edgetpu", "check", str(made_for_it / "run"), *words]) == 0
    assert price.words in capsys.readouterr().out


def test_sensitivity_and_steps_tell_the_price(made_for_it: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(made_for_it / "run", tmp_path / "run")
    quiet = [QUIET, "--workers", "1", "--no-isolation", "--limit", "4", "--edgetpu", "--json"]
    model = Model(made_for_it / "example_for_edgetpu.tflite")
    node = model.main.tensors[model.main.operators[5].outputs[0]].name
    other = model.main.tensors[model.main.operators[30].outputs[0]].name
    assert main(["sensitivity", str(folder), "--node", node, "--node", other, *quiet]) == 0
    result = json.loads(capsys.readouterr().out)["node"]
    assert {name: entry["edgetpu"]["lost"] for name, entry in result.items()} == {
        name: float_price(model, [name]).lost for name in (node, other)
    }
    rows = read(folder / "node_sensitivity" / "node.some.csv")
    assert {row["node"]: int(row["edgetpu_operators_lost"]) for row in rows} == {
        name: entry["edgetpu"]["lost"] for name, entry in result.items()
    }
    assert main(["sensitivity-analysis", str(folder), "--node", node, "--node", other, "--most", "2", *quiet]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["lost"] for entry in result["edgetpu"]] == [
        float_price(model, result["nodes"][:step]).lost for step in range(len(result["nodes"]) + 1)
    ]


def test_diagnosis_and_report_tell_the_price(made_for_it: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(made_for_it / "run", tmp_path / "run"))
    assert main(["diagnose", str(folder), QUIET, "--workers", "1", "--no-isolation", "--limit", "10", "--edgetpu"]) == 0
    capsys.readouterr()
    kept = Findings.load(folder)
    assert kept.diagnosis is not None
    for suspect in kept.diagnosis.suspects:
        told = [text for text in suspect.evidence if "Edge TPU" in text]
        assert len(told) == suspect.line.startswith("denylisted_nodes=")
    assert main(["report", str(folder), "--edgetpu"]) == 0
    assert "leave the Edge TPU" in (folder / "report.html").read_text()
