"""What this machine has to be judged on: cpu, cuda, mps, the simulated mps-sim, and MLX's three."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

MLX = ("mlx-metal", "mlx-cuda", "mlx-cpu")
"""What MLX may compute with, the best first; `mlx` asks for the first that is here."""

NAMES = ("cpu", "cuda", "mps", "mps-sim", *MLX)
"""Every target, in the order of the report's columns."""

CHOICES = ("cpu", "cuda", "mps", "mps-sim", "mlx", "auto", "all")


_ENGINE = "ACESTEP_ENGINE"


class TargetError(ValueError):
    """A target that is unknown or not here; the message is one line that says what is."""


@dataclass(frozen=True)
class Target:
    """One device to run the cases on.

    Attributes:
        name: how it is reported.
        device: the name that the tree under test is asked for.
        present: whether this machine has it.
        detail: what it is, or why it is absent.
        engine: what computes there, `torch` or `mlx`.
    """

    name: str
    device: str
    present: bool
    detail: str
    engine: str = "torch"

    @property
    def simulated(self) -> bool:
        """Whether its tensors are the host's, wearing another name."""
        return self.name == "mps-sim"

    @property
    def may_use_cuda(self) -> bool:
        """Whether touching CUDA is right on this target."""
        return self.device == "cuda"

    def activate(self, packages: Sequence[str] = ()) -> AbstractContextManager[Any]:
        """The device, present within a `with` block (a real one always is).

        Args:
            packages: where the device is simulated, what these packages import in the block
                sees the system of the machine it stands for.
        """
        # On a Mac with MLX `auto` is MLX, and the column `mps` is torch's.
        if self.engine != "torch" or self.name == "mps":
            return _asking_for(self.engine)
        if not self.simulated:
            return nullcontext()
        return _simulated(packages)


@contextmanager
def _asking_for(engine: str) -> Iterator[None]:
    """The variable that says what computes where nothing is asked for, in children too."""
    before = os.environ.get(_ENGINE)
    os.environ[_ENGINE] = engine
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ENGINE]
        else:
            os.environ[_ENGINE] = before


@contextmanager
def _simulated(packages: Sequence[str]) -> Iterator[None]:
    from conformance import simulate
    from conformance.simulate.identity import as_mac

    with simulate.mps(), as_mac(packages) if packages else nullcontext():
        yield


@functools.cache
def find() -> dict[str, Target]:
    """Every target by name, with whether it is here."""
    import torch

    cuda = torch.cuda.is_available()
    cuda_detail = torch.cuda.get_device_name(0) if cuda else _why_no_cuda()
    mps = torch.backends.mps.is_available()
    if mps:
        mps_detail = "Apple GPU through Metal"
    elif torch.backends.mps.is_built():
        mps_detail = "needs macOS 12.3 or later and an Apple GPU"
    else:
        mps_detail = "this PyTorch is built without MPS"
    simulated, simulated_detail = _simulation(mps)
    return {
        "cpu": Target("cpu", "cpu", True, "the host"),
        "cuda": Target("cuda", "cuda", cuda, cuda_detail),
        "mps": Target("mps", "mps", mps, mps_detail),
        "mps-sim": Target("mps-sim", "mps", simulated, simulated_detail),
        **_of_mlx(cuda, mps),
    }


def _of_mlx(cuda: bool, mps: bool) -> dict[str, Target]:
    """MLX's targets; torch has to know the device too, which reads the checkpoints."""
    devices = {"mlx-metal": "mps", "mlx-cuda": "cuda", "mlx-cpu": "cpu"}
    detail = _why_no_mlx()
    if detail is None:
        import mlx.core as mx

        detail = "not what this MLX computes with"
        has = {
            "mlx-metal": mps and mx.metal.is_available(),
            "mlx-cuda": cuda and mx.cuda.is_available(),
            "mlx-cpu": True,
        }
    else:
        has = dict.fromkeys(MLX, False)
    here = {"mlx-metal": "MLX on Metal", "mlx-cuda": "MLX on CUDA", "mlx-cpu": "MLX on the host"}
    return {
        name: Target(name, devices[name], has[name], here[name] if has[name] else detail, "mlx")
        for name in MLX
    }


def _why_no_mlx() -> str | None:
    for name in ("mlx", "mlx_lm"):
        if importlib.util.find_spec(name) is None:
            return f"the package {name.replace('_', '-')} is not installed"
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        # As where a build for CUDA does not find CUDA's libraries.
        first, _, _ = str(error).partition("\n")
        return f"the package mlx cannot be loaded: {first}"
    return None


def choose(asked: Sequence[str], here: dict[str, Target] | None = None) -> list[Target]:
    """The targets that `--device` names, each once, in the order of `NAMES`.

    Args:
        asked: values of the option; each may hold several names, comma-separated. `auto` is
            this machine's best real device, `all` everything present that computes with torch,
            `mlx` the best of MLX's.
        here: what this machine has, by default what `find` says.

    Raises:
        TargetError: a name is unknown, or the device is absent.
    """
    here = find() if here is None else here
    names = [name.strip().lower() for text in asked for name in text.split(",") if name.strip()]
    present = [name for name in NAMES if name in here and here[name].present]
    wanted: set[str] = set()
    for name in names or ["auto"]:
        if name == "all":
            wanted.update(name for name in present if here[name].engine == "torch")
        elif name == "mlx":
            wanted.add(next((one for one in MLX if one in present), ""))
            if "" in wanted:
                why = here["mlx-cpu"].detail if "mlx-cpu" in here else "not looked for"
                raise TargetError(
                    f"--device=mlx is not on this machine ({why}); install it with: pip install "
                    "'acestep[mlx]'"
                )
        elif name == "auto":
            wanted.add(next(n for n in ("cuda", "mps", "cpu") if here[n].present))
        elif name not in here:
            raise TargetError(
                f"--device={name} is unknown; choose from {', '.join(CHOICES)} "
                f"(here: {', '.join(present)})"
            )
        elif not here[name].present:
            raise TargetError(
                f"--device={name} is not on this machine ({here[name].detail}); here: "
                f"{', '.join(present)}; use --device={_instead(name, present)}"
            )
        else:
            wanted.add(name)
    return [here[name] for name in NAMES if name in wanted]


def _instead(name: str, present: Sequence[str]) -> str:
    return "mps-sim" if name == "mps" and "mps-sim" in present else "auto"


def _why_no_cuda() -> str:
    import torch

    built = torch.version.cuda is not None or torch.version.hip is not None
    return "no CUDA device or driver" if built else "this PyTorch is built without CUDA"


def _simulation(real_mps: bool) -> tuple[bool, str]:
    if importlib.util.find_spec("conformance.simulate") is None:
        return False, "the simulated device is not installed"
    if real_mps:
        return False, "this machine has the real device"
    return True, "simulated: MPS's limits on the host's arithmetic"
