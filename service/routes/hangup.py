"""Work that nobody waits for any longer is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but drop it at once when the client hangs up. The body must have been read.

    The work is done by the caller's own task: a second one would cost a request some turns of the event loop.

    Raises:
        ClientDisconnect: it hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def drop(watch: asyncio.Task[None]) -> None:
        nonlocal gone
        if not watch.cancelled() and not ended:
            gone = True
            task.cancel()

    ended = False
    watch = asyncio.create_task(_hung_up(request))
    watch.add_done_callback(drop)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        ended = True
        watch.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
