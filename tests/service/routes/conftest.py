"""Models for the tests of several routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service import onnx_models
from tests.service.engine import streaming


@pytest.fixture(scope="module")
def streaming_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that take clips in pieces, and `colours`, which does not."""
    models = tmp_path_factory.mktemp("models")
    streaming.save(models)
    whole = onnx_models.manifest()
    onnx_models.save(models, onnx_models.colours(whole), whole)
    return models
