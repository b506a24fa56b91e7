"""Functions that take a device: those that place something with it, and those that only speak."""

from __future__ import annotations

import re

from conformance.scan.knowing.circumstances import forks_others
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.vocabulary import AUTOCASTS

#: Calls whose device argument another rule looks at.
CLAIMED = AUTOCASTS | {"torch.Generator"}
#: Functions that take a device as their first positional argument.
FIRST = frozenset(
    {
        "to",
        "to_empty",
        "device",
        "set_default_device",
        "init_device_mesh",
        "DeviceMesh",
        "set_device",
        "set_default_tensor_type",
        "get_device_module",
    }
)
#: Functions for which ``device_type=`` decides where things go; elsewhere it only describes.
TYPED = frozenset({"init_device_mesh", "DeviceMesh", "fork_rng", "device", "set_default_device"})
_NOT_PLACING = re.compile(
    r"register(?!_(?:buffer|parameter|module))|skip|require|expected|mock|dispatch|(?<!s)impl|only"
)
_ASKING = ("is_", "has_", "check_", "supports_", "can_", "_is_", "_has_", "_check_", "assert")
#: Functions that read a setting, and give their last argument where it is missing.
FALLBACK_READS = frozenset({"get", "pop", "setdefault", "getenv", "getattr"})
#: Functions that declare an option or a field, with its default.
OPTIONS = frozenset(
    {"add_argument", "option", "Option", "argument", "Argument", "Field", "field", "ib", "attrib"}
)


def describes(point: Point, dotted: str, name: str) -> bool:
    """Whether a function only speaks of the devices that it is given."""
    if name == "fork_rng" and forks_others(point):
        return True  # the state of another accelerator is kept beside it
    if dotted.startswith("torch.cuda."):
        return True  # what asks CUDA about its own device chooses none
    return name.startswith(_ASKING) or _NOT_PLACING.search(name.lower()) is not None
