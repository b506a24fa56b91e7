"""What each kind of checkpoint is run with where nobody says: one table for every door.

Steps and guidance: the original's page and HTTP API. Shift: there too, and diffusers' default.
The shift variants of turbo are named for the one that each was distilled at. The built-in
checkpoint learned its eight steps at shift 1 (`demo.diffusion.STEPS`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """How a kind of checkpoint is run.

    Attributes:
        steps: diffusion steps.
        shift: of the schedule.
        guidance_scale: turbo checkpoints ignore it.
        distilled_steps: the only number of steps that it learned; None for any.
        distilled_shifts: the shifts that it learned them at.
    """

    steps: int
    shift: float
    guidance_scale: float = 7.0
    distilled_steps: int | None = None
    distilled_shifts: tuple[float, ...] = ()


MAX_DISTILLED_TIMES = 20
"""Custom timesteps that a distilled checkpoint takes at most."""

TABLE = {
    "demo": Defaults(8, 1.0, distilled_steps=8, distilled_shifts=(1.0,)),
    "turbo": Defaults(8, 3.0, distilled_steps=8, distilled_shifts=(1.0, 2.0, 3.0)),
    "turbo-shift1": Defaults(8, 1.0, distilled_steps=8, distilled_shifts=(1.0,)),
    "turbo-shift3": Defaults(8, 3.0, distilled_steps=8, distilled_shifts=(3.0,)),
    "base": Defaults(32, 3.0),
    "sft": Defaults(50, 3.0),
}
"""XL checkpoints are run as those of their kind with 2 billion weights."""


def kind_of(name: str, is_turbo: bool, version: str = "", builtin: bool = False) -> str:
    """Which row of the table a checkpoint is: `is_turbo` decides, then its name and version.

    Args:
        name: of the checkpoint, for example `acestep-v15-xl-sft`.
        is_turbo: as its config says.
        version: the config's `model_version`, where it has one.
        builtin: whether it comes with this package.
    """
    if builtin:
        return "demo"
    words = f"{name} {version}".lower()
    if is_turbo:
        shift = next((word for word in ("shift1", "shift3") if word in words), None)
        return f"turbo-{shift}" if shift else "turbo"
    return "sft" if "sft" in words else "base"
