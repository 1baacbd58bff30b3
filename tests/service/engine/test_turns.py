"""The line before a model that is not batched: order, bounds, deadlines, faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from service.engine.turns import Turns
from service.errors import Busy, DeadlineExceeded, OutOfMemory, RequestError
from tests.service.conftest import PATIENCE_S, eventually


class Model:
    """Writes down what it is given; `gate` holds a run until it is set."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.seen.append(int(inputs["x"]))
        assert self.gate.wait(PATIENCE_S)
        if inputs["x"] < -1:
            raise OutOfMemory("no memory")
        if inputs["x"] < 0:
            raise RuntimeError("a secret")
        return {"y": 2 * inputs["x"]}


def with_turns(test: Callable[[Turns, Model], Awaitable[None]], max_queue: int = 3) -> Model:
    model = Model()

    async def run() -> None:
        turns = Turns(model.run, max_queue=max_queue)
        try:
            await asyncio.wait_for(test(turns, model), PATIENCE_S)
        finally:
            model.gate.set()
            turns.close()

    asyncio.run(run())
    return model


def given(x: int) -> dict[str, np.ndarray]:
    return {"x": np.array(x)}


def soon() -> float:
    return time.monotonic() + PATIENCE_S


def test_one_after_the_other_and_no_more_than_the_queue_holds() -> None:
    async def test(turns: Turns, model: Model) -> None:
        model.gate.clear()
        tasks = [asyncio.create_task(turns.infer(given(i), soon())) for i in range(3)]
        await eventually(lambda: turns.depth == 3)
        with pytest.raises(Busy, match="3 requests are waiting for the model, the limit"):
            await turns.infer(given(3), soon())
        await eventually(lambda: model.seen == [0])
        await asyncio.sleep(0.05)
        model.gate.set()
        outcomes = await asyncio.gather(*tasks)
        assert [int(outcome.outputs["y"]) for outcome in outcomes] == [0, 2, 4]
        assert turns.depth == 0

    assert with_turns(test).seen == [0, 1, 2]


def test_whoever_gives_up_or_is_too_late_is_not_run() -> None:
    async def test(turns: Turns, model: Model) -> None:
        model.gate.clear()
        first = asyncio.create_task(turns.infer(given(0), soon()))
        await eventually(lambda: model.seen == [0])
        gone = asyncio.create_task(turns.infer(given(1), soon()))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await turns.infer(given(2), time.monotonic() + 0.02)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert turns.depth == 1
        model.gate.set()
        await first
        await turns.infer(given(3), soon())

    assert with_turns(test).seen == [0, 3]


def test_a_fault_costs_one_request_and_says_little() -> None:
    async def test(turns: Turns, model: Model) -> None:
        with pytest.raises(RequestError) as caught:
            await turns.infer(given(-1), soon())
        assert caught.value.detail == "the model failed to run on this request"
        with pytest.raises(OutOfMemory):
            await turns.infer(given(-2), soon())
        assert int((await turns.infer(given(1), soon())).outputs["y"]) == 2

    with_turns(test)
