"""YouTube Celebrities: which of 47 people a clip of a face shows.

Reference: Yang, Krompass, Tresp, Tensor-Train Recurrent Neural Networks for Video Classification, ICML 2017, section 5;
Experiment_CelebFaces.py of their Keras package.
"""

from __future__ import annotations

from typing import ClassVar

from ttmodels.experiments.video import Row, Tree, VideoExperiment, dense


class YouTubeCelebrities(VideoExperiment):
    name = "youtube_celebrities"
    data_set = "youtube-celebrities"
    where = (
        "the clips of YouTube Celebrities in one folder, NNNN_SS_CCC_first_last.avi (ytcelebrity.tar of "
        "http://seqamlab.com/youtube-celebrities-face-tracking-and-recognition-dataset/)"
    )
    num_labels = 47
    about = (
        "1,910 clips, cut from about three videos a person. Five folds of whole videos; the published folds are drawn "
        "clip by clip and have clips of one video on both sides: they are the rows below. As published: the first 85 "
        "frames, 160x120, 4x20x20x36 -> 4x4x4x4, rank 4, recurrent dropout .25, batches of 16, a rate of 1e-3, 100 "
        "epochs. Otherwise than published: a shorter clip's last frame stays on display (there nothing comes before "
        "its first), dropout .25 before the head (there of the input), AdamW (there Adam), scaled pixels (there less "
        "128), 256 hidden units in the dense models too (there 225), and a tenth of the clips to train on held back to "
        "choose the epoch by (there none)."
    )
    source = "mean and deviation over five random folds"
    options = (
        "--policy first --num-frames 85 --width 160 --height 120 --dropout 0.25 --recurrent-dropout 0.25 "
        "--weight-decay 0.01 --batch-size 16 --learning-rate 1e-3 --epochs 100 "
        "--mirror-horizontal never"
    )
    tt = "--input-modes 4 20 20 36 --output-modes 4 4 4 4 --rank 4"
    models: ClassVar = {
        "GRU": dense("gru", 57600, 256),
        "LSTM": dense("lstm", 57600, 256),
        "TT-GRU": f"--cell gru {tt}",
        "TT-LSTM": f"--cell lstm {tt}",
    }
    paper: ClassVar = {"GRU": ".342 ± .023", "LSTM": ".332 ± .033", "TT-GRU": ".800 ± .018", "TT-LSTM": ".755 ± .033"}
    rows: ClassVar = {
        **{label: Row(of_model) for label, of_model in models.items()},
        **{
            f"{label} (random folds)": Row(of_model, published, ("random",))
            for (label, of_model), published in zip(models.items(), paper.values(), strict=True)
        },
    }

    def made(self) -> Tree:
        people = ("al_gore", "al_pacino", "julia_roberts")
        clips = [(who, video) for who in people for video in range(1, 8)]
        return {
            f"{number:04d}_{video:02d}_001_{who}.avi": people.index(who)
            for number, (who, video) in enumerate(clips, start=1)
        }
