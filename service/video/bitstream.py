"""What the first bytes of a packet say of its picture: whether decoding may begin there, and whether others need it.

Containers flag keyframes as their writers understood them: parameter sets that came earlier, recovery points of a
slowly refreshed picture, and plain mistakes among them. So the stream itself is asked. Codecs that are not read here
have no known entry, and their streams are decoded from the first packet on.

References: ITU-T H.264 (7.3.1, 7.4.1, D.2.8), H.265 (7.4.2.2), H.262 (6.2.3), ISO/IEC 14496-2 (6.2.5), RFC 6386 (9.1),
VP9 bitstream (6.2), AV1 bitstream (5.3, 5.9.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from av.packet import Packet
from av.video.stream import VideoStream


@dataclass(frozen=True, slots=True)
class Nature:
    """Of one packet."""

    entry: bool = False
    """A decoder that begins here decodes this picture, and every later one that is shown after it, exactly."""
    reference: bool = True
    """Other pictures may be decoded from this one."""
    hidden: bool = False
    """It is decoded and never shown."""
    broken: bool = False
    """Part of it is missing, and what a decoder puts there depends on what it decoded before."""
    doubt: str = ""
    """Why nothing may be left out of a stream with such a packet."""


PLAIN = Nature()
ENTRY = Nature(entry=True)
UNREFERENCED = Nature(reference=False)
HIDDEN = Nature(hidden=True)
BROKEN = Nature(broken=True)
NEW_HEADERS = Nature(doubt="parameters change on the way")
ODD = Nature(doubt="a packet that is not one whole picture")

Reader = Callable[[Packet], Nature]


def nature_reader(stream: VideoStream) -> Reader:
    """How to tell the nature of the stream's packets."""
    context = stream.codec_context
    codec, extradata = context.codec.canonical_name, context.extradata or b""
    if codec in _INTRA_ONLY:
        return lambda packet: ENTRY
    if codec in ("h264", "hevc"):
        return _NalReader(codec, extradata)
    if codec == "mpeg4":
        return lambda packet: _mpeg4(bytes(packet), extradata)
    read = _READERS.get(codec)
    return (lambda packet: read(memoryview(packet))) if read is not None else (lambda packet: PLAIN)


_INTRA_ONLY = {"prores", "dnxhd", "dvvideo", "rawvideo", "png", "huffyuv", "ffvhuff"}


# ---- H.264 and HEVC


class _NalReader:
    """Parameter sets, recovery points and the first slice of a packet, in either packaging of NAL units."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        self.codec, self.extradata = codec, extradata
        self.length_size = 0
        # avcC and hvcC begin with their version, 1; NAL units in a row begin with a start code.
        if extradata[:1] == b"\x01":
            at = 4 if codec == "h264" else 21
            self.length_size = (extradata[at] & 3) + 1 if len(extradata) > at else 4
        self.read = self._h264 if codec == "h264" else self._hevc
        self.layered = codec == "hevc" and _hevc_is_layered(extradata)

    def __call__(self, packet: Packet) -> Nature:
        data, size = memoryview(packet), self.length_size
        # Most packets begin with a slice of a picture in between.
        if size and self.codec == "h264" and len(data) > size and data[size] & 31 == 1:
            return PLAIN if data[size] & 0x60 else UNREFERENCED
        return self.read(data, self._units(data))

    def _units(self, data: memoryview) -> Iterator[tuple[int, int]]:
        """Where each NAL unit begins and ends."""
        at, total, size = 0, len(data), self.length_size
        if size:
            while at + size < total:
                end = at + size + int.from_bytes(data[at : at + size], "big")
                yield at + size, min(end, total)
                at = end
            return
        whole = bytes(data)
        at = whole.find(b"\0\0\1")
        while at >= 0:
            after = whole.find(b"\0\0\1", at + 3)
            yield at + 3, after if after >= 0 else total
            at = after

    def _known(self, unit: memoryview) -> bool:
        """Whether a parameter set says what the stream's header said already."""
        return bytes(unit).rstrip(b"\0") in self.extradata

    def _h264(self, data: memoryview, units: Iterator[tuple[int, int]]) -> Nature:
        recovers = False
        for start, end in units:
            kind = data[start] & 31
            if kind == 5:
                return ENTRY
            if kind == 1:
                if recovers and _h264_slice_is_intra(data[start + 1 : start + 9]):
                    return ENTRY
                return PLAIN if data[start] & 0x60 else UNREFERENCED
            if kind == 6:
                recovers = recovers or _recovers_at_once(bytes(data[start + 1 : end]))
            elif kind in (7, 8, 13, 15) and not self._known(data[start:end]):
                return NEW_HEADERS
            elif 2 <= kind <= 4:
                return ODD
        return ODD

    def _hevc(self, data: memoryview, units: Iterator[tuple[int, int]]) -> Nature:
        for start, end in units:
            if end - start < 2 or data[start] & 1 or data[start + 1] & 0xF8:
                continue  # of another layer
            kind = data[start] >> 1 & 63
            if kind < 32:
                if 16 <= kind <= 21:
                    return ENTRY
                # An upper temporal layer may be decoded from what a picture's own layer needs no more.
                return UNREFERENCED if kind < 16 and not kind & 1 and not self.layered else PLAIN
            if kind in (32, 33, 34) and not self._known(data[start:end]):
                return NEW_HEADERS
        return ODD


