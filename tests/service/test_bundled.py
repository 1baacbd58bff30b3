"""The model and the clips that come with the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.engine.provider import Choice
from service.engine.repository import BUNDLED
from service.engine.session import Session, probabilities
from service.video import decode_clip

MODEL = BUNDLED / "moving_digits" / "1" / "model.onnx"
SAMPLES = sorted((BUNDLED / "samples").iterdir())


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(MODEL, Choice("cpu"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_sample_is_what_its_name_says(session: Session, sample: Path) -> None:
    clip = decode_clip(sample, session.manifest.sampling)
    state = {one.input: np.zeros((1, *one.shape), one.dtype) for one in session.states}
    logits, *_ = session.run(clip.frames[None], np.array([len(clip.frames)], np.int32), state)
    believed = probabilities(logits[0], session.manifest)
    assert session.manifest.labels[int(believed.argmax())] == sample.stem
    assert believed.max() > 0.5


def test_they_are_small() -> None:
    assert MODEL.stat().st_size < 2e6
    assert 2 <= len(SAMPLES) <= 3
    assert sum(path.stat().st_size for path in SAMPLES) < 2e5


def test_the_manifest_says_how_good_it_is(session: Session) -> None:
    """Accuracy on held-out digits, seeds and codecs, the confusion behind it, and figures on things it never saw."""
    held_out, *unseen = session.manifest.metrics
    assert held_out.split.startswith("test")
    assert held_out.num_clips >= 1000
    assert held_out.confusion is not None
    confusion = np.array(held_out.confusion)
    assert held_out.accuracy == pytest.approx(np.trace(confusion) / confusion.sum())
    assert [metrics.split for metrics in unseen] == ["unseen: balls", "unseen: letters"]
