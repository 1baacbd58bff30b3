"""Hollywood2: which of 12 actions are in a clip of a film; a clip may show several.

Reference: Yang, Krompass, Tresp, Tensor-Train Recurrent Neural Networks for Video Classification, ICML 2017, section 5;
Experiment_Hollywood2.py of their Keras package.
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.data.published import HOLLYWOOD2_ACTIONS
from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense


class Hollywood2(VideoExperiment):
    name = data_set = "hollywood2"
    where = (
        "Hollywood2 as it is unpacked, AVIClips/ beside ClipSets/ (Hollywood2-actions.tar.gz of "
        "https://www.di.ens.fr/~laptev/actions/hollywood2/)"
    )
    num_labels = 12
    measure = "mean AP"
    about = (
        "823 clips to train on and 884 to test, of different films, the publisher's split. As published: 234x100, "
        "10x18x13x30 -> 4x4x4x4, rank 4, recurrent dropout .25, batches of 32, a sigmoid a label. Otherwise than "
        "published: 32 frames spread over the clip (there all of them, up to 1,496), dropout .25 before the head "
        "(there of the input), AdamW on scaled pixels for 100 epochs (there Adam on pixels less 128 for 500), and a "
        "tenth of the clips to train on held back to choose the epoch by (there 15 %)."
    )
    source = "mean average precision over the 12 actions"
    options = (
        "--task multi_label --width 234 --height 100 --num-frames 32 --dropout 0.25 --recurrent-dropout 0.25 "
        "--weight-decay 0.01 --batch-size 32 --learning-rate 1e-3 --epochs 100 "
        "--mirror-horizontal never"
    )
    tt = "--input-modes 10 18 13 30 --output-modes 4 4 4 4 --rank 4"
    rows: ClassVar = {
        "GRU": Row(dense("gru", 70200, 256), ".249"),
        "LSTM": Row(dense("lstm", 70200, 256), ".108"),
        "TT-GRU": Row(f"--cell gru {tt}", ".537"),
        "TT-LSTM": Row(f"--cell lstm {tt}", ".546"),
    }

    def made(self) -> Tree:
        tree: dict[str, int | str] = {}
        for split, count in (("train", 12), ("test", 6)):
            names = [f"actionclip{split}{number:05d}" for number in range(1, count + 1)]
            tree |= {f"AVIClips/{name}.avi": number % 3 for number, name in enumerate(names)}
            for place, action in enumerate(HOLLYWOOD2_ACTIONS):
                shown = [number % 3 == place % 3 for number in range(count)]
                lines = [f"{name}  {1 if there else -1}\n" for name, there in zip(names, shown, strict=True)]
                tree[f"ClipSets/{action}_{split}.txt"] = "".join(lines)
        return tree
