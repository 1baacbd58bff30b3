"""What waits of a live stream is bounded in number too."""

from __future__ import annotations

import asyncio
import contextlib

from service.errors import DeadlineExceeded
from service.video.process import Policy
from service.video.sampling import Sampling
from service.video.streaming import LiveDecoders


def test_of_tiny_pieces_only_one_waits() -> None:
    """asyncio looks at all of them whenever another comes."""

    async def feed() -> int:
        sampling = Sampling(policy="first", num_frames=1, height=8, width=8)
        async with LiveDecoders(1, Policy()).open(sampling, None, 0.2) as source:
            with contextlib.suppress(DeadlineExceeded):
                while True:
                    await source.feed(b"x")
            return source._writer.transport.get_write_buffer_size()

    assert asyncio.run(feed()) == 1
