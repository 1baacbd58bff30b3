"""POST /classify?window_s=: timelines against the model file itself, and what becomes of those that go wrong."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.engine import answers
from service.schemas import Window
from service.settings import Settings
from service.video import Sampling, decode_windows
from service.video.windows import Windowing
from tests.service.conftest import PATIENCE_S, Service, running, wait_until
from tests.service.onnx_models import LABELS, manifest
from tests.service.routes.test_problem import check_problem
from tests.service.video.plainly import Whole, decode_whole
from tests.tolerances import SERVED
from ttmodels.data.encode import write_video

HEIGHT, WIDTH, NUM_FRAMES = 24, 32, 8
COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
SHOWN = ["red", "red", "blue", "green", "green", "green"]
"""Second by second."""


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of one colour after the other, 25 pictures each."""
    path = tmp_path_factory.mktemp("changing") / "a.mp4"
    frames = np.empty((150, 48, 64, 3), np.uint8)
    for i in range(150):
        frames[i] = COLOURS[SHOWN[i // 25]]
        frames[i, 10:20, i % 50 : i % 50 + 10] = 255
    write_video(path, frames, rate=25)
    return path


def believe(models: Path, whole: Whole, start_s: float, end_s: float) -> np.ndarray:
    """What the model file says of a window, its frames chosen by hand out of every picture."""
    first = whole.packet_times[0]
    start, end = (first + int(round(seconds / float(whole.base), 6)) for seconds in (start_s, end_s))
    chosen = [whole.shown_at(start + (2 * i + 1) * (end - start) / (2 * NUM_FRAMES)) for i in range(NUM_FRAMES)]
    frames = np.stack([whole.pixels(index, HEIGHT, WIDTH) for index in chosen])[None]
    session = onnxruntime.InferenceSession(models / "colours/1/model.onnx", providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"frames": frames, "lengths": np.array([NUM_FRAMES], np.int32)})[0])[0]
    return np.asarray(np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum())


def check(service: Service, models: Path, path: Path, window_s: float, stride_s: float) -> dict[str, Any]:
    response = service.post(path, params={"window_s": window_s, "stride_s": stride_s})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    whole = decode_whole(path)
    assert (answer["window_s"], answer["stride_s"], answer["labels"]) == (window_s, stride_s, list(LABELS))
    for window in answer["windows"]:
        expected = believe(models, whole, window["from_s"], window["to_s"])
        np.testing.assert_allclose(window["probabilities"], expected, atol=SERVED)
        assert window["label"] == LABELS[int(expected.argmax())]
        assert window["probability"] == max(window["probabilities"])
    used = {time_s for window in answer["windows"] for time_s in window["times_s"]}
    assert answer["clip"]["num_frames_used"] == len(used)
    return answer


def test_windows_are_what_the_model_says_of_their_frames(service: Service, models: Path, changing: Path) -> None:
    answer = check(service, models, changing, 1.0, 1.0)
    assert [window["label"] for window in answer["windows"]] == SHOWN
    spans = [(span["label"], span["from_s"], span["to_s"]) for span in answer["spans"]]
    assert spans == [("red", 0, 2), ("blue", 2, 3), ("green", 3, 6)]
    for span, (first, last) in zip(answer["spans"], [(0, 2), (2, 3), (3, 6)], strict=True):
        inside = [window["probability"] for window in answer["windows"][first:last]]
        assert span["probability"] == pytest.approx(np.mean(inside))
    assert answer["clip"]["exact"] is True
    assert answer["clip"]["duration_s"] == 6.0


def test_windows_that_overlap(service: Service, models: Path, changing: Path) -> None:
    answer = check(service, models, changing, 2.0, 0.5)
    assert [window["from_s"] for window in answer["windows"]] == [0.5 * i for i in range(9)]
    assert answer["spans"][0]["from_s"] == 0
    assert answer["spans"][-1]["to_s"] == 6
    for before, after in zip(answer["spans"], answer["spans"][1:], strict=False):
        assert before["to_s"] == after["from_s"]
        assert before["label"] != after["label"]


