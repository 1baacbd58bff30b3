"""A thousand live streams over real sockets to a real process, each answered as its whole clip would be."""

from __future__ import annotations

import asyncio
import json
import random
import re
import resource
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect

from service.video import Sampling, decode_clip
from tests.service.conftest import coloured_frames
from tests.service.engine import streaming
from tests.service.engine.streaming import logits_over_time
from tests.service.routes.test_stream import CLOSE, probabilities, softmax, write
from tests.serving import served

STREAMS, STEPS, PICTURES = 1000, 4, 50
MEMORY_BYTES = 150 << 20
"""That so many streams may take all together: sockets, their buffers, tasks and states."""
PATIENCE_S = 120.0


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.fixture
def many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * STREAMS:
        pytest.skip(f"expected to be allowed {2 * STREAMS} open files, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * STREAMS), hard))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("many_files")
def test_a_thousand_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streaming.save(tmp_path / "models")
    colours = np.random.default_rng(0).integers(0, 256, (PICTURES, 3))
    frames = np.concatenate([coloured_frames(tuple(colour), 1) for colour in colours])
    pictures = write(tmp_path / "clip.mkv", frames, "mjpeg")
    seen = decode_clip(tmp_path / "clip.mkv", Sampling(policy="first", num_frames=PICTURES, height=8, width=8)).frames
    chance = random.Random(0)
    clips = [[chance.randrange(PICTURES) for _ in range(STEPS)] for _ in range(STREAMS)]

    async def step(ws: ClientConnection, number: int, place: int) -> None:
        await ws.send(pictures[clips[number][place]])
        said = json.loads(await asyncio.wait_for(ws.recv(), PATIENCE_S))
        assert (said["type"], said["index"]) == ("step", place)
        expected = softmax(logits_over_time(seen[clips[number][: place + 1]]))[-1]
        np.testing.assert_allclose(probabilities(said), expected, atol=CLOSE)

    async def run(url: str, pid: int) -> None:
        before = resident_bytes(pid)
        sockets = [await connect(f"{url}/stream?model=sums&top_k=3", compression=None) for _ in range(STREAMS)]
        for ws in sockets:
            assert json.loads(await ws.recv())["type"] == "ready"
        opened = resident_bytes(pid)
        places = [0] * STREAMS
        started = time.perf_counter()
        while going := [number for number in range(STREAMS) if places[number] < STEPS]:
            some = chance.sample(going, max(1, 2 * len(going) // 3))
            await asyncio.gather(*(step(sockets[number], number, places[number]) for number in some))
            for number in some:
                places[number] += 1
        spent = time.perf_counter() - started
        async with httpx.AsyncClient() as http:
            series = (await http.get(f"{url.replace('ws:', 'http:')}/metrics")).text
        assert f"ttvideo_sequences {STREAMS}.0" in series
        loaded = resident_bytes(pid)
        for ws in sockets:
            await ws.send('{"type": "end"}')
        for ws in sockets:
            assert json.loads(await ws.recv())["num_steps"] == STEPS
            await ws.close()
        runs = float(re.findall(r'ttvideo_batch_size_count\{model="sums"\} (\S+)', series)[0])
        with capsys.disabled():
            print(
                f"\n{STREAMS:,} streams: {STREAMS * STEPS / spent:,.0f} pictures of 64x48 a second, this client on the "
                f"same cores; mean batch {STREAMS * STEPS / runs:.1f}; MiB resident {before >> 20} before, "
                f"{opened >> 20} open, {loaded >> 20} under load"
            )
        assert loaded - before < MEMORY_BYTES

    arguments = ("--models", tmp_path / "models", "--default-model", "moving_digits", "--log-level", "warning")
    with served(*arguments, stderr=subprocess.DEVNULL) as (process, url, _):
        asyncio.run(run(url.replace("http:", "ws:"), process.pid))
