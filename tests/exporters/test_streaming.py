"""A streaming graph: clips in pieces of any length give the whole clips' logits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import states
from exporters.graph import build
from exporters.timing import open_session
from exporters.to_onnx import export
from exporters.verify import THREADS, run_in_pieces
from service.engine.provider import Choice
from service.engine.session import Session
from service.manifest import State
from tests.made import random_classifier, random_clips, tiny_config
from tests.tolerances import STREAMED
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import TrainConfig
from ttmodels.contraction import Plan

FORMS: dict[str, dict[str, Any]] = {
    "gru": {},
    "mean": {"pooling": "mean"},
    "lstm": {"cell": "lstm", "num_layers": 2, "pooling": "mean"},
    "difference": {"difference": True},
    "difference_mean": {"cell": "lstm", "difference": True, "pooling": "mean", "num_layers": 2},
    "scan": {"cell": "lstm", "num_layers": 2, "activation": "gelu"},
    "rnn": {"cell": "rnn", "num_layers": 3, "recurrent_ranks": (2,)},
}


@functools.cache
def opened(form: str) -> tuple[ClipClassifier, onnxruntime.InferenceSession]:
    model = random_classifier(tiny_config(**FORMS[form]))
    data = ir.to_proto(build(model, Plan((2, 2)), streaming=True)).SerializeToString()
    return model, open_session(data, THREADS)


def close(got: np.ndarray, want: torch.Tensor) -> bool:
    return bool(np.abs(got - want.numpy()).max() < STREAMED * float(want.abs().max()))


@st.composite
def clips_in_pieces(draw: st.DrawFn) -> tuple[int, list[int], list[list[int]]]:
    """Time, lengths and cuts [pieces - 1][batch] of a batch whose clips come at their own pace."""
    batch, time = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch))
    row = st.lists(st.integers(0, time), min_size=batch, max_size=batch)
    return time, lengths, draw(st.lists(row, max_size=5))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(clips_in_pieces())
def test_a_clip_in_pieces_is_the_whole_clip(form: str, drawn: tuple[int, list[int], list[list[int]]]) -> None:
    model, session = opened(form)
    time, lengths, cuts = drawn
    frames = random_clips(len(lengths), time)
    with torch.inference_mode():
        want = model(frames, torch.tensor(lengths))
    counts = np.array(lengths, np.int32)
    where = np.array(cuts, np.int64).reshape(-1, len(lengths))
    got = run_in_pieces(session, states.of(model), frames.numpy(), counts, where)
    assert close(got[0], want.logits)
    assert close(got[1], want.logits_over_time)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_piece_changes_nothing(form: str) -> None:
    """Its logits are those of what came before, at every step."""
    model, session = opened(form)
    carried = states.of(model)
    frames = random_clips(2, 4).numpy()
    state = {one.input: np.zeros((2, *one.shape), one.dtype) for one in carried}
    names = ["logits", "logits_over_time", *(one.output for one in carried)]
    before, _, *handed = session.run(names, {"frames": frames, "lengths": np.array([4, 3], np.int32), **state})
    state = dict(zip((one.input for one in carried), handed, strict=True))
    after, over_time, *new = session.run(names, {"frames": frames, "lengths": np.zeros(2, np.int32), **state})
    np.testing.assert_array_equal(after, before)
    for mine, theirs in zip(new, handed, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with torch.inference_mode():
        last = model(torch.from_numpy(frames), torch.tensor([4, 3])).logits_over_time[:, -1:]
    assert close(over_time, last.expand(-1, 4, -1))


def test_the_states_are_described_as_they_are() -> None:
    model, session = opened("lstm")
    assert states.of(model) == (
        State(input="h", output="next_h", dtype="float32", shape=(2, 16)),
        State(input="c", output="next_c", dtype="float32", shape=(2, 16)),
        State(input="logits_sum", output="next_logits_sum", dtype="float32", shape=(3,)),
        State(input="num_steps", output="next_num_steps", dtype="int32", shape=()),
    )
    found = {node.name: (node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())}
    assert list(found) == [
        *("frames", "lengths", "h", "c", "logits_sum", "num_steps"),
        *("logits", "logits_over_time", "next_h", "next_c", "next_logits_sum", "next_num_steps"),
    ]
    for state in states.of(model):
        kind = {"float32": "tensor(float)", "int32": "tensor(int32)"}[state.dtype]
        assert found[state.input] == found[state.output] == (kind, ["batch", *state.shape])


def test_only_what_a_model_has_is_carried() -> None:
    assert [state.input for state in states.of(opened("gru")[0])] == ["h"]
    assert [state.input for state in states.of(opened("mean")[0])] == ["h", "logits_sum", "num_steps"]
    assert [state.input for state in states.of(opened("difference")[0])] == ["h", "previous", "num_steps"]


def test_the_service_classifies_whole_clips_with_it_too(tmp_path: Path) -> None:
    model = opened("gru")[0]
    checkpoint.save(tmp_path / "a.safetensors", model, TrainConfig(), Progress())
    saved, path = checkpoint.load(tmp_path / "a.safetensors"), tmp_path / "made.onnx"
    manifest = export(saved, path, name="made", streaming=True, measure=False)
    assert manifest.states == states.of(model)
    session = Session(path, Choice("cpu"))
    assert session.clip_manifest() == manifest
    clips = random_clips(3, 5)
    zeros = {one.input: np.zeros((3, *one.shape), one.dtype) for one in manifest.states}
    logits, over_time, after = session.run(clips.numpy(), np.array([5, 1, 4], np.int32), zeros)
    with torch.inference_mode():
        want = model(clips, torch.tensor([5, 1, 4]))
    assert close(logits, want.logits)
    assert close(over_time, want.logits_over_time)
    assert after.keys() == zeros.keys()
