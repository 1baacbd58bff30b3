"""Files that name other files, addresses or programs, and files that are broken: nothing is opened, nothing breaks."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from service.errors import NotAVideo, RequestError
from service.settings import Settings
from service.video import Sampling, decode_clip
from service.video.child import Policy
from service.video.sandbox import Mode
from service.video.workers import DecodePool
from tests.conftest import REAL_CLIPS
from tests.service.conftest import Service, coloured_frames, running
from tests.service.video import fuzz
from tests.service.video.hostile import FORMS, Traps
from ttmodels.data.encode import write_video

SAMPLING = Sampling(num_frames=4, height=24, width=32)
DEADLINE_S = 5.0
"""A decoder that opened the trap that blocks would still be there at its end."""


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traps]:
    folder = tmp_path_factory.mktemp("traps")
    write_video(folder / "canary.mp4", coloured_frames((20, 220, 20)))
    (folder / "canary.ts").write_bytes(b"")
    os.mkfifo(folder / "pipe.ts")
    libc = ctypes.CDLL(None, use_errno=True)
    notify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    in_access, in_open = 0x1, 0x20
    assert libc.inotify_add_watch(notify, os.fsencode(folder), ctypes.c_uint32(in_access | in_open)) >= 0
    tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    with tcp, udp:
        for listener in (tcp, udp):
            listener.bind(("127.0.0.1", 0))
            listener.setblocking(False)
        tcp.listen()
        yield Traps(folder, tcp, udp, notify)
    os.close(notify)


@pytest.fixture(scope="module")
def hostile(traps: Traps, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, form in FORMS.items():
        content = form(traps)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with contextlib.suppress(OSError):
        assert traps.sprung()  # making them read the traps
    return {name: folder / name for name in FORMS}


# ---- the traps themselves


def test_the_traps_spring_for_a_naive_reader(traps: Traps, hostile: dict[str, Path]) -> None:
    """What FFmpeg does with such files where nothing holds it back."""
    assert traps.sprung() == []
    for name, options in {
        "list.ffconcat": {"safe": "0"},
        "elsewhere.mov": {"enable_drefs": "1", "use_absolute_path": "1"},
    }.items():
        with av.open(str(hostile[name]), options=options) as container:
            next(container.decode(video=0))
        assert "file events" in str(traps.sprung()), name
    with pytest.raises(av.error.FFmpegError):
        av.open(str(hostile["manifest.mpd"]), timeout=0.2)
    with pytest.raises(av.error.FFmpegError):
        av.open(traps.url, timeout=0.2)
    assert traps.sprung() == ["a connection"]


# ---- through the decoder


def outcome(name: str, ended: object) -> None:
    if name == "attached.mkv":
        assert ended is None
    elif name == "elsewhere.mov":
        # FFmpeg refuses the reference and reads the pictures from where they would be in this file.
        assert ended is None or isinstance(ended, RequestError)
    else:
        assert isinstance(ended, RequestError), (name, ended)
    if not name.endswith((".mov", ".mkv")):
        assert isinstance(ended, NotAVideo), (name, ended)


def test_nothing_is_opened_by_the_decoder_itself(traps: Traps, hostile: dict[str, Path]) -> None:
    """Under their own names, which choose demuxers where white lists do not, and without a sandbox."""
    for name, path in hostile.items():
        ended = None
        try:
            decode_clip(path, SAMPLING)
        except RequestError as error:
            ended = error
        outcome(name, ended)
        assert traps.sprung() == [], name


@pytest.mark.parametrize("sandbox", ["auto", "off"])
def test_nothing_is_opened_by_a_decoder_process(sandbox: Mode, traps: Traps, hostile: dict[str, Path]) -> None:
    async def test() -> None:
        pool = DecodePool(1, SAMPLING.clip_bytes, Policy(sandbox=sandbox))
        await pool.start()
        before = pool.pids
        try:
            for name, path in hostile.items():
                (ended,) = await asyncio.gather(
                    pool.decode(path, SAMPLING, time.monotonic() + DEADLINE_S), return_exceptions=True
                )
                outcome(name, ended if isinstance(ended, BaseException) else None)
                assert traps.sprung() == [], name
            assert pool.pids == before
        finally:
            await pool.close()

    asyncio.run(test())


@pytest.fixture(scope="module")
def small(models: Path) -> Iterator[Service]:
    settings = Settings(
        models=models, default_model="colours/1", provider="cpu", decode_workers=1, deadline_s=DEADLINE_S
    )
    with running(settings) as service:
        yield service


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        (None, "video/mp4"),
        (None, "application/vnd.apple.mpegurl"),
        (None, "application/sdp"),
        ("a%03d.jpg", "image/jpeg"),
        ("concat:{video}|{video}", "text/plain"),
        ("{url}", "application/dash+xml"),
        ("../../{video}", "video/mp4"),
    ],
)
def test_neither_name_nor_content_type_opens_anything(
    filename: str | None, content_type: str, traps: Traps, hostile: dict[str, Path], small: Service
) -> None:
    for name, path in hostile.items():
        called = (filename or name).replace("{video}", str(traps.video)).replace("{url}", traps.url)
        answer = small.post(files={"file": (called, path.read_bytes(), content_type)})
        if name == "attached.mkv":
            assert answer.status_code == 200
        elif name != "elsewhere.mov":
            assert answer.status_code in (415, 422), (name, answer.text)
            assert str(traps.folder) not in answer.text
        assert traps.sprung() == [], name


def test_a_name_with_a_pattern_is_a_name(tmp_path: Path) -> None:
    """FFmpeg reads a%d.png as a0.png, a1.png and so on, where it may choose the demuxer by the name."""
    for i, frame in enumerate(coloured_frames((9, 99, 199), num_frames=3)):
        encoder = av.CodecContext.create("png", "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, "rgb24", Fraction(1, 25)
        (packet,) = encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        (tmp_path / f"a{i}.png").write_bytes(bytes(packet))
    pattern = tmp_path / "a%d.png"
    pattern.write_bytes((tmp_path / "a0.png").read_bytes())
    with av.open(str(pattern)) as naive:
        assert len(list(naive.decode(video=0))) == 3
    with pytest.raises(NotAVideo):
        decode_clip(pattern, SAMPLING)


# ---- broken files


def check(report: fuzz.Report, num_files: int) -> None:
    assert report.faults == []
    assert sum(report.outcomes.values()) == num_files
    assert report.outcomes["ok"] > num_files / 10, "expected some of the files to be videos still"
    assert sum(report.outcomes.values()) - report.outcomes["ok"] > num_files / 10, "expected some to be broken"
    assert report.controls == num_files // fuzz.CONTROL_EVERY


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    made = fuzz.make_seeds(REAL_CLIPS)
    suffixes = {form.split()[0] for form in made}
    assert {"mp4", "mov", "3gp", "mkv", "webm", "avi", "mpg", "ts", "flv", "gif", "wmv", "y4m", "ogg"} <= suffixes
    return list(made.values())


def test_a_few_broken_files(seeds: list[bytes]) -> None:
    check(fuzz.fuzz(200, seeds), 200)


@pytest.mark.slow
def test_two_thousand_broken_files(seeds: list[bytes]) -> None:
    report = fuzz.fuzz(2000, seeds, first=1000)
    check(report, 2000)
    early, late = (np.array(report.rss_mib[done]) for done in (500, 2000))
    assert (late - early < 64).all(), report.rss_mib


def test_broken_files_follow_from_their_numbers(seeds: list[bytes]) -> None:
    files = [fuzz.mutate(np.random.default_rng(number), seeds) for number in range(50)]
    assert files == [fuzz.mutate(np.random.default_rng(number), seeds) for number in range(50)]
    assert len(set(files)) == 50
    assert not set(files) & set(seeds)


def test_broken_files_through_the_service(seeds: list[bytes], small: Service, clips: dict[str, Path]) -> None:
    whole = small.post(clips["red"]).json()
    for number in range(30):
        data = fuzz.mutate(np.random.default_rng(number), seeds)
        answer = small.post(content=data or b"\0")
        assert answer.status_code in (200, 415, 422), (number, answer.text)
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json"
    assert small.post(clips["red"]).json()["probability"] == whole["probability"]
