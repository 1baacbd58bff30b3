"""A model with a backbone as a file: in float32, in int8, whole and in pieces, as torch computes it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters import int8_backbone, states
from exporters.graph import build
from exporters.int8_backbone import BYTE, PAIR_MAX, WEIGHT_MAX, Step, calibrate, rounded, rounded_weights
from exporters.onnx_file import serialize
from exporters.timing import open_session
from exporters.verify import run_in_pieces
from service.video import Sampling
from tests.made import random_classifier, random_clips
from tests.tolerances import EXPORTED
from tests.ttmodels.test_backbone import photograph, with_backbone
from ttmodels.backbone import Backbone, Block, Convolution
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan

SIZE = Sampling(num_frames=4, height=40, width=72)  # maps of odd sizes: pads differ from side to side
PLAN = Plan((2, 2))
LENGTHS = torch.tensor([5, 2, 1])


@pytest.fixture(scope="module", params=[("pooled", False), ("pooled", True), ("map", True)])
def model(request: pytest.FixtureRequest) -> ClipClassifier:
    features, difference = request.param
    modes = (8, 10, 4, 4) if features == "pooled" else (2, 3, 32, 40)
    made = random_classifier(
        with_backbone(
            backbone_features=features, input_modes=modes, sampling=SIZE, pooling="mean", difference=difference
        )
    )
    made.standardise_by(torch.full((1280,), 0.3), torch.linspace(0.5, 1, 1280))
    return made


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    torch.manual_seed(0)
    return random_clips(3, 5, height=40, width=72)


@pytest.fixture(scope="module")
def steps(model: ClipClassifier, frames: torch.Tensor) -> dict[str, Step]:
    assert model.backbone is not None
    return calibrate(model.backbone, frames.numpy())


def difference(got: np.ndarray, want: torch.Tensor) -> float:
    """Relative to the largest, where that is above 1."""
    return float(np.abs(got - want.numpy()).max()) / max(1.0, float(want.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("streaming", [False, True])
def test_the_graph_is_the_model(
    model: ClipClassifier, frames: torch.Tensor, steps: dict[str, Step], precision: str, streaming: bool
) -> None:
    graph = build(model, PLAN, precision=precision, streaming=streaming, backbone_steps=steps)  # type: ignore[arg-type]
    session = open_session(serialize(graph), 1)
    want = (model if precision == "fp32" else rounded(model, steps))(frames, LENGTHS)
    lengths = LENGTHS.numpy().astype(np.int32)
    if streaming:
        cuts = np.array([[1, 1, 0], [3, 1, 1]])
        got = run_in_pieces(session, states.of(model), frames.numpy(), lengths, cuts)
    else:
        got = session.run(["logits", "logits_over_time"], {"frames": frames.numpy(), "lengths": lengths})
    assert difference(got[0], want.logits) < EXPORTED
    assert difference(got[1], want.logits_over_time) < EXPORTED


@torch.inference_mode()
def test_int8_is_near_float32_on_a_photograph() -> None:
    backbone = Backbone()
    seen = torch.cat([photograph(name, 96) for name in ("china.jpg", "flower.jpg")])
    steps = calibrate(backbone, [seen.numpy()])
    exact, near = backbone(seen), int8_backbone.RoundedBackbone(backbone, steps)(seen)
    assert float((near - exact).norm() / exact.norm()) < 0.25
    assert not torch.equal(near, exact)


def test_rounded_weights_stay_within_16_bits_where_two_products_are_added() -> None:
    """Whatever the bytes: as of 0 and 255."""
    for layer in Backbone().modules():
        if not isinstance(layer, Convolution):
            continue
        weights = rounded_weights(layer, Step(0.02, 0))
        whole = weights.whole.abs().to(torch.int32).flatten(1)
        assert int(whole.max()) <= WEIGHT_MAX
        if layer.groups == 1:
            pairs = whole.unflatten(1, (-1, 2)).sum(2) if layer.weight.shape[-1] == 1 else whole.topk(2).values.sum(1)
            assert BYTE * int(pairs.max()) < 2**15
            assert int(pairs.max()) >= PAIR_MAX - 1 or int(whole.max()) == WEIGHT_MAX
        error = (weights.whole * weights.scale[:, None, None, None] - layer.weight).abs().amax((1, 2, 3))
        assert (error <= 0.501 * weights.scale).all()


def test_steps_hold_what_was_seen_and_zero_exactly(frames: torch.Tensor) -> None:
    backbone = Backbone()
    steps = calibrate(backbone, frames.numpy())
    convolutions = sum(isinstance(module, Convolution) for module in backbone.modules())
    sums = sum(isinstance(module, Block) and module.adds for module in backbone.modules())
    assert len(steps) == convolutions + sums == 49 + 9
    assert all(0 <= step.zero <= BYTE and step.scale > 0 for step in steps.values())
    assert steps["backbone.stem"].zero == 0
    assert steps["backbone.stem"].scale <= 6 / BYTE + 1e-6
    assert 0 < steps["backbone.blocks.1.layers.2"].zero < BYTE


def test_the_runtime_computes_with_whole_numbers(model: ClipClassifier, steps: dict[str, Step], tmp_path: Path) -> None:
    """Every convolution of the file in int8 becomes one of integers."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    data = serialize(build(model, PLAN, precision="int8", backbone_steps=steps))
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ops.count("QLinearConv") == 49
    assert "Conv" not in ops
    assert ops.count("QLinearAdd") == 9


def test_bytes_are_added_as_the_runtime_adds_them() -> None:
    """All pairs of bytes; where a sum lies between two bytes, to the same one. A machine that rounds a product before
    it adds to it has one or two of these otherwise; added in another order there are eleven."""
    rng = np.random.default_rng(0)
    a, b = (grid.astype(np.uint8) for grid in np.meshgrid(np.arange(256), np.arange(256)))
    differ = 0
    for _ in range(20):
        low, high = -rng.uniform(0, 8, 3), rng.uniform(0, 8, 3)
        steps = [Step.over(*of) for of in zip(low, high, strict=True)]
        constants = [
            numpy_helper.from_array(np.array(value, dtype), f"{kind}{place}")
            for place, step in enumerate(steps)
            for kind, value, dtype in (("scale", step.scale, np.float32), ("zero", step.zero, np.uint8))
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["a", "scale0", "zero0"], ["x"]),
            helper.make_node("DequantizeLinear", ["b", "scale1", "zero1"], ["y"]),
            helper.make_node("Add", ["x", "y"], ["z"]),
            helper.make_node("QuantizeLinear", ["z", "scale2", "zero2"], ["c"]),
        ]
        a_b, c = (
            [helper.make_tensor_value_info(n, TensorProto.UINT8, [256, 256]) for n in names] for names in ("ab", "c")
        )
        graph = helper.make_graph(nodes, "sum", a_b, c, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        want = session.run(None, {"a": a, "b": b})[0]
        mine = int8_backbone.added(torch.from_numpy(a).float(), steps[0], torch.from_numpy(b).float(), *steps[1:])
        differ += int((mine.numpy() != want).sum())
    assert differ <= 2
