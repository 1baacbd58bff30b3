"""Places: how many, for how long, and what becomes of them at the end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.engine.admission import Admission
from service.errors import Busy, NotReady, UploadTimeout
from tests.service.conftest import PATIENCE_S, eventually


def test_one_more_than_the_limit_is_refused() -> None:
    admission = Admission(1)
    with admission.admit():
        with pytest.raises(Busy) as caught, admission.admit():
            pass
        assert caught.value.retry_after_s is not None
    with admission.admit():
        assert admission.in_flight == 1


def test_who_is_turned_away_is_told_when_there_will_be_a_place_for_him() -> None:
    """Ten places and stays of 5 s: one is free every half second."""
    now = 0.0
    admission = Admission(10, clock=lambda: now)

    def told() -> float:
        with pytest.raises(Busy) as caught, admission.admit():
            pass
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s

    stays: list[contextlib.ExitStack] = []

    def come() -> None:
        stays.append(contextlib.ExitStack())
        stays[-1].enter_context(admission.admit())

    def half_a_second() -> None:
        """A clip goes, and another comes."""
        nonlocal now
        now += 0.5
        if len(stays) == 10:
            stays.pop(0).close()
        come()

    for _ in range(200):
        half_a_second()
    assert told() == pytest.approx(0.5, rel=0.01)
    assert told() == pytest.approx(1.0, rel=0.01)
    assert told() == pytest.approx(1.5, rel=0.01)
    half_a_second()  # which makes room for one of the three
    assert told() == pytest.approx(1.5, rel=0.01)
    for _ in range(10):
        half_a_second()
    assert told() == pytest.approx(0.5, rel=0.01)


def test_each_piece_starts_the_wait_anew() -> None:
    async def upload(pieces: int, pause_s: float) -> None:
        async with Admission(1).upload(0.2) as came:
            for _ in range(pieces):
                await asyncio.sleep(pause_s)
                came(1)

    asyncio.run(upload(pieces=6, pause_s=0.05))
    with pytest.raises(UploadTimeout, match=r"within 0\.2 s, got none"):
        asyncio.run(upload(pieces=1, pause_s=10))


def test_who_drips_keeps_no_place() -> None:
    async def upload(piece_bytes: int) -> None:
        async with Admission(1, min_rate=1000).upload(0.2) as came:
            for _ in range(12):
                await asyncio.sleep(0.05)
                came(piece_bytes)

    asyncio.run(upload(piece_bytes=200))
    with pytest.raises(UploadTimeout, match=r"expected 1000 bytes of the body a second, got \d+ in 0\.\d s"):
        asyncio.run(upload(piece_bytes=1))


def test_draining_ends_an_upload_though_pieces_come_and_waits_for_the_rest() -> None:
    async def talk() -> list[str]:
        said = []
        admission = Admission(2)
        decoded = asyncio.Event()

        async def uploading() -> None:
            try:
                with admission.admit():
                    async with admission.upload(60) as came:
                        while True:
                            await asyncio.sleep(0)
                            came(1)
            except NotReady:
                said.append("ended")
                decoded.set()

        async def uploaded() -> None:
            with admission.admit():
                async with admission.upload(60) as came:
                    came(1)
                await decoded.wait()
                said.append("answered")

        tasks = [asyncio.create_task(uploading()), asyncio.create_task(uploaded())]
        await eventually(lambda: admission.in_flight == 2)
        await asyncio.wait_for(admission.drain(), PATIENCE_S)
        said.append("drained")
        await asyncio.gather(*tasks)
        with pytest.raises(NotReady), admission.admit():
            pass
        return said

    assert asyncio.run(talk()) == ["ended", "answered", "drained"]
