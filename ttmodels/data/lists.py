"""Write the CSV list of a published data set: `python -m ttmodels.data.lists NAME FOLDER -o LIST`.

FOLDER is the publisher's archive, unpacked as it is. The list is what `ttmodels.train --data` and `ttmodels.evaluate`
take, with the groups, folds or splits of the protocol. Nothing is decoded or copied.

The protocol random has the folds of the code that the authors of the TT-RNN paper published. They put clips of one
scene on both sides, so that a result on them is too good; it is there to compare with the paper's figures alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ttmodels.atomic import in_place_of
from ttmodels.commandline import command
from ttmodels.data.clips import LABEL_SEPARATOR
from ttmodels.data.published import DATA_SETS, Listed


def write_list(clips: Sequence[Listed], file: Path) -> None:
    """Write a list, with the columns that any of its clips has, and paths relative to it."""
    rows = [
        {
            "path": os.path.relpath(clip.path.resolve(), file.parent.resolve()),
            "label": LABEL_SEPARATOR.join(clip.labels),
            "group": clip.group,
            "fold": "" if clip.fold is None else clip.fold,
            "split": clip.split or "",
        }
        for clip in clips
    ]
    columns = ["path", "label", *(name for name in ("group", "fold", "split") if any(row[name] != "" for row in rows))]
    with in_place_of(file) as part, part.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.data.lists", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=DATA_SETS, help=", ".join(DATA_SETS), metavar="NAME")
    parser.add_argument("folder", type=Path, help="the publisher's folder", metavar="FOLDER")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the list to write", metavar="LIST")
    ways = "; ".join(f"{name}: {', '.join(data_set.protocols)}" for name, data_set in DATA_SETS.items())
    parser.add_argument("--protocol", help=f"how it is split. {ways} (the first)")
    options = parser.parse_args(arguments)
    data_set = DATA_SETS[options.name]
    protocol = options.protocol or data_set.protocols[0]
    if protocol not in data_set.protocols:
        raise ValueError(f"--protocol: expected {' or '.join(data_set.protocols)} for {options.name}, got {protocol}")
    clips = data_set.read(options.folder, protocol)
    if not clips:
        raise ValueError(f"{options.folder}: expected the layout of {options.name}, found no clip in it")
    absent = [clip.path for clip in clips if not clip.path.is_file()]
    if absent:
        print(f"warning: {len(absent)} clips of the list are not there, {absent[0]} among them", file=sys.stderr)
    write_list(clips, options.out)
    labels = {label for clip in clips for label in clip.labels}
    print(f"{options.out}: {len(clips)} clips of {len(labels)} classes, protocol {protocol}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
