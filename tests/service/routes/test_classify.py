"""POST /classify: the answer against the model file itself, and every way to ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.manifest import METADATA_KEY, Manifest
from service.video import decode_clip
from tests.service.conftest import Service
from tests.tolerances import SERVED


class Oracle:
    """The model file, run directly on the decoded clip, with a softmax of the test's own."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.manifest = Manifest.model_validate_json(self.session.get_modelmeta().custom_metadata_map[METADATA_KEY])

    def __call__(self, video: Path) -> dict[str, Any]:
        clip = decode_clip(video, self.manifest.sampling)
        feed = {"frames": clip.frames[None], "lengths": np.array([len(clip.frames)], np.int32)}
        logits, over_time = (np.asarray(output)[0].astype(np.float64) for output in self.session.run(None, feed))
        return {"whole": self.believe(logits), "over_time": self.believe(over_time), "info": clip.info}

    def believe(self, logits: np.ndarray) -> np.ndarray:
        logits = logits / self.manifest.temperature
        if self.manifest.task == "multi_label":
            return np.asarray(1 / (1 + np.exp(-logits)))
        return np.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))

    def check(self, answer: dict[str, Any], video: Path) -> None:
        expected = self(video)
        labels = self.manifest.labels
        assert answer["labels"] == list(labels)
        best = int(expected["whole"].argmax())
        assert answer["label"] == labels[best]
        assert answer["probability"] == pytest.approx(expected["whole"][best], abs=SERVED)
        for scored in answer["top_k"]:
            assert scored["probability"] == pytest.approx(expected["whole"][labels.index(scored["label"])], abs=SERVED)
        np.testing.assert_allclose(
            [step["probabilities"] for step in answer["over_time"]], expected["over_time"], atol=SERVED
        )
        for step in answer["over_time"]:
            assert step["probability"] == max(step["probabilities"])
            assert step["label"] == labels[step["probabilities"].index(step["probability"])]
        info = expected["info"]
        assert [step["time_s"] for step in answer["over_time"]] == list(info.times_s)
        facts = answer["clip"]
        assert facts["times_s"] == list(info.times_s)
        assert facts["pts_s"] == list(info.pts_s)
        assert (facts["exact"], facts["mirrored"]) == (info.exact, info.mirrored)
        assert facts["num_frames_used"] == len(set(info.times_s))
        assert facts["upload_bytes"] == video.stat().st_size
        assert facts["warnings"] == list(info.warnings)
        for name in ("container", "codec", "width", "height", "duration_s", "frame_rate", "num_frames", "rotation"):
            assert facts[name] == getattr(info, name)


@pytest.fixture(scope="module")
def oracle(models: Path) -> Oracle:
    return Oracle(models / "colours/1/model.onnx")


def test_multipart(service: Service, oracle: Oracle, clips: dict[str, Path]) -> None:
    for colour, path in clips.items():
        response = service.post(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        oracle.check(answer, path)
        assert answer["label"] == colour
        assert len(answer["top_k"]) == 4
        assert answer["top_k"][0] == {"label": answer["label"], "probability": answer["probability"]}


@pytest.mark.parametrize("content_type", ["video/mp4", "application/octet-stream", "text/plain", None])
def test_raw_body_of_any_content_type(
    service: Service, oracle: Oracle, clips: dict[str, Path], content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = service.post(content=clips["red"].read_bytes(), headers=headers)
    assert response.status_code == 200
    oracle.check(response.json(), clips["red"])


def test_real_clips(service: Service, oracle: Oracle, real_clip: Path) -> None:
    response = service.post(real_clip)
    assert response.status_code == 200
    oracle.check(response.json(), real_clip)


def test_at_the_same_time(service: Service, oracle: Oracle, clips: dict[str, Path]) -> None:
    paths = list(clips.values()) * 8
    with ThreadPoolExecutor(8) as threads:
        for path, response in zip(paths, threads.map(service.post, paths), strict=True):
            oracle.check(response.json(), path)


def test_other_fields_and_odd_file_names_play_no_part(service: Service, oracle: Oracle, clips: dict[str, Path]) -> None:
    data = clips["red"].read_bytes()
    for name in ("../../etc/passwd", "list.m3u8", "concat:a|b", "\u202egnp.4pm", "a" * 300):
        response = service.post(files={"file": (name, data)}, data={"comment": "x" * 1000})
        assert response.status_code == 200
        oracle.check(response.json(), clips["red"])


def test_top_k(service: Service, clips: dict[str, Path]) -> None:
    answer = service.post(clips["green"], params={"top_k": 2}).json()
    assert len(answer["top_k"]) == 2
    probabilities = [scored["probability"] for scored in answer["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert answer["top_k"][0]["label"] == answer["label"] == "green"


def test_model_and_version(service: Service, models: Path, clips: dict[str, Path]) -> None:
    for params, name in (
        ({"model": "colours"}, "colours/2"),
        ({"model": "colours", "version": "1"}, "colours/1"),
        ({"version": "2"}, "colours/2"),
        ({"model": "tags"}, "tags/1"),
    ):
        answer = service.post(clips["blue"], params=params).json()
        assert f"{answer['model']['name']}/{answer['model']['version']}" == name
        Oracle(models / name / "model.onnx").check(answer, clips["blue"])
    assert (answer["model"]["task"], answer["label"]) == ("multi_label", "blue")
    assert sum(scored["probability"] for scored in answer["top_k"]) > 1.5


def test_the_answer_says_which_model_where_and_how_long(service: Service, clips: dict[str, Path]) -> None:
    answer = service.post(clips["red"]).json()
    info = service.get("/model").json()
    assert answer["model"] == {
        "name": "colours",
        "version": "1",
        "task": "single_label",
        "sha256": info["sha256"],
        "precision": "fp32",
        "provider": "cpu",
    }
    times = answer["times_ms"]
    stages = times["upload"] + times["queue"] + times["decode"] + times["infer"]
    assert all(spent >= 0 for spent in times.values())
    assert times["decode"] > 0
    assert stages <= times["total"] + 0.01


def test_keyframes_are_a_quick_answer_that_says_so(service: Service, oracle: Oracle, clips: dict[str, Path]) -> None:
    answer = service.post(clips["red"], params={"sampling": "keyframes"}).json()
    assert answer["clip"]["exact"] is False
    assert answer["clip"]["times_s"] == [0.0] * oracle.manifest.sampling.num_frames  # it has one keyframe
    assert service.post(clips["red"]).json()["clip"]["exact"] is True
    refused = service.post(clips["red"], params={"sampling": "some"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
