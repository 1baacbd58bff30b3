"""The sequence extension by the protocol's own client, as it comes, against plain arithmetic on whole clips."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from service.settings import Settings
from tests.service.conftest import Service, running, wait_until
from tests.service.engine import streaming
from tests.service.engine.streaming import clip, logits_over_time
from tests.service.routes.test_v2 import check_error, given

CLOSE = 1e-5


@pytest.fixture(scope="module")
def service(streaming_models: Path) -> Iterator[Service]:
    with running(
        Settings(models=streaming_models, default_model="sums", provider="cpu", decode_workers=1, max_sequences=50)
    ) as running_service:
        yield running_service


@pytest.fixture
def client(service: Service) -> Iterator[InferenceServerClient]:
    host, port = service.address
    with InferenceServerClient(f"{host}:{port}", concurrency=8) as opened:
        yield opened


def ask(client: InferenceServerClient, piece: np.ndarray, id: Any, **more: Any) -> InferResult:
    return client.infer(more.pop("model", "sums"), [given("frames", piece[None])], sequence_id=id, **more)


def check(result: InferResult, frames: np.ndarray, start: int = 0) -> None:
    got = result.as_numpy("logits_over_time")[0]
    np.testing.assert_allclose(got, logits_over_time(frames)[start : start + len(got)], atol=CLOSE)


@pytest.mark.parametrize("id", [1, 2**63, "camera 7"])
def test_a_clip_in_pieces(service: Service, client: InferenceServerClient, id: Any) -> None:
    frames = clip(1, 9)
    check(ask(client, frames[:4], id, sequence_start=True), frames)
    result = ask(client, frames[4:5], id)
    check(result, frames, 4)
    assert [one["name"] for one in result.get_response()["outputs"]] == ["logits", "logits_over_time", "probabilities"]
    check(ask(client, frames[5:], id, sequence_end=True), frames, 5)
    with pytest.raises(InferenceServerException, match="expected sequence_start, since there is no sequence") as caught:
        ask(client, frames[:1], id)
    assert caught.value.status() == "404"
    assert len(service.classifier.sequences) == 0


def test_a_clip_in_one_piece_and_states_that_are_asked_for(service: Service, client: InferenceServerClient) -> None:
    frames = clip(2, 3)
    wanted = [InferRequestedOutput("z_next"), InferRequestedOutput("probabilities", class_count=1)]
    result = ask(client, frames, 3, sequence_start=True, sequence_end=True, outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("z_next")[0], logits_over_time(frames)[-1, :1], atol=CLOSE)
    assert len(service.classifier.sequences) == 0


def test_no_sequence_is_as_before(client: InferenceServerClient) -> None:
    """Id 0, "" and none: states as tensors, both or neither, of which neither are zeros."""
    frames = clip(3, 6)
    for id in (0, ""):
        check(ask(client, frames, id), frames)
    result = client.infer("sums", [given("frames", frames[None, :2])])
    states = [given(name, result.as_numpy(after)) for name, after in (("a", "z_next"), ("b", "y_next"))]
    check(client.infer("sums", [given("frames", frames[None, 2:]), *states]), frames, 2)
    with pytest.raises(InferenceServerException, match="expected b too, got frames, a, lengths"):
        client.infer("sums", [given("frames", frames[None]), states[0]])


def test_faults(service: Service, client: InferenceServerClient) -> None:
    frames = clip(4, 2)
    ask(client, frames, 8, sequence_start=True)
    state = given("a", np.zeros((1, 1), np.float32))
    for inputs, said in (
        ([given("frames", frames[None]), state], "inputs: expected frames and lengths, got a"),
        ([given("frames", np.stack([frames, frames]))], "expected a batch of at most 1, since it is one piece of one"),
        ([given("frames", frames[None]), given("lengths", np.array([3], np.int32))], "lengths: expected 0 to 2"),
    ):
        with pytest.raises(InferenceServerException, match=said):
            client.infer("sums", inputs, sequence_id=8)
    with pytest.raises(InferenceServerException, match=r"sequence_id: sequence 8 runs on sums/1, where it began; got"):
        ask(client, frames, 8, model_version="2")
    check(ask(client, clip(4, 4)[2:], 8, sequence_end=True), clip(4, 4), 2)
    flat = {"name": "frames", "shape": [1, 1, 8, 8, 3], "datatype": "UINT8", "data": [0] * 192}
    for parameters, said in (
        ({"sequence_id": 1.5, "sequence_start": True}, "sequence_id: expected a whole number or a string, got 1.5"),
        ({"sequence_id": True}, "sequence_id: expected a whole number or a string, got True"),
        ({"sequence_id": "a" * 257, "sequence_start": True}, "sequence_id: expected at most 256 characters, got 257"),
        ({"sequence_id": 5, "sequence_start": 1}, "sequence_start: expected true or false, got 1"),
        ({"sequence_end": True}, "sequence_id: expected one beside sequence_end, got 0, which is none"),
    ):
        url, head = f"{service.url}/v2/models/sums/infer", {"inputs": [flat], "parameters": parameters}
        assert said in check_error(httpx.post(url, json=head), 400)


def test_a_start_that_was_not_answered_was_none(service: Service, client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="before the deadline"):
        ask(client, clip(5, 2), 9, sequence_start=True, timeout=1)  # a microsecond
    with pytest.raises(InferenceServerException, match="expected sequence_start"):
        ask(client, clip(5, 2), 9)


def test_a_start_begins_anew(client: InferenceServerClient) -> None:
    ask(client, clip(6, 2), 10, sequence_start=True)
    check(ask(client, clip(7, 2), 10, sequence_start=True, sequence_end=True), clip(7, 2))


def test_metadata(client: InferenceServerClient) -> None:
    assert "sequence" in client.get_server_metadata()["extensions"]
    config = client.get_model_config("sums")
    assert "dynamic_batching" not in config
    batching = config["sequence_batching"]
    assert batching["max_sequence_idle_microseconds"] == 60_000_000
    assert batching["oldest"]["max_candidate_sequences"] == 50
    assert [(one["input_name"], one["output_name"]) for one in batching["state"]] == [("a", "z_next"), ("b", "y_next")]
    assert {one["name"]: one["optional"] for one in config["input"]} == {
        "frames": False,
        "lengths": True,
        "a": True,
        "b": True,
    }
    assert "sequence_batching" not in client.get_model_config("colours")


def test_too_many_and_many_at_once(service: Service, client: InferenceServerClient) -> None:
    host, port = service.address

    def whole(number: int) -> None:
        frames = clip(number, 6)
        with InferenceServerClient(f"{host}:{port}") as mine:
            for start in range(0, 6, 2):
                piece = frames[start : start + 2]
                result = ask(mine, piece, number, sequence_start=start == 0, sequence_end=start == 4)
                check(result, frames, start)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(whole, range(100, 180)))
    for number in range(1, 51):
        ask(client, clip(0, 1), number, sequence_start=True)
    with pytest.raises(InferenceServerException, match="50 sequences are live, the limit") as caught:
        ask(client, clip(0, 1), 51, sequence_start=True)
    assert caught.value.status() == "503"
    for number in range(1, 51):
        ask(client, clip(0, 1), number, sequence_end=True)
    series = service.get("/metrics").text
    assert "ttvideo_sequences 0.0" in series
    assert 'ttvideo_sequences_over_total{code="ok"}' in series


def test_idle_ones_expire(streaming_models: Path) -> None:
    settings = Settings(models=streaming_models, provider="cpu", decode_workers=1, sequence_idle_s=0.1)
    with running(settings) as service:
        host, port = service.address
        with InferenceServerClient(f"{host}:{port}") as client:
            ask(client, clip(1, 2), 1, sequence_start=True)
            wait_until(lambda: not len(service.classifier.sequences), "the sequence has expired")
            with pytest.raises(InferenceServerException, match=r"stood idle for 0\.1 s"):
                ask(client, clip(1, 2), 1)


def test_a_sequence_stays_on_the_model_that_it_began_with(tmp_path: Path) -> None:
    """Through an exchange of its model and an unload; its end lets the old one go."""
    streaming.save(tmp_path)
    settings = Settings(models=tmp_path, provider="cpu", decode_workers=1, model_control="explicit")
    with running(settings) as service:
        host, port = service.address
        with InferenceServerClient(f"{host}:{port}") as client:
            frames = clip(1, 8)
            check(ask(client, frames[:2], 1, sequence_start=True), frames)
            streaming.save(tmp_path, scale=100.0)
            client.load_model("sums")
            check(ask(client, frames[2:4], 1), frames, 2)
            new = ask(client, frames[:1], 2, sequence_start=True, sequence_end=True).as_numpy("logits")[0]
            np.testing.assert_allclose(new, logits_over_time(frames[:1], scale=100.0)[-1], rtol=CLOSE)
            client.unload_model("sums")
            check(ask(client, frames[4:6], 1), frames, 4)
            with pytest.raises(InferenceServerException, match="sums/1 is not served: unloaded"):
                ask(client, frames, 3, sequence_start=True)
            with pytest.raises(InferenceServerException, match="sums/1 is not served: unloaded"):
                client.infer("sums", [given("frames", frames[None])])
            check(ask(client, frames[6:], 1, sequence_end=True), frames, 6)
            with pytest.raises(InferenceServerException, match="sums/1 is not served"):
                ask(client, frames, 1)
        wait_until(lambda: not service.classifier.repository._retiring, "the old models are let go of")
