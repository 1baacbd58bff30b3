"""What 16 frames of a video cost: `python -m tests.benchmarks.decode [--runs 5] [--clips 3s,30s] [--device cuda]`.

Every contender takes the same 16 frames, spread evenly over the clip, as 160 x 120 RGB, on one thread, one after the
other in turns. OpenCV, decord2 and torchcodec take part where they are installed (torchcodec needs FFmpeg's libraries
beside it). "needed" decodes and scales the packets that are needed and does nothing else: they lie in memory, and the
decoder is open. Clips are made once and kept in --cache: H.264 with B-frames, a keyframe every 250 frames, or every
second in those that end in "g". Those of 10 minutes repeat one of 10 seconds. With --device cuda a GPU takes part.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from service.video import Sampling, decode_clip
from service.video.bounds import UNBOUNDED
from service.video.device import Accelerator
from service.video.picture import Resizer
from service.video.probe import open_video, video_stream
from service.video.selection import select
from service.video.timeline import Notes, read_timeline
from tests.benchmarks.timing import in_turn, machine_line, medians

SIZES = {"240p": (320, 240), "1080p": (1920, 1080)}
RATE = 30
SECONDS = {"3s": 3, "30s": 30, "10s-g": 10, "10min-g": 600}
SAMPLING = Sampling()
TOO_MUCH = 3e9
"""Pixels of a file that nobody decodes as a whole here."""

Contender = Callable[[], object]


# ---- clips


def clip(folder: Path, size: str, name: str) -> Path:
    """Make it if it is not there yet."""
    path = folder / f"{size}-{name}.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        if name == "10min-g":
            _repeat(clip(folder, size, "10s-g"), scratch, SECONDS[name] // SECONDS["10s-g"])
        else:
            _encode(scratch, *SIZES[size], SECONDS[name] * RATE, group=RATE if name.endswith("g") else 250)
        scratch.rename(path)
    return path


def _encode(path: Path, width: int, height: int, num_frames: int, group: int) -> None:
    """A camera that wanders over smooth noise, with things that move before it."""
    side = width + 512
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
    ground = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(width=side, height=side).to_ndarray()
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23", "g": str(group)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(num_frames):
            x, y = int(256 + 250 * np.sin(i * 0.021)), int(256 + 250 * np.cos(i * 0.013))
            frame = ground[y : y + height, x : x + width].copy()
            for k in range(4):
                top = int(0.4 * height * (1 + np.sin(0.03 * (k + 1) * i + k)))
                left = int(0.4 * width * (1 + np.cos(0.02 * (k + 1) * i + k)))
                frame[top : top + height // 5, left : left + width // 5] //= k + 2
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))


def _repeat(source: Path, target: Path, times: int) -> None:
    with av.open(str(target), "w", format="mp4") as output:
        stream = None
        for number in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                assert video.time_base is not None
                shift = int(number * SECONDS["10s-g"] / video.time_base)
                for packet in container.demux(video):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        output.mux(packet)


# ---- contenders


def needed(path: Path) -> Contender:
    """Only what cannot be left out. The time of making it ready does not count."""
    container = open_video(path, UNBOUNDED)
    stream = video_stream(container, UNBOUNDED)
    timeline = read_timeline(container, stream, UNBOUNDED, Notes())
    picks = SAMPLING.pick(timeline.ticks, timeline.end, timeline.time_base)
    selection = select(timeline, picks)
    wanted = {number for run in selection.runs for number in run.packets}
    packets = {}
    with av.open(str(path)) as again:
        for number, packet in enumerate(p for p in again.demux(video=0) if p.size):
            if number in wanted:
                packets[number] = packet
                packet.pts = number
    context, resize, out = stream.codec_context, Resizer(SAMPLING), np.empty(SAMPLING.clip_shape, np.uint8)

    def decode() -> object:
        for run in selection.runs:
            for number in (*run.packets, None):
                for picture in context.decode(None if number is None else packets[number]):
                    if picture.pts in run.wanted:
                        resize(picture, out[picks.index(selection.pick_of[picture.pts])])
            context.flush_buffers()
        return container  # which must stay open

    return decode


def everything(path: Path) -> object:
    """Every picture decoded by PyAV; the 16 scaled."""
    resize, out = Resizer(SAMPLING), np.empty(SAMPLING.clip_shape, np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        places = {index: place for place, index in enumerate(indices(stream.frames))}
        for number, picture in enumerate(container.decode(stream)):
            if number in places:
                resize(picture, out[places[number]])
    return out


def indices(num_frames: int) -> list[int]:
    return [int(Fraction((2 * i + 1) * num_frames, 2 * SAMPLING.num_frames)) for i in range(SAMPLING.num_frames)]


def opencv(path: Path) -> object:
    """Frames between are grabbed, not converted, which is how OpenCV is exact."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = set(indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    frames = []
    for number in range(max(wanted) + 1):
        capture.grab()
        if number in wanted:
            frame = cv2.resize(capture.retrieve()[1], (SAMPLING.width, SAMPLING.height), interpolation=cv2.INTER_AREA)
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


def opencv_seek(path: Path) -> object:
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames = []
    for number in indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        frame = cv2.resize(capture.read()[1], (SAMPLING.width, SAMPLING.height), interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


def decord(path: Path) -> object:
    from decord import VideoReader

    reader = VideoReader(str(path), width=SAMPLING.width, height=SAMPLING.height, num_threads=1)
    return reader.get_batch(indices(len(reader))).asnumpy()


def torchcodec(path: Path, mode: str) -> object:
    import torch
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=mode, dimension_order="NCHW")
    frames = decoder.get_frames_at(indices(len(decoder))).data
    return torch.nn.functional.interpolate(frames, (SAMPLING.height, SAMPLING.width), mode="bilinear")


def contenders(path: Path, num_pixels: float, accelerator: Accelerator | None) -> dict[str, Contender]:
    found: dict[str, Contender] = {"needed": needed(path), "ttvideo": lambda: decode_clip(path, SAMPLING)}
    if accelerator is not None:
        found["ttvideo, GPU"] = lambda: decode_clip(path, SAMPLING, accelerator=accelerator)
    whole = num_pixels < TOO_MUCH
    if whole:
        found["everything"] = lambda: everything(path)
    if importlib.util.find_spec("cv2"):
        found["OpenCV, seeking"] = lambda: opencv_seek(path)
        if whole:
            found["OpenCV, grabbing"] = lambda: opencv(path)
    if importlib.util.find_spec("decord"):
        found["decord2"] = lambda: decord(path)
    if importlib.util.find_spec("torchcodec"):
        found["torchcodec, exact"] = lambda: torchcodec(path, "exact")
        found["torchcodec, approximate"] = lambda: torchcodec(path, "approximate")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decode", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--clips", default=",".join(SECONDS))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ttvideo-decode-clips")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    accelerator = Accelerator() if options.device == "cuda" else None
    print(machine_line())
    figures: dict[str, dict[str, float]] = {}
    for size in options.sizes.split(","):
        for name in options.clips.split(","):
            path = clip(options.cache, size, name)
            width, height = SIZES[size]
            calls = contenders(path, width * height * RATE * SECONDS[name], accelerator)
            took = {call: 1e3 * median for call, median in medians(in_turn(calls, options.runs, hopeless=30)).items()}
            figures[f"{size} {name}"] = took
            print(f"\n{size} {name}, {path.stat().st_size / 1e6:.1f} MB")
            for call, median in took.items():
                print(f"  {call:<24} {median:>9.1f} ms   {median / took['needed']:>6.2f} of what is needed")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
