"""What the service adds to decoding: `python -m tests.benchmarks.serve [CLIP] [--seconds 5]`.

Starts `python -m service` on a free port of this machine and reports its cold start, one request's stages, and
answers a second for 1 and for many clients, each beside the baseline of the same run: as many processes as the service
has decoders that only decode the clip.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from service.video import Sampling, decode_clip
from tests.serving import served

SAMPLE = Path(__file__).parents[2] / "service" / "bundled" / "samples" / "down.mp4"


@contextlib.contextmanager
def started() -> Iterator[tuple[str, float]]:
    """The address of a service, and the seconds from its start to its first answer on /readyz."""
    began = time.perf_counter()
    with served(stderr=subprocess.DEVNULL) as (process, url, _):
        httpx.get(f"{url}/readyz").raise_for_status()
        yield url, time.perf_counter() - began
        process.terminate()
        process.wait(60)


def answers_per_second(url: str, clip: bytes, num_clients: int, seconds: float) -> tuple[float, float, float]:
    """Answers a second, and the median and 99th percentile of their times in milliseconds."""
    spent: list[float] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while (started := time.perf_counter()) < end:
                client.post(f"{url}/classify", content=clip).raise_for_status()
                spent.append(1e3 * (time.perf_counter() - started))

    threads = [threading.Thread(target=ask) for _ in range(num_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent.sort()
    return len(spent) / (time.perf_counter() - began), statistics.median(spent), spent[int(0.99 * (len(spent) - 1))]


def _decode(path: Path, seconds: float) -> float:
    sampling, count, began = Sampling(), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        decode_clip(path, sampling)
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve", description=__doc__)
    parser.add_argument("clip", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))

    starts = []
    for _ in range(options.starts):
        with started() as (_, start_s):
            starts.append(start_s)
    print(f"cold start to ready   median {statistics.median(starts):.2f} s of {len(starts)}, worst {max(starts):.2f} s")

    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        alone = pool.apply(_decode, (options.clip, options.seconds))
        together = sum(pool.starmap(_decode, [(options.clip, options.seconds)] * cores))
    print(f"only decoding         {alone:.1f} clips/s in one process, {together:.1f} in {cores}")

    body = options.clip.read_bytes()
    with started() as (url, _):
        answers = [httpx.post(f"{url}/classify", content=body).json()["times_ms"] for _ in range(50)]
        stages = {stage: statistics.median(times[stage] for times in answers) for stage in answers[0]}
        print("one request, medians  " + ", ".join(f"{stage} {spent:.2f} ms" for stage, spent in stages.items()))
        for clients, baseline in ((1, alone), (4, together), (16, together)):
            rate, median, p99 = answers_per_second(url, body, clients, options.seconds)
            print(f"{clients:>2} clients            {rate:.1f} answers/s, {rate / baseline:.2f} of only decoding; "
                  f"median {median:.1f} ms, p99 {p99:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
