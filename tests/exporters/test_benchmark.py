"""What is timed is what it is called; the figures follow from the times."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import benchmark, timing, to_onnx
from exporters.benchmark import contenders, measure
from exporters.cost import cost
from exporters.timing import in_turns
from exporters.to_onnx import export
from service.video import Sampling
from tests.exporters.test_mlp import CONFIGS
from tests.exporters.test_to_onnx import save
from tests.made import TINY, tiny_config
from tests.tolerances import LOGITS
from ttmodels import checkpoint, contraction
from ttmodels.checkpoint import Progress
from ttmodels.config import TrainConfig
from ttmodels.contraction import Plan
from ttmodels.mlp import MLPClassifier
from ttmodels.tensor_train import TTShape

CHAIN = Plan((1, 1, 1, 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, and beside it the checkpoint that it was exported from."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(save(path.with_name("best.safetensors"), tiny_config()), path, name="made", plan=Plan((2, 2)))
    return path


def test_the_contenders_are_the_plans_that_they_are_called(exported: Path) -> None:
    config = tiny_config()
    shape = TTShape(config.input_modes, (3 * 2, 2, 2, 2), config.tt_ranks)
    _, (file, dense, chain) = contenders(exported, ["dense", "chain"])
    assert file.source == exported
    macs = {entry.name: _macs(entry.source) for entry in (dense, chain)}
    flops = {name: contraction.cost(plan, shape, 6).flops for name, plan in (("dense", Plan((4,))), ("chain", CHAIN))}
    assert 2 * (macs["dense"] - macs["chain"]) == flops["dense"] - flops["chain"]
    assert dense.num_weight_bytes - chain.num_weight_bytes > 4 * (576 * 48 - 576 * 3)


def _macs(model: bytes | Path) -> int:
    assert isinstance(model, bytes)
    return cost(onnx.load_from_string(model), {"batch": 1, "time": 6}).macs.total()


def test_with_the_checkpoint_all_say_the_same(exported: Path) -> None:
    manifest, entries = contenders(exported, ["dense", "chain"], exported.with_name("best.safetensors"))
    rows = measure(manifest.sampling.clip_shape, entries, 3, threads=1, rounds=1)
    differences = {row.contender: row.difference for row in rows}
    assert differences[str(exported)] == 0
    for name in ("dense", "chain"):
        assert differences[name] is not None
        assert differences[name] < LOGITS


def test_without_it_the_shapes_are_the_same_and_nothing_is_said_of_logits(exported: Path) -> None:
    """The random model stands in for the file's: as many products, as many weights."""
    manifest, (_, *without) = contenders(exported, ["dense", "chain"])
    _, (_, *with_it) = contenders(exported, ["dense", "chain"], exported.with_name("best.safetensors"))
    for one, other in zip(without, with_it, strict=True):
        assert (one.num_weight_bytes, _macs(one.source)) == (other.num_weight_bytes, _macs(other.source))
    rows = measure(manifest.sampling.clip_shape, without, 1, threads=1, rounds=1)
    assert all(row.difference is None for row in rows)


@pytest.mark.slow
def test_another_file_is_compared_where_it_is_of_the_same_checkpoint(exported: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.onnx", tmp_path / "other.onnx"
    export(checkpoint.load(exported.with_name("best.safetensors")), same, name="made", plan=CHAIN)
    export(save(tmp_path / "b.safetensors", tiny_config(tt_ranks=(1, 2, 2, 2, 1))), other, name="made")
    _, entries = contenders(exported, [str(same), str(other)])
    assert [entry.same_weights for entry in entries] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "int8"}, {"streaming": True}], ids=str)
def test_every_form_of_the_file_is_timed(options: dict, exported: Path, tmp_path: Path) -> None:
    saved = exported.with_name("best.safetensors")
    path = tmp_path / "form.onnx"
    export(checkpoint.load(saved), path, name="made", plan=Plan((2, 2)), **options)
    manifest, entries = contenders(path, ["dense"], saved)
    *_, form, dense = measure(manifest.sampling.clip_shape, entries, 2, threads=1, rounds=1)
    assert (form.contender, form.difference, dense.contender) == (str(path), 0, "dense")
    assert dense.difference is not None
    assert 0 < dense.difference < 0.1


