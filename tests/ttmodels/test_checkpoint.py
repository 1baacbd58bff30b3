import math
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tests.made import tiny_config
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import MLPConfig, TrainConfig
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

FRAMES = torch.randint(0, 256, (2, 4, 12, 16, 3), dtype=torch.uint8)


def step(model: ClipClassifier, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(FRAMES).logits.square().sum().backward()
    optimizer.step()


def test_round_trip(tmp_path: Path) -> None:
    model, run = ClipClassifier(tiny_config(cell="lstm")).eval(), TrainConfig(epochs=5)
    progress = Progress(epoch=2, best_score=0.5, history=[{"train_loss": 1.0}], data_set="clips")
    checkpoint.save(tmp_path / "a.safetensors", model, run, progress)
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    assert (loaded.model_config, loaded.train_config, loaded.progress) == (model.config, run, progress)
    assert torch.equal(loaded.model()(FRAMES).logits, model(FRAMES).logits)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model = ClipClassifier(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    step(model, optimizer)
    checkpoint.save(tmp_path / "a.safetensors", model, TrainConfig(), Progress(), optimizer)
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    other = loaded.model().train()
    resumed = torch.optim.AdamW(other.parameters(), 0.01)
    loaded.restore_optimizer(resumed)
    for _ in range(3):
        step(model, optimizer)
        step(other, resumed)
    assert torch.equal(model(FRAMES).logits, other(FRAMES).logits)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    model = ClipClassifier(tiny_config())
    checkpoint.save(path, model, TrainConfig(), Progress())
    before = path.read_bytes()

    def fail(_tensors: object, target: Path, _header: object) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, model, TrainConfig(), Progress())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match=r"could not write .*a.safetensors: .*No space left"):
        checkpoint.save(tmp_path / "a.safetensors", ClipClassifier(tiny_config()), TrainConfig(), Progress())


def test_an_older_file_without_the_best_loss_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    older = Progress(epoch=2, best_score=0.5)
    with monkeypatch.context() as patch:
        patch.delitem(older.__dict__, "best_loss")
        checkpoint.save(path, ClipClassifier(tiny_config()), TrainConfig(), older)
    assert checkpoint.load(path).progress == Progress(epoch=2, best_score=0.5, best_loss=math.inf)


def test_an_older_file_whose_score_is_called_accuracy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    older = Progress(epoch=1, data_set='of "valid_accuracy":')
    older.__dict__ |= {"best_accuracy": 0.5, "history": [{"valid_loss": 1.0, "valid_accuracy": 0.5}]}
    monkeypatch.delitem(older.__dict__, "best_score")
    checkpoint.save(path, ClipClassifier(tiny_config()), TrainConfig(), older)
    progress = checkpoint.load(path).progress
    assert (progress.best_score, progress.history) == (0.5, [{"valid_loss": 1.0, "valid_score": 0.5}])
    assert progress.data_set == 'of "valid_accuracy":'


def test_foreign_broken_and_newer_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        checkpoint.load(path)
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        checkpoint.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of ttvideo"):
        checkpoint.load(path)
    save_file({"weight": torch.zeros(2)}, path, {"ttvideo.format": "99"})
    with pytest.raises(ValueError, match="checkpoint format 99, this code reads up to 1"):
        checkpoint.load(path)
    save_file({"weight": torch.zeros(2)}, path, {"ttvideo.format": "1"})
    with pytest.raises(ValueError, match=f"^{path}: its header is not complete: expected 'ttvideo.train'$"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("ttvideo.model", "{no", "its header is broken: expected JSON, got '{no'"),
        ("ttvideo.train", "[1]", r"its header does not fit: TrainConfig: expected fields with names, got \[1\]"),
        ("ttvideo.train", '{"momentum": 1}', r"got also \['momentum'\]; upgrade ttvideo"),
        ("ttvideo.progress", '{"stage": 1}', r"got also \['stage'\]; upgrade ttvideo"),
        ("ttvideo.train", '{"epochs": 0}', "its header does not fit: expected positive epochs and batch_size"),
        ("ttvideo.format", "²", "checkpoint format ², this code reads up to 1; upgrade ttvideo"),
    ],
)
def test_a_header_that_does_not_fit_is_told_with_the_file(key: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, ClipClassifier(tiny_config()), TrainConfig(), Progress())
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({}, path, header | {key: text})
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        checkpoint.load(path)


@pytest.mark.parametrize("of_mlp", [False, True])
def test_tensors_of_another_model_are_told_one_by_one(of_mlp: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    config = MLPConfig(("a", "b"), (6,), (TTShape((2, 3), (2, 2), (1, 2, 1)),))
    model = MLPClassifier(config) if of_mlp else ClipClassifier(tiny_config())
    checkpoint.save(path, model, TrainConfig(), Progress())
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shape = list(tensors["model.head.weight"].shape)
    del tensors["model.head.bias"]
    tensors |= {"model.head.weight": torch.zeros(5, 7), "model.tail": torch.zeros(1)}
    save_file(tensors, path, header)
    expected = (
        f"{path}: expected the tensors of its configuration, got also tail, "
        f"head.weight of shape [5, 7] in the place of {shape}, no head.bias"
    )
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole text is compared
        checkpoint.load_any(path).model()
    assert str(raised.value) == expected


def test_networks_are_told_apart(tmp_path: Path) -> None:
    config = MLPConfig(("a", "b"), (6,), (TTShape((2, 3), (2, 2), (1, 2, 1)),), mean=(0.5,))
    model, path = MLPClassifier(config).eval(), tmp_path / "a.safetensors"
    checkpoint.save(path, model, TrainConfig(), Progress())
    loaded = checkpoint.load_any(path)
    assert loaded.model_config == config
    assert torch.equal(loaded.model()(torch.ones(1, 6)), model(torch.ones(1, 6)))
    with pytest.raises(ValueError, match="expected the checkpoint of a ClipClassifier, got that of an MLPClassifier"):
        checkpoint.load(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({"weight": torch.zeros(2)}, path, header | {"ttvideo.network": "TTTransformer"})
    with pytest.raises(ValueError, match="expected a ClipClassifier or an MLPClassifier, got TTTransformer"):
        checkpoint.load_any(path)


def test_the_best_cannot_be_resumed_from(tmp_path: Path) -> None:
    model = ClipClassifier(tiny_config())
    checkpoint.save(tmp_path / "best.safetensors", model, TrainConfig(), Progress())
    with pytest.raises(ValueError, match="resume from `last`"):
        checkpoint.load(tmp_path / "best.safetensors").restore_optimizer(torch.optim.AdamW(model.parameters()))
