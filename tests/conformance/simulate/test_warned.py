"""Warnings name the program's line: those of Python's functions, of C++, of calls met before."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.jit import _script
from torch.nn import functional

from conformance.simulate import mps

Said = list[tuple[str, int, str, str]]


class Loss(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(x, x[0])


def _mine(x: torch.Tensor) -> torch.Tensor:
    warnings.warn("mine", stacklevel=2)
    return x


def _calls(device: str) -> Iterator[Callable[[], Any]]:
    """Calls that warn, each on a line of its own."""
    x, few = torch.rand(2, 3, device=device), torch.ones(1, device=device)
    image = torch.rand(1, 1, 4, 4, device=device)
    numbers = torch.complex(x, x)
    bytes_ = torch.ones(2, 3, dtype=torch.uint8, device=device)
    yield lambda: functional.mse_loss(x, x[0])
    yield lambda: functional.mse_loss(x, x, reduce=True)
    yield lambda: functional.upsample(image, scale_factor=2)
    yield lambda: functional.softmax(x)
    yield lambda: torch.nn.Softmax()(x)
    yield lambda: functional.grid_sample(image, torch.zeros(1, 2, 2, 2, device=device))
    yield lambda: functional.dropout2d(x)
    yield lambda: functional.conv2d(image, torch.ones(1, 1, 2, 2, device=device), padding="same")
    yield lambda: torch.meshgrid(x[0], x[0])
    yield lambda: x[0].T
    yield lambda: numbers.to(torch.float32)
    yield lambda: torch.tensor(x)
    yield lambda: torch.add(x, x, out=torch.ones(1, device=device))
    yield lambda: few.var()
    yield lambda: x[bytes_]
    yield lambda: torch.where(bytes_, x, x)
    yield lambda: (x.clone().requires_grad_() * 2).grad
    yield lambda: torch.cholesky(torch.eye(3, device=device))
    yield lambda: torch.range(0, 3, device=device)
    yield lambda: float(few.clone().requires_grad_())
    yield lambda: Loss()(x)
    yield lambda: _mine(x)


def _said(device: str, action: str) -> Said:
    found: Said = []
    for call in _calls(device):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)  # type: ignore[arg-type]
            for _ in range(4):
                call()
        assert caught, call.__code__.co_firstlineno
        found += [(w.filename, w.lineno, w.category.__name__, str(w.message)) for w in caught]
    return found


@pytest.fixture(autouse=True)
def _each_time() -> Iterator[None]:
    """C++ says most things once; and what was said before is forgotten."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def _forget() -> None:
    """Has every line warn anew."""
    for module in list(sys.modules.values()):
        said = module.__dict__.get("__warningregistry__")
        if said:
            said.clear()


@pytest.mark.parametrize("action", ["always", "default"])
def test_warnings_name_the_line_that_they_name_on_the_cpu(action: str) -> None:
    """Cold and known calls, warnings of Python and C++; `default` says each line's once."""
    _forget()
    host = _said("cpu", action)
    _forget()
    with mps():
        device = _said("mps", action)
    assert device == host


def test_filters_judge_the_programs_module() -> None:
    """An error is raised where the program's own module is meant, and others are not heard."""
    few, before = torch.ones(1), list(warnings.filters)
    with mps():
        few = few.to("mps")
        for _ in range(3):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", module=__name__)
                with pytest.raises(UserWarning, match="degrees of freedom"):
                    few.var()
                warnings.filterwarnings("ignore", module=__name__)
                few.var()
    assert list(warnings.filters) == before


def test_two_lines_are_two_lines_to_a_filter_that_says_each_once() -> None:
    with mps():
        few = torch.ones(1, device="mps")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                few.var()
                few.var()
                few.var()
    assert [warning.lineno - caught[0].lineno for warning in caught] == [0, 1, 2]


def test_each_module_hears_once_what_is_said_once() -> None:
    """To C++'s warnings "once" is once for each module."""
    heard = []
    for device in ("cpu", "mps"):
        modules = [{"__name__": name, "torch": torch} for name in ("first", "second")]
        with (
            mps() if device == "mps" else nullcontext(),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("once")
            for names in modules * 3:
                code = f"torch.ones(1, device={device!r}).var()"
                exec(compile(code, f"{names['__name__']}.py", "exec"), names)
        heard.append([warning.filename for warning in caught])
    assert heard == [["first.py", "second.py"]] * 2


def test_an_option_that_python_lacks_is_refused_in_its_words() -> None:
    with pytest.raises(TypeError) as plain:
        warnings.warn("mine", nonsense=1)  # type: ignore[call-overload]  # noqa: B028
    with mps(), pytest.raises(TypeError) as simulated:
        warnings.warn("mine", nonsense=1)  # type: ignore[call-overload]  # noqa: B028
    assert str(simulated.value) == str(plain.value)


def _anomaly(device: str) -> str:
    x = torch.tensor([-1.0], device=device, requires_grad=True)
    with (
        pytest.warns(UserWarning, match="Anomaly|Error detected") as caught,
        torch.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match="nan"),
    ):
        (functional.relu(x.sqrt()) * 0).sum().backward()  # type: ignore[no-untyped-call]
    return str(caught[-1].message)


def test_anomaly_detection_tells_of_the_programs_frames() -> None:
    said = []
    for device in ("cpu", "mps"):
        with mps() if device == "mps" else nullcontext():
            said.append(_anomaly(device))
    assert "_anomaly" in said[0]
    assert said[1] == said[0]


def _compiled(x: torch.Tensor) -> torch.Tensor:
    if x.dim() > 1:
        warnings.warn("many dimensions")  # noqa: B028 - TorchScript knows no level
    return x + torch.tensor(1.0) + torch.range(0, 1)


def test_the_compiler_knows_what_is_replaced_and_what_was() -> None:
    """By whatever name `torch.jit.script` is reached, and torch's own functions afterwards."""
    for _ in range(2):
        with mps():
            assert _script.script(_compiled)(torch.ones(2)).tolist() == [2, 3]
        assert torch.jit.script(_compiled)(torch.ones(2)).tolist() == [2, 3]
