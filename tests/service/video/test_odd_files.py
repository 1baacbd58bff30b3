"""Files that are odd in one way each: what is decoded is what a plain full decode gives, and is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from service.video import Clip, Sampling, decode_clip
from service.video.bounds import UNBOUNDED
from service.video.picture import Resizer
from service.video.probe import open_video, video_stream
from service.video.selection import Selection, select
from service.video.timeline import Notes, Timeline, read_timeline
from tests.service.video.making import VOP, Recipe, make, pack_b_frames, remux, scenery
from tests.service.video.plainly import decode_whole

SAMPLING = Sampling(num_frames=9, height=24, width=32)
X264 = Recipe("mp4", "libx264", {"preset": "veryfast", "crf": "28", "sc_threshold": "0"}, bf=2, gop=10)


def planned(path: Path, sampling: Sampling = SAMPLING) -> tuple[Timeline, Selection]:
    with open_video(path, UNBOUNDED) as container:
        timeline = read_timeline(container, video_stream(container, UNBOUNDED), UNBOUNDED, Notes())
    picks = sampling.pick(timeline.ticks, timeline.end, timeline.time_base)
    return timeline, select(timeline, picks, near_keyframes=sampling.policy == "keyframes")


def same_as_plain(path: Path) -> Clip:
    clip, whole = decode_clip(path, SAMPLING), decode_whole(path)
    chosen = whole.uniform(SAMPLING.num_frames)
    assert clip.info.pts_s == tuple(float(whole.times[i] * whole.base) for i in chosen)
    for place, index in enumerate(chosen):
        assert np.array_equal(clip.frames[place], whole.pixels(index, 24, 32)), f"frame {place}, picture {index}"
    return clip


# ---- what comes in pictures


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv444p"),
        ("mp4", "libx264", "yuv422p10le"),
        ("mp4", "libx264", "yuv420p10le"),
        ("mkv", "libx264", "gray"),
        ("mkv", "libx264", "gray10le"),
        ("mkv", "libx265", "yuv420p10le"),
        ("webm", "libvpx", "yuva420p"),
        ("webm", "libvpx-vp9", "yuva420p"),
        ("webm", "libvpx-vp9", "yuv444p"),
        ("mkv", "ffv1", "rgba64le"),
        ("mov", "png", "rgba"),
        ("mov", "qtrle", "argb"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_pixel_formats(suffix: str, codec: str, pix_fmt: str, tmp_path: Path) -> None:
    options = {"libx265": {"x265-params": "log-level=none"}, "libvpx": {"auto-alt-ref": "0"}}.get(codec, {})
    path = tmp_path / f"a.{suffix}"
    make(path, Recipe(suffix, codec, options, num_frames=12, pix_fmt=pix_fmt))
    same_as_plain(path)


@pytest.mark.parametrize(("codec", "suffix", "size"), [("mpeg4", "mp4", (63, 47)), ("libvpx-vp9", "webm", (33, 21))])
def test_odd_sizes(codec: str, suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    make(path, Recipe(suffix, codec, size=size))
    assert (same_as_plain(path).info.width, same_as_plain(path).info.height) == size


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_interlaced(codec: str, tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme"} if codec != "libx264" else {"x264-params": "tff=1"}
    path = tmp_path / "a.ts"
    make(path, Recipe("ts", codec, options, bf=2))
    same_as_plain(path)
    if codec == "libx264":
        assert planned(path)[0].doubt == "a packet may be half a picture"


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("webm", "libvpx"), ("gif", "gif"), ("avi", "mjpeg"), ("mpg", "mpeg2video")],
)
def test_one_picture(suffix: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    formats = {"gif": "rgb8", "mjpeg": "yuvj420p"}
    make(path, Recipe(suffix, codec, num_frames=1, pix_fmt=formats.get(codec, "yuv420p")))
    clip = same_as_plain(path)
    assert clip.info.num_frames == 1
    assert set(clip.info.times_s) == {0.0}


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_size_that_changes_on_the_way(codec: str, tmp_path: Path) -> None:
    options = X264.options if codec == "libx264" else {}
    for name, size, start in (("1.ts", (64, 48), 0), ("2.ts", (96, 80), 40)):
        make(tmp_path / name, Recipe("ts", codec, options, size=size, start=start, bf=2, gop=10))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    assert {picture.width for picture in decode_whole(path).pictures} == {64, 96}
    clip = same_as_plain(path)
    assert (clip.info.width, clip.info.height) == (64, 48)
    if codec == "libx264":  # MPEG-2 says all that matters before each group of pictures
        assert planned(path)[0].doubt == "parameters change on the way"


def test_hidden_pictures_are_no_part_of_the_clip(tmp_path: Path) -> None:
    """VP8's alternate references: show_frame, a bit of the first byte, is 0."""

    def hide(packets: list[Packet]) -> list[Packet]:
        for number in (3, 17, 18):
            data = bytearray(bytes(packets[number]))
            data[0] &= ~0x10
            hidden = Packet(bytes(data))
            hidden.pts, hidden.dts = packets[number].pts, packets[number].dts
            hidden.time_base = packets[number].time_base
            packets[number] = hidden
        return packets

    make(tmp_path / "a.webm", Recipe("webm", "libvpx"))
    remux(tmp_path / "a.webm", tmp_path / "b.webm", hide)
    timeline, selection = planned(tmp_path / "b.webm")
    assert [i for i, nature in enumerate(timeline.natures) if nature.hidden] == [3, 17, 18]
    assert selection.runs
    assert same_as_plain(tmp_path / "b.webm").info.num_frames == 37


