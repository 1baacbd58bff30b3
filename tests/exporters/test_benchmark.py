"""What is timed is what it is called; the figures follow from the times."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from exporters import benchmark, timing, to_onnx
from exporters.benchmark import contenders, measure
from exporters.cost import cost
from exporters.graph import build
from exporters.timing import in_turns
from exporters.to_onnx import export
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


def test_another_file_is_compared_where_it_is_of_the_same_checkpoint(exported: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.onnx", tmp_path / "other.onnx"
    export(checkpoint.load(exported.with_name("best.safetensors")), same, name="made", plan=CHAIN)
    export(save(tmp_path / "b.safetensors", tiny_config(tt_ranks=(1, 2, 2, 2, 1))), other, name="made")
    _, entries = contenders(exported, [str(same), str(other)])
    assert [entry.same_weights for entry in entries] == [True, True, False]


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "int8"}, {"streaming": True}], ids=str)
def test_every_form_of_the_file_is_timed(options: dict, exported: Path, tmp_path: Path) -> None:
    saved = exported.with_name("best.safetensors")
    graph = build(checkpoint.load(saved).model(), Plan((2, 2)), **options)
    graph.metadata_props.update(contenders(exported, [])[0].to_metadata())
    path = tmp_path / "form.onnx"
    path.write_bytes(ir.to_proto(graph).SerializeToString())
    manifest, entries = contenders(path, ["dense"], saved)
    *_, form, dense = measure(manifest.sampling.clip_shape, entries, 2, threads=1, rounds=1)
    assert (form.contender, form.difference, dense.contender) == (str(path), 0, "dense")
    assert dense.difference is not None
    assert 0 < dense.difference < 0.1


def test_figures_follow_from_the_times(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of 1 ms and of 2, a file of 4 ms and a dense one of 8."""
    manifest, entries = contenders(exported, ["dense"])
    monkeypatch.setattr(
        benchmark, "in_turns", lambda calls, _: {name: [1e-3 * 2**i] * 3 for i, name in enumerate(calls)}
    )
    one, two, file, dense = measure(manifest.sampling.clip_shape, entries, 5, rounds=1)
    frames = 5 * TINY.num_frames * TINY.height * TINY.width * 3
    assert [row.batch for row in (one, two, file, dense)] == [5] * 4
    assert [row.median_ms for row in (one, two, file, dense)] == pytest.approx([1, 2, 4, 8])
    assert [row.ratio for row in (one, two, file, dense)] == pytest.approx([0.25, 0.5, 1, 2])
    assert (one.bandwidth_share, two.bandwidth_share) == pytest.approx((1, 0.5))
    logits = 5 * 3 * 4
    weights = sum(onnx.numpy_helper.to_array(w).nbytes for w in onnx.load(exported).graph.initializer)
    assert file.bandwidth_share == pytest.approx((frames + weights + logits) / frames / 4)


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
    assert benchmark.main([str(exported), *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_file_without_a_manifest_is_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    assert benchmark.main([str(tmp_path / "bare.onnx")]) == 2
    assert "expected the metadata key 'ttvideo.manifest'" in capsys.readouterr().err


def test_a_file_that_reads_no_clips_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path / "a.safetensors", MLPClassifier(CONFIGS["grey"]), TrainConfig(), Progress())
    assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "mlp.onnx"), "--name", "made"]) == 0
    assert benchmark.main([str(tmp_path / "mlp.onnx")]) == 2
    assert "expected a model that reads clips, got one that reads images" in capsys.readouterr().err
