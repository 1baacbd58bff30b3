import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ttmodels.data.clips import ClipList
from ttmodels.data.decoded import DecodedClips, Facts
from ttmodels.data.report import data_report, equal_files


class Known:
    """Decoded clips of which all is known but the frames."""

    def __init__(self, root: Path, targets: list[int], widths: list[int], groups: tuple[str, ...] = ()) -> None:
        paths = tuple(root / f"{i}.mp4" for i in range(len(targets)))
        root.mkdir()
        for path in paths:
            path.write_text(str(path))
        self.clips = ClipList(root, ("a", "b"), paths, np.array(targets), groups)
        self.facts = tuple(Facts(width, 240, 2.0, 25.0, 50) for width in widths)

    def __len__(self) -> int:
        return len(self.clips)


def parts(tmp_path: Path) -> dict[str, DecodedClips]:
    """The width says the class, but for one test clip of four."""
    return {  # type: ignore[dict-item]
        "train": Known(tmp_path / "train", [0] * 6 + [1] * 4, [320] * 6 + [640] * 4, ("x",) * 6 + ("", "", "y", "y")),
        "valid": Known(tmp_path / "valid", [0, 1, 1], [320, 640, 640]),
        "test": Known(tmp_path / "test", [0, 1, 1, 1], [320, 640, 640, 320]),
    }


def test_baselines_are_of_the_same_split(tmp_path: Path) -> None:
    report = data_report(parts(tmp_path), {Path("gone.mp4"): "expected a file, found none"}, seed=0)
    assert report.counts == {"train": {"a": 6, "b": 4}, "valid": {"a": 1, "b": 2}, "test": {"a": 1, "b": 3}}
    assert report.groups == {"train": 4, "valid": 3, "test": 4}
    assert report.majority == {"valid": pytest.approx(1 / 3), "test": 0.25}
    assert report.metadata_only == {"valid": 1.0, "test": 0.75}
    assert report.baselines("test") == "majority class 0.2500, metadata only 0.7500"
    assert json.loads(report.to_json())["unreadable"] == {"gone.mp4": "expected a file, found none"}
    lines = str(report).splitlines()
    assert lines[0].split() == ["clips", "train", "valid", "test"]
    assert ["b", "4", "2", "3"] in [line.split() for line in lines]
    assert ["all", "10", "3", "4"] in [line.split() for line in lines]
    assert any(line.split()[:2] == ["leaks", "none:"] for line in lines)


def test_with_several_labels_baselines_are_mean_average_precisions(tmp_path: Path) -> None:
    """Of b, which the width tells but for one clip, and of a, which no test clip has; all of those trained on have c,
    which then cannot be told. d is not learned."""
    holds = {
        "train": [[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]] * 5,
        "test": [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 1, 0, 1]],
    }
    widths = {"train": [320, 640, 320, 640] * 5, "test": [640, 320, 640, 640]}
    of_run: dict[str, Any] = {
        name: Known(tmp_path / name, [0] * len(rows), widths[name]) for name, rows in holds.items()
    }
    for name, data in of_run.items():
        data.clips = replace(data.clips, labels=tuple("abcd"), targets=np.array(holds[name], np.uint8))
    report = data_report(of_run, {}, seed=0)
    assert report.counts["train"] == {"a": 10, "b": 10, "c": 20, "d": 0}
    assert ["all", "20", "4"] in [line.split() for line in str(report).splitlines()]
    assert report.majority == {"test": pytest.approx(np.mean([2 / 4, 2 / 4, 1 / 4]))}  # a constant's is the frequency
    of_b = average_precision_score([1, 0, 0, 1], [1, 0, 1, 1])
    assert report.metadata_only == {"test": pytest.approx(np.mean([of_b, 2 / 4, 1 / 4]))}
    assert report.baselines("test").startswith("label frequencies 0.4167, metadata only 0.4722")


def test_a_run_without_test_clips_has_no_figures_of_them(tmp_path: Path) -> None:
    of_run = parts(tmp_path)
    of_run["test"] = replace_clips(of_run["test"])
    report = data_report(of_run, {}, seed=0)
    assert set(report.counts) == {"train", "valid"}
    assert set(report.majority) == {"valid"}


def replace_clips(data: DecodedClips) -> DecodedClips:
    data.clips = replace(data.clips, paths=())
    return data


def test_equal_files_on_both_sides_are_leaks(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"six", "d": b"two", "e": b"three", "f": b"one", "g": b"one"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, d, e, f, g = (tmp_path / name for name in contents)
    leaks = equal_files({"train": (a, b, c), "valid": (d, e), "test": (f, g)})
    assert leaks == [
        {"train": [str(a)], "test": [str(f), str(g)]},
        {"train": [str(b)], "valid": [str(d)]},
    ]
    assert equal_files({"train": (a, f, g), "test": (c, e)}) == []


def test_leaks_are_shown(tmp_path: Path) -> None:
    of_run = parts(tmp_path)
    (tmp_path / "valid" / "0.mp4").write_text((tmp_path / "train" / "2.mp4").read_text())
    shown = str(data_report(of_run, {}, seed=0))
    assert f"equal files: train {tmp_path}/train/2.mp4; valid {tmp_path}/valid/0.mp4" in shown
