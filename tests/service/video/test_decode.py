"""The decoder against a full decode written out plainly, and against pictures whose content is known."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from service.errors import NotAVideo, NoVideoStream, StartError, UndecodableVideo
from service.video import Sampling, decode_clip, probe
from service.video.picture import Resizer
from ttmodels.data.encode import write_video

X264 = {"preset": "ultrafast", "crf": "18"}


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey frames whose brightness tells their number."""
    values = np.linspace(20, 235, count).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray, count: int) -> list[int]:
    """Which of `numbered(count)` each frame is."""
    levels = np.linspace(20, 235, count)
    return [int(np.abs(levels - frame.mean()).argmin()) for frame in frames]


def write_at(path: Path, frames: Iterable[np.ndarray], pts: Iterable[int], time_base: Fraction) -> None:
    """H.264 with the given presentation times."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options=X264 | {"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for frame, time in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, time_base
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


# ---- which frames


def test_equals_a_full_decode(real_clip: Path) -> None:
    """Every picture decoded, then the rule applied to the whole list at once: the same pixels, byte for byte."""
    sampling = Sampling()
    clip = decode_clip(real_clip, sampling)
    resize, expected = Resizer(sampling), np.empty((120, 160, 3), np.uint8)
    with av.open(str(real_clip), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        durations = [p.duration for p in container.demux(stream) if p.size]
    with av.open(str(real_clip), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        base = stream.time_base
        times = [p.pts for p in pictures]
        if times != sorted(times):  # a container without presentation times
            times = list(range(len(pictures)))
        end = max(times) + durations[-1]
        if container.format.name == "avi":
            end = times[0] + len(durations)
        assert base is not None
        for i, frame in enumerate(clip.frames):
            target = times[0] + Fraction((2 * i + 1) * (end - times[0]), 32)
            shown = max((k for k, time in enumerate(times) if time <= target), default=0)
            resize(pictures[shown], expected)
            assert np.array_equal(frame, expected), f"frame {i}"
            assert clip.info.times_s[i] == pytest.approx(float((times[shown] - times[0]) * base), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 31, 32, 50])
def test_uniform_takes_the_middle_of_equal_parts(count: int, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(count), options=X264)
    clip = decode_clip(tmp_path / "a.mp4", Sampling(num_frames=16, height=48, width=64))
    assert numbers(clip.frames, count) == [(2 * i + 1) * count // 32 for i in range(16)]
    assert clip.info.num_frames == count


def test_frames_are_chosen_by_time_not_by_index(tmp_path: Path) -> None:
    """Nine quick frames, then one that stays for nine tenths of the clip, then a last one."""
    pts = [*range(9), 9, 90]
    write_at(tmp_path / "a.mp4", numbered(11), pts, Fraction(1, 30))
    clip = decode_clip(tmp_path / "a.mp4", Sampling(num_frames=10, height=48, width=64))
    end = 91
    want = [max(k for k, time in enumerate(pts) if time <= Fraction((2 * i + 1) * end, 20)) for i in range(10)]
    assert numbers(clip.frames, 11) == want
    assert want.count(9) == 9


def test_a_late_start_changes_nothing(tmp_path: Path) -> None:
    write_at(tmp_path / "zero.mkv", numbered(12), range(0, 480, 40), Fraction(1, 1000))
    write_at(tmp_path / "late.mkv", numbered(12), range(5000, 5480, 40), Fraction(1, 1000))
    zero, late = (decode_clip(tmp_path / name, Sampling()) for name in ("zero.mkv", "late.mkv"))
    assert np.array_equal(zero.frames, late.frames)
    assert zero.info.times_s == pytest.approx(late.info.times_s)


@pytest.mark.parametrize(("bf", "g"), list(itertools.product((0, 3), (1, 5, 250))))
def test_b_frames_and_short_groups(bf: int, g: int, tmp_path: Path) -> None:
    options = {"preset": "veryfast", "crf": "12", "bf": str(bf), "g": str(g), "x264-params": "open-gop=1"}
    write_video(tmp_path / "a.mp4", numbered(40), options=options)
    clip = decode_clip(tmp_path / "a.mp4", Sampling(num_frames=8, height=48, width=64))
    assert numbers(clip.frames, 40) == [2, 7, 12, 17, 22, 27, 32, 37]


# ---- in what form


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("range_", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_are_what_was_painted(matrix: Colorspace, range_: ColorRange, tmp_path: Path) -> None:
    painted = np.array([200, 40, 90], np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, range_
        picture = av.VideoFrame.from_ndarray(np.tile(painted, (48, 64, 1)), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=matrix, src_color_range=ColorRange.JPEG, dst_color_range=range_
        )
        output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    frames = decode_clip(tmp_path / "a.mp4", Sampling(num_frames=1, height=24, width=32)).frames
    assert np.abs(frames.astype(int) - painted).max() <= 3


def rotate_header(path: Path, degrees_clockwise: int) -> None:
    """Set the rotation in an mp4's track header (ISO 14496-12, 8.3.2)."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees_clockwise]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_as_a_player_turns_them(degrees: int, tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255  # white top left
    write_video(tmp_path / "a.mp4", np.stack([frame] * 3), options=X264)
    rotate_header(tmp_path / "a.mp4", degrees)
    clip = decode_clip(tmp_path / "a.mp4", Sampling(num_frames=1, height=40, width=40))
    got = clip.frames[0]
    corners = {"top left": got[5, 5], "top right": got[5, 35], "bottom right": got[35, 35], "bottom left": got[35, 5]}
    white = {90: "top right", 180: "bottom right", 270: "bottom left"}[degrees]
    assert {name for name, value in corners.items() if value.mean() > 128} == {white}
    assert (clip.info.width, clip.info.height) == ((64, 48) if degrees == 180 else (48, 64))


