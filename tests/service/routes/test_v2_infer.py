"""Inference by the protocol's own client, against the model file run directly."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as given_by_hypothesis
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferRequestedOutput, InferResult, aio
from tritonclient.utils import InferenceServerException

from exporters import to_onnx
from service.routes.v2 import tensors
from service.settings import Settings
from service.video import decode_clip
from tests.exporters.test_mlp import CONFIGS
from tests.made import random_classifier, tiny_config
from tests.service.conftest import PATIENCE_S, Service, running
from tests.service.routes.test_v2 import check_error, client, clip_input, given
from tests.tolerances import SERVED
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.config import TrainConfig
from ttmodels.mlp import MLPClassifier

__all__ = ["client"]

Shares = dict[str, np.ndarray]


def direct(path: Path, **inputs: np.ndarray) -> Shares:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def check(result: InferResult, expected: Shares) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), values, atol=10 * SERVED)
    powers = np.exp(expected["logits"])
    np.testing.assert_allclose(result.as_numpy("probabilities"), powers / powers.sum(-1, keepdims=True), atol=SERVED)


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize(("batch", "time"), [(1, 8), (3, 11), (16, 2)])
def test_tensors_in_both_forms(
    client: InferenceServerClient, models: Path, batch: int, time: int, binary_in: bool, binary_out: bool
) -> None:
    frames = clip_input(batch, time)
    lengths = np.arange(batch, dtype=np.int32) % time + 1
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=lengths)
    result = client.infer(
        "colours",
        [given("frames", frames, binary=binary_in), given("lengths", lengths, binary=binary_in)],
        model_version="1",
        request_id="mine",
        outputs=[InferRequestedOutput(name, binary_data=binary_out) for name in (*expected, "probabilities")],
    )
    check(result, expected)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "colours", "1")
    assert answer["parameters"]["provider"] == "cpu"
    assert ("data" in answer["outputs"][0]) != binary_out


def test_the_latest_version_and_every_output_unasked(client: InferenceServerClient) -> None:
    answer = client.infer("colours", [given("frames", clip_input())]).get_response()
    assert answer["model_version"] == "2"
    assert "id" not in answer
    assert [output["name"] for output in answer["outputs"]] == ["logits", "logits_over_time", "probabilities"]


def test_lengths_may_have_the_dimension_beside_the_batch_that_the_metadata_shows(
    client: InferenceServerClient, models: Path
) -> None:
    (shown,) = [one for one in client.get_model_metadata("colours")["inputs"] if one["name"] == "lengths"]
    assert shown["shape"] == [-1, 1]
    frames, lengths = clip_input(2, 5), np.array([2, 5], np.int32)
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=lengths)
    inputs = [given("frames", frames), given("lengths", lengths[:, None])]
    check(client.infer("colours", inputs, model_version="1"), expected)
    with pytest.raises(InferenceServerException, match=r"lengths: expected \[2\], got \[1, 2\]"):
        client.infer("colours", [given("frames", frames), given("lengths", lengths[None])], model_version="1")


def test_without_lengths_every_frame_counts(client: InferenceServerClient, models: Path) -> None:
    frames = clip_input(2, 5)
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=np.full(2, 5, np.int32))
    check(client.infer("colours", [given("frames", frames)], model_version="1"), expected)


def test_what_classify_says(service: Service, client: InferenceServerClient, clips: dict[str, Path]) -> None:
    sampling = service.classifier.repository.find("colours", "1").session.clip_manifest().sampling
    frames = decode_clip(clips["red"], sampling).frames[None]
    top = InferRequestedOutput("probabilities", class_count=2)
    words = client.infer("colours", [given("frames", frames)], model_version="1", outputs=[top])
    said = service.post(clips["red"], params={"top_k": 2}).json()["top_k"]
    for word, scored in zip(words.as_numpy("probabilities")[0], said, strict=True):
        value, index, label = word.decode().split(":")
        assert label == scored["label"] == ("red", "green", "blue", "dark")[int(index)]
        assert float(value) == pytest.approx(scored["probability"], abs=2e-6)  # it has six decimals


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: InferenceServerClient, models: Path, binary: bool) -> None:
    frames = clip_input(2, 3)
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=np.full(2, 3, np.int32))
    outputs = [
        InferRequestedOutput("logits", binary_data=binary, class_count=3),
        InferRequestedOutput("logits_over_time", binary_data=binary, class_count=99),
    ]
    result = client.infer("colours", [given("frames", frames)], model_version="1", outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["logits", "logits_over_time"]
    assert result.get_output("logits")["datatype"] == "BYTES"
    for name, shape in (("logits", (2, 3)), ("logits_over_time", (2, 3, 4))):
        words = result.as_numpy(name)
        assert words.shape == shape
        for row, values in zip(words.reshape(-1, shape[-1]), expected[name].reshape(-1, 4), strict=True):
            text = [word.decode() if isinstance(word, bytes) else word for word in row]
            best = np.argsort(-values)[: shape[-1]]
            assert text == [f"{values[i]:f}:{i}:{('red', 'green', 'blue', 'dark')[i]}" for i in best]


@pytest.mark.parametrize("out", ["gzip", "deflate", None])
@pytest.mark.parametrize("into", ["gzip", "deflate", None])
def test_compression_both_ways(client: InferenceServerClient, models: Path, into: str | None, out: str | None) -> None:
    frames = clip_input(2, 4)
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=np.full(2, 4, np.int32))
    for binary in (True, False):
        result = client.infer(
            "colours",
            [given("frames", frames, binary=binary)],
            model_version="1",
            request_compression_algorithm=into,
            response_compression_algorithm=out,
        )
        check(result, expected)


def raw(service: Service, head: dict[str, Any], tail: bytes = b"", **headers: str) -> httpx.Response:
    text = json.dumps(head).encode()
    if tail:
        headers["Inference-Header-Content-Length"] = str(len(text))
    url = f"{service.url}/v2/models/colours/versions/1/infer"
    return httpx.post(url, content=text + tail, headers=headers, timeout=PATIENCE_S)


def test_what_the_client_does_not_show(service: Service) -> None:
    frames = clip_input(1, 2)
    shown = {"name": "frames", "datatype": "UINT8", "shape": [1, 2, 24, 32, 3]}
    head = {"inputs": [shown | {"data": frames.tolist()}], "parameters": {"anything": [1]}}
    plain = raw(service, head, **{"accept-encoding": "identity, gzip;q=0"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["content-type"] == "application/json"
    squeezed = raw(service, head, **{"accept-encoding": "br, deflate"})
    assert squeezed.headers["content-encoding"] == "deflate"
    assert squeezed.json() == plain.json()
    binary = {"inputs": [shown | {"parameters": {"binary_data_size": frames.size}}]}
    assert raw(service, binary, frames.tobytes()).json() == plain.json()
    asked = raw(service, binary | {"parameters": {"binary_data_output": True}}, frames.tobytes())
    assert asked.headers["content-type"] == "application/octet-stream"
    length = int(asked.headers["inference-header-content-length"])
    answer = json.loads(asked.content[:length])
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    assert sizes == [16, 32, 16]
    assert len(asked.content) == length + sum(sizes)
    logits = np.frombuffer(asked.content[length : length + 16], "<f4")
    np.testing.assert_allclose(logits, plain.json()["outputs"][0]["data"], atol=10 * SERVED)


FRAMES: dict[str, Any] = {"name": "frames", "datatype": "UINT8", "shape": [1, 1, 24, 32, 3], "data": [0] * 2304}
LENGTHS: dict[str, Any] = {"name": "lengths", "datatype": "INT32", "shape": [1], "data": [1]}


@pytest.mark.parametrize(
    ("inputs", "more", "said"),
    [
        ([], {}, "inputs: expected frames, lengths too, got none"),
        ([LENGTHS], {}, "inputs: expected frames too, got lengths"),
        ([FRAMES, FRAMES], {}, "frames: expected once, got it again"),
        ([FRAMES, {**LENGTHS, "name": "h"}], {}, "inputs: expected frames and lengths, got h"),
        ([{**FRAMES, "datatype": "FP32"}], {}, "frames: expected UINT8, got FP32"),
        ([{**FRAMES, "shape": [1, 24, 32, 3]}], {}, "frames: expected [batch, time, 24, 32, 3], got [1, 24, 32, 3]"),
        (
            [{**FRAMES, "shape": [1, 1, 24, 33, 3]}],
            {},
            "frames: expected [batch, time, 24, 32, 3], got [1, 1, 24, 33, 3]",
        ),
        ([{**FRAMES, "shape": [1, 0, 24, 32, 3]}], {}, "inputs.0.shape.1: Input should be greater than or equal to 1"),
        ([{**FRAMES, "shape": [1, 10**30, 24, 32, 3]}], {}, "frames: expected 2304"),
        (
            [{**FRAMES, "shape": [17, 1, 24, 32, 3], "data": [0] * 2304 * 17}],
            {},
            "expected a batch of at most 16, got 17",
        ),
        ([FRAMES, {**LENGTHS, "shape": [2], "data": [1, 1]}], {}, "lengths: expected [1], got [2]"),
        ([FRAMES, {**LENGTHS, "data": [2]}], {}, "lengths: expected 1 to 1, the frames' time, got [2]"),
        ([FRAMES, {**LENGTHS, "data": [0]}], {}, "lengths: expected 1 to 1, the frames' time, got [0]"),
        ([FRAMES, {**LENGTHS, "data": [1.5]}], {}, "lengths: expected whole numbers, got float64 among them"),
        ([FRAMES, {**LENGTHS, "data": ["1"]}], {}, "lengths: expected whole numbers, got str"),
        ([FRAMES, {**LENGTHS, "data": [2**40]}], {}, "lengths: expected numbers that fit int32, got 1099511627776"),
        ([FRAMES, {**LENGTHS, "data": [[1], [1, 2]]}], {}, "lengths: expected one list of numbers"),
        ([{**FRAMES, "data": [0] * 2303}], {}, "frames: expected 2304 numbers, got 2303"),
        ([{**FRAMES, "data": [0] * 2303 + [256]}], {}, "frames: expected numbers that fit uint8, got 0 to 256"),
        ([{**FRAMES, "data": None}], {}, "frames: expected data or the parameter binary_data_size, got neither"),
        ([{**FRAMES, "parameters": {"binary_data_size": 4}}], {}, "frames: expected data or the .* got both"),
        (
            [{**FRAMES, "data": None, "parameters": {"binary_data_size": 2304}}],
            {},
            "frames: expected 2304 bytes for [1, 1, 24, 32, 3], got 2304 announced and 0 left",
        ),
        ([FRAMES], {"outputs": [{"name": "h"}]}, "outputs: expected logits, logits_over_time, probabilities, got h"),
        (
            [FRAMES],
            {"outputs": [{"name": "logits", "parameters": {"classification": "3"}}]},
            "logits: classification: expected a number of labels, got '3'",
        ),
        ([FRAMES], {"parameters": {"timeout": "soon"}}, "timeout: expected microseconds, got 'soon'"),
        (
            [FRAMES],
            {"parameters": {"sequence_id": 5, "sequence_start": True, "sequence_end": False}},
            "sequence_id: expected none, since colours/1 keeps no state between requests, got 5",
        ),
        ([FRAMES], {"id": 5}, "id: Input should be a valid string"),
    ],
)
def test_what_does_not_fit(service: Service, inputs: list[Any], more: dict[str, Any], said: str) -> None:
    error = check_error(raw(service, {"inputs": inputs} | more), 400)
    for part in said.split(".*"):
        assert part in error


def test_bodies_that_are_broken(service: Service) -> None:
    good = {"inputs": [FRAMES]}
    assert raw(service, good).status_code == 200
    for content, headers, said in (
        (b"{}", {"content-encoding": "br"}, "Content-Encoding: expected gzip or deflate or none, got br"),
        (b"{}", {"content-encoding": "gzip"}, "expected a body in gzip, got another"),
        (gzip.compress(b"{}")[:-4], {"content-encoding": "gzip"}, "expected a body in gzip to its end"),
        (zlib.compress(b"{}") + b"x", {"content-encoding": "deflate"}, "expected nothing behind the end of deflate"),
        (b"{}", {"inference-header-content-length": "3"}, "expected at most the body's 2 bytes, got 3"),
        (b"{}", {"inference-header-content-length": "-1"}, "expected at most the body's 2 bytes, got -1"),
    ):
        url = f"{service.url}/v2/models/colours/infer"
        assert said in check_error(httpx.post(url, content=content, headers=headers), 400)
    assert "expected no more bytes behind the tensors, got 3" in check_error(raw(service, good, b"abc"), 400)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["frames", "lengths"]) | JSON,
        "datatype": st.sampled_from(["UINT8", "INT32"]) | JSON,
        "shape": st.sampled_from([[1, 1, 24, 32, 3], [1], [2**70, 1, 24, 32, 3]]) | JSON,
        "data": st.sampled_from([[0] * 2304, [1]]) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region"]), JSON) | JSON,
    },
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data", "binary_data_output", "classification", "timeout", "sequence_id"]), JSON
)
OUTPUTS = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["logits", "h"]) | JSON, "parameters": PARAMETERS}))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given_by_hypothesis(
    head=st.fixed_dictionaries(
        {"inputs": st.just([FRAMES]) | st.lists(TENSORS, max_size=3) | JSON},
        optional={"id": st.text() | JSON, "parameters": PARAMETERS | JSON, "outputs": OUTPUTS | JSON},
    ),
    length=st.none() | st.text("-0123456789", max_size=30),
)
def test_whatever_comes_is_answered(service: Service, head: dict[str, Any], length: str | None) -> None:
    headers = {} if length is None else {"inference-header-content-length": length}
    response = raw(service, head, **headers)
    if response.status_code != 200:
        assert response.status_code in (400, 504)  # a time-out of some microseconds is one that can be kept
        assert list(response.json()) == ["error"]


def test_a_bomb_is_stopped_while_it_unfolds(service: Service) -> None:
    bomb = gzip.compress(b"\0" * (service.classifier.settings.max_tensor_bytes + 1))
    assert len(bomb) < 100_000
    url = f"{service.url}/v2/models/colours/infer"
    response = httpx.post(url, content=bomb, headers={"content-encoding": "gzip"}, timeout=PATIENCE_S)
    assert check_error(response, 413) == "expected a body of at most 67108864 bytes, got more"


def test_too_late_and_too_many(models: Path) -> None:
    settings = Settings(models=models, default_model="colours/1", provider="cpu", decode_workers=1, max_queue=2)
    with running(settings) as service:
        head = {"inputs": [{**FRAMES, "shape": [3, 1, 24, 32, 3], "data": [0] * 2304 * 3}]}
        busy = raw(service, head)
        assert check_error(busy, 503) == "2 clips are waiting for the model, the limit"
        assert int(busy.headers["retry-after"]) >= 1
        late = {"inputs": [FRAMES], "parameters": {"timeout": 1}}
        assert "before the deadline" in check_error(raw(service, late), 504)
        assert raw(service, {"inputs": [FRAMES]}).status_code == 200


def test_many_at_once_each_get_their_own(service: Service, models: Path) -> None:
    clips = [clip_input(1 + i % 3, 1 + i % 7, seed=i) for i in range(40)]

    def ask(frames: np.ndarray) -> httpx.Response:
        shape = {"name": "frames", "datatype": "UINT8", "shape": list(frames.shape)}
        head = {"inputs": [shape | {"parameters": {"binary_data_size": frames.size}}]}
        return raw(service, head, frames.tobytes())

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, clips))
    for frames, answer in zip(clips, answers, strict=True):
        lengths = np.full(len(frames), frames.shape[1], np.int32)
        expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=lengths)
        for output in answer.json()["outputs"][:2]:
            got = np.reshape(output["data"], output["shape"])
            np.testing.assert_allclose(got, expected[output["name"]], atol=10 * SERVED)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming model and one of images, by the exporter, in a folder of models."""

    folder = tmp_path_factory.mktemp("others")
    made = {"stream": random_classifier(tiny_config()), "grey": MLPClassifier(CONFIGS["grey"]).eval()}
    for name, network in made.items():
        checkpoint.save(folder / f"{name}.safetensors", network, TrainConfig(), Progress())
        path = folder / "models" / name / "1/model.onnx"
        path.parent.mkdir(parents=True)
        options = ["--streaming", "--no-tune"] if name == "stream" else []
        assert to_onnx.main([str(folder / f"{name}.safetensors"), "-o", str(path), *options]) == 0
    return folder / "models"