def _hevc_is_layered(extradata: bytes) -> bool:
    """Whether there may be more than one temporal layer: by hvcC's numTemporalLayers, or sps_max_sub_layers_minus1."""
    if extradata[:1] == b"\x01":
        return len(extradata) < 22 or extradata[21] >> 3 & 7 != 1
    at = extradata.find(b"\0\0\1\x42\1")
    return at < 0 or len(extradata) < at + 6 or extradata[at + 5] >> 1 & 7 != 0


def _recovers_at_once(sei: bytes) -> bool:
    """Whether SEI messages say that decoding from this picture on is exact, without frames to wait for."""
    sei = sei.replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(sei):
        kind, at = _sei_number(sei, at)
        size, at = _sei_number(sei, at)
        if kind == 6 and at < len(sei):
            return sei[at] & 0xC0 == 0xC0  # recovery_frame_cnt 0 is the bit 1, exact_match_flag follows
        at += size
    return False


def _sei_number(sei: bytes, at: int) -> tuple[int, int]:
    number = 0
    while at < len(sei) and sei[at] == 255:
        number, at = number + 255, at + 1
    return (number + sei[at] if at < len(sei) else number), at + 1


def _h264_slice_is_intra(head: memoryview) -> bool:
    """Whether slice_type, after first_mb_in_slice, is I for the slice (2) or for the whole picture (7)."""
    bits = int.from_bytes(head, "big")
    left = 8 * len(head)
    values = []
    for _ in range(2):
        zeros = 0
        while left > 0 and not bits >> left - 1 & 1:
            zeros, left = zeros + 1, left - 1
        left -= zeros + 1
        if left < 0:
            return False
        values.append((bits >> left & (1 << zeros + 1) - 1) - 1)
    return values[1] in (2, 7)


# ---- the other codecs


def _mpeg12(data: memoryview) -> Nature:
    head = bytes(data[:1024])
    at = head.find(b"\0\0\1\0")
    if at < 0 or at + 5 >= len(head):
        return ODD
    kind = head[at + 5] >> 3 & 7
    if kind == 3:
        return UNREFERENCED
    # The sequence header resets what a decoder remembers, quantiser matrices among it.
    return ENTRY if kind == 1 and head.startswith(b"\0\0\1\xb3") else PLAIN


def _mpeg4(data: bytes, extradata: bytes) -> Nature:
    at = data.find(b"\0\0\1\xb6")
    # Less than 12 bytes: most likely a picture that is not coded. Two in a packet: B-frames packed with a P-frame.
    if at < 0 or len(data) < at + 12 or data.find(b"\0\0\1\xb6", at + 4) >= 0:
        return ODD
    headers = data[:at]
    if (group := headers.find(b"\0\0\1\xb3")) >= 0:
        headers = headers[:group]
    if headers and headers not in extradata:
        return NEW_HEADERS
    kind = data[at + 4] >> 6
    return ENTRY if kind == 0 else UNREFERENCED if kind == 2 else PLAIN


def _vp8(data: memoryview) -> Nature:
    if not data[0] & 0x10:
        return HIDDEN
    return PLAIN if data[0] & 1 else ENTRY


def _vp9(data: memoryview) -> Nature:
    first = data[0]
    if first & 0x30 == 0x30:  # profile 3 has a reserved bit more
        first = first << 1 & 0xFF
    repeats, inter, shown = first & 8, first & 4, first & 2
    if repeats:
        return PLAIN
    if not shown and data[-1] & 0xE0 != 0xC0:  # and no superframe, whose last frame is shown
        return HIDDEN
    return PLAIN if inter else ENTRY


def _av1(data: memoryview) -> Nature:
    at, has_header, reduced = 0, False, False
    while at < len(data):
        kind, extended, more = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size, shift = 0 if more else len(data) - at, 0
        while more and at < len(data):
            size, shift, more, at = size | (data[at] & 127) << shift, shift + 7, data[at] >> 7, at + 1
        if at >= len(data):
            break
        if kind == 1:
            has_header, reduced = True, bool(data[at] & 8)
        elif kind in (3, 6):
            # show_existing_frame 0, frame_type KEY, show_frame 1
            return ENTRY if has_header and (reduced or data[at] >> 4 == 1) else PLAIN
        at += size
    return ODD


def _mjpeg(data: memoryview) -> Nature:
    head = bytes(data[:4096])
    # Tables may be left to earlier pictures.
    return ENTRY if b"\xff\xdb" in head and b"\xff\xc4" in head else PLAIN


_READERS: dict[str, Callable[[memoryview], Nature]] = {
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
    "vp8": _vp8,
    "vp9": _vp9,
    "av1": _av1,
    "mjpeg": _mjpeg,
}
