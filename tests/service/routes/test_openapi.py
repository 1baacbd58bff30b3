"""The description of the interface, held against the interface: by schemathesis, and by its own examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.errors import BY_CODE
from service.routes import examples
from tests.service.conftest import Service, running
from tests.service.routes import answers

INEXPRESSIBLE = [positive_data_acceptance]
"""A schema cannot say which bytes are a video, how many labels a model has, or how many values a shape holds."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(answers.settings(tmp_path_factory.mktemp("spool"))) as bundled:
        yield bundled


@pytest.fixture(scope="module")
def interface(service: Service) -> dict[str, Any]:
    schema: dict[str, Any] = service.get("/openapi.json").json()
    return schema


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_operation_keeps_to_its_description(mode: GenerationMode, tmp_path: Path) -> None:
    """Whether what comes is as it should be or not. Models are unloaded by it, and loaded again."""
    with running(answers.settings(tmp_path)) as service:
        keep_to_description(service, mode)


def keep_to_description(service: Service, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    num_tested = 0
    for operation in (result.ok() for result in schema.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode), served=booleans())
        @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def keeps_to_it(case: schemathesis.Case, served: bool) -> None:
            if served:  # else hardly any request is for a model that there is
                there = {"name": answers.NAME, "version": answers.VERSION}
                case.path_parameters.update({key: there[key] for key in case.path_parameters.keys() & there})
            case.call_and_validate(excluded_checks=INEXPRESSIBLE, timeout=60)

        with contextlib.suppress(Unsatisfiable):  # nothing is asked that could be asked wrongly
            keeps_to_it()
            num_tested += 1
    assert num_tested >= 10


def operations(interface: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and what is said of it."""
    for path, methods in interface["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_answer_has_an_example_that_fits_its_schema(interface: dict[str, Any]) -> None:
    for path, method, operation in operations(interface):
        for status, answer in operation["responses"].items():
            for media, content in answer.get("content", {}).items():
                where = f"{method} {path} {status} {media}"
                assert content["examples"], where
                for example in content["examples"].values():
                    schema = content.get("schema", {}) | {"components": interface["components"]}
                    jsonschema.validate(example["value"], schema)


def test_every_error_has_an_example_of_its_own() -> None:
    details = {code: examples.of_error(code, v2=True)["error"] for code in BY_CODE}
    assert len(set(details.values())) == len(BY_CODE)


def shape(value: Any) -> Any:
    """What a body is made of: names and types, of a list those of all its parts."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    if isinstance(value, list):
        shapes = [shape(part) for part in value]
        return [one for index, one in enumerate(shapes) if one not in shapes[:index]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def test_the_examples_are_what_the_service_answers(service: Service) -> None:
    asked = answers.ask(service)
    for operation, bodies in asked.items():
        shown = {name: example["value"] for name, example in examples.of_answer(operation).items()}
        assert shape(shown) == shape(bodies), operation
    assert asked["classify"]["clip"]["label"] == examples.of_answer("classify")["clip"]["value"]["label"]


def test_all_checks_of_schemathesis_are_on() -> None:
    assert {check.__name__ for check in INEXPRESSIBLE} < {check.__name__ for check in CHECKS.get_all()}