def test_figures_follow_from_the_times(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of the frames of 1 ms and of 2, of memory of 4 and of 8, a file of 16 ms and a dense one of 32."""
    manifest, entries = contenders(exported, ["dense"])
    monkeypatch.setattr(
        benchmark, "in_turns", lambda calls, _: {name: [1e-3 * 2**i] * 3 for i, name in enumerate(calls)}
    )
    monkeypatch.setattr(benchmark, "MEMORY_BYTES", 8_000_000)
    rows = measure(manifest.sampling.clip_shape, entries, 5, rounds=1)
    frames = 5 * TINY.num_frames * TINY.height * TINY.width * 3
    assert [row.batch for row in rows] == [5] * 6
    assert [row.median_ms for row in rows] == pytest.approx([1, 2, 4, 8, 16, 32])
    assert [row.ratio for row in rows] == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2])
    of_memory = 8_000_000 / 4  # bytes a ms
    one, two, memory, other, file, _ = (row.bandwidth_share for row in rows)
    assert (memory, other) == pytest.approx((1, 0.5))
    assert (one, two) == pytest.approx((frames / of_memory, frames / 2 / of_memory))
    logits = 5 * 3 * 4
    weights = sum(onnx.numpy_helper.to_array(w).nbytes for w in onnx.load(exported).graph.initializer)
    assert file == pytest.approx((frames + weights + logits) / 16 / of_memory)


@pytest.mark.parametrize("threads", [1, 2])
def test_readers_look_at_every_byte(threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for place in (0, 500, 1000):
            array = np.zeros((7, 11, 13), np.uint8)
            array.flat[place] = 9
            assert np.max(benchmark._reader(array, threads, pool)()) == 9  # type: ignore[call-overload]


def test_contenders_take_turns_and_first_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RUNS_A_TURN", 2)
    order: list[str] = []

    def call(name: str) -> None:
        if order[-1:] != [name]:  # the first of a turn
            time.sleep(0.05)
        order.append(name)

    taken = in_turns({"a": lambda: call("a"), "b": lambda: call("b")}, 3)
    assert order == list("aaabbb" * 3)
    assert {name: len(times) for name, times in taken.items()} == {"a": 6, "b": 6}
    assert max(taken["a"] + taken["b"]) < 0.05


def test_the_command_writes_what_it_prints(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(exported), "--batch", "1,2", "--rounds", "1", "--threads", "1", "--json", str(tmp_path / "a.json")]
    assert benchmark.main(arguments) == 0
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "a.json").read_text())
    assert [row["batch"] for row in document["figures"]] == [1] * 5 + [2] * 5
    for row in document["figures"]:
        assert any(row["contender"] in line and f"{row['median_ms']:.3f}" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--against", "dense,dense"], "--against: expected each contender once, got dense twice"),
        (["--against", "dense,model.onnx"], "--against: expected each contender once, got model.onnx twice"),
        (["--json", "model.onnx"], "--json: expected another file than what is read, got model.onnx"),
        (["--json", "other.safetensors", "--checkpoint", "other.safetensors"], "--json: expected another file than"),
        (["--json", "linked.json", "--against", "linked.onnx"], "--json: expected another file than what is read"),
        (["--json", "other.safetensors/figures.json"], "other.safetensors: File exists"),
        (["--against", "dens"], "--against: expected dense, chain or a file that ends in .onnx, got 'dens'"),
        (["--against", "none.onnx"], "none.onnx: No such file or directory"),
        (["--checkpoint", "other.safetensors"], "--checkpoint: expected the one that the file was exported from"),
        (["--checkpoint", "none.safetensors"], "expected a checkpoint (a .safetensors file), found nothing at none"),
    ],
)
def test_what_does_not_fit_is_one_line(
    more: list[str],
    message: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("other.safetensors"), tiny_config())
    Path("model.onnx").hardlink_to(exported)
    before = exported.read_bytes()
    shutil.copy(exported, "linked.onnx")
    Path("linked.json").symlink_to("linked.onnx")
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("it was refused too late"))
    assert benchmark.main([str(exported), *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert exported.read_bytes() == before


@pytest.mark.parametrize("against", ["", "dense,"])
def test_a_contender_has_a_name(against: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main([str(exported), "--against", against])
    assert f"expected dense, chain or files, with commas between, got {against!r}" in capsys.readouterr().err


def rewritten(exported: Path, path: Path, **changes: object) -> None:
    """The file with another manifest."""
    model = onnx.load(exported)
    manifest = contenders(exported, [])[0].model_copy(update=changes)
    onnx.helper.set_model_props(model, manifest.to_metadata())
    path.write_bytes(model.SerializeToString())


def test_a_manifest_of_another_graph_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(exported, tmp_path / "two.onnx", labels=("left", "right"))
    assert benchmark.main([str(tmp_path / "two.onnx")]) == 2
    err = capsys.readouterr().err
    assert "the graph does not fit its manifest" in err
    assert "expected outputs logits tensor(float)[dynamic, 2]" in err


def test_a_graph_that_onnx_runtime_does_not_load(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(exported)
    model.graph.node[0].op_type = "Nonsense"
    (tmp_path / "broken.onnx").write_bytes(model.SerializeToString())
    assert benchmark.main([str(tmp_path / "broken.onnx")]) == 2
    assert "broken.onnx: ONNX Runtime" in capsys.readouterr().err


def test_files_of_other_clips_are_refused(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewritten(exported, tmp_path / "other.onnx", sampling=Sampling(num_frames=6, height=16, width=12))
    assert benchmark.main([str(exported), "--against", str(tmp_path / "other.onnx")]) == 2
    err = capsys.readouterr().err
    assert "--against: expected a file that reads clips of 6 x 12 x 16 x 3, got" in err
    assert "which reads 6 x 16 x 12 x 3" in err


def test_a_file_without_a_manifest_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    assert benchmark.main([str(tmp_path / "bare.onnx")]) == 2
    assert "expected the metadata key 'ttvideo.manifest'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_reads_no_clips_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "a.safetensors", MLPClassifier(CONFIGS["grey"]), TrainConfig(), Progress())
    assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "mlp.onnx"), "--name", "made"]) == 0
    assert benchmark.main([str(tmp_path / "mlp.onnx")]) == 2
    assert "expected a model that reads clips, got one that reads images" in capsys.readouterr().err
