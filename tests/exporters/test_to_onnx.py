import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from exporters import cuda, onnx_file, to_onnx
from exporters.to_onnx import export
from exporters.verify import ParityError
from service.manifest import METADATA_KEY, Manifest, Metrics, Scaling
from tests.made import tiny_config, write_folder
from tests.tolerances import LOGITS, PROBABILITY
from ttmodels import atomic, checkpoint, contraction, onnx_ops
from ttmodels.checkpoint import Checkpoint, Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig
from ttmodels.contraction import Plan
from ttmodels.evaluate import labelled_clips

STANDARD_OPS = {
    *("MatMul", "Gemm", "Reshape", "Transpose", "Add", "Mul", "Div", "Cast", "Where", "Less", "Range", "Shape"),
    *("Concat", "Squeeze", "Unsqueeze", "ReduceSum", "RNN", "GRU", "LSTM", "Scan"),
}


@torch.no_grad()
def save(path: Path, config: ModelConfig) -> Checkpoint:
    """A checkpoint of random weights, the biases too; the same ones in every run."""
    torch.manual_seed(0)
    model = ClipClassifier(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            parameter.normal_()
    checkpoint.save(path, model, TrainConfig(), Progress(data_set="made", num_clips={"train": 5}))
    return checkpoint.load(path)


def run(path: Path, frames: torch.Tensor, lengths: list[int]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"frames": frames.numpy(), "lengths": np.array(lengths, np.int32)}
    return session.run(["logits", "logits_over_time"], feeds)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_file_computes_what_the_model_does(cell: str, pooling: str, tmp_path: Path) -> None:
    """At sizes beside those that the exporter itself checks."""
    saved = save(tmp_path / "a.safetensors", tiny_config(cell=cell, pooling=pooling))
    export(saved, tmp_path / "model.onnx", name="made")
    for batch, time in ((1, 2), (3, 5), (7, 20)):
        frames = torch.randint(0, 256, (batch, time, 12, 16, 3), dtype=torch.uint8)
        lengths = [time - i % time for i in range(batch)]
        want = saved.model()(frames, torch.tensor(lengths))
        for got, expected in zip(run(tmp_path / "model.onnx", frames, lengths), want, strict=True):
            assert got.shape == expected.shape
            assert np.abs(got - expected.detach().numpy()).max() < LOGITS


@pytest.mark.parametrize("plan", list(contraction.all_plans(4)), ids=str)
def test_every_plan_is_the_same_function(plan: Plan, tmp_path: Path) -> None:
    export(save(tmp_path / "a.safetensors", tiny_config()), tmp_path / "model.onnx", name="made", plan=plan)
    assert Manifest.from_metadata(_metadata(tmp_path / "model.onnx")).contraction.groups == plan.groups


@pytest.mark.parametrize(
    ("modes", "std"),
    [
        ((3, 4, 4, 12), (0.5, 0.25, 1.0)),  # a scale per channel, folded into the last core
        ((3, 12, 4, 4), (0.5, 0.5, 0.5)),  # the last mode cuts through the channels: one scale folds
        ((3, 12, 4, 4), (0.5, 0.25, 1.0)),  # and three cannot
    ],
)
def test_scaling_lives_in_the_graph(modes: tuple[int, ...], std: tuple[float, float, float], tmp_path: Path) -> None:
    config = tiny_config(input_modes=modes, scaling=Scaling(mean=(0.1, 0.5, 0.9), std=std))
    export(save(tmp_path / "a.safetensors", config), tmp_path / "model.onnx", name="made")


def test_only_standard_ops_and_a_stated_gru_formula(tmp_path: Path) -> None:
    for cell in ("rnn", "gru", "lstm"):
        export(save(tmp_path / "a.safetensors", tiny_config(cell=cell)), tmp_path / "model.onnx", name="made")
        proto = onnx.load(tmp_path / "model.onnx")
        assert {node.op_type for node in proto.graph.node} <= STANDARD_OPS
        assert [opset.domain for opset in proto.opset_import] == [""]
        (recurrence,) = [node for node in proto.graph.node if node.op_type == cell.upper()]
        if cell == "gru":
            formula = {a.name: onnx.helper.get_attribute_value(a) for a in recurrence.attribute}["linear_before_reset"]
            assert formula == 1


def test_the_interface(tmp_path: Path) -> None:
    export(save(tmp_path / "a.safetensors", tiny_config()), tmp_path / "model.onnx", name="made")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("frames", "tensor(uint8)", ["batch", "time", 12, 16, 3]),
        ("lengths", "tensor(int32)", ["batch"]),
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", 3]),
        ("logits_over_time", "tensor(float)", ["batch", "time", 3]),
    ]


