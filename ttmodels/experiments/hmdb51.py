"""HMDB51: which of 51 motions a clip of a film or of the web shows, in the publisher's three splits.

Reference: Kuehne et al., HMDB: a large video database for human motion recognition, ICCV 2011; Experiment_HMDB51.py of
the Keras package of Yang, Krompass, Tresp (ICML 2017).
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense

SPLITS = ("split1", "split2", "split3")


class HMDB51(VideoExperiment):
    name = data_set = "hmdb51"
    where = (
        "HMDB51 as it is unpacked, CLASS/ or hmdb51_org/CLASS/ beside testTrainMulti_7030_splits/ (hmdb51_org.rar and "
        "test_train_splits.rar of https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/)"
    )
    num_labels = 51
    about = (
        "6,766 clips of 51 motions; a row is the three official splits, each with 70 clips a class to train on and 30 "
        "to test. As in the Keras package: 160x120, 4x20x20x36 -> 4x4x4x4, rank 4, recurrent dropout .25, dropout .25 "
        "before the head, batches of 16. Otherwise than there: every ninth of the first 270 frames (there each third), "
        "no dropout of the input, AdamW at 1e-3 for 100 epochs on scaled pixels (there Adam at 1e-4 for 400 on pixels "
        "less 128), 256 hidden units in the dense models too (there 225), and a tenth of the clips to train on held "
        "back to choose the epoch by (there none)."
    )
    source = "none; the Keras package has the experiment without a figure"
    options = (
        "--policy windows --window-length 1 --window-stride 9 --num-frames 30 --width 160 --height 120 --dropout 0.25 "
        "--recurrent-dropout 0.25 --weight-decay 0.01 --batch-size 16 --learning-rate 1e-3 --epochs 100 "
        "--mirror-horizontal never"
    )
    tt = "--input-modes 4 20 20 36 --output-modes 4 4 4 4 --rank 4"
    rows: ClassVar = {
        "GRU": Row(dense("gru", 57600, 256), protocols=SPLITS),
        "LSTM": Row(dense("lstm", 57600, 256), protocols=SPLITS),
        "TT-GRU": Row(f"--cell gru {tt}", protocols=SPLITS),
        "TT-LSTM": Row(f"--cell lstm {tt}", protocols=SPLITS),
    }

    def made(self) -> Tree:
        motions = ("brush_hair", "kick_ball", "wave")
        tree: dict[str, int | str] = {}
        for place, motion in enumerate(motions):
            names = [f"Film{number}_{motion}_u_nm_np1_fr_goo_0.avi" for number in range(6)]
            tree |= {f"hmdb51_org/{motion}/{name}": place for name in names}
            for split in range(len(SPLITS)):
                lines = [f"{name} {2 if number % 3 == split else 1} \n" for number, name in enumerate(names)]
                tree[f"testTrainMulti_7030_splits/{motion}_test_{SPLITS[split]}.txt"] = "".join(lines)
        return tree
