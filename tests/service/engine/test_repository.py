"""Which models are served, which one by default, and which file is refused."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.__main__ import main
from service.engine.repository import Repository, version_key
from service.errors import InvalidModel, ModelRefused, NotReady, StartError, UnknownModel
from service.manifest import MLPManifest, ModelFile
from service.settings import Settings
from tests.service import onnx_models
from tests.service.conftest import PATIENCE_S, eventually


def lay(folder: Path, *names: str) -> Path:
    """Models named NAME/VERSION under the folder."""
    folder.mkdir(exist_ok=True)
    for name, version in (text.split("/") for text in names):
        about = onnx_models.manifest(name=name, version=version, num_frames=2, height=8, width=8)
        onnx_models.save(folder, onnx_models.colours(about), about)
    return folder


def repository(tmp_path: Path, bundled: tuple[str, ...] = (), own: tuple[str, ...] = (), **options: str) -> Repository:
    lay(tmp_path / "bundled", *bundled)
    models = lay(tmp_path / "models", *own)
    settings = Settings(models=models, provider="cpu", **options)  # type: ignore[arg-type]
    return Repository(settings, bundled=tmp_path / "bundled")


def name_of(repository: Repository, name: str | None = None, version: str | None = None) -> str:
    model = repository.find(name, version)
    return f"{model.name}/{model.version}"


def test_the_bundled_model_is_the_default(tmp_path: Path) -> None:
    served = repository(tmp_path, bundled=("digits/1",))
    assert name_of(served) == "digits/1"


def test_the_only_model_of_the_folder_goes_before_the_bundled_one(tmp_path: Path) -> None:
    served = repository(tmp_path, bundled=("digits/1",), own=("mine/1", "mine/2"))
    assert name_of(served) == "mine/2"
    assert name_of(served, "digits") == "digits/1"


def test_among_several_the_bundled_one_stays_the_default(tmp_path: Path) -> None:
    assert name_of(repository(tmp_path, bundled=("digits/1",), own=("a/1", "b/1"))) == "digits/1"


def test_among_several_without_a_bundled_one_a_default_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="TTVIDEO_DEFAULT_MODEL to choose among a, b"):
        repository(tmp_path, own=("a/1", "b/1"))


def test_a_default_by_name_takes_the_latest_and_by_version_that_one(tmp_path: Path) -> None:
    own = ("a/1", "b/2", "b/10")
    assert name_of(repository(tmp_path, own=own, default_model="b")) == "b/10"
    served = repository(tmp_path, own=own, default_model="b/2")
    assert name_of(served) == "b/2"
    assert name_of(served, version="10") == "b/10"
    assert name_of(served, "b") == "b/10"
    assert name_of(served, "b", "2") == "b/2"


def lay_images(folder: Path, name: str) -> None:
    """A model that reads no clips."""
    clips = onnx_models.manifest(name=name, labels=("a", "b", "c"))
    about = MLPManifest.model_validate(
        clips.model_dump(include=set(ModelFile.model_fields))
        | {"reads": "images", "input_shape": (8, 8, 3), "mean": (0.0,), "std": (1.0,)}
        | {"layers": (), "activation": "relu", "num_parameters": 1, "compression": 1.0}
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "spatial"], ["logits"], keepdims=0),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    spatial = numpy_helper.from_array(np.array([1, 2], np.int64), "spatial")
    graph = helper.make_graph(nodes, "means", [images], [logits], [spatial])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(proto, about.to_metadata())
    path = folder / name / "1/model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(proto, path)


def test_no_model_that_takes_whole_clips(tmp_path: Path) -> None:
    """One of images that goes before the only other one by its name and version."""
    lay_images(tmp_path / "models", "a")
    words = r"expected a model that takes whole clips under .*models or .*bundled, found none: a/1: .* reads images"
    with pytest.raises(StartError, match=words):
        repository(tmp_path, bundled=("a/1",))
    assert repository(tmp_path, bundled=("a/2",)).max_clip_bytes == 2 * 8 * 8 * 3
    assert repository(tmp_path, bundled=("a/1",), model_control="explicit").models[0].clip_fault is not None


@pytest.mark.parametrize("command", [[], ["classify", "clip.mp4"]], ids=["the server", "classify"])
def test_the_bundled_model_out_of_reach(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_images(tmp_path, "moving_digits")
    assert main(["--models", str(tmp_path), "--provider", "cpu", "--port", "0", *command]) == 2
    assert "ttvideo: expected a model that takes whole clips under" in capsys.readouterr().err


def test_an_unknown_model_is_answered_with_what_there_is(tmp_path: Path) -> None:
    served = repository(tmp_path, own=("a/1", "a/2"))
    for name, version, got in (("c", None, "got c"), ("a", "3", "got a/3"), (None, "7", "got a/7")):
        with pytest.raises(UnknownModel, match=f"expected one of a/1, a/2; {got}"):
            served.find(name, version)


def test_an_unknown_default_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="expected the default model to be one of a/1, got b"):
        repository(tmp_path, own=("a/1",), default_model="b")


def test_versions_are_numbers_where_they_are(tmp_path: Path) -> None:
    assert sorted(["10", "9", "rc-2", "1", "rc-1"], key=version_key) == ["rc-1", "rc-2", "1", "9", "10"]


def test_no_folder_and_no_model(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="found none at"):
        Repository(Settings(models=tmp_path / "nowhere", provider="cpu"), bundled=tmp_path)
    with pytest.raises(StartError, match=r"expected a model at NAME/VERSION/model\.onnx"):
        repository(tmp_path)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["mine/model.onnx", "notes.txt"], "found mine/model.onnx"),
        (["model.onnx"], "found model.onnx"),
        (["x/mine/1/model.onnx"], "found x/mine/1/model.onnx"),
        (["mine/1/mine.onnx"], "found mine/1/mine.onnx"),
        (["b.mp4", "a.mp4", ".hidden"], "found a.mp4, b.mp4"),
        ([f"{i}.mp4" for i in range(9)], "found 0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4 and 4 more"),
    ],
)
def test_a_folder_laid_out_in_another_way_is_refused(tmp_path: Path, there: list[str], found: str) -> None:
    for name in there:
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = f"expected models at NAME/VERSION/model.onnx under {tmp_path / 'models'}, {found}"
    with pytest.raises(StartError) as caught:
        repository(tmp_path, bundled=("digits/1",))
    assert str(caught.value) == expected


def test_an_empty_folder_and_a_file_astray_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert name_of(repository(tmp_path, bundled=("digits/1",))) == "digits/1"
    assert f"NAME/VERSION/model.onnx under {tmp_path / 'models'}, which is empty" in caplog.text
    lay(tmp_path / "models", "mine/1")
    (tmp_path / "models/other").mkdir()
    (tmp_path / "models/other/model.onnx").touch()
    assert name_of(repository(tmp_path, bundled=("digits/1",))) == "mine/1"
    assert f"{tmp_path / 'models/other/model.onnx'} is not served" in caplog.text


def test_an_empty_name_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="expected one of digits/1; got an empty name"):
        repository(tmp_path, bundled=("digits/1",)).find("")


def test_folders_and_manifest_must_agree(tmp_path: Path) -> None:
    lay(tmp_path / "models", "a/1")
    (tmp_path / "models/a/1").rename(tmp_path / "models/a/2")
    with pytest.raises(InvalidModel, match="expected a manifest that says a/2, as its folders do, got a/1"):
        repository(tmp_path)


def test_what_is_in_use_stays_until_it_is_not(tmp_path: Path) -> None:
    served = repository(tmp_path, own=("a/1",))

    async def run() -> None:
        await served.start()
        old = served.find("a")
        with served.use("a") as held:
            assert held is old
            about = onnx_models.manifest(name="a", num_frames=2, height=8, width=8, temperature=3.0)
            onnx_models.save(tmp_path / "models", onnx_models.colours(about), about)
            await served.load("a")
            assert served.find("a") is not old
            frames = np.zeros((2, 8, 8, 3), np.uint8)
            assert (await held.classify(frames, time.monotonic() + PATIENCE_S)).batch_size == 1
            assert served._retiring
        await eventually(lambda: not served._retiring)
        with pytest.raises(NotReady, match="the model is being closed"):
            await old.classify(frames, time.monotonic() + PATIENCE_S)
        kept = served.find("a")
        await served.load("a")  # nothing is new
        assert served.find("a") is kept
        await served.unload("a")
        await served.close()
        assert served.models == []

    asyncio.run(run())


def test_a_change_is_told_and_a_refusal_is_not(tmp_path: Path) -> None:
    changes: list[int] = []
    lay(tmp_path / "models", "a/1")
    served = Repository(
        Settings(models=tmp_path / "models", provider="cpu"), bundled=tmp_path, on_change=lambda: changes.append(1)
    )

    async def run() -> None:
        await served.start()
        (tmp_path / "models/a/1/model.onnx").write_bytes(b"")
        with pytest.raises(ModelRefused, match=r"^a/1/model\.onnx: "):
            await served.load("a")
        assert (changes, served.entry(served.find("a")).state) == ([], "READY")
        lay(tmp_path / "models", "a/2")
        with pytest.raises(ModelRefused):  # a/1 is still broken, and a/2 is served nevertheless
            await served.load("a")
        assert (changes, name_of(served)) == ([1], "a/2")
        with pytest.raises(UnknownModel, match=r"expected b/VERSION/model\.onnx in the folders"):
            await served.load("b")
        await served.close()

    asyncio.run(run())
