"""The train that reads pixels at each precision: ONNX Runtime against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, checker, shape_inference
from torch import Tensor

from exporters import projection, quantize
from exporters.builder import Builder, tensor
from exporters.graph import build
from exporters.projection import Reading
from exporters.quantize import WEIGHT_MAX, Precision, fits, pixel_train
from exporters.timing import open_session
from exporters.verify import THREADS, verify
from tests.made import random_classifier, tiny_config
from tests.tolerances import HALF_GATES, PROJECTED
from ttmodels import contraction
from ttmodels.contraction import Plan
from ttmodels.linear import TTLinear
from ttmodels.tensor_train import TTShape

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SCALINGS = [
    ((3, 4, 4, 12), (0.5, 0.25, 1.0)),  # a scale per channel, folded into the last factor
    ((3, 12, 4, 4), (0.5, 0.5, 0.5)),  # the last mode cuts through the channels: one scale folds
    ((3, 12, 4, 4), (0.5, 0.25, 1.0)),  # and three do not, unless the factor is of more cores
]


def made(modes: tuple[int, ...] = (3, 4, 4, 12)) -> TTLinear:
    torch.manual_seed(3)
    layer = TTLinear(modes, (6, 2, 2, 2), 3)
    torch.nn.init.normal_(layer.bias)
    return layer


def scaling(std: tuple[float, ...] = (0.5, 0.25, 1.0)) -> tuple[Tensor, Tensor]:
    """pixel_scale and pixel_shift of a mean colour (0.2, 0.4, 0.6), which whole pixels have: 51, 102, 153."""
    return 1 / (255 * torch.tensor(std)), -torch.tensor((0.2, 0.4, 0.6)) / torch.tensor(std)


def graph_of(layer: TTLinear, reading: Reading, scale: Tensor, shift: Tensor) -> onnx.ModelProto:
    """frames uint8 [batch, time, 12, 16, 3] -> gates."""
    graph = Builder()
    frames = tensor("frames", ir.DataType.UINT8, "batch", "time", 12, 16, 3)
    gates = projection.emit_pixels(graph, layer, reading, frames, scale, shift, "p")
    gates.type, gates.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("batch", "time", layer.out_features))
    inner = ir.Graph(
        [frames], [gates], nodes=graph.tape.nodes, initializers=graph.tape.initializers, opset_imports={"": 21}
    )
    inner.name = "projection"
    proto: onnx.ModelProto = ir.to_proto(ir.Model(inner, ir_version=10))
    checker.check_model(proto, full_check=True)
    return proto


def run(proto: onnx.ModelProto, frames: Tensor) -> np.ndarray:
    return np.asarray(open_session(proto.SerializeToString(), THREADS).run(None, {"frames": frames.numpy()})[0])


def normalised(frames: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (frames * scale + shift).flatten(2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("modes", "std"), SCALINGS)
def test_the_graph_computes_what_the_rounded_layer_does(
    modes: tuple[int, ...], std: tuple[float, ...], precision: Precision
) -> None:
    """By every plan that fits, frame by frame and clip by clip."""
    layer, (scale, shift) = made(modes), scaling(std)
    frames = torch.randint(0, 256, (2, 3, 12, 16, 3), dtype=torch.uint8)
    plans = [plan for plan in contraction.all_plans(4) if fits(plan, layer.shape, scale, precision)]
    assert len(plans) >= 2
    for plan in plans:
        rounded = pixel_train(layer, plan, scale, shift, precision).layer
        want = rounded(normalised(frames, scale, shift)).detach().numpy()
        for by_clip in (False, True):
            got = run(graph_of(layer, Reading(plan, precision, by_clip), scale, shift), frames)
            assert got.shape == want.shape
            assert np.abs(got - want).max() < (HALF_GATES if precision == "fp16" else PROJECTED)


@pytest.mark.parametrize("plan", [Plan((4,)), Plan((2, 2)), Plan((1, 1, 1, 1))], ids=str)
def test_the_rounded_layer_is_near_the_layer(plan: Plan) -> None:
    """float32 is the layer; float16 is it to three digits; int8 within what a half step a weight allows."""
    layer, (scale, shift) = made(), scaling()
    exact = layer.full().detach()
    errors = {}
    for precision in PRECISIONS:
        rounded = pixel_train(layer, plan, scale, shift, precision).layer.full().detach()
        errors[precision] = float((rounded - exact).norm() / exact.norm())
    assert errors["fp32"] < 1e-6
    assert 1e-6 < errors["fp16"] < 1e-3
    assert 1e-3 < errors["int8"] < 0.1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_frame_of_the_mean_colour_projects_to_the_bias(precision: Precision) -> None:
    """Whatever rounding did to the weights."""
    layer, (scale, shift) = made(), scaling()
    frames = torch.tensor((51, 102, 153), dtype=torch.uint8).expand(1, 1, 12, 16, 3).contiguous()
    got = run(graph_of(layer, Reading(Plan((2, 2)), precision), scale, shift), frames)
    assert np.abs(got - layer.bias.detach().numpy()).max() < (HALF_GATES if precision == "fp16" else PROJECTED)


def test_integer_sums_are_exact_where_weights_have_one_sign_and_pixels_are_white() -> None:
    """Where a processor without VNNI would clip the sum of two products, had weights 8 bits."""
    layer, (scale, shift) = made(), scaling((0.5, 0.5, 0.5))
    layer.set_cores([torch.ones(size) for size in layer.shape.core_shapes])
    white = torch.full((1, 1, 12, 16, 3), 255, dtype=torch.uint8)
    for plan in (Plan((4,)), Plan((2, 2)), Plan((1, 1, 2))):
        whole = pixel_train(layer, plan, scale, shift, "int8").matrices[0]
        assert whole.dtype == torch.int8
        assert int(whole.abs().max()) in (WEIGHT_MAX - 1, WEIGHT_MAX)
        assert 2 * 255 * int(whole.abs().max()) < 2**15
        got = run(graph_of(layer, Reading(plan, "int8"), scale, shift), white)
        want = layer(normalised(white, scale, shift)).detach().numpy()
        assert np.abs(got / want - 1).max() < 1e-6  # all weights alike: rounding changes none


def test_errors_of_neighbouring_pixels_cancel() -> None:
    """The error of the sum of any run of a channel's pixels is at most a step, and no weight leaves its bits."""
    layer, (scale, shift) = made(), scaling()
    plan = Plan((2, 2))
    fp32, int8 = (pixel_train(layer, plan, scale, shift, precision) for precision in ("fp32", "int8"))
    whole = int8.matrices[0].double()
    assert int(whole.abs().max()) <= WEIGHT_MAX
    # The scales: of ranks in the second matrix, of output modes in the result's.
    by_rank = (int8.matrices[1] / fp32.matrices[1]).nanmedian(0).values[:3]
    by_mode = int8.scale[:4]  # the last factor's output modes are 2 x 2
    step = (by_rank[:, None] * by_mode).reshape(-1)
    sums = (fp32.matrices[0] / step - whole).reshape(-1, 3, whole.shape[1]).cumsum(0)
    assert float(sums.abs().max()) < 0.5 + 1e-3
    plain = (fp32.matrices[0] / step).round() - fp32.matrices[0] / step
    assert float(plain.reshape(-1, 3, whole.shape[1]).cumsum(0).abs().max()) > 0.5 + 1e-3


