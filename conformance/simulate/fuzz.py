"""Random programs of tensor operations, run on the CPU and on the simulated device alike.

`python -m conformance.simulate.fuzz --count 5000` compares values bit for bit, dtypes, shapes,
strides, errors, and which tensors share memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from conformance.simulate.device import BACKEND, REPORTED_NAME
from conformance.simulate.session import mps
from conformance.simulate.widening import LACKING

Step = Callable[[list[torch.Tensor]], object]
"""Changes a pool of tensors, or returns one to add to it."""

_UNARY = [
    "abs",
    "neg",
    "clone",
    "contiguous",
    "cumsum0",
    "sum",
    "sum0",
    "sort",
    "tanh",
    "relu",
    "square",
    "logical_not",
    "isnan",
    "flip0",
    "argsort",
    "amax",
    "any",
    "detach",
    "sign",
]
_LACKS = "no kernel"
_DTYPES = (torch.float32, torch.float16, torch.int32, torch.int64, torch.bool, torch.uint8)


@dataclass
class Program:
    """A starting pool and steps, each with its text."""

    seed: int
    steps: list[tuple[str, Step]] = field(default_factory=list)

    def text(self) -> str:
        """The program, one step a line, to reproduce a difference."""
        return "\n".join([f"seed {self.seed}", *(name for name, _ in self.steps)])


def _unary(rng: random.Random, i: int) -> tuple[str, Step]:
    name = rng.choice(_UNARY)
    special: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "cumsum0": lambda x: x.cumsum(0),
        "sum0": lambda x: x.sum(0, keepdim=True),
        "sort": lambda x: torch.sort(x, stable=True).values,
        "argsort": lambda x: torch.argsort(x, stable=True),
        "flip0": lambda x: x.flip(0),
    }

    def step(t: list[torch.Tensor]) -> object:
        return special[name](t[i]) if name in special else getattr(t[i], name)()

    return f"t[{i}].{name}()", step


def _view(rng: random.Random, i: int) -> tuple[str, Step]:
    a, b = rng.randint(-2, 1), rng.randint(0, 3)
    views: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "transpose": lambda x: x.transpose(a, -1),
        "slice": lambda x: x[b:],
        "step": lambda x: x[::2],
        "last": lambda x: x[..., b : b + 2],
        "select": lambda x: x.select(a, 0),
        "unsqueeze": lambda x: x.unsqueeze(a),
        "squeeze": lambda x: x.squeeze(),
        "reshape": lambda x: x.reshape(-1),
        "view": lambda x: x.view(-1),
        "expand": lambda x: x.unsqueeze(0).expand(2, *x.shape),
        "diagonal": lambda x: x.diagonal(),
        "unfold": lambda x: x.unfold(0, 2, 1),
        "as_strided": lambda x: x.as_strided((2,), (1,)),
        "chunk": lambda x: x.chunk(2)[-1],
        # Not of truth values: writing 2 into one makes a value that has no meaning.
        "bits": lambda x: x.view(torch.uint8 if x.dtype is not torch.bool else torch.bool),
    }
    name = rng.choice(list(views))
    return f"t[{i}].{name}({a}, {b})", lambda t: views[name](t[i])


def _binary(rng: random.Random, i: int, j: int) -> tuple[str, Step]:
    name = rng.choice(["add", "sub", "mul", "maximum", "eq", "lt", "matmul", "cat", "where", "div"])

    def step(t: list[torch.Tensor]) -> torch.Tensor:
        if name == "cat":
            return torch.cat([t[i], t[j]], -1)
        if name == "where":
            return torch.where(t[i] > 0, t[i], t[j])
        made: torch.Tensor = getattr(torch, name)(t[i], t[j])
        return made

    return f"torch.{name}(t[{i}], t[{j}])", step


def _in_place(rng: random.Random, i: int, j: int) -> tuple[str, Step]:
    value = rng.randint(-3, 3)
    changes: dict[str, Callable[[list[torch.Tensor]], object]] = {
        "add_": lambda t: t[i].add_(t[j]),
        "mul_": lambda t: t[i].mul_(value),
        "copy_": lambda t: t[i].copy_(t[j]),
        "fill_": lambda t: t[i].fill_(value),
        "zero_": lambda t: t[i].zero_(),
        "set item": lambda t: t[i].__setitem__(0, value),
        "set slice": lambda t: t[i].__setitem__((..., slice(1, None)), value),
        "set mask": lambda t: t[i].__setitem__(t[i] > 1, value),
        "set list": lambda t: t[i].__setitem__([0, -1], value),
        "masked_fill_": lambda t: t[i].masked_fill_(t[i] < 0, value),
        "index_add_": lambda t: t[i].index_add_(0, torch.zeros_like(t[i][:1, 0]).long(), t[i][:1]),
        "transpose_": lambda t: t[i].transpose_(0, -1),
        "foreach": lambda t: torch._foreach_add_([t[i]], value),
    }
    name = rng.choice(list(changes))

    def step(t: list[torch.Tensor]) -> None:
        changes[name](t)

    return f"t[{i}].{name}({value}, t[{j}])", step


def _index(rng: random.Random, i: int) -> tuple[str, Step]:
    indices: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "list": lambda x: x[[0, -1]],
        "mask": lambda x: x[x > 0],
        "none": lambda x: x[None, ..., 0],
        "gather": lambda x: x.gather(0, torch.zeros_like(x, dtype=torch.int64)),
        "take": lambda x: x.index_select(0, x.new_zeros(2, dtype=torch.int64)),
        "nonzero": lambda x: x.nonzero(),
        "like": lambda x: torch.ones_like(x) + x.new_full((1,), 2),
        "host": lambda x: x[torch.tensor([0, 0])],
    }
    name = rng.choice(list(indices))
    return f"t[{i}][{name}]", lambda t: indices[name](t[i])


def _cast(rng: random.Random, i: int) -> tuple[str, Step]:
    dtype = rng.choice(_DTYPES)
    copy = rng.random() < 0.3
    return f"t[{i}].to({dtype}, copy={copy})", lambda t: t[i].to(dtype, copy=copy)


def _autocast(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, dtype=torch.float16):
        return x @ y


def _nested(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.nested.as_nested_tensor([x, y], layout=torch.jagged)
    values: torch.Tensor = (made * 2).values()
    return values


class _Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def _strange(rng: random.Random, i: int, j: int) -> tuple[str, Step]:
    """What is not a plain eager operator: converted, of another layout, or traced."""
    ways: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "autocast matmul": _autocast,
        "autocast linear": lambda x, y: _autocast(x.float(), y.float().t()),
        "sparse and back": lambda x, _: x.to_sparse().coalesce().to_dense(),
        "sparse sum": lambda x, y: (x.to_sparse() + y.to_sparse()).to_dense(),
        "sparse product": lambda x, y: torch.sparse.mm(x.to_sparse(), y),
        "jagged": _nested,
        "nested": lambda x, y: torch.nested.as_nested_tensor([x, y]).to_padded_tensor(0),
        "jit.trace": lambda x, _: torch.jit.trace(_Doubled(), (x,))(x),  # type: ignore[no-untyped-call]
        "make_fx": lambda x, _: make_fx(_Doubled())(x)(x),
        "make_fx of fakes": lambda x, _: make_fx(_Doubled(), tracing_mode="fake")(x)(x),
        "vmap": lambda x, _: torch.vmap(torch.sin)(x.float()),
    }
    # An export takes as long as a hundred programs.
    if rng.random() < 0.02:
        ways = {"export": lambda x, _: torch.export.export(_Doubled(), (x,)).module()(x)}
    name = rng.choice(list(ways))
    return f"{name}(t[{i}], t[{j}])", lambda t: ways[name](t[i], t[j])


def program(seed: int, length: int = 10) -> Program:
    """The program of a seed; the same in every process."""
    rng = random.Random(seed)
    made = Program(seed)
    for _ in range(length):
        i, j = rng.randrange(6), rng.randrange(6)
        kind = rng.randrange(6) if rng.random() < 0.9 else 6
        makers: list[Callable[[], tuple[str, Step]]] = [
            lambda i=i: _unary(rng, i),  # type: ignore[misc]
            lambda i=i: _view(rng, i),  # type: ignore[misc]
            lambda i=i, j=j: _binary(rng, i, j),  # type: ignore[misc]
            lambda i=i, j=j: _in_place(rng, i, j),  # type: ignore[misc]
            lambda i=i: _index(rng, i),  # type: ignore[misc]
            lambda i=i: _cast(rng, i),  # type: ignore[misc]
            lambda i=i, j=j: _strange(rng, i, j),  # type: ignore[misc]
        ]
        made.steps.append(makers[kind]())
    return made


def start(seed: int) -> list[torch.Tensor]:
    """Six small tensors on the CPU, some of them views of one another."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(4, 4, generator=rng)
    whole = torch.randint(-3, 4, (3, 4), generator=rng)
    return [base, base.t(), base[1], whole, whole > 0, torch.randn(4, generator=rng)]