# ---- what comes in packets


def test_keyframe_flags_are_not_believed(tmp_path: Path) -> None:
    def flag_all(packets: list[Packet]) -> list[Packet]:
        for packet in packets:
            packet.is_keyframe = True
        return packets

    make(tmp_path / "a.mp4", Recipe("mp4", "mpeg4", {"sc_threshold": "1000000000"}, gop=10))
    remux(tmp_path / "a.mp4", tmp_path / "b.mp4", flag_all)
    timeline, selection = planned(tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert sum(nature.entry for nature in timeline.natures) == len(selection.runs) == 4
    same_as_plain(tmp_path / "b.mp4")


def test_a_picture_that_is_refreshed_slowly_has_no_second_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    make(path, dataclasses.replace(X264, suffix="ts", options=X264.options | {"x264-params": "intra-refresh=1"}, bf=0))
    with av.open(str(path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) > 2
    assert [i for i, nature in enumerate(planned(path)[0].natures) if nature.entry] == [0]
    same_as_plain(path)


def test_pictures_before_a_cut_are_decoded_and_not_shown(tmp_path: Path) -> None:
    """An edit list that begins in the middle of a group of pictures."""

    def earlier(packets: list[Packet]) -> list[Packet]:
        for packet in packets:
            assert packet.pts is not None
            assert packet.dts is not None
            shift = int(15 / 25 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packets

    make(tmp_path / "a.mp4", dataclasses.replace(X264, gop=100))
    remux(tmp_path / "a.mp4", tmp_path / "b.mp4", earlier, {"avoid_negative_ts": "disabled"})
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) > 10
    clip = same_as_plain(tmp_path / "b.mp4")
    assert clip.info.num_frames == 25
    assert clip.info.pts_s[0] >= 0
    assert planned(tmp_path / "b.mp4")[1].runs[0].packets[0] == 0


def test_packed_b_frames(tmp_path: Path) -> None:
    make(tmp_path / "a.avi", Recipe("avi", "mpeg4", {"sc_threshold": "1000000000"}, bf=1))
    remux(tmp_path / "a.avi", tmp_path / "b.avi", pack_b_frames)
    with av.open(str(tmp_path / "b.avi")) as container:
        held = [bytes(packet).count(VOP) for packet in container.demux(video=0) if packet.size]
    assert held.count(2) > 15
    clip = same_as_plain(tmp_path / "b.avi")
    assert clip.info.num_frames == 40
    assert not planned(tmp_path / "b.avi")[1].runs
    assert np.array_equal(clip.frames, decode_clip(tmp_path / "a.avi", SAMPLING).frames)


def test_a_stream_that_begins_in_the_middle_of_a_group(tmp_path: Path) -> None:
    make(tmp_path / "a.ts", dataclasses.replace(X264, suffix="ts", num_frames=80, drop=4))
    _, selection = planned(tmp_path / "a.ts")
    assert not selection.runs, "the first frame that is wanted comes before any entry"
    same_as_plain(tmp_path / "a.ts")


@pytest.mark.parametrize("options", [{"movflags": "frag_keyframe+empty_moov"}, {"movflags": "faststart"}])
def test_fragments(options: dict[str, str], tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", X264)
    remux(tmp_path / "a.mp4", tmp_path / "b.mp4", list, options)
    assert same_as_plain(tmp_path / "b.mp4").info.num_frames == 40
    assert planned(tmp_path / "b.mp4")[1].runs


def test_live_webm_without_a_duration(tmp_path: Path) -> None:
    make(tmp_path / "a.webm", Recipe("webm", "libvpx"))
    remux(tmp_path / "a.webm", tmp_path / "b.webm", list, {"live": "1"})
    with av.open(str(tmp_path / "b.webm")) as container:
        assert container.duration is None
    assert same_as_plain(tmp_path / "b.webm").info.duration_s == pytest.approx(1.6, abs=0.01)


def test_tags_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", X264)
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as output:
        output.metadata["title"] = "a title in another coding"
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace(b"another coding", b"\xe9\xff\xfeher coding"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(tmp_path / "b.mp4"))
    assert np.array_equal(
        decode_clip(tmp_path / "b.mp4", SAMPLING).frames, decode_clip(tmp_path / "a.mp4", SAMPLING).frames
    )


def test_a_picture_of_non_square_pixels_fills_the_frame_like_any_other(tmp_path: Path) -> None:
    make(tmp_path / "a.mp4", dataclasses.replace(X264, options=X264.options | {"aspect": "2:1"}))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(2)
    same_as_plain(tmp_path / "a.mp4")


X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
NO_RATE = X265 | {"x265-params": "log-level=none:vui-timing-info=0"}


@pytest.mark.parametrize("bf", [0, 2])
@pytest.mark.parametrize(
    ("codec", "options", "rate"),
    [("libx264", X264.options, 30), ("libx265", X265, 30), ("libx265", NO_RATE, 25)],
)
def test_a_stream_without_a_container_has_times_by_its_rate(
    codec: str, options: dict[str, str], rate: int, bf: int, tmp_path: Path
) -> None:
    path = tmp_path / {"libx264": "a.h264", "libx265": "a.hevc"}[codec]
    make(path, Recipe(path.suffix[1:], codec, options, bf=bf, rate=Fraction(30)))
    clip, whole = decode_clip(path, SAMPLING), decode_pictures(path)
    assert len(whole) == 40
    chosen = [(2 * i + 1) * 40 // 18 for i in range(9)]
    assert clip.info.times_s == pytest.approx([i / rate for i in chosen], abs=1e-5)
    assert (clip.info.frame_rate, clip.info.num_frames) == (rate, 40)
    assert clip.info.duration_s == pytest.approx(40 / rate, abs=1e-5)
    assert clip.info.warnings == (
        ("the stream does not say its frame rate; 25 a second is assumed",) if rate == 25 else ()
    )
    assert bool(planned(path)[1].runs) == (bf == 0)
    for place, index in enumerate(chosen):
        pixels = np.empty((24, 32, 3), np.uint8)
        Resizer(SAMPLING)(whole[index], pixels)
        assert np.array_equal(clip.frames[place], pixels)


def decode_pictures(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("kept", [1.0, 0.7])
def test_theora(kept: float, tmp_path: Path) -> None:
    """PyAV has no encoder: theora.ogv is 20 pictures of `scenery`, made by FFmpeg's command with libtheora."""
    data = Path(__file__).with_name("theora.ogv").read_bytes()
    (tmp_path / "a.ogv").write_bytes(data[: int(kept * len(data))])
    info = same_as_plain(tmp_path / "a.ogv").info
    assert (info.container, info.codec) == ("ogg", "theora")
    assert info.num_frames == 20 if kept == 1 else 1 <= info.num_frames < 20


# ---- beside the video


def beside(path: Path, add: Callable[[av.container.OutputContainer], None]) -> None:
    """An mp4 of the scenery at 64 x 48, with something before it."""
    with av.open(str(path), "w") as output:
        first = add(output)
        video = output.add_stream("libx264", rate=25)
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.disposition = Disposition.default
        output.mux(first.encode(av.VideoFrame(first.width, first.height, "yuvj420p")))
        output.mux(first.encode(None))
        for frame in scenery(20):
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode(None))


@pytest.mark.parametrize(("size", "cover"), [((640, 480), True), ((32, 24), False)])
def test_cover_art_and_smaller_streams_are_not_the_video(size: tuple[int, int], cover: bool, tmp_path: Path) -> None:
    def add(output: av.container.OutputContainer) -> VideoStream:
        stream = output.add_stream("mjpeg", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        stream.disposition = Disposition.attached_pic if cover else Disposition.dub
        return stream

    beside(tmp_path / "a.mp4", add)
    info = decode_clip(tmp_path / "a.mp4", SAMPLING).info
    assert (info.codec, info.width, info.height, info.num_frames) == ("h264", 64, 48, 20)


def test_sound_and_data_beside_the_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.ts"), "w") as output:
        data = output.add_data_stream("klv")
        sound = output.add_stream("aac", rate=48000)
        sound.layout = "mono"
        video = output.add_stream("libx264", rate=25, options=dict(X264.options) | {"g": "10"})
        assert isinstance(video, VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number, frame in enumerate(scenery(40)):
            packet = Packet(b"klv data")
            packet.stream, packet.pts, packet.dts, packet.time_base = data, number, number, Fraction(1, 25)
            output.mux(packet)
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48000, 1920 * number, Fraction(1, 48000)
            output.mux(sound.encode(samples))
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(sound.encode(None))
        output.mux(video.encode(None))
    with av.open(str(tmp_path / "a.ts")) as container:
        assert {stream.type for stream in container.streams} == {"data", "audio", "video"}
    assert same_as_plain(tmp_path / "a.ts").info.num_frames == 40
    assert planned(tmp_path / "a.ts")[1].runs