@pytest.fixture(scope="module")
def plain(others: Path) -> Iterator[Service]:
    with running(Settings(models=others, provider="cpu", decode_workers=1)) as service:
        yield service


@pytest.mark.slow
def test_a_stream_by_hand(plain: Service, others: Path, clips: dict[str, Path]) -> None:
    """A clip in pieces, the state carried by the client, as the whole clip in one piece."""
    frames = clip_input(2, 9, height=12, width=16)
    host, port = plain.address
    with InferenceServerClient(f"{host}:{port}") as client:
        inputs = client.get_model_metadata("stream")["inputs"]
        states = [i["name"] for i in inputs if i["name"] not in ("frames", "lengths")]
        assert states
        dtypes = {"FP32": np.float32, "INT32": np.int32}
        zeros = {
            i["name"]: np.zeros((2, *i["shape"][1:]), dtypes[i["datatype"]]) for i in inputs if i["name"] in states
        }

        def ask(piece: np.ndarray, carried: Shares) -> tuple[InferResult, Shares]:
            lengths = np.full(2, piece.shape[1], np.int32)
            tensors = {"frames": piece, "lengths": lengths, **carried}
            result = client.infer("stream", [given(name, values) for name, values in tensors.items()])
            return result, {name: result.as_numpy(f"next_{name}") for name in states}

        whole, _ = ask(frames, zeros)
        carried = zeros
        for start, end in ((0, 2), (2, 3), (3, 9)):
            piece, carried = ask(frames[:, start:end], carried)
        np.testing.assert_allclose(piece.as_numpy("logits"), whole.as_numpy("logits"), atol=1e-5)
        everything = direct(others / "stream/1/model.onnx", frames=frames, lengths=np.full(2, 9, np.int32), **zeros)
        np.testing.assert_allclose(whole.as_numpy("logits"), everything["logits"], atol=1e-5)
        with pytest.raises(InferenceServerException, match=f"{states[0]}: expected \\[2, .* got \\[1, "):
            ask(frames, zeros | {states[0]: zeros[states[0]][:1]})
        top = InferRequestedOutput(f"next_{states[0]}", class_count=1)
        with pytest.raises(InferenceServerException, match=r"expected classification of logits, .* only"):
            client.infer("stream", [given("frames", frames)], outputs=[top])
        (counted,) = client.get_inference_statistics("stream")["model_stats"]
        assert (counted["inference_count"], counted["execution_count"]) == (8, 4)


