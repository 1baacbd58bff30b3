"""Errors have one form, whatever went wrong: RFC 9457 with a stable code."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from service import errors
from service.engine.repository import Repository
from service.errors import RequestError
from service.schemas import Problem
from tests.service.conftest import Service


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The response is a problem of this status and code, in full form; returns its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    Problem.model_validate(body)
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"urn:ttvideo:error:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["instance"] == f"urn:ttvideo:request:{body['request_id']}"
    return body


def test_not_found_and_method_not_allowed(service: Service) -> None:
    check_problem(service.get("/nowhere"), 404, "not_found")
    response = service.get("/classify")
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("top_k", ["0", "-1", "5", "many"])
def test_top_k_out_of_range(service: Service, top_k: str) -> None:
    problem = check_problem(service.post(content=b"x", params={"top_k": top_k}), 422, "invalid_parameter")
    assert re.match(f"top_k: .* got '?{top_k}", problem["detail"])


def test_unknown_model(service: Service) -> None:
    for response in (service.post(content=b"x", params={"model": "m"}), service.get("/model", params={"model": "m"})):
        problem = check_problem(response, 404, "unknown_model")
        assert problem["detail"] == "expected one of colours/1, colours/2, moving_digits/1, tags/1; got m"


def test_unforeseen_errors_say_nothing_of_their_cause(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*arguments: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Repository, "find", explode)
    problem = check_problem(service.get("/model", headers={"x-request-id": "mine"}), 500, "internal_error")
    assert problem["request_id"] == "mine"
    assert "secret" not in str(problem)


def test_request_ids(service: Service) -> None:
    assert service.get("/livez", headers={"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = {
        service.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 200)
    }
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


def test_codes_and_statuses_are_stable() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)]
    assert {kind.code: kind.status for kind in kinds} == {
        "internal_error": 500,
        "empty_upload": 400,
        "malformed_upload": 400,
        "not_found": 404,
        "method_not_allowed": 405,
        "invalid_inference": 400,
        "model_control_off": 403,
        "invalid_message": 400,
        "unknown_sequence": 404,
        "sequence_expired": 408,
        "sequence_broken": 409,
        "not_for_clips": 422,
        "not_for_pieces": 422,
        "model_refused": 422,
        "upload_timeout": 408,
        "foreign_origin": 403,
        "unauthorized": 401,
        "rate_limited": 429,
        "unknown_model": 404,
        "upload_too_large": 413,
        "not_a_video": 415,
        "no_video_stream": 422,
        "picture_too_large": 422,
        "video_too_long": 422,
        "too_many_frames": 422,
        "too_many_streams": 422,
        "too_many_files": 422,
        "too_many_windows": 422,
        "too_much_memory": 422,
        "undecodable_video": 422,
        "decoder_crashed": 422,
        "invalid_parameter": 422,
        "busy": 503,
        "not_ready": 503,
        "out_of_memory": 503,
        "deadline_exceeded": 504,
        "no_room": 507,
    }
