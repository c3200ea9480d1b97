"""What a shell completes: asked as argcomplete asks, and typed into a real bash and a real zsh."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("argcomplete")

from conftest import SHARED_MODELS

from tflite_qdebug import Model, Run, example
from tflite_qdebug.cli import completion, main
from tflite_qdebug.cli.main import parser
from tflite_qdebug.errors import ModelError
from tflite_qdebug.outline import outline
from tflite_qdebug.record import Layer
from tflite_qdebug.statistics import ErrorStatistics

PROGRAM = "tflite-qdebug"
NODES = ("net/conv1/Relu;net/conv1/BiasAdd", "net/conv2/it's a 'node'", "net/head:0", "卷积/out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run, models, data and a Python file."""
    place = tmp_path_factory.mktemp("completion")
    layers = [Layer(name, "CONV_2D", i, name, i, i, (1, 4), "int8", 0.1, 0, name) for i, name in enumerate(NODES)]
    (place / "results").mkdir()
    Run("per_layer", layers, ErrorStatistics(len(layers))).save(place / "results" / "run.json")
    shutil.copy(example.MODEL_PATH, place / "digits.tflite")
    np.savez(place / "samples.npz", image=np.zeros((1, 2)))
    (place / "notes.txt").write_text("")
    (place / "with space").mkdir()
    (place / "mydata.py").write_text("def samples():\n    raise SystemExit('it was run')\n\ndef _own(): ...\n")
    with zipfile.ZipFile(place / "net.keras", "w") as archive:
        archive.writestr("config.json", '{"config": {"layers": [{"config": {"name": "stem"}}, {"config": {"name": "head"}}]}}')
    return place


def answered(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """Returns what a shell would be answered for a line with the cursor at its end."""
    program = f"import sys; sys.argv[0] = {PROGRAM!r}; from tflite_qdebug.cli import main; main()"
    answers = folder / "answers"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": "\013",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    content = answers.read_bytes().decode()
    return content.split("\013") if content else []


def test_verbs_options_and_choices(folder: Path) -> None:
    verbs = answered("tflite-qdebug ", folder)
    assert {"run", "runall", "sensitivity", "fix", "edgetpu", "completion"} <= set(verbs)
    assert answered("tflite-qdebug sensi", folder) == ["sensitivity", "sensitivity-analysis"]
    assert {"check", "prepare", "compare"} <= set(answered("tflite-qdebug edgetpu ", folder))
    assert answered("tflite-qdebug run --whole", folder) == ["--whole-model "]
    assert set(answered("tflite-qdebug run --kernels ", folder)) == {"auto", "builtin", "reference"}
    assert answered("tflite-qdebug convert --kind full", folder) == ["full_integer "]
    assert "calibrated" in answered("tflite-qdebug convert --kind ", folder)
    assert "calibrated" not in answered("tflite-qdebug run --kind ", folder)


def test_nodes_of_the_run_that_stands_before(folder: Path) -> None:
    quoted = answered("tflite-qdebug channels results --node ", folder)
    # As a shell reads them, they are the names.
    assert [shlex.split(name)[0] for name in quoted] == list(NODES)
    assert answered("tflite-qdebug channels results --node net/conv1", folder) == ["net/conv1/Relu\\;net/conv1/BiasAdd "]
    assert answered("tflite-qdebug channels elsewhere --node ", folder) == []


def test_nodes_of_the_model_that_stands_before(folder: Path) -> None:
    names = Model(example.MODEL_PATH).node_names()
    for line in (
        "run digits.tflite --denylisted-node ",
        "run example --denylisted-node ",
        "run --float digits.tflite --denylisted-node ",
    ):
        assert [shlex.split(name)[0] for name in answered(f"tflite-qdebug {line}", folder)] == names
    tensors = answered("tflite-qdebug extract digits.tflite --from ", folder)
    graph = Model(example.MODEL_PATH).main
    assert shlex.split(tensors[0])[0] == graph.tensors[graph.inputs[0]].name
    assert answered("tflite-qdebug qat net.keras --layer ", folder) == ["stem", "head"]


def test_files_by_what_is_wanted(folder: Path) -> None:
    assert set(answered("tflite-qdebug report ", folder)) == {"results/", "with\\ space/"}
    assert set(answered("tflite-qdebug evaluate int8=di", folder)) == {"digits.tflite "}
    data = answered("tflite-qdebug run digits.tflite --debug-data ", folder)
    assert {"example", "samples.npz", "results/", "mydata:", "images:", "tfds:"} <= set(data)
    assert "notes.txt" not in data
    assert answered("tflite-qdebug run digits.tflite --debug-data mydata:", folder) == ["samples "]
    assert answered("tflite-qdebug run digits.tflite --metric top", folder) == ["top_1", "top_5"]
    assert answered("tflite-qdebug compare-kernels ~/", folder) is not None


def test_an_answer_needs_no_tensorflow_and_comes_at_once(folder: Path) -> None:
    code = (
        "import sys\n"
        "from tflite_qdebug.cli import completion, main\n"
        "from tflite_qdebug.cli.main import parser\n"
        "top = parser(); completion.attach(top)\n"
        "action = [a for a in top._actions if a.dest == 'verb'][0].choices['run']._option_string_actions['--denylisted-node']\n"
        "import argparse\n"
        "print(len(action.completer(parsed_args=argparse.Namespace(model='example'))))\n"
        "print([n for n in ('tensorflow', 'pandas', 'matplotlib', 'altair', 'numba', 'ai_edge_litert') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == [str(len(Model(example.MODEL_PATH).node_names())), "[]"]
    times = []
    for _ in range(3):
        before = os.times()
        answered("tflite-qdebug sensitivity results --node ", folder)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) < 0.3  # of processor time, so that busy neighbours do not count


def test_every_argument_with_a_value_has_a_completer_or_is_a_number() -> None:
    values = {"N", "X", "S", "DB", "STEPS", "SECONDS", "KEY=VALUE", "[OUTPUT:]DB", "[OUTPUT:]X", "X[%]", "BOARD", "KIND"}
    seen = []
    for action in arguments_of(parser()):
        name = action.option_strings[0] if action.option_strings else action.dest
        seen.append(name)
        known = name in completion._BY_NAME or action.choices or action.metavar in values
        assert known or action.type in (int, float), f"what {name} takes is not completed"
    assert len(seen) > 100
    assert set(completion._BY_NAME) <= set(seen)


def arguments_of(one: argparse.ArgumentParser) -> Iterator[Any]:
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from arguments_of(child)
        elif action.nargs != 0:
            yield action


def test_completion_is_a_verb_that_answers_before_anything_heavy_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in completion.SHELLS:
        assert main(["completion", shell]) == 0
        assert PROGRAM in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert ended.value.code == 2


# -- names without TensorFlow ----------------------------------------------------------------------------------------------


def test_an_outline_has_the_names_of_the_whole_structure(models: list[Path]) -> None:
    for path in models:
        model, found = Model(path), outline(path)
        assert list(found.nodes) == model.node_names()
        tensors = model.main.tensors
        for ports, indices in ((found.inputs, model.main.inputs), (found.outputs, model.main.outputs)):
            expected = [(tensors[i].name, tensors[i].dtype.name, tensors[i].shape) for i in indices]
            assert [tuple(port) for port in ports] == expected
        assert list(found.signatures) == [signature.key for signature in model.signatures]
        assert outline(path.read_bytes()) == found


@pytest.fixture
def models() -> list[Path]:
    return [example.MODEL_PATH, *sorted(SHARED_MODELS.glob("**/*.tflite"))]


def test_an_outline_of_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model"):
        outline(tmp_path / "missing.tflite")
    with pytest.raises(ModelError, match="TFL3"):
        outline(b"something else altogether")
    whole = example.MODEL_PATH.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole[: int(generator.integers(8, 4000))])
        for place in generator.integers(8, len(broken) + 1, 3):
            broken[place - 1] = int(generator.integers(0, 256))
        with contextlib.suppress(ModelError):
            outline(bytes(broken))


