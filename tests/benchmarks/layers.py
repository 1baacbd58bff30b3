"""ttmodels against tltorch, tednet, torchTT and dense torch: time forward, time forward and backward, peak memory.

    pip install -e .[train,peers]
    python -m tests.benchmarks.layers [--runs 20] [--only a b c d recurrence] [--device cuda] [--markdown]

All contenders of a problem hold the same cores, and must agree before they are timed. They run in turn, and a figure is
the median of the runs. Inputs take gradients in (c), where a network stands before the layer, not in (a) and (b), which
read pixels. The recurrence of tltorch, torchTT and of tednet's GRU, which have none, is the plain loop of `Loop`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor, nn

from tests.benchmarks.plans import HOPELESS, worth_timing
from tests.benchmarks.timing import SLOW_RUNS, SLOW_S, fresh_process, in_turn, machine_line, medians, peak_growth
from ttmodels import contraction, tensor_train
from ttmodels.initialisers import random_cores
from ttmodels.linear import TTLinear
from ttmodels.recurrent import TTGRU, TTLSTM, TTRecurrent, recur
from ttmodels.tensor_train import TTShape

OURS, DENSE = "ttmodels", "dense torch"
PEERS = {"tltorch": "tensorly-torch", "tednet": "tednet", "torchTT": "torchTT"}
AGREEMENT = 1e-3
"""Largest difference between contenders, of the largest output: float32 sums in different orders."""


# ---- one TT layer, by library


class Tltorch(nn.Module):
    """FactorizedLinear with its block TT; cores [r, M, N, r]."""

    def __init__(self, cores: Sequence[Tensor], bias: Tensor) -> None:
        super().__init__()
        from tltorch import FactorizedLinear

        n, m, ranks = _modes(cores)
        self.layer = FactorizedLinear(n, m, factorization="blocktt", rank=ranks, implementation="factorized")
        _fill(self.layer.weight.factors, [core.transpose(1, 2) for core in cores])
        _fill([self.layer.bias], [bias])

    def forward(self, x: Tensor) -> Tensor:
        # linear_blocktt flattens what stands before the last axis, so (batch, time) would not come back from it.
        return self.layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class Tednet(nn.Module):
    """TTLinear; cores [N, M, r, r], the ranks of 1 at the ends left out; two-dimensional inputs only."""

    def __init__(self, cores: Sequence[Tensor], bias: Tensor) -> None:
        super().__init__()
        from tednet.tnn.tensor_train import TTLinear as TednetLinear

        n, m, ranks = _modes(cores)
        with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
            self.layer = TednetLinear(list(n), list(m), list(ranks[1:-1]))
        _fill_tednet(self.layer, cores, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class TorchTT(nn.Module):
    """nn.LinearLayerTT; cores [r, M, N, r]; inputs and outputs come as tensors of their modes."""

    def __init__(self, cores: Sequence[Tensor], bias: Tensor) -> None:
        super().__init__()
        from torchtt.nn import LinearLayerTT

        n, m, ranks = _modes(cores)
        self.modes = n
        with warnings.catch_warnings():  # NumPy 2 warns about its use of __array_wrap__
            warnings.simplefilter("ignore", DeprecationWarning)
            self.layer = LinearLayerTT(list(n), list(m), list(ranks))
        _fill(self.layer.cores, [core.transpose(1, 2) for core in cores])
        _fill([self.layer.bias], [bias])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(-1, self.modes)).flatten(x.ndim - 1)


def _ours(cores: Sequence[Tensor], bias: Tensor) -> nn.Module:
    return TTLinear.from_cores(cores, bias)


def _dense(cores: Sequence[Tensor], bias: Tensor) -> nn.Module:
    weight = tensor_train.full(cores)
    layer = nn.utils.skip_init(nn.Linear, weight.shape[0], weight.shape[1])
    _fill([layer.weight, layer.bias], [weight.T, bias])
    return layer


LAYERS: dict[str, Callable[[Sequence[Tensor], Tensor], nn.Module]] = {
    OURS: _ours,
    DENSE: _dense,
    "tltorch": Tltorch,
    "tednet": Tednet,
    "torchTT": TorchTT,
}


def _modes(cores: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    shape = TTShape.of(cores)
    return shape.input_modes, shape.output_modes, shape.tt_ranks


@torch.no_grad()
def _fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value.reshape(parameter.shape))


def _fill_tednet(layer: nn.Module, cores: Sequence[Tensor], bias: Tensor) -> None:
    nodes = [getattr(layer, f"node{k}") for k in range(len(cores))]
    _fill(nodes, [core.permute(1, 2, 0, 3) for core in cores])
    _fill([layer.bias], [bias])


# ---- one TT-RNN, by library


class Loop(nn.Module):
    """A layer that projects all frames at once, then a plain loop over time: what users of a layer library write."""

    def __init__(self, projection: nn.Module, hidden: nn.Linear) -> None:
        super().__init__()
        self.projection, self.hidden = projection, hidden
        self.step = {3: self._gru, 4: self._lstm}[hidden.out_features // hidden.in_features]

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden.in_features)
        outputs = []
        for gates in self.projection(x).unbind(1):
            h, c = self.step(gates, h, c)
            outputs.append(h)
        return torch.stack(outputs, 1)

    def _gru(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        (r, z, n), (hr, hz, hn) = gates.chunk(3, 1), self.hidden(h).chunk(3, 1)
        r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
        n = torch.tanh(n + r * hn)
        return (1 - z) * n + z * h, c

    def _lstm(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (gates + self.hidden(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class TednetLSTM(nn.Module):
    """tednet's own TTLSTM, which projects step by step; without its dropout."""

    def __init__(self, cores: Sequence[Tensor], bias: Tensor, hidden: nn.Linear) -> None:
        super().__init__()
        from tednet.tnn.tensor_train import TTLSTM as TednetTTLSTM

        n, m, ranks = _modes(cores)
        with contextlib.redirect_stdout(io.StringIO()):
            # It multiplies the first output mode by 4 in the list that it is given.
            network = TednetTTLSTM(list(n), [m[0] // 4, *m[1:]], list(ranks[1:-1]), drop_ih=0.0, drop_hh=0.0)
        self.network, self.hidden_size = network, hidden.in_features
        _fill_tednet(network.cell.weight_ih, cores, bias)
        _fill([network.cell.weight_hh, network.cell.bias_hh], [hidden.weight, hidden.bias])

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.shape[0], self.hidden_size)
        return self.network(x.transpose(0, 1), (zero, zero))[0].transpose(0, 1)


class OutputOnly(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]


def _network(name: str, cores: Sequence[Tensor], bias: Tensor, hidden: nn.Linear) -> nn.Module:
    gates = hidden.out_features // hidden.in_features
    n, m, ranks = _modes(cores)
    if name == DENSE:
        kind = {3: nn.GRU, 4: nn.LSTM}[gates]
        dense = kind(math.prod(n), hidden.in_features, batch_first=True)
        _fill(list(dense.parameters()), [tensor_train.full(cores).T, hidden.weight, bias, hidden.bias])
        return OutputOnly(dense)
    if name == OURS:
        kind_of_ours: type[TTRecurrent] = {3: TTGRU, 4: TTLSTM}[gates]
        ours = kind_of_ours(n, (m[0] // gates, *m[1:]), ranks, batch_first=True)
        cell = ours.cells[0]
        cell.projection.set_cores(cores)
        _fill([cell.projection.bias, cell.hidden.weight, cell.hidden.bias], [bias, hidden.weight, hidden.bias])
        return OutputOnly(ours)
    if name == "tednet" and gates == 4:
        return TednetLSTM(cores, bias, hidden)
    return Loop(LAYERS[name](cores, bias), hidden)


# ---- the problems


@dataclass(frozen=True)
class Problem:
    """Rows of [*leading, prod input_modes] for a layer, or, with gates, clips for a network of so many gates."""

    title: str
    input_modes: tuple[int, ...]
    output_modes: tuple[int, ...]
    leading: tuple[int, ...]
    gates: int = 0
    input_gradient: bool = False
    ranks: int = 4

    def build(self, name: str, device: str) -> nn.Module:
        torch.manual_seed(0)
        first = self.output_modes[0] * max(self.gates, 1)
        shape = TTShape.make(self.input_modes, (first, *self.output_modes[1:]), self.ranks)
        cores, bias = random_cores(shape, shape.in_features**-0.5), torch.randn(shape.out_features) / 10
        if not self.gates:
            return LAYERS[name](cores, bias).to(device)
        size = math.prod(self.output_modes)
        return _network(name, cores, bias, nn.Linear(size, self.gates * size)).to(device)

    def input(self, device: str, leading: tuple[int, ...] = ()) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(*(leading or self.leading), math.prod(self.input_modes), generator=generator)
        return x.to(device).requires_grad_(self.input_gradient)


FRAME = (8, 20, 20, 18)
VGG = ((2, 7, 8, 8, 7, 4), (4, 4, 4, 4, 4, 4))  # as Novikov et al. 2015, section 6.3
PROBLEMS = {
    "a GRU": Problem("TT-GRU 57600 -> 256, batch 16, 6 frames", FRAME, (4, 4, 4, 4), (16, 6), gates=3),
    "a LSTM": Problem("TT-LSTM 57600 -> 256, batch 16, 6 frames", FRAME, (4, 4, 4, 4), (16, 6), gates=4),
    "b": Problem("layer 57600 -> 1024, batch 96", FRAME, (4, 8, 8, 4), (96,)),
    "c 1": Problem("layer 25088 -> 4096, batch 1", *VGG, (1,), input_gradient=True),
    "c 100": Problem("layer 25088 -> 4096, batch 100", *VGG, (100,), input_gradient=True),
}


def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def forward_backward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Gradients are made anew in every call, as a training step makes them."""
    with torch.no_grad():
        gradient = torch.randn_like(model(x))

    def call() -> None:
        model.zero_grad()
        x.grad = None
        model(x).backward(gradient)

    return call


def peak_of(problem: Problem, name: str, device: str) -> int:
    """Peak memory of forward and backward; a smaller input has made the libraries load what they need."""
    model, x = problem.build(name, device), problem.input(device)
    small = forward_backward(model, problem.input(device, tuple(1 for _ in problem.leading)))
    small()
    call = forward_backward(model, x)
    model.zero_grad()
    return peak_growth(call, device)


@dataclass(frozen=True)
class Figures:
    forward_s: float
    both_s: float
    peak_bytes: int
    runs: int


def compare(key: str, runs: int, device: str, names: Sequence[str]) -> dict[str, Figures]:
    """Every contender's figures on one problem."""
    problem = PROBLEMS[key]
    models = {name: problem.build(name, device) for name in names}
    x = problem.input(device)
    with torch.no_grad():
        wanted = models[DENSE](x)
        for name, model in models.items():
            error = float((model(x) - wanted).abs().max() / wanted.abs().max())
            if error > AGREEMENT:
                raise ValueError(f"{name} differs from {DENSE} by {error:.1e} on {problem.title}")
    calls = {f"{name}/forward": forward(model, x) for name, model in models.items()}
    calls |= {f"{name}/both": forward_backward(model, x) for name, model in models.items()}
    taken = in_turn(calls, runs, device)
    found = medians(taken)
    del calls, models
    peaks = {}
    for name in names:
        if device == "cuda":
            peaks[name] = peak_of(problem, name, device)
        else:
            peaks[name] = int(fresh_process(["tests.benchmarks.layers", "--peak", key, name]))
    return {
        name: Figures(found[f"{name}/forward"], found[f"{name}/both"], peaks[name], len(taken[f"{name}/both"]))
        for name in names
    }


def table(title: str, figures: dict[str, Figures]) -> list[str]:
    """Ratios are times faster, or times less memory, than dense torch and than the best peer at that."""
    dense = figures[DENSE]
    peers = [row for name, row in figures.items() if name in PEERS]
    best = [min((getattr(row, field) for row in peers), default=math.nan) for field in _FIELDS]
    lines = [
        f"**{title}**",
        "",
        "| | forward ms | vs dense | vs best peer | forward + backward ms | vs dense | vs best peer "
        "| peak MB | vs dense | vs best peer |",
        "|---|" + "---:|" * 9,
    ]
    for name, row in figures.items():
        cells = [f"{name} ({row.runs} runs)" if row.runs < max(f.runs for f in figures.values()) else name]
        for field, scale, best_peer in zip(_FIELDS, (1e3, 1e3, 1e-6), best, strict=True):
            value = max(getattr(row, field), 1e-9)
            cells += [f"{value * scale:.3g}", f"{getattr(dense, field) / value:.3g}", f"{best_peer / value:.3g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


_FIELDS = ("forward_s", "both_s", "peak_bytes")


# ---- (d): the planner against every plan


class Planned(nn.Module):
    """A train contracted by one plan."""

    def __init__(self, cores: Sequence[Tensor], plan: contraction.Plan) -> None:
        super().__init__()
        self.cores = nn.ParameterList(core.clone() for core in cores)
        self.plan, self.shape = plan, TTShape.of(cores)

    def forward(self, x: Tensor) -> Tensor:
        return contraction.apply(x, list(self.cores), self.plan, self.shape)


def plan_name(plan: contraction.Plan) -> str:
    """For example `2+2 <-`: two groups of two cores, right to left."""
    return "+".join(map(str, plan.groups)) + (" <-" if plan.direction == "right_to_left" else " ->")


def sweep(runs: int, device: str, ranks: Sequence[int] = (2, 4, 8, 16, 32, 64)) -> list[str]:
    """What the planner's choice loses on (b) to the best single plan and to nn.Linear, rank by rank."""
    problem = PROBLEMS["b"]
    x = problem.input(device)
    rows = math.prod(problem.leading)
    lines = [
        f"**(d) {problem.title}: the planner's choice against every plan and dense torch**",
        "",
        "| ranks | pass | chosen | ms | best plan | ms | loses | dense torch ms | loses to dense |",
        "|---:|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for rank in ranks:
        torch.manual_seed(0)
        shape = TTShape.make(problem.input_modes, problem.output_modes, rank)
        cores = random_cores(shape, shape.in_features**-0.5)
        choices = {
            training: contraction.choose_plan(shape, rows, device=device, training=training)
            for training in (False, True)
        }
        plans = dict.fromkeys([*worth_timing(shape, rows), *choices.values()])
        models: dict[str, nn.Module] = {plan_name(plan): Planned(cores, plan).to(device) for plan in plans}
        models[DENSE] = _dense(cores, torch.zeros(shape.out_features)).to(device)
        for pass_, make in (("forward", forward), ("forward + backward", forward_backward)):
            training = make is forward_backward
            chosen = plan_name(choices[training])
            calls = {name: make(model, x) for name, model in models.items()}
            found = medians(in_turn(calls, runs, device, HOPELESS))
            dense = found.pop(DENSE)
            best = min(found, key=lambda name: found[name])
            mine, least = found[chosen], found[best]
            lines.append(
                f"| {rank} | {pass_} | {chosen} | {mine * 1e3:.3g} | {best} | {least * 1e3:.3g} "
                f"| {mine / least - 1:.0%} | {dense * 1e3:.3g} | {max(0, mine / dense - 1):.0%} |"
            )
    return [*lines, ""]


# ---- the recurrence


def recurrence(runs: int, device: str) -> list[str]:
    """`recur` on gates that are projected already, against torch's own network with an input size of 1, whose own
    projection is next to nothing. Both also make the gradient of what they are given.
    """
    lines = [
        "**The recurrence alone, batch 16: `recur` on projected gates against nn.GRU / nn.LSTM with input_size 1**",
        "",
        "| | hidden | time | forward ms | torch ms | times slower | forward + backward ms | torch ms | times slower |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, ours, theirs in (("GRU", TTGRU, nn.GRU), ("LSTM", TTLSTM, nn.LSTM)):
        for hidden in (64, 256):
            cell = ours((4, 4), (hidden // 8, 8), 2).to(device).cells[0]
            network = OutputOnly(theirs(1, hidden, batch_first=True)).to(device)
            for time in (6, 16, 64):
                gates = torch.randn(16, time, cell.num_gates * hidden, device=device, requires_grad=True)
                x = torch.randn(16, time, 1, device=device, requires_grad=True)
                recurrent = _Recurrence(cell)
                calls = {
                    "ours/forward": forward(recurrent, gates),
                    "torch/forward": forward(network, x),
                    "ours/both": forward_backward(recurrent, gates),
                    "torch/both": forward_backward(network, x),
                }
                found = medians(in_turn(calls, runs, device))
                row = [kind, str(hidden), str(time)]
                for pass_ in ("forward", "both"):
                    mine, other = found[f"ours/{pass_}"], found[f"torch/{pass_}"]
                    row += [f"{mine * 1e3:.3g}", f"{other * 1e3:.3g}", f"{mine / other:.2f}"]
                lines.append("| " + " | ".join(row) + " |")
    return [*lines, ""]


class _Recurrence(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, gates: Tensor) -> Tensor:
        return recur(self.cell, gates, self.cell.initial_state(gates[:, 0]), None)[0]


# ---- the report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="rounds that a median is of")
    parser.add_argument("--only", nargs="+", choices=["a", "b", "c", "d", "recurrence"], default=None)
    parser.add_argument("--without", nargs="+", choices=list(PEERS), default=[], help="peers to leave out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--markdown", action="store_true", help="print the tables only, when all is measured")
    parser.add_argument("--peak", nargs=2, metavar=("PROBLEM", "CONTENDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_of(PROBLEMS[chosen.peak[0]], chosen.peak[1], chosen.device))
        return
    peers = {name: package for name, package in PEERS.items() if name not in chosen.without}
    names = [OURS, DENSE, *peers]
    versions = ", ".join(f"{name} {version(package)}" for name, package in peers.items())
    lines: list[str] = []

    def add(new: list[str]) -> None:
        lines.extend(new)
        if not chosen.markdown:
            print("\n".join(new), flush=True)

    peak = {"cpu": "the growth of the resident set in a fresh process", "cuda": "what torch's allocator handed out"}
    add(
        [
            f"Measured on {machine_line(chosen.device)}, {versions}; medians of {chosen.runs} runs in turn "
            f"({SLOW_RUNS} of contenders slower than {SLOW_S:.0f} s); ratios above 1 are in the row's favour; "
            f"peak MB is {peak[chosen.device]} during forward and backward.",
            "",
        ]
    )
    for key, problem in PROBLEMS.items():
        if not chosen.only or key[0] in chosen.only:
            figures = compare(key, chosen.runs, chosen.device, names)
            add(table(f"({key}) {problem.title}, ranks {problem.ranks}", figures))
    if not chosen.only or "d" in chosen.only:
        add(sweep(chosen.runs, chosen.device))
    if not chosen.only or "recurrence" in chosen.only:
        add(recurrence(chosen.runs, chosen.device))
    if chosen.markdown:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
