"""What a folder says of weights that it holds in few bits, and whether a policy can use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.checkpoint.files import read_json
from acestep.device import ENGINE_CHOICES, QUANTIZATIONS, DevicePolicy
from acestep.errors import CheckpointError, RequestError

ENTRY = "quantization"
"""Of `model_index.json`, or of a language model's `config.json`. What MLX's own libraries write there
has another form, see `lm.models.stored_bits`."""

_SPELLED = {("mlx", "int8"): "8bit", ("mlx", "int4"): "4bit"}


@dataclass(frozen=True)
class Held:
    """How weights are held.

    Attributes:
        engine: whose form it is, `torch` or `mlx`.
        kind: one of `device.QUANTIZATIONS`.
        stored: the dtype of what they were made of, by safetensors' name, such as `BF16`.
    """

    engine: str
    kind: str
    stored: str

    @property
    def entry(self) -> dict[str, str]:
        """What `ENTRY` holds."""
        return {"engine": self.engine, "kind": self.kind, "stored": self.stored}

    @property
    def suffix(self) -> str:
        """What is added to a name: as MLX's libraries write it, or the kind."""
        return _SPELLED.get((self.engine, self.kind), self.kind)

    def agreed(self, name: str, policy: DevicePolicy) -> DevicePolicy:
        """A policy for these weights.

        Args:
            name: of what holds them, for messages.
            policy: what was asked for.

        Raises:
            RequestError: it asks for another engine or other bits, or its device lacks these.
        """
        if policy.engine != self.engine:
            raise RequestError(
                f"{name} is held in {self.kind} for the engine '{self.engine}', and '{policy.engine}' "
                f"was to compute; use --engine {self.engine}, or name what it was made of"
            )
        if policy.quantization not in (None, self.kind):
            raise RequestError(
                f"{name} is held in {self.kind}; leave out --quantize, or name what it was made of"
            )
        return policy.with_quantization(self.kind)


def held_in(file: Path) -> Held | None:
    """What a folder's JSON file says, or None where its weights are whole or MLX's libraries' own.

    Raises:
        CheckpointError: it says what is not known here, or is missing or damaged.
    """
    entry: Any = read_json(file).get(ENTRY)
    if not isinstance(entry, dict) or "engine" not in entry:
        return None
    made = Held(*(str(entry.get(name)) for name in ("engine", "kind", "stored")))
    if made.engine not in ENGINE_CHOICES[1:] or made.kind not in QUANTIZATIONS:
        raise CheckpointError(
            f"{file}: weights held in {made.kind} for the engine '{made.engine}', which are not known "
            "here; install a newer version of this package, or make the folder again"
        )
    return made
