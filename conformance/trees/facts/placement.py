"""S2: where a tensor lies is told right for every device, not for two."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from conformance.tree import Absent
from conformance.trees.asking import Asking, Told, Wrong, bare
from conformance.trees.layouts import Place, place_of

KINDS = ("cpu", "cuda", "mps", "xpu", "meta")


@dataclass(frozen=True)
class Elsewhere:
    """Stands for a tensor on a device that this machine need not have."""

    device: torch.device

    @property
    def is_cuda(self) -> bool:
        """As a tensor says it."""
        return self.device.type == "cuda"


def told_for_every_device(ask: Asking) -> Told:
    """Each kind of device is itself, by name and as an object, and no other."""
    test = place_of(ask.tree, "placement")
    owner = _owner(ask, test)
    name = test.row.rpartition(".")[2].rpartition(":")[2]
    asked = getattr(owner, name) if owner is not None else test.value
    for spelled in (*KINDS, *map(torch.device, KINDS)):
        for where in KINDS:
            _judge(ask, test, asked, Elsewhere(torch.device(where)), spelled)
    return Told(test.line, f"{', '.join(KINDS)} are told apart by {name}")


def _judge(ask: Asking, test: Place, asked: Any, tensor: Elsewhere, spelled: Any) -> None:
    right = tensor.device.type == torch.device(spelled).type
    try:
        found = asked(tensor, spelled)
    except Exception as error:  # noqa: BLE001 (whatever it is, the tree raised it)
        told = f"asked whether a tensor on {tensor.device} is on {spelled}, it raised {error!r}"
        raise Wrong(ask.line_of(error) or test.line, told) from None
    if bool(found) is not right:
        said = f"a tensor on {tensor.device} is said {'' if found else 'not '}to be on {spelled}"
        raise Wrong(ask.returned_at(lambda: asked(tensor, spelled)) or test.line, said)


def _owner(ask: Asking, test: Place) -> Any:
    """An instance to ask, of the tree's handler or of the class the test stands in."""
    dotted = test.row.partition(":")[2]
    if "." not in dotted:
        return None
    try:
        handler = place_of(ask.tree, "handler")
    except Absent:
        handler = None
    name = dotted.rpartition(".")[2]
    if handler is not None and hasattr(handler.value, name):
        return bare(handler.value)
    module = sys.modules[f"acestep.{test.row.partition(':')[0]}"]
    return bare(getattr(module, dotted.rpartition(".")[0]))
