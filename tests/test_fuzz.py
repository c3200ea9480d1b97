"""Corrupt and hostile models: thousands of mutants, each used in every public way, end in a result or in an error of ours."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

import models
import mutants
import numpy as np
import pytest

from tflite_qdebug import edit, isolation, tf_private, workers
from tflite_qdebug.analyses.evaluation import evaluate
from tflite_qdebug.collect import Backend
from tflite_qdebug.conversion import load_float_model
from tflite_qdebug.edit.flatbuffer import pack
from tflite_qdebug.errors import InterpreterError, ModelError, QDebugError
from tflite_qdebug.model import Model
from tflite_qdebug.workers import Workers

COUNT = 2200
PARTS = len(mutants.MUTATIONS)
SEED = 20
STEP_SECONDS = 4.0
EVERY = ("read", "load", "expose", "weights", "pair", "measure")
TOGETHER = Backend(workers=1, isolate=False)
APART = Backend(workers=1, time_limit=STEP_SECONDS)

pytestmark = pytest.mark.skipif(not isolation.available(), reason="children are forked on Linux alone")


def ways(number: int) -> Sequence[str]:
    """Returns how a mutant is used: evaluating, much like measuring, takes its turn."""
    return (*EVERY, "evaluate") if number % 4 == 0 else EVERY


def used(numbers: Sequence[int], backend: Backend) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in numbers:
        name, data = mutants.mutant(number, SEED)
        found += mutants.use(name, data, backend, ways(number))
    return found


def survived(numbers: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Uses mutants in common processes; those that end one are then used as a caller would, from here."""
    monkeypatch.setattr(workers, "MOST_LOST", len(numbers))
    pool = Workers(lambda: None, 2, True, "using mutants", STEP_SECONDS)
    sound = [-1]  # the first sample must go well
    results = dict(pool.map(lambda worker, number: used([number] if number >= 0 else [], TOGETHER), [*sound, *numbers]))
    lost = [number for position, number in enumerate(numbers, 1) if position not in results]
    assert len(lost) == len(pool.notes)
    monkeypatch.undo()
    return sum(results.values(), Counter()) + used(lost, APART) + Counter({"ended a process": len(lost)})


@pytest.fixture(scope="module", autouse=True)
def _sound_models() -> None:
    """Made here, once, and not in each child; each of them goes well in every way."""
    mutants.float_twins()
    for name, data in mutants.seeds().items():
        found = mutants.use(name, data, APART, ways(0))
        assert found["read: went well"] == found["expose: went well"] == found["measure: went well"] == 1, name
        assert found["evaluate: went well"] == 1, name