@pytest.mark.slow
def test_images(plain: Service, others: Path) -> None:
    host, port = plain.address
    with InferenceServerClient(f"{host}:{port}") as client:
        (images,) = client.get_model_metadata("grey")["inputs"]
        assert images["name"] == "images"
        values = np.random.default_rng(0).integers(0, 256, (5, *images["shape"][1:]), np.uint8)
        result = client.infer("grey", [given("images", values)])
        np.testing.assert_allclose(
            result.as_numpy("logits"), direct(others / "grey/1/model.onnx", images=values)["logits"], atol=1e-5
        )
        assert "dynamic_batching" not in client.get_model_config("grey")


@pytest.mark.slow
def test_classify_takes_a_streaming_model_and_none_of_images(
    plain: Service, others: Path, clips: dict[str, Path]
) -> None:
    session = plain.classifier.repository.find("stream").session
    answer = plain.post(clips["red"], params={"model": "stream"}).json()
    frames = decode_clip(clips["red"], session.clip_manifest().sampling).frames[None]
    zeros = {state.input: np.zeros((1, *state.shape), state.dtype) for state in session.states}
    expected = direct(others / "stream/1/model.onnx", frames=frames, lengths=np.array([6], np.int32), **zeros)
    powers = np.exp(expected["logits_over_time"][0])
    wanted = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose([step["probabilities"] for step in answer["over_time"]], wanted, atol=SERVED)
    refused = plain.post(clips["red"], params={"model": "grey"})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_for_clips")
    assert "got one that reads images" in refused.json()["detail"]
    assert "got one that reads images" in plain.get("/model", params={"model": "grey"}).json()["clip_fault"]


