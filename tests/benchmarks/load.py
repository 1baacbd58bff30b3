"""The service under load, beside its peers and beside what is bare decoding.

    pip install -c deploy/constraints.txt -e '.[serving-peers]'
    python -m tests.benchmarks.load [--clients 1,16,64,256] [--seconds 4] [--rounds 5] [--json FILE]
    python -m tests.benchmarks.load --only ttvideo --clients 1000
    python -m tests.benchmarks.load --soak 30

Closed loops: each client uploads the same clip again as soon as it has its answer, and waits where Retry-After says so.
Every server has its turn in every round, and is stopped (SIGSTOP) while others have theirs, so that the changing speed
of a machine hits all alike: only figures of one run compare, and ratios are medians over the rounds. `bare` is as many
processes as there are cores, or one for one client, that decode the frames that are needed and do nothing else.

Of each server: answers a second, their share of bare, the latency's percentiles over all rounds, processor time of all
its processes for each answer, their memory under load (PSS: shared pages counted once; RSS), and answers by code other
than 200. The clients' own processor time, on the same cores, is in the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.clips import LABEL, write_clip
from tests.benchmarks.closed_loop import Crowd, upload_request
from tests.benchmarks.contenders import PEERS, ROOT, SERVICE, BareDecoding, Server, started

OURS, BARE = "ttvideo", "bare"
CLIPS_S = {"3s": 3.0, "30s": 30.0}
LONG_CLIENTS = (1, 16)
"""That ask with the long clip."""
RAMP = 0.25
"""Of a turn's time, before it, in which nothing counts."""
MIN_ANSWERS_PER_CLIENT = 4
"""A turn is longer where each client would otherwise get fewer, at 180 seconds of video a second."""
VIDEO_S_A_SECOND = 180
HEADS = ("a second", "of bare", "p50 ms", "p95 ms", "p99 ms", "CPU ms", "PSS MB", "RSS MB")


@dataclass
class Turn:
    """What one contender did in one round."""

    rate: float
    latencies_ms: list[float]
    cpu_ms: float
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    clients_cpu_ms: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0


async def take_turn(server: Server, request: bytes, num_clients: int, seconds: float) -> Turn:
    crowd = Crowd(server.port, request, LABEL, num_clients)
    await crowd.start()
    await asyncio.sleep(RAMP * seconds)
    crowd.begin()
    began, cpu_s, own_cpu_s = time.perf_counter(), server.cpu_s(), time.process_time()
    await asyncio.sleep(seconds)
    spent, num_answers = time.perf_counter() - began, max(1, crowd.codes["200"])
    codes, latencies_s = Counter(crowd.codes), list(crowd.latencies_s)
    own_cpu_s, cpu_s = time.process_time() - own_cpu_s, server.cpu_s() - cpu_s
    memory = await asyncio.to_thread(server.memory)
    unanswered = await crowd.end()
    return Turn(
        rate=codes["200"] / spent,
        latencies_ms=[1e3 * latency_s for latency_s in latencies_s],
        cpu_ms=1e3 * cpu_s / num_answers,
        rss_mb=memory.rss_bytes / 1e6,
        pss_mb=memory.pss_bytes / 1e6,
        clients_cpu_ms=1e3 * own_cpu_s / num_answers,
        codes=dict(codes),
        unanswered=unanswered,
    )


def bare_turn(bare: BareDecoding, clip: Path, num_clients: int, seconds: float) -> Turn:
    rate, taken_s, cpu_s = bare.run(clip, min(num_clients, len(bare.pipes)), seconds)
    return Turn(rate, [1e3 * each for each in taken_s], 1e3 * cpu_s)


# ---- the report


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))] if ordered else float("nan")


def ratio(turns: list[Turn], to: list[Turn]) -> float:
    """Of rates, round by round."""
    return statistics.median(a.rate / b.rate if b.rate else float("inf") for a, b in zip(turns, to, strict=True))


@dataclass
class Figures:
    """Of all turns of one contender."""

    rate: float
    of_bare: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    clients_cpu_ms: float
    pss_mb: float
    rss_mb: float
    errors: dict[str, int]

    @classmethod
    def of(cls, turns: list[Turn], bare: list[Turn]) -> Figures:
        latencies_ms = [latency for turn in turns for latency in turn.latencies_ms]
        codes = sum((Counter(turn.codes) for turn in turns), Counter[str]())
        codes["unanswered"] = sum(turn.unanswered for turn in turns)
        return cls(
            rate=statistics.median(turn.rate for turn in turns),
            of_bare=ratio(turns, bare),
            p50_ms=percentile(latencies_ms, 50),
            p95_ms=percentile(latencies_ms, 95),
            p99_ms=percentile(latencies_ms, 99),
            cpu_ms=statistics.median(turn.cpu_ms for turn in turns),
            clients_cpu_ms=statistics.median(turn.clients_cpu_ms for turn in turns),
            pss_mb=max(turn.pss_mb for turn in turns),
            rss_mb=max(turn.rss_mb for turn in turns),
            errors={code: count for code, count in codes.items() if count and code != "200"},
        )

    def __str__(self) -> str:
        latencies = f"{self.p50_ms:>9.1f}{self.p95_ms:>9.1f}{self.p99_ms:>9.1f}"
        errors = ", ".join(f"{code}: {count}" for code, count in self.errors.items())
        return (
            f"{self.rate:>9.1f}{self.of_bare:>9.2f}{latencies}{self.cpu_ms:>9.1f}"
            f"{self.pss_mb:>9.0f}{self.rss_mb:>9.0f}  {errors}"
        )


