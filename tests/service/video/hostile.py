"""Files that name other files, addresses or programs, and traps that tell when one of those is opened."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av

from tests.service.conftest import coloured_frames


@dataclass
class Traps:
    """What a hostile file may name: a video and a named pipe that nobody must open, ports that nobody must reach."""

    folder: Path
    tcp: socket.socket
    udp: socket.socket
    notify: int

    @property
    def video(self) -> Path:
        return self.folder / "canary.mp4"

    @property
    def pipe(self) -> Path:
        return self.folder / "pipe.ts"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.tcp.getsockname()[1]}/a.mp4"

    def sprung(self) -> list[str]:
        """What was opened or reached since the last time."""
        found = []
        with contextlib.suppress(BlockingIOError):
            found += [f"{len(os.read(self.notify, 1 << 16))} bytes of file events"]
        with contextlib.suppress(BlockingIOError):
            connection, _ = self.tcp.accept()
            connection.close()
            found.append("a connection")
        with contextlib.suppress(BlockingIOError):
            found.append(f"a datagram {self.udp.recv(1000)!r}")
        return found


def boxes(data: bytes, path: list[bytes]) -> list[int]:
    """Where each box of an ISO 14496-12 path begins."""
    found, start, end = [], 0, len(data)
    for name in path:
        while data[start + 4 : start + 8] != name:
            start += struct.unpack_from(">I", data, start)[0]
            assert start < end, name
        found.append(start)
        end = start + struct.unpack_from(">I", data, start)[0]
        start += 8
    return found


def quicktime_elsewhere(traps: Traps) -> bytes:
    """An mp4 whose pictures lie in another file, named by an alias of the kind that FFmpeg knows."""
    data = bytearray(traps.video.read_bytes())
    path = str(traps.video).replace("/", ":").encode()
    alias = bytes(10) + bytes([4]) + b"disk".ljust(27, b"\0") + bytes(12)
    alias += bytes([10]) + b"canary.mp4".ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 0, 0) + bytes(16)
    named = b"disk" + path
    alias += struct.pack(">HH", 2, len(named)) + named + b"\0" * (len(named) % 2) + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    where = boxes(data, [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"])
    old = struct.unpack_from(">I", data, where[-1])[0]
    new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    data[where[-1] : where[-1] + old] = new
    for start in where[:-1]:
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + len(new) - old)
    return bytes(data)


def quicktime_reference_movie(traps: Traps) -> bytes:
    url = traps.url.encode() + b"\0"
    reference = struct.pack(">I4sI4sI", 20 + len(url), b"rdrf", 0, b"url ", len(url)) + url
    child = struct.pack(">I4s", 8 + len(reference), b"rmda") + reference
    parent = struct.pack(">I4s", 8 + len(child), b"rmra") + child
    movie = struct.pack(">I4s", 8 + len(parent), b"moov") + parent
    return struct.pack(">I4s4sI4s", 20, b"ftyp", b"qt  ", 0, b"qt  ") + movie


def matroska_with_attachments(traps: Traps) -> bytes:
    path = traps.folder.parent / "attached.mkv"
    with av.open(str(path), "w") as output:
        output.add_attachment(str(traps.video), "application/x-truetype-font", traps.url.encode())
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in coloured_frames((200, 20, 20), num_frames=5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return path.read_bytes()


FORMS: dict[str, Callable[[Traps], str | bytes]] = {
    "playlist.m3u8": lambda t: (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
        f'#EXT-X-KEY:METHOD=AES-128,URI="{t.url}"\n#EXT-X-MAP:URI="{t.video}"\n'
        f"#EXTINF:1,\n{t.video}\n#EXTINF:1,\n{t.url}\n#EXTINF:1,\nfile:{t.pipe}\n#EXT-X-ENDLIST\n"
    ),
    "master.m3u8": lambda t: (
        f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{t.url}\n#EXT-X-STREAM-INF:BANDWIDTH=2\n{t.pipe}\n"
    ),
    "list.ffconcat": lambda t: f"ffconcat version 1.0\nfile '{t.video}'\nfile {t.pipe}\nfile '{t.url}'\n",
    "session.sdp": lambda t: (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {t.udp.getsockname()[1] + 1} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
    "manifest.mpd": lambda t: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1.42c00a">'
        f"<BaseURL>{t.url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ),
    "address.txt": lambda t: t.url,
    "address.url": lambda t: f"[InternetShortcut]\nURL={t.url}\n",
    "rtsp.txt": lambda t: f"rtsp://127.0.0.1:{t.tcp.getsockname()[1]}/a",
    "movie.ffmeta": lambda t: f";FFMETADATA1\ntitle={t.url}\n[STREAM]\nfile={t.video}\n",
    "subtitles.ass": lambda t: (
        f"[Script Info]\nScriptType: v4.00+\nVideo File: {t.video}\n[Events]\n"
        f"Dialogue: 0,0:00:00.00,0:00:01.00,,{t.url}\n"
    ),
    "subtitles.srt": lambda t: f"1\n00:00:00,000 --> 00:00:01,000\n{t.url}\n",
    "subtitles.idx": lambda t: (
        "# VobSub index file, v7 (do not modify this line!)\nsize: 720x576\nid: en, index: 0\n"
        "timestamp: 00:00:00:000, filepos: 000000000\n"
    ),
    "show.smil": lambda t: f'<smil><body><video src="{t.url}"/><video src="{t.video}"/></body></smil>',
    "show.asx": lambda t: f'<asx version="3.0"><entry><ref href="{t.url}"/></entry></asx>',
    "show.pls": lambda t: f"[playlist]\nFile1={t.video}\nFile2={t.url}\nNumberOfEntries=2\n",
    "show.xspf": lambda t: (
        f'<playlist xmlns="http://xspf.org/ns/0/"><trackList><track><location>{t.url}</location></track></trackList>'
    ),
    "script.avs": lambda t: f'AviSource("{t.video}")\n',
    "script.vpy": lambda t: f"import os\nopen({str(t.video)!r}).read()\n",
    "graph.lavfi": lambda t: f"movie={t.video}",
    "package.cpl": lambda t: (
        '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
        f"<Id>urn:uuid:0</Id><Path>{t.video}</Path></CompositionPlaylist>"
    ),
    "elsewhere.mov": quicktime_elsewhere,
    "reference.mov": quicktime_reference_movie,
    "attached.mkv": matroska_with_attachments,
}  # fmt: skip
"""Name -> what the file says. All but the last are refused; that one is a video, whose attachments nobody reads."""