def test_the_clients_other_ways_to_ask(service: Service, models: Path) -> None:
    frames = clip_input(2, 3)
    expected = direct(models / "colours/1/model.onnx", frames=frames, lengths=np.full(2, 3, np.int32))
    host, port = service.address
    with InferenceServerClient(f"{host}:{port}", concurrency=4) as client:
        asked = [client.async_infer("colours", [given("frames", frames)], model_version="1") for _ in range(8)]
        for one in asked:
            check(one.get_result(), expected)

    async def by_asyncio() -> None:
        async with aio.InferenceServerClient(f"{host}:{port}") as client:
            assert await client.is_model_ready("colours")
            for coding in ("gzip", "deflate", None):
                answer = await client.infer(
                    "colours",
                    [given("frames", frames)],
                    model_version="1",
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                check(answer, expected)
            with pytest.raises(InferenceServerException, match="got shapes"):
                await client.get_model_config("shapes")

    asyncio.run(by_asyncio())


def test_json_is_bounded_and_binary_is_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_JSON_BYTES", 300)
    said = check_error(raw(service, {"inputs": [FRAMES]}), 400)
    assert re.search(r"at most 300 bytes of JSON, got \d+; send large tensors as binary data", said)
    shown = {**FRAMES, "data": None, "parameters": {"binary_data_size": 2304}}
    assert raw(service, {"inputs": [shown]}, bytes(2304)).status_code == 200