# -- real shells -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["bash", "zsh"], scope="module")
def shell(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pexpect = pytest.importorskip("pexpect")
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    binary = tmp_path_factory.mktemp("bin")
    program = binary / PROGRAM
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom tflite_qdebug.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    plain = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[name]
    environment = {
        **os.environ,
        "PATH": f"{binary}:{os.environ['PATH']}",
        "TERM": "dumb",
        "HOME": str(binary),
        "LC_ALL": "C.UTF-8",
    }
    child = pexpect.spawn(name, plain, cwd=str(folder), env=environment, encoding="utf-8", timeout=60, dimensions=(50, 400))
    child.sendline(
        "PS1='READY> '; PROMPT='READY> '; unset zle_bracketed_paste; bind 'set enable-bracketed-paste off' 2>/dev/null"
    )
    child.expect("READY> ")
    child.sendline(f'eval "$(tflite-qdebug completion {name})"; echo eval-$?-done')
    child.expect("eval-0-done")
    child.expect("READY> ")
    # What it is given, printed: the words as the shell understands them.
    child.sendline("print_words() { printf 'WORDS'; printf '%s\\037' \"$@\"; printf 'END\\n'; }")
    child.expect("READY> ")
    yield child
    child.close(force=True)


def typed(shell: Any, line: str) -> list[str]:
    """Types a line and Tab, lets another command have the words that then stand there, and returns them."""
    shell.send(line + "\t")
    shell.send("\x01print_words \x05\n")
    shell.expect("WORDS(.*)END")
    words = shell.match.group(1)
    shell.expect("READY> ")
    return [word for word in words.split("\x1f") if word]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("tflite-qdebug distribu", "distribution"),
        ("tflite-qdebug run --whole", "--whole-model"),
        ("tflite-qdebug run dig", "digits.tflite"),
        ("tflite-qdebug channels results --node net/conv1", NODES[0]),
        ("tflite-qdebug channels results --node net/conv2", NODES[1]),
        ("tflite-qdebug channels results --node net/he", NODES[2]),
        ("tflite-qdebug channels results --node 卷", NODES[3]),
        ("tflite-qdebug evaluate int8=dig", "int8=digits.tflite"),
        ("tflite-qdebug report with", "with space/"),
        ("tflite-qdebug run example --debug-data mydata:sam", "mydata:samples"),
    ],
)
def test_a_real_shell_completes_to_the_whole_word(shell: Any, line: str, word: str) -> None:
    assert typed(shell, line)[-1] == word
