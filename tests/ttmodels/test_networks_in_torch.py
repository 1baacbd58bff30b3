"""TT layers in the hands of the rest of torch: copies, checkpoints, half precision, compilation, several processes."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tolerances import CONTRACTION, HALF, RECURRENCE
from ttmodels.constraints import MaxNorm, NonNegative, Penalty
from ttmodels.linear import TTLinear
from ttmodels.linear import penalty as penalty_of
from ttmodels.recurrent import TTGRU, TTLSTM, TTRNN

N, M = (3, 4), (2, 3)
INPUT, HIDDEN = 12, 6


def limit() -> nn.Module:
    return MaxNorm(1.0)


MODELS = {
    "linear": lambda **o: TTLinear(N, M, 3, **o),
    "linear-constrained": lambda **o: TTLinear(N, M, 3, activation="tanh", kernel_constraint=limit, **o),
    "rnn": lambda **o: TTRNN(N, M, 3, num_layers=2, **o),
    "gru": lambda **o: TTGRU(N, M, 3, bidirectional=True, **o),
    "gru-before": lambda **o: TTGRU(N, M, 3, reset_after=False, recurrent_ranks=2, bias=False, **o),
    "gru-no-bias": lambda **o: TTGRU(N, M, 3, bias=False, **o),
    "lstm": lambda **o: TTLSTM(N, M, 3, num_layers=2, recurrent_ranks=2, **o),
    "lstm-no-bias": lambda **o: TTLSTM(N, M, 3, bias=False, kernel_constraint=NonNegative, **o),
}
EACH = pytest.mark.parametrize("name", MODELS)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def output_of(model: nn.Module, x: torch.Tensor, hx: Any = None) -> torch.Tensor:
    if isinstance(model, TTLinear):
        return model(x)
    return model(x, hx)[0]


def tolerance(dtype: torch.dtype) -> float:
    return HALF[str(dtype).removeprefix("torch.")]


# ---- copies and checkpoints


@EACH
def test_a_state_dict_round_trip(name: str) -> None:
    model, other = MODELS[name](), MODELS[name]()
    x = torch.randn(5, 2, INPUT)
    assert not torch.allclose(output_of(model, x), output_of(other, x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(output_of(model, x), output_of(other, x))


@EACH
def test_a_copy_is_equal_and_its_own(name: str) -> None:
    model = MODELS[name]()
    x = torch.randn(5, 2, INPUT)
    output_of(model, x).sum().backward()
    twin = copy.deepcopy(model)
    want = output_of(model, x)
    assert torch.equal(output_of(twin, x), want)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.5)
    assert not torch.allclose(output_of(twin, x), want)
    assert torch.equal(output_of(model, x), want)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("linear-constrained", "lstm-no-bias")])
def test_a_whole_layer_can_be_pickled(name: str) -> None:
    """Parametrized modules cannot: torch says so itself."""
    model, x = MODELS[name](), torch.randn(5, 2, INPUT)
    assert torch.equal(output_of(pickle.loads(pickle.dumps(model)), x), output_of(model, x))


@pytest.mark.parametrize("model", [TTLinear, TTGRU], ids=["linear", "gru"])
def test_a_layer_can_be_copied_between_two_steps_of_training(model: Any) -> None:
    """An average of the weights is kept that way."""
    layer = model(N, M, 3, activity_penalty=Penalty(l2=1.0))
    output_of(layer, torch.randn(5, 2, INPUT))
    twin = copy.deepcopy(layer)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


def test_a_stateful_network_can_be_copied_and_carries_on() -> None:
    network, x = TTLSTM(N, M, 3, stateful=True), torch.randn(5, 2, INPUT)
    network(x)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x)[0], network(x)[0])


def test_what_is_carried_is_no_part_of_the_checkpoint() -> None:
    network = TTLSTM(N, M, 3, stateful=True)
    names = set(network.state_dict())
    network(torch.randn(5, 2, INPUT))
    assert set(network.state_dict()) == names


# ---- half precision


@EACH
@DTYPES
def test_a_network_in_half_precision_is_near_the_whole(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]()
    x = torch.randn(5, 2, INPUT)
    want = output_of(model, x)
    half = copy.deepcopy(model).to(dtype)
    got = output_of(half, x.to(dtype))
    assert got.dtype == dtype
    assert float((got.float() - want).detach().abs().max()) < tolerance(dtype)
    got.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in half.parameters())


@EACH
@DTYPES
def test_a_network_can_be_made_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name](dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert bool(torch.isfinite(output_of(model, torch.randn(5, 2, INPUT, dtype=dtype))).all())


@EACH
@DTYPES
@pytest.mark.parametrize("with_state", [False, True])
def test_autocast(name: str, dtype: torch.dtype, with_state: bool) -> None:
    """Parameters stay float32 and have gradients; a first state may be float32 too."""
    model = MODELS[name]()
    x, hx = torch.randn(5, 2, INPUT), None
    if with_state and not isinstance(model, TTLinear):
        shape = (len(model.cells), 2, HIDDEN)
        hx = torch.randn(shape) if not isinstance(model, TTLSTM) else (torch.randn(shape), torch.randn(shape))
    want = output_of(model, x, hx)
    with torch.autocast("cpu", dtype):
        got = output_of(model, x, hx)
    assert float((got.float() - want).detach().abs().max()) < tolerance(dtype)
    got.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_autocast_gives_what_a_dense_layer_gives(dtype: torch.dtype, bias: bool) -> None:
    x = torch.randn(4, INPUT)
    with torch.autocast("cpu", dtype):
        assert TTLinear(N, M, 3, bias=bias)(x).dtype == nn.Linear(INPUT, HIDDEN, bias=bias)(x).dtype == dtype


def test_to_moves_everything() -> None:
    network = TTGRU(N, M, 3).double()
    assert output_of(network, torch.randn(5, 2, INPUT, dtype=torch.double)).dtype == torch.double
    network = network.to("meta")
    assert output_of(network, torch.randn(5, 2, INPUT, dtype=torch.double, device="meta")).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_on_cuda_it_is_the_same(name: str) -> None:
    model, x = MODELS[name](), torch.randn(5, 2, INPUT)
    want = output_of(model, x)
    got = output_of(copy.deepcopy(model).cuda(), x.cuda())
    assert torch.allclose(got.cpu(), want, atol=RECURRENCE)


# ---- compilation


@pytest.fixture
def _fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["linear", "linear-constrained"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_the_projection_compiles_without_graph_breaks(name: str, dynamic: bool | None) -> None:
    model = MODELS[name]()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in ((4,), (7,), (2, 5)):
        x = torch.randn(*rows, INPUT)
        model.zero_grad()
        want = model(x)
        want.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        got = compiled(x)
        assert torch.allclose(got, want, atol=CONTRACTION)
        got.square().sum().backward()
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.allclose(p.grad, gradient, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the inductor's own imports
@pytest.mark.usefixtures("_fresh_compiler")
def test_the_default_compiler_gives_the_same_values_and_gradients() -> None:
    model, x = MODELS["linear-constrained"](), torch.randn(4, 3, INPUT)
    want = model(x)
    want.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    got = torch.compile(model, fullgraph=True)(x)
    got.square().sum().backward()
    assert torch.allclose(got, want, atol=CONTRACTION)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_layer_keeps_its_penalty() -> None:
    model = TTLinear(N, M, 3, kernel_penalty=Penalty(l2=0.5), activity_penalty=Penalty(l2=0.1))
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(4, INPUT)
    model(x)
    want = penalty_of(model).item()
    compiled(x)
    assert penalty_of(model).item() == pytest.approx(want, rel=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_network_compiles_without_graph_breaks() -> None:
    model, x = TTGRU(N, M, 3), torch.randn(3, 2, INPUT)
    got, _ = torch.compile(model, fullgraph=True, backend="aot_eager")(x, lengths=torch.tensor([3, 1]))
    assert torch.allclose(got, model(x, lengths=torch.tensor([3, 1]))[0], atol=RECURRENCE)


# ---- several processes


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = TTGRU(N, M, 3, num_layers=2, recurrent_ranks=2, kernel_penalty=Penalty(l2=0.01))
        self.head = TTLinear(M, (2, 1), 2, kernel_constraint=limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(x)
        return self.head(output[-1])


def one_of_two(rank: int, port: int, folder: str) -> None:
    """Half of the batch; the weights after three steps are written."""
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    own, x = Classifier(), torch.load(Path(folder) / "x.pt")
    if rank == 0:  # the second has other weights, until the first sends it its own
        own.load_state_dict(torch.load(Path(folder) / "before.pt"))
    learn(nn.parallel.DistributedDataParallel(own), own, x[:, rank::2])
    torch.save(own.state_dict(), Path(folder) / f"after_{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def learn(model: nn.Module, own: nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).square().mean() + penalty_of(own)).backward()
        optimizer.step()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    model, x = Classifier(), torch.randn(4, 6, INPUT)
    torch.save(x, tmp_path / "x.pt")
    torch.save(model.state_dict(), tmp_path / "before.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    learn(model, model, x)
    first, second = (torch.load(tmp_path / f"after_{rank}.pt") for rank in range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=CONTRACTION), name