@pytest.mark.parametrize("part", range(PARTS), ids=[mutation.__name__ for mutation in mutants.MUTATIONS])
def test_mutants_end_in_a_result_or_an_error_of_ours(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list(range(part, COUNT, PARTS))  # all of one kind of mutation
    found = survived(numbers, monkeypatch)
    assert found["read: went well"] + found["read: refused"] == len(numbers)
    assert found["measure: went well"] + found["measure: refused"] == len(numbers)
    assert found["measure: refused"] > 0


def test_mutants_are_used_from_here_as_a_caller_would() -> None:
    numbers = range(COUNT, COUNT + 60)
    found = used(numbers, APART)
    assert found["measure: went well"] > 0
    assert found["measure: refused"] > 0


def test_the_same_number_gives_the_same_mutant() -> None:
    assert mutants.mutant(7, SEED) == mutants.mutant(7, SEED)
    assert len({mutants.mutant(number, SEED)[1] for number in range(100)}) > 95


def test_the_mutants_do_kill_where_nothing_protects() -> None:
    """A test of these tests: without a child a model such as this one would have ended them."""
    number = next(number for number in range(COUNT) if kills(number))
    _, data = mutants.mutant(number, SEED)
    sample = mutants.sample_for(Model(data))
    with pytest.raises(InterpreterError, match="ended its process"):
        evaluate({"it": data}, [(sample, 0)], backend=APART, progress=False)


def kills(number: int) -> bool:
    """True where evaluating the mutant in a child ends that child."""
    _, data = mutants.mutant(number, SEED)
    try:
        mutants.sample_for(Model(data))
        isolation.call(mutants.steps(data, TOGETHER)["evaluate"], what="evaluating", time_limit=STEP_SECONDS)
    except QDebugError as error:
        return hasattr(error, "ended") and error.ended.how.startswith("signal")
    return False


# ------------------------------------------------------------------------------------------------- hostile, not by chance


def rebuilt(name: str, change: Any) -> bytes:
    unpacked = tf_private.schema().ModelT.InitFromPackedBuf(models.float_tflite(name), 0)
    change(unpacked, unpacked.subgraphs[0])
    return pack(unpacked)


def reads_itself(unpacked: Any, graph: Any) -> None:
    graph.operators[0].inputs = np.array([graph.operators[0].outputs[0], *graph.operators[0].inputs[1:]], np.int32)


def backwards(unpacked: Any, graph: Any) -> None:
    graph.operators = graph.operators[::-1]


def beyond_its_buffer(unpacked: Any, graph: Any) -> None:
    tensor = next(tensor for tensor in graph.tensors if unpacked.buffers[tensor.buffer].data is not None)
    tensor.shape = np.array([2**31 - 1] * 4, np.int32)


def negative(unpacked: Any, graph: Any) -> None:
    graph.tensors[0].shape = np.array([1, -5, 8, 4], np.int32)


def unknown_code(unpacked: Any, graph: Any) -> None:
    graph.operators[0].opcodeIndex = len(unpacked.operatorCodes)


def no_such_tensor(unpacked: Any, graph: Any) -> None:
    graph.operators[1].inputs = np.array([len(graph.tensors)], np.int32)


def no_input(unpacked: Any, graph: Any) -> None:
    graph.inputs = np.array([-1], np.int32)


def signature_elsewhere(unpacked: Any, graph: Any) -> None:
    unpacked.signatureDefs[0].subgraphIndex = 1


def signature_of_nothing(unpacked: Any, graph: Any) -> None:
    unpacked.signatureDefs[0].inputs[0].tensorIndex = len(graph.tensors)


def outside_of_the_file(unpacked: Any, graph: Any) -> None:
    buffer = next(buffer for buffer in unpacked.buffers if buffer.data is not None)
    buffer.data, buffer.offset, buffer.size = None, 100, 10**9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reads_itself, r"operator 0 \(CONV_2D\) of subgraph 0 reads tensor .* before operator 0 \(CONV_2D\) has written it"),
        (backwards, "before operator .* has written it"),
        (beyond_its_buffer, r"has shape \(2147483647, .*\), which takes \d{30,} bytes, and its buffer has"),
        (negative, "expected no negative sizes"),
        (unknown_code, r"operator 0 of subgraph 0 has code \d+, expected one below"),
        (no_such_tensor, r"got a reference to tensor \d+, expected an index below"),
        (no_input, "an input or output of subgraph 0 is no tensor"),
        (signature_elsewhere, "is for subgraph 1, expected one below 1"),
        (signature_of_nothing, r"got a reference to tensor \d+, expected an index below"),
        (outside_of_the_file, r"has 1000000000 bytes at byte 100 of a file of"),
    ],
)
def test_a_broken_structure_is_named(change: Any, said: str) -> None:
    data = rebuilt("chain", change)
    for use in (Model, load_float_model):
        with pytest.raises(ModelError, match=f"the model is broken: .*{said}"):
            use(data)


def test_names_that_are_not_utf_8_are_read() -> None:
    def misname(unpacked: Any, graph: Any) -> None:
        for tensor in graph.tensors:
            tensor.name = b"\xff\xfe" + tensor.name

    model = Model(rebuilt("chain", misname))
    assert all(tensor.name.startswith("\ufffd\ufffd") for tensor in model.main.tensors)
    assert Model(edit.expose(model, list(model.main.producers))).main.outputs


