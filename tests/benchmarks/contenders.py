"""What load.py measures: the service, its peers, and processes that only decode. All but one are stopped at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil

from service.video import Sampling, decode_clip

START_S = 90.0
ROOT = Path(__file__).parents[2]
PEERS = {
    "FastAPI": ["uvicorn", "tests.benchmarks.peers.fastapi:app", "--port", "{port}"],
    "LitServe": ["tests.benchmarks.peers.litserve", "{port}"],
    "BentoML": ["bentoml", "serve", "tests.benchmarks.peers.bentoml:Clips", "--host", "127.0.0.1", "--port", "{port}"],
    "Ray Serve": ["tests.benchmarks.peers.rayserve", "{port}"],
}
"""Arguments of `python -m`."""
SERVICE = ["service", "--provider", "cpu", "--port", "{port}"]


@dataclass(frozen=True)
class Memory:
    rss_bytes: int
    """Pages that processes share count in each."""
    pss_bytes: int
    """Pages that processes share are divided among them."""


class Server:
    """A server's process and all below it."""

    start_s: float
    """From its start to its first answer."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.root = psutil.Process(process.pid)
        self.port = port

    def processes(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def pause(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def cpu_s(self) -> float:
        """Of all processes, those that ended and were waited for included."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total

    def memory(self) -> Memory:
        rss = pss = 0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                of = process.memory_full_info()
                rss, pss = rss + of.rss, pss + of.pss
        return Memory(rss, pss)


@contextlib.contextmanager
def started(arguments: list[str], log: Path, python: str = sys.executable, folder: Path = ROOT) -> Iterator[Server]:
    """`python -m ARGUMENTS` in a folder, once it answers at its {port}; ended, with all below it, on leaving."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", *(argument.format(port=port) for argument in arguments)]
    with log.open("wb") as words:
        process = subprocess.Popen(command, stdout=words, stderr=words, cwd=folder, start_new_session=True)
    server = Server(process, port)
    began = time.monotonic()
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began + START_S:
                raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        server.start_s = time.monotonic() - began
        yield server
    finally:
        server.resume()
        below = server.processes()
        process.terminate()
        _, alive = psutil.wait_procs(below, timeout=15)
        for left in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def _answers(port: int) -> bool:
    """Anything at all: what is not POST /classify with a file is refused, in each server's own way."""
    try:
        return httpx.post(f"http://127.0.0.1:{port}/classify", timeout=5).status_code != 404
    except httpx.TransportError:
        return False


class BareDecoding:
    """Processes that decode the frames that are needed, as the service does, and do nothing else."""

    def __init__(self, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(num_processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_decode, args=(theirs,), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, clip: Path, num_processes: int, seconds: float) -> tuple[float, list[float], float]:
        """Clips a second of so many of the processes, the seconds of each clip, and processor seconds a clip."""
        for pipe in self.pipes[:num_processes]:
            pipe.send((clip, seconds))
        came = [pipe.recv() for pipe in self.pipes[:num_processes]]
        taken_s = [spent for each, _ in came for spent in each]
        return (
            sum(len(each) / sum(each) for each, _ in came),
            taken_s,
            sum(cpu_s for _, cpu_s in came) / len(taken_s),
        )

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.join(10)


def _decode(pipe: Connection) -> None:
    sampling = Sampling()
    with contextlib.suppress(EOFError):
        while True:
            clip, seconds = pipe.recv()
            taken_s: list[float] = []
            cpu_s = time.process_time()
            end = time.perf_counter() + seconds
            while (started := time.perf_counter()) < end:
                decode_clip(clip, sampling)
                taken_s.append(time.perf_counter() - started)
            pipe.send((taken_s, time.process_time() - cpu_s))