def test_pixels_reach_the_integer_product_as_they_are() -> None:
    layer, (scale, shift) = made(), scaling()
    proto = shape_inference.infer_shapes(graph_of(layer, Reading(Plan((2, 2)), "int8"), scale, shift))
    types = {info.name: info.type.tensor_type.elem_type for info in (*proto.graph.value_info, *proto.graph.input)}
    (product,) = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert len(product.input) == 2  # no zero points
    assert types[product.input[0]] == TensorProto.UINT8
    assert types[product.output[0]] == TensorProto.INT32
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == [product.output[0]]


@pytest.mark.parametrize("gauge", [1.0, 1e4, 1e-4])
def test_float16_neither_overflows_nor_vanishes(gauge: float) -> None:
    """However the train's size lies between its cores, and at the brightest and the most uneven frames."""
    layer, (scale, shift) = made(), scaling()
    cores = [core.detach().clone() for core in layer.cores]
    layer.set_cores([cores[0] / gauge, *cores[1:3], cores[3] * gauge])
    white = torch.full((1, 1, 12, 16, 3), 255, dtype=torch.uint8)
    uneven = white * (torch.arange(16) % 2).to(torch.uint8)[:, None]
    for plan in (Plan((4,)), Plan((2, 2)), Plan((1, 1, 1, 1)), Plan((2, 2), "left_to_right")):
        train = pixel_train(layer, plan, scale, shift, "fp16")
        assert all(bool(matrix.isfinite().all()) for matrix in train.matrices)
        for frames in (white, uneven, 255 - uneven):
            got = run(graph_of(layer, Reading(plan, "fp16"), scale, shift), frames)
            want = layer(normalised(frames, scale, shift)).detach().numpy()
            assert np.abs(got - want).max() < HALF_GATES * max(1.0, np.abs(want).max())


