"""UCF11: what is done in a clip of YouTube, of 11 sports and games; the TT-RNN paper's first data set.

Reference: Yang, Krompass, Tresp, Tensor-Train Recurrent Neural Networks for Video Classification, ICML 2017, section 5;
Experiment_UCF11.py of their Keras package.
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense


class UCF11(VideoExperiment):
    name = data_set = "ucf11"
    where = (
        "UCF11 as it is unpacked, CLASS/v_NAME_GG/v_NAME_GG_CC.mpg (UCF11_updated_mpg.rar of "
        "https://www.crcv.ucf.edu/data/UCF_YouTube_Action.php)"
    )
    num_labels = 11
    about = (
        "1,600 clips in 25 groups a class, each of one scene. Five folds of whole groups; the published folds are "
        "drawn clip by clip and have clips of one scene on both sides: they are the rows below. As published: 160x120, "
        "8x20x20x18 -> 4x4x4x4, rank 4, recurrent dropout .25, batches of 16. Otherwise than published: 32 frames "
        "spread over the clip (there all of them, up to 1,492), dropout .25 before the head (there of the input), "
        "AdamW at 1e-3 for 100 epochs on scaled pixels (there Adam at 1e-4 for 1,000 on pixels less 128), and a tenth "
        "of the clips to train on held back to choose the epoch by (there none)."
    )
    source = "mean and deviation over five random folds"
    options = (
        "--width 160 --height 120 --num-frames 32 --dropout 0.25 --recurrent-dropout 0.25 --weight-decay 0.01 "
        "--batch-size 16 --learning-rate 1e-3 --epochs 100 "
        "--mirror-horizontal never"
    )
    tt = "--input-modes 8 20 20 18 --output-modes 4 4 4 4 --rank 4"
    models: ClassVar = {
        "GRU": dense("gru", 57600, 256),
        "LSTM": dense("lstm", 57600, 256),
        "TT-GRU": f"--cell gru {tt}",
        "TT-LSTM": f"--cell lstm {tt}",
    }
    paper: ClassVar = {"GRU": ".488 ± .033", "LSTM": ".492 ± .026", "TT-GRU": ".813 ± .011", "TT-LSTM": ".796 ± .035"}
    rows: ClassVar = {
        **{label: Row(of_model) for label, of_model in models.items()},
        **{
            f"{label} (random folds)": Row(of_model, published, ("random",))
            for (label, of_model), published in zip(models.items(), paper.values(), strict=True)
        },
    }

    def made(self) -> Tree:
        actions = {"basketball": "shooting", "diving": "diving", "walking": "walk_dog"}
        stems = [
            f"{action}/v_{name}_{group:02d}/v_{name}_{group:02d}_01.mpg"
            for action, name in actions.items()
            for group in range(1, 8)
        ]
        return {stem: number // 7 for number, stem in enumerate(stems)}
