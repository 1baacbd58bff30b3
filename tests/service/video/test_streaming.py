"""What a live stream may take: of memory little, of time much."""

from __future__ import annotations

import asyncio
import contextlib
import resource

from service.errors import DeadlineExceeded
from service.video.process import Policy
from service.video.sampling import Sampling
from service.video.sandbox import Limits
from service.video.streaming import MAX_CPU_S, LiveDecoders

SAMPLING = Sampling(policy="first", num_frames=1, height=8, width=8)


def test_of_tiny_pieces_only_one_waits() -> None:
    """asyncio looks at all of them whenever another comes."""

    async def feed() -> int:
        async with LiveDecoders(1, Policy()).open(SAMPLING, None, 0.2) as source:
            with contextlib.suppress(DeadlineExceeded):
                while True:
                    await source.feed(b"x")
            return source._writer.transport.get_write_buffer_size()

    assert asyncio.run(feed()) == 1


def test_a_stream_may_take_more_processor_time_than_a_file() -> None:
    async def limit() -> int:
        async with LiveDecoders(1, Policy()).open(SAMPLING, None, 0.2) as source:
            return resource.prlimit(source._decoder.pid, resource.RLIMIT_CPU)[0]

    assert asyncio.run(limit()) == MAX_CPU_S > 100 * Limits().cpu_s