def _on_device(pool: list[torch.Tensor]) -> list[torch.Tensor]:
    base, whole = pool[0].to(BACKEND), pool[3].to(BACKEND)
    return [base, base.t(), base[1], whole, pool[4].to(BACKEND), pool[5].to(BACKEND)]


def _apply(step: Step, pool: list[torch.Tensor]) -> str:
    """Runs a step; returns the type of its error, if it had one."""
    try:
        made = step(pool)
    except Exception as error:  # noqa: BLE001 - both worlds must fail alike, whatever it is
        if LACKING.search(str(error)):
            return _LACKS
        return REPORTED_NAME if f"[{REPORTED_NAME}]" in str(error) else type(error).__name__
    if isinstance(made, torch.Tensor):
        pool[len(pool) % 6] = made
        pool.append(made)
    return ""


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()


def _shared(pool: list[torch.Tensor]) -> list[tuple[int, int]]:
    first: dict[int, int] = {}
    return [
        (first.setdefault(tensor.untyped_storage().data_ptr(), index), int(tensor.storage_offset()))
        for index, tensor in enumerate(pool)
        if tensor.numel()
    ]


def difference(made: Program) -> str:
    """What differs after running a program in both worlds; empty where nothing does.

    Must be called inside a simulation. Programs that MPS refuses are compared up to there, and so
    are those for which the CPU lacks a kernel that the device may have.
    """
    host = start(made.seed)
    device = _on_device(host)
    for name, step in made.steps:
        errors = _apply(step, host), _apply(step, device)
        if errors[1] == REPORTED_NAME or errors[0] == _LACKS:
            return ""
        if errors[0] != errors[1]:
            return f"{name}: the CPU said {errors[0] or 'nothing'}, the device {errors[1]}"
        if _shared(host) != _shared(device):
            return f"{name}: other tensors share memory"
        for index, (one, other) in enumerate(zip(host, device, strict=True)):
            if not other.is_mps:
                return f"{name}: t[{index}] left the device"
            if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
                return f"{name}: t[{index}] has another dtype, shape or stride"
            if _bits(one) != _bits(other):
                return f"{name}: t[{index}] has other values"
    return ""


def _differences(seeds: range) -> list[str]:
    """The programs of these seeds that differ, each with where."""
    warnings.simplefilter("ignore")
    found = []
    with mps():
        for seed in seeds:
            made = program(seed)
            text = difference(made)
            if text:
                found.append(f"{made.text()}\n-> {text}\n\n")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs programs and prints the differences; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m conformance.simulate.fuzz")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes to share the work (1)")
    options = parser.parse_args(arguments)
    jobs, end = max(options.jobs, 1), options.seed + options.count
    shares = [range(options.seed + job, end, jobs) for job in range(jobs)]
    if jobs == 1:
        found = _differences(shares[0])
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            found = [text for part in pool.map(_differences, shares) for text in part]
    sys.stdout.write("".join(found) + f"{options.count} programs, {len(found)} differences\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