def shared_lists(count: int) -> bytes:
    """Returns a file whose subgraphs are all the same list of tensors, which are all one tensor with a shape of many sizes.

    All of it would be ``count`` cubed sizes, in a file of ``12 * count`` bytes.
    """
    shape = struct.pack("<I", count) + struct.pack("<i", 1) * count
    # Each table stands before what it points to; offsets are relative to where they stand.
    parts: list[tuple[str, bytes]] = []

    def vector(target_distance: Any) -> bytes:
        return struct.pack("<I", count) + b"".join(struct.pack("<I", target_distance(place)) for place in range(count))

    table_size, vtable_size = 8, 8
    tensor_table = vtable_size + table_size
    subgraph_table = vtable_size + table_size
    head = 8 + 16 + 12  # root offset and identifier; vtable and table of the model: subgraphs, and the same list as buffers
    subgraphs_at = head
    subgraph_at = subgraphs_at + 4 + 4 * count + vtable_size
    tensors_at = subgraphs_at + 4 + 4 * count + subgraph_table
    tensor_at = tensors_at + 4 + 4 * count + vtable_size
    shape_at = tensors_at + 4 + 4 * count + tensor_table
    small = struct.pack("<HHHH", 6, 8, 4, 0)  # a vtable with field 0 at byte 4 of its table
    parts.append(("root", struct.pack("<I", 24) + b"TFL3"))
    fields = struct.pack("<HHHHHHHH", 14, 12, 0, 0, 4, 0, 8, 0)
    parts.append(("model", fields + struct.pack("<iII", 16, subgraphs_at - 28, subgraphs_at - 32)))
    parts.append(("subgraphs", vector(lambda place: subgraph_at - (subgraphs_at + 4 + 4 * place))))
    parts.append(("subgraph", small + struct.pack("<iI", 8, tensors_at - (subgraph_at + 4))))
    parts.append(("tensors", vector(lambda place: tensor_at - (tensors_at + 4 + 4 * place))))
    parts.append(("tensor", small + struct.pack("<iI", 8, shape_at - (tensor_at + 4))))
    parts.append(("shape", shape))
    return b"".join(part for _, part in parts)


def test_lists_that_share_their_content_do_not_multiply() -> None:
    schema = tf_private.schema()
    root = schema.Model.GetRootAs(shared_lists(5), 0)
    assert root.SubgraphsLength() == 5
    assert root.Subgraphs(4).TensorsLength() == 5
    assert root.Subgraphs(4).Tensors(3).ShapeAsNumpy().tolist() == [1] * 5
    # A file of 120 kB that stands for 10**12 numbers.
    with pytest.raises(ModelError, match="got lists of more than"):
        isolation.call(Model, shared_lists(10_000), what="reading", time_limit=STEP_SECONDS)


def test_a_loop_without_end_is_ended() -> None:
    """A condition that is always true: the interpreter itself would run for ever."""

    def endless(unpacked: Any, graph: Any) -> None:
        condition = unpacked.subgraphs[next(op.builtinOptions.condSubgraphIndex for op in graph.operators if op.builtinOptions)]
        (compared,) = condition.operators
        code = unpacked.operatorCodes[compared.opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.NOT_EQUAL
        compared.builtinOptions, compared.builtinOptionsType = schema.NotEqualOptionsT(), schema.BuiltinOptions.NotEqualOptions
        counter = condition.tensors[compared.inputs[1]]
        unpacked.buffers[counter.buffer].data = np.frombuffer(np.int32(-1).tobytes(), np.uint8)

    schema = tf_private.schema()
    unpacked = schema.ModelT.InitFromPackedBuf(models.while_loop(), 0)
    endless(unpacked, unpacked.subgraphs[0])
    sample = mutants.sample_for(Model(pack(unpacked)))
    with pytest.raises(InterpreterError, match=r"sample 0, took longer than 1 s, and was ended"):
        evaluate({"it": pack(unpacked)}, [(sample, 0)], backend=Backend(workers=1, time_limit=1), progress=False)


def test_an_absurd_activation_is_refused_and_takes_no_memory_here() -> None:
    def grow(unpacked: Any, graph: Any) -> None:
        for tensor in graph.tensors:
            if unpacked.buffers[tensor.buffer].data is None and tensor.shape is not None and len(tensor.shape) == 4:
                tensor.shape = np.array([1, 2**17, 2**17, 3], np.int32)

    data = rebuilt("chain", grow)
    specs = Model(data).input_specs()
    assert specs[0].shape == (1, 2**17, 2**17, 3)

    def run() -> None:
        TOGETHER.open(data).invoke([np.broadcast_to(np.float32(1), specs[0].shape)])

    with pytest.raises(QDebugError):
        isolation.call(run, what="running", time_limit=STEP_SECONDS)


def test_random_bytes_behind_the_identifier_are_refused() -> None:
    generator = random.Random(5)
    for length in (0, 1, 8, 100, 5000):
        for _ in range(40):
            with pytest.raises(ModelError):
                Model(generator.randbytes(4) + b"TFL3" + generator.randbytes(length))
