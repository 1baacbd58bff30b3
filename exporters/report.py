"""What an export has written, for a person."""

from __future__ import annotations

from pathlib import Path

from exporters.tune import NOISE
from service.manifest import Contraction, Manifest, Parity, TimedPlan
from ttmodels.predictions import SCORES


def report(manifest: Manifest, path: Path) -> str:
    """Lines of name and value, from the file's own manifest."""
    a, c, s = manifest.architecture, manifest.contraction, manifest.sampling
    saved = a.compression
    what = "numbers" if a.backbone else "weights"
    weights = "" if manifest.precision == "fp32" else f" with the {what} as rounded to {manifest.precision}"
    lines = [
        f"wrote       {path}, {path.stat().st_size / 1024:,.0f} KiB, opset {manifest.opset}, {manifest.precision}",
        f"model       {manifest.name} version {manifest.version}, {len(manifest.labels)} classes",
        f"clip        {s.num_frames} frames of {s.width}x{s.height}, {s.policy} in time",
        *([f"backbone    {a.backbone}, {a.backbone_weights:,} weights, {a.backbone_features}"] if a.backbone else []),
        f"TT-{a.cell.upper():<8} {a.input_modes} -> {a.output_modes}, ranks {a.tt_ranks}",
        f"reads       {'what changes from frame to frame' if a.difference else 'frames'}",
        f"layers      {a.num_layers}, {'both directions' if a.bidirectional else 'forward'}",
        f"size        {a.num_parameters:,} parameters; dense is {saved.input_to_hidden:,.0f} (input-to-hidden), "
        f"{saved.rnn:,.0f} (RNN), {saved.model:,.0f} (model) times larger",
        f"plan        {_plan(c)}, {c.flops_per_frame / 1e6:,.1f} MFLOP a frame, for {c.target}",
        f"            {c.measured_on}",
        *(f"            {timed.milliseconds:8.3f} ms a clip by {_plan(timed)}" for timed in c.measured),
        *_why_not_the_fastest(c),
        parity(manifest.parity, f"batch and time{', clips in pieces' if manifest.states else ''}", weights),
    ]
    if (p := manifest.precision_report) is not None:
        several = manifest.task == "multi_label"
        score, score_fp32 = (p.mean_ap, p.mean_ap_fp32) if several else (p.accuracy, p.accuracy_fp32)
        scores = "" if score is None else f", {SCORES[manifest.task]} {score:.4f} (fp32 {score_fp32:.4f})"
        lines += [
            f"precision   {manifest.precision} against fp32: the same {'labels' if several else 'label'} on "
            f"{p.label_agreement:.2%}, probabilities differ by at most {p.max_probability_difference:.2g}, logits by "
            f"{p.max_logit_difference:.2g}{scores}",
            f"            on {p.num_clips} clips ({p.clips})",
        ]
    if (manifest.precision, c.target) == ("fp16", "cpu"):
        lines.append(
            "note        fp16 is for GPUs (--target cuda): a CPU computes it in fp32, no faster than an fp32 file and "
            "less exactly"
        )
    for state in manifest.states:
        shape = ", ".join(map(str, ("batch", *state.shape)))
        lines.append(f"state       {state.input} -> {state.output}, {state.dtype} [{shape}]")
    if manifest.temperature != 1:
        lines.append(f"temperature {manifest.temperature:.4g}")
    for m in manifest.metrics:
        score = m.accuracy if m.mean_ap is None else m.mean_ap
        lines.append(f"{SCORES[manifest.task]:<11} {score:.4f} on {m.num_clips} clips of {m.split}")
    return "\n".join(lines)


def parity(found: Parity, sizes: str, weights: str = "") -> str:
    """The line on it; `sizes` says of what, `weights` which ones torch computes with if not the trained."""
    largest = found.largest_logit or 0.0
    times = f" times the largest logit, {largest:.3g}" if largest > 1 else ""
    return (
        f"parity      largest difference to torch{weights} {found.max_abs_error:.2g} "
        f"(at most {found.tolerance:g}{times}) at {len(found.sizes)} sizes of {sizes}"
    )


def _why_not_the_fastest(chosen: Contraction) -> list[str]:
    """A line where the cost model decided between plans that are as fast."""
    fastest = [(timed.groups, timed.direction) for timed in chosen.measured[:1]]
    if fastest in ([], [(chosen.groups, chosen.direction)]):
        return []
    return [f"            within {NOISE - 1:.0%} of the fastest, which is noise: the cost model's first of those"]


def _plan(plan: Contraction | TimedPlan) -> str:
    return f"cores in groups {plan.groups}, {plan.direction.replace('_', ' ')}"
