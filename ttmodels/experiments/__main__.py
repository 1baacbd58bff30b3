"""Run one of the papers' experiments: `python -m ttmodels.experiments NAME`.

Every model is fitted from every seed. A finished seed is kept in OUT/NAME, so that the same command goes on where it
stopped; what is done so far is in RESULTS.md after each.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ttmodels.commandline import command, positive, require

if __name__ == "__main__":  # before the imports that need it
    require("torch")

import torch

from ttmodels.experiments import results
from ttmodels.experiments.cifar10 import CIFAR10, CIFAR10JPEG
from ttmodels.experiments.fiboclass import FiboClass
from ttmodels.experiments.fights import Fights
from ttmodels.experiments.gene_expression import GeneExpression
from ttmodels.experiments.hmdb51 import HMDB51
from ttmodels.experiments.hollywood2 import Hollywood2
from ttmodels.experiments.mnist import MNIST
from ttmodels.experiments.mnistseq import MNISTSeq
from ttmodels.experiments.nips2003 import NIPS2003
from ttmodels.experiments.reuters import Reuters
from ttmodels.experiments.seglearn import Seglearn
from ttmodels.experiments.sequentia import Sequentia
from ttmodels.experiments.study import Outcome, Section, finished, run
from ttmodels.experiments.ucf11 import UCF11
from ttmodels.experiments.ut_interaction import UTInteraction
from ttmodels.experiments.youtube_celebrities import YouTubeCelebrities

KINDS: tuple[type[Section], ...] = (
    CIFAR10,
    CIFAR10JPEG,
    FiboClass,
    Fights,
    GeneExpression,
    HMDB51,
    Hollywood2,
    MNIST,
    MNISTSeq,
    NIPS2003,
    Reuters,
    Seglearn,
    Sequentia,
    UCF11,
    UTInteraction,
    YouTubeCelebrities,
)
EXPERIMENTS = {kind.name: kind for kind in KINDS}


def _seeds(text: str) -> tuple[int, ...]:
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"expected different whole numbers with commas between them, got {text}")
    return tuple(map(int, seeds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ttmodels.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=EXPERIMENTS, help="the experiment")
    parser.add_argument("--data", type=Path, help="folder of its data set; without one: how to get it")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="of splits, first weights and order (0,1,2)")
    parser.add_argument("--models", nargs="+", help="of its table, to run now (all)")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="finished seeds (runs/experiments)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="table to write (that of the package)")
    parser.add_argument("--quick", action="store_true", help="two epochs on a few made data; writes no table")
    parser.add_argument("--threads", type=positive, default=1, help="of torch (1)")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    experiment, seeds, quick = EXPERIMENTS[options.name](), options.seeds, options.quick
    labels = options.models or list(experiment.published)
    if unknown := set(labels) - set(experiment.published):
        raise ValueError(f"--models: expected some of {', '.join(experiment.published)}, got {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    folder = options.out / (f"{experiment.name}-quick" if quick else experiment.name)
    data = " --data DIR" if experiment.needs_data else ""
    shown = f"python -m ttmodels.experiments {experiment.name}{data} --seeds {','.join(map(str, seeds))}"
    for seed in seeds:
        for label in labels:
            try:
                outcome = run(experiment, options.data, label, seed, folder, quick=quick)
            except FileNotFoundError:
                if not quick:
                    results.write_without_data(options.results, experiment, shown)
                raise
            print(f"{label}, seed {seed}: {_line(outcome)}", flush=True)
            if not quick:
                results.write(options.results, experiment, finished(experiment, folder, seeds), shown)
    return 0


def _line(outcome: Outcome) -> str:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome.figures.items() if not math.isnan(value))
    return (
        f"test {figures}, {outcome.num_parameters:,} parameters, "
        f"epoch {outcome.best_epoch} of {outcome.num_epochs}, {outcome.epoch_s:.2f} s an epoch"
    )


if __name__ == "__main__":
    sys.exit(main())
