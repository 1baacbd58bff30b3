"""The protocol's sequence extension: requests that are pieces of one clip, whose state the service keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.engine.classifier import Classifier
from service.engine.model import Model
from service.engine.sequences import Key, Sequence, Sequences
from service.errors import InvalidInference, RequestError, UnknownModel
from service.trace import current, note_model

MAX_ID_LENGTH = 256
"""Characters of a sequence's id: it is kept as long as the sequence."""


@dataclass(frozen=True)
class Place:
    """Where a request stands in its sequence."""

    id: int | str
    start: bool
    """Begins it. One that is live under the same id is ended."""
    end: bool
    """Ends it, once answered."""

    def key(self, name: str) -> Key:
        """Of the sequence on a model. Those of one API key are not those of another, whatever their ids."""
        trace = current()
        return name, self.id, trace.key if trace else None


def place(parameters: dict[str, Any], model: Model | None) -> Place | None:
    """None where the request belongs to no sequence: its id is 0, empty or left out.

    Args:
        model: the one that is served.

    Raises:
        InvalidInference.
    """
    identity = parameters.get("sequence_id", 0)
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise InvalidInference(f"sequence_id: expected a whole number or a string, got {identity!r}")
    if isinstance(identity, str) and len(identity) > MAX_ID_LENGTH:
        raise InvalidInference(f"sequence_id: expected at most {MAX_ID_LENGTH} characters, got {len(identity)}")
    if identity and model is not None and not model.states:
        raise InvalidInference(
            f"sequence_id: expected none, since {model.name}/{model.version} keeps no state between requests, "
            f"got {identity!r}"
        )
    flags = {name: parameters.get(name, False) for name in ("sequence_start", "sequence_end")}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InvalidInference(f"{name}: expected true or false, got {flag!r}")
        if flag and not identity:
            raise InvalidInference(f"sequence_id: expected one beside {name}, got {identity!r}, which is none")
    return Place(identity, flags["sequence_start"], flags["sequence_end"]) if identity else None


@contextmanager
def serving(classifier: Classifier, name: str, version: str | None) -> Iterator[Model | None]:
    """The model asked for, which stays until the end of the block; None where it is gone, but not yet the sequences
    that began on it.

    Raises:
        UnknownModel.
    """
    with ExitStack() as held:
        model = None
        try:
            model = held.enter_context(classifier.repository.use(name, version))
        except UnknownModel:
            if not classifier.sequences.run_on(name):
                raise
        yield model


def find(sequences: Sequences, place: Place, name: str, version: str | None) -> Sequence:
    """The sequence that a request goes on with, on the model that it began with.

    Raises:
        UnknownSequence: it has to be started first.
        InvalidInference: it runs on another version than asked for.
    """
    sequence = sequences.find(place.key(name))
    if version and sequence.model.version != version:
        raise InvalidInference(
            f"sequence_id: sequence {place.id!r} runs on {name}/{sequence.model.version}, where it began; got "
            f"version {version}"
        )
    note_model(name, sequence.model.version, sequence.model.session.provider)
    return sequence


async def step(
    sequence: Sequence, place: Place, inputs: dict[str, np.ndarray], deadline: float
) -> dict[str, np.ndarray]:
    """Run one piece. What is not answered has not happened: its start or end neither.

    Raises:
        RequestError: from the sequence.
    """
    try:
        share = await sequence.step(inputs["frames"][0], deadline, int(inputs["lengths"][0]))
    except BaseException as error:
        if place.start:
            sequence.end(error if isinstance(error, RequestError) else None)
        raise
    if place.end:
        sequence.end()
    return sequence.model.tensors([share])