def test_real_clips(service: Service, models: Path, real_clip: Path) -> None:
    answer = service.post(real_clip, params={"window_s": 0.7}).json()
    duration_s = answer["clip"]["duration_s"]
    assert len(answer["windows"]) == max(1, int(np.ceil(duration_s / 0.7 - 1e-9)))
    assert answer["spans"][-1]["to_s"] == pytest.approx(duration_s)
    sampling = Sampling(num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)
    out = np.zeros(sampling.clip_shape, np.uint8)
    session = onnxruntime.InferenceSession(models / "colours/1/model.onnx", providers=["CPUExecutionProvider"])
    expected: list[np.ndarray] = []

    def keep(window: object) -> None:
        feed = {"frames": out[None].copy(), "lengths": np.array([NUM_FRAMES], np.int32)}
        logits = np.asarray(session.run(["logits"], feed)[0])[0].astype(float)
        expected.append(np.exp(logits) / np.exp(logits).sum())

    decode_windows(real_clip, sampling, Windowing(window_s=0.7, stride_s=0.7, max_windows=1000), keep, out)
    np.testing.assert_allclose([window["probabilities"] for window in answer["windows"]], expected, atol=SERVED)


def test_a_short_video_gets_the_answer_that_it_gets_as_a_clip(service: Service, clips: dict[str, Path]) -> None:
    for path in clips.values():
        (window,) = service.post(path, params={"window_s": 100, "top_k": 2}).json()["windows"]
        clip = service.post(path, params={"top_k": 2}).json()
        assert (window["label"], window["top_k"]) == (clip["label"], clip["top_k"])
        assert (window["times_s"], window["pts_s"]) == (clip["clip"]["times_s"], clip["clip"]["pts_s"])


def test_the_answer_says_how_long_it_took(service: Service, changing: Path) -> None:
    times = service.post(changing, params={"window_s": 1}).json()["times_ms"]
    assert all(spent >= 0 for spent in times.values())
    assert times["upload"] + times["queue"] + times["decode"] + times["infer"] <= times["total"] + 0.01
    assert times["infer"] > 0


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"window_s": 0}, "window_s: Input should be greater than or equal to 0.01"),
        ({"window_s": "nan"}, "window_s: "),
        ({"window_s": "inf"}, "window_s: "),
        ({"stride_s": 1}, "stride_s: expected window_s beside it, got 1 alone"),
        ({"window_s": 1, "stride_s": 2}, "stride_s: expected at most window_s, 1, got 2"),
        (
            {"window_s": 1, "sampling": "keyframes"},
            "window_s: expected frames chosen by time or in a row, got keyframes",
        ),
    ],
)
def test_what_cannot_be_asked(service: Service, changing: Path, params: dict[str, Any], said: str) -> None:
    body = check_problem(service.post(changing, params=params), 422, "invalid_parameter")
    assert said in body["detail"]


def test_too_many_windows(service: Service, changing: Path) -> None:
    settings = service.classifier.settings.model_copy(update={"max_windows": 5, "decode_workers": 1})
    with running(settings) as small:
        body = check_problem(small.post(changing, params={"window_s": 1}), 422, "too_many_windows")
        assert body["detail"] == "expected at most 5 windows, got 6: 6.0 s, one every 1 s"
        assert len(small.post(changing, params={"window_s": 1.2}).json()["windows"]) == 5
        assert small.classifier.pool.num_replaced == 0


def cut(starts: list[float], chances: list[list[float]]) -> list[Window]:
    """Windows of 3 s with the probabilities of red, green, blue and dark."""
    rest: dict[str, Any] = {"top_k": [], "times_s": [], "pts_s": []}
    return [
        Window(label=LABELS[int(np.argmax(row))], probability=max(row), probabilities=row, from_s=s, to_s=s + 3, **rest)
        for s, row in zip(starts, chances, strict=True)
    ]


def test_a_border_is_half_way_between_middles() -> None:
    windows = cut([0, 1, 2, 2.5], [[0.5, 0.4, 0, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.9, 0, 0], [1, 0, 0, 0]])
    spans = [(s.label, s.from_s, s.to_s, s.probability) for s in answers.spans(windows, manifest())]
    assert spans == [("red", 0, 3, pytest.approx(0.6)), ("green", 3, 3.75, 0.9), ("red", 3.75, 5.5, 1.0)]


