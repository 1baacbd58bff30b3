"""What an export has written, for a person."""

from __future__ import annotations

from pathlib import Path

from service.manifest import Contraction, Manifest, TimedPlan


def report(manifest: Manifest, path: Path) -> str:
    """Lines of name and value, from the file's own manifest."""
    a, c, s = manifest.architecture, manifest.contraction, manifest.sampling
    saved = a.compression
    lines = [
        f"wrote       {path}, {path.stat().st_size / 1024:,.0f} KiB, opset {manifest.opset}, {manifest.precision}",
        f"model       {manifest.name} version {manifest.version}, {len(manifest.labels)} classes",
        f"clip        {s.num_frames} frames of {s.width}x{s.height}, {s.policy} in time",
        f"TT-{a.cell.upper():<8} {a.input_modes} -> {a.output_modes}, ranks {a.tt_ranks}",
        f"layers      {a.num_layers}, {'both directions' if a.bidirectional else 'forward'}",
        f"size        {a.num_parameters:,} parameters; dense is {saved.input_to_hidden:,.0f} (input-to-hidden), "
        f"{saved.rnn:,.0f} (RNN), {saved.model:,.0f} (model) times larger",
        f"plan        {_plan(c)}, {c.flops_per_frame / 1e6:,.1f} MFLOP a frame, for {c.target}",
        f"            {c.measured_on}",
        *(f"            {timed.milliseconds:8.3f} ms a clip by {_plan(timed)}" for timed in c.measured),
        f"parity      largest difference to torch {manifest.parity.max_abs_error:.2g} "
        f"(at most {manifest.parity.tolerance:g}) at {len(manifest.parity.sizes)} sizes of batch and time",
    ]
    if (p := manifest.precision_report) is not None:
        accuracy = "" if p.accuracy is None else f", accuracy {p.accuracy:.4f} (fp32 {p.accuracy_fp32:.4f})"
        lines += [
            f"precision   {manifest.precision} against fp32: the same label on {p.label_agreement:.2%}, probabilities "
            f"differ by at most {p.max_probability_difference:.2g}{accuracy}",
            f"            on {p.num_clips} clips ({p.clips})",
        ]
    for state in manifest.states:
        shape = ", ".join(map(str, ("batch", *state.shape)))
        lines.append(f"state       {state.input} -> {state.output}, {state.dtype} [{shape}]")
    lines += [f"accuracy    {m.accuracy:.4f} on {m.num_clips} clips of {m.split}" for m in manifest.metrics]
    return "\n".join(lines)


def _plan(plan: Contraction | TimedPlan) -> str:
    return f"cores in groups {plan.groups}, {plan.direction.replace('_', ' ')}"
