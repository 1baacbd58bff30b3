"""Which packets must be decoded for the pictures that are wanted, and nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass

from service.video.timeline import Timeline


@dataclass(frozen=True)
class Run:
    """Packets to decode one after the other, the first of them an entry."""

    packets: tuple[int, ...]
    wanted: frozenset[int]
    """Those whose pictures are wanted."""


@dataclass(frozen=True)
class Selection:
    """Which pictures come from where."""

    picks: list[int]
    """Those that are taken, each its index in `Timeline.ticks`."""
    runs: list[Run]
    """Empty where everything has to be decoded from the first packet on."""
    pick_of: dict[int, int]
    """By packet, its picture's index in `Timeline.ticks`; empty where there are no runs."""
    exact: bool
    """Whether each frame is the one that the policy names."""


def select(timeline: Timeline, picks: list[int], *, near_keyframes: bool = False) -> Selection:
    """Find the packets that pictures need.

    A picture needs the packets from an entry on: the last one before it that is not shown after it, since what is
    decoded after an entry and shown before it may need pictures from before the entry. Of these it needs the ones that
    others are decoded from, and its own.

    Args:
        picks: the pictures, each its index in `Timeline.ticks`.
        near_keyframes: whether the keyframe before each is taken in its place.
    """
    if timeline.doubt:
        return Selection(picks, [], {}, exact=True)
    numbers, natures = timeline.numbers, timeline.natures
    exact = True
    if near_keyframes and (entries := [i for i, n in enumerate(numbers) if natures[n].entry]):
        picks, exact = [entries[max(bisect_right(entries, pick) - 1, 0)] for pick in picks], False
    pick_of = {numbers[pick]: pick for pick in picks}
    spans: list[tuple[int, int]] = []
    for number in sorted(pick_of):
        entry = _entry_before(timeline, number)
        if entry is None:
            return Selection(picks, [], {}, exact)
        # A span may reach back into the one before it, where pictures near an entry are shown before it.
        while spans and entry <= spans[-1][1]:
            entry = min(entry, spans.pop()[0])
        spans.append((entry, number))
    runs = [_run(timeline, first, last, pick_of) for first, last in spans]
    if any(natures[number].broken for run in runs for number in run.packets):
        return Selection(picks, [], {}, exact)
    return Selection(picks, runs, pick_of, exact)


def _entry_before(timeline: Timeline, number: int) -> int | None:
    """The last entry from which a packet's picture can be decoded, if any."""
    tick = timeline.times[number]
    assert tick is not None
    for i in range(number, -1, -1):
        time = timeline.times[i]
        if timeline.natures[i].entry and time is not None and time <= tick:
            return i
    return None


def _run(timeline: Timeline, first: int, last: int, wanted: Collection[int]) -> Run:
    span = range(first, last + 1)
    return Run(
        tuple(i for i in span if timeline.natures[i].reference or i in wanted),
        frozenset(i for i in span if i in wanted),
    )