def test_of_several_labels_each_has_spans_of_its_own() -> None:
    """They overlap, and where none holds there is none."""
    windows = cut([0, 1, 2, 2.5], [[0.6, 0.9, 0, 0], [0.8, 0.4, 0, 0.3], [0.2, 0.1, 0, 0], [0, 0.5, 0, 0.6]])
    spans = [(s.label, s.from_s, s.to_s, s.probability) for s in answers.spans(windows, manifest(task="multi_label"))]
    assert spans == [
        ("red", 0, 3, pytest.approx(0.7)),
        ("green", 0, 2, 0.9),
        ("green", 3.75, 5.5, 0.5),
        ("dark", 3.75, 5.5, 0.6),
    ]
    assert answers.spans(windows[2:3], manifest(task="multi_label")) == []


# ---- what goes wrong on the way


@pytest.fixture
def small(models: Path, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        models=models, default_model="colours/1", provider="cpu", decode_workers=1, spool_dir=tmp_path, model_threads=1
    )
    with running(settings) as service:
        yield service
    assert list(tmp_path.iterdir()) == []


def held_after(service: Service, number: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model stands still from its `number`-th run on, until the event is set."""
    going_on, runs = threading.Event(), 0
    for model in service.classifier.repository.models:
        run = model._line._run

        def held(*arguments: Any, run: Any = run) -> Any:
            nonlocal runs
            runs += 1
            if runs >= number:
                going_on.wait(PATIENCE_S)
            return run(*arguments)

        monkeypatch.setattr(model._line, "_run", held)
    return going_on


HEAD = b"POST /classify?window_s=0.2 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_a_client_that_hangs_up_stops_it(small: Service, changing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it, while the decoder waits for the model."""
    data = changing.read_bytes()
    going_on = held_after(small, 3, monkeypatch)
    (pid,) = small.classifier.pool.pids
    with socket.create_connection(small.address, timeout=PATIENCE_S) as connection:
        connection.sendall(HEAD % len(data) + data)
        wait_until(lambda: "ttvideo_frames_decoded_total 24.0" in small.get("/metrics").text, "the third is there")
    wait_until(lambda: small.classifier.admission.in_flight == 0, "the work has stopped")
    wait_until(lambda: pid not in small.classifier.pool.pids, "its decoder is gone")
    going_on.set()
    assert small.classifier.spool.used_bytes == 0
    assert small.post(changing, params={"window_s": 1}).status_code == 200


def test_a_decoder_that_dies_in_the_middle(small: Service, changing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = held_after(small, 3, monkeypatch)
    (pid,) = small.classifier.pool.pids

    def kill() -> None:
        wait_until(lambda: "ttvideo_frames_decoded_total 24.0" in small.get("/metrics").text, "the third is there")
        os.kill(pid, signal.SIGKILL)
        going_on.set()

    killer = threading.Thread(target=kill)
    killer.start()
    check_problem(small.post(changing, params={"window_s": 0.2}), 422, "decoder_crashed")
    killer.join()
    assert small.post(changing, params={"window_s": 1}).status_code == 200
    assert small.classifier.pool.num_replaced == 1


def test_the_deadline_holds_for_all_of_it(small: Service, changing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        going_on = held_after(small, 3, patch)
        patch.setattr(small.classifier, "settings", small.classifier.settings.model_copy(update={"deadline_s": 0.5}))
        check_problem(small.post(changing, params={"window_s": 0.2}), 504, "deadline_exceeded")
        going_on.set()
    assert small.post(changing, params={"window_s": 1}).status_code == 200


def test_a_decoder_is_at_most_one_window_ahead(small: Service, changing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a long video's windows do not pile up where the model is slower."""
    waiting: list[int] = []
    for model in small.classifier.repository.models:
        run = model._line._run

        def noted(*arguments: Any, run: Any = run, model: Any = model) -> Any:
            waiting.append(model.depth)
            return run(*arguments)

        monkeypatch.setattr(model._line, "_run", noted)
    assert small.post(changing, params={"window_s": 0.2}).status_code == 200
    assert len(waiting) == 30
    assert max(waiting) == 0
