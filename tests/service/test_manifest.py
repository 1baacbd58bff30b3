"""What a model file says of itself, read."""

from __future__ import annotations

import json

import pytest

from service.errors import InvalidModel
from service.manifest import METADATA_KEY, read_manifest
from tests.service.onnx_models import manifest


def test_a_newer_description_says_to_upgrade() -> None:
    """And not which of its fields are not known."""
    values = json.loads(manifest().to_metadata()[METADATA_KEY]) | {"format_version": 3, "attention": True}
    expected = "here: its manifest has the format_version 3, this code reads up to 1; upgrade ttvideo"
    for reads in ("clips", "images", "sounds"):
        with pytest.raises(InvalidModel) as raised:
            read_manifest({METADATA_KEY: json.dumps(values | {"reads": reads})}, source="here")
        assert str(raised.value) == expected


@pytest.mark.parametrize("text", ["no", "[1]", '{"format_version": "two"}', '{"format_version": null}'])
def test_what_is_no_description_does_not_fit(text: str) -> None:
    with pytest.raises(InvalidModel, match="here: its manifest does not fit format 1: "):
        read_manifest({METADATA_KEY: text}, source="here")


def test_an_older_file_without_the_later_figures_is_read() -> None:
    values = json.loads(manifest().to_metadata()[METADATA_KEY])
    del values["parity"]["largest_logit"]
    assert read_manifest({METADATA_KEY: json.dumps(values)}) == manifest()