def test_pixels_are_written_where_asked(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(8), options=X264)
    sampling = Sampling(num_frames=4, height=12, width=16)
    out = np.zeros(sampling.clip_shape, np.uint8)
    clip = decode_clip(tmp_path / "a.mp4", sampling, out=out)
    assert clip.frames is out
    assert np.array_equal(out, decode_clip(tmp_path / "a.mp4", sampling).frames)


def test_facts(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm", numbered(30), codec="libvpx-vp9", rate=30)
    info = decode_clip(tmp_path / "a.webm", Sampling()).info
    assert (info.container, info.codec, info.width, info.height) == ("matroska", "vp9", 64, 48)
    assert info.duration_s == pytest.approx(1.0, abs=0.01)
    assert info.frame_rate == pytest.approx(30)
    assert info.num_frames == 30
    assert info.warnings == ()


# ---- what is no video, or a broken one


def test_the_name_cannot_choose_a_playlist(tmp_path: Path) -> None:
    """A playlist would open other files, and addresses on the network."""
    write_video(tmp_path / "secret.mp4", numbered(3), options=X264)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.m3u8").write_text(playlist)
    (tmp_path / "concat.txt").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("a.m3u8", "concat.txt"):
        with pytest.raises(NotAVideo):
            decode_clip(tmp_path / name, Sampling())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64), b"%PDF-1.7\n" + bytes(512)])
def test_other_files_are_no_video(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(NotAVideo, match="expected a video") as caught:
        decode_clip(tmp_path / "a.mp4", Sampling())
    assert str(tmp_path) not in caught.value.detail


def test_sound_alone_has_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        output.mux(stream.encode(sound))
        output.mux(stream.encode(None))
    with pytest.raises(NoVideoStream, match="expected a video stream, found audio"):
        decode_clip(tmp_path / "a.mp4", Sampling())


def test_a_broken_tail_costs_only_the_tail(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(60), options=X264 | {"g": "5"})
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    clip = decode_clip(tmp_path / "a.mkv", Sampling(num_frames=8, height=48, width=64))
    seen = numbers(clip.frames, 60)
    assert seen == sorted(seen)
    assert 15 < seen[-1] < 45


def test_broken_packets_are_skipped_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (30, 48, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "a.avi", noise, codec="mjpeg")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    for start in starts[10:20]:
        data[start : start + 400] = bytes(400)
    (tmp_path / "a.avi").write_bytes(data)
    clip = decode_clip(tmp_path / "a.avi", Sampling(num_frames=8, height=48, width=64))
    assert any("broken packets" in warning for warning in clip.info.warnings)


def test_not_one_picture_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", numbered(5), codec="mjpeg")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    for start in [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]:
        data[start : start + 200] = bytes(200)
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(UndecodableVideo, match="none of 5 mjpeg packets"):
        decode_clip(tmp_path / "a.avi", Sampling())


def test_an_ffmpeg_with_a_known_hole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    probe.check_ffmpeg()
    monkeypatch.setattr(av, "ffmpeg_version_info", "n8.0.1-12-gabc")
    with pytest.raises(StartError, match=r"bundles FFmpeg 8\.0\.1, expected at least 8\.1\.2"):
        probe.check_ffmpeg()


def test_what_is_supported_is_there() -> None:
    found = probe.supported()
    assert {"h264", "hevc", "vp9", "mpeg4", "mjpeg", "mpeg2video"} <= set(found["codecs"])
    assert {"avi", "mpegts"} <= set(found["containers"])
