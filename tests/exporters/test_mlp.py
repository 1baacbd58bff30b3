"""TT layers on images and feature vectors: the file computes what the model does, and says what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporters import mlp, onnx_file, to_onnx
from exporters.verify import ParityError
from service.engine.provider import Choice
from service.engine.session import Session
from service.errors import NotForClips
from service.manifest import MLPManifest
from tests.tolerances import EXPORTED
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.config import MLPConfig, TrainConfig
from ttmodels.contraction import choose_plan
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

SHAPES = (TTShape((7, 4, 7, 4), (4, 4, 4, 2), (1, 3, 4, 3, 1)), TTShape((16, 8), (8, 3), (1, 4, 1)))
CONFIGS = {
    "grey": MLPConfig(("a", "b", "c"), (28, 28, 1), SHAPES),
    "colour": MLPConfig(
        ("a", "b"), (8, 8, 3), (TTShape((8, 24), (4, 4), (1, 5, 1)),), "gelu", mean=(0.2, 0.4, 0.6), std=(0.5, 0.3, 1.0)
    ),
    "features": MLPConfig(("a", "b"), (784,), SHAPES, "tanh", mean=(3.0,), std=(2.0,)),
}


@pytest.fixture(params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = MLPClassifier(CONFIGS[request.param])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_()
    checkpoint.save(tmp_path / "a.safetensors", model, TrainConfig(), Progress(data_set="made"))
    return tmp_path / "a.safetensors"


def some(config: MLPConfig, batch: int) -> torch.Tensor:
    if len(config.input_shape) == 3:
        return torch.randint(0, 256, (batch, *config.input_shape), dtype=torch.uint8)
    return torch.randn(batch, *config.input_shape)


def test_the_command_exports_it(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made.onnx"
    assert to_onnx.main([str(saved), "-o", str(path), "--name", "made"]) == 0
    assert "largest difference to torch" in capsys.readouterr().out
    model = checkpoint.load_any(saved).model()
    assert isinstance(model, MLPClassifier)
    config = model.config
    proto = onnx.load(path)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", onnx_file.OPSET)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (logits,) = session.get_inputs(), session.get_outputs()
    name, kind = ("images", "uint8") if len(config.input_shape) == 3 else ("features", "float")
    assert (given.name, given.type, given.shape) == (name, f"tensor({kind})", ["batch", *config.input_shape])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(config.labels)])
    for batch in (1, 20, 37):
        x = some(config, batch)
        with torch.inference_mode():
            want = model(x).numpy()
        (got,) = session.run(None, {name: x.numpy()})
        assert np.abs(np.asarray(got) - want).max() < EXPORTED * np.abs(want).max()

    manifest = MLPManifest.from_metadata({entry.key: entry.value for entry in proto.metadata_props})
    assert (manifest.reads, manifest.input_shape) == (name, config.input_shape)
    assert [layer.tt_ranks for layer in manifest.layers] == [layer.tt_ranks for layer in config.layers]
    assert len(set(manifest.parity.sizes)) == 20
    with pytest.raises(NotForClips, match=f"expected a model that reads clips, got one that reads {name}"):
        Session(path, Choice("cpu")).clip_manifest()


def test_what_is_for_clips_is_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--streaming"], ["--precision", "int8"], ["--target", "cuda"], ["--evaluate", "clips"]):
        assert to_onnx.main([str(saved), "-o", str(tmp_path / "m.onnx"), *more]) == 2
        assert f"{more[0]}: is for models of clips" in capsys.readouterr().err
    assert not (tmp_path / "m.onnx").exists()


def test_the_proof_finds_a_weight_that_is_off() -> None:
    model = MLPClassifier(CONFIGS["grey"]).eval()
    plans = [choose_plan(layer.shape, 1, merged_once=True) for layer in model.trains]
    data = onnx_file.serialize(mlp.build(model, plans))
    with torch.no_grad():
        model.trains[0].cores[1].mul_(1.05)
    with pytest.raises(ParityError, match="logits at batch 1 differs from torch"):
        mlp.verify(model, data, tolerance=1e-3, source="made")