def print_table(title: str, rows: dict[str, list[Turn]]) -> dict[str, Figures]:
    figures = {name: Figures.of(turns, rows[BARE]) for name, turns in rows.items()}
    print(f"\n{title}\n" + " " * 14 + "".join(f"{head:>9}" for head in HEADS))
    for name, row in figures.items():
        print(f"  {name:<12}{row}")
    peers = [name for name in rows if name in PEERS]
    if OURS in rows and peers:
        fastest = max(peers, key=lambda name: figures[name].rate)
        ours, its = figures[OURS], figures[fastest]
        print(
            f"  {OURS} to {fastest}, the fastest peer: {ratio(rows[OURS], rows[fastest]):.2f} of its answers a second, "
            f"{ours.p50_ms / its.p50_ms:.2f} of its p50, {ours.p99_ms / its.p99_ms:.2f} of its p99, "
            f"{ours.pss_mb / its.pss_mb:.2f} of its PSS",
            flush=True,
        )
    return figures


def machine_line() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].split(":", 1)[1].strip() if names else platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start"


# ---- runs


def compare(options: argparse.Namespace, servers: dict[str, Server], clips: dict[str, Path]) -> None:
    figures: dict[str, object] = {"machine": machine_line(), "options": {k: str(v) for k, v in vars(options).items()}}
    print(figures["machine"])
    figures["start_s"] = {name: server.start_s for name, server in servers.items()}
    print(
        "from start to first answer:", ", ".join(f"{name} {server.start_s:.1f} s" for name, server in servers.items())
    )
    bare = BareDecoding(len(os.sched_getaffinity(0)))
    for name, clip in clips.items():
        request = upload_request(clip.read_bytes())
        for num_clients in options.clients:
            if name == "30s" and num_clients not in LONG_CLIENTS and len(options.clients) > 1:
                continue
            seconds = max(options.seconds, MIN_ANSWERS_PER_CLIENT * num_clients * CLIPS_S[name] / VIDEO_S_A_SECOND)
            rows: dict[str, list[Turn]] = {contender: [] for contender in (BARE, *servers)}
            for _ in range(options.rounds):
                rows[BARE].append(bare_turn(bare, clip, num_clients, seconds))
                for contender, server in servers.items():
                    server.resume()
                    rows[contender].append(asyncio.run(take_turn(server, request, num_clients, seconds)))
                    server.pause()
            title = f"{name}, {clip.stat().st_size / 1e3:.0f} kB; {num_clients} clients"
            figures[f"{name} {num_clients}"] = {
                "figures": {contender: asdict(row) for contender, row in print_table(title, rows).items()},
                "turns": {contender: [asdict(turn) for turn in turns] for contender, turns in rows.items()},
            }
    bare.close()
    if options.json:
        options.json.write_text(json.dumps(figures))


def soak(minutes: float, server: Server, clip: Path, num_clients: int) -> None:
    """A line a minute; memory should stay where it was after the first."""
    request = upload_request(clip.read_bytes())
    print("minute  a second  p99 ms  PSS MB  RSS MB  processes  files  errors")
    server.resume()
    for minute in range(1, round(minutes) + 1):
        turn = asyncio.run(take_turn(server, request, num_clients, 60 / (1 + RAMP)))
        processes = server.processes()
        errors = {code: count for code, count in turn.codes.items() if code != "200"}
        print(
            f"{minute:>6}{turn.rate:>10.1f}{percentile(turn.latencies_ms, 99):>8.0f}{turn.pss_mb:>8.1f}"
            f"{turn.rss_mb:>8.1f}{len(processes):>11}{sum(process.num_fds() for process in processes):>7}  "
            f"{errors or ''}{f' unanswered: {turn.unanswered}' if turn.unanswered else ''}",
            flush=True,
        )


def named(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--clients", type=numbers, default=[1, 16, 64, 256])
    parser.add_argument("--clips", default="3s,30s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=f"of {OURS}, {', '.join(PEERS)} and what --also names; `bare` always runs")
    parser.add_argument(
        "--python", type=named, action="append", default=[], metavar="NAME=PATH",
        help="a peer's interpreter; `peers=PATH` for all of them",
    )  # fmt: skip
    parser.add_argument(
        "--also", type=named, action="append", default=[], metavar="NAME=OPTIONS",
        help="the service once more, with other options",
    )  # fmt: skip
    parser.add_argument(
        "--checkout", type=named, action="append", default=[], metavar="NAME=FOLDER",
        help="the service once more, from another checkout",
    )  # fmt: skip
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="the service alone, with 16 clients")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    pythons = dict(options.python)
    known: dict[str, tuple[list[str], str, Path]] = {OURS: (SERVICE, sys.executable, ROOT)}
    for name, value in options.also:
        known[name] = [*SERVICE, *shlex.split(value)], sys.executable, ROOT
    for name, folder in options.checkout:
        known[name] = SERVICE, sys.executable, Path(folder).resolve()
    for name, arguments in PEERS.items():
        known[name] = arguments, pythons.get(name, pythons.get("peers", sys.executable)), ROOT
    chosen = [OURS] if options.soak else options.only.split(",") if options.only else list(known)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        clips = {name: Path(scratch) / f"{name}.mp4" for name in options.clips.split(",")}
        for name, path in clips.items():
            write_clip(path, CLIPS_S[name])
        servers = {}
        for name in chosen:
            arguments, python, folder = known[name]
            log = Path(scratch) / f"{name.replace(' ', '-')}.log"
            servers[name] = stack.enter_context(started(arguments, log, python, folder))
            servers[name].pause()
        if options.soak:
            soak(options.soak, servers[OURS], clips["3s"], 16)
        else:
            compare(options, servers, clips)


if __name__ == "__main__":
    main()
