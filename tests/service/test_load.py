"""Faults while clients keep a real server busy: every answer is counted, and only what the fault itself hit is lost.

Answers are counted by status; besides, `wrong` is a 200 with another label, `closed` a connection that ended before its
answer, `refused` one that was not taken.
"""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import os
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.benchmarks.closed_loop import Crowd, upload_request
from tests.service import onnx_models
from tests.service.conftest import PATIENCE_S, eventually, wait_until
from tests.serving import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]

NUM_CLIENTS = 8
SETTLED = 25
"""Answers before a fault, and after it."""
Fault = Callable[["Server", Crowd], Awaitable[None]]


class Server:
    """A served process, and what can be seen of it from outside."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid, self.url = pid, url
        self.port = httpx.URL(url).port or 0
        self.client = httpx.Client(base_url=url, timeout=PATIENCE_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    @property
    def decoders(self) -> list[int]:
        """Processes below a process below the server: those that the fork server made."""
        return [pid for child in children(self.pid) for pid in children(child)]

    def rss_mb(self) -> float:
        return rss_mb(self.pid)

    def num_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def stop_decoders(self) -> None:
        for pid in self.decoders:
            os.kill(pid, signal.SIGSTOP)

    def continue_decoders(self) -> None:
        for pid in self.decoders:
            os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@contextmanager
def serving(models: Path, spool: Path, *arguments: str) -> Iterator[Server]:
    log = spool.parent / "log"
    with (
        log.open("w") as words,
        served(
            *("--models", models, "--default-model", "colours/1", "--spool-dir", spool, "--decode-workers", "2"),
            *arguments,
            stderr=words.fileno(),
        ) as (process, url, _),
    ):
        server = Server(process.pid, url)
        try:
            yield server
        finally:
            server.client.close()
        assert list(spool.iterdir()) == []
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, log.read_text()


def under_load(server: Server, clip: Path, fault: Fault, num_clients: int = NUM_CLIENTS) -> Counter[str]:
    """All answers to clients that ask without a pause from before the fault until after it."""

    request = upload_request(clip.read_bytes())

    async def run() -> Counter[str]:
        crowd = Crowd(server.port, request, "red", num_clients)
        await crowd.start()
        await answers(crowd, SETTLED)
        await fault(server, crowd)
        await answers(crowd, crowd.codes["200"] + SETTLED)
        assert await crowd.end(PATIENCE_S) == 0, "an answer did not come"
        return crowd.codes

    counts = asyncio.run(run())
    print(f"answers: {dict(counts)}")
    assert server.metric("ttvideo_requests_in_flight") == 0
    return counts


async def answers(crowd: Crowd, number: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await eventually(lambda: crowd.codes["200"] >= number)


async def until(condition: Callable[[], bool]) -> None:
    """`eventually` for conditions that ask the server."""
    async with asyncio.timeout(3 * PATIENCE_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_killed_decoders_cost_at_most_a_request_each(models: Path, clips: dict[str, Path], spool: Path) -> None:
    kills = 10

    async def kill(server: Server, crowd: Crowd) -> None:
        for i in range(kills):
            os.kill(server.decoders[0], signal.SIGKILL)
            await until(lambda i=i: server.metric("ttvideo_decode_workers_replaced_total") == i + 1)  # type: ignore[misc]
            await until(lambda: server.metric("ttvideo_decode_workers") == 2)
            await answers(crowd, crowd.codes["200"] + 5)

    with serving(models, spool) as server:
        counts = under_load(server, clips["red"], kill)
        assert counts.keys() <= {"200", "422"}
        assert counts["422"] <= kills
        assert server.metric("ttvideo_requests_total", code="decoder_crashed") == counts["422"]
        assert server.metric("ttvideo_decode_workers_replaced_total") == kills


def test_hanging_decoders_cost_a_request_each(models: Path, clips: dict[str, Path], spool: Path) -> None:
    hangs = 3

    async def hang(server: Server, crowd: Crowd) -> None:
        for done in range(hangs):
            os.kill(server.decoders[0], signal.SIGSTOP)
            await until(lambda done=done: crowd.codes["504"] == done + 1)  # type: ignore[misc]
            await until(lambda: server.metric("ttvideo_decode_workers") == 2)

    with serving(models, spool, "--deadline-s", "3") as server:
        counts = under_load(server, clips["red"], hang)
        assert counts.keys() == {"200", "504"}
        assert counts["504"] == hangs
        assert server.metric("ttvideo_decode_workers_replaced_total") == hangs


def test_clients_that_die_while_they_upload_cost_nobody_anything(
    models: Path, clips: dict[str, Path], spool: Path
) -> None:
    request = upload_request(clips["red"].read_bytes())

    async def die(server: Server, crowd: Crowd) -> None:
        for i in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request[: (i + 1) * len(request) // 102])
            await writer.drain()
            writer.transport.abort()
        await until(lambda: server.metric("ttvideo_requests_in_flight") <= NUM_CLIENTS)

    with serving(models, spool, "--max-queue", "256") as server:  # room for all that die at once
        assert under_load(server, clips["red"], die).keys() == {"200"}
        assert server.metric("ttvideo_decode_workers_replaced_total") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=2m"):
        pytest.skip(f"a small disk needs the right to mount one: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount(bytes(folder)) == 0


def test_a_full_disk_refuses_uploads_until_there_is_room_again(
    models: Path, clips: dict[str, Path], small_disk: Path
) -> None:
    async def fill(server: Server, crowd: Crowd) -> None:
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
            await until(lambda: crowd.codes["507"] >= 3 * NUM_CLIENTS)
        (small_disk / "filler").unlink()

    with serving(models, small_disk) as server:
        assert under_load(server, clips["red"], fill).keys() == {"200", "507"}
        assert server.metric("ttvideo_requests_total", status="507") == server.metric(
            "ttvideo_requests_total", code="no_room"
        )


def test_several_models_at_once_answer_each_for_itself(
    models: Path, clips: dict[str, Path], spool: Path, tmp_path: Path
) -> None:
    """Whoever names none gets the default, the latest version where only a name is given; and all run together."""
    about = onnx_models.manifest(name="other", labels=("one", "two", "three", "four"))
    onnx_models.save(tmp_path / "several", onnx_models.colours(about), about)
    for version, labels in (("2", ("old", "b", "c", "d")), ("10", ("new", "b", "c", "d"))):
        about = onnx_models.manifest(name="mine", version=version, labels=labels)
        onnx_models.save(tmp_path / "several", onnx_models.colours(about), about)
    request = upload_request(clips["red"].read_bytes())
    asked = {"": "one", "?model=mine": "new", "?model=mine&version=2": "old", "?model=other&version=1": "one"}

    async def ask(server: Server) -> list[Counter[str]]:
        crowds = [
            Crowd(server.port, request.replace(b"/classify", b"/classify" + query.encode(), 1), label, 2)
            for query, label in asked.items()
        ]
        for crowd in crowds:
            await crowd.start()
        for crowd in crowds:
            await answers(crowd, SETTLED)
        assert [await crowd.end(PATIENCE_S) for crowd in crowds] == [0] * len(crowds)
        return [crowd.codes for crowd in crowds]

    with serving(tmp_path / "several", spool, "--default-model", "other") as server:
        for counts in asyncio.run(ask(server)):
            assert counts.keys() == {"200"}
        told = server.client.get("/models").json()["models"]
        served = {f"{model['name']}/{model['version']}": model["default"] for model in told}
        assert served == {"mine/2": False, "mine/10": False, "moving_digits/1": False, "other/1": True}


def test_a_model_that_is_replaced_again_and_again_loses_no_request(
    tmp_path: Path, clips: dict[str, Path], spool: Path
) -> None:
    models, times = tmp_path / "own", 20
    seen: set[str] = set()

    async def replace(server: Server, crowd: Crowd) -> None:
        for i in range(times):
            lay(models, temperature=2.0 + i)
            loaded = await asyncio.to_thread(server.client.post, "/v2/repository/models/colours/load")
            assert loaded.status_code == 200, loaded.text
            seen.add(server.client.get("/model").json()["sha256"])
            await answers(crowd, crowd.codes["200"] + 5)
        (models / "colours/1/model.onnx").write_bytes(b"broken")
        refused = await asyncio.to_thread(server.client.post, "/v2/repository/models/colours/load")
        assert refused.status_code == 422
        assert "ONNX Runtime cannot load it" in refused.json()["error"]
        told = server.client.get("/model").json()
        assert told["sha256"] in seen
        assert "ONNX Runtime cannot load it" in told["refused"]

    lay(models, temperature=1.0)
    with serving(models, spool, "--model-control", "explicit") as server:
        before = server.num_descriptors(), len(list(Path(f"/proc/{server.pid}/task").iterdir()))
        assert under_load(server, clips["red"], replace).keys() == {"200"}
        assert len(seen) == times
        after = server.num_descriptors(), len(list(Path(f"/proc/{server.pid}/task").iterdir()))
        assert after[1] <= before[1] + 8, "threads of models that are gone"


def lay(models: Path, temperature: float) -> None:
    """colours/1, put in its place at once."""
    about = onnx_models.manifest(temperature=temperature)
    made = onnx_models.save(models.with_suffix(".new"), onnx_models.colours(about), about)
    place = models / "colours/1/model.onnx"
    place.parent.mkdir(parents=True, exist_ok=True)
    made.replace(place)


def test_sigterm_turns_readiness_first_answers_what_was_accepted_and_ends_with_0(
    models: Path, clips: dict[str, Path], spool: Path
) -> None:
    async def end(server: Server) -> tuple[Counter[str], int]:
        crowd = Crowd(server.port, upload_request(clips["red"].read_bytes()), "red", NUM_CLIENTS)
        await crowd.start()
        await answers(crowd, SETTLED)
        server.stop_decoders()
        # Nobody gets an answer now: each of the clients has asked, and waits.
        await until(lambda: server.metric("ttvideo_requests_in_flight") == NUM_CLIENTS)
        crowd.asking = False
        crowd.begin()
        os.kill(server.pid, signal.SIGTERM)
        await until(lambda: server.client.get("/readyz").status_code == 503)
        assert server.client.get("/livez").status_code == 200
        late = await asyncio.to_thread(server.client.post, "/classify", content=clips["red"].read_bytes())
        assert (late.status_code, late.json()["code"]) == (503, "not_ready")
        assert int(late.headers["Retry-After"]) >= 1
        assert crowd.under_way == NUM_CLIENTS
        server.continue_decoders()
        return crowd.codes, await crowd.end(PATIENCE_S)

    with serving(models, spool) as server:  # which looks at the exit code
        assert asyncio.run(end(server)) == ({"200": NUM_CLIENTS}, 0)


def test_sigterm_in_the_middle_of_it_all(models: Path, clips: dict[str, Path], spool: Path) -> None:
    """A request that is sent while the door closes may find it closed; whatever got an answer got a right one."""

    async def end(server: Server) -> tuple[Counter[str], int]:
        crowd = Crowd(server.port, upload_request(clips["red"].read_bytes()), "red", NUM_CLIENTS)
        await crowd.start()
        await answers(crowd, SETTLED)
        os.kill(server.pid, signal.SIGTERM)
        await until(lambda: crowd.codes["refused"] > 0)
        return crowd.codes, await crowd.end(PATIENCE_S)

    with serving(models, spool) as server:
        counts, unanswered = asyncio.run(end(server))
    print(f"answers: {dict(counts)}")
    assert unanswered == 0
    assert counts.keys() <= {"200", "503", "closed", "refused"}


def test_a_thousand_clients_at_once_are_answered_or_told_to_come_back(
    models: Path, clips: dict[str, Path], spool: Path
) -> None:
    num_clients, most_mb = 1000, 150
    with more_descriptors(), serving(models, spool) as server:
        before_mb = server.rss_mb()

        async def stay(server: Server, crowd: Crowd) -> None:
            await until(lambda: crowd.codes["200"] + crowd.codes["503"] >= 2 * num_clients)

        counts = under_load(server, clips["red"], stay, num_clients)
        grown_mb = server.rss_mb() - before_mb
        print(f"service's memory: {before_mb:.0f} MB before, {grown_mb:.0f} MB more after")
        assert counts.keys() == {"200", "503"}
        assert grown_mb < most_mb


@contextmanager
def more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"needs 4,096 open files, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


HANGUPS = 1000


def test_a_thousand_hang_ups_leave_nothing_behind(tmp_path: Path, clips: dict[str, Path], spool: Path) -> None:
    """While uploading, in the line for a decoder, in a decoder, in the line for the model and in its run, which takes
    seconds where nobody stops it."""
    models = tmp_path / "slow"
    for about, delay in ((onnx_models.manifest(), 0), (onnx_models.manifest(name="slow"), 200)):
        onnx_models.save(models, onnx_models.colours(about, delay=delay), about)
    request = upload_request(clips["red"].read_bytes())
    spent: dict[str, list[float]] = {}

    async def hang_up(server: Server, kind: str, number: int, sent: bytes, there: Callable[[], bool]) -> None:
        """So many connections, which end when they are all where they should be; how long until nothing is left."""
        writers = [(await asyncio.open_connection("127.0.0.1", server.port))[1] for _ in range(number)]
        for writer in writers:
            writer.write(sent)
        await until(there)
        started = time.perf_counter()
        for writer in writers:
            writer.transport.abort()
        await until(lambda: server.metric("ttvideo_requests_in_flight") == 0)
        spent.setdefault(kind, []).append(1e3 * (time.perf_counter() - started))

    async def round_of_forty(server: Server) -> None:
        def waiting(queue: str, number: int) -> bool:
            return server.metric("ttvideo_queue_depth", queue=queue) >= number

        in_flight = "ttvideo_requests_in_flight"
        await hang_up(server, "upload", 10, request[:-100], lambda: server.metric(in_flight) == 10)
        await until(lambda: server.metric("ttvideo_decode_workers") == 2)
        server.stop_decoders()
        await hang_up(server, "decoder and its line", 20, request, lambda: waiting("decode", 18))
        await until(lambda: server.metric("ttvideo_decode_workers") == 2)
        slowly = request.replace(b"/classify", b"/classify?model=slow", 1)
        await hang_up(server, "model and its line", 10, slowly, lambda: waiting("model", 1))

    def state(server: Server) -> tuple[float, list[float], int]:
        return server.rss_mb(), sorted(map(rss_mb, server.decoders)), server.num_descriptors()

    with serving(models, spool) as server:
        asyncio.run(round_of_forty(server))
        before = state(server)
        for _ in range(HANGUPS // 40):
            asyncio.run(round_of_forty(server))
        wait_until(lambda: server.metric("ttvideo_decode_workers") == 2, "both decoders live")
        wait_until(lambda: server.num_descriptors() <= before[2] + 4, "descriptors are closed")
        after = state(server)
        worked_s = cpu_s(server.pid)
        time.sleep(0.5)
        worked_s = cpu_s(server.pid) - worked_s
        for kind, times in spent.items():
            median = statistics.median(times)
            print(f"{kind}: nothing is left after {median:.0f} ms, at most {max(times):.0f}, as seen by polling")
        print(f"service {before[0]:.0f} -> {after[0]:.0f} MB, decoders {before[1]} -> {after[1]} MB")
        print(f"half a second later it had worked for {worked_s:.2f} s")
        assert worked_s < 0.25
        gone = server.metric("ttvideo_requests_total", code="client_gone")
        assert gone == HANGUPS + 40
        assert len(server.decoders) == 2
        assert list(spool.iterdir()) == []
        assert after[0] < before[0] + 32
        assert max(after[1]) < max(before[1]) + 16
        assert under_load(server, clips["red"], lambda server, crowd: answers(crowd, SETTLED)).keys() == {"200"}
