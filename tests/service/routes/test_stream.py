"""Live video over WebSockets: answers are those of the whole clip, whatever the client does ends well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from exporters import to_onnx
from service.engine.session import Session
from service.errors import SequenceExpired
from service.routes.messages import End
from service.routes.stream import _Talk
from service.settings import Settings
from service.video import decode_clip
from service.video.process import Decoder
from service.video.streaming import Pictures
from tests.made import random_classifier, tiny_config
from tests.service.conftest import PATIENCE_S, Service, coloured_frames, lives, running, wait_until
from tests.service.engine.streaming import logits_over_time
from tests.serving import served
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.config import TrainConfig

CLOSE = 1e-5
Message = dict[str, Any]


def write(path: Path, frames: np.ndarray, codec: str, *, rate: int = 10, **options: Any) -> list[bytes]:
    """A video in the container of the name's suffix; its packets."""
    pixels = {"mjpeg": "yuvj420p", "ffv1": "yuv420p"}.get(codec, "yuv420p")
    packets = []
    with av.open(str(path), "w", options=options.pop("container_options", {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options.pop("options", {}))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in (*frames, None):
            picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
            for packet in stream.encode(picture):
                packets.append(bytes(packet))
                container.mux(packet)
    return packets


def moving(num_frames: int = 20) -> np.ndarray:
    """Of changing colour, so that each frame tells in the sums."""
    frames = coloured_frames((40, 90, 10), num_frames)
    return np.stack([np.roll(frame, 3 * i, axis=1) // (1 + i % 4) for i, frame in enumerate(frames)])


@pytest.fixture(scope="module")
def service(streaming_models: Path) -> Iterator[Service]:
    settings = Settings(
        models=streaming_models,
        default_model="sums",
        provider="cpu",
        decode_workers=2,
        max_encoded_streams=2,
        max_message_bytes=300_000,
    )
    with running(settings) as running_service:
        yield running_service
        wait_until(lambda: not len(running_service.classifier.sequences), "no sequence is left")
        assert running_service.classifier.live_decoders.num_live == 0


def opened(service: Service, **query: Any) -> ClientConnection:
    asked = "&".join(f"{name}={value}" for name, value in ({"model": "sums", "top_k": 3} | query).items())
    url = service.url.replace("http://", "ws://")
    return connect(f"{url}/stream?{asked}", open_timeout=PATIENCE_S, compression=None)


def hear(socket: ClientConnection) -> Message:
    message = json.loads(socket.recv(PATIENCE_S))
    assert isinstance(message, dict)
    return message


def hear_all(socket: ClientConnection) -> list[Message]:
    """Until the socket is closed."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(hear(socket))
    return messages


def probabilities(step: Message, labels: tuple[str, ...] = ("a", "b", "c")) -> list[float]:
    found = {one["label"]: one["probability"] for one in step["top_k"]}
    assert (step["label"], step["probability"]) == (step["top_k"][0]["label"], step["top_k"][0]["probability"])
    return [found[label] for label in labels]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def whole(service: Service, path: Path, num_frames: int, **sampling: Any) -> np.ndarray:
    """What the model says after each of a clip's first frames, by plain arithmetic."""
    wanted = service.classifier.repository.find("sums").session.clip_manifest().sampling.every(num_frames)
    return softmax(logits_over_time(decode_clip(path, wanted.model_copy(update=sampling)).frames))


def check(messages: list[Message], expected: np.ndarray) -> None:
    *steps, end = messages
    assert [step["type"] for step in steps] == ["step"] * len(expected)
    assert [step["index"] for step in steps] == list(range(len(expected)))
    np.testing.assert_allclose([probabilities(step) for step in steps], expected, atol=CLOSE)
    assert (end["type"], end["num_steps"]) == ("end", len(expected))
    np.testing.assert_allclose(probabilities(end), expected[-1], atol=CLOSE)


@pytest.mark.parametrize("in_step", [True, False], ids=["one by one", "as fast as it goes"])
def test_pictures_are_the_whole_clip(service: Service, tmp_path: Path, in_step: bool) -> None:
    path = tmp_path / "clip.mkv"
    pictures = write(path, moving(), "mjpeg")
    with opened(service) as socket:
        ready = hear(socket)
        assert (ready["type"], ready["labels"]) == ("ready", ["a", "b", "c"])
        assert (ready["model"]["name"], ready["model"]["provider"]) == ("sums", "cpu")
        assert ready["expected"] == {"format": "jpeg", "max_message_bytes": 300_000, "rate": None, "idle_s": 60.0}
        heard = []
        for picture in pictures:
            socket.send(picture)
            if in_step:
                heard.append(hear(socket))
        socket.send('{"type": "end"}')
        heard += hear_all(socket)
        assert socket.close_code == 1000
    check(heard, whole(service, path, 20))
    assert heard[0]["time_s"] is None
    assert heard[-1]["warnings"] == []


CONTAINERS = {
    "ts": ("mpeg2video", {}),
    "mkv": ("ffv1", {}),
    "webm": ("libvpx", {"options": {"deadline": "realtime"}}),
    "mp4": ("libx264", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "5"}}),
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_an_encoded_stream_is_the_whole_clip(service: Service, tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, with B-frames in MP4. Times are those of the file."""
    codec, options = CONTAINERS[suffix]
    path = tmp_path / f"clip.{suffix}"
    write(path, moving(), codec, **options)
    data = path.read_bytes()
    with opened(service, format="encoded") as socket:
        assert hear(socket)["expected"]["format"] == "encoded"
        for start in range(0, len(data), 1009):
            socket.send(data[start : start + 1009])
        socket.send('{"type": "end"}')
        heard = hear_all(socket)
    check(heard, whole(service, path, 20))
    assert [round(step["time_s"], 2) for step in heard[:-1]] == [round(i / 10, 2) for i in range(20)]


@pytest.mark.parametrize("rate", [5, 4, 25])
def test_frames_at_a_rate(service: Service, tmp_path: Path, rate: int) -> None:
    """Those on display at that rate, as a model's own sampling takes them from a file."""
    path = tmp_path / "clip.mkv"
    write(path, moving(), "ffv1")
    num_frames = {5: 10, 4: 8, 25: 48}[rate]  # the last one is shown at 1.9 s
    with opened(service, format="encoded", rate=rate) as socket:
        assert hear(socket)["expected"]["rate"] == rate
        socket.send(path.read_bytes())
        socket.send('{"type": "end"}')
        heard = hear_all(socket)
    check(heard, whole(service, path, num_frames, policy="rate", rate=float(rate)))


@pytest.mark.slow
def test_an_exported_model(tmp_path: Path) -> None:
    """A checkpoint, exported with --streaming: frame by frame, in the whole clip at once, and by /classify."""
    network = random_classifier(tiny_config(cell="lstm", num_layers=2, pooling="mean"))
    checkpoint.save(tmp_path / "made.safetensors", network, TrainConfig(), Progress())
    file = tmp_path / "models/made/1/model.onnx"
    file.parent.mkdir(parents=True)
    assert to_onnx.main([str(tmp_path / "made.safetensors"), "-o", str(file), "--streaming", "--no-tune"]) == 0
    path = tmp_path / "clip.mkv"
    pictures = write(path, moving(6), "mjpeg")
    with running(Settings(models=tmp_path / "models", provider="cpu", decode_workers=1)) as service:
        with opened(service, model="made") as socket:
            hear(socket)
            for picture in pictures:
                socket.send(picture)
            socket.send('{"type": "end"}')
            *steps, end = hear_all(socket)
        session: Session = service.classifier.repository.find("made").session
        frames = decode_clip(path, session.clip_manifest().sampling).frames
        zeros = {one.input: np.zeros((1, *one.shape), one.dtype) for one in session.states}
        logits, over_time, _ = session.run(frames[None], np.array([6], np.int32), zeros)
        labels = network.config.labels
        got = [probabilities(step, labels) for step in steps]
        np.testing.assert_allclose(got, softmax(over_time[0]), atol=CLOSE)
        np.testing.assert_allclose(probabilities(end, labels), softmax(logits[0]), atol=CLOSE)
        answer = service.post(path, params={"model": "made"}).json()
        np.testing.assert_allclose(got, [step["probabilities"] for step in answer["over_time"]], atol=CLOSE)


def test_the_bundled_model(service: Service, tmp_path: Path) -> None:
    """In int8: a frame at a time as the clip at once."""
    path = tmp_path / "clip.mkv"
    pictures = write(path, moving(16), "mjpeg")
    model = service.classifier.repository.find("moving_digits")
    session, manifest = model.session, model.session.clip_manifest()
    frames = decode_clip(path, manifest.sampling.every(16)).frames
    _, over_time, _ = session.run(
        frames[None], np.array([16], np.int32), {n: v[None] for n, v in model.initial_state.items()}
    )
    with opened(service, model="moving_digits", top_k=len(manifest.labels)) as socket:
        hear(socket)
        for picture in pictures:
            socket.send(picture)
        socket.send('{"type": "end"}')
        *steps, _ = hear_all(socket)
    got = [probabilities(step, manifest.labels) for step in steps]
    np.testing.assert_allclose(got, softmax(over_time[0] / manifest.temperature), atol=CLOSE)


# --- errors -------------------------------------------------------------------------------------------------------


def refused(socket: ClientConnection, code: str, close: int) -> Message:
    """The last message is such an error, and the socket is closed."""
    error = hear_all(socket)[-1]
    assert (error["type"], error["code"]) == ("error", code)
    assert (socket.close_code, socket.close_reason) == (close, code)
    return error


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ({"model": "shapes"}, "unknown_model", "expected one of .*sums/1; got shapes"),
        ({"model": "colours"}, "not_for_pieces", "expected a model that was exported with --streaming"),
        ({"format": "png"}, "invalid_parameter", "format: .*'jpeg' or 'encoded', got 'png'"),
        ({"top_k": 0}, "invalid_parameter", "top_k: .*got '0'"),
        ({"top_k": 4}, "invalid_parameter", "top_k: expected 1 to 3"),
        ({"rate": 5}, "invalid_parameter", "rate: expected none with format=jpeg"),
        ({"rate": 0, "format": "encoded"}, "invalid_parameter", "rate: .*greater than or equal to 0.001"),
        ({"rate": 1e-9, "format": "encoded"}, "invalid_parameter", "rate: .*greater than or equal to 0.001"),
    ],
)
def test_what_cannot_be(service: Service, query: dict[str, Any], code: str, said: str) -> None:
    with opened(service, **query) as socket:
        assert re.search(said, refused(socket, code, 1008)["detail"])


def test_no_picture(service: Service, tmp_path: Path) -> None:
    """What came before it is answered."""
    good = write(tmp_path / "clip.mkv", moving(3), "mjpeg")
    for bad in (b"\xff\xd8 and so on", b"GIF89a", b"x" * 100_000):
        with opened(service) as socket:
            hear(socket)
            socket.send(good[0])
            assert hear(socket)["index"] == 0
            socket.send(bad)
            error = refused(socket, "undecodable_video", 1008)
            assert error["num_steps"] == 1
    with opened(service) as socket:
        hear(socket)
        for picture in (good[0], b"\xff\xd8 and so on", good[1]):
            socket.send(picture)
        error = refused(socket, "undecodable_video", 1008)
        assert re.search("expected (a JPEG picture, got something else as number 1 of|pictures)", error["detail"])


@pytest.mark.parametrize(
    ("data", "code"), [(b"no video " * 1000, "not_a_video"), (b"", "not_a_video")], ids=["text", "nothing"]
)
def test_no_video(service: Service, data: bytes, code: str) -> None:
    with opened(service, format="encoded") as socket:
        hear(socket)
        if data:
            socket.send(data)
        socket.send('{"type": "end"}')
        refused(socket, code, 1003)


@pytest.mark.parametrize("message", ["hello", '{"type": "start"}', "[]", b"", "[" * 100_000])
def test_messages_that_are_none(service: Service, message: str | bytes) -> None:
    with opened(service) as socket:
        hear(socket)
        socket.send(message)
        assert "expected binary messages that hold something" in refused(socket, "invalid_message", 1007)["detail"]


def test_a_message_that_is_too_large(service: Service) -> None:
    with opened(service) as socket:
        hear(socket)
        with contextlib.suppress(ConnectionClosed):
            socket.send(b"x" * 300_001)
        assert hear_all(socket) == []
        assert socket.close_code == 1009


def test_an_end_without_a_picture(service: Service) -> None:
    with opened(service) as socket:
        hear(socket)
        socket.send('{"type": "end"}')
        end = hear(socket)
    assert (end["num_steps"], end["label"], end["top_k"]) == (0, None, [])


def test_a_bound_on_encoded_streams(service: Service) -> None:
    with opened(service, format="encoded") as first, opened(service, format="encoded") as second:
        hear(first)
        hear(second)
        with opened(service, format="encoded") as third:
            assert "2 encoded streams are being decoded" in refused(third, "busy", 1013)["detail"]
    wait_until(lambda: not service.classifier.live_decoders.num_live, "the decoders have ended")
    with opened(service, format="encoded") as again:
        assert hear(again)["type"] == "ready"


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[Decoder]:
    """Every decoder process that is started."""
    started: list[Decoder] = []
    start = Decoder.start

    async def spied(*arguments: Any) -> Decoder:
        started.append(await start(*arguments))
        return started[-1]

    monkeypatch.setattr(Decoder, "start", spied)
    return started


def test_a_decoder_that_is_killed_costs_its_stream(service: Service, decoders: list[Decoder]) -> None:
    with opened(service, format="encoded") as socket:
        hear(socket)
        os.kill(decoders[0].pid, signal.SIGKILL)
        error = refused(socket, "decoder_crashed", 1008)
        assert error["detail"] == "the decoder process was ended by SIGKILL"
    assert service.classifier.live_decoders.num_live == 0


def test_a_client_that_goes_frees_its_place_and_its_decoder(
    service: Service, tmp_path: Path, decoders: list[Decoder]
) -> None:
    write(tmp_path / "clip.ts", moving(), "mpeg2video")
    with opened(service, format="encoded") as socket:
        hear(socket)
        socket.send((tmp_path / "clip.ts").read_bytes()[:20_000])
        (pid,) = [decoder.pid for decoder in decoders]
        socket.socket.shutdown(2)
    wait_until(lambda: not lives(pid), "its decoder has ended")
    wait_until(lambda: not len(service.classifier.sequences), "its sequence has ended")


def test_idle_ones_expire(streaming_models: Path, tmp_path: Path) -> None:
    picture, *_ = write(tmp_path / "clip.mkv", moving(1), "mjpeg")
    with running(Settings(models=streaming_models, provider="cpu", decode_workers=1, sequence_idle_s=0.3)) as service:
        for format in ("jpeg", "encoded"):
            with opened(service, format=format) as socket:
                assert hear(socket)["expected"]["idle_s"] == 0.3
                assert "stood idle for 0.3 s" in refused(socket, "sequence_expired", 1008)["detail"]
        with opened(service) as socket:
            hear(socket)
            for index in range(8):  # each within the time, all together not
                time.sleep(0.1)
                socket.send(picture)
                assert hear(socket)["index"] == index
            assert refused(socket, "sequence_expired", 1008)["num_steps"] == 8
        assert 'ttvideo_sequences_over_total{code="sequence_expired"} 3.0' in service.get("/metrics").text


def test_a_bound_on_streams_and_a_shutdown(streaming_models: Path) -> None:
    """A shutdown tells every stream so, and waits until it has."""
    with (
        running(Settings(models=streaming_models, provider="cpu", decode_workers=1, max_sequences=3)) as service,
        contextlib.ExitStack() as stack,
    ):
        sockets = [stack.enter_context(opened(service)) for _ in range(3)]
        for socket in sockets:
            hear(socket)
        with opened(service) as fourth:
            assert "3 sequences are live, the limit" in refused(fourth, "busy", 1013)["detail"]
        draining = threading.Thread(target=_drain, args=(service,))
        draining.start()
        for socket in sockets:
            assert refused(socket, "not_ready", 1012)["detail"] == "the service is shutting down"
        draining.join(PATIENCE_S)
        assert not draining.is_alive()
        with opened(service) as late:
            refused(late, "not_ready", 1012)


def _drain(service: Service) -> None:
    asyncio.run_coroutine_threadsafe(service.classifier.drain(), service.loop).result(PATIENCE_S)


def test_who_sends_faster_than_it_is_decoded_is_held_up_and_loses_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is not read while a picture and a few more wait."""
    path = tmp_path / "clip.mkv"
    pictures = [*write(path, moving(20), "mjpeg")]
    large = [picture[:2] + b"\xff\xfe\xff\xf0" + bytes(0xFFEE) + picture[2:] for picture in pictures]
    gate = threading.Event()
    take = Pictures.take

    async def held(self: Pictures) -> Any:
        await asyncio.to_thread(gate.wait, PATIENCE_S)
        return await take(self)

    monkeypatch.setattr(Pictures, "take", held)
    sent = 0

    with opened(service) as ws:
        ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        hear(ws)

        def send() -> None:
            nonlocal sent
            for picture in large * 20:
                ws.send(picture)
                sent += 1
            ws.send('{"type": "end"}')

        sending = threading.Thread(target=send)
        sending.start()
        before = -1
        while sent != before:  # the buffers of the two sockets fill up
            before = sent
            time.sleep(0.5)
        assert sent < 400, "the client was to be held up"
        gate.set()
        heard = hear_all(ws)
        sending.join(PATIENCE_S)
    assert [one["index"] for one in heard[:-1]] == list(range(400))
    frames = decode_clip(path, service.classifier.repository.find("sums").session.clip_manifest().sampling.every(20))
    expected = softmax(logits_over_time(np.concatenate([frames.frames] * 20)))
    np.testing.assert_allclose([probabilities(one) for one in heard[:-1]], expected, atol=CLOSE)


def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    class Deaf:
        state = SimpleNamespace(request_id="mine")

        async def send_text(self, text: str) -> None:
            await asyncio.sleep(PATIENCE_S)

    async def say() -> None:
        talk = _Talk(Deaf(), 0.02)  # type: ignore[arg-type]
        with pytest.raises(SequenceExpired, match="expected a client that reads"):
            await talk.say(End(num_steps=0, label=None, probability=None, top_k=[], warnings=[]))

    asyncio.run(say())


def test_broken_streams_are_answered(service: Service, tmp_path: Path) -> None:
    """Whatever comes, the stream ends by an `end` or an error of the client's, and the service goes on."""
    chance = random.Random(5)
    for suffix, (codec, options) in CONTAINERS.items():
        path = tmp_path / f"clip.{suffix}"
        write(path, moving(), codec, **options)
        for kind in range(4):
            data, place = bytearray(path.read_bytes()), chance.randrange(path.stat().st_size)
            match kind:
                case 0:
                    for _ in range(20):
                        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                case 1:
                    del data[place:]
                case 2:
                    del data[:place]
                case 3:
                    data[place:place] = chance.randbytes(2000)
            with opened(service, format="encoded") as socket:
                hear(socket)
                with contextlib.suppress(ConnectionClosed):
                    socket.send(bytes(data))
                    socket.send('{"type": "end"}')
                last = hear_all(socket)[-1]
            assert last["type"] == "end" or last["status"] in (415, 422), last


def test_plain_http_is_answered(service: Service) -> None:
    assert httpx.get(f"{service.url}/stream").status_code == 404


def test_one_line_in_the_log_and_one_request_in_the_metrics(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "service.access"):
        with opened(service) as socket:
            request_id = hear(socket)["request_id"]
            assert socket.response is not None
            assert socket.response.headers["x-request-id"] == request_id
            socket.send("?")
            refused(socket, "invalid_message", 1007)
        wait_until(lambda: "invalid_message" in caplog.text, "the line is written")
    (line,) = [message for message in caplog.messages if "invalid_message" in message]
    assert re.fullmatch(r"WEBSOCKET /stream 101 invalid_message [\d.]+ ms model=sums/1 provider=cpu", line)
    series = service.get("/metrics").text
    assert 'ttvideo_requests_total{code="invalid_message",route="/stream",status="101"}' in series


def test_a_key_is_asked_for_before_the_socket_is_opened(streaming_models: Path) -> None:
    with running(
        Settings(models=streaming_models, provider="cpu", decode_workers=1, api_keys="me:0123456789abcdef")
    ) as service:
        with pytest.raises(InvalidStatus) as caught:
            opened(service)
        assert caught.value.response.status_code == 401
        url = service.url.replace("http://", "ws://")
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        with connect(f"{url}/stream?model=sums", additional_headers=headers) as socket:
            assert hear(socket)["type"] == "ready"


@pytest.mark.slow
def test_sigterm_tells_every_stream_and_ends_the_process(streaming_models: Path, tmp_path: Path) -> None:
    picture, *_ = write(tmp_path / "clip.mkv", moving(1), "mjpeg")
    with served("--models", streaming_models, "--default-model", "moving_digits") as (process, url, _):
        address = f"{url.replace('http:', 'ws:')}/stream?model=sums"
        with connect(address) as pictures, connect(f"{address}&format=encoded") as encoded:
            hear(pictures)
            hear(encoded)
            pictures.send(picture)
            assert hear(pictures)["index"] == 0
            process.terminate()
            assert refused(pictures, "not_ready", 1012)["num_steps"] == 1
            refused(encoded, "not_ready", 1012)
        assert process.wait(PATIENCE_S) == 0