def test_what_int8_cannot_take() -> None:
    one, three = scaling((0.5, 0.5, 0.5))[0], scaling()[0]
    shape = TTShape.make((3, 12, 4, 4), (6, 2, 2, 2), 3)
    assert fits(Plan((2, 2)), shape, one, "int8")
    assert not fits(Plan((2, 2), "left_to_right"), shape, one, "int8")  # weights before pixels
    assert not fits(Plan((2, 2)), shape, three, "int8")  # a factor of 16 values, which cuts through the channels
    assert fits(Plan((1, 3)), shape, three, "int8")
    large = TTShape.make((2, 300, 500), (2, 2, 2), 2)
    assert fits(Plan((1, 1, 1)), large, one, "int8")
    assert not fits(Plan((1, 2)), large, one, "int8")  # 150,000 pixels of 255 by 63: past 32 bits
    assert fits(Plan((1, 2)), large, one, "fp16")
    with pytest.raises(ValueError, match=r"expected a plan that int8 can take, got \(4,\) left_to_right"):
        pixel_train(made(), Plan((4,), "left_to_right"), *scaling(), "int8")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_both_directions_read_rounded_weights(cell: str, precision: Precision) -> None:
    model = random_classifier(tiny_config(cell=cell, bidirectional=True, num_layers=2))
    rounded = quantize.rounded(model, Plan((2, 2)), precision)
    for index, cell_of in enumerate(model.cells):
        same = torch.equal(cell_of.projection.full(), rounded.cells[index].projection.full())
        assert same == (index >= 2)
    data = ir.to_proto(build(model, Plan((2, 2)), precision=precision)).SerializeToString()
    verify(rounded, data, tolerance=HALF_GATES if precision == "fp16" else PROJECTED, source="made")


@pytest.mark.parametrize(
    ("plan", "how", "by_clip"),
    [
        (Plan((2, 2)), {}, True),
        (Plan((2, 2)), {"precision": "int8"}, True),
        (Plan((4,)), {}, False),  # a dense matrix is larger than a cache, and had better be read once
        (Plan((2, 2)), {"target": "cuda"}, False),
        (Plan((2, 2)), {"streaming": True}, False),
    ],
)
def test_where_frames_are_projected_clip_by_clip(plan: Plan, how: dict[str, Any], by_clip: bool) -> None:
    graph = build(random_classifier(tiny_config()), plan, **how)
    assert [node.op_type for node in graph.graph].count("Scan") == by_clip
