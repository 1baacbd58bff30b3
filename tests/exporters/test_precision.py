"""How a lower precision is compared with fp32, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from sklearn.metrics import average_precision_score

from exporters.graph import build
from exporters.precision import BATCH, Bounds, PrecisionError, check_bounds, compare, made_clips
from service.manifest import Manifest, PrecisionReport
from service.video import Sampling
from tests.made import random_classifier, tiny_config
from tests.service.onnx_models import manifest
from tests.tolerances import LOGITS, PROBABILITY
from ttmodels.classifier import ClipClassifier
from ttmodels.contraction import Plan

REPORT = PrecisionReport(
    clips="here", num_clips=50, label_agreement=0.95, max_probability_difference=0.1, accuracy=0.89, accuracy_fp32=0.9
)


class Labelled:
    """In the place of decoded clips: frames with the labels that a model gives them, some of them changed."""

    class clips:
        root = Path("to/a folder")

    def __init__(self, model: ClipClassifier, *, num_wrong: int) -> None:
        with torch.inference_mode():
            self.all = [
                (frames, model(torch.from_numpy(frames)).logits.argmax(-1).numpy())
                for frames, _ in made_clips(model.config.sampling, 2 * BATCH)
            ]
        self.all[0][1][:num_wrong] = (self.all[0][1][:num_wrong] + 1) % 3

    def batches(self, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        assert size == BATCH
        return self.all


def graph_of(model: ClipClassifier) -> bytes:
    data: bytes = ir.to_proto(build(model, Plan((2, 2)))).SerializeToString()
    return data


def test_the_figures_are_torchs() -> None:
    """Two models that differ, so that labels and probabilities do."""
    model, other = random_classifier(tiny_config()), random_classifier(tiny_config())
    with torch.no_grad():
        other.head.bias += torch.tensor((1.5, 0.0, -1.0))
    clips = Labelled(model, num_wrong=3)
    said: Manifest = manifest().model_copy(update={"temperature": 2.0, "labels": ("left", "right", "still")})
    found = compare(graph_of(other), graph_of(model), clips, said)  # type: ignore[arg-type]
    frames = torch.from_numpy(np.concatenate([batch for batch, _ in clips.all]))
    with torch.inference_mode():
        mine, theirs = ((of(frames).logits / 2.0).softmax(-1) for of in (other, model))
    same = float((mine.argmax(-1) == theirs.argmax(-1)).double().mean())
    assert 0 < same < 1
    assert found.label_agreement == same
    assert found.max_probability_difference == pytest.approx(float((mine - theirs).abs().max()), abs=PROBABILITY)
    with torch.inference_mode():
        logits = [of(frames).logits for of in (other, model)]
    assert found.max_logit_difference == pytest.approx(float((logits[0] - logits[1]).abs().max()), abs=LOGITS)
    assert found.accuracy_fp32 == (2 * BATCH - 3) / (2 * BATCH)
    labels = np.concatenate([labels for _, labels in clips.all])
    assert found.accuracy == float((mine.argmax(-1).numpy() == labels).mean())
    assert (found.num_clips, found.clips) == (2 * BATCH, "a folder")


def test_of_several_labels_each_is_a_decision_of_its_own() -> None:
    model, other = random_classifier(tiny_config()), random_classifier(tiny_config())
    with torch.no_grad():
        other.head.bias += torch.tensor((1.5, 0.0, -1.0))
    clips = Labelled(model, num_wrong=0)
    true = np.random.default_rng(0).integers(0, 2, (2 * BATCH, 3)).astype(np.uint8)
    clips.all = [(frames, true[BATCH * i :][:BATCH]) for i, (frames, _) in enumerate(clips.all)]
    said: Manifest = manifest(task="multi_label", labels=("left", "right", "still"))
    found = compare(graph_of(other), graph_of(model), clips, said)  # type: ignore[arg-type]
    frames = torch.from_numpy(np.concatenate([batch for batch, _ in clips.all]))
    with torch.inference_mode():
        mine, theirs = (of(frames).logits.sigmoid().numpy() for of in (other, model))
    same = float(((mine > 0.5) == (theirs > 0.5)).mean())
    assert 0 < same < 1
    assert found.label_agreement == same
    assert found.max_probability_difference == pytest.approx(float(np.abs(mine - theirs).max()), abs=PROBABILITY)
    assert found.mean_ap == pytest.approx(average_precision_score(true, mine, average="macro"))
    assert found.mean_ap_fp32 == pytest.approx(average_precision_score(true, theirs, average="macro"))
    assert found.accuracy == float(((mine > 0.5) == (true > 0)).all(-1).mean())
    worse = found.model_copy(update={"label_agreement": 1.0, "max_probability_difference": 0.0, "mean_ap": 0.3})
    check_bounds(worse.model_copy(update={"mean_ap_fp32": 0.305}), Bounds())
    with pytest.raises(PrecisionError, match=r"loss of mean AP 0\.02, expected at most 0\.01"):
        check_bounds(worse.model_copy(update={"mean_ap_fp32": 0.32}), Bounds())


def test_without_labels_there_is_no_accuracy() -> None:
    model = random_classifier(tiny_config())
    found = compare(graph_of(model), graph_of(model), None, manifest(num_frames=6, height=12, width=16))
    assert (found.label_agreement, found.max_probability_difference) == (1.0, 0.0)
    assert (found.accuracy, found.accuracy_fp32) == (None, None)
    assert found.clips.startswith("made: ")
    check_bounds(found, Bounds(1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_agreement": 0.9499}, "label agreement 0.9499, expected at least 0.95"),
        ({"max_probability_difference": 0.11}, "largest difference of probabilities 0.11, expected at most 0.1"),
        ({"max_probability_difference": math.nan}, "largest difference of probabilities nan"),
        ({"accuracy": 0.88}, "loss of accuracy 0.02, expected at most 0.015"),
    ],
)
def test_past_a_bound_is_refused(changes: dict[str, float], message: str) -> None:
    bounds = Bounds(max_accuracy_loss=0.015)
    check_bounds(REPORT, bounds)
    check_bounds(REPORT.model_copy(update={"accuracy": 0.95}), bounds)  # better than fp32
    with pytest.raises(PrecisionError, match=r"too far from fp32 on 50 clips \(here\): " + message):
        check_bounds(REPORT.model_copy(update=changes), bounds)


def test_bounds_are_shares() -> None:
    with pytest.raises(ValueError, match="min_agreement: expected a number from 0 to 1, got 98"):
        Bounds(min_agreement=98)


def test_made_clips_are_smooth_and_always_the_same() -> None:
    sampling = Sampling(num_frames=6, height=24, width=32)
    clips = np.concatenate([frames for frames, _ in made_clips(sampling, 11)])
    assert clips.shape == (11, *sampling.clip_shape)
    assert clips.dtype == np.uint8
    assert np.array_equal(clips, np.concatenate([frames for frames, _ in made_clips(sampling, 11)]))
    values = clips.astype(float)
    assert all(clip.std() > 10 for clip in values)
    assert np.abs(np.diff(values, axis=3)).mean() < 0.3 * values.std()  # neighbours are alike
    assert all(np.abs(np.diff(clip, axis=0)).mean() > 1 for clip in values)  # frames are not
