"""Multiply-accumulates against torch's own counter, bytes against arithmetic."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from exporters.cost import cost, open_dimensions
from exporters.graph import build
from tests.made import tiny_config
from ttmodels import contraction
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan


def one_op(op_type: str, *shapes: tuple[int, ...], num_outputs: int = 1, **attributes: object) -> onnx.ModelProto:
    """A graph of one op: the first shape is its input, the others are weights (an empty shape: left out)."""
    names = ["x", *(f"w{i}" if shape else "" for i, shape in enumerate(shapes[1:]))]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(num_outputs)], **attributes)
    return model([node], {"x": shapes[0]}, ["y0"], {n: s for n, s in zip(names[1:], shapes[1:], strict=True) if n})


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple], outputs: list[str], weights: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [helper.make_tensor(n, TensorProto.FLOAT, s, torch.zeros(s).flatten().tolist()) for n, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def macs_in_torch(call: object, *shapes: tuple[int, ...], **options: object) -> int:
    with FlopCounterMode(display=False) as counter:
        call(*(torch.zeros(shape) for shape in shapes), **options)  # type: ignore[operator]
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (one_op("MatMul", (5, 7, 3), (3, 4)), macs_in_torch(torch.matmul, (5, 7, 3), (3, 4))),
        (one_op("MatMul", (5, 7, 3), (5, 3, 4)), macs_in_torch(torch.matmul, (5, 7, 3), (5, 3, 4))),
        (one_op("Gemm", (3, 7), (4, 3), transA=1, transB=1), macs_in_torch(torch.matmul, (7, 3), (3, 4))),
        (
            one_op("Conv", (2, 6, 9, 8), (4, 3, 3, 2), group=2, strides=[2, 1]),
            macs_in_torch(functional.conv2d, (2, 6, 9, 8), (4, 3, 3, 2), groups=2, stride=(2, 1)),
        ),
        (
            one_op("ConvTranspose", (2, 6, 9, 8), (6, 3, 3, 2)),
            macs_in_torch(functional.conv_transpose2d, (2, 6, 9, 8), (6, 3, 3, 2)),
        ),
    ],
    ids=lambda value: value.graph.node[0].op_type if isinstance(value, onnx.ModelProto) else None,
)
def test_products_and_convolutions(made: onnx.ModelProto, want: int) -> None:
    (op,) = made.graph.node
    assert cost(made, {}).macs == {op.op_type: want}


@pytest.mark.parametrize(("op_type", "cell", "gates"), [("RNN", nn.RNN, 1), ("GRU", nn.GRU, 3), ("LSTM", nn.LSTM, 4)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrences(op_type: str, cell: type[nn.Module], gates: int, directions: int) -> None:
    steps, batch, inputs, hidden = 6, 3, 5, 4
    made = one_op(
        op_type,
        (steps, batch, inputs),
        (directions, gates * hidden, inputs),
        (directions, gates * hidden, hidden),
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
    )
    network = cell(inputs, hidden, bidirectional=directions == 2)
    step = nn.Linear(inputs, gates * hidden), nn.Linear(hidden, gates * hidden)
    want = sum(macs_in_torch(layer, (steps * batch, layer.in_features)) for layer in step) * directions
    assert cost(made, {}).macs == {op_type: want}
    assert want == steps * batch * sum(p.numel() for n, p in network.named_parameters() if "weight" in n)


def test_a_scan_costs_its_body_at_every_step() -> None:
    view = helper.make_node("Reshape", ["h", "shape"], ["rows"])  # whose numbers stand outside of the body
    product, add = helper.make_node("MatMul", ["rows", "w"], ["m"]), helper.make_node("Add", ["m", "x"], ["next"])
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("h", "x", "next", "y")}
    copy = helper.make_node("Identity", ["next"], ["y"])
    body = helper.make_graph(
        [view, product, add, copy], "body", [values["h"], values["x"]], [values["next"], values["y"]]
    )
    scan = helper.make_node("Scan", ["h0", "xs"], ["hT", "ys"], body=body, num_scan_inputs=1)
    made = model([scan], {"h0": ("batch", 4), "xs": ("time", "batch", 4)}, ["hT", "ys"], {"w": (4, 4)})
    made.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4]))
    steps, batch = 7, 3
    found = cost(made, {"time": steps, "batch": batch})
    assert found.macs == {"MatMul": steps * batch * 4 * 4}
    state = 4 * batch * 4
    outside = 2 * state + 2 * steps * state
    assert found.activation_bytes == outside + steps * (state + state + 3 * state)  # MatMul h, m; Add m, x, next
    assert not found.left_out


def test_bytes_op_by_op() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["view"]),
        helper.make_node("Cast", ["view"], ["y"], to=TensorProto.FLOAT16),
    ]
    made = model(nodes, {"x": ("rows", 3)}, ["y"], {"w": (3, 8)})
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    made.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 4]))
    found = cost(made, {"rows": 5})
    assert found.activation_bytes == (5 * 3 + 5 * 8) * 4 + 5 * 8 * (4 + 2)
    assert found.weight_bytes == 3 * 8 * 4 + 2 * 8


@pytest.mark.parametrize("plan", list(contraction.all_plans(4)), ids=str)
def test_the_projection_costs_what_its_plan_says(plan: Plan) -> None:
    """The head and the recurrence apart, whose products are known."""
    classifier = ClipClassifier(tiny_config())
    graph = ir.to_proto(build(classifier, plan))
    batch, time, hidden, classes = 2, 5, 16, 3
    head = batch * (time + 1) * hidden * classes
    recurrence = batch * time * 3 * hidden * (3 * hidden + hidden)
    macs = cost(graph, {"batch": batch, "time": time}).macs.total()
    assert 2 * (macs - head - recurrence) == contraction.cost(plan, classifier.projection.shape, batch * time).flops


def test_what_shapes_do_not_tell_a_run_does() -> None:
    """As many rows as there are flags that are not False."""
    nodes = [
        helper.make_node("NonZero", ["flags"], ["places"]),
        helper.make_node("Transpose", ["places"], ["there"]),
        helper.make_node("GatherND", ["x", "there"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    made = model(nodes, {"x": ("rows", 4), "flags": ("rows",)}, ["y"], {"w": (4, 3)})
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    found = cost(made, {"rows": 5})
    assert found.macs == {"MatMul": 5 * 4 * 3}
    assert found.shapes_from_a_run == 4
    assert not found.left_out


def test_a_mask_leaves_nothing_out() -> None:
    """The exporter's own graph, whose steps are a Range."""
    found = cost(ir.to_proto(build(ClipClassifier(tiny_config()), Plan((2, 2)))), {"batch": 2, "time": 5})
    assert not found.left_out