def test_the_manifest_says_everything(tmp_path: Path) -> None:
    saved = save(tmp_path / "a.safetensors", tiny_config())
    metrics = Metrics(split="test", num_clips=4, accuracy=0.75)
    returned = export(saved, tmp_path / "model.onnx", name="made", version="3", metrics=[metrics], temperature=1.5)
    manifest = Manifest.from_metadata(_metadata(tmp_path / "model.onnx"))
    assert manifest == returned
    assert manifest.labels == ("left", "right", "still")
    assert manifest.sampling == saved.model_config.sampling
    assert (manifest.name, manifest.version, manifest.temperature) == ("made", "3", 1.5)
    assert manifest.architecture.num_parameters == saved.model().num_parameters()
    assert manifest.metrics == (metrics,)
    assert manifest.data_set.num_clips == {"train": 5}
    assert manifest.checkpoint_sha256 == saved.sha256
    assert 0 < manifest.parity.max_abs_error <= manifest.parity.tolerance


def test_failed_parity_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the graph, of the kind that a wrong gate order is, is found and nothing is written."""
    saved = save(tmp_path / "a.safetensors", tiny_config(cell="lstm"))
    faulty = {kind: (op, tuple(sorted(order))) for kind, (op, order) in onnx_ops._OPS.items()}
    monkeypatch.setattr("ttmodels.onnx_ops._OPS", faulty)
    with pytest.raises(ParityError, match="differs from torch by"):
        export(saved, tmp_path / "model.onnx", name="made")
    assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "model.onnx")]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save(tmp_path / "a.safetensors", tiny_config())
    path = tmp_path / "model.onnx"
    export(saved, path, name="made")
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        export(saved, path, name="made")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "model.onnx"]


def test_the_command_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", tiny_config())
    figures = tmp_path / "test.json"
    figures.write_text(Metrics(split="held-out", num_clips=40, accuracy=0.975).model_dump_json())
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx"), "--metrics", str(figures)]
    assert to_onnx.main(arguments) == 0
    printed = capsys.readouterr().out
    for part in ("TT-GRU", "largest difference to torch", "0.9750 on 40 clips of held-out", "right to left"):
        assert part in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--name", "a/é"], "name: String should match pattern"),
        (["--metrics", "notes.txt"], "notes.txt: expected figures by `ttmodels.evaluate --write`: "),
        (["--metrics", "none.json"], "none.json: No such file or directory"),
        (["-o", "folder"], "-o: expected a file to write, found a folder at folder"),
        (["-o", "/proc/x/m.onnx"], "could not write /proc/x/m.onnx: No such file or directory"),
    ],
)
def test_what_does_not_fit_is_one_line(
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.safetensors", tiny_config())
    Path("notes.txt").write_text("hello")
    Path("folder").mkdir()
    assert to_onnx.main(["a.safetensors", "-o", "m.onnx", *more]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1
    assert "pydantic" not in printed
    assert not (tmp_path / "m.onnx").exists()


def test_a_folder_without_rights_is_named_not_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.safetensors", tiny_config())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".m.onnx.x7d2"))

    monkeypatch.setattr(atomic.tempfile, "mkstemp", refuse)
    assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx")]) == 2
    assert capsys.readouterr().err == f"error: could not write {tmp_path / 'm.onnx'}: Permission denied\n"


@pytest.mark.parametrize(
    ("out", "more", "says"),
    [
        ("models/mine/2/model.onnx", [], ("mine", "2")),
        ("models/mine/2/model.onnx", ["--name", "mine", "--version", "2"], ("mine", "2")),
        ("models/mine/2/../3/model.onnx", [], ("mine", "3")),
        ("model.onnx", [], ("run", "1")),
        ("models/mine/2/other.onnx", ["--version", "7"], ("run", "7")),
    ],
)
def test_name_and_version_are_those_of_the_folders(
    out: str, more: list[str], says: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service refuses a file that says otherwise."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    save(tmp_path / "run" / "best.safetensors", tiny_config())
    assert to_onnx.main(["run/best.safetensors", "-o", out, *more]) == 0
    manifest = Manifest.from_metadata(_metadata(Path(out)))
    assert (manifest.name, manifest.version) == says


def test_a_name_that_contradicts_the_folders_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", tiny_config())
    out = tmp_path / "models" / "mine" / "2" / "model.onnx"
    for option, given, folder in (("--name", "yours", "mine"), ("--version", "1", "2")):
        assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(out), option, given]) == 2
        assert f"expected {option} {folder}, as its folders say" in capsys.readouterr().err
    assert not out.exists()


def test_metrics_may_stand_before_the_checkpoint_and_be_repeated(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", tiny_config())
    arguments = ["-o", str(tmp_path / "m.onnx")]
    for split in ("test", "unseen"):
        (tmp_path / f"{split}.json").write_text(Metrics(split=split, num_clips=4, accuracy=0.5).model_dump_json())
        arguments += ["--metrics", str(tmp_path / f"{split}.json")]
    assert to_onnx.main([*arguments, str(tmp_path / "a.safetensors")]) == 0
    manifest = Manifest.from_metadata(_metadata(tmp_path / "m.onnx"))
    assert [figures.split for figures in manifest.metrics] == ["test", "unseen"]


def test_a_file_larger_than_allowed_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's own refusal to write on, as on a full disk."""
    saved, out = tmp_path / "a.safetensors", tmp_path / "m.onnx"
    save(saved, tiny_config())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        assert to_onnx.main([str(saved), "-o", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"error: could not write {out}: File too large" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("during", ["verify", "compare", "os.fsync"])
def test_an_interruption_leaves_nothing(
    during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while it proves, compares or writes."""
    save(tmp_path / "a.safetensors", tiny_config())
    place, name = (onnx_file.os, "fsync") if during == "os.fsync" else (to_onnx, during)
    monkeypatch.setattr(place, name, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx"), "--precision", "int8"]
    assert to_onnx.main(arguments) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def newer(path: Path) -> None:
    _with_header(path, lambda header: header | {"ttvideo.format": "2"})


def with_an_option_to_come(path: Path) -> None:
    _with_header(path, lambda header: header | {"ttvideo.model": header["ttvideo.model"][:-1] + ', "attention": true}'})


def without_a_tensor(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["model.head.bias"]
    save_file(tensors, path, header)


def _with_header(path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, change(header))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no"), "expected a safetensors file, got something else or a broken one"),
        (broken, "expected a safetensors file, got something else or a broken one"),
        (foreign, "safetensors, but not a checkpoint of ttvideo"),
        (newer, "checkpoint format 2, this code reads up to 1; upgrade ttvideo"),
        (with_an_option_to_come, "got also ['attention']; upgrade ttvideo"),
        (without_a_tensor, "expected the tensors of its configuration, got no head.bias"),
        (Path.unlink, "expected a checkpoint (a .safetensors file), found nothing at"),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, tiny_config())
    spoil(path)
    assert to_onnx.main([str(path), "-o", str(tmp_path / "m.onnx")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ")
    assert str(path) in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()


# ---- targets and precisions


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_lower_precision_says_how_far_it_is(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a folder of clips: the file's probabilities are the model's within what it says of itself."""
    saved = save(tmp_path / "a.safetensors", tiny_config())
    folder = write_folder(tmp_path / "clips", saved.model_config.labels, 3)
    out = tmp_path / "m.onnx"
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(out), "--precision", precision, "--evaluate", str(folder)]
    assert to_onnx.main(arguments) == 0
    manifest = Manifest.from_metadata(_metadata(out))
    assert manifest.precision == precision
    report = manifest.precision_report
    assert report is not None
    assert (report.num_clips, report.clips) == (9, "clips")
    assert 0 < report.max_probability_difference < 0.1
    assert report.label_agreement == 1.0
    with labelled_clips(folder, manifest.labels, manifest.sampling) as clips, torch.inference_mode():
        frames, targets = next(clips.batches(9))
        want = saved.model()(torch.from_numpy(frames)).logits
    assert report.accuracy_fp32 == float((want.argmax(-1).numpy() == targets).mean())
    got, _ = run(out, torch.from_numpy(frames), [6] * 9)
    differences = (torch.from_numpy(got).softmax(-1) - want.softmax(-1)).abs()
    assert float(differences.max()) == pytest.approx(report.max_probability_difference, abs=PROBABILITY)
    printed = capsys.readouterr().out
    assert f"{precision} against fp32: the same label on 100.00%" in printed
    assert "on 9 clips (clips)" in printed


def test_past_a_bound_there_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", tiny_config())
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx"), "--precision", "int8"]
    assert to_onnx.main([*arguments, "--max-probability-difference", "0"]) == 1
    printed = capsys.readouterr().err
    assert "too far from fp32 on 64 clips (made: smooth noise that changes): largest difference of prob" in printed
    assert "expected at most 0\n" in printed
    assert not (tmp_path / "m.onnx").exists()
    assert to_onnx.main(arguments) == 0


def test_parity_of_a_lower_precision_is_with_its_own_weights(tmp_path: Path) -> None:
    """A fault in the graph does not hide behind what rounding changes."""
    saved = save(tmp_path / "a.safetensors", tiny_config())
    manifest = export(saved, tmp_path / "m.onnx", name="made", precision="int8", measure=False)
    assert manifest.parity.max_abs_error < LOGITS / 10
    assert manifest.precision_report is not None
    assert manifest.precision_report.max_probability_difference > 10 * manifest.parity.max_abs_error


def test_the_choice_of_a_plan_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", tiny_config())
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx")]
    assert to_onnx.main(arguments) == 0
    chosen = Manifest.from_metadata(_metadata(tmp_path / "m.onnx")).contraction
    assert (chosen.target, len(chosen.measured)) == ("cpu", 5)
    assert (chosen.groups, chosen.direction) in [(timed.groups, timed.direction) for timed in chosen.measured]
    printed = capsys.readouterr().out
    assert all(f"{timed.milliseconds:8.3f} ms a clip by cores in groups {timed.groups}" in printed
               for timed in chosen.measured)  # fmt: skip
    assert to_onnx.main([*arguments, "--no-tune"]) == 0
    by_cost = Manifest.from_metadata(_metadata(tmp_path / "m.onnx")).contraction
    assert (by_cost.measured, by_cost.measured_on) == ((), "not measured: not asked for")
    shape = ClipClassifier(tiny_config()).projection.shape
    assert by_cost.groups == contraction.choose_plan(shape, 6, merged_once=True).groups
    assert "not measured: not asked for" in capsys.readouterr().out


def test_for_cuda_without_a_gpu_the_cost_model_chooses_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (to_onnx, cuda):
        monkeypatch.setattr(module, "cuda_fault", lambda: "there is no driver")
    save(tmp_path / "a.safetensors", tiny_config(recurrent_activation="hard_sigmoid"))
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx"), "--target", "cuda"]
    assert to_onnx.main([*arguments, "--precision", "fp16"]) == 0
    chosen = Manifest.from_metadata(_metadata(tmp_path / "m.onnx")).contraction
    assert (chosen.target, chosen.measured_on) == ("cuda", "not measured: there is no driver")
    assert "not measured: there is no driver" in capsys.readouterr().out
    assert to_onnx.main([*arguments, "--precision", "int8"]) == 2
    assert "--precision int8: expected --target cpu, got cuda" in capsys.readouterr().err


def test_for_cuda_a_node_that_it_does_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "refused", lambda _: [cuda.Refused("node_7", "Sinh", "no such op")])
    save(tmp_path / "a.safetensors", tiny_config())
    out = tmp_path / "m.onnx"
    assert to_onnx.main([str(tmp_path / "a.safetensors"), "-o", str(out), "--target", "cuda", "--no-tune"]) == 2
    assert "expected a graph that CUDA takes whole, got nodes for the CPU: Sinh node_7" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.gpu
def test_for_cuda_with_a_gpu_plans_are_measured_there(tmp_path: Path) -> None:
    saved = save(tmp_path / "a.safetensors", tiny_config())
    manifest = export(saved, tmp_path / "m.onnx", name="made", target="cuda", precision="fp16")
    assert manifest.contraction.measured
    assert manifest.contraction.measured_on.endswith("on CUDA")


def test_a_streaming_file_names_its_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", tiny_config(cell="lstm"))
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "m.onnx"), "--streaming", "--precision", "int8"]
    assert to_onnx.main(arguments) == 0
    manifest = Manifest.from_metadata(_metadata(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [state.input for state in manifest.states] == [i.name for i in session.get_inputs()][2:] == ["h", "c"]
    printed = capsys.readouterr().out
    assert "h -> next_h, float32 [batch, 1, 16]" in printed
    assert "at 20 sizes of batch and time, clips in pieces\n" in printed
    save(tmp_path / "a.safetensors", tiny_config(bidirectional=True))
    assert to_onnx.main(arguments) == 2
    assert "streaming: expected a model that reads forward" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        to_onnx.main(["--help"])
    printed = capsys.readouterr().out
    for part in ("examples:", "--precision int8 --evaluate test_clips/", "--streaming", "(fp32 0.001, fp16 0.02, int8"):
        assert part in printed


def _metadata(path: Path) -> dict[str, str]:
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert set(metadata) == {METADATA_KEY}
    return metadata
