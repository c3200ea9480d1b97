"""The graph of a model as reports show it: names, neighbours, and multiplications counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import models
import pytest
import tensorflow as tf
from debugger_models import converter_of, float_bytes, spec, weights

from tflite_qdebug.analyses.graph import describe_graph, graph_key
from tflite_qdebug.analyses.pairs import Pair, open_pair, pair_error
from tflite_qdebug.collect import Backend
from tflite_qdebug.findings import Findings, GraphNode, save_part
from tflite_qdebug.model import Model
from tflite_qdebug.record import Run

BACKEND = Backend(kernels="builtin", workers=1, isolate=False)


def pair_of(name: str, kind: str = "int8", **options: Any) -> Pair:
    return open_pair(models.float_model(name), models.calibrated(name).quantize(kind, **options).data)


def run_of(pair: Pair, name: str) -> Run:
    assert pair.floating is not None
    data = models.samples(name, 2, seed=1)
    return pair_error(pair.floating.data, pair.quantized, data, parts=0, backend=BACKEND, progress=False)


def by_type(nodes: tuple[GraphNode, ...], op_name: str) -> list[GraphNode]:
    return [node for node in nodes if node.op_name == op_name]


# -- names -----------------------------------------------------------------------------------------------------------------


NAMED = [("mixed", "int8"), ("two_by_two", "int8"), ("attention", "int8"), ("with_cosine", "int8"), ("lstm", "int8"),
         ("scalars", "int8"), ("weighty", "dynamic_range"), ("long_lstm", "dynamic_range"), ("mixed", "int16x8"),
         ("weighty", "float16")]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), NAMED)
def test_nodes_are_called_as_the_layers_of_a_run(name: str, kind: str) -> None:
    pair = pair_of(name, kind)
    run = run_of(pair, name)
    nodes = describe_graph(pair)
    known = {node.operator: node for node in nodes}
    rows = [layer for layer in run.layers if layer.op_name != "QUANTIZE"]
    assert rows
    for layer in rows:
        assert layer.node in known[layer.operator].nodes
        assert layer.op_name == known[layer.operator].op_name
    found = dict(Findings(run, nodes).operators())
    assert [run.layers[position] for position in found if run.layers[position].op_name != "QUANTIZE"] == rows


def test_a_run_that_calls_a_value_otherwise_is_followed() -> None:
    pair = pair_of("chain")
    run = run_of(pair, "chain")
    place = next(i for i, layer in enumerate(run.layers) if layer.op_name == "FULLY_CONNECTED")
    run.layers[place] = dataclasses.replace(run.layers[place], node="another name")
    (dense,) = by_type(describe_graph(pair, run=run), "FULLY_CONNECTED")
    assert dense.nodes == ("another name",)


def test_without_a_float_model_tensors_keep_their_own_names() -> None:
    quantized = models.calibrated("chain").quantize("int8")
    nodes = describe_graph(open_pair(None, quantized.data))
    main = Model(quantized.data).main
    for node in nodes:
        assert node.nodes == tuple(main.tensors[index].name for index in main.operators[node.operator].outputs)
        assert node.float_operators == ()


# -- structure -------------------------------------------------------------------------------------------------------------


def test_bridges_are_seen_through() -> None:
    pair = pair_of("with_cosine")  # COS stays float, between DEQUANTIZE and QUANTIZE
    nodes = describe_graph(pair)
    assert [node.op_name for node in nodes] == ["FULLY_CONNECTED", "COS", "FULLY_CONNECTED"]
    first, cosine, last = nodes
    assert (first.inputs, first.outputs) == ((), (cosine.operator,))
    assert (cosine.inputs, cosine.outputs) == ((first.operator,), (last.operator,))
    assert (last.inputs, last.outputs) == ((cosine.operator,), ())
    assert [node.is_float for node in nodes] == [False, True, False]
    names = [operator.name for operator in pair.quantized.main.operators]
    assert [names[node.operator] for node in nodes] == [node.op_name for node in nodes]
    assert "DEQUANTIZE" in names


def test_an_operator_that_is_read_twice_names_both_readers_once() -> None:
    nodes = describe_graph(pair_of("mixed"))
    (first,), (depthwise,), (added,) = (by_type(nodes, kind) for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD"))
    assert first.outputs == (depthwise.operator, added.operator)
    assert added.inputs == (first.operator, depthwise.operator)
    (split,) = by_type(nodes, "SPLIT")
    assert len(split.nodes) == 2
    assert len(set(split.nodes)) == 2
    findings_neighbours = Findings(None, nodes).neighbours(added.nodes[0])  # type: ignore[arg-type]
    assert [[node.op_name for node in side] for side in findings_neighbours] == [["CONV_2D", "DEPTHWISE_CONV_2D"], ["SPLIT"]]


def test_denylisted_operators_are_float_and_smaller_weights_are_seen() -> None:
    whole = by_type(describe_graph(pair_of("chain")), "CONV_2D")
    kept = by_type(describe_graph(pair_of("chain", denylisted_ops=("CONV_2D",))), "CONV_2D")
    assert [node.is_float for node in whole] == [False, False]
    assert [node.is_float for node in kept] == [True, True]
    # 6 filters of 3x3x3, then 4 of 3x3x6; int8 weights and int32 biases, or float32 for all.
    assert [node.weight_bytes for node in whole] == [6 * 27 + 4 * 6, 4 * 54 + 4 * 4]
    assert [node.weight_bytes for node in kept] == [4 * (6 * 27 + 6), 4 * (4 * 54 + 4)]


def test_weights_alone_in_integers_are_not_called_float() -> None:
    (product,) = by_type(describe_graph(pair_of("weighty", "dynamic_range")), "FULLY_CONNECTED")[:1]
    assert not product.is_float


def test_the_float_operators_of_each_node_do_the_same() -> None:
    pair = pair_of("mixed")
    assert pair.floating is not None
    operators = pair.floating.main.operators
    for node in describe_graph(pair):
        assert [operators[index].name for index in node.float_operators] == [node.op_name]


def test_options_in_a_few_words() -> None:
    nodes = describe_graph(pair_of("mixed"))
    assert by_type(nodes, "CONV_2D")[0].options == {
        "kernel": "3x3", "stride": "1", "padding": "SAME", "activation": "RELU",
    }  # fmt: skip
    assert by_type(nodes, "DEPTHWISE_CONV_2D")[0].options == {"kernel": "3x3", "stride": "1", "padding": "SAME"}
    assert by_type(nodes, "CONCATENATION")[0].options in ({"axis": "3"}, {"axis": "-1"})  # one of them is in the file
    assert by_type(nodes, "SPLIT")[0].options == {"num splits": "2"}
    assert by_type(nodes, "SOFTMAX")[0].options == {}


def test_an_uneven_window_says_height_and_width() -> None:
    def pooled(x: Any) -> Any:
        return tf.nn.max_pool2d(tf.nn.conv2d(x, weights(3, 3, 2, 4), (1, 1), "VALID", dilations=(1, 2)), (2, 1), (2, 1), "SAME")

    model = Model(float_bytes(converter_of(pooled, [spec(1, 9, 9, 2)])))
    nodes = describe_graph(Pair(None, model, "none"))
    assert by_type(nodes, "MAX_POOL_2D")[0].options == {"kernel": "2x1", "stride": "2x1", "padding": "SAME"}
    assert by_type(nodes, "CONV_2D")[0].options["dilation"] == "1x2"


def test_the_graph_is_called_as_model_explorer_calls_it() -> None:
    model = Model(models.float_tflite("chain"))
    assert graph_key(model) == "main"
    nodes = describe_graph(pair_of("chain"))
    assert {(node.graph_key, node.float_graph_key) for node in nodes} == {("main", "main")}


# -- multiplications -------------------------------------------------------------------------------------------------------


def macs(name: str, kind: str = "int8") -> list[tuple[str, int]]:
    return [(node.op_name, node.macs) for node in describe_graph(pair_of(name, kind)) if node.macs]


def test_convolutions_and_dense_layers_by_hand() -> None:
    # 8x8 places with 8 filters of 3x3x4; 8x8 places with 8 filters of 3x3; 8 values to 5.
    assert macs("mixed") == [("CONV_2D", 64 * 8 * 36), ("DEPTHWISE_CONV_2D", 64 * 8 * 9), ("FULLY_CONNECTED", 8 * 5)]
    # 6x6 without a border leaves 4x4, then 2x2.
    assert macs("chain") == [("CONV_2D", 16 * 6 * 27), ("CONV_2D", 4 * 4 * 54), ("FULLY_CONNECTED", 16 * 3)]


def test_products_of_matrices_by_hand() -> None:
    # Six tokens of eight values, twice through 8x8 weights, then each token with each.
    found = macs("attention")
    assert sorted(found) == [("BATCH_MATMUL", 6 * 6 * 8), ("FULLY_CONNECTED", 6 * 64), ("FULLY_CONNECTED", 6 * 64)]


def test_a_recurrent_layer_by_hand() -> None:
    # Five steps, four gates, each 6 inputs and 4 values of state to 4 units; then 4 values to 3.
    assert macs("lstm") == [("UNIDIRECTIONAL_SEQUENCE_LSTM", 5 * 4 * (6 * 4 + 4 * 4)), ("FULLY_CONNECTED", 4 * 3)]


def test_transposed_convolution_and_groups_by_hand() -> None:
    def both(x: Any) -> Any:
        wide = tf.nn.conv2d_transpose(x, weights(2, 2, 5, 4), (1, 8, 8, 5), 2, "SAME")
        return wide, tf.nn.conv2d(x, weights(3, 3, 2, 6), 1, "VALID")  # two groups of two channels

    model = Model(float_bytes(converter_of(both, [spec(1, 4, 4, 4)])))
    found = {node.op_name: node.macs for node in describe_graph(Pair(None, model, "none")) if node.macs}
    # Each of 4x4x4 values goes to 2x2 places of 5 channels; each of 2x2 places of 6 filters reads 3x3x2.
    assert found == {"TRANSPOSE_CONV": 64 * 2 * 2 * 5, "CONV_2D": 4 * 6 * 18}


def test_a_batch_of_any_size_counts_as_one() -> None:
    assert macs("dynamic_batch") == [("FULLY_CONNECTED", 10 * 8), ("FULLY_CONNECTED", 8 * 4)]


def test_the_graph_survives_saving(tmp_path: Any) -> None:
    pair = pair_of("mixed")
    run = run_of(pair, "mixed")
    nodes = describe_graph(pair)
    run.save(tmp_path / "run.json")
    save_part(tmp_path, "graph", nodes)
    assert Findings.load(tmp_path).graph == nodes


def test_a_real_model(shared_models: Any) -> None:
    model = Model(shared_models / "mobilenet_v1_0.25" / "mobilenet_v1_0.25_224_float.tflite")
    nodes = describe_graph(Pair(None, model, "none"))
    millions = sum(node.macs for node in nodes) / 1e6
    assert 39 < millions < 42.5  # 41 million, says the paper's table of widths
