"""UT-Interaction: which of six things two people do to each other.

Reference: Ryoo, Aggarwal, Spatio-temporal Relationship Match, ICCV 2009; SDHA contest, ICPR 2010.
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense


class UTInteraction(VideoExperiment):
    name = "ut_interaction"
    data_set = "ut-interaction"
    where = (
        "the segmented UT-Interaction, CLASS/N_SEQUENCE_LABEL.avi (https://cvrc.ece.utexas.edu/SDHA2010/), beside a "
        "clips.csv with path, label, set, sequence and fold"
    )
    num_labels = 6
    about = "120 clips of 20 sequences; five folds of whole sequences."
    source = "none with these folds"
    options = (
        "--width 32 --height 32 --pooling mean --batch-size 16 --learning-rate 1e-2 --epochs 120 --valid-fraction 0.2 "
        "--crop 0.5 --time-jitter 0.3 --gain 0.2 --contrast 0.3"
    )
    models: ClassVar = {
        "GRU": f"{dense('gru', 32 * 32 * 3, 64)} --difference",
        "TT-GRU": "--cell gru --hidden 64 --rank 4 --difference",
        "TT-LSTM": "--cell lstm --hidden 64 --rank 4 --difference",
        "TT-GRU (frames)": "--cell gru --hidden 64 --rank 4",
    }
    rows: ClassVar = {
        **{label: Row(of_model) for label, of_model in models.items()},
        **{f"{label} (set 1 to 2)": Row(of_model, protocols=("set1-to-set2",)) for label, of_model in models.items()},
    }

    def made(self) -> Tree:
        rows = ["path,label,set,sequence,fold"]
        tree: dict[str, int | str] = {}
        for sequence in range(1, 15):
            for place, label in enumerate(("handshake", "punch")):
                name = f"{label}/{2 * sequence + place}_{sequence}_{place}.avi"
                tree[name] = place
                rows.append(f"{name},{label},{1 + (sequence > 7)},{sequence},{sequence % 5}")
        return tree | {"clips.csv": "\n".join(rows) + "\n"}