def test_what_is_known_only_at_run_time_is_left_out() -> None:
    """Of a graph that does not run, for an op that nobody knows."""
    nodes = [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Relu", ["x"], ["y"])]
    nodes.append(helper.make_node("Relux", ["x"], ["z"], domain="com.example"))
    made = model(nodes, {"x": (4,)}, ["y"], {})
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    found = cost(made, {})
    assert found.left_out == {"NonZero": 1, "Relux": 1}
    assert found.activation_bytes == 2 * 4 * 4


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik"),
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"),
    ],
    ids=lambda node: node.op_type,
)
def test_products_that_hide_are_left_out_by_name(node: onnx.NodeProto) -> None:
    made = model([node], {"x": (2, 3)}, ["y"], {"w": (3, 4)})
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert cost(made, {}).left_out == {node.op_type: 1}


def test_open_dimensions_are_1_unless_they_are_given() -> None:
    made = one_op("MatMul", ("batch", "time", 3), (3, 4))
    assert open_dimensions(made) == ["batch", "time"]
    assert cost(made, {"time": 5}).macs == {"MatMul": 5 * 3 * 4}
    with pytest.raises(ValueError, match="expected sizes of batch, time, got one of tim"):
        cost(made, {"tim": 5})


def test_sizes_that_do_not_fit_the_graph_are_refused() -> None:
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ("rows", "columns")}, ["y"], {"w": (3, 4)})
    with pytest.raises(ValueError, match=r"the graph does not fit the sizes \{'columns': 2\}"):
        cost(made, {"columns": 2})
