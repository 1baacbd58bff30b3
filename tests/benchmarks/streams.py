"""Live streams of JPEG pictures by the bundled model: `python -m tests.benchmarks.streams --streams 1,16,256,1000`.

Closed loops over WebSockets: each stream sends its next picture as soon as it has the answer to the last. The clients
run on the same cores. Of each number of streams: pictures answered a second, the latency of one (p50, p95), pictures in
one run of the model, and what the server holds resident, its decoders not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from websockets.asyncio.client import connect

from tests.service.conftest import coloured_frames
from tests.service.routes.test_stream import write
from tests.service.routes.test_stream_thousand import resident_bytes
from tests.serving import served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,16,256,1000")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", default="320x240")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        pictures = write(Path(folder, "clip.mkv"), coloured_frames((60, 60, 60), 20, height, width), "mjpeg")
    print(f"JPEG of {arguments.size}, {sum(map(len, pictures)) // len(pictures):,} bytes")
    print("streams  pictures/s  p50 ms  p95 ms  a run  MiB resident")
    for count in map(int, arguments.streams.split(",")):
        with served("--log-level", "warning", stderr=subprocess.DEVNULL) as (process, url, _):
            asyncio.run(measure(url, process.pid, count, pictures, arguments.seconds))


async def measure(url: str, pid: int, count: int, pictures: list[bytes], seconds: float) -> None:
    """Print one line."""
    waited: list[float] = []
    everybody_is_there, until = asyncio.Event(), 0.0

    async def live(number: int) -> None:
        async with connect(f"{url.replace('http:', 'ws:')}/stream?top_k=1", compression=None) as socket:
            await socket.recv()
            await everybody_is_there.wait()
            place = number
            while (asked := time.perf_counter()) < until:
                await socket.send(pictures[place % len(pictures)])
                said = json.loads(await socket.recv())
                assert said["type"] == "step", said
                waited.append(time.perf_counter() - asked)
                place += 1

    tasks = [asyncio.create_task(live(number)) for number in range(count)]
    async with httpx.AsyncClient() as http:
        while f"ttvideo_sequences {count}.0" not in (await http.get(f"{url}/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        until = time.perf_counter() + seconds
        everybody_is_there.set()
        await asyncio.sleep(seconds)
        memory = resident_bytes(pid) >> 20
        await asyncio.gather(*tasks)
        series = (await http.get(f"{url}/metrics")).text
    runs = float(re.findall(r'ttvideo_batch_size_count\{model="moving_digits"\} (\S+)', series)[0])
    p50, p95 = np.percentile(waited, [50, 95]) * 1e3
    rate = len(waited) / seconds
    print(f"{count:7,}  {rate:10,.0f}  {p50:6,.0f}  {p95:6,.0f}  {len(waited) / runs:5.1f}  {memory:12,}", flush=True)


if __name__ == "__main__":
    main()
