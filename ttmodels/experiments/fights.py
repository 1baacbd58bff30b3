"""Surveillance fights: does a clip of a surveillance camera show a fight?

Reference: Akti, Tataroglu, Ekenel, Vision-based Fight Detection from Surveillance Cameras, IPTA 2019.
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense


class Fights(VideoExperiment):
    name = data_set = "fights"
    where = (
        "fight/ and noFight/ of https://github.com/seymanurakti/fight-detection-surv-dataset beside a clips.csv with "
        "path, label, group (the source video) and fold"
    )
    num_labels = 2
    about = "300 clips of 46 source videos; five folds of whole videos."
    source = "Akti et al. (IPTA 2019), about .72 on a split of their own"
    options = (
        "--width 32 --height 32 --pooling mean --dropout 0.3 --batch-size 16 --epochs 60 --valid-fraction 0.2 "
        "--crop 0.5 --time-jitter 0.3 --gain 0.2 --contrast 0.3"
    )
    rows: ClassVar = {
        "GRU": Row(f"{dense('gru', 32 * 32 * 3, 64)} --difference"),
        "TT-GRU": Row("--cell gru --hidden 64 --rank 4 --difference"),
        "TT-LSTM": Row("--cell lstm --hidden 64 --rank 4 --difference"),
        "TT-GRU (frames)": Row("--cell gru --hidden 64 --rank 4"),
    }

    def made(self) -> Tree:
        names = [(f"fight/fi{n:03d}.mp4", f"noFight/nofi{n:03d}.mp4") for n in range(1, 8)]
        rows = ["path,label,group,fold"]
        for n, pair in enumerate(names):
            rows += [f"{name},{name.split('/')[0]},{n},{n % 5}" for name in pair]
        clips = {name: place for pair in names for place, name in enumerate(pair)}
        return {**clips, "clips.csv": "\n".join(rows) + "\n"}
