"""The exported UCF11 TT-GRU against dense and the classic chain, and its rank sweep: `exporters.benchmark` on models
made here.

    python -m tests.benchmarks.export [--ranks 1 2 4 8 16 32] [--precisions fp32 int8] [--batch 1 16] [--out FOLDER]

57,600 = 8x20x20x18 -> 3 gates of 256 = 4x4x4x4, 16 frames of 160x120, random weights. At rank 4 everything is compared;
at the other ranks the file and dense, which it should never be slower than. FOLDER keeps checkpoints and files.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch

from exporters.benchmark import Figures, contenders, measure, table
from exporters.to_onnx import export
from tests.benchmarks.timing import machine_line
from ttmodels import checkpoint
from ttmodels.checkpoint import Progress
from ttmodels.classifier import ClipClassifier
from ttmodels.config import ModelConfig, TrainConfig

COMPARED = 4
"""The rank at which the classic chain is measured too."""


def ucf11(rank: int) -> ModelConfig:
    return ModelConfig(
        labels=tuple(f"class {i}" for i in range(11)),
        input_modes=(8, 20, 20, 18),
        output_modes=(4, 4, 4, 4),
        tt_ranks=(1, rank, rank, rank, 1),
    )


def export_ucf11(rank: int, precisions: list[str]) -> list[Path]:
    """Checkpoint and files of a rank, in the working folder; the files."""
    torch.manual_seed(rank)
    saved = Path(f"rank{rank}.safetensors")
    checkpoint.save(saved, ClipClassifier(ucf11(rank)), TrainConfig(), Progress(data_set="none"))
    files = []
    for precision in precisions:
        files.append(Path(f"rank{rank}-{precision}.onnx"))
        manifest = export(checkpoint.load(saved), files[-1], name="ucf11", precision=precision)
        print(
            f"{files[-1]}: cores in groups {manifest.contraction.groups}, {manifest.contraction.direction}", flush=True
        )
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="(a folder that is removed at the end)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine_line(), flush=True)
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(out))
        for rank in options.ranks:
            first, *others = export_ucf11(rank, options.precisions)
            against = [*map(str, others), "dense", *(["chain"] if rank == COMPARED else [])]
            manifest, entries = contenders(first, against, Path(f"rank{rank}.safetensors"))
            rows: list[Figures] = []
            for batch in options.batch:
                clip = manifest.sampling.clip_shape
                rows += measure(clip, entries, batch, threads=options.threads, rounds=options.rounds)
            print(f"\nrank {rank}\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
