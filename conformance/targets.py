"""Which devices this machine has to be judged on: cpu, cuda, mps, and the simulated mps-sim."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

NAMES = ("cpu", "cuda", "mps", "mps-sim")
"""Every target, in the order of the report's columns."""

CHOICES = (*NAMES, "auto", "all")


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
    """

    name: str
    device: str
    present: bool
    detail: str

    @property
    def simulated(self) -> bool:
        """Whether its tensors are the host's, wearing another name."""
        return self.name != self.device

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
        if not self.simulated:
            return nullcontext()
        return _simulated(packages)


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
    }


def choose(asked: Sequence[str], here: dict[str, Target] | None = None) -> list[Target]:
    """The targets that `--device` names, each once, in the order of `NAMES`.

    Args:
        asked: values of the option; each may hold several names, comma-separated. `auto` is
            this machine's best real device, `all` everything present.
        here: what this machine has, by default what `find` says.

    Raises:
        TargetError: a name is unknown, or the device is absent.
    """
    here = find() if here is None else here
    names = [name.strip().lower() for text in asked for name in text.split(",") if name.strip()]
    present = [name for name in NAMES if here[name].present]
    wanted: set[str] = set()
    for name in names or ["auto"]:
        if name == "all":
            wanted.update(present)
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
